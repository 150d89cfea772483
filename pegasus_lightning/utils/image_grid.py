"""Labelled image grids as (H, W, 3) uint8 arrays, and their PNG files.

Nothing is drawn over the cells, and the picture grows rather than clipping a caption.
"""

from __future__ import annotations

import functools
import math
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from pegasus_lightning.utils.files import write_atomically
from pegasus_lightning.utils.tensors import to_uint8

BACKGROUND, INK, FAINT, ACCENT = (250, 249, 247), (51, 51, 51), (112, 110, 107), (196, 78, 0)
MARGIN, PAD = 14, 7  # pixels around the picture; between a caption and its cells
AIR, FRAME = 2, 2  # pixels between a framed cell and its frame; thickness of the frame
SMALLEST = 11  # smallest font size in pixels; captions that need less are turned, or the picture grows
SPELLED = {"→": "->", "←": "<-", "–": "-", "—": "-", "−": "-", "×": "x", "≤": "<=", "≥": ">=", "≈": "~"}  # noqa: RUF001
SPELLED |= {"α": "alpha", "β": "beta", "λ": "lambda", "μ": "mu", "σ": "sigma"}  # noqa: RUF001 - missing in Pillow's font


def image_grid(
    images: Tensor, *, columns: int | None = None, scale: int = 3, title: str = "", row_captions: Sequence[str] = (),
    column_captions: Sequence[str] = (), footer: str = "", gap: int = 2, highlight_columns: Sequence[int] = (),
) -> np.ndarray:  # fmt: skip
    """Return a captioned grid of images, (height, width, 3) uint8; raise ValueError for invalid arguments.

    Args:
        images: (R, C, 3, H, W), or (N, 3, H, W) filled row by row into `columns` columns; missing cells stay empty.
        scale, gap: side in pixels of one image pixel; pixels between cells.
        row_captions, column_captions: at most R and C; long ones wrap, then shrink, then (columns only) turn.
        highlight_columns: indices of columns framed in the accent colour; neighbours share one frame.
    """
    cells = _cells(images, columns, scale, gap)
    rows, columns, height, width = cells.shape[:4]
    for name, captions, most in (("row", row_captions, rows), ("column", column_captions, columns)):
        if isinstance(captions, str) or len(captions) > most:
            raise ValueError(f"{name}_captions must be a list of at most {most} texts, not {captions!r}")
    framed = set(highlight_columns)
    if not framed <= set(range(columns)):
        raise ValueError(f"highlight_columns must lie in 0..{columns - 1}, not {sorted(framed)}")

    points = min(max(height // 6, 12), 16)
    sizes = range(points, SMALLEST - 1, -1)
    labels = _fit(row_captions, sizes, 11 * points, height, align="right")
    room = width - points // 3  # keeps neighbouring captions apart
    heads = _fit(column_captions, sizes, room, 4 * points, align="center")
    if any(head.shape[1] > room for head in heads):
        heads = [np.rot90(head) for head in _fit(column_captions, sizes, 12 * points, room, align="left")]
    slot_width = max([width, *(head.shape[1] for head in heads)])
    slot_height = max([height, *(label.shape[0] for label in labels)])
    spaces = [gap if (c in framed) == (c - 1 in framed) else max(gap, 2 * AIR + FRAME) for c in range(1, columns)]
    label_width = max((label.shape[1] + PAD for label in labels if label.size), default=0)
    head_height = max((head.shape[0] + PAD for head in heads if head.size), default=0)
    lefts = MARGIN + label_width + np.cumsum([0, *(slot_width + space for space in spaces)])
    right = int(lefts[-1]) + slot_width
    wrap_at = max(right - MARGIN, 30 * points)  # a small grid may grow this wide for its title
    above, below = (render_text(text, size, wrap_at) for text, size in ((title, points + 5), (footer, points - 2)))
    top = MARGIN + head_height + (above.shape[0] + PAD if above.size else 0)
    tops = top + np.arange(rows) * (slot_height + gap)
    total_height = int(tops[-1]) + slot_height + MARGIN + (below.shape[0] + PAD if below.size else 0)
    canvas = blank_canvas(total_height, max(right, MARGIN + above.shape[1], MARGIN + below.shape[1]) + MARGIN)
    paint(canvas, above, MARGIN, MARGIN, INK)
    paint(canvas, below, total_height - MARGIN - below.shape[0], MARGIN, FAINT)
    for label, y in zip(labels, tops, strict=False):
        paint(canvas, label, y + (slot_height - label.shape[0]) // 2, MARGIN + label_width - PAD - label.shape[1], INK)
    for c, (head, x) in enumerate(zip(heads, lefts, strict=False)):
        at = top - PAD - head.shape[0], x + (slot_width - head.shape[1]) // 2
        paint(canvas, head, *at, ACCENT if c in framed else INK)
    ys, xs = tops + (slot_height - height) // 2, lefts + (slot_width - width) // 2
    for reach, colour in ((AIR + FRAME, ACCENT), (AIR, BACKGROUND)):
        for c in framed:  # from its own left edge to its framed neighbour's, so that neighbours share one frame
            end = xs[c + 1] if c + 1 in framed else xs[c] + width
            canvas[ys[0] - reach : ys[-1] + height + reach, xs[c] - reach : end + reach] = colour
    for r, c in np.ndindex(rows, columns):
        canvas[ys[r] : ys[r] + height, xs[c] : xs[c] + width] = cells[r, c]
    return canvas


def side_by_side(figures: Sequence[np.ndarray]) -> np.ndarray:
    """Join (H, W, 3) uint8 figures in one row, tops aligned, padded with background; raise ValueError for others."""
    if not figures or any(f.ndim != 3 or f.shape[2] != 3 or f.size == 0 or f.dtype != np.uint8 for f in figures):
        raise ValueError(f"figures must be (H, W, 3) uint8, at least one, not {[(f.shape, f.dtype) for f in figures]}")
    height = max(figure.shape[0] for figure in figures)
    return np.concatenate([np.concatenate([f, blank_canvas(height - f.shape[0], f.shape[1])]) for f in figures], axis=1)


def stack(figures: Sequence[np.ndarray]) -> np.ndarray:
    """Join (H, W, 3) uint8 figures in one column, left-aligned, padded with background; raise ValueError for others."""
    return side_by_side([figure.swapaxes(0, 1) for figure in figures]).swapaxes(0, 1).copy()


def save_png(array: np.ndarray, path: Path) -> None:
    """Write an (H, W, 3) uint8 array as PNG, atomically and deterministically; create parent folders."""
    image = Image.fromarray(side_by_side([array]))  # validates the array
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: image.save(file, format="PNG"))


def _cells(images: Tensor, columns: int | None, scale: int, gap: int) -> np.ndarray:
    """Check the arguments and return the cells, (R, C, scale H, scale W, 3) uint8."""
    shape = tuple(images.shape)
    if len(shape) not in (4, 5) or images.numel() == 0:
        raise ValueError(f"images must be (N, 3, H, W) or (R, C, 3, H, W) and not empty, not {shape}")
    if len(shape) == 5 and columns not in (None, shape[1]):
        raise ValueError(f"images of shape {shape} have {shape[1]} columns, not {columns}")
    columns = shape[1] if len(shape) == 5 else columns
    if columns is None or columns < 1 or scale < 1 or gap < 0:
        raise ValueError(f"columns and scale must be at least 1 and gap 0, not {columns}, {scale} and {gap}")
    pixels = to_uint8(images.flatten(0, -4)).repeat(scale, axis=1).repeat(scale, axis=2)
    rows, (height, width) = math.ceil(len(pixels) / columns), pixels.shape[1:3]
    cells = np.tile(blank_canvas(height, width), (rows * columns, 1, 1, 1))
    cells[: len(pixels)] = pixels
    return cells.reshape(rows, columns, height, width, 3)


def blank_canvas(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), BACKGROUND, dtype=np.uint8)


def paint(canvas: np.ndarray, ink: np.ndarray, top: int, left: int, colour: tuple[int, int, int]) -> None:
    """Blend `colour` into the canvas with opacity `ink` / 255; numpy raises if the ink does not fit."""
    region = canvas[top : top + ink.shape[0], left : left + ink.shape[1]]
    region[:] = np.round(region + (np.array(colour) - region) * (ink[..., None] / 255.0))


def _fit(texts: Sequence[str], sizes: Iterable[int], width: int, height: int, align: str) -> list[np.ndarray]:
    """Return the texts as ink at the first size at which all fit into width x height, else at the last size."""
    inks: list[np.ndarray] = []
    for size in sizes:
        inks = [render_text(text, size, width, align) for text in texts]
        if all(ink.shape[0] <= height and ink.shape[1] <= width for ink in inks):
            break
    return inks


@functools.cache
def _font(size: int, file: str = "") -> ImageFont.FreeTypeFont:
    if file:
        return ImageFont.truetype(file, size)
    return ImageFont.load_default(size)  # type: ignore[return-value]  # Aileron, part of Pillow: equal on all machines


@functools.cache
def _has(file: str, character: str) -> bool:
    try:
        font = _font(20, file)
    except OSError:  # not a font that FreeType reads
        return False
    return character == " " or bytes(font.getmask(character)) != bytes(font.getmask("\uffff"))


@functools.cache
def _file_for(characters: frozenset[str]) -> str:
    """Return the font file that has all characters: Pillow's (""), matplotlib's, or one of the system; else ""."""
    if all(_has("", character) or _spelled(character) for character in characters):
        return ""
    from matplotlib import font_manager  # slow to import, and seldom needed

    files = [font_manager.findfont("DejaVu Sans"), *sorted(font_manager.findSystemFonts())]
    return next((file for file in files if all(_has(file, character) for character in characters)), "")


def _spelled(character: str) -> str:
    """Return a character in ASCII: its spelling, or its letter without accents; "" if it has neither."""
    bare = unicodedata.normalize("NFKD", character)[0]
    return SPELLED.get(character, bare if bare.isascii() and bare.isprintable() else "")


def _printable(text: str, file: str) -> str:
    """Return the text with the characters that the font lacks spelled, or else as their code: [9A6C]."""
    return "".join(
        character if _has(file, character) else _spelled(character) or f"[{ord(character):X}]" for character in text
    )


def render_text(text: str, size: int, width: int, align: str = "left") -> np.ndarray:
    """Return text as (h, w) uint8 ink, (0, 0) if empty, wrapped between words at `width` pixels."""
    file = _file_for(frozenset(text) - {"\n"})
    font, lines = _font(size, file), list[str]()
    for paragraph in text.split("\n"):
        lines.append("")
        for word in _printable(paragraph, file).split():
            longer = f"{lines[-1]} {word}".lstrip()
            fits = not lines[-1] or font.getlength(longer) <= width
            lines[-1:] = [longer] if fits else [lines[-1], word]
    longest, line_height = max(map(font.getlength, lines)), sum(font.getmetrics())
    image = Image.new("L", (math.ceil(longest) + 2 * size, line_height * len(lines)))
    for i, line in enumerate(lines):
        free = (longest - font.getlength(line)) * {"left": 0.0, "center": 0.5, "right": 1.0}[align]
        ImageDraw.Draw(image).text((size + round(free), i * line_height), line, fill=255, font=font)
    ink = np.asarray(image)
    inked = np.flatnonzero(ink.any(axis=0))
    return ink[:, inked[0] : inked[-1] + 1] if inked.size else np.zeros((0, 0), dtype=np.uint8)
