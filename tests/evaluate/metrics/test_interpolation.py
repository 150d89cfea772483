"""Tests of path statistics by hand, and of line statistics on turning lines, on overlays and against a loop."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from pegasus_lightning.data.lines import line_images
from pegasus_lightning.evaluate.metrics import interpolation
from pegasus_lightning.evaluate.metrics.interpolation import line_statistics, nearest_line, path_statistics, smoothness
from pegasus_lightning.generate.mixing import Mixes
from pegasus_lightning.generate.scores import distance_from_blend


def grey(*levels: float) -> Tensor:
    """One path of constant grey frames, (1, R, 3, 32, 32)."""
    return torch.tensor(levels, dtype=torch.float32)[None, :, None, None, None].expand(1, -1, 3, 32, 32)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def blended(first: Tensor, last: Tensor, count: int) -> Tensor:
    """Overlays (B, count, 3, 32, 32) of images (B, 3, 32, 32)."""
    ratios = torch.linspace(0, 1, count)[:, None, None, None]
    return first[:, None] + (last - first)[:, None] * ratios


def test_path_statistics_by_hand() -> None:
    # Steps .1, .3, .1, .1; the middle frame differs from its blend (.2 + .8) / 2 by .1; the ends differ by .6.
    found = path_statistics(grey(0.2, 0.3, 0.6, 0.7, 0.8))
    assert found.length.tolist() == pytest.approx([0.6])
    assert found.largest_step.tolist() == pytest.approx([0.3 / 0.15])
    assert found.distance_from_blend.tolist() == pytest.approx([0.1])
    assert found.relative_distance.tolist() == pytest.approx([0.1 / 0.6])
    # Steps are root mean squares: half of the pixels differ by 1.
    halved = torch.zeros(1, 3, 3, 32, 32)
    halved[:, 1, :, :16] = 1
    assert path_statistics(halved).length.item() == pytest.approx(2 * math.sqrt(0.5))


def test_an_even_number_of_frames_has_two_in_the_middle() -> None:
    # Blends at 1/3 and 2/3: .3 and .6; differences .1 and .15; the ends differ by .9.
    found = path_statistics(grey(0.0, 0.4, 0.45, 0.9))
    assert found.distance_from_blend.item() == pytest.approx((0.1 + 0.15) / 2)
    assert found.relative_distance.item() == pytest.approx((0.1 + 0.15) / 2 / 0.9)


def test_an_overlay_is_even_straight_and_no_longer_than_need_be() -> None:
    first, last = noise(3), noise(3, seed=1)
    for count in (3, 8, 11):
        length, largest_step, off_line, relative = path_statistics(blended(first, last, count))
        torch.testing.assert_close(length, (first - last).square().flatten(1).mean(1).sqrt())
        torch.testing.assert_close(largest_step, torch.ones(3))
        assert off_line.max() < 1e-6
        assert relative.max() < 1e-5


def test_a_jump_and_a_standstill() -> None:
    assert path_statistics(grey(0, 0, 0, 1, 1)).largest_step.item() == pytest.approx(4)
    assert path_statistics(grey(0, 0.5, 0)).length.item() == pytest.approx(1)
    still = path_statistics(grey(0.5, 0.5, 0.5))
    assert (still.length.item(), math.isnan(still.largest_step.item())) == (0, True)
    assert path_statistics(grey(0.5, 0.7, 0.5)).relative_distance.isnan().all()
    assert path_statistics(grey(0.5, 0.7, 0.5)).distance_from_blend.item() == pytest.approx(0.2)
    with pytest.raises(ValueError, match="2 frames"):
        path_statistics(grey(0, 1))


def test_the_distance_from_the_blend_is_that_of_the_search() -> None:
    frames = noise(6, 5)
    mixes = Mixes(torch.zeros(6, 1), frames[:, 2], frames[:, 0], frames[:, 4], torch.full((6,), 0.5))
    torch.testing.assert_close(path_statistics(frames).distance_from_blend, distance_from_blend(mixes))


def colours(images: Tensor) -> Tensor:
    return images[..., None, :, :].expand(*images.shape[:-2], 3, 32, 32)


def test_real_lines_are_found() -> None:
    angles = torch.tensor([0.0, 0.7, 2.5, 4.0, 6.2], dtype=torch.float64)
    found = nearest_line(colours(line_images(angles)))
    assert found.distances.max() < 1e-6
    torch.testing.assert_close(found.angles, angles, atol=2 * math.pi / 10000, rtol=0)
    among = nearest_line(colours(line_images(torch.arange(40, dtype=torch.float64) * 2 * math.pi / 40)), count=40)
    assert among.distances.abs().max() < 1e-9  # in float32 some would be 1e-7
    coarse = nearest_line(colours(line_images(torch.tensor([0.6, 3.2]))), count=8)
    torch.testing.assert_close(coarse.angles, torch.tensor([1, 4], dtype=torch.float64) * math.pi / 4)


@pytest.mark.parametrize("block", [1, 500, 2**22])
def test_cosine_distances_are_those_of_a_loop(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interpolation, "BLOCK", block)
    images, count = noise(6), 60
    lines = colours(line_images(torch.arange(count) * 2 * math.pi / count)).double() * 2 - 1
    found = nearest_line(images, count)
    for image, distance, angle in zip(images.double() * 2 - 1, found.distances, found.angles, strict=True):
        apart = [1 - (image * line).sum() / math.sqrt((image**2).sum() * (line**2).sum()) for line in lines]
        assert distance.item() == pytest.approx(min(apart).item(), abs=1e-6)
        assert angle.item() == pytest.approx(2 * math.pi * apart.index(min(apart)) / count)


def test_a_black_image_by_hand() -> None:
    # The line at angle 0 has 30 white pixels of 1024. With black, all -1, the cosine is (994 - 30) / 1024.
    black = nearest_line(torch.zeros(1, 3, 32, 32), count=1)
    assert black.distances.item() == pytest.approx(60 / 1024, rel=1e-5)
    # A red line: two channels are black.
    red = colours(line_images(torch.zeros(1))).clone()
    red[:, 1:] = 0
    assert nearest_line(red, count=1).distances.item() == pytest.approx(2 * 60 / 3072, rel=1e-5)


def test_smoothness_by_hand() -> None:
    paths = [[0.0, 0.1, 0.2, 0.3], [0.0, 0.3, 0.3, 0.3], [0.0, 0.2, 0.1, 0.4], [0.3, 0.2, 0.1, 0.0]]
    assert smoothness(torch.tensor(paths)).tolist() == pytest.approx([0, 2 / 3, 0.3 / 0.4 - 1 / 3, 0], abs=1e-6)
    around = torch.tensor([[6.0, 6.1, 6.2, 6.3 - 2 * math.pi], [0.2, 0.1, 0.0, 2 * math.pi - 0.1]])
    assert smoothness(around).tolist() == pytest.approx([0, 0], abs=1e-5)  # over the seam at 2 pi
    assert smoothness(torch.tensor([[1.0, 2.0, 1.0]])).isnan().all()


def test_smoothness_is_the_paper_s_with_numpy_s_unwrapping() -> None:
    angles = np.random.default_rng(0).integers(0, 16, (300, 7)) * (np.pi / 8)  # half circles among the steps
    whole = np.unwrap(angles)
    steps, turn = np.abs(np.diff(whole)), np.abs(whole[:, -1] - whole[:, 0])
    wanted = np.divide(steps.max(1), turn, out=np.full(300, np.nan), where=turn >= 1e-4) - 1 / 6
    torch.testing.assert_close(
        smoothness(torch.from_numpy(angles)), torch.from_numpy(wanted).float(), equal_nan=True, atol=1e-5, rtol=1e-5
    )


def test_turning_lines_are_perfect_and_overlaid_lines_are_not() -> None:
    starts, turns = torch.tensor([0.2, 3.0, 5.5]), torch.tensor([1.0, -2.0, 2.5])
    angles = starts[:, None] + turns[:, None] * torch.linspace(0, 1, 16)
    turning = colours(line_images(angles.flatten())).reshape(3, 16, 3, 32, 32)
    perfect = line_statistics(turning)
    assert perfect.distance.max() < 1e-6
    assert perfect.smoothness.abs().max() < 2e-3  # a 10,000th of a circle, relative to a step
    overlaid = line_statistics(blended(turning[:, 0], turning[:, -1], 16))
    assert overlaid.distance.min() > 5e-3
    torch.testing.assert_close(overlaid.smoothness, torch.full((3,), 14 / 15), atol=0.02, rtol=0)


def test_a_path_has_its_own_figures() -> None:
    frames = noise(2, 4)
    both = line_statistics(frames, count=50)
    for place in (0, 1):
        alone = nearest_line(frames[place], count=50)
        assert both.distance[place].item() == pytest.approx(alone.distances.mean().item())
        torch.testing.assert_close(both.smoothness[place], smoothness(alone.angles[None])[0])
