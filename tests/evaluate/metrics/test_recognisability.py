"""Tests of recognisability by hand."""

import pytest
import torch

from pegasus_lightning.evaluate.metrics.recognisability import recognisability


def test_recognisability_by_hand() -> None:
    probabilities = torch.tensor([[0.9, 0.8], [0.9, 0.2], [0.1, 0.7], [0.5, 0.6], [0.51, 0.51], [0.0, 1.0]])
    both, chimera = recognisability(probabilities)
    assert both.tolist() == [True, False, False, False, True, False]  # exactly 0.5 does not exceed it
    assert chimera.tolist() == pytest.approx([1.6, 0.4, 0.2, 1.0, 1.02, 0.0])
    assert recognisability(probabilities, threshold=0.15).both.tolist() == [True, True, False, True, True, False]


@pytest.mark.parametrize("shape", [(4,), (4, 1), (4, 3), (4, 2, 1)])
def test_probabilities_are_of_two_classes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\(N, 2\)"):
        recognisability(torch.zeros(shape))
