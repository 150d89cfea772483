"""The gallery: pictures that `evaluate` saves beside a scorecard."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pegasus_lightning.utils.errors import UserError


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
        unseen = dict.fromkeys(("first", "second", "blend", "cutmix", "neighbours"))
        return Gallery(**{**self.__dict__, **unseen})


def read_gallery(path: Path) -> Gallery:
    """Return the gallery in a file. Raise UserError if the file is not a gallery or is incomplete."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        pairs, frames, *shape = arrays["frames"].shape
        count = len(arrays["pegasi"])
        expected = {
            "frames": (pairs, frames, *shape),
            "ratios": (frames,),
            "pair_indices": (pairs, 2),
            "pegasi": (count, *shape),
            "pegasi_ratios": (count,),
            "pegasi_probabilities": (count, 2),
            "pegasi_selected": (count,),
            "neighbour_distances": (count,),
            "neighbour_limit": (),
        }
        optional = {name: (pairs, *shape) for name in ("first", "second", "blend", "cutmix") if name in arrays}
        optional |= {"neighbours": (count, *shape)} if "neighbours" in arrays else {}
        for name, wanted in (expected | optional).items():
            if arrays[name].shape != wanted or (len(wanted) >= 4 and arrays[name].dtype != np.uint8):
                raise ValueError(f"{name} is {arrays[name].shape} {arrays[name].dtype}")
        if len(shape) != 3 or shape[0] != 3 or not pairs or not frames:
            raise ValueError(f"frames are {arrays['frames'].shape}")
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} is not a gallery ({type(error).__name__}): evaluate the run again.") from error
    plain = ("frames", "ratios", "pair_indices", "pegasi", "pegasi_ratios")
    photographs = ("first", "second", "blend", "cutmix", "neighbours")
    return Gallery(
        **{name: arrays[name] for name in plain},
        **{name: arrays.get(name) for name in photographs},  # type: ignore[arg-type]
        probabilities=arrays["pegasi_probabilities"],
        selected=arrays["pegasi_selected"].astype(bool),
        distances=arrays["neighbour_distances"],
        neighbour_limit=float(arrays["neighbour_limit"]),
    )
