"""Images of the page: data URLs and sprites (many small images in one, of which the page shows one cell each)."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from pegasus_lightning.utils.errors import listing
from pegasus_lightning.utils.foreign import MEGABYTE, Unreadable, inside, open_picture

MAX_PIXELS, MAX_BYTES, MAX_SIDE = 6_000_000, 32 * MEGABYTE, 16_383  # of a saved grid; WebP has no longer side
MARKUP = 600  # bytes of the page for a picture, without the picture
QUALITIES = (80, 60)  # of WebP; the second if the first would be too large
LEAST = 0.02  # bytes of WebP that a pixel of a saved grid takes, about
SMALLER = 2  # pixels of a side that become one in a picture that is still too large
MAX_EPOCHS = 24  # most epochs of one run whose grids are considered


Pictures = dict[tuple[str, int], tuple[bytes, int, int]]  # WebP bytes, width and height by kind and epoch


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


@dataclass(frozen=True)
class Sheet:
    """A sprite and its numbers of rows and columns."""

    address: str
    rows: int
    columns: int


@dataclass
class Sheets:
    """Sprites of a page, each of them once, within `room` bytes."""

    room: float
    largest: float  # most bytes of one sprite
    all: list[Sheet] = field(default_factory=list)

    def add(self, images: np.ndarray, shown: int) -> int | None:
        """Return the place in `all` of a sprite of images, see `sprite`; None if it does not fit.

        `shown` is the number of its cells that the page shows at a time.
        """
        if self.room <= MARKUP * shown:
            return None
        sheet = Sheet(sprite(images), images.shape[0], images.shape[1])
        known = sheet in self.all
        size = MARKUP * shown + (0 if known else len(sheet.address))
        if size > self.largest:
            return None
        if size > self.room:
            self.room = 0  # the next ones are as large, and need not be encoded
            return None
        self.room -= size
        if not known:
            self.all.append(sheet)
        return self.all.index(sheet)


def thin(epochs: Sequence[int], count: int) -> list[int]:
    """Return at most `count` epochs, evenly spaced by index, always with the first and the last."""
    count = max(2, count)
    if len(epochs) <= count:
        return list(epochs)
    return [epochs[round(i * (len(epochs) - 1) / (count - 1))] for i in range(count)]


def _pixels(path: Path, run: Path) -> int:
    """Return the number of pixels of a picture in a run's folder, from its header; 0 if it cannot be read."""
    try:
        with open_picture(inside(path, run), ["PNG"], MAX_PIXELS, MAX_BYTES) as picture:
            return picture.width * picture.height
    except Unreadable:
        return 0


def _encode(path: Path, run: Path, quality: int, smaller: int) -> tuple[bytes, int, int]:
    """Return WebP bytes of a picture in a run's folder, width and height. Empty bytes if it cannot be read."""
    try:
        with open_picture(inside(path, run), ["PNG"], MAX_PIXELS, MAX_BYTES) as picture, io.BytesIO() as buffer:
            if max(picture.size) > MAX_SIDE:
                return b"", 0, 0
            drawn = picture.convert("RGB")
            drawn = drawn if smaller == 1 else drawn.reduce(smaller)
            drawn.save(buffer, "WEBP", quality=quality, method=2)
            return buffer.getvalue(), drawn.width, drawn.height
    except Exception:  # Pillow may raise any exception for a broken file
        return b"", 0, 0


def encode_grids(saved: Mapping[str, Mapping[int, Path]], share: int, run: Path) -> Grids:
    """Return saved grids within a run's share of the page.

    If necessary they are of lower quality, then of fewer epochs, then only of the last one: smaller, and of the first
    kinds. `saved` are PNG files in the folder `run` by kind and epoch; `share` is in bytes of the page.
    """
    everything = sorted({epoch for files in saved.values() for epoch in files})
    epochs = thin(everything, MAX_EPOCHS)
    known: dict[tuple[str, int, int, int], tuple[bytes, int, int]] = {}

    def encode(kinds: Sequence[str], shown: Sequence[int], quality: int, smaller: int = 1) -> Pictures:
        places = [(kind, epoch) for epoch in shown for kind in kinds if epoch in saved[kind]]
        new = [place for place in places if (*place, quality, smaller) not in known]
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda place: _encode(saved[place[0]][place[1]], run, quality, smaller), new))
        known.update({(*place, quality, smaller): one for place, one in zip(new, found, strict=True)})
        return {(kind, epoch): known[kind, epoch, quality, smaller] for kind, epoch in places}

    def size(pictures: Pictures, kinds: Sequence[str], shown: Sequence[int]) -> int:
        content = sum(len(content) for content, _, _ in pictures.values())
        return content * 4 // 3 + MARKUP * len(kinds) * len(shown)  # base64 needs four bytes for three

    kinds, kept, smaller, notes = list(saved), epochs[-1:], 1, list[str]()
    quality, pictures = QUALITIES[1], Pictures()
    least = LEAST * sum(_pixels(saved[kind][epoch], run) for epoch in kept for kind in kinds if epoch in saved[kind])
    if least <= share:
        pictures = encode(kinds, kept, QUALITIES[0])
        estimate = size(pictures, kinds, kept)
        quality = QUALITIES[0] if len(epochs) * estimate <= share else QUALITIES[1]
        kept = thin(epochs, 2 + 2 * share // max(1, estimate))  # no more would fit, and need not be encoded
        pictures = encode(kinds, kept, quality)
    while len(kept) > 1 and size(pictures, kinds, kept) > share:
        kept = thin(epochs, len(kept) - 1) if len(kept) > 2 else kept[-1:]
        pictures = encode(kinds, kept, quality)
    if max(least, size(pictures, kinds, kept)) > share:
        smaller = SMALLER
        pictures = encode(kinds, kept, quality, smaller)
        notes.append("Saved pictures are shown at half their size, so that the page stays small.")
    while kinds and size(pictures, kinds, kept) > share:
        kinds = kinds[:-1]
        pictures = encode(kinds, kept, quality, smaller)
    if len(kinds) < len(saved):
        notes.append(f"So that the page stays small, these pictures are left out: {', '.join([*saved][len(kinds) :])}.")
    if len(kept) < len(everything):
        notes.append(f"{len(kept)} of {len(everything)} saved epochs are shown, so that the page stays small.")
    broken = sorted({saved[kind][epoch].name for (kind, epoch, _, _), (content, _, _) in known.items() if not content})
    if broken:
        notes.append(f"Could not be read as a picture: {listing(broken)}.")
    shown = {
        place: Grid(*place, address(content) if content else "", width, height)
        for place, (content, width, height) in pictures.items()
    }
    return Grids(kinds, kept if kinds else [], shown, notes)
