"""Whether images, as a set, could be real ones: figures over feature matrices of real and fake images.

Which features is the caller's choice and belongs beside every figure: over a recogniser's features a KID is a kernel
distance, not *the* KID, which stands for Inception's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics.image.kid import poly_mmd

from pegasus_lightning.randomness import Stream, generator

BLOCK = 2**22  # distances held at once: 32 MB in float64


def kid(
    real: Tensor, fake: Tensor, subsets: int = 100, subset_size: int | None = None, seed: int = 0
) -> tuple[float, float]:
    """Kernel distance of two sets of features: mean and standard deviation over random subsets.

    Binkowski et al. 2018 (arXiv 1801.01401), sec. 4, as torchmetrics computes it: the unbiased squared maximum mean
    discrepancy with the kernel k(x, y) = (x.y / d + 1)^3. Unbiased at every size, so that sets of unequal size compare;
    0 for two samples of one distribution, and often a little below. The deviation is that of one subset, not the error
    of the mean.

    That holds for independent sets. An image in both, as when a set is compared with itself, would meet itself and
    pull the figure below 0 by many deviations: no image that is in both goes to both sides of one comparison.

    Args:
        real, fake: (N, d) and (M, d).
        subsets: how many pairs of subsets.
        subset_size: images of each; null: 1000, or half of the smaller set. A subset that is the whole set would always
            be the same one, and the spread 0.
        seed: of the subsets.
    """
    size = subset_size or min(1000, len(real) // 2, len(fake) // 2)
    random = generator(seed, Stream.BOOTSTRAP)
    real, fake = real.float(), fake.float()  # in float64 twice the time, for digits far below the spread
    names = torch.unique(torch.cat([real, fake]), dim=0, return_inverse=True)[1].cpu()  # equal rows: equal names
    real_names, fake_names = names.split([len(real), len(fake)])
    shared = real_names[torch.isin(real_names, fake_names)].unique()
    values = []
    for _ in range(subsets):
        as_real, as_fake = shared[torch.randperm(len(shared), generator=random)].tensor_split(2)
        parts = []
        for features, own, barred in ((real, real_names, as_fake), (fake, fake_names, as_real)):
            allowed = torch.nonzero(~torch.isin(own, barred)).flatten()
            if not 2 <= size <= len(allowed):
                raise ValueError(f"subset_size={size} must be at least 2 and at most {len(allowed)} for these sets")
            parts.append(features[allowed[torch.randperm(len(allowed), generator=random)[:size]].to(features.device)])
        values.append(poly_mmd(parts[0], parts[1]))
    spread = torch.stack(values)
    return spread.mean().item(), spread.std(correction=0).item()


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
        radii.append(block.kthvalue(k, dim=1).values)
    return torch.cat(radii)


class PrecisionRecall(NamedTuple):
    """`precision` (M,) bool, of each fake; `recall` (N,) bool, of each real."""

    precision: Tensor
    recall: Tensor


def precision_recall(real: Tensor, fake: Tensor, k: int = 3) -> PrecisionRecall:
    """Improved precision and recall, image by image (Kynkaanniemi et al. 2019, arXiv 1904.06991, eq. 1 and 2).

    A fake is precise where it lies within the k-nearest-neighbour ball of some real, a real is recalled where it lies
    within that of some fake. The shares grow with the number of balls: compare at equal N and equal M only.

    Args:
        real, fake: features (N, d) and (M, d).
        k: neighbour whose distance is the radius, its own set's.
    """
    real_radii, fake_radii = neighbour_radii(real, k), neighbour_radii(fake, k)
    within_real = [(block <= real_radii).any(1) for _, block in _distances(fake, real)]
    within_fake = [(block <= fake_radii).any(1) for _, block in _distances(real, fake)]
    return PrecisionRecall(torch.cat(within_real), torch.cat(within_fake))


class DensityCoverage(NamedTuple):
    """`density` (M,), of each fake, from 0, about 1 on average where real and fake are alike (more in the thick of the
    reals); `coverage` (N,) bool, of each real."""

    density: Tensor
    coverage: Tensor


def density_coverage(real: Tensor, fake: Tensor, k: int = 5) -> DensityCoverage:
    """Density and coverage, image by image (Naeem et al. 2020, arXiv 2002.09797, eq. 4 and 5).

    Density counts, over k, the k-nearest-neighbour balls of the reals that a fake lies in, where precision asks only
    whether there is one, so that a single outlier with its huge ball cannot make every fake precise. A real is covered
    where some fake lies in its ball: fakes bring no balls of their own.

    Args:
        real, fake: features (N, d) and (M, d).
        k: neighbour among the reals whose distance is the radius.
    """
    radii = neighbour_radii(real, k)
    density = torch.cat([(block <= radii).sum(1) / k for _, block in _distances(fake, real)])
    nearest = torch.cat([block.amin(1) for _, block in _distances(real, fake)])
    return DensityCoverage(density, nearest <= radii)
