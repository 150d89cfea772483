"""Files of pictures."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pegasus_lightning.utils.errors import UserError
from pegasus_lightning.utils.tensors import IMAGE_SIZE

PICTURES = "images.npz"  # all pictures of a panel, in the order of their numbers


def read_pictures(path: Path) -> Tensor:
    """Return the array `images` of an .npz file, uint8 (N, 3, 32, 32). Raise UserError for any other file."""
    try:
        with np.load(path) as content:
            array = content["images"]
    except (OSError, ValueError, KeyError, TypeError, EOFError, IndexError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} has no array `images` ({type(error).__name__}).") from error
    if array.dtype != np.uint8 or array.shape[1:] != (3, IMAGE_SIZE, IMAGE_SIZE):
        raise UserError(f"`images` in {path} must be uint8 (N, 3, 32, 32), not {array.dtype} {array.shape}.")
    return torch.from_numpy(array.copy())
