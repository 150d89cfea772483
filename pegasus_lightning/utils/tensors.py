"""Images as tensors: uint8 or float, and functions of many of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

IMAGE_SIZE = 32
BATCH = 256
MAGENTA = (255, 0, 255)


def to_float(images: Tensor) -> Tensor:
    """uint8 to float32 in [0, 1], the memory format kept."""
    return images.float().div_(255)


def in_batches(function: Callable[[Tensor], Tensor], inputs: Tensor, batch_size: int = BATCH) -> Tensor:
    """function(inputs), so many at a time."""
    return torch.cat([function(part) for part in inputs.split(batch_size)])


def to_uint8(images: Tensor) -> np.ndarray:
    """(..., 3, H, W) float in [0, 1] or uint8, on any device, to (..., H, W, 3) uint8 as floor(255 x + 1/2).

    Values outside [0, 1] are clamped; a pixel with a NaN or an infinity in any channel becomes magenta, so that it
    is seen. uint8 passes unchanged. Raises ValueError for another shape or dtype.
    """
    if images.ndim < 3 or images.shape[-3] != 3:
        raise ValueError(f"images must be (..., 3, H, W), not {tuple(images.shape)}")
    images = images.detach().cpu().movedim(-3, -1)
    if images.dtype == torch.uint8:
        return images.contiguous().numpy().copy()
    if not images.is_floating_point():
        raise ValueError(f"images must be uint8 or floating point, not {images.dtype}")
    values = images.double().numpy()  # double: exact for every narrower dtype, and numpy has no bfloat16
    seen = np.isfinite(values)
    pixels = np.floor(np.clip(np.where(seen, values, 0.0), 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)
    pixels[~seen.all(axis=-1)] = MAGENTA
    return pixels
