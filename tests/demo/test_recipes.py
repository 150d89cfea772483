"""Tests of favourites: what is on disk makes the picture again, by the model's own operations."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pegasus_lightning.demo.recipes import SCALE, enlarged, keep, mask_of, read_recipe, recipe, rows_of
from pegasus_lightning.demo.session import Choice, DemoSession
from pegasus_lightning.utils.errors import UserError
from pegasus_lightning.utils.tensors import to_uint8


def kept(session: DemoSession, choice: Choice, folder: Path) -> tuple[np.ndarray, dict]:
    """Keep a choice; the picture (32, 32, 3) in its PNG, which is made of squares, and its recipe."""
    image = session.picture(choice)
    path = keep(folder, recipe(session, choice, image), choice, image)
    large = np.asarray(Image.open(path))
    small = large[::SCALE, ::SCALE]
    assert large.shape == (32 * SCALE, 32 * SCALE, 3)
    assert (large == small.repeat(SCALE, 0).repeat(SCALE, 1)).all()
    content = json.loads(path.with_suffix(".json").read_text())
    assert content["pixels_sha256"] == hashlib.sha256(small.tobytes()).hexdigest()
    return small, content


def test_the_recipe_on_disk_makes_the_picture_again(by_parts: DemoSession, tmp_path: Path) -> None:
    where = torch.zeros(32, 32, dtype=torch.bool)
    where[3, 0], where[5:20, 8:30] = True, True
    choice = Choice(by_parts.offered(0, 0)[2], by_parts.offered(1, 1)[4], 0.37, where)
    small, content = kept(by_parts, choice, tmp_path / "favourites")
    assert content["where"][3] == "80000000"
    bits = torch.tensor([[(int(row, 16) >> (31 - x)) & 1 for x in range(32)] for row in content["where"]]).bool()
    assert (content["first"]["class"], content["second"]["class"], content["ratio"]) == ("cat", "ship", 0.37)
    images = by_parts.offer.parents
    model = by_parts.model
    with torch.no_grad():
        first = model.encode(images.first[content["first"]["index"]][None] / 255).mean
        second = model.encode(images.second[content["second"]["index"]][None] / 255).mean
        made = model.decode(model.mix(first, second, torch.tensor([content["ratio"]]), bits[None, None]))
        anywhere = model.decode(model.mix(first, second, torch.tensor([content["ratio"]])))
    assert (to_uint8(made[0]) == small).all()
    assert (to_uint8(anywhere[0]) != small).any()


def test_a_dropped_parent_and_an_improved_code_are_in_the_recipe(linear: DemoSession, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "mine.png")
    choice = Choice(linear.read(tmp_path / "mine.png"), linear.offered(1, 0)[0], 0.25)
    small, content = kept(linear, choice, tmp_path)
    told = content["first"]
    assert told["file"] == "mine.png"
    assert (np.asarray(Image.open(io.BytesIO(base64.b64decode(told["png"])))) == noise).all()

    *_, last = linear.improve(choice)
    small, content = kept(linear, choice.with_(code=last.code), tmp_path)
    with torch.no_grad():
        made = linear.model.decode(torch.tensor(content["code"])[None])[0]
    assert (to_uint8(made) == small).all()
    assert len([*tmp_path.glob("cat-ship-0.25-*.png")]) == 2
    kept(linear, choice, tmp_path)
    assert len([*tmp_path.glob("cat-ship-0.25-*.png")]) == 2  # the same recipe is the same file


def test_a_recipe_opens_as_the_choice_it_was_made_of(by_parts: DemoSession, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "mine.png")
    where = torch.zeros(32, 32, dtype=torch.bool)
    where[5:20, 8:30] = True
    first = Choice(by_parts.offered(0, 1)[2], by_parts.read(tmp_path / "mine.png"), 0.45, where, torch.randn(128))
    image = by_parts.picture(first)
    path = keep(tmp_path, recipe(by_parts, first, image), first, image).with_suffix(".json")
    again = read_recipe(by_parts, path)
    assert torch.equal(again.first.pixels, first.first.pixels)
    assert torch.equal(again.second.pixels, torch.tensor(noise).permute(2, 0, 1))
    assert (again.first.origin, again.second.origin, again.ratio) == (first.first.origin, {"file": "mine.png"}, 0.45)
    assert torch.equal(again.where, where)
    assert torch.equal(again.code, first.code)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"classes": ["horse", "bird"]}, "no recipe of cat and ship"),
        ({"parents": {"split": "train"}}, "parents from elsewhere"),
        ({"first": None}, "does not tell the first parent"),
        ({"second": {"index": 20}}, "second parent is not understood"),
        ({"second": {"index": -1}}, "second parent is not understood"),
        ({"second": {"index": "1"}}, "second parent is not understood"),
        ({"second": {"png": "AAAA"}}, "second parent is not understood"),
        ({"second": {"png": 1}}, "second parent is not understood"),
        ({"ratio": 1.5}, "its ratio is not from 0 to 1"),
        ({"ratio": True}, "its ratio is not from 0 to 1"),
        ({"where": ["00"]}, "a mask has 32 rows"),
        ({"code": [0.0]}, "its code is of another model"),
        ({"code": ["x"] * 6}, "is damaged"),
        ({"code": [math.inf] + [0.0] * 5}, "its code is of another model"),
        ({"code": [1e39] + [0.0] * 5}, "its code is of another model"),  # infinite in float32
    ],
)
def test_a_recipe_that_is_none_is_refused(linear: DemoSession, tmp_path: Path, changes: dict, said: str) -> None:
    choice = Choice(linear.offered(0, 0)[0], linear.offered(1, 0)[0])
    content = recipe(linear, choice, linear.picture(choice))
    (tmp_path / "recipe.json").write_text(json.dumps(content))
    assert read_recipe(linear, tmp_path / "recipe.json").ratio == 0.5
    (tmp_path / "recipe.json").write_text(json.dumps(content | changes))
    with pytest.raises(UserError, match=said):
        read_recipe(linear, tmp_path / "recipe.json")


def test_names_of_classes_cannot_leave_the_folder(linear: DemoSession, tmp_path: Path) -> None:
    choice = Choice(linear.offered(0, 0)[0], linear.offered(1, 0)[0])
    image = linear.picture(choice)
    content = recipe(linear, choice, image) | {"classes": ["../cat", "sh/ip"]}
    path = keep(tmp_path / "inside", content, choice, image)
    assert path.parent == tmp_path / "inside"
    assert path.name.startswith("_cat-sh_ip-0.50-")


@pytest.mark.parametrize("rows", [None, ["0"] * 32, ["00000000"] * 31, ["0000000G"] * 32, [1] * 32])
def test_a_mask_that_is_none_is_refused(rows: object) -> None:
    with pytest.raises(ValueError, match="mask"):
        mask_of(rows)


def test_a_mask_survives_its_rows_and_an_empty_one_is_none() -> None:
    mask = torch.rand(32, 32, generator=torch.Generator().manual_seed(0)) < 0.3
    assert torch.equal(mask_of(rows_of(mask)), mask)
    assert mask_of(["00000000"] * 32) is None


def test_smooth_pictures_keep_means_and_pixels_keep_values() -> None:
    image = torch.zeros(3, 2, 2)
    image[:, 0, 0] = 1.0
    assert enlarged(image, 3)[:3, :3].min() == 255
    assert enlarged(image, 3)[3:].max() == 0
    smooth = enlarged(image, 3, smooth=True)
    assert 0 < smooth[2, 2, 0] < 255
