"""Whether images, as a set, could be real ones: figures over feature matrices of real and fake images.

Which features is the caller's choice and belongs beside every figure: over a recogniser's features a KID is a kernel
distance, not *the* KID, which stands for Inception's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from pegasus_lightning.utils.randomness import Stream, generator

BLOCK = 2**22  # distances or kernel values held at once: 32 MB in float64


def kid(
    real: Tensor, fake: Tensor, subsets: int = 100, subset_size: int | None = None, seed: int = 0
) -> tuple[float, float]:
    """Kernel distance of two sets of features: mean and standard deviation over random subsets.

    Binkowski et al. 2018 (arXiv 1801.01401), sec. 4: the unbiased squared maximum mean discrepancy with the kernel
    k(x, y) = (x.y / d + 1)^3. Unbiased at every size, so that sets of unequal size compare; 0 for two samples of one
    distribution, and often a little below. The deviation is that of one subset, not the error of the mean.

    That holds for independent sets. An image in both, as when a set is compared with itself, would meet itself and
    pull the figure below 0 by many deviations: no image that is in both goes to both sides of one comparison.

    Args:
        real, fake: (N, d) and (M, d).
        subsets: how many pairs of subsets.
        subset_size: images of each; null: 1000, or half of the smaller set, or fewer where the sets share so many that
            no more are left. A subset that is the whole set would always be the same one, and the spread 0.
        seed: of the subsets.
    """
    random = generator(seed, Stream.BOOTSTRAP)
    names = torch.unique(torch.cat([real, fake]), dim=0, return_inverse=True)[1].cpu()  # equal rows: equal names
    real_names, fake_names = names.split([len(real), len(fake)])
    shared = real_names[torch.isin(real_names, fake_names)].unique()
    orders = []  # of the images that may be in each subset: real, fake, real, fake, ...
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
    """(count, S), 1 where an image is among the first `size` of each order, else 0."""
    chosen = torch.zeros(count, len(orders), dtype=torch.float64)
    return chosen.scatter_(0, torch.stack([order[:size] for order in orders], 1), 1)


def _kernel(products: Tensor, features: Tensor) -> Tensor:
    """k(x, y) = (x.y / d + 1)^3 of inner products of features (N, d)."""
    return (products / features.shape[1] + 1) ** 3


def _kernel_sums(rows: Tensor, row_chosen: Tensor, columns: Tensor, column_chosen: Tensor) -> Tensor:
    """Sum of k over the chosen pairs, for each of S subsets: (N, d), (N, S), (M, d), (M, S) to (S,).

    Each kernel value is computed once for all subsets, which saves time while N x M is less than S subsets' pairs.
    """
    sums = torch.zeros(row_chosen.shape[1], dtype=rows.dtype, device=rows.device)
    count = max(1, BLOCK // len(columns))
    for part, chosen in zip(rows.split(count), row_chosen.split(count), strict=True):
        sums += ((_kernel(part @ columns.T, columns) @ column_chosen) * chosen).sum(0)
    return sums


class _KernelMeans(NamedTuple):
    """Means of k over columns (N,) and over rows (M,), and the mean of its square over all pairs."""

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
    """Each point's mean kernel value with all others of its set: (N, d) to (N,), float64."""
    own = _kernel(features.double().square().sum(1), features)
    return (_kernel_means(features, features).rows * len(features) - own) / (len(features) - 1)


def kid_error(real: Tensor, fake: Tensor, *, real_to_others: Tensor | None = None) -> float:
    """Standard error of the kernel distance between two whole sets, over draws of both.

    From the two leading terms of its variance (Serfling 1980, sec. 5.2.1; Bounliphone et al. 2016, arXiv 1511.04581,
    eq. 13): 4 var(a) / N + 4 var(b) / M + 2 (1 / N + 1 / M)^2 mean(c^2), with a_i the mean kernel of real i with other
    reals less that with the fakes, b_j likewise of fake j, and c the kernel between real and fake, centred in both. The
    sample variances of a and b are lessened by what means over so few others add to them, mean(c^2) (1 / N + 1 / M).
    They vanish where the sets are alike, and the third term is left. (The deviation that `kid` gives is that of a
    subset: several times as much.)

    Args:
        real, fake: (N, d) and (M, d).
        real_to_others: `mean_kernel_to_others(real)`, where it is known already.
    """
    within_real = mean_kernel_to_others(real) if real_to_others is None else real_to_others
    across = _kernel_means(real, fake)
    overall, few = across.rows.mean(), 1 / len(real) + 1 / len(fake)
    centred = across.square - across.rows.square().mean() - across.columns.square().mean() + overall.square()
    first = ((within_real - across.rows).var() - few * centred).clamp_min(0) / len(real)
    second = ((mean_kernel_to_others(fake) - across.columns).var() - few * centred).clamp_min(0) / len(fake)
    return (4 * (first + second) + 2 * few**2 * centred).clamp_min(0).sqrt().item()


