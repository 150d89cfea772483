"""Image grids: exact cells at their positions, complete captions outside them, deterministic files."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
import torch
from PIL import Image

from pegasus_lightning.utils import image_grid as figures
from pegasus_lightning.utils.image_grid import (
    ACCENT,
    BACKGROUND,
    MARGIN,
    PAD,
    image_grid,
    save_png,
    side_by_side,
    stack,
)
from pegasus_lightning.utils.tensors import to_uint8

RED = (255, 0, 0)
LONG = "a caption of very many words that cannot possibly fit beside so small a picture, jÿgq_and_one_endless_word"


def noise(*shape: int) -> torch.Tensor:
    return torch.randint(0, 255, shape, generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def one_red(rows: int, columns: int, r: int, c: int, side: int = 4) -> torch.Tensor:
    """Return black cells with a red one at (r, c)."""
    images = torch.zeros(rows, columns, 3, side, side, dtype=torch.uint8)
    images[r, c, 0] = 255
    return images


def red_box(grid: np.ndarray) -> tuple[int, int, int, int]:
    """Return (top, bottom, left, right) of the red pixels, which must fill that rectangle."""
    ys, xs = np.nonzero((grid == RED).all(axis=-1))
    top, bottom, left, right = ys.min(), ys.max() + 1, xs.min(), xs.max() + 1
    assert len(ys) == (bottom - top) * (right - left)
    return int(top), int(bottom), int(left), int(right)


def assert_border_is_background(grid: np.ndarray) -> None:
    for edge in (grid[0], grid[-1], grid[:, 0], grid[:, -1]):
        assert (edge == BACKGROUND).all()


def test_rounds_half_up_and_clamps() -> None:
    # 255 x: 0.498 -> 0, 0.5 -> 1 (half to even would give 0), 126.5 -> 127 (to even: 126), 127.49 -> 127
    values = torch.tensor([-0.1, 0.498 / 255, 0.5 / 255, 126.5 / 255, 127.49 / 255, 1.0, 1.7], dtype=torch.float64)
    image = values.view(1, 1, -1).repeat(3, 1, 1)
    assert to_uint8(image)[0, :, 0].tolist() == [0, 0, 1, 127, 127, 255, 255]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_every_level_survives_a_round_trip(dtype: torch.dtype) -> None:
    levels = torch.arange(256).view(1, 1, 256).repeat(3, 1, 1)
    assert (to_uint8((levels.double() / 255).to(dtype))[0, :, 1] == np.arange(256)).all()


def test_bfloat16_with_a_gradient_is_taken() -> None:
    assert (to_uint8(torch.ones(3, 1, 1, dtype=torch.bfloat16, requires_grad=True)) == 255).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_pixel_that_is_not_finite_is_magenta_and_alone(bad: float) -> None:
    image = torch.full((3, 2, 2), 0.2)
    image[1, 0, 1] = bad
    assert to_uint8(image).tolist() == [[[51] * 3, [255, 0, 255]], [[51] * 3, [51] * 3]]


def test_uint8_passes_unchanged_as_a_copy() -> None:
    images = noise(10, 3, 4, 6).to(memory_format=torch.channels_last).unflatten(0, (2, 5))  # the array's layout
    array = to_uint8(images)
    assert array.shape == (2, 5, 4, 6, 3)
    assert array[1, 3, 2, 5].tolist() == images[1, 3, :, 2, 5].tolist()
    before = images.clone()
    array[:] = 0
    assert torch.equal(images, before)


def test_a_red_cell_lies_where_it_should() -> None:
    grid = image_grid(one_red(3, 5, 1, 3), scale=2, gap=3)
    pitch = 4 * 2 + 3
    top, left = MARGIN + 1 * pitch, MARGIN + 3 * pitch
    assert red_box(grid) == (top, top + 8, left, left + 8)
    assert grid.shape == (2 * MARGIN + 3 * 8 + 2 * 3, 2 * MARGIN + 5 * 8 + 4 * 3, 3)
    assert (grid[top : top + 8, left - 3 : left] == BACKGROUND).all()
    assert (grid[top : top + 8, left - pitch : left - 3] == 0).all()


def test_four_dimensions_fill_row_by_row() -> None:
    images = one_red(3, 5, 1, 3)
    assert (image_grid(images.flatten(0, 1), columns=5) == image_grid(images)).all()


def test_upscaling_is_exactly_nearest() -> None:
    images = noise(1, 1, 3, 5, 4)
    cell = image_grid(images, scale=3)[MARGIN : MARGIN + 15, MARGIN : MARGIN + 12]
    for y in range(15):
        for x in range(12):
            assert cell[y, x].tolist() == images[0, 0, :, y // 3, x // 3].tolist()


def test_missing_cells_are_background() -> None:
    grid = image_grid(torch.zeros(4, 3, 4, 4), columns=3, scale=1, gap=2)
    assert grid.shape[0] == 2 * MARGIN + 2 * 4 + 2
    second_row = grid[MARGIN + 6 : MARGIN + 10]
    assert (second_row[:, MARGIN : MARGIN + 4] == 0).all()
    assert (second_row[:, MARGIN + 4 :] == BACKGROUND).all()


def test_captions_change_nothing_inside_the_cells() -> None:
    images = one_red(2, 3, 0, 0, side=16)
    images[:, :, 2] = noise(2, 3, 16, 16)
    images[0, 0] = one_red(1, 1, 0, 0, side=16)[0, 0]
    plain = image_grid(images)
    full = image_grid(
        images, title="Title", footer="seed 1", row_captions=["a", "b"], column_captions=["0.0", "0.5", "1.0"]
    )
    (y, _, x, _), (v, _, u, _) = red_box(plain), red_box(full)
    assert v > y
    assert u > x
    height, width = plain.shape[0] - 2 * MARGIN, plain.shape[1] - 2 * MARGIN
    assert (full[v : v + height, u : u + width] == plain[y : y + height, x : x + width]).all()


def ink(region: np.ndarray) -> np.ndarray:
    """Return (y, x) of every pixel that is not background."""
    return np.argwhere((region != BACKGROUND).any(axis=-1))


def test_captions_sit_by_their_own_cells() -> None:
    images = one_red(3, 4, 1, 2, side=32)
    top, bottom, left, right = red_box(
        grid := image_grid(images, row_captions=["", "row", "a wider row"], column_captions=["", "", "x"])
    )
    beside, over = ink(grid[:, : left - 2 * 98]), ink(grid[: top - 98])
    assert beside[:, 1].min() == MARGIN  # the widest
    beside = beside[beside[:, 0] < bottom]  # right-aligned too
    assert beside[:, 1].max() == left - 2 * 98 - PAD - 1
    assert top - 98 == MARGIN + sum(figures._font(16).getmetrics()) + PAD
    assert top < beside[:, 0].min()
    assert beside[:, 0].max() < bottom
    assert abs((beside[:, 0].min() + beside[:, 0].max()) / 2 - (top + bottom) / 2) < 6
    assert abs((over[:, 1].min() + over[:, 1].max() + 1) / 2 - (left + right) / 2) <= 1


@pytest.mark.parametrize("side", [1, 8, 32])
@pytest.mark.parametrize("part", ["title", "footer", "row_captions", "column_captions", "all"])
def test_no_text_is_clipped(side: int, part: str) -> None:
    texts = {"title": LONG, "footer": LONG, "row_captions": [LONG, "b\n\nc"], "column_captions": [LONG, LONG, "x"]}
    given = texts if part == "all" else {part: texts[part]}
    plain = image_grid(torch.ones(2, 3, 3, side, side) * 0.5, scale=1)
    grid = image_grid(torch.ones(2, 3, 3, side, side) * 0.5, scale=1, **given)  # type: ignore[arg-type]
    assert_border_is_background(grid)
    assert len(ink(grid)) > len(ink(plain)) + 500
    assert ((grid == 128).all(axis=-1)).sum() >= 6 * side * side


def test_every_caption_keeps_all_its_ink() -> None:
    left, _, right, _ = figures._font(figures.SMALLEST).getmask("Wj" * 30).getbbox()  # as FreeType draws it
    grid = image_grid(torch.ones(1, 1, 3, 2, 2), row_captions=["Wj" * 30], scale=1)
    assert np.ptp(ink(grid[:, : -MARGIN - 2])[:, 1]) + 1 == right - left


def test_wide_column_captions_do_not_overlap() -> None:
    names = ["convolutional_autoencoder", "nearest_training_image", "pegasus_of_the_two"]
    grid = image_grid(torch.zeros(1, 3, 3, 16, 16), column_captions=names, scale=1, gap=2)
    head = (grid[: -MARGIN - 16] != BACKGROUND).any(axis=(0, 2))
    runs = np.flatnonzero(np.diff(np.concatenate([[0], head.astype(int), [0]])) == 1)
    assert len(runs) == 3


def test_lines_align_and_framed_columns_are_captioned_in_the_accent() -> None:
    starts = [
        np.flatnonzero(figures.render_text("i\nWWWW", 16, 500, a)[:20].any(axis=0))[0]
        for a in ("left", "center", "right")
    ]
    assert starts[0] < 3
    assert 15 < starts[1] < 45
    assert starts[2] > 45
    grid = image_grid(torch.zeros(1, 2, 3, 32, 32), column_captions=["III", "III"], highlight_columns=[1])
    head = grid[: -MARGIN - 96 - 4]
    assert (head == ACCENT).all(axis=-1).any()
    assert np.argwhere((head == ACCENT).all(axis=-1))[:, 1].min() > MARGIN + 96


def test_a_long_title_wraps_or_widens_and_a_short_one_does_neither() -> None:
    images = torch.zeros(1, 1, 3, 32, 32)
    short, long = image_grid(images, title="ab"), image_grid(images, title=LONG)
    assert short.shape[1] == 2 * MARGIN + 96
    assert long.shape[1] > short.shape[1]
    assert long.shape[0] > short.shape[0]


def test_signs_the_font_lacks_are_spelled_and_never_boxes() -> None:
    spelled = figures._printable("horse → bird, β × 0.4–0.6 é ² 馬", "")  # noqa: RUF001
    assert spelled == "horse -> bird, beta x 0.4-0.6 e 2 [99AC]"


def test_other_scripts_are_drawn_in_a_font_that_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib import font_manager

    assert figures._file_for(frozenset("horse é → ")) == ""  # as on all machines
    dejavu = figures._file_for(frozenset("лошадь"))
    assert dejavu.endswith("DejaVuSans.ttf")
    drawn, boxes = (figures.render_text(text, 20, 300) for text in ("лошадь", "\uffff" * 6))
    assert drawn.shape != boxes.shape
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: ["no font", dejavu])
    figures._file_for.cache_clear()
    assert figures._file_for(frozenset("\u99ac")) == ""  # no font has it: it is shown as [99AC]
    figures._file_for.cache_clear()


def test_highlighted_columns_share_a_frame_that_touches_no_cell() -> None:
    images = torch.zeros(2, 5, 3, 8, 8)
    grid = image_grid(images, scale=1, gap=2, highlight_columns=[2, 3])
    accent = np.argwhere((grid == ACCENT).all(axis=-1))
    # columns at 0, 10, then 6 apart: 24, 34 (framed), then 6 apart: 48
    assert accent.min(axis=0).tolist() == [MARGIN - 4, MARGIN + 24 - 4]
    assert accent.max(axis=0).tolist() == [MARGIN + 18 + 3, MARGIN + 42 + 3]
    assert len(accent) == (18 + 8) * (18 + 8) - (18 + 4) * (18 + 4)
    assert ((grid == 0).all(axis=-1)).sum() == 10 * 64
    wide = image_grid(images, scale=1, gap=20, highlight_columns=[2, 3])  # a wide gap stays inside the shared frame
    assert ((wide == ACCENT).all(axis=-1)).sum() == (36 + 8) ** 2 - (36 + 4) ** 2
    assert not (image_grid(images) == ACCENT).all(axis=-1).any()


def test_png_is_deterministic_atomic_and_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = image_grid(noise(4, 3, 8, 8), columns=2, title="t")
    first, second = tmp_path / "new" / "folder" / "a.png", tmp_path / "b.png"
    save_png(grid, first)
    save_png(grid, second)
    assert first.read_bytes() == second.read_bytes()
    assert (np.asarray(Image.open(first)) == grid).all()
    assert [p.name for p in first.parent.iterdir()] == ["a.png"]

    before = first.read_bytes()

    written, save = [], Image.Image.save

    def watched(image: Image.Image, file: BinaryIO, **options: object) -> None:
        written.append(Path(file.name))
        save(image, file, format="PNG")

    monkeypatch.setattr(Image.Image, "save", watched)
    save_png(grid, first)
    assert [p.parent == first.parent and p != first for p in written] == [True]

    def killed(image: Image.Image, file: BinaryIO, **options: object) -> None:
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", killed)
    with pytest.raises(OSError, match="disk full"):
        save_png(np.zeros_like(grid), first)
    assert first.read_bytes() == before
    assert [p.name for p in first.parent.iterdir()] == ["a.png"]


def test_joined_figures_keep_their_pixels_and_pad_with_background() -> None:
    a, b = np.full((4, 3, 3), 7, np.uint8), np.full((2, 5, 3), 9, np.uint8)
    row, column = side_by_side([a, b]), stack([a, b])
    assert row.shape == (4, 8, 3)
    assert column.shape == (6, 5, 3)
    assert (row[:, :3] == 7).all()
    assert (row[:2, 3:] == 9).all()
    assert (row[2:, 3:] == BACKGROUND).all()
    assert (column[:4, :3] == 7).all()
    assert (column[:4, 3:] == BACKGROUND).all()
    assert (column[4:] == 9).all()


GOOD = torch.zeros(2, 3, 3, 4, 4)


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (torch.zeros(3, 4, 4), {"columns": 1}, "must be"),
        (torch.zeros(2, 1, 4, 4), {"columns": 1}, r"\(\.\.\., 3, H, W\)"),
        (torch.zeros(0, 3, 4, 4), {"columns": 1}, "not empty"),
        (torch.zeros(2, 3, 4, 4), {}, "columns"),
        (torch.zeros(2, 3, 4, 4), {"columns": 0}, "columns"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.int64), {"columns": 2}, "int64"),
        (GOOD, {"columns": 2}, "have 3 columns, not 2"),
        (GOOD, {"scale": 0}, "scale"),
        (GOOD, {"gap": -1}, "gap"),
        (GOOD, {"row_captions": ["a"] * 3}, "row_captions .* at most 2"),
        (GOOD, {"column_captions": ["a"] * 4}, "column_captions .* at most 3"),
        (GOOD, {"row_captions": "ab"}, "row_captions"),
        (GOOD, {"highlight_columns": [3]}, r"0\.\.2"),
        (GOOD, {"highlight_columns": [-1]}, r"0\.\.2"),
    ],
)
def test_a_grid_that_cannot_be_is_refused(images: torch.Tensor, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        image_grid(images, **options)  # type: ignore[arg-type]


def test_figures_that_are_none_are_refused(tmp_path: Path) -> None:
    for bad in ([], [np.zeros((2, 2), np.uint8)], [np.zeros((2, 2, 3))]):
        for join in (side_by_side, stack):
            with pytest.raises(ValueError, match=r"figures must be|axis"):
                join(bad)
    with pytest.raises(ValueError, match="figures must be"):
        save_png(np.zeros((2, 2, 4), np.uint8), tmp_path / "x.png")
    assert not list(tmp_path.iterdir())
