"""Recognisability of both parent classes in an image."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Recognisability(NamedTuple):
    """`both` (N,) bool: both classes are recognised. `chimera` (N,): 2 min(p_first, p_second) in [0, 2], above 1 if
    both probabilities exceed 0.5."""

    both: Tensor
    chimera: Tensor


def recognisability(probabilities: Tensor, threshold: float = 0.5) -> Recognisability:
    """Return whether both classes are recognised in each image, and twice the smaller probability.

    Args:
        probabilities: (N, 2), outputs of two independent sigmoids; a softmax never gives both classes more than 0.5.
        threshold: value that both probabilities must exceed.
    """
    if probabilities.ndim != 2 or probabilities.shape[1] != 2:
        raise ValueError(f"probabilities must be (N, 2), not {tuple(probabilities.shape)}")
    weaker = probabilities.amin(1)
    return Recognisability(weaker > threshold, 2 * weaker)