def _distances(rows: Tensor, columns: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Euclidean distances (n, M) of some rows at a time to all columns, with the first row's number; float64."""
    # In float64: what cdist gets by a matrix product is off by 1e-3 and more in float32, also between equal points.
    rows, columns = rows.double(), columns.double()
    count = max(1, BLOCK // max(1, len(columns)))
    for start in range(0, len(rows), count):
        yield start, torch.cdist(rows[start : start + count], columns)


def neighbour_radii(features: Tensor, k: int) -> Tensor:
    """Each point's distance to its k-th nearest neighbour within the set, itself left out: (N, d) to (N,)."""
    if not 1 <= k < len(features):
        raise ValueError(f"k={k} neighbours are not to be had among {len(features)} points")
    radii = []
    for start, block in _distances(features, features):
        own = torch.arange(len(block), device=block.device)
        block[own, own + start] = torch.inf
        radii.append(block.topk(k, dim=1, largest=False).values[:, -1])  # a fraction of the time of kthvalue
    return torch.cat(radii)


class PrecisionRecall(NamedTuple):
    """`precision` (M,) bool, of each fake; `recall` (N,) bool, of each real."""

    precision: Tensor
    recall: Tensor


def precision_recall(real: Tensor, fake: Tensor, k: int = 3, *, real_radii: Tensor | None = None) -> PrecisionRecall:
    """Improved precision and recall, image by image (Kynkaanniemi et al. 2019, arXiv 1904.06991, eq. 1 and 2).

    A fake is precise where it lies within the k-nearest-neighbour ball of some real, a real is recalled where it lies
    within that of some fake. The shares grow with the number of balls: compare at equal N and equal M only.

    Args:
        real, fake: features (N, d) and (M, d).
        k: neighbour whose distance is the radius, its own set's.
        real_radii: `neighbour_radii(real, k)`, for one reference and many sets of fakes; null: computed.
    """
    real_radii = neighbour_radii(real, k) if real_radii is None else real_radii
    fake_radii = neighbour_radii(fake, k)
    precise, recalled = [], torch.zeros(len(real), dtype=torch.bool, device=real.device)
    for start, block in _distances(fake, real):
        precise.append((block <= real_radii).any(1))
        recalled |= (block <= fake_radii[start : start + len(block), None]).any(0)
    return PrecisionRecall(torch.cat(precise), recalled)


class DensityCoverage(NamedTuple):
    """`density` (M,), of each fake, from 0, about 1 on average where real and fake are alike (more in the thick of the
    reals); `coverage` (N,) bool, of each real."""

    density: Tensor
    coverage: Tensor


def density_coverage(real: Tensor, fake: Tensor, k: int = 5, *, real_radii: Tensor | None = None) -> DensityCoverage:
    """Density and coverage, image by image (Naeem et al. 2020, arXiv 2002.09797, eq. 4 and 5).

    Density counts, over k, the k-nearest-neighbour balls of the reals that a fake lies in, where precision asks only
    whether there is one, so that a single outlier with its huge ball cannot make every fake precise. A real is covered
    where some fake lies in its ball: fakes bring no balls of their own.

    Args:
        real, fake: features (N, d) and (M, d).
        k: neighbour among the reals whose distance is the radius.
        real_radii: `neighbour_radii(real, k)`, for one reference and many sets of fakes; null: computed.
    """
    radii = neighbour_radii(real, k) if real_radii is None else real_radii
    density, covered = [], torch.zeros(len(real), dtype=torch.bool, device=real.device)
    for _, block in _distances(fake, real):
        inside = block <= radii
        density.append(inside.sum(1) / k)
        covered |= inside.any(0)
    return DensityCoverage(torch.cat(density), covered)
