"""Realism metrics of a set of images: distances between the feature matrices of real and fake images.

The caller chooses the features and must report them: KID without qualification means KID over Inception features; over
a recogniser's features it is a kernel distance only.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from pegasus_lightning.evaluate.metrics.intervals import Parentage, Uncertainty, uncertainty
from pegasus_lightning.utils.randomness import Stream, generator

BLOCK = 2**22  # most distances or kernel values in memory at once: 32 MB in float64


def kid(
    real: Tensor, fake: Tensor, subsets: int = 100, subset_size: int | None = None, seed: int = 0
) -> tuple[float, float]:
    """Return the kernel distance of two feature sets: mean and standard deviation over random subsets.

    Binkowski et al. 2018 (arXiv 1801.01401), sec. 4: the unbiased squared maximum mean discrepancy with the kernel
    k(x, y) = (x.y / d + 1)^3. It is unbiased at every size, so sets of unequal size are comparable. Its expectation is
    0 for two samples of one distribution; estimates may be slightly negative. The deviation is that of one subset, not
    the error of the mean. Unbiasedness needs independent sets: an image in both would be compared with itself and lower
    the result by many deviations, so an image in both sets never enters both sides of one comparison.

    Args:
        real, fake: (N, d) and (M, d).
        subsets: number of pairs of subsets.
        subset_size: images in each subset; null: the smallest of 1000, half of the smaller set, and the number of
            images that remain if the sets share images. Whole sets as subsets would give a deviation of 0.
        seed: seed of the subsets.

    Raises:
        ValueError: `subset_size` is below 2 or above the number of available images.
    """
    random = generator(seed, Stream.BOOTSTRAP)
    names = torch.unique(torch.cat([real, fake]), dim=0, return_inverse=True)[1].cpu()  # equal rows get equal numbers
    real_names, fake_names = names.split([len(real), len(fake)])
    shared = real_names[torch.isin(real_names, fake_names)].unique()
    orders = []  # shuffled images available to each subset: real, fake, real, fake, ...
    for _ in range(subsets):
        as_real, as_fake = shared[torch.randperm(len(shared), generator=random)].tensor_split(2)
        for own, barred in ((real_names, as_fake), (fake_names, as_real)):
            allowed = torch.nonzero(~torch.isin(own, barred)).flatten()
            orders.append(allowed[torch.randperm(len(allowed), generator=random)])
    most = min(len(order) for order in orders)
    size = subset_size or min(1000, len(real) // 2, len(fake) // 2, most)
    if not 2 <= size <= most:
        raise ValueError(f"subset_size={size} must be at least 2 and at most {most} for these sets")
    chosen_real = _membership(orders[0::2], size, len(real)).to(real.device)
    chosen_fake = _membership(orders[1::2], size, len(fake)).to(fake.device)
    real, fake = real.double(), fake.double()
    within = sum(
        _kernel_sums(features, chosen, features, chosen) - _kernel(features.square().sum(1), features) @ chosen
        for features, chosen in ((real, chosen_real), (fake, chosen_fake))
    ) / (size * (size - 1))
    across = _kernel_sums(real, chosen_real, fake, chosen_fake) / size**2
    values = within - 2 * across
    return values.mean().item(), values.std(correction=0).item()


def _membership(orders: list[Tensor], size: int, count: int) -> Tensor:
    """Return (count, S): 1 for the first `size` images of each order, else 0."""
    chosen = torch.zeros(count, len(orders), dtype=torch.float64)
    return chosen.scatter_(0, torch.stack([order[:size] for order in orders], 1), 1)


def _kernel(products: Tensor, features: Tensor) -> Tensor:
    """Return k(x, y) = (x.y / d + 1)^3 from inner products of features (N, d)."""
    return (products / features.shape[1] + 1) ** 3


def _kernel_sums(rows: Tensor, row_chosen: Tensor, columns: Tensor, column_chosen: Tensor) -> Tensor:
    """Return the sum of k over the chosen pairs of each of S subsets: (N, d), (N, S), (M, d), (M, S) to (S,).

    Each kernel value is computed once for all subsets: faster while N x M is below the number of pairs in S subsets.
    """
    sums = torch.zeros(row_chosen.shape[1], dtype=rows.dtype, device=rows.device)
    count = max(1, BLOCK // len(columns))
    for part, chosen in zip(rows.split(count), row_chosen.split(count), strict=True):
        sums += ((_kernel(part @ columns.T, columns) @ column_chosen) * chosen).sum(0)
    return sums


class _KernelMeans(NamedTuple):
    """Mean of k for each row (N,), for each column (M,), and the mean of k^2 over all pairs."""

    rows: Tensor
    columns: Tensor
    square: Tensor


def _kernel_means(rows: Tensor, columns: Tensor) -> _KernelMeans:
    rows, columns = rows.double(), columns.double()
    means: list[Tensor] = []
    sums = torch.zeros(len(columns), dtype=torch.float64, device=columns.device)
    squares = sums.new_zeros(())
    for part in rows.split(max(1, BLOCK // len(columns))):
        values = _kernel(part @ columns.T, columns)
        means.append(values.mean(1))
        sums += values.sum(0)
        squares = squares + values.square().sum()
    return _KernelMeans(torch.cat(means), sums / len(rows), squares / (len(rows) * len(columns)))


def mean_kernel_to_others(features: Tensor) -> Tensor:
    """Return each point's mean kernel value with all other points of the set: (N, d) to (N,), float64."""
    own = _kernel(features.double().square().sum(1), features)
    return (_kernel_means(features, features).rows * len(features) - own) / (len(features) - 1)


