"""What happens on the way from one parent to the other: figures over decoded paths (B, R, 3, 32, 32) in [0, 1].

The first and last frames of a path are the parents, decoded; the frames between lie at ratios k / (R - 1).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pegasus_lightning.data.lines import line_images

REAL_LINES = 10_000  # the paper's dense cover of the circle of angles
BLOCK = 2**22  # similarities held at once


class PathStatistics(NamedTuple):
    """`length`, `largest_step`, `linearity` and `relative_linearity` of each path, (B,) each."""

    length: Tensor
    largest_step: Tensor
    linearity: Tensor
    relative_linearity: Tensor


def path_statistics(frames: Tensor) -> PathStatistics:
    """How long, how even and how far from an overlay each path is; distances are root mean squares over pixels.

    length: the sum of the steps, distances of consecutive frames. An overlay is as long as its ends are apart; longer
    means that the picture itself moves.
    largest_step: over the mean step; 1 is even, R - 1 one single jump, NaN where nothing moves.
    linearity: the distance of the decoded midpoint from the pixel average of the ends, as `pegasus.scores.linearity`
    has it; 0 is two overlaid images. With an even number of frames none is in the middle: the mean of the middle two,
    each against the blend at its own ratio.
    relative_linearity: the same over the distance of the ends from each other, NaN where they are equal.

    Args:
        frames: (B, R, 3, 32, 32), R at least 3.
    """
    count = frames.shape[1]
    if count < 3:
        raise ValueError(f"a path of {count} frames has no inside")
    flat = frames.flatten(2)
    steps = (flat[:, 1:] - flat[:, :-1]).square().mean(2).sqrt()  # (B, R - 1)
    middle = torch.tensor(sorted({(count - 1) // 2, count // 2}), device=flat.device)
    first, last = flat[:, :1], flat[:, -1:]
    blend = first + (last - first) * (middle / (count - 1))[:, None]
    linearity = (flat[:, middle] - blend).square().mean(2).sqrt().mean(1)
    apart = (last - first).square().mean(2).sqrt()[:, 0]
    relative = torch.where(apart > 0, linearity / apart, torch.nan)
    return PathStatistics(steps.sum(1), steps.amax(1) / steps.mean(1), linearity, relative)


class NearestLine(NamedTuple):
    """Cosine distance (N,) to the nearest real line, 0 to 2, and that line's angle (N,) in [0, 2 pi)."""

    distances: Tensor
    angles: Tensor


def nearest_line(images: Tensor, count: int = REAL_LINES) -> NearestLine:
    """The nearest of `count` lines that cover the circle evenly, by cosine distance (Berthelot et al. 2018, sec. 3.2).

    1 - x.y / (|x| |y|) over pixels from -1 (black) to 1, as in the paper: with black at 0 it would come out some ten
    times as large. Images in colour are compared with grey lines, channel by channel.

    Args:
        images: (N, 3, 32, 32) in [0, 1].
        count: the paper's 10,000.
    """
    angles = torch.arange(count, dtype=torch.float64) * (2 * math.pi / count)
    lines = (2 * line_images(angles) - 1).flatten(1).to(images.device)  # one of three equal channels
    directions = lines / lines.norm(dim=1, keepdim=True)
    chosen, similarities = [], []
    for part in images.split(max(1, BLOCK // count)):
        pixels = (2 * part.float() - 1).flatten(2)  # (n, 3, 1024)
        index = (pixels.sum(1) @ directions.T).argmax(1)
        # Measured again in float64: a cosine distance of 1e-6 is a difference in the last digit of a float32.
        grey = pixels.double()
        line = directions[index].double()[:, None].expand_as(grey)
        chosen.append(index)
        similarities.append(torch.nn.functional.cosine_similarity(grey.flatten(1), line.flatten(1), dim=1))
    return NearestLine((1 - torch.cat(similarities)).float(), angles.to(images.device)[torch.cat(chosen)])


def smoothness(angles: Tensor) -> Tensor:
    """How evenly the angle turns along each path (Berthelot et al. 2018, sec. 3.2): (B, R) radians to (B,).

    The largest step of the angle over the whole turn from start to end, less 1 / (R - 1), its value for even steps:
    0 is ideal, 1 - 1 / (R - 1) a single jump, more a path that turns to and fro. Each step goes the shorter way round.
    NaN where start and end point the same way (within 1e-4 radians): the authors' program counts such paths as 0 in
    its mean; leave them out.
    """
    raw = torch.diff(angles.double(), dim=1)
    steps = torch.remainder(raw + math.pi, 2 * math.pi) - math.pi
    steps = torch.where((steps == -math.pi) & (raw > 0), math.pi, steps)  # half a circle keeps its sense (numpy.unwrap)
    turn = steps.sum(1).abs()
    score = steps.abs().amax(1) / turn - 1 / steps.shape[1]
    return torch.where(turn < 1e-4, torch.nan, score).float()


class LineStatistics(NamedTuple):
    """ACAI's two figures of each path, (B,) each: mean cosine distance to real lines, and smoothness (may be NaN)."""

    distance: Tensor
    smoothness: Tensor


def line_statistics(frames: Tensor, count: int = REAL_LINES) -> LineStatistics:
    """The paper's check of an interpolation, on paths between two images of the data source `lines`.

    Distance is averaged over all frames of a path, its ends too, as in the authors' `line_eval`; the paper takes paths
    of 16 frames. Its table 1, distance in thousandths / smoothness: plain autoencoder 6.88 / .44, VAE 1.21 / .49,
    ACAI 0.24 / .10.

    Args:
        frames: (B, R, 3, 32, 32) in [0, 1].
        count: see `nearest_line`.
    """
    found = nearest_line(frames.flatten(0, 1), count)
    shape = frames.shape[:2]
    return LineStatistics(found.distances.reshape(shape).mean(1), smoothness(found.angles.reshape(shape)))
