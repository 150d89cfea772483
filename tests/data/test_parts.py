"""Tests of the parts of compositions: how photographs are found, by the list and by silhouettes."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from shapes import bird, body

from pegasus_lightning.data import parts
from pegasus_lightning.data.batches import ImageSet
from pegasus_lightning.data.cutouts import fingerprints
from pegasus_lightning.data.parts import find_bodies, find_limbs, find_parts, fit_to_mix
from pegasus_lightning.utils.errors import UserError


def data(horses: list[np.ndarray], birds: list[np.ndarray]) -> ImageSet:
    images = torch.from_numpy(np.stack([*horses, *birds]))
    return ImageSet(images, torch.tensor([0] * len(horses) + [1] * len(birds)), ("horse", "bird"))


def as_jpeg(image: np.ndarray) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(file, format="JPEG", quality=85)
    return np.asarray(Image.open(file)).transpose(2, 0, 1).copy()


def test_bodies_are_found_with_the_side_of_their_head() -> None:
    small = np.full((3, 32, 32), 90, np.uint8)
    small[:, 12:18, 12:18] = 200
    found = find_bodies(torch.from_numpy(np.stack([body(1), small, body(-1)])))
    assert found.owners.tolist() == [0, 2]
    assert found.facing.tolist() == [1, -1]


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
    monkeypatch.setattr(parts, "LIST", path)
    again = data([as_jpeg(image) for image in horses], [as_jpeg(image) for image in birds])
    assert len(find_parts(again).bodies) == 4  # too few are listed: all silhouettes are taken
    monkeypatch.setattr(parts, "MIN_LISTED_BODIES", 1)
    monkeypatch.setattr(parts, "MIN_LISTED_LIMBS", 2)
    found = find_parts(again)
    assert found.bodies.owners.tolist() == [2] and found.bodies.facing.tolist() == [-1]
    assert found.laden.tolist() == [0]
    assert found.limbs.donors.tolist() == [1, 1]
    assert found.limbs.tips.tolist() == [[16, 5], [20, 20]]
    first, second = (again.images[again.of_class(label)] for label in (0, 1))
    fitting = [indices.tolist() for indices in fit_to_mix(first, second)]
    assert fitting == [[2], [1, 2]]  # the body, and the birds with a limb or spread
    monkeypatch.setattr(parts, "MIN_LISTED_LIMBS", 4)
    assert [indices.tolist() for indices in fit_to_mix(first, second)] == [[0, 1, 2, 3], [0, 1, 2]]


def test_the_list_of_the_package_is_whole() -> None:
    with open(parts.LIST, newline="") as file:
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
