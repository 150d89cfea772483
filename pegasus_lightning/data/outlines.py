"""Smooth outlines of the silhouettes, as points (n, 2) with x to the right and y down."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def unit(angle: ArrayLike) -> Array:
    """Return unit vectors (..., 2) at angles in radians, clockwise on the screen from forward."""
    return np.array((np.cos(angle), np.sin(angle))).T


_CIRCLE = unit(np.linspace(0, 2 * np.pi, 24, endpoint=False))
_CAP = unit(np.linspace(np.pi / 2, -np.pi / 2, 7)[1:-1])


@cache
def spline_matrix(count: int, closed: bool) -> Array:
    """Return the matrix from `count` points to the Catmull-Rom curve through them, six points per segment."""
    t = np.linspace(0, 1, 6, endpoint=False)
    basis = 0.5 * np.array([-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, t**3 - t**2]).T
    p = np.eye(count)
    if closed:
        return np.concatenate([basis @ p[np.arange(k - 1, k + 3) % count] for k in range(count)])
    padded = np.concatenate([2 * p[:1] - p[1:2], p, 2 * p[-1:] - p[-2:-1]])
    return np.concatenate([basis @ padded[k : k + 4] for k in range(count - 1)] + [p[-1:]])


def curve(points: ArrayLike, closed: bool = True) -> Array:
    """Return a smooth closed curve (6 n, d) through points (n, d), or an open one of 6 (n - 1) + 1 points."""
    p = np.asarray(points, dtype=float)
    return np.asarray(spline_matrix(len(p), closed) @ p)


def limb(points: ArrayLike, radii: Sequence[float]) -> Array:
    """Return a rounded, tapered stroke whose centre line passes through points (n, 2), with a radius at each."""
    line, radius = curve(points, closed=False), curve(radii, closed=False)
    steps = line[1:] - line[:-1]
    along = np.concatenate([steps[:1], steps[1:] + steps[:-1], steps[-1:]])
    along *= (radius / np.hypot(along[:, 0], along[:, 1]))[:, None]
    side = along[:, ::-1] * (-1, 1)
    tip = line[-1] + _CAP @ np.array((along[-1], side[-1]))
    root = line[0] - _CAP @ np.array((along[0], side[0]))
    return np.concatenate([line + side, tip, (line - side)[::-1], root])


def ellipse(centre: ArrayLike, radius_x: float, radius_y: float) -> Array:
    """Return the outline (24, 2) of an axis-aligned ellipse."""
    return np.asarray(_CIRCLE * (radius_x, radius_y) + np.asarray(centre, dtype=float))


def turned(points: ArrayLike, angle: float) -> Array:
    """Rotate points (n, 2) about the origin; a negative angle lifts the front."""
    axes = np.array([unit(angle), unit(angle + np.pi / 2)])
    return np.asarray(np.asarray(points, dtype=float) @ axes)


def mix(a: Array, b: ArrayLike, share: float) -> Array:
    """Return a + share * (b - a)."""
    return a + share * (np.asarray(b, dtype=float) - a)
