"""Uniqueness metrics: distances of images from the training images, from each other and from their parents.

Distances are root mean squares over the elements of an image (pixels in [0, 1], or features), so they do not depend
on the number of elements.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pegasus_lightning.utils.tensors import as_float

BLOCK = 2**22  # most distances in memory at once
CANDIDATES = 4  # nearest items by the fast computation, ranked by the exact one


def _rows(items: Tensor) -> Tensor:
    """Return items (N, ...) as (N, elements); uint8 images are scaled to [0, 1]."""
    return as_float(items).flatten(1)


def rmse(first: Tensor, second: Tensor) -> Tensor:
    """Return the root mean square difference of each pair of images: (N, ...) and (N, ...) to (N,)."""
    return (_rows(first) - _rows(second)).square().mean(1).sqrt()


class Nearest(NamedTuple):
    """The nearest reference item to each sample: `distances` (N,) and `indices` (N,) int64."""

    distances: Tensor
    indices: Tensor


def nearest(samples: Tensor, reference: Tensor, *, mirrors: bool = False) -> Nearest:
    """Return the nearest reference item to each sample, by root mean square difference.

    Matrix products, |s|^2 - 2 s.r + |r|^2, give all distances, but in float32 only to about 1e-4. The distances of the
    nearest few items are recomputed from their differences, so an equal item has a distance of exactly 0.

    Args:
        samples: (N, ...), images in [0, 1], uint8 images or features.
        reference: (M, ...) of the same kind, the training images.
        mirrors: use the smaller of the distances to a reference image (C, H, W) and to its mirror image; a model
            trained with flips has been trained on both.
    """
    kept, negated = _sides(reference, mirrors)
    middle = kept.mean(0)  # centring reduces the rounding error
    kept = kept - middle
    norms = kept.square().sum(1) + negated.square().sum(1)
    distances, indices = [], []
    for block in samples.split(max(1, BLOCK // len(reference))):
        own_kept, own_negated = _sides(block, mirrors)
        # Largest for the smallest distance.
        closeness = (own_kept - middle) @ kept.T + (own_negated @ negated.T).abs() - 0.5 * norms
        candidates = closeness.topk(min(CANDIDATES, len(reference)), dim=1).indices
        exact = torch.stack([_least_rmse(block, reference[column], mirrors) for column in candidates.T], 1)
        best = exact.min(1)
        distances.append(best.values)
        indices.append(candidates.gather(1, best.indices[:, None])[:, 0])
    return Nearest(torch.cat(distances), torch.cat(indices))


def _sides(items: Tensor, mirrors: bool) -> tuple[Tensor, Tensor]:
    """Split images (N, C, H, W) into the parts that mirroring keeps and negates; their squared norms add up.

    The inner product of two images is that of the kept parts plus that of the negated parts. With a mirror image it is
    the difference, so both cost one product. Without mirrors everything is kept: (N, elements) and (N, 0).
    """
    rows = _rows(items)
    if not mirrors:
        return rows, rows[:, :0]
    images = rows.reshape(items.shape)
    half = images.shape[3] // 2
    left, right = images[..., :half], images.flip(3)[..., :half]
    middle = images[..., half : images.shape[3] - half]  # the middle column of an odd width
    kept = torch.cat([(left + right) * 0.5**0.5, middle], 3)
    return kept.flatten(1), ((left - right) * 0.5**0.5).flatten(1)


def _least_rmse(samples: Tensor, others: Tensor, mirrors: bool) -> Tensor:
    """Return `rmse` of each pair, or that to the mirror image if it is smaller."""
    straight = rmse(samples, others)
    return torch.minimum(straight, rmse(samples, others.flip(3))) if mirrors else straight


def distance_to_others(samples: Tensor) -> Tensor:
    """Return each sample's mean distance to all others, (N,); the mean over samples is 0 for a mode collapse.

    The samples are (N, ...), N at least 2: images in [0, 1], uint8 images or features.
    """
    rows = _rows(samples).double()  # in float32 equal images have distances of up to 1e-3
    if len(rows) < 2:
        raise ValueError("distances to other samples need at least 2 samples")
    sums = torch.cat([torch.cdist(part, rows).sum(1) for part in rows.split(max(1, BLOCK // len(rows)))])
    return sums / ((len(rows) - 1) * rows.shape[1] ** 0.5)


class ParentDistances(NamedTuple):
    """Root mean square distances (N,) to the first parent, to the second, and to the nearer."""

    first: Tensor
    second: Tensor
    nearer: Tensor


def parent_distances(images: Tensor, first: Tensor, second: Tensor) -> ParentDistances:
    """Return the distance of each image from its two parents; all are (N, 3, 32, 32), in [0, 1] or uint8."""
    to_first, to_second = rmse(images, first), rmse(images, second)
    return ParentDistances(to_first, to_second, torch.minimum(to_first, to_second))
