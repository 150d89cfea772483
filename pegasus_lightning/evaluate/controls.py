"""What pegasi must be better than: two photographs of a pair put together with no model at all."""

from __future__ import annotations

import torch
from torch import Tensor

from pegasus_lightning.utils.randomness import Stream, generator


def pixel_average(first: Tensor, second: Tensor, ratios: Tensor) -> Tensor:
    """(1 - ratio) * first + ratio * second, pixel by pixel: two overlaid photographs.

    Args:
        first, second: (N, 3, H, W) in [0, 1].
        ratios: (N,), 0 to 1.
    """
    return torch.lerp(first, second, ratios.to(first)[:, None, None, None])


def cutmix(first: Tensor, second: Tensor, ratios: Tensor, seed: int = 0) -> Tensor:
    """A square of the second image pasted into the first (Yun et al. 2019, arXiv 1905.04899), all of it inside.

    Its area is `ratio` of the image's, to whole pixels of its side; its place is uniform, a function of the seed
    and the image's number.

    Args:
        first, second: (N, 3, S, S).
        ratios: (N,), 0 to 1.
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
