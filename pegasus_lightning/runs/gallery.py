"""The gallery: pictures that `evaluate` saves beside a scorecard."""

from __future__ import annotations

import math
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pegasus_lightning.utils.foreign import MEGABYTE, Unreadable, open_regular

MAX_FILE_BYTES, MAX_ARRAY_BYTES = 16 * MEGABYTE, 16 * MEGABYTE  # of a gallery; `evaluate` writes less than one
MAX_SIDE = 16_383  # pixels of a picture of all frames or pegasi: WebP holds no more
LARGEST = 1e9  # of a number
PICTURES = ("frames", "pegasi")
PHOTOGRAPHS = ("first", "second", "blend", "cutmix", "neighbours")  # may be left out
NUMBERS = (
    *("ratios", "pair_indices", "pegasi_ratios", "pegasi_probabilities", "pegasi_selected"),
    *("neighbour_distances", "neighbour_limit"),
)


@dataclass(frozen=True)
class Gallery:
    """uint8 images of P pairs with F frames each, and of G pegasi. Photographs are None if left out."""

    frames: np.ndarray  # (P, F, 3, H, W) decoded interpolations at `ratios`
    ratios: np.ndarray  # (F,), 0 being the first class
    pair_indices: np.ndarray  # (P, 2) indices of the parents in their split
    first: np.ndarray | None  # (P, 3, H, W) photographs of the first parents
    second: np.ndarray | None  # (P, 3, H, W) photographs of the second parents
    blend: np.ndarray | None  # (P, 3, H, W) the two combined without a model
    cutmix: np.ndarray | None  # (P, 3, H, W) the two combined without a model
    pegasi: np.ndarray  # (G, 3, H, W)
    pegasi_ratios: np.ndarray  # (G,) ratios of these mixes
    probabilities: np.ndarray  # (G, 2) of both classes, by the recogniser
    selected: np.ndarray  # (G,) whether a search found the pegasus
    neighbours: np.ndarray | None  # (G, 3, H, W) nearest training photographs
    distances: np.ndarray  # (G,) to the nearest training photographs
    neighbour_limit: float  # distance below which 1 % of test images lie

    def without_photographs(self) -> Gallery:
        """Return the gallery without photographs and images combined from their pixels."""
        return Gallery(**{**self.__dict__, **dict.fromkeys(PHOTOGRAPHS)})


def read_gallery(path: Path) -> Gallery:
    """Return the gallery in a file. Raise Unreadable if the file is not a gallery, incomplete, or too large.

    Shapes, kinds and sizes are read from the headers of the arrays, and checked before an array is made.
    """
    try:
        with open_regular(path, MAX_FILE_BYTES) as file, zipfile.ZipFile(file) as archive:
            shapes = _shapes(archive)
            arrays = {name: _read(archive, name) for name in shapes}
        for name in NUMBERS:
            if not (np.abs(arrays[name]) < LARGEST).all():  # neither NaN nor infinite
                raise ValueError(f"{name} is not finite")
        if (np.diff(arrays["ratios"].astype(float)) <= 0).any():
            raise ValueError("ratios do not ascend")
    except Unreadable as error:
        raise Unreadable(path, f"is not a gallery (it {error.reason}): evaluate the run with again=true") from error
    except Exception as error:  # a damaged archive may raise any exception
        raise Unreadable(
            path, f"is not a gallery ({type(error).__name__}): evaluate the run with again=true"
        ) from error
    plain = ("frames", "ratios", "pair_indices", "pegasi", "pegasi_ratios")
    return Gallery(
        **{name: arrays[name] for name in plain},
        **{name: arrays.get(name) for name in PHOTOGRAPHS},  # type: ignore[arg-type]
        probabilities=arrays["pegasi_probabilities"],
        selected=arrays["pegasi_selected"].astype(bool),
        distances=arrays["neighbour_distances"],
        neighbour_limit=float(arrays["neighbour_limit"]),
    )


def _shapes(archive: zipfile.ZipFile) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a gallery's arrays by name, from their headers. Raise ValueError if they do not fit."""
    present = set(archive.namelist())
    names = (*PICTURES, *NUMBERS, *(name for name in PHOTOGRAPHS if f"{name}.npy" in present))
    found = {name: _header(archive, name) for name in names}
    pairs, frames, *size = found["frames"][0]
    count = found["pegasi"][0][0]
    if len(size) != 3 or size[0] != 3 or min(pairs, frames, *size) < 1:
        raise ValueError("frames are not pictures")
    if max(frames * size[1], max(pairs, count) * size[2]) > MAX_SIDE:
        raise ValueError("more pictures than one can hold")
    wanted: dict[str, tuple[int, ...]] = {
        "frames": (pairs, frames, *size),
        "pegasi": (count, *size),
        "neighbours": (count, *size),
        "ratios": (frames,),
        "pair_indices": (pairs, 2),
        "pegasi_ratios": (count,),
        "pegasi_probabilities": (count, 2),
        "pegasi_selected": (count,),
        "neighbour_distances": (count,),
        "neighbour_limit": (),
    }
    wanted |= dict.fromkeys(("first", "second", "blend", "cutmix"), (pairs, *size))
    for name, (shape, kind) in found.items():
        if shape != wanted[name] or (kind != np.uint8 if name not in NUMBERS else kind.kind not in "biuf"):
            raise ValueError(f"{name} is {shape} {kind}")
    if sum(math.prod(shape) * kind.itemsize for shape, kind in found.values()) > MAX_ARRAY_BYTES:
        raise ValueError("too large")
    return {name: shape for name, (shape, _) in found.items()}


def _header(archive: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    if archive.getinfo(f"{name}.npy").compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{name} is compressed in another way")
    with archive.open(f"{name}.npy") as file:
        read = np.lib.format.read_array_header_1_0
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError(f"{name} has another version")
        shape, _, kind = read(file)
    return shape, kind


def _read(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with archive.open(f"{name}.npy") as file:
        return np.asarray(np.lib.format.read_array(file, allow_pickle=False))
