"""The pictures that `evaluate` leaves beside a scorecard."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pegasus_lightning.utils.errors import UserError


@dataclass(frozen=True)
class Gallery:
    """Images are uint8, channels before rows; P pairs, F frames, G pegasi. Photographs are None where left out.

    Args:
        frames: (P, F, 3, H, W) decoded interpolations at `ratios` (F,), 0 the first class.
        pair_indices: (P, 2) which images of the split the parents are.
        first, second: (P, 3, H, W) the parents' photographs; blend, cutmix: two put together with no model.
        pegasi: (G, 3, H, W), mixed at `pegasi_ratios` (G,).
        probabilities: (G, 2) that the recogniser gives both classes; selected: (G,) whether searched for.
        neighbours: (G, 3, H, W) the nearest training photographs; distances: (G,) to them.
        neighbour_limit: distance under which 1 % of test images lie.
    """

    frames: np.ndarray
    ratios: np.ndarray
    pair_indices: np.ndarray
    first: np.ndarray | None
    second: np.ndarray | None
    blend: np.ndarray | None
    cutmix: np.ndarray | None
    pegasi: np.ndarray
    pegasi_ratios: np.ndarray
    probabilities: np.ndarray
    selected: np.ndarray
    neighbours: np.ndarray | None
    distances: np.ndarray
    neighbour_limit: float

    def without_photographs(self) -> Gallery:
        """The same with nothing in it that is made of photographs' pixels, the models' own pictures apart."""
        unseen = dict.fromkeys(("first", "second", "blend", "cutmix", "neighbours"))
        return Gallery(**{**self.__dict__, **unseen})


def read_gallery(path: Path) -> Gallery:
    """Raises UserError for a file that is no gallery, or a torn one."""
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
