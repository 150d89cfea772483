"""Tests of compositions: where the limb stands, what moves, and how photographs are found."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from shapes import COAT, bird, body
from torch import Tensor

from pegasus_lightning.data.batches import ImageSet
from pegasus_lightning.data.compositions import Layout, _contrasted, _edged, compose, grounds_of, put_together
from pegasus_lightning.data.parts import Bodies, Parts, find_parts


def data(horses: list[np.ndarray], birds: list[np.ndarray]) -> ImageSet:
    images = torch.from_numpy(np.stack([*horses, *birds]))
    return ImageSet(images, torch.tensor([0] * len(horses) + [1] * len(birds)), ("horse", "bird"))


@pytest.fixture
def parts() -> Parts:
    return find_parts(data([body(1), body(-1)], [bird()]))


def test_the_limb_stands_on_the_back_and_the_rest_of_the_picture_stays(parts: Parts) -> None:
    made = compose(parts.bodies, parts.limbs, 40, seed=3)
    alpha = made.moved[:, 3:].float() / 255
    mixed = made.bodies.float() * (1 - alpha) + made.moved[:, :3].float()
    assert (mixed - made.images.float()).abs().max() <= 2  # each is rounded by itself
    towards_tail = 0
    for picture, mask in zip(alpha[:, 0], made.masks, strict=True):
        rows, columns = torch.nonzero(mask, as_tuple=True)
        limb = torch.nonzero(picture > 0.5)
        highest = limb[:, 0].min()
        trunk = rows.float().median()
        assert highest < trunk - 3  # it rises above the trunk
        assert limb[:, 0].max() < trunk + 3  # and does not hang below it
        root = limb[limb[:, 0] >= limb[:, 0].max() - 2, 1].float().mean()
        middle = (columns.min() + columns.max()) / 2
        assert abs(root - middle) < 0.25 * (columns.max() - columns.min())
        head = columns[rows <= rows.min() + 1].float().mean()
        towards_tail += int((limb[:, 1].float().mean() - root) * (head - middle) < 0)
    assert towards_tail >= 32  # the second limb, which is turned further up, may outweigh the first


def test_compositions_depend_on_the_seed_alone_and_use_all_parts_equally(parts: Parts) -> None:
    made, again, other = (compose(parts.bodies, parts.limbs, 20, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(made.images, again.images) and torch.equal(made.moved, again.moved)
    assert not torch.equal(made.images, other.images)
    assert made.first.bincount().tolist() == [10, 10]
    whole = compose(parts.bodies, parts.limbs, 200, seed=1)  # more than are made at a time
    assert len(whole) == 200 and whole.first.bincount().tolist() == [100, 100]


def test_half_of_the_pictures_are_mirrored() -> None:
    parts = find_parts(data([body(1)], [bird()]))
    made = compose(parts.bodies, parts.limbs, 200, seed=0)
    heads = made.masks.float() * torch.linspace(-1, 1, 32)
    top = heads[:, :14].sum((1, 2)) > 0  # above the trunk there is only the head
    assert 80 <= top.sum() <= 120


def test_without_a_limb_the_ground_goes_on_and_the_animal_is_as_it_was(parts: Parts) -> None:
    plain = compose(parts.bodies, parts.limbs, 10, seed=0).bodies.float()
    ground = torch.tensor([90.0, 160, 90])[:, None]
    assert (plain[:, :, 0] - ground).abs().max() <= 2
    coat = torch.tensor(COAT, dtype=torch.float32)[:, None, None]
    seen = ((plain - coat).abs().amax(1) < 12).sum((1, 2))
    assert (seen > 0.36 * 208 * 0.8).all()  # at least at the smallest scale, 0.6 of each side


def test_beside_leaves_the_back_free(parts: Parts) -> None:
    made = compose(parts.bodies, parts.limbs, 60, seed=0, place="beside")
    on_back = compose(parts.bodies, parts.limbs, 60, seed=0)

    def above(moved: Tensor, masks: Tensor) -> Tensor:
        """The share of the limb straight above the middle third of the body."""
        covered = masks.any(1)
        middle = (covered.float() * torch.linspace(-1, 1, 32)).sum(1) / covered.sum(1)
        near = (torch.linspace(-1, 1, 32) - middle[:, None]).abs() < 0.25
        trunk = masks.float().argmax(1).amin(1) + 8
        higher = torch.arange(32)[None] < trunk[:, None]
        alpha = moved[:, 3].float()
        return (alpha * near[:, None] * higher[:, :, None]).sum() / alpha.sum()

    assert above(made.moved, made.masks) < 0.1 < 0.2 < above(on_back.moved, on_back.masks)


def test_edges_differ_in_alpha_alone_or_blur(parts: Parts) -> None:
    soft, hard, thin, blurred = (_edged(parts.limbs, edge).pixels for edge in ("soft", "hard", "thin", "blurred"))
    assert torch.equal(soft, parts.limbs.pixels)
    assert sorted(hard[:, 3].unique().tolist()) == [0, 1]
    assert torch.equal(hard[:, 3] == 1, soft[:, 3] > 0.5)
    assert thin[:, 3].sum() < soft[:, 3].sum()
    middle = soft[0, :, 9:12, 15:18]
    torch.testing.assert_close(blurred[0, :, 10, 16], middle.mean((1, 2)))


def test_unknown_edges_and_places_are_refused(parts: Parts) -> None:
    for options in ({"edge": "torn"}, {"place": "under"}):
        with pytest.raises(ValueError, match="edge is one of"):
            compose(parts.bodies, parts.limbs, 1, 0, **options)


@pytest.mark.parametrize(
    ("tint", "wanted"), [(0.0, (0.94, 0.94, 0.94)), (0.5, (0.57, 0.67, 0.77)), (1.0, (0.2, 0.4, 0.6))]
)
def test_the_limb_takes_the_colour_of_its_layout_by_hand(
    parts: Parts, tint: float, wanted: tuple[float, float, float]
) -> None:
    """Feathers of .94, moved towards (.2, .4, .6) by a share; no second limb, not mirrored."""
    one, no = torch.ones(1), torch.zeros(1, dtype=torch.bool)
    bodies, limbs = parts.bodies.take(torch.tensor([0])), parts.limbs.take(torch.tensor([0]))
    colours = torch.tensor([[0.2, 0.4, 0.6]])
    layout = Layout(0.55 * one, 0.65 * one, one, one, no, 0 * one, colours, tint * one, no, no.long())
    _, _, _, moved, _ = put_together(bodies, grounds_of(bodies), limbs, layout)
    opaque = moved[0, 3] > 250
    assert opaque.sum() > 5
    found = moved[0, :3, opaque].float().mean(1) / 255
    torch.testing.assert_close(found, torch.tensor(wanted), rtol=0, atol=0.02)


def test_with_room_limbs_of_few_lengths_grow_from_a_grid_of_four_pixels(parts) -> None:
    """At a scale of 7/8 the body's shift by 0 to 5 pixels moves the limb by 0, 4 or 8."""
    one, no = torch.ones(1), torch.zeros(1, dtype=torch.bool)
    bodies, limbs = parts.bodies.take(torch.tensor([0])), parts.limbs.take(torch.tensor([0]))
    layout = Layout(0.55 * one, one, one, one, no, 0 * one, torch.zeros(1, 3), 0 * one, no, no.long())
    limbs_of = []
    for shift in range(6):
        moved = Bodies(bodies.images.roll(shift, 3), bodies.masks.roll(shift, 2), bodies.facing, bodies.owners)
        limbs_of.append(put_together(moved, None, limbs, layout)[3][0, 3])
    kinds = {by: limbs_of[0].roll(by, 1) for by in (0, 4, 8)}
    steps = [next(by for by, kind in kinds.items() if torch.equal(kind, found)) for found in limbs_of]
    assert steps[0] == 0 and steps[5] in (4, 8)
    assert steps == sorted(steps)
    wide = Layout(0.55 * one, 3 * one, one, one, no, 0 * one, torch.zeros(1, 3), 0 * one, no, no.long())
    assert torch.equal(put_together(bodies, None, limbs, wide)[3][0, 3], limbs_of[0])


