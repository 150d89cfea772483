"""How much an image looks like both of its parents' classes, and how sure a mean over images is."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pegasus_lightning.utils.randomness import Stream, generator

MAX_DRAWS = 2**22  # indices drawn at once: 32 MB


class Recognisability(NamedTuple):
    """`both` (N,) bool: both classes are seen. `chimera` (N,): 2 min(p_first, p_second), 0 to 2, above 1 where both are
    likelier than not."""

    both: Tensor
    chimera: Tensor


def recognisability(probabilities: Tensor, threshold: float = 0.5) -> Recognisability:
    """Whether both classes are recognised in each image, and how strongly the weaker is.

    Args:
        probabilities: (N, 2), each in [0, 1] by itself: outputs of two sigmoids, not of one softmax (which can never
            give both classes more than one half).
        threshold: that both probabilities must exceed.
    """
    if probabilities.ndim != 2 or probabilities.shape[1] != 2:
        raise ValueError(f"probabilities must be (N, 2), not {tuple(probabilities.shape)}")
    weaker = probabilities.amin(1)
    return Recognisability(weaker > threshold, 2 * weaker)


def bootstrap_interval(
    values: Tensor, confidence: float = 0.95, resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Where the mean of `values` lies with this confidence: (low, high), the percentile bootstrap over images.

    Efron & Tibshirani 1993, sec. 13.3: the quantiles (1 - confidence) / 2 and (1 + confidence) / 2 of the means of
    resamples drawn with replacement. It knows of the chance in these images alone: not of a training's seed, and not of
    images that share a parent and so are no independent draws.

    Args:
        values: (N,), numbers or bools; NaN (undefined for an image) is left out. With nothing left, both ends are NaN.
        confidence: in (0, 1).
        resamples: how many.
        seed: of the draws; the same values give the same interval.
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
