"""Whether images are new: how far they lie from the training images, from each other and from their parents.

Distances are root mean squares over the elements of one image (pixels in [0, 1], or features), so that they do not
depend on how many there are.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pegasus_lightning.utils.tensors import to_float

BLOCK = 2**22  # distances held at once
CANDIDATES = 4  # nearest by the fast computation, told apart by the exact one


def _rows(items: Tensor) -> Tensor:
    """(N, ...) to (N, elements); uint8 images to [0, 1]."""
    return (to_float(items) if items.dtype == torch.uint8 else items).flatten(1)


def rmse(first: Tensor, second: Tensor) -> Tensor:
    """Root mean square difference over the elements of each pair of images: (N, ...) and (N, ...) to (N,)."""
    return (_rows(first) - _rows(second)).square().mean(1).sqrt()


class Nearest(NamedTuple):
    """The nearest reference item to each sample: `distances` (N,) and `indices` (N,) int64."""

    distances: Tensor
    indices: Tensor


def nearest(samples: Tensor, reference: Tensor, *, mirrors: bool = False) -> Nearest:
    """The nearest reference item to each sample, by root mean square difference.

    All distances come from matrix products, |s|^2 - 2 s.r + |r|^2, which float32 gets right to about 1e-4 only: the
    few nearest are measured again by their difference, so that an equal item lies at exactly 0.

    Args:
        samples: (N, ...), images in [0, 1], uint8 images or features.
        reference: (M, ...), of the same kind: the training images.
        mirrors: measure to each reference image (C, H, W) or to its mirror image, whichever is nearer: trained with
            flips, a model has seen both.
    """
    kept, negated = _sides(reference, mirrors)
    middle = kept.mean(0)  # smaller norms lose fewer digits
    kept = kept - middle
    norms = kept.square().sum(1) + negated.square().sum(1)
    distances, indices = [], []
    for block in samples.split(max(1, BLOCK // len(reference))):
        own_kept, own_negated = _sides(block, mirrors)
        # Highest where the distance is least.
        closeness = (own_kept - middle) @ kept.T + (own_negated @ negated.T).abs() - 0.5 * norms
        candidates = closeness.topk(min(CANDIDATES, len(reference)), dim=1).indices
        exact = torch.stack([_least_rmse(block, reference[column], mirrors) for column in candidates.T], 1)
        best = exact.min(1)
        distances.append(best.values)
        indices.append(candidates.gather(1, best.indices[:, None])[:, 0])
    return Nearest(torch.cat(distances), torch.cat(indices))


def _sides(items: Tensor, mirrors: bool) -> tuple[Tensor, Tensor]:
    """What a mirror keeps of images (N, C, H, W) and what it negates: rows whose squared norms add up to the image's.

    The inner product of two images is that of the kept parts plus that of the negated ones, with a mirror image it is
    less that: one product for both, at half the cost. Without mirrors all is kept: (N, elements) and (N, 0).
    """
    rows = _rows(items)
    if not mirrors:
        return rows, rows[:, :0]
    images = rows.reshape(items.shape)
    half = images.shape[3] // 2
    left, right = images[..., :half], images.flip(3)[..., :half]
    middle = images[..., half : images.shape[3] - half]  # of an odd width
    kept = torch.cat([(left + right) * 0.5**0.5, middle], 3)
    return kept.flatten(1), ((left - right) * 0.5**0.5).flatten(1)


def _least_rmse(samples: Tensor, others: Tensor, mirrors: bool) -> Tensor:
    """`rmse` of each pair, to the mirror image where that is nearer."""
    straight = rmse(samples, others)
    return torch.minimum(straight, rmse(samples, others.flip(3))) if mirrors else straight


def memorised(sample_distances: Tensor, test_distances: Tensor, quantile: float = 0.01) -> Tensor:
    """Which samples lie as near to training as only the nearest few real test images do, (N,) bool.

    By construction about `quantile` of the test images themselves do, and so does a generator that is as new as they
    are; training images passed off as samples all do. A share well above that of the test images is the alarm for
    memorisation. (It exceeds `quantile` where more of them equal a training image, as a tenth of `lines` does. Blurred
    images lie nearer to everything than sharp ones: look at the neighbours before you call it theft.)

    Args:
        sample_distances, test_distances: (N,) and (M,), of `nearest` to the same training images.
        quantile: share of test images that count as too near.
    """
    return sample_distances <= torch.quantile(test_distances.double(), quantile).to(sample_distances.dtype)


def distance_to_others(samples: Tensor) -> Tensor:
    """Each sample's mean distance to all others, (N,); their mean is the mean pairwise distance, 0 for a mode collapse.

    Args:
        samples: (N, ...), N at least 2: images in [0, 1], uint8 images or features.
    """
    rows = _rows(samples).double()  # in float32 equal images would lie up to 1e-3 apart
    if len(rows) < 2:
        raise ValueError("one sample alone has no distance to others")
    sums = torch.cat([torch.cdist(part, rows).sum(1) for part in rows.split(max(1, BLOCK // len(rows)))])
    return sums / ((len(rows) - 1) * rows.shape[1] ** 0.5)


class ParentDistances(NamedTuple):
    """Root mean square distances (N,) to the first parent, to the second, and to the nearer."""

    first: Tensor
    second: Tensor
    nearer: Tensor


def parent_distances(images: Tensor, first: Tensor, second: Tensor) -> ParentDistances:
    """How far each image lies from its two parents.

    Args:
        images, first, second: (N, 3, 32, 32) each, in [0, 1] or uint8.
    """
    to_first, to_second = rmse(images, first), rmse(images, second)
    return ParentDistances(to_first, to_second, torch.minimum(to_first, to_second))
