"""Tests of sprites, pixel by pixel, and of saved grids within a size limit."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pegasus_lightning.report.sprites import encode_grids, sprite, thin


def opened(address: str) -> np.ndarray:
    head, _, body = address.partition(",")
    assert head == "data:image/webp;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(body))).convert("RGB"))


def noise(path: Path, size: tuple[int, int] = (64, 48), seed: int = 0) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_a_sprite_holds_every_pixel_in_its_place() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 3, 4, 5), dtype=np.uint8)
    sheet = opened(sprite(images))
    assert sheet.shape == (2 * 4, 3 * 5, 3)
    for row, column in np.ndindex(2, 3):
        cell = sheet[4 * row : 4 * row + 4, 5 * column : 5 * column + 5]
        np.testing.assert_array_equal(cell, images[row, column].transpose(1, 2, 0))


def test_epochs_are_thinned_evenly_with_both_ends() -> None:
    assert thin([1, 5, 10, 15], 4) == [1, 5, 10, 15]
    assert thin([1, 5, 10, 15, 20, 25, 30], 3) == [1, 15, 30]
    assert thin([1, 5, 10, 15, 20], 1) == [1, 20]


def test_grids_keep_size_and_colour(tmp_path: Path) -> None:
    Image.new("RGBA", (60, 40), (200, 30, 120, 255)).save(tmp_path / "a.png")
    grids = encode_grids({"prior": {5: tmp_path / "a.png"}}, 10**6, tmp_path)
    grid = grids.pictures["prior", 5]
    assert (grid.width, grid.height, grids.kinds, grids.epochs, grids.notes) == (60, 40, ["prior"], [5], [])
    assert np.abs(opened(grid.address).astype(int) - (200, 30, 120)).max() <= 3


def test_grids_that_are_too_much_become_coarser_then_fewer_and_say_so(tmp_path: Path) -> None:
    saved = {"prior": {epoch: noise(tmp_path / f"{epoch}.png", seed=epoch) for epoch in range(1, 8)}}

    def size(share: int) -> tuple[int, list[int], list[str]]:
        grids = encode_grids(saved, share, tmp_path)
        return sum(len(grid.address) for grid in grids.pictures.values()), grids.epochs, grids.notes

    fine, epochs, notes = size(10**6)
    assert (epochs, notes) == ([1, 2, 3, 4, 5, 6, 7], [])
    coarse, epochs, notes = size(fine - 1000)
    assert coarse < 0.8 * fine
    assert (epochs, notes) == ([1, 2, 3, 4, 5, 6, 7], [])
    half, epochs, notes = size(coarse // 2)
    assert half <= coarse // 2 + 7 * 30  # the prefix of each data URL
    assert (epochs[0], epochs[-1], len(epochs)) == (1, 7, 3)
    assert notes == ["3 of 7 saved epochs are shown, so that the page stays small."]
    small, epochs, notes = size(coarse // 14)
    assert 0 < small <= coarse // 14 and epochs == [7] and notes[0].startswith("Saved pictures are shown at half")
    assert size(1)[:2] == (0, [])


@pytest.mark.parametrize("content", [b"", b"<html>", "half"])
def test_a_broken_picture_is_named_and_the_others_stay(tmp_path: Path, content: bytes | str) -> None:
    whole = noise(tmp_path / "prior-epoch-0001.png")
    broken = tmp_path / "prior-epoch-0002.png"
    broken.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2] if isinstance(content, str) else content)
    grids = encode_grids({"prior": {1: whole, 2: broken}}, 10**6, tmp_path)
    assert grids.notes == ["Could not be read as a picture: prior-epoch-0002.png."]
    assert grids.pictures["prior", 1].address and not grids.pictures["prior", 2].address
