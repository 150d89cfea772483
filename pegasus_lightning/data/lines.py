"""White lines on black from the centre at any angle: a data set with known correct interpolations.

The synthetic data of Berthelot et al. 2018 (arXiv 1807.07543, sec. 3.2), after the authors' generator: an antialiased
ray of 15 pixels from the centre of 32 x 32 at an angle in [0, 2 pi), two pixels wide across its major axis (so lines at
45 degrees are thinnest). Differences: three equal channels, values from 0 to 1 instead of -1 to 1, and rays that pass
exactly through the centre, where the authors' diagonal rays are up to a pixel off. A mirrored line is therefore a
valid line, and random flips are safe.

The two classes are `up`, angles in [0, pi), and `down`, [pi, 2 pi). A horizontal flip preserves both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pegasus_lightning.data.common import SPLITS, check_split, index_classes
from pegasus_lightning.utils.tensors import IMAGE_SIZE

CLASSES = ("up", "down")
LENGTH = IMAGE_SIZE / 2 - 1
WIDTH = 2.0
CHUNK = 1024  # lines drawn at once: 8 MB per temporary tensor


def _overlap(low: Tensor, high: Tensor) -> Tensor:
    """Return the length of [low, high] within each pixel [i, i + 1]: bounds (...) to (..., IMAGE_SIZE)."""
    pixel = torch.arange(IMAGE_SIZE, dtype=low.dtype)
    return (torch.minimum(high[..., None], pixel + 1) - torch.maximum(low[..., None], pixel)).clamp_min(0)


def _coverage(angles: Tensor) -> Tensor:
    x, y = angles.cos(), -angles.sin()  # rows count downward, angles are counterclockwise from the right
    level = x.abs() >= y.abs()
    major, minor = torch.where(level, x, y), torch.where(level, y, x)
    centre = torch.full_like(major, IMAGE_SIZE / 2)
    tip = centre + LENGTH * major
    along = _overlap(torch.minimum(centre, tip), torch.maximum(centre, tip))  # (N, IMAGE_SIZE)
    steps = torch.arange(IMAGE_SIZE, dtype=angles.dtype) + 0.5 - IMAGE_SIZE / 2
    middle = IMAGE_SIZE / 2 + steps * (minor / major)[:, None]  # of the stroke, at each pixel along it
    across = _overlap(middle - WIDTH / 2, middle + WIDTH / 2)  # (N, along, across)
    strokes = along[:, :, None] * across
    return torch.where(level[:, None, None], strokes.transpose(1, 2), strokes).float()


def line_images(angles: Tensor) -> Tensor:
    """Return the share of each pixel that the line covers, (N, 32, 32) float32 in [0, 1].

    `angles` (N,) are in radians, counterclockwise; 0 points to the right, pi / 2 to the top.
    """
    return torch.cat([_coverage(part) for part in angles.double().split(CHUNK)])


def _angles(kind: int, count: int, seed: int, stream: int) -> Tensor:
    turns = np.random.default_rng((seed, stream, kind)).random(count)  # a prefix of every longer draw
    return torch.from_numpy(turns + kind) * math.pi


def load(classes: Sequence[str], split: str, count_per_class: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return images uint8 (N, 3, 32, 32) and labels int64 (N,), indices into `classes`; N = classes x count.

    Images are ordered by class as given. Image i of a class depends only on (seed, split, class, i). The splits use
    independent random streams. Raise UserError for an unknown class or split.
    """
    check_split(split)
    kinds = index_classes(classes, CLASSES, "lines")
    angles = torch.cat([_angles(kind, count_per_class, seed, SPLITS.index(split)) for kind in kinds])
    grey = (line_images(angles) * 255).round().byte()
    return grey[:, None].repeat(1, 3, 1, 1), torch.arange(len(kinds)).repeat_interleave(count_per_class)
