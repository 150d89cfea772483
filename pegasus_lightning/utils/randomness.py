"""Counter-based randomness: each draw is a function of (seed, stream, counter), independent of earlier draws.

A resumed run therefore draws the same numbers as an uninterrupted one, without saved random state. Training does not
use PyTorch's global generators.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import torch


class Stream(IntEnum):
    """Purpose of a draw; draws of different streams are independent."""

    WEIGHTS = 0
    SPLIT = 1
    ORDER = 2  # counter: epoch
    FLIPS = 3  # counter: epoch
    NOISE = 4  # counter: global batch
    MIXING = 5  # counter: global batch
    PRIOR = 6  # counter: global batch
    PICTURES = 7
    PAIRS = 8
    RATIOS = 9
    CODES = 10  # counter: candidate
    BOOTSTRAP = 11
    AUGMENTATION = 12  # counter: global batch
    LESSONS = 13  # counter: global batch
    MOVES = 14  # counter: global batch
    PENALTY = 15  # counter: global batch


def derived_seed(seed: int, stream: Stream, counter: int = 0) -> int:
    """Return a 64-bit seed for one draw, from NumPy's SeedSequence, whose hash is stable across versions."""
    return int(np.random.SeedSequence([seed, int(stream), counter]).generate_state(1, np.uint64)[0])


def generator(seed: int, stream: Stream, counter: int = 0, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a new generator on `device` for one draw."""
    return torch.Generator(device=device).manual_seed(derived_seed(seed, stream, counter))
