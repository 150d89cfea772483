"""Moves of images and spatial codes: where a pixel goes, by hand, and what is said to come from inside."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pegasus_lightning.models.moves import SCALES, SHIFT, affine, came_from_inside, move, random_affine


def matrices(scale: float = 1.0, right: float = 0.0, down: float = 0.0, flip: float = 1.0) -> Tensor:
    return affine(*(torch.tensor([value]) for value in (scale, right, down, flip)))


@pytest.fixture
def maps() -> Tensor:
    return torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_no_move_changes_nothing(maps: Tensor) -> None:
    torch.testing.assert_close(move(maps, matrices()), maps)
    assert came_from_inside(matrices(), 8).all()


def test_a_shift_moves_right_and_down_by_shares_of_the_side(maps: Tensor) -> None:
    moved = move(maps, matrices(right=0.25, down=0.125))  # 2 columns, 1 row
    torch.testing.assert_close(moved[:, :, 1:, 2:], maps[:, :, :-1, :-2])
    torch.testing.assert_close(moved[:, :, 0, 2:], maps[:, :, 0, :-2])  # the border is repeated
    inside = came_from_inside(matrices(right=0.25, down=0.125), 8)[0, 0]
    assert not inside[0].any()
    assert not inside[:, :2].any()
    assert inside[1:, 2:].all()


def test_a_mirror_image_is_scaled_and_moved_after_it_was_mirrored(maps: Tensor) -> None:
    torch.testing.assert_close(move(maps, matrices(flip=-1.0)), maps.flip(3))
    moved = move(maps, matrices(right=0.25, flip=-1.0))
    torch.testing.assert_close(moved[..., 2:], maps.flip(3)[..., :-2])


def test_scaling_keeps_the_middle_of_the_lower_edge() -> None:
    """A dark block of 8 x 8 that stands on the middle of the lower edge of 16 x 16 becomes one of 4 x 4 there."""
    image = torch.ones(1, 1, 16, 16)
    image[:, :, 8:, 4:12] = 0
    half = move(image, matrices(scale=0.5))
    wanted = torch.ones(1, 1, 16, 16)
    wanted[:, :, 12:, 6:10] = 0
    torch.testing.assert_close(half, wanted)
    inside = came_from_inside(matrices(scale=0.5), 16)[0, 0]
    assert torch.equal(inside.bool(), torch.nn.functional.pad(torch.ones(8, 8, dtype=torch.bool), (4, 4, 8, 0)))


def test_random_moves_stay_within_their_ranges_and_mirror_if_they_may() -> None:
    uniforms = torch.rand(4000, 4, generator=torch.Generator().manual_seed(0))
    for mirror in (False, True):
        found = random_affine(uniforms, mirror)
        scale = 1 / found[:, 1, 1]
        right = -found[:, 0, 2] / found[:, 0, 0] / 2  # the centre of the picture came from this far left
        assert scale.min().item() == pytest.approx(SCALES[0], abs=0.01)
        assert scale.max().item() == pytest.approx(SCALES[1], abs=0.01)
        assert right.abs().max().item() == pytest.approx(SHIFT, abs=0.01)
        assert (found[:, 0, 0] < 0).float().mean().item() == pytest.approx(0.5 if mirror else 0, abs=0.03)