def kid_uncertainty(
    real: Tensor, fake: Tensor, *, real_to_others: Tensor | None = None, parents: Parentage | None = None
) -> Uncertainty:
    """Return the uncertainty of the kernel distance between two whole sets, over draws of both.

    The two leading terms of its variance (Serfling 1980, sec. 5.2.1; Bounliphone et al. 2016, arXiv 1511.04581, eq. 13)
    are 4 var(a) / N + 4 var(b) / M + 2 (1 / N + 1 / M)^2 mean(c^2). a_i is the mean kernel of real i with the other
    reals minus that with the fakes; b_j is the mean kernel of fake j with the other fakes minus that with the reals;
    c is the kernel between real and fake, centred in both. The sample variances of a and b are corrected for the noise
    of means over finite sets by subtracting mean(c^2) (1 / N + 1 / M). For equal distributions both vanish and the
    third term remains. The deviation of `kid` is that of a subset and several times as large.

    The sets are (N, d) and (M, d); `real_to_others` is `mean_kernel_to_others(real)`, if already computed; `parents`
    are the photographs that the fakes share.
    """
    within_real = mean_kernel_to_others(real) if real_to_others is None else real_to_others
    across = _kernel_means(real, fake)
    overall, few = across.rows.mean(), 1 / len(real) + 1 / len(fake)
    centred = across.square - across.rows.square().mean() - across.columns.square().mean() + overall.square()
    first = ((within_real - across.rows).var() - few * centred).clamp_min(0) / len(real)
    of_fakes = uncertainty(mean_kernel_to_others(fake) - across.columns, parents)
    second = (of_fakes.error**2 - few * centred / len(fake)).clamp_min(0)
    error = (4 * (first + second) + 2 * few**2 * centred).clamp_min(0).sqrt().item()
    return Uncertainty(error, of_fakes.quantile)


def _distances(rows: Tensor, columns: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield (index of the first row, Euclidean distances (n, M) to all columns) for blocks of rows; float64."""
    # In float32 cdist's matrix product is off by 1e-3 and more, also between equal points.
    rows, columns = rows.double(), columns.double()
    count = max(1, BLOCK // max(1, len(columns)))
    for start in range(0, len(rows), count):
        yield start, torch.cdist(rows[start : start + count], columns)


def neighbour_radii(features: Tensor, k: int) -> Tensor:
    """Return each point's distance to its k-th nearest other point in the set: (N, d) to (N,)."""
    if not 1 <= k < len(features):
        raise ValueError(f"k={k} neighbours must be at least 1 and fewer than the {len(features)} points")
    radii = []
    for start, block in _distances(features, features):
        own = torch.arange(len(block), device=block.device)
        block[own, own + start] = torch.inf
        radii.append(block.topk(k, dim=1, largest=False).values[:, -1])  # much faster than kthvalue
    return torch.cat(radii)


class PrecisionRecall(NamedTuple):
    """`precision` of each fake, (M,) bool; `reached`: whether a real lies in the ball of a fake, (N, M) bool."""

    precision: Tensor
    reached: Tensor

    @property
    def recall(self) -> Tensor:
        """Whether each real is recalled, (N,) bool."""
        return self.reached.any(1)


def precision_recall(real: Tensor, fake: Tensor, k: int = 3, *, real_radii: Tensor | None = None) -> PrecisionRecall:
    """Return improved precision and recall per image (Kynkaanniemi et al. 2019, arXiv 1904.06991, eq. 1 and 2).

    A fake is precise if it lies in the k-nearest-neighbour ball of some real. A real is recalled if it lies in that of
    some fake. Both shares grow with the number of balls: compare at equal N and equal M only.

    Args:
        real, fake: features (N, d) and (M, d).
        k: a ball's radius is the distance to the k-th neighbour within the centre's own set.
        real_radii: `neighbour_radii(real, k)`, to reuse for many sets of fakes; null: computed.
    """
    real_radii = neighbour_radii(real, k) if real_radii is None else real_radii
    fake_radii = neighbour_radii(fake, k)
    precise, reached = [], []
    for start, block in _distances(fake, real):
        precise.append((block <= real_radii).any(1))
        reached.append(block <= fake_radii[start : start + len(block), None])
    return PrecisionRecall(torch.cat(precise), torch.cat(reached).T)


class DensityCoverage(NamedTuple):
    """`density` of each fake, (M,), at least 0 and about 1 on average for equal distributions (more where reals are
    dense); `reached`: whether a fake lies in the ball of a real, (N, M) bool."""

    density: Tensor
    reached: Tensor

    @property
    def coverage(self) -> Tensor:
        """Whether each real is covered, (N,) bool."""
        return self.reached.any(1)


def density_coverage(real: Tensor, fake: Tensor, k: int = 5, *, real_radii: Tensor | None = None) -> DensityCoverage:
    """Return density and coverage per image (Naeem et al. 2020, arXiv 2002.09797, eq. 4 and 5).

    Density is the number of k-nearest-neighbour balls of reals that contain a fake, over k. Unlike precision, a single
    outlier with a huge ball cannot make every fake score high. A real is covered if some fake lies in its ball; fakes
    have no balls.

    Args:
        real, fake: features (N, d) and (M, d).
        k: a ball's radius is the distance to the k-th neighbour among the reals.
        real_radii: `neighbour_radii(real, k)`, to reuse for many sets of fakes; null: computed.
    """
    radii = neighbour_radii(real, k) if real_radii is None else real_radii
    inside = torch.cat([block <= radii for _, block in _distances(fake, real)])
    return DensityCoverage(inside.sum(1) / k, inside.T)
