"""Pictures that training saved, cut into their cells: what a run shows of the same pairs before it is evaluated."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np

from pegasus_lightning.report.read import Run
from pegasus_lightning.report.sprites import MAX_BYTES, MAX_PIXELS
from pegasus_lightning.runs.gallery import Gallery
from pegasus_lightning.utils.foreign import inside, open_picture

SIDE = 32  # pixels of an image
PAPER = int.from_bytes(bytes((250, 249, 247, 255)), "little")  # between the cells, see `utils.image_grid`; RGBA
ROWS = {"reconstructions": 4, "mixes": 3}  # of a grid; one of interpolations has a row a pair
MAX_COLUMNS = 64


def trained_gallery(run: Run) -> Gallery | None:
    """Return the pictures of the last epoch as a gallery; None if one is missing or is not as training draws it.

    Its pegasi are mixes of the pairs `first`, `second`; its frames are interpolations of the first of these pairs.
    Pairs are known by checksums of their photographs.
    """
    kinds = ("reconstructions", "mixes", "interpolations")
    epochs = set.intersection(*(set(run.grids.get(kind, ())) for kind in kinds))
    if not epochs:
        return None
    inputs, mixes, frames = (cells(run.grids[kind][max(epochs)], run.folder, ROWS.get(kind)) for kind in kinds)
    if inputs is None or mixes is None or frames is None:
        return None
    first, second = inputs[0], inputs[2]
    if len(first) != mixes.shape[1] or len(frames) > len(first) or frames.shape[1] < 2:
        return None
    none = np.zeros(0)
    return Gallery(
        frames=frames,
        ratios=np.linspace(0, 1, frames.shape[1]),
        pair_indices=np.array(
            [[zlib.crc32(image.tobytes()) for image in pair] for pair in zip(first, second, strict=True)]
        ),
        first=first,
        second=second,
        blend=((first.astype(np.uint16) + second + 1) // 2).astype(np.uint8),
        cutmix=None,
        pegasi=mixes[1],
        pegasi_ratios=none,
        probabilities=none,
        selected=none,
        neighbours=None,
        distances=none,
        neighbour_limit=0.0,
    )


def cells(path: Path, run: Path, rows: int | None = None) -> np.ndarray | None:
    """Return the images of a saved grid in a run's folder, (R, C, 3, 32, 32) uint8, without captions and frames.

    None if it cannot be read, or has no `rows` rows of equal square cells whose side is a multiple of 32.
    """
    try:
        with open_picture(inside(path, run), ["PNG"], MAX_PIXELS, MAX_BYTES) as picture:
            pixels = np.asarray(picture.convert("RGB").convert("RGBA"))
    except Exception:  # Pillow may raise any exception for a broken file
        return None
    ink = pixels.view("<u4")[..., 0] != PAPER
    inked = np.count_nonzero(ink, axis=1)
    tops, height = _stretches(inked > 0.5 * inked.max(initial=1))
    if not height:
        return None
    band = np.concatenate([ink[top : top + height] for top in tops])
    lefts, width = _stretches(np.count_nonzero(band, axis=0) > 0.9 * len(band))
    if width != height or height % SIDE or len(lefts) > MAX_COLUMNS or len(tops) != (rows or len(tops)):
        return None
    scale = height // SIDE
    images = [[pixels[y : y + height : scale, x : x + width : scale, :3] for x in lefts] for y in tops]
    return np.array(images).transpose(0, 1, 4, 2, 3)


def _stretches(full: np.ndarray) -> tuple[list[int], int]:
    """Return where the longest stretches of True begin, and their length; shorter ones are captions and frames."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], full, [False]])))
    starts, lengths = edges[::2], edges[1::2] - edges[::2]
    longest = int(lengths.max(initial=0))
    return starts[lengths == longest].tolist(), longest
