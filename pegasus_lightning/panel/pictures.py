"""Files of pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pegasus_lightning.utils.errors import UserError
from pegasus_lightning.utils.foreign import read_npz
from pegasus_lightning.utils.tensors import IMAGE_SIZE

PICTURES = "images.npz"  # all pictures of a panel, in the order of their numbers


def read_pictures(path: Path) -> Tensor:
    """Return the array `images` of an .npz file, uint8 (N, 3, 32, 32). Raise UserError for any other file."""
    array = read_npz(path, "images")
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[1:] != (3, IMAGE_SIZE, IMAGE_SIZE):
        raise UserError(f"`images` in {path} must be uint8 (N, 3, 32, 32), not {array.dtype} {array.shape}.")
    return torch.from_numpy(array)
