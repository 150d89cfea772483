"""Tests of the two controls, pixel by pixel."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pegasus_lightning.data.controls import cutmix, pixel_average


def greys(*levels: float, size: int = 32) -> Tensor:
    """Constant images, one per level, (n, 3, size, size)."""
    return torch.tensor(levels).reshape(-1, 1, 1, 1).repeat(1, 3, size, size)


def pasted(count: int, ratio: float, **options: int) -> Tensor:
    """Mask of the white pasted into black, (count, 32, 32) bool."""
    black, white = greys(0.0).repeat(count, 1, 1, 1), greys(1.0).repeat(count, 1, 1, 1)
    mixed = cutmix(black, white, torch.full((count,), ratio), **options)
    assert ((mixed == 0) | (mixed == 1)).all()
    assert (mixed == mixed[:, :1]).all()  # equal in all channels
    return mixed[:, 0] == 1


def test_the_pixel_average_by_hand() -> None:
    first, second = greys(0.2, 0.8, 0.4), greys(0.6, 0.0, 1.0)
    second[0, 2, 5, 7] = 1.0
    mixed = pixel_average(first, second, torch.tensor([0.25, 0.5, 0.9]))
    wanted = greys(0.75 * 0.2 + 0.25 * 0.6, 0.4, 0.1 * 0.4 + 0.9)
    wanted[0, 2, 5, 7] = 0.75 * 0.2 + 0.25
    torch.testing.assert_close(mixed, wanted)


def test_ratio_0_is_the_first_photograph_and_1_the_second(images: Tensor) -> None:
    first, second = images[:2], images[2:]
    for ratio, wanted in ((0.0, first), (1.0, second)):
        ratios = torch.full((2,), ratio)
        assert torch.equal(pixel_average(first, second, ratios), wanted)
        assert torch.equal(cutmix(first, second, ratios), wanted)
    assert torch.equal(cutmix(first, second, torch.tensor([1.0, 0.0])), torch.stack([second[0], first[1]]))


@pytest.mark.parametrize(("ratio", "side"), [(0.25, 16), (0.5, 23), (0.4, 20), (0.6, 25), (0.001, 1), (0.0001, 0)])
def test_the_pasted_square_has_the_ratios_area_to_whole_pixels_and_lies_inside(ratio: float, side: int) -> None:
    # sqrt(.5) * 32 = 22.6, sqrt(.4) * 32 = 20.2, sqrt(.6) * 32 = 24.8, sqrt(.001) * 32 = 1.01
    for inside in pasted(50, ratio):
        assert inside.sum() == side**2
        for line in (inside.any(0), inside.any(1)):
            places = torch.nonzero(line).flatten()
            assert len(places) == side
            assert side == 0 or places[-1] - places[0] == side - 1  # one square, not several


def test_what_is_pasted_and_what_is_left_are_the_photographs_own_pixels(images: Tensor) -> None:
    first, second = images[:2], images[2:]
    ratios = torch.tensor([0.3, 0.7])
    mixed = cutmix(first, second, ratios, seed=4)
    for row in range(2):
        from_second = (mixed[row] == second[row]).all(0)
        assert from_second.sum() == (18, 27)[row] ** 2  # sqrt(.3) * 32 = 17.5, sqrt(.7) * 32 = 26.8
        assert (mixed[row] == first[row])[:, ~from_second].all()


def test_the_place_is_a_function_of_the_seed_and_the_images_number() -> None:
    one = pasted(20, 0.25, seed=3)
    assert torch.equal(pasted(20, 0.25, seed=3), one)
    assert torch.equal(pasted(7, 0.25, seed=3), one[:7])
    assert not torch.equal(pasted(20, 0.25, seed=4), one)
    assert len({tuple(torch.nonzero(inside)[0].tolist()) for inside in one}) > 15
    state = torch.get_rng_state()
    pasted(3, 0.5)
    assert torch.equal(torch.get_rng_state(), state)


def test_all_places_are_alike() -> None:
    # A square of 16 has 17 positions per axis; of 3400 squares 200 +- 14 are expected at each.
    inside = pasted(3400, 0.25)
    for axis in (1, 2):
        corners = inside.any(axis).int().argmax(1)
        counts = corners.bincount(minlength=17)
        assert len(counts) == 17
        assert counts.min() > 140
        assert counts.max() < 260
    rows, columns = (inside.any(axis).int().argmax(1).double() for axis in (2, 1))
    assert abs(torch.corrcoef(torch.stack([rows, columns]))[0, 1].item()) < 0.06  # 3.5 standard errors
