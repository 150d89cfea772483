"""Counter-based randomness: every draw is a function of (seed, stream, counter), never of what came before.

So a resumed run draws what the unbroken run would have drawn, and nothing has to be saved.
Nothing in training draws from PyTorch's global generators.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import torch


class Stream(IntEnum):
    """What a draw is for; draws of different streams are independent."""

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
    CODES = 10  # counter: which candidate
    BOOTSTRAP = 11
    AUGMENTATION = 12  # counter: global batch


def derived_seed(seed: int, stream: Stream, counter: int = 0) -> int:
    """A 64-bit seed for one draw (NumPy's SeedSequence, whose mixing is stable across versions)."""
    return int(np.random.SeedSequence([seed, int(stream), counter]).generate_state(1, np.uint64)[0])


def generator(seed: int, stream: Stream, counter: int = 0, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh generator on `device` for one draw."""
    return torch.Generator(device=device).manual_seed(derived_seed(seed, stream, counter))
