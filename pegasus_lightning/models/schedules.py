"""Schedules: numbers that change during a training, as functions of the batches done.

Nothing is remembered from batch to batch, so a resumed run continues every schedule where it was.
"""

from __future__ import annotations

import math


def grown(batch: int, length: int) -> float:
    """Return batch / length, at most 1: a linear growth from 0; 1 if there is no length."""
    return min(1.0, batch / length) if length else 1.0


def cyclic(batch: int, length: int, period: int | None) -> float:
    """Return `grown`, begun anew every `period` batches (Fu et al. 2019, arXiv 1903.10145, eq. 6); None: never."""
    return grown(batch if period is None else batch % period, length)


def fallen(batch: int, schedule: str, begins: int, ends: int | None) -> float:
    """Return the share of a learning rate that is left at a batch: 1 until `begins`, 0 from batch `ends` on.

    Between the two, for t from 0 to 1: 1 - t for `linear`, (1 + cos(pi t)) / 2 for `cosine` (Loshchilov & Hutter 2017,
    arXiv 1608.03983, eq. 5 without restarts). `constant` is always 1.
    """
    if schedule == "constant":
        return 1.0
    assert ends is not None
    t = min(1.0, max(0.0, (batch - begins) / (ends - begins)))
    return 1.0 - t if schedule == "linear" else (1.0 + math.cos(math.pi * t)) / 2


def average_decay(batch: int, decay: float, warmup: int) -> float:
    """Return the decay of an average of weights: at most (1 + batch) / (1 + batch + warmup).

    So the average reaches back over about batch / warmup batches at first, and forgets the random initial weights. A
    warm-up of 9 is that of TensorFlow's ExponentialMovingAverage; 0 is none.
    """
    return min(decay, (1 + batch) / (1 + batch + warmup))
