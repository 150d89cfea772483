"""Cards and arrows, from which the diagram of the networks and the picture of the pipeline are composed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pegasus_lightning.utils.image_grid import INK, PAD, blank_canvas, paint, render_text

CARD, EDGE = (255, 255, 255), (205, 202, 197)
ARROW = 22  # pixels: shortest gap between two cards that an arrow fits into
Line = tuple[str, int, tuple[int, int, int]]  # text, size in pixels, colour


def card(lines: Sequence[Line], width: int, *, left: int = PAD, height: int = 0, align: str = "left") -> np.ndarray:
    """Draw a bordered card with lines of text, (H, W, 3) uint8.

    width, height: pixels. Text wraps between words; the card grows for what does not fit, such as a long word.
    left: pixels left of the text. align: of the text, "left" or "center"; its middle is the card's.
    """
    inks = [(render_text(text, size, width - left - PAD, align), colour) for text, size, colour in lines if text]
    tall = sum(ink.shape[0] for ink, _ in inks)
    widest = max((ink.shape[1] for ink, _ in inks), default=0)
    canvas = blank_canvas(max(tall + 2 * PAD, height), max(width, left + widest + PAD))
    canvas[:] = EDGE
    canvas[1:-1, 1:-1] = CARD
    top = (canvas.shape[0] - tall) // 2
    for ink, colour in inks:
        free = (canvas.shape[1] - left - PAD - ink.shape[1]) // 2 if align == "center" else 0
        paint(canvas, ink, top, left + free, colour)
        top += ink.shape[0]
    return canvas


def arrow(canvas: np.ndarray, start: tuple[int, int], end: tuple[int, int]) -> None:
    """Draw an arrow on (H, W, 3) from `start` (x, y) down, across shortly before the end, and down to `end`.

    For an arrow to the right, pass `canvas.swapaxes(0, 1)` and both points as (y, x). The end must lie ARROW pixels
    or more beyond the start.
    """
    (x0, y0), (x1, y1) = start, end
    turn = y1 - ARROW // 2 - 2
    canvas[y0:turn, x0 - 1 : x0 + 1] = INK
    canvas[turn : turn + 2, min(x0, x1) - 1 : max(x0, x1) + 1] = INK
    canvas[turn : y1 - 4, x1 - 1 : x1 + 1] = INK
    for i in range(6):
        canvas[y1 - 2 - i, x1 - 1 - i : x1 + 1 + i] = INK
