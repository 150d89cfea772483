"""Tests of recognisability by hand, and of the bootstrap against normal and binomial intervals."""

import math

import pytest
import torch

from pegasus_lightning.evaluate.metrics.recognisability import bootstrap_interval, recognisability


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


def test_the_interval_of_many_values_is_the_normal_one() -> None:
    values = torch.randn(4000, generator=torch.Generator().manual_seed(0)) * 3 + 10
    mean, error = values.mean().item(), values.std().item() / math.sqrt(4000)
    low, high = bootstrap_interval(values, resamples=4000)
    assert low == pytest.approx(mean - 1.96 * error, abs=0.1 * error)
    assert high == pytest.approx(mean + 1.96 * error, abs=0.1 * error)
    low, high = bootstrap_interval(values, confidence=0.5, resamples=4000)
    assert (low, high) == pytest.approx((mean - 0.674 * error, mean + 0.674 * error), abs=0.1 * error)


def test_the_interval_of_a_skewed_share_by_its_binomial() -> None:
    # 2 of 20: a resample has Binomial(20, 0.1) hits, whose 2.5 and 97.5 per cent points are 0 and 5.
    low, high = bootstrap_interval(torch.arange(20) < 2, resamples=5000)
    assert (low, high) == pytest.approx((0.0, 0.25))


def test_the_interval_is_a_function_of_its_arguments() -> None:
    values = torch.rand(50, generator=torch.Generator().manual_seed(1))
    before = torch.get_rng_state()
    first = bootstrap_interval(values, seed=4)
    torch.rand(3)
    assert bootstrap_interval(values, seed=4) == first
    assert bootstrap_interval(values, seed=5) != first
    torch.set_rng_state(before)
    bootstrap_interval(values)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_draws_in_portions_are_as_many_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.rand(30, generator=torch.Generator().manual_seed(2))
    seen, drawn = [], []
    quantile, randint = torch.quantile, torch.randint

    def watched(high: int, size: tuple[int, int], **named: torch.Generator) -> torch.Tensor:
        drawn.append(math.prod(size))
        return randint(high, size, **named)

    monkeypatch.setattr(torch, "randint", watched)
    monkeypatch.setattr(torch, "quantile", lambda means, tails: seen.append(len(means)) or quantile(means, tails))
    whole = bootstrap_interval(values, resamples=1000)
    assert bootstrap_interval(values) == whole  # the default
    monkeypatch.setattr("pegasus_lightning.evaluate.metrics.recognisability.MAX_DRAWS", 30 * 7)
    drawn.clear()
    portions = bootstrap_interval(values, resamples=1000)
    assert seen == [1000, 1000, 1000]
    assert max(drawn) == 30 * 7
    assert portions == pytest.approx(whole, abs=0.02)


def test_what_is_not_defined_is_left_out() -> None:
    values = torch.tensor([1.0, float("nan"), 1.0, 1.0])
    assert bootstrap_interval(values) == (1.0, 1.0)
    assert all(math.isnan(end) for end in bootstrap_interval(values[1:2]))
    assert all(math.isnan(end) for end in bootstrap_interval(torch.zeros(0)))
