"""95 % intervals of figures over the images of a set, also where images share photographs.

How often they cover the truth is simulated in `tests/evaluate/test_coverage.py`; docs/evaluate.md has the table.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from scipy.special import stdtrit
from torch import Tensor

from pegasus_lightning.runs.scorecards import CONFIDENCE, Figure


class Parentage(NamedTuple):
    """The photographs that each image of a set was made of: indices into those of both classes, int64 (N,) each."""

    first: Tensor
    second: Tensor

    def take(self, chosen: Tensor) -> Parentage:
        """Return the parentage of the images at `chosen`: indices (n,) or a mask (N,)."""
        return Parentage(self.first[chosen], self.second[chosen])


class Uncertainty(NamedTuple):
    """The standard error of a mean, and the quantile of Student's t that half a 95 % interval has of these."""

    error: float
    quantile: float


def uncertainty(values: Tensor, parents: Parentage | None = None) -> Uncertainty:
    """Return the uncertainty of the mean of `values` (N,), N at least 2, over the images.

    Images with a common photograph are not independent. With `parents` the variance is that of Cameron, Gelbach &
    Miller 2011 (doi 10.1198/jbes.2010.07136, eq. 2.6) for clusters in two ways: by the first parent, plus by the
    second, minus by both. It is never below that of independent images.
    """
    deviations = values.detach().cpu().double() - values.double().mean().item()
    count = len(deviations)
    variance, degrees = deviations.square().sum().item() / (count * (count - 1)), count - 1
    if parents is not None:
        first, second = (names.cpu().unique(return_inverse=True)[1] for names in parents)
        both = (first * (int(second.max()) + 1) + second).unique(return_inverse=True)[1]
        by_first, by_second, by_both = (_clustered(deviations, names) for names in (first, second, both))
        variance = max(variance, (by_first + by_second - by_both) / count**2)
        degrees = min(int(first.max()), int(second.max()))
    if degrees < 1:  # one photograph
        return Uncertainty(math.nan, math.nan)
    return Uncertainty(math.sqrt(variance), float(stdtrit(degrees, (1 + CONFIDENCE) / 2)))


def _clustered(deviations: Tensor, names: Tensor) -> float:
    """Return G / (G - 1) times the sum of squares of the G clusters' sums."""
    sums = torch.zeros(int(names.max()) + 1, dtype=torch.float64).index_add_(0, names, deviations)
    return sums.square().sum().item() * len(sums) / max(1, len(sums) - 1)


def mean_figure(values: Tensor, parents: Parentage | None = None) -> Figure:
    """Return the mean of `values` (N,) with its interval; NaN (undefined for an image) is left out.

    Values that are bools are taken as a share, see `share_figure`.
    """
    values = values.detach().cpu()
    if values.dtype == torch.bool:
        return share_figure(values, parents)
    known = ~values.isnan()
    values, parents = values[known].double(), parents and parents.take(known.to(parents.first.device))
    if len(values) < 2:
        return Figure(values.mean().item(), math.nan, math.nan)
    found, mean = uncertainty(values, parents), values.mean().item()
    half = found.quantile * found.error
    return Figure(mean, mean - half, mean + half)


def share_figure(hits: Tensor, parents: Parentage | None = None) -> Figure:
    """Return the share of True in `hits` (N,) with its interval by Wilson 1927, which is right near 0 and 1, too.

    With `parents` the number of images is replaced by that of as many independent images as give the same standard
    error (Korn & Graubard 1998). A share of 0 or 1 has none; the number is then that of the photographs of one class.
    """
    hits = hits.detach().cpu().double()
    share, count = hits.mean().item(), float(len(hits))
    if len(hits) < 2:
        return Figure(share, math.nan, math.nan)
    found = uncertainty(hits, parents)
    quantile = found.quantile
    if found.error > 0:
        count = min(count, share * (1 - share) / found.error**2 + 1)  # count - 1 for independent images
    elif math.isnan(found.error):
        return Figure(share, math.nan, math.nan)
    elif parents is not None:
        count = float(min(len(names.unique()) for names in parents))
    return _wilson(share, count, quantile)


def _wilson(share: float, count: float, quantile: float) -> Figure:
    shrunk = quantile**2 / count
    middle = (share + shrunk / 2) / (1 + shrunk)
    half = math.sqrt(shrunk * (share * (1 - share) + shrunk / 4)) / (1 + shrunk)
    # Rounding must not move an end beyond a share of 0 or 1.
    return Figure(share, min(share, max(0.0, middle - half)), max(share, min(1.0, middle + half)))


def pairs_figure(means: Tensor, parents: Parentage | None = None) -> Figure:
    """Return the mean over all pairs of images, given each image's mean over its pairs (N,), with its interval.

    A U-statistic of degree 2 has the variance 4 var(means) / N: each image is in as many pairs as there are others
    (Hoeffding 1948; Serfling 1980, sec. 5.2.1).
    """
    value = means.double().mean().item()
    if len(means) < 2:
        return Figure(value, math.nan, math.nan)
    found = uncertainty(means, parents)
    half = 2 * found.quantile * found.error
    return Figure(value, value - half, value + half)


def reached_figure(reached: Tensor, parents: Parentage | None = None, *, corrected: bool = True) -> Figure:
    """Return the share of reals that any fake reaches, with its interval over draws of the fakes.

    The variance is by the jackknife over fakes: what a fake's absence changes is the share of reals that it alone
    reaches. The jackknife is above the variance on average (Efron & Stein 1981, doi 10.1214/aos/1176345462, thm. 2),
    and below it once the second-order term is taken off: the sum, over pairs of fakes, of the squared share of reals
    that these two alone reach. With `corrected` half of this term is taken off. The interval is that of a mean, clipped
    to [0, 1]. If no fake reaches a real alone, it is Wilson's for as many draws as there are fakes.

    Args:
        reached: (N, M) bool, whether real n is reached by fake m.
        parents: of the fakes.
        corrected: False where a fake's absence lets other fakes reach farther, which the jackknife does not see.
    """
    reals, fakes = reached.shape
    counts = reached.sum(1)
    alone = reached[counts == 1].sum(0).double().cpu() / reals  # (M,)
    found = uncertainty(alone * fakes, parents)  # a sum over fakes is a mean of M times the values
    variance = found.error**2
    if corrected:
        two = reached[counts == 2].nonzero()[:, 1].reshape(-1, 2).cpu()
        shared = torch.unique(two[:, 0] * fakes + two[:, 1], return_counts=True)[1].double() / reals
        variance = max(0.0, variance - shared.square().sum().item() / 2)
    value, half = (counts > 0).double().mean().item(), found.quantile * math.sqrt(variance)
    if not half > 0:  # no fake reaches a real alone: as if each fake were a draw
        return _wilson(value, float(fakes), found.quantile)
    return Figure(value, max(0.0, value - half), min(1.0, value + half))
