"""Recognisability of both parent classes in an image, and bootstrap intervals of means over images."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pegasus_lightning.utils.randomness import Stream, generator

MAX_DRAWS = 2**22  # most indices drawn at once: 32 MB


class Recognisability(NamedTuple):
    """`both` (N,) bool: both classes are recognised. `chimera` (N,): 2 min(p_first, p_second) in [0, 2], above 1 if
    both probabilities exceed 0.5."""

    both: Tensor
    chimera: Tensor


def recognisability(probabilities: Tensor, threshold: float = 0.5) -> Recognisability:
    """Return whether both classes are recognised in each image, and twice the smaller probability.

    Args:
        probabilities: (N, 2), outputs of two independent sigmoids; a softmax never gives both classes more than 0.5.
        threshold: value that both probabilities must exceed.
    """
    if probabilities.ndim != 2 or probabilities.shape[1] != 2:
        raise ValueError(f"probabilities must be (N, 2), not {tuple(probabilities.shape)}")
    weaker = probabilities.amin(1)
    return Recognisability(weaker > threshold, 2 * weaker)


def bootstrap_interval(
    values: Tensor, confidence: float = 0.95, resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Return the percentile bootstrap interval (low, high) of the mean of `values` over images.

    Efron & Tibshirani 1993, sec. 13.3: the quantiles (1 - confidence) / 2 and (1 + confidence) / 2 of the means of
    resamples drawn with replacement. The interval covers the choice of images only: neither the training seed nor the
    dependence between images that share a parent.

    Args:
        values: (N,), numbers or bools. NaN (undefined for an image) is left out; without values both ends are NaN.
        confidence: in (0, 1).
        seed: seed of the draws; equal arguments give equal intervals.
    """
    values = values.detach().cpu().double()
    values = values[~values.isnan()]
    if not len(values):
        return float("nan"), float("nan")
    random = generator(seed, Stream.BOOTSTRAP)
    rows = max(1, MAX_DRAWS // len(values))
    means = [
        values[torch.randint(len(values), (min(rows, resamples - done), len(values)), generator=random)].mean(1)
        for done in range(0, resamples, rows)
    ]
    tails = torch.tensor([(1 - confidence) / 2, (1 + confidence) / 2], dtype=torch.float64)
    low, high = torch.quantile(torch.cat(means), tails).tolist()
    return low, high