@pytest.mark.parametrize(
    ("own", "behind", "wanted"),
    [
        (0.5, 0.45, 0.75),
        (0.4, 0.45, 0.75),  # what is behind decides
        (0.9, 0.8, 0.5),
        (0.2, 0.25, 0.55),
        (0.9, 0.4, 0.9),  # clear already
        (0.2, 0.6, 0.2),
    ],
)
def test_a_limb_stands_out_from_what_is_behind_it(own: float, behind: float, wanted: float) -> None:
    """The limb covers half of two pixels; one is .1 redder than the mean, and stays so."""
    limb, picture = torch.zeros(1, 4, 32, 32), torch.rand(1, 3, 32, 32)
    limb[0, 3, 5, 5:7] = 0.5
    limb[0, :3, 5, 5:7] = 0.5 * own
    limb[0, 0, 5, 5] += 0.05
    limb[0, 0, 5, 6] -= 0.05
    picture[0, :, 5, 5:7] = behind
    found = _contrasted(limb, picture)
    assert torch.equal(found[:, 3], limb[:, 3])
    torch.testing.assert_close(found[0, 1:3, 5, 5:7], torch.full((2, 2), 0.5 * wanted))
    torch.testing.assert_close(found[0, 0, 5, 5:7], 0.5 * wanted + torch.tensor([0.05, -0.05]))
    assert found.sum((1, 2, 3)).item() == pytest.approx(1 + 6 * 0.5 * wanted, abs=1e-5)  # and nowhere else
