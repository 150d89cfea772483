"""The pipeline that makes one mix: parents, encoder, codes, mixing, mixed code, decoder, mix, from left to right."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch import Tensor

from pegasus_lightning.generate.figures.cards import ARROW, CARD, EDGE, arrow, card
from pegasus_lightning.generate.figures.mixes import (
    BODY,
    SMALL,
    STORED,
    as_pixels,
    caption_lines,
    counted,
    framed,
    parent_caption,
    two_names,
)
from pegasus_lightning.models.latent import MIXINGS
from pegasus_lightning.utils.image_grid import (
    ACCENT,
    BACKGROUND,
    FAINT,
    INK,
    MARGIN,
    PAD,
    blank_canvas,
    image_grid,
    paint,
    render_text,
)

NEGATIVE, POSITIVE = (24, 98, 160), ACCENT  # colours of the smallest and the largest number of a code
GAP = 2 * ARROW  # pixels between two columns
CAPTION, WORDS = 140, 140  # pixels: widths at which captions and the text of cards wrap
CODE = 128, 16  # pixels: height of a drawn code, and the largest side of a cell


@dataclass(frozen=True)
class _Part:
    """A picture (H, W, 3) and the caption above it."""

    body: np.ndarray
    caption: str = ""

    @cached_property
    def ink(self) -> np.ndarray:
        """The caption as ink (h, w), wrapped."""
        return render_text(self.caption, SMALL, max(CAPTION, self.body.shape[1]), "center")

    @property
    def width(self) -> int:
        """Pixels, with the caption."""
        return max(self.body.shape[1], self.ink.shape[1])

    @property
    def above(self) -> int:
        """Pixels from the middle of the picture up to the upper end of the caption."""
        return self.below + (self.ink.shape[0] + PAD if self.caption else 0)

    @property
    def below(self) -> int:
        """Pixels from the middle of the picture down to its lower end."""
        return (self.body.shape[0] + 1) // 2


def pipeline_figure(
    mix: Tensor, parents: tuple[Tensor, Tensor], codes: tuple[Tensor, Tensor, Tensor], *, classes: tuple[str, str],
    ratio: float, mixing: str, sampled: bool, originals: bool, stored: bool = False, log_variance: bool = True,
    ascended: tuple[Tensor, int] | None = None, footer: str = "", scale: int = 8,
) -> np.ndarray:  # fmt: skip
    """Draw how one mix (3, H, W) is made, with the mix at `scale` and its parents at half of it (fig. 1).

    parents: the two images (3, H, W): originals; with `stored`, decoded from codes that come
        with the model; else reconstructions.
    codes: of the first parent, of the second, and the mixed code, (latent_dim,) each, drawn as cells row by row. For
        mixing="direction", which ignores the second parent, the second code is the class direction.
    mixing: one of `latent.MIXINGS`. sampled: the parents' codes are drawn, not the means.
    log_variance: the encoder outputs log-variances, too.
    ascended: the code after gradient ascent, (latent_dim,), and the number of steps. None: the mix is decoded from the
        mixed code.
    Codes of different lengths and an unknown mixing raise ValueError.
    """
    if mixing not in MIXINGS:
        raise ValueError(f"mixing must be one of {MIXINGS}, not {mixing!r}")
    names = two_names(classes)
    mix = as_pixels("mix", mix, 3)
    shown = [as_pixels("parents", parent, 3, like=mix) for parent in parents]
    vectors = [code.detach().double().cpu() for code in (*codes, *([ascended[0]] if ascended else []))]
    if any(vector.shape != vectors[0].shape or vector.ndim != 1 or not len(vector) for vector in vectors):
        raise ValueError(f"codes must be (latent_dim,), all alike, not {[tuple(v.shape) for v in vectors]}")
    largest = max(vector.abs().max().item() for vector in vectors)
    numbers, side = counted(len(vectors[0]), "number", "numbers"), " x ".join(map(str, mix.shape))
    bars = [_code(vector.numpy(), largest) for vector in vectors]
    what = STORED if stored else "original" if originals else "reconstruction"
    drawn = "sampled" if sampled else "the mean"
    small = max(scale // 2, 1)
    sources = [
        _Part(_picture(image, small), parent_caption(name, what)) for name, image in zip(names, shown, strict=True)
    ]
    coded = [_Part(bar, f"code {z}, {drawn}\n{numbers}") for bar, z in zip(bars, ("z1", "z2"), strict=False)]
    if mixing == "direction":
        sources[1] = _Part(_words("every image", f"of {names[0]} and {names[1]}"))
        coded[1] = _Part(bars[1], f"direction d\nmean {names[1]} code minus\nmean {names[0]} code")
    step = max(upper.below + MARGIN + lower.above for upper, lower in (sources, coded))  # from row to row
    heads = f"mean and\nlog-variance,\n{numbers} each" if log_variance else f"mean,\n{numbers}"
    encoder = _words("encoder", f"{side}\nto {heads}", height=step + max(part.body.shape[0] for part in sources))
    signed = f"{'-' if ratio < 0 else '+'} {abs(ratio):.2f}"
    weights = {
        "lerp": f"{1 - ratio:.2f} z1 {signed} z2",
        "slerp": "along the arc\nfrom z1 to z2",
        "direction": f"z1 {signed} d",
        "learned": "mixing network\nof z1 and z2",
    }
    mixed = _words(f"{mixing} mix", caption_lines(f"at ratio {ratio:.2f}", weights[mixing]), ACCENT)
    columns = [sources, [_Part(encoder)], coded, [_Part(mixed)], [_Part(bars[2], f"mixed code\n{numbers}")]]
    if ascended is not None:
        columns += [[_Part(_words("gradient ascent", f"on the code,\n{ascended[1]:,} steps"))]]
        columns += [[_Part(bars[3], f"improved code\n{numbers}")]]
    columns += [[_Part(_words("decoder", f"{numbers}\nto {side}"))], [_Part(_picture(mix, scale), " x ".join(names))]]
    legend = f"A cell of a code is one number: blue {-largest:.2f}, white 0, orange {largest:.2f}."
    legend += f" Ratio 0 is {names[0]}, 1 is {names[1]}."
    hidden = "Parents are shown as reconstructions; the encoder reads the parents themselves."
    hidden = (
        "The parents are decoded from codes that come with the model, each near that of a training image."
        if stored
        else ""
        if originals
        else hidden
    )
    body = _drawn(columns, step)
    return framed(body, f"How one mix of {names[0]} and {names[1]} is made", caption_lines(legend, hidden, footer))


def _drawn(columns: Sequence[Sequence[_Part]], step: int) -> np.ndarray:
    """Draw columns of one part, in the middle, or two, `step` pixels apart, with arrows from each column to the next.

    An arrow from or to a part that reaches both rows, such as the encoder, stays in its row.
    """
    middles = [(0,) if len(column) == 1 else (-(step // 2), step - step // 2) for column in columns]
    # The parts, each with the height of its middle below the figure's.
    placed = [pair for column, rows in zip(columns, middles, strict=True) for pair in zip(column, rows, strict=True)]
    zero = MARGIN + max(part.above - middle for part, middle in placed)
    height = zero + max(part.below + middle for part, middle in placed) + MARGIN
    widths = [max(part.width for part in column) for column in columns]
    centres = MARGIN + np.cumsum([0, *(width + GAP for width in widths[:-1])]) + np.array(widths) // 2
    canvas = blank_canvas(height, int(centres[-1]) + widths[-1] - widths[-1] // 2 + MARGIN)
    for column, rows, centre in zip(columns, middles, centres, strict=True):
        for part, middle in zip(column, rows, strict=True):
            top, left = zero + middle - part.body.shape[0] // 2, int(centre) - part.body.shape[1] // 2
            canvas[top : top + part.body.shape[0], left : left + part.body.shape[1]] = part.body
            ink = part.ink
            paint(canvas, ink, top - PAD - ink.shape[0], int(centre) - ink.shape[1] // 2, INK)
    turned = canvas.swapaxes(0, 1)
    for number, (here, there) in enumerate(itertools.pairwise(columns)):
        rows = max(middles[number], middles[number + 1], key=len)
        for row, middle in enumerate(rows):
            (tail, y0), (head, y1) = (_meeting(column, row, middle) for column in (here, there))
            start = int(centres[number]) - tail.body.shape[1] // 2 + tail.body.shape[1]
            end = int(centres[number + 1]) - head.body.shape[1] // 2
            arrow(turned, (zero + y0, start), (zero + y1, end))
    return canvas


def _meeting(column: Sequence[_Part], row: int, middle: int) -> tuple[_Part, int]:
    """Return the part of a column that the arrow in a row touches, and where: its height from the figure's middle."""
    if len(column) == 2:
        return column[row], middle
    return column[0], middle if abs(middle) < column[0].below else 0


