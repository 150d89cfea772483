"""Pictures that a user hands over in Python: paths, Pillow's, arrays and tensors, as images of 32 x 32."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pegasus_lightning.data.image_folder import MIN_SIDE, from_pillow, read_image
from pegasus_lightning.utils.errors import UserError
from pegasus_lightning.utils.tensors import IMAGE_SIZE, to_float

CHANNELS = (1, 3, 4)  # grey, RGB, RGBA
SHAPES = "(H, W), (H, W, C), (C, H, W), (N, H, W, C) or (N, C, H, W) with C = 1, 3 or 4"


def read_images(images: Any) -> Tensor:
    """Return pictures of any size as float32 (N, 3, 32, 32) in [0, 1], on the CPU.

    They are prepared as the images of a folder are: cropped to the central square, resized to 32 x 32 with Lanczos,
    grey made RGB, transparency laid on white. RGB of 32 x 32 keeps its values exactly.

    Args:
        images: a path, a picture of Pillow, an array or a tensor, or a list of such. Arrays and tensors are uint8 (0 to
            255) or floats (0 to 1), of shape (H, W), (H, W, C), (C, H, W), (N, H, W, C) or (N, C, H, W); C is 1
            (grey), 3 (RGB) or 4 (RGBA), and a side has at least 8 pixels.

    Raises:
        UserError: a file is missing or no image, or an array has another shape, type or range.
    """
    if isinstance(images, (list, tuple)):
        if not images:
            raise UserError("There are no images: the list is empty.")
        return torch.cat([read_images(one) for one in images])
    if isinstance(images, (str, os.PathLike)):
        return to_float(torch.tensor(read_image(Path(images).expanduser()))[None])
    if isinstance(images, Image.Image):
        return to_float(torch.tensor(from_pillow(images))[None])
    if isinstance(images, (np.ndarray, Tensor)):
        return _of_array(images)
    raise UserError(
        f"A {type(images).__name__} is no image: give a path, a picture of Pillow, an array, a tensor, or a list."
    )


def _of_array(array: np.ndarray | Tensor) -> Tensor:
    values = array.detach().cpu() if isinstance(array, Tensor) else torch.tensor(np.ascontiguousarray(array))
    batch = _channels_first(values)
    if batch.dtype == torch.uint8:
        pixels = batch
    elif batch.is_floating_point():
        low, high = batch.min().item(), batch.max().item()
        if not 0 <= low <= high <= 1:  # NaN too
            raise UserError(f"The images have floats from {low:g} to {high:g}: give floats from 0 to 1, or uint8.")
        if batch.shape[1:] == (3, IMAGE_SIZE, IMAGE_SIZE):
            return batch.float()
        pixels = (batch.double() * 255 + 0.5).floor().to(torch.uint8)
    else:
        raise UserError(f"The images are of type {str(batch.dtype).removeprefix('torch.')}: give uint8 or floats.")
    modes = {1: "L", 3: "RGB", 4: "RGBA"}
    pictures = [Image.fromarray(one.permute(1, 2, 0).squeeze(2).numpy(), modes[len(one)]) for one in pixels]
    return to_float(torch.tensor(np.stack([from_pillow(picture) for picture in pictures])))


def _channels_first(values: Tensor) -> Tensor:
    """Return an array as (N, C, H, W). Raise UserError for a shape that is none of SHAPES."""
    shape = tuple(values.shape)
    batch = values[None, None] if values.ndim == 2 else values[None] if values.ndim == 3 else values
    if batch.ndim == 4 and len(batch):
        if batch.shape[1] in CHANNELS and min(batch.shape[2:]) >= MIN_SIDE:
            return batch
        if batch.shape[3] in CHANNELS and min(batch.shape[1:3]) >= MIN_SIDE:
            return batch.permute(0, 3, 1, 2)
    raise UserError(f"Images of shape {shape} are not understood: give {SHAPES}, and H and W of at least {MIN_SIDE}.")
