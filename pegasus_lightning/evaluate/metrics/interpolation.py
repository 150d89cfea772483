"""Metrics of interpolations: decoded paths (B, R, 3, 32, 32) in [0, 1] between two parents.

Frame k of a path is at ratio k / (R - 1); the first and last frames are the decoded parents.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pegasus_lightning.data.lines import line_images

REAL_LINES = 10_000  # number of angles in the paper, evenly spaced on the circle
BLOCK = 2**22  # most similarities in memory at once


class PathStatistics(NamedTuple):
    """`length`, `largest_step`, `distance_from_blend` and `relative_distance` of each path, each (B,)."""

    length: Tensor
    largest_step: Tensor
    distance_from_blend: Tensor
    relative_distance: Tensor


def path_statistics(frames: Tensor) -> PathStatistics:
    """Return length, evenness and distance from a pixel blend of each path; distances are RMS over pixels.

    length: sum of the steps (distances between consecutive frames). A pixel blend is as long as the distance between
        its ends; a longer path changes more than a blend.
    largest_step: largest step over mean step. 1: even, R - 1: one jump, NaN: all frames equal.
    distance_from_blend: distance of the decoded midpoint from the pixel average of the ends.
        0: two overlaid images. For even R: mean over the two middle frames, each against the blend at its own ratio.
    relative_distance: distance_from_blend over the distance between the ends; NaN for equal ends.

    The frames are (B, R, 3, 32, 32), R at least 3.
    """
    count = frames.shape[1]
    if count < 3:
        raise ValueError(f"a path needs at least 3 frames, not {count} frames")
    flat = frames.flatten(2)
    steps = (flat[:, 1:] - flat[:, :-1]).square().mean(2).sqrt()  # (B, R - 1)
    middle = torch.tensor(sorted({(count - 1) // 2, count // 2}), device=flat.device)
    first, last = flat[:, :1], flat[:, -1:]
    blend = first + (last - first) * (middle / (count - 1))[:, None]
    distance_from_blend = (flat[:, middle] - blend).square().mean(2).sqrt().mean(1)
    apart = (last - first).square().mean(2).sqrt()[:, 0]
    relative = torch.where(apart > 0, distance_from_blend / apart, torch.nan)
    return PathStatistics(steps.sum(1), steps.amax(1) / steps.mean(1), distance_from_blend, relative)


class NearestLine(NamedTuple):
    """Cosine distance (N,) to the nearest real line, in [0, 2], and the angle (N,) of that line, in [0, 2 pi)."""

    distances: Tensor
    angles: Tensor


def nearest_line(images: Tensor, count: int = REAL_LINES) -> NearestLine:
    """Return the nearest of `count` evenly spaced lines by cosine distance (Berthelot et al. 2018, sec. 3.2).

    The distance is 1 - x.y / (|x| |y|) over pixels in [-1, 1] (black is -1), as in the paper; with black at 0 it would
    be about ten times as large. Colour images, (N, 3, 32, 32) in [0, 1], are compared with grey lines, channel by
    channel. `count` is 10,000 in the paper.
    """
    angles = torch.arange(count, dtype=torch.float64) * (2 * math.pi / count)
    lines = (2 * line_images(angles) - 1).flatten(1).to(images.device)  # one of the three equal channels
    directions = lines / lines.norm(dim=1, keepdim=True)
    chosen, similarities = [], []
    for part in images.split(max(1, BLOCK // count)):
        pixels = (2 * part.float() - 1).flatten(2)  # (n, 3, 1024)
        index = (pixels.sum(1) @ directions.T).argmax(1)
        # Recomputed in float64: a cosine distance of 1e-6 is about the rounding error of float32.
        grey = pixels.double()
        line = directions[index].double()[:, None].expand_as(grey)
        chosen.append(index)
        similarities.append(torch.nn.functional.cosine_similarity(grey.flatten(1), line.flatten(1), dim=1))
    return NearestLine((1 - torch.cat(similarities)).float(), angles.to(images.device)[torch.cat(chosen)])


def smoothness(angles: Tensor) -> Tensor:
    """Return how evenly the angle turns along each path (Berthelot et al. 2018, sec. 3.2): (B, R) radians to (B,).

    The score is the largest angular step over the total turn from start to end, minus 1 / (R - 1), its value for even
    steps. 0: ideal, 1 - 1 / (R - 1): a single jump, more: the path turns back and forth. Each step takes the shorter
    direction. NaN for equal start and end angles (within 1e-4 radians); leave these paths out of a mean (the authors'
    code counts them as 0).
    """
    raw = torch.diff(angles.double(), dim=1)
    steps = torch.remainder(raw + math.pi, 2 * math.pi) - math.pi
    steps = torch.where((steps == -math.pi) & (raw > 0), math.pi, steps)  # +pi stays +pi (numpy.unwrap)
    turn = steps.sum(1).abs()
    score = steps.abs().amax(1) / turn - 1 / steps.shape[1]
    return torch.where(turn < 1e-4, torch.nan, score).float()


class LineStatistics(NamedTuple):
    """The ACAI metrics of each path, each (B,): mean cosine distance to real lines, and smoothness (may be NaN)."""

    distance: Tensor
    smoothness: Tensor


def line_statistics(frames: Tensor, count: int = REAL_LINES) -> LineStatistics:
    """Return the ACAI metrics of paths between two images of the data source `lines` (Berthelot et al. 2018, sec. 3.2).

    The distance is averaged over all frames of a path including its ends, as in the authors' `line_eval`. The paper
    uses 16 frames. Distances are not comparable with its table 1: the authors draw their lines otherwise, and perfect
    lines of theirs are .0016 to .0041 away from the lines of `data=lines`. The frames are (B, R, 3, 32, 32) in [0, 1];
    `count` as in `nearest_line`.
    """
    found = nearest_line(frames.flatten(0, 1), count)
    shape = frames.shape[:2]
    return LineStatistics(found.distances.reshape(shape).mean(1), smoothness(found.angles.reshape(shape)))