def _picture(image: Tensor, scale: int) -> np.ndarray:
    """Return an image (3, H, W) enlarged to (scale H, scale W, 3) uint8."""
    inside = slice(MARGIN, -MARGIN)
    return image_grid(image[None, None], scale=scale)[inside, inside]


def _words(head: str, text: str, colour: tuple[int, int, int] = INK, height: int = 0) -> np.ndarray:
    """Draw a card, at least `height` pixels high, with a name and smaller text below it."""
    return card([(head, BODY, colour), (text, SMALL, FAINT)], WORDS, height=height, align="center")


def _code(code: np.ndarray, largest: float) -> np.ndarray:
    """Draw the numbers (latent_dim,) as cells row by row, in a block about twice as high as wide.

    Colours run from NEGATIVE at -largest over white at 0 to POSITIVE at largest.
    """
    columns = math.ceil(math.sqrt(len(code) / 2))
    rows = math.ceil(len(code) / columns)
    side = max(min(CODE[0] // rows, CODE[1]), 1)
    share = (np.abs(code) / max(largest, 1e-12))[:, None]
    ends = np.where(code[:, None] < 0, NEGATIVE, POSITIVE)
    colours = np.tile(np.array(BACKGROUND, dtype=np.uint8), (rows * columns, 1))
    colours[: len(code)] = np.round(CARD + share * (ends - CARD))
    cells = colours.reshape(rows, columns, 3).repeat(side, axis=0).repeat(side, axis=1)
    canvas = np.full((cells.shape[0] + 2, cells.shape[1] + 2, 3), EDGE, dtype=np.uint8)
    canvas[1:-1, 1:-1] = cells
    return canvas
