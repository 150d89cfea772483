"""Which recogniser scores a search, and what it says of images."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pegasus_lightning.data.batches import ImageSet
from pegasus_lightning.data.module import in_mixed_order
from pegasus_lightning.data.settings import data_settings
from pegasus_lightning.generate import judge as selecting
from pegasus_lightning.generate.judge import selector, store
from pegasus_lightning.recognisers.network import SELECTS
from pegasus_lightning.recognisers.store import StoredRecogniser
from pegasus_lightning.utils.errors import UserError
from pegasus_lightning.utils.tensors import to_float

CPU = torch.device("cpu")
DATA = data_settings(None, ["data=silhouettes"])


class ByPlace(nn.Module):
    """Features are the levels at 2 x 2 places; logits the first two of them."""

    def features(self, images: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(images.mean(1, keepdim=True), 2).flatten(1)

    def classify(self, features: Tensor) -> Tensor:
        return features[:, :2]

    def forward(self, images: Tensor) -> Tensor:
        return self.classify(self.features(images))


STORED = StoredRecogniser(ByPlace(), Path("store") / "places-0a.pt", {})  # type: ignore[arg-type]


def settings(judge: str, recognisers: str | None = None) -> dict[str, Any]:
    return {"score": {"judge": judge}, "recognisers": recognisers}


def noise(count: int, key: int = 0) -> ImageSet:
    """Bright and dark images, two classes in turn."""
    random = torch.Generator().manual_seed(key)
    levels = torch.randint(0, 200, (count, 1, 2, 2), generator=random, dtype=torch.uint8)
    images = levels.repeat_interleave(16, 2).repeat_interleave(16, 3).repeat(1, 3, 1, 1)
    return ImageSet(images, torch.arange(count) % 2, ("horse", "bird"))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any, Any]]:
    """What was asked for, of the store (`found`) or to be trained if it must be (`made`)."""
    calls: list[tuple[str, Any, Any]] = []

    def answer(name: str) -> Any:
        def call(data: Any, architecture: str, *, device: torch.device, folder: Path | None) -> StoredRecogniser:
            assert data is DATA
            calls.append((name, architecture, folder))
            return STORED

        return call

    monkeypatch.setattr(selecting, "find_recogniser", answer("found"))
    monkeypatch.setattr(selecting, "recogniser_for", answer("made"))
    monkeypatch.setattr(selecting, "load_split", lambda data, split: noise(60) if split == "train" else None)
    return calls


def test_a_recogniser_is_taken_where_it_is_trained_and_trained_where_it_is_asked_for(asked: list[Any]) -> None:
    for judge, name in (("auto", "found"), ("recogniser", "made")):
        chosen = selector(settings(judge), DATA, CPU)
        assert chosen is not None
        assert chosen.stored is STORED
        assert asked.pop() == (name, SELECTS, None)
    selector(settings("auto", "~/kept"), DATA, CPU)
    assert asked.pop() == ("found", SELECTS, Path.home() / "kept")


def test_the_critic_has_to_do_where_it_is_asked_for_or_nothing_is_trained(
    asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert selector(settings("critic"), DATA, CPU) is None
    assert asked == []
    monkeypatch.setattr(selecting, "find_recogniser", lambda *_, **__: None)
    monkeypatch.setattr(selecting, "load_split", None)  # not needed
    assert selector(settings("auto"), DATA, CPU) is None


def test_without_data_there_is_no_recogniser(asked: list[Any]) -> None:
    for judge in ("auto", "critic"):
        assert selector(settings(judge), None, CPU) is None
    with pytest.raises(UserError, match=r"score.judge=recogniser needs images.*first= and second="):
        selector(settings("recogniser"), None, CPU)
    assert asked == []


def test_the_store_is_where_it_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/rider")
    assert store({"recognisers": None}) is None
    assert store({"recognisers": "~/kept"}) == Path("/home/rider/kept")


@pytest.mark.parametrize(("count", "held"), [(60, 12), (13, 6)])
def test_realism_by_hand(asked: list[Any], monkeypatch: pytest.MonkeyPatch, count: int, held: int) -> None:
    """How near an image is to the nearest of the bank, beside how near training images outside it are."""
    monkeypatch.setattr(selecting, "BANK", 40)
    monkeypatch.setattr(selecting, "HELD", 12)
    monkeypatch.setattr(selecting, "load_split", lambda data, split: noise(count))
    chosen = selector(settings("auto"), DATA, CPU)
    assert chosen is not None
    images = to_float(in_mixed_order(noise(count)).images)
    bank, others = images[: min(40, count - held)], images[-held:]

    def closeness(some: Tensor) -> Tensor:
        features = [ByPlace().features(side).double() for side in (some, bank)]
        return torch.tensor([-min(math.dist(one, other) for other in features[1].tolist())
                             for one in features[0].tolist()])  # fmt: skip

    usual = closeness(others)
    assert usual.max() < 0  # none of these is its own neighbour
    judged = torch.cat([bank[:2], others[:2], to_float(noise(2, key=9).images), torch.ones(1, 3, 32, 32)])
    wanted = F.logsigmoid((closeness(judged) - usual.mean()) / usual.std())
    logits, realism = chosen.look(judged)
    assert realism is not None
    torch.testing.assert_close(realism, wanted, rtol=1e-3, atol=1e-3)
    assert realism.argmin() == 6  # white is like none of them
    torch.testing.assert_close(logits, ByPlace()(judged))


def test_a_search_can_climb_on_both(asked: list[Any]) -> None:
    chosen = selector(settings("auto"), DATA, CPU)
    assert chosen is not None
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1)).requires_grad_()
    for index in range(2):
        said = chosen.look(images)[index]
        assert said is not None
        (gradient,) = torch.autograd.grad(said.sum(), images)
        assert gradient.isfinite().all()
        assert gradient.abs().sum() > 0


def test_without_training_images_there_is_no_recogniser_of_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any, **__: Any) -> StoredRecogniser:
        raise UserError("There is no folder 'train'.")

    monkeypatch.setattr(selecting, "find_recogniser", missing)
    assert selector(settings("auto"), DATA, CPU) is None
    monkeypatch.setattr(selecting, "recogniser_for", missing)
    with pytest.raises(UserError, match="no folder 'train'"):
        selector(settings("recogniser"), DATA, CPU)


def test_the_committee_that_guides_selects_where_it_is_asked_for(
    asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    monkeypatch.setattr(selecting, "committee_for", lambda *given, **more: made.append((given, more)) or STORED)
    chosen = selector(settings("committee", "kept"), DATA, CPU)
    assert chosen is not None
    assert made == [((DATA, ("plain", "averaging")), {"images": None, "device": CPU, "folder": Path("kept")})]
    assert asked == []
    images = torch.rand(3, 3, 32, 32)
    logits, realism = chosen.look(images)
    torch.testing.assert_close(logits, ByPlace()(images))
    assert realism is None  # the model's critic says it
    selector(settings("committee"), DATA, CPU, {"architectures": ["plain"], "images": 900})  # the models' own
    assert made[1] == ((DATA, ["plain"]), {"images": 900, "device": CPU, "folder": None})


def test_one_look_gives_both_answers(asked: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []
    features = ByPlace.features
    monkeypatch.setattr(ByPlace, "features", lambda self, images: looks.append(len(images)) or features(self, images))
    chosen = selector(settings("auto"), DATA, CPU)
    assert chosen is not None
    looks.clear()
    chosen.look(torch.rand(3, 3, 32, 32))
    assert looks == [3]
