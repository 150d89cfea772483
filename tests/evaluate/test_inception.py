"""Tests of FID and KID by hand, over given networks, and with missing, incomplete or foreign weights."""

import hashlib
import importlib.machinery
import importlib.util
import math
import urllib.error
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pegasus_lightning.evaluate import inception
from pegasus_lightning.evaluate.inception import (
    SHA256,
    URL,
    WEIGHTS,
    extract_features,
    inception_figures,
    inception_network,
    inception_weights,
)
from pegasus_lightning.evaluate.metrics.realism import kid, kid_uncertainty
from pegasus_lightning.utils.errors import UserError

N = 2000


class Linear(nn.Module):
    """Features: a matrix (d, channels) times the first pixel's bytes. Calls are recorded."""

    def __init__(self, matrix: list[list[float]]) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.tensor(matrix))
        self.calls: list[tuple[torch.dtype, int, bool, bool, bool]] = []

    def forward(self, images: Tensor) -> Tensor:
        frozen = not any(parameter.requires_grad for parameter in self.parameters())
        self.calls.append((images.dtype, len(images), self.training, frozen, torch.is_grad_enabled()))
        return images[:, :, 0, 0].float() @ self.matrix.T


IDENTITY = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
FIRST_TWO = IDENTITY[:2]


def repeated(*colours: tuple[int, int, int]) -> Tensor:
    """2000 images (3, 2, 2) in equal numbers of each colour, uint8."""
    pixels = torch.tensor(colours, dtype=torch.uint8).repeat(N // len(colours), 1)
    return pixels[:, :, None, None].expand(-1, -1, 2, 2)


def test_a_fid_of_diagonal_covariances_by_hand() -> None:
    # Each channel is mean +- s: variance s^2 N / (N - 1), no covariance (Heusel et al., eq. 6, one term per channel).
    real = repeated((110, 96, 50), (90, 96, 50), (110, 104, 50), (90, 104, 50))
    fake = repeated((106, 103, 50), (100, 103, 50), (106, 107, 50), (100, 107, 50))
    unbiased = N / (N - 1)
    by_hand = (103 - 100) ** 2 + (105 - 100) ** 2 + unbiased * ((10 - 3) ** 2 + (4 - 2) ** 2)
    found = inception_figures(real, fake, device="cpu", network=Linear(IDENTITY))
    assert found.fid == pytest.approx(by_hand)
    assert found.images == N
    # Twice the first channel, half the second, without the third.
    scaled = inception_figures(real, fake, device="cpu", network=Linear([[2.0, 0, 0], [0, 0.5, 0]]))
    assert scaled.fid == pytest.approx(4 * (9 + unbiased * 49) + (25 + unbiased * 4) / 4)


def test_a_fid_of_covariances_that_do_not_commute_by_hand() -> None:
    # diag(100, 16), and [[36, 18], [18, 9]] for perfectly correlated channels +-6 and +-3. For a 2 x 2 matrix
    # tr sqrt(M) = sqrt(tr M + 2 sqrt(det M)); the product has determinant 0 and trace 100 * 36 + 16 * 9.
    real = repeated((110, 96, 0), (90, 96, 0), (110, 104, 0), (90, 104, 0))
    fake = repeated((106, 103, 0), (94, 97, 0))
    unbiased = N / (N - 1)
    by_hand = unbiased * (100 + 16 + 36 + 9 - 2 * math.sqrt(100 * 36 + 16 * 9))
    found = inception_figures(real, fake, device="cpu", network=Linear(FIRST_TWO))
    assert found.fid == pytest.approx(by_hand, rel=1e-6)


def test_a_kid_by_hand() -> None:
    # Whole sets: 1000 x 1000 pairs of each colour with itself (without identical images) and with the other.
    real, fake = [(1, 0, 9), (0, 1, 9)], [(1, 1, 9), (2, 0, 9)]

    def kernel(x: tuple[int, int, int], y: tuple[int, int, int]) -> float:
        return ((x[0] * y[0] + x[1] * y[1]) / 2 + 1) ** 3

    def within(colours: list[tuple[int, int, int]]) -> float:
        total = (
            sum(kernel(x, y) for x in colours for y in colours) * 1000**2 - sum(kernel(x, x) for x in colours) * 1000
        )
        return total / (N * (N - 1))

    across = sum(kernel(x, y) for x in real for y in fake) / 4
    by_hand = within(real) + within(fake) - 2 * across
    sets = repeated(*real), repeated(*fake)
    found = inception_figures(*sets, device="cpu", network=Linear(FIRST_TWO), subsets=2, subset_size=N)
    assert found.kid == pytest.approx(by_hand)
    drawn = inception_figures(*sets, device="cpu", network=Linear(FIRST_TWO), subsets=50, subset_size=100)
    features = [extract_features(images, Linear(FIRST_TWO), "cpu") for images in sets]
    mean, deviation = kid(*features, 50, 100, 0)
    assert drawn.kid == mean
    assert drawn.kid_uncertainty == found.kid_uncertainty == kid_uncertainty(*features)
    assert abs(drawn.kid - by_hand) < 4 * deviation / math.sqrt(50)
    again = inception_figures(*sets, device="cpu", network=Linear(FIRST_TWO), subsets=50, subset_size=100, seed=1)
    assert again.kid != drawn.kid


def test_a_set_and_itself_are_the_same() -> None:
    images = torch.randint(0, 256, (N, 3, 1, 1), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = inception_figures(images, images.flip(0), device="cpu", network=Linear([[0.01, 0, 0], [0, 0.01, 0]]))
    assert found.fid == pytest.approx(0, abs=1e-6)
    assert abs(found.kid) < 2 * found.kid_uncertainty.error


def test_floats_are_the_bytes_they_stand_for() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    images = levels[:, None, None, None].expand(-1, 3, 2, 2)
    as_bytes = extract_features(images, Linear(IDENTITY), "cpu")
    assert torch.equal(as_bytes[:, 0], levels.double())
    assert torch.equal(extract_features(images.float() / 255, Linear(IDENTITY), "cpu"), as_bytes)
    beside = torch.tensor([-0.1, 0.4979, 0.4981, 1.1])[:, None, None, None].expand(-1, 3, 2, 2)  # 126.96 and 127.02
    assert extract_features(beside, Linear(IDENTITY), "cpu")[:, 0].tolist() == [0, 127, 127, 255]


def test_the_network_is_frozen_evaluating_and_sees_bytes_in_batches() -> None:
    network = Linear(IDENTITY).train()
    features = extract_features(torch.rand(150, 3, 2, 2), network, "cpu")
    assert network.calls == [(torch.uint8, count, False, True, False) for count in (64, 64, 22)]
    assert (features.shape, features.dtype, features.requires_grad) == ((150, 3), torch.float64, False)


@pytest.mark.parametrize(
    ("real", "fake", "subset_size", "message"),
    [
        (N, N + 1, 1000, "as many real images as fake ones, not 2000 and 2001"),
        (N - 1, N - 1, 1000, "1999 images are too few .* at least 2000"),
        (N, N, N + 1, "subset_size=2001 must be .* at most 2000"),
        (N, N, 1, "subset_size=1 must be at least 2"),
    ],
)
def test_what_would_mislead_is_refused_before_anything_is_computed(
    real: int, fake: int, subset_size: int, message: str
) -> None:
    network = Linear(IDENTITY)
    sets = (torch.zeros(count, 3, 1, 1, dtype=torch.uint8) for count in (real, fake))
    with pytest.raises(UserError, match=message):
        inception_figures(*sets, device="cpu", network=network, subset_size=subset_size)
    assert network.calls == []


def test_nothing_is_drawn_from_the_global_generator() -> None:
    before = torch.get_rng_state()
    inception_figures(
        repeated((1, 2, 3), (4, 5, 6)),
        repeated((3, 2, 1), (9, 5, 6)),
        device="cpu",
        network=Linear(IDENTITY),
        subsets=2,
    )
    assert torch.equal(torch.get_rng_state(), before)


def test_a_missing_package_is_said_with_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inception, "PACKAGE", "no_package_is_called_this")
    with pytest.raises(UserError, match=r"pip install -e '\.\[inception\]'"):
        inception_network()
    with pytest.raises(UserError, match="torch-fidelity"):
        inception_figures(repeated((1, 2, 3)), repeated((3, 2, 1)), device="cpu")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Path of the weights in an empty hub folder."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints" / WEIGHTS


@pytest.mark.parametrize("error", [urllib.error.URLError("Name or service not known"), ConnectionResetError("reset")])
def test_weights_that_cannot_be_downloaded_can_be_put_there(
    error: Exception, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("torch.hub.urlopen", no_network)
    with pytest.raises(UserError, match="could not be downloaded") as refused:
        inception_weights()
    for part in (URL, str(hub), str(error)):
        assert part in str(refused.value)
    assert not hub.exists()


def test_weights_are_downloaded_once_whole_and_by_their_hash(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = b"weights of a network"
    source = hub.parent.parent.parent / "served"
    source.write_bytes(content)
    monkeypatch.setattr(inception, "URL", source.as_uri())
    with pytest.raises(UserError, match="invalid hash value"):
        inception_weights()
    assert [*hub.parent.iterdir()] == []  # no partial file is left
    monkeypatch.setattr(inception, "SHA256", hashlib.sha256(content).hexdigest())
    assert inception_weights() == hub
    assert hub.read_bytes() == content
    source.unlink()
    assert inception_weights() == hub  # no second download


class Executed(Exception):
    pass


def test_a_file_of_another_hash_is_never_unpickled(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.parent.mkdir(parents=True)
    hub.write_bytes(b"not these")

    def build(*_: object, **__: object) -> nn.Module:
        raise Executed

    spec = importlib.machinery.ModuleSpec("torch_fidelity", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec if name == "torch_fidelity" else None)
    monkeypatch.setattr(inception, "NoTrainInceptionV3", build)
    with pytest.raises(UserError, match="another SHA-256") as refused:
        inception_network()
    assert str(hub) in str(refused.value)
    assert hub.exists()


def test_the_network_is_the_literature_s(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.parent.mkdir(parents=True)
    hub.write_bytes(b"these")
    seen: list[Any] = []

    def build(*arguments: Any, **named: Any) -> nn.Module:
        seen.append((arguments, named))
        return Linear(IDENTITY)

    spec = importlib.machinery.ModuleSpec("torch_fidelity", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec if name == "torch_fidelity" else None)
    monkeypatch.setattr(inception, "NoTrainInceptionV3", build)
    monkeypatch.setattr(inception, "SHA256", hashlib.sha256(b"these").hexdigest())
    found = inception_figures(repeated((9, 0, 0), (1, 0, 0)), repeated((8, 0, 0), (2, 0, 0)), device="cpu")
    assert seen == [(("inception-v3-compat", ["2048"], str(hub)), {"antialias": False})]
    assert found.fid == pytest.approx(N / (N - 1) * (4 - 3) ** 2)
    assert f"-{SHA256[:8]}." in WEIGHTS
