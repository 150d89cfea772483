"""White lines from the centre at any angle, on black: the one data set whose interpolations have a right answer.

The synthetic data of Berthelot et al. 2018 (arXiv 1807.07543, sec. 3.2), after the authors' generator: a ray of 15
pixels from the centre of 32 x 32 toward an angle in [0, 2 pi), two pixels wide across the axis it runs nearer to (so
45 degrees is the thinnest), antialiased. Three equal channels here; the authors' grey runs from -1 to 1, this from
0 to 1. Theirs lies up to a pixel beside the centre in diagonal rays; these pass through it exactly, so that a mirrored
line is a line again and random flips add nothing false.

The framework wants two classes: `up`, angles in [0, pi), and `down`, [pi, 2 pi). A horizontal flip keeps both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pegasus_lightning.data.common import SPLITS, check_split, index_classes

CLASSES = ("up", "down")
SIZE = 32
LENGTH = SIZE / 2 - 1
WIDTH = 2.0
CHUNK = 1024  # lines drawn at once: 8 MB a temporary


def _overlap(low: Tensor, high: Tensor) -> Tensor:
    """The length of [low, high] within each pixel [i, i + 1]: bounds (...) to (..., SIZE)."""
    pixel = torch.arange(SIZE, dtype=low.dtype)
    return (torch.minimum(high[..., None], pixel + 1) - torch.maximum(low[..., None], pixel)).clamp_min(0)


def _coverage(angles: Tensor) -> Tensor:
    x, y = angles.cos(), -angles.sin()  # rows count downward, angles run counterclockwise from the right
    level = x.abs() >= y.abs()
    major, minor = torch.where(level, x, y), torch.where(level, y, x)
    centre = torch.full_like(major, SIZE / 2)
    tip = centre + LENGTH * major
    along = _overlap(torch.minimum(centre, tip), torch.maximum(centre, tip))  # (N, SIZE)
    steps = torch.arange(SIZE, dtype=angles.dtype) + 0.5 - SIZE / 2
    middle = SIZE / 2 + steps * (minor / major)[:, None]  # of the stroke, at each pixel along
    across = _overlap(middle - WIDTH / 2, middle + WIDTH / 2)  # (N, along, across)
    strokes = along[:, :, None] * across
    return torch.where(level[:, None, None], strokes.transpose(1, 2), strokes).float()


def line_images(angles: Tensor) -> Tensor:
    """The share of each pixel that the line covers, (N, 32, 32) float32 in [0, 1].

    Args:
        angles: (N,) radians, counterclockwise; 0 points to the right, pi / 2 to the top.
    """
    return torch.cat([_coverage(part) for part in angles.double().split(CHUNK)])


def _angles(kind: int, count: int, seed: int, stream: int) -> Tensor:
    turns = np.random.default_rng((seed, stream, kind)).random(count)  # a prefix of every longer draw
    return torch.from_numpy(turns + kind) * math.pi


def load(classes: Sequence[str], split: str, count_per_class: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images (N, 3, 32, 32), uint8, and labels (N,), int64, the index into `classes`; N = classes x count.

    Class after class, in the order given. Image i of a class depends on (seed, split, class, i) alone; the splits are
    disjoint random streams.

    Raises:
        UserError: no such class or split.
    """
    check_split(split)
    kinds = index_classes(classes, CLASSES, "lines")
    angles = torch.cat([_angles(kind, count_per_class, seed, SPLITS.index(split)) for kind in kinds])
    grey = (line_images(angles) * 255).round().byte()
    return grey[:, None].repeat(1, 3, 1, 1), torch.arange(len(kinds)).repeat_interleave(count_per_class)
