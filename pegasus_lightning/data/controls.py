"""Controls that pegasi must outperform: two photographs of a pair combined without a model."""

from __future__ import annotations

import torch
from torch import Tensor

from pegasus_lightning.utils.randomness import Stream, generator


def pixel_average(first: Tensor, second: Tensor, ratios: Tensor) -> Tensor:
    """Return (1 - ratio) * first + ratio * second per pixel: two overlaid photographs.

    The images are (N, 3, H, W) in [0, 1], the ratios (N,), 0 to 1.
    """
    return torch.lerp(first, second, ratios.to(first)[:, None, None, None])


def cutmix(first: Tensor, second: Tensor, ratios: Tensor, seed: int = 0) -> Tensor:
    """Return the first images with a square of the second pasted in (CutMix, Yun et al. 2019, arXiv 1905.04899).

    The square lies fully inside. Its area is `ratio` of the image's, with the side rounded to whole pixels; its
    position is uniform, a function of the seed and the index of the image. The images are (N, 3, S, S), the ratios
    (N,), 0 to 1.
    """
    size = first.shape[-1]
    sides = (ratios.cpu().double().clamp(0, 1).sqrt() * size).round()
    places = torch.rand(len(first), 2, generator=generator(seed, Stream.PAIRS, 1), dtype=torch.float64)
    corners = (places * (size - sides + 1)[:, None]).floor()
    line = torch.arange(size)
    rows, columns = (
        (line >= corner[:, None]) & (line < (corner + sides)[:, None]) for corner in (corners[:, 0], corners[:, 1])
    )
    inside = (rows[:, :, None] & columns[:, None, :])[:, None].to(first.device)
    return torch.where(inside, second, first)
