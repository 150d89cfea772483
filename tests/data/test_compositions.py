"""Tests of compositions: where the limb stands, what moves, and how photographs are found."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from shapes import COAT, bird, body
from torch import Tensor

from pegasus_lightning.data import compositions
from pegasus_lightning.data.batches import ImageSet
from pegasus_lightning.data.compositions import (
    Bodies,
    Layout,
    _edged,
    compose,
    find_bodies,
    find_limbs,
    find_parts,
    fit_to_mix,
    grounds_of,
    put_together,
)
from pegasus_lightning.data.cutouts import fingerprints
from pegasus_lightning.utils.errors import UserError


def data(horses: list[np.ndarray], birds: list[np.ndarray]) -> ImageSet:
    images = torch.from_numpy(np.stack([*horses, *birds]))
    return ImageSet(images, torch.tensor([0] * len(horses) + [1] * len(birds)), ("horse", "bird"))


def as_jpeg(image: np.ndarray) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(file, format="JPEG", quality=85)
    return np.asarray(Image.open(file)).transpose(2, 0, 1).copy()


@pytest.fixture
def parts() -> compositions.Parts:
    return find_parts(data([body(1), body(-1)], [bird()]))


def test_bodies_are_found_with_the_side_of_their_head() -> None:
    small = np.full((3, 32, 32), 90, np.uint8)
    small[:, 12:18, 12:18] = 200
    found = find_bodies(torch.from_numpy(np.stack([body(1), small, body(-1)])))
    assert found.owners.tolist() == [0, 2]
    assert found.facing.tolist() == [1, -1]


def test_the_limb_stands_on_the_back_and_the_rest_of_the_picture_stays(parts: compositions.Parts) -> None:
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


def test_compositions_depend_on_the_seed_alone_and_use_all_parts_equally(parts: compositions.Parts) -> None:
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


def test_without_a_limb_the_ground_goes_on_and_the_animal_is_as_it_was(parts: compositions.Parts) -> None:
    plain = compose(parts.bodies, parts.limbs, 10, seed=0).bodies.float()
    ground = torch.tensor([90.0, 160, 90])[:, None]
    assert (plain[:, :, 0] - ground).abs().max() <= 2
    coat = torch.tensor(COAT, dtype=torch.float32)[:, None, None]
    seen = ((plain - coat).abs().amax(1) < 12).sum((1, 2))
    assert (seen > 0.36 * 208 * 0.8).all()  # at least at the smallest scale, 0.6 of each side


def test_beside_leaves_the_back_free(parts: compositions.Parts) -> None:
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


def test_edges_differ_in_alpha_alone_or_blur(parts: compositions.Parts) -> None:
    soft, hard, thin, blurred = (_edged(parts.limbs, edge).pixels for edge in ("soft", "hard", "thin", "blurred"))
    assert torch.equal(soft, parts.limbs.pixels)
    assert sorted(hard[:, 3].unique().tolist()) == [0, 1]
    assert torch.equal(hard[:, 3] == 1, soft[:, 3] > 0.5)
    assert thin[:, 3].sum() < soft[:, 3].sum()
    middle = soft[0, :, 9:12, 15:18]
    torch.testing.assert_close(blurred[0, :, 10, 16], middle.mean((1, 2)))


def test_unknown_edges_and_places_are_refused(parts: compositions.Parts) -> None:
    for options in ({"edge": "torn"}, {"place": "under"}):
        with pytest.raises(ValueError, match="edge is one of"):
            compose(parts.bodies, parts.limbs, 1, 0, **options)


@pytest.mark.parametrize(
    ("tint", "wanted"), [(0.0, (0.94, 0.94, 0.94)), (0.5, (0.57, 0.67, 0.77)), (1.0, (0.2, 0.4, 0.6))]
)
def test_the_limb_takes_the_colour_of_its_layout_by_hand(
    parts: compositions.Parts, tint: float, wanted: tuple[float, float, float]
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


def test_photographs_on_the_list_are_found_in_another_encoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    horses = [body(1, 12 + i, tuple(rng.integers(0, 80, 3))) for i in range(4)]
    birds = [bird(tuple(rng.integers(180, 255, 3))) for _ in range(3)]
    rows = [("body", horses[2], "left", [""] * 5), ("laden", horses[0], "", [""] * 5)]
    rows += [("limb", birds[1], "", [16, 18, 16, 5, 4]), ("limb", birds[1], "", [12, 20, 20, 20, 3])]
    rows += [("body", np.full((3, 32, 32), 7, np.uint8), "right", [""] * 5)]  # of a photograph that is not there
    rows += [("spread", birds[2], "", [""] * 5)]
    path = tmp_path / "winged.csv"
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["role", "fingerprint", "facing", "root_x", "root_y", "tip_x", "tip_y", "half_width"])
        for role, image, facing, axis in rows:
            code = bytes(fingerprints(torch.from_numpy(image)[None])[0].tolist()).hex()
            writer.writerow([role, code, facing, *axis])
    monkeypatch.setattr(compositions, "LIST", path)
    again = data([as_jpeg(image) for image in horses], [as_jpeg(image) for image in birds])
    assert len(find_parts(again).bodies) == 4  # too few are listed: all silhouettes are taken
    monkeypatch.setattr(compositions, "MIN_LISTED_BODIES", 1)
    monkeypatch.setattr(compositions, "MIN_LISTED_LIMBS", 2)
    found = find_parts(again)
    assert found.bodies.owners.tolist() == [2] and found.bodies.facing.tolist() == [-1]
    assert found.laden.tolist() == [0]
    assert found.limbs.donors.tolist() == [1, 1]
    assert found.limbs.tips.tolist() == [[16, 5], [20, 20]]
    first, second = (again.images[again.of_class(label)] for label in (0, 1))
    fitting = [indices.tolist() for indices in fit_to_mix(first, second)]
    assert fitting == [[2], [1, 2]]  # the body, and the birds with a limb or spread
    monkeypatch.setattr(compositions, "MIN_LISTED_LIMBS", 4)
    assert [indices.tolist() for indices in fit_to_mix(first, second)] == [[0, 1, 2, 3], [0, 1, 2]]


def test_the_list_of_the_package_is_whole() -> None:
    with open(compositions.LIST, newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["role"] for row in rows} == {"body", "laden", "limb", "stock", "spread"}
    assert all(len(bytes.fromhex(row["fingerprint"])) == 48 for row in rows)
    assert all(row["facing"] in ("left", "right") for row in rows if row["role"] == "body")
    axes = [
        [float(row[key]) for key in ("root_x", "root_y", "tip_x", "tip_y")]
        for row in rows
        if row["role"] in ("limb", "stock")
    ]
    assert all(0 <= value <= 32 for axis in axes for value in axis)
    alone = [row["fingerprint"] for row in rows if row["role"] in ("body", "laden")]
    assert len(set(alone)) == len(alone)  # no horse is both a body and laden


def test_any_class_is_moved_whole_where_nothing_sticks_out_and_nothing_found_is_said() -> None:
    ship = np.full((3, 32, 32), 120, np.uint8)
    ship[:, 14:24, 6:26] = 30
    assert len(find_limbs(torch.from_numpy(ship)[None])) == 1
    noise = np.random.default_rng(0).integers(0, 255, (3, 32, 32)).astype(np.uint8)
    with pytest.raises(UserError, match="No bird can be cut out"):
        find_parts(data([body()], [noise]))
    with pytest.raises(UserError, match="No horse can be cut out"):
        find_parts(data([noise], [bird()]))
