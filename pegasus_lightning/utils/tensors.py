"""Images as tensors: conversions between uint8 and float, and functions applied in batches."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

IMAGE_SIZE = 32  # height and width of all images
BATCH = 256
MAGENTA = (255, 0, 255)


def to_float(images: Tensor) -> Tensor:
    """Return uint8 images as float32 in [0, 1], in the same memory format."""
    return images.float().div_(255)


def as_float(images: Tensor) -> Tensor:
    """Return images in [0, 1]: uint8 converted by `to_float`, others unchanged."""
    return to_float(images) if images.dtype == torch.uint8 else images


def in_batches(function: Callable[[Tensor], Tensor], inputs: Tensor, batch_size: int = BATCH) -> Tensor:
    """Return function(inputs), computed for `batch_size` inputs at a time."""
    return torch.cat([function(part) for part in inputs.split(batch_size)])


def to_uint8(images: Tensor) -> np.ndarray:
    """Return images (..., 3, H, W), float in [0, 1] or uint8, as a uint8 array (..., H, W, 3): floor(255 x + 1/2).

    Values outside [0, 1] are clamped. A pixel that is NaN or infinite in any channel becomes magenta. uint8 images keep
    their values. Raise ValueError for another shape or dtype.
    """
    if images.ndim < 3 or images.shape[-3] != 3:
        raise ValueError(f"images must be (..., 3, H, W), not {tuple(images.shape)}")
    images = images.detach().cpu().movedim(-3, -1)
    if images.dtype == torch.uint8:
        return images.contiguous().numpy().copy()
    if not images.is_floating_point():
        raise ValueError(f"images must be uint8 or floating point, not {images.dtype}")
    values = images.double().numpy()  # double: exact for every narrower dtype, and numpy has no bfloat16
    finite = np.isfinite(values)
    pixels = np.floor(np.clip(np.where(finite, values, 0.0), 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)
    pixels[~finite.all(axis=-1)] = MAGENTA
    return pixels


def blurred(images: Tensor, size: int) -> Tensor:
    """Return images (B, C, H, W) of the means over squares of `size` (odd) pixels, without what lies outside."""
    return F.avg_pool2d(images, size, stride=1, padding=size // 2, count_include_pad=False)
