"""Images of the page: data URLs and sprites (many small images in one, of which the page shows one cell each)."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

QUALITIES = (80, 60)  # of WebP; the second if the first would be too large
MAX_EPOCHS = 24  # most epochs of one run whose grids are considered


@dataclass(frozen=True)
class Grid:
    """A saved grid: data URL and size in pixels; `address` is empty if the file cannot be read."""

    kind: str
    epoch: int
    address: str
    width: int = 0
    height: int = 0


@dataclass(frozen=True)
class Grids:
    """Saved grids of one run."""

    kinds: list[str]  # in the order of the page
    epochs: list[int]  # ascending
    pictures: dict[tuple[str, int], Grid]  # by kind and epoch, for saved files only
    notes: list[str]  # sentences on what was left out


def address(content: bytes) -> str:
    """Return WebP bytes as a data URL."""
    return f"data:image/webp;base64,{base64.b64encode(content).decode()}"


def sprite(images: np.ndarray) -> str:
    """Return the data URL of images (R, C, 3, H, W), uint8, as one lossless picture of R x C cells."""
    rows, columns, _, height, width = images.shape
    sheet = images.transpose(0, 3, 1, 4, 2).reshape(rows * height, columns * width, 3)
    with io.BytesIO() as buffer:
        Image.fromarray(sheet).save(buffer, "WEBP", lossless=True, quality=50, method=3)
        return address(buffer.getvalue())


def thin(epochs: Sequence[int], count: int) -> list[int]:
    """Return at most `count` epochs, evenly spaced by index, always with the first and the last."""
    count = max(2, count)
    if len(epochs) <= count:
        return list(epochs)
    return [epochs[round(i * (len(epochs) - 1) / (count - 1))] for i in range(count)]


def _encode(path: Path, quality: int) -> tuple[bytes, int, int]:
    """Return WebP bytes, width and height; empty bytes if the file is not a complete picture."""
    try:
        with Image.open(path) as picture, io.BytesIO() as buffer:
            picture.convert("RGB").save(buffer, "WEBP", quality=quality, method=2)
            return buffer.getvalue(), picture.width, picture.height
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return b"", 0, 0


def encode_grids(saved: Mapping[str, Mapping[int, Path]], share: int) -> Grids:
    """Return saved grids within a run's share of the page, if necessary at lower quality, then for fewer epochs.

    `saved` are PNG files by kind and epoch; `share` is in bytes of data URLs. The grids of the last epoch are always
    kept.
    """
    share = share * 3 // 4  # base64 needs four bytes for three
    everything = sorted({epoch for files in saved.values() for epoch in files})
    epochs = thin(everything, MAX_EPOCHS)
    last = [saved[kind][max(saved[kind])] for kind in saved]
    estimate = len(epochs) * sum(len(_encode(path, QUALITIES[0])[0]) for path in last)
    quality = QUALITIES[0] if estimate <= share else QUALITIES[1]
    places = [(kind, epoch) for epoch in epochs for kind in saved if epoch in saved[kind]]
    with ThreadPoolExecutor() as pool:
        encoded = list(pool.map(lambda place: _encode(saved[place[0]][place[1]], quality), places))
    sizes = dict.fromkeys(epochs, 0)
    for (_, epoch), (content, _, _) in zip(places, encoded, strict=True):
        sizes[epoch] += len(content)
    kept = epochs
    while len(kept) > 1 and sum(sizes[epoch] for epoch in kept) > share:
        kept = thin(epochs, len(kept) - 1) if len(kept) > 2 else kept[-1:]
    notes = []
    if len(kept) < len(everything):
        notes.append(f"{len(kept)} of {len(everything)} saved epochs are shown, so that the page stays small.")
    broken = sorted(saved[k][e].name for (k, e), (content, _, _) in zip(places, encoded, strict=True) if not content)
    if broken:
        notes.append(f"Not a picture that can be read: {', '.join(broken)}.")
    pictures = {
        (kind, epoch): Grid(kind, epoch, address(content) if content else "", width, height)
        for (kind, epoch), (content, width, height) in zip(places, encoded, strict=True)
        if epoch in kept
    }
    return Grids(list(saved), kept, pictures, notes)
