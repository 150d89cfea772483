"""Tests of distances to training images, to each other and to parents, by hand and against loops."""

import math

import pytest
import torch
from torch import Tensor

from pegasus_lightning.evaluate.metrics import uniqueness
from pegasus_lightning.evaluate.metrics.uniqueness import distance_to_others, nearest, parent_distances, rmse


def noise(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def flat(level: float, count: int = 1) -> Tensor:
    return torch.full((count, 3, 4, 4), level)


def test_rmse_by_hand() -> None:
    checks = flat(0.5)
    checks[0, 0, 0, 0] = 0.9  # one element of 48 differs by 0.4
    assert rmse(torch.cat([flat(0.2), checks]), flat(0.5, 2)).tolist() == pytest.approx([0.3, 0.4 / math.sqrt(48)])


@pytest.mark.parametrize("block", [1, 90, 2**22])
@pytest.mark.parametrize(("width", "mirrors"), [(8, False), (8, True), (7, True), (1, True)])
def test_the_nearest_image_or_mirror_image_is_that_of_a_loop(
    width: int, mirrors: bool, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uniqueness, "BLOCK", block)
    samples, reference = noise(20)[..., :width], noise(45, seed=1)[..., :width]
    found = nearest(samples, reference, mirrors=mirrors)
    for sample, distance, index in zip(samples, found.distances, found.indices, strict=True):
        sides = ([other, other.flip(2)] if mirrors else [other] for other in reference)
        apart = [min(((sample - side) ** 2).mean().item() for side in both) for both in sides]
        assert distance.item() == pytest.approx(math.sqrt(min(apart)), rel=1e-5)
        assert index.item() == apart.index(min(apart))


def test_an_equal_image_lies_at_exactly_zero() -> None:
    reference = torch.rand(300, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 0.02 + 0.9
    found = nearest(reference[50:90], reference)
    assert found.indices.tolist() == list(range(50, 90))
    assert found.distances.abs().max() == 0


def test_the_nearest_of_all_but_equal_ones_is_measured_exactly() -> None:
    # Four near copies of each of 40 images: differences of 3e-5 are below the rounding of the fast computation.
    samples = noise(40)
    steps = torch.tensor([3.0, 0.0, 2.0, 4.0]).repeat(40)
    found = nearest(samples, samples.repeat_interleave(4, 0) + 3e-5 * steps[:, None, None, None])
    assert found.indices.tolist() == list(range(1, 160, 4))
    assert found.distances.max() == 0


def test_a_mirror_image_lies_at_exactly_zero_where_mirrors_count() -> None:
    reference = (noise(300) * 255).round().byte()
    mixed = torch.cat([reference[50:90].flip(3), reference[100:110]])
    found = nearest(mixed, reference, mirrors=True)
    assert found.indices.tolist() == [*range(50, 90), *range(100, 110)]
    assert found.distances.max() == 0
    assert nearest(mixed, reference).distances[:40].min() > 0.2  # without mirrors
    assert nearest(reference[:5].flip(2), reference, mirrors=True).distances.min() > 0.2  # upside down is no mirror


def test_nearest_takes_bytes_features_and_small_sets() -> None:
    bytes_, features = (noise(9) * 255).round().byte(), torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    as_bytes = nearest(bytes_[:3].float() / 255, bytes_)
    assert as_bytes.indices.tolist() == [0, 1, 2]
    assert as_bytes.distances.max() < 1e-7
    found = nearest(torch.tensor([[3.0, 0.0], [3.0, 3.0]]), features)
    assert found.indices.tolist() == [0, 1]
    assert found.distances.tolist() == pytest.approx([3 / math.sqrt(2), 1 / math.sqrt(2)])


def test_distance_to_others_by_hand() -> None:
    images = torch.cat([flat(0.0), flat(0.5), flat(0.6)])
    assert distance_to_others(images).tolist() == pytest.approx([0.55, 0.3, 0.35])
    assert distance_to_others((images * 255).byte()).tolist() == pytest.approx([0.55, 0.3, 0.35], abs=2e-3)


@pytest.mark.parametrize("block", [1, 50, 2**22])
def test_the_mean_pairwise_distance_is_that_of_all_pairs(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uniqueness, "BLOCK", block)
    images = noise(12)
    pairs = [rmse(images[i : i + 1], images[j : j + 1]).item() for i in range(12) for j in range(i)]
    assert distance_to_others(images).mean().item() == pytest.approx(sum(pairs) / 66, rel=1e-6)


def test_a_collapse_has_no_distance() -> None:
    for seed in range(5):
        assert distance_to_others(noise(1, seed).repeat(40, 1, 1, 1)).max() < 1e-7
    with pytest.raises(ValueError, match="at least 2 samples"):
        distance_to_others(noise(1))


def test_parent_distances_by_hand() -> None:
    images = torch.cat([flat(0.1), flat(0.9), flat(0.5)])
    found = parent_distances(images, flat(0.0, 3), flat(1.0, 3))
    assert found.first.tolist() == pytest.approx([0.1, 0.9, 0.5])
    assert found.second.tolist() == pytest.approx([0.9, 0.1, 0.5])
    assert found.nearer.tolist() == pytest.approx([0.1, 0.1, 0.5])
