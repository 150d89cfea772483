"""Intervals of figures over images, by hand. How often they cover is simulated in tests/evaluate/test_coverage.py."""

from __future__ import annotations

import math

import pytest
import torch

from pegasus_lightning.evaluate.metrics.intervals import (
    Parentage,
    mean_figure,
    pairs_figure,
    reached_figure,
    share_figure,
    uncertainty,
)

T3, T1 = 3.18244631, 12.7062047  # 97.5 % points of Student's t, from a table


def test_a_mean_has_the_interval_of_students_t() -> None:
    # Deviations -3, -1, 1, 3: variance 20 / 3, standard error sqrt(20 / 3 / 4).
    value, low, high = mean_figure(torch.tensor([1.0, 3.0, 5.0, 7.0]))
    half = T3 * math.sqrt(20 / 12)
    assert (value, low, high) == pytest.approx((4, 4 - half, 4 + half))


def test_what_is_not_defined_is_left_out() -> None:
    nan = math.nan
    values, parents = torch.tensor([1.0, nan, 3.0, 5.0, 7.0]), Parentage(torch.tensor([0, 0, 0, 1, 1]), torch.arange(5))
    assert mean_figure(values) == mean_figure(values[[0, 2, 3, 4]])
    assert mean_figure(values, parents) == mean_figure(values[[0, 2, 3, 4]], parents.take(torch.tensor([0, 2, 3, 4])))
    alone = mean_figure(torch.tensor([nan, 2.0]))
    assert alone.value == 2 and math.isnan(alone.low) and math.isnan(alone.high)
    assert all(math.isnan(number) for number in mean_figure(torch.tensor([nan, nan])))


def test_images_that_share_photographs_count_for_fewer() -> None:
    # Horses 0, 0, 1, 1 and birds 0, 1, 0, 1; deviations -3, -1, 1, 3.
    values, parents = (
        torch.tensor([1.0, 3.0, 5.0, 7.0]),
        Parentage(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1] * 2)),
    )
    by_first = 2 * ((-3 - 1) ** 2 + (1 + 3) ** 2)  # G / (G - 1) = 2
    by_second = 2 * ((-3 + 1) ** 2 + (-1 + 3) ** 2)
    by_both = 4 / 3 * (9 + 1 + 1 + 9)
    found = uncertainty(values, parents)
    assert found.error == pytest.approx(math.sqrt((by_first + by_second - by_both) / 16))
    assert found.quantile == pytest.approx(T1)  # two photographs a side
    # Photographs that cancel out do not make images more than independent.
    opposed = torch.tensor([1.0, -1.0, -1.0, 1.0])
    assert uncertainty(opposed, parents).error == uncertainty(opposed).error
    one = uncertainty(values, Parentage(torch.zeros(4, dtype=torch.int64), torch.arange(4)))
    assert math.isnan(one.error)


def test_without_a_shared_photograph_images_are_independent() -> None:
    values = torch.randn(50, generator=torch.Generator().manual_seed(0))
    with_parents = uncertainty(values, Parentage(torch.arange(50), torch.arange(50).flip(0)))
    assert with_parents == pytest.approx(uncertainty(values))


def test_a_share_of_nothing_may_still_be_some() -> None:
    # Wilson: z^2 / (n + z^2) for 0 of n.
    z = 1.961152  # t of 1,999 degrees of freedom
    value, low, high = share_figure(torch.zeros(2000, dtype=torch.bool))
    assert (value, low) == (0, 0)
    assert high == pytest.approx(z**2 / (2000 + z**2), rel=1e-4)
    assert share_figure(torch.ones(2000, dtype=torch.bool)) == pytest.approx((1, 1 - high, 1))


def test_a_share_of_nothing_of_few_photographs_is_that_of_the_photographs() -> None:
    parents = Parentage(torch.arange(2000) % 50, torch.arange(2000))
    quantile = 2.009575  # t of 49 degrees of freedom
    high = share_figure(torch.zeros(2000, dtype=torch.bool), parents).high
    assert high == pytest.approx(quantile**2 / (50 + quantile**2), rel=1e-4)


def test_a_share_has_the_interval_of_wilson() -> None:
    hits = torch.arange(2000) % 10 == 0
    value, low, high = share_figure(hits)
    assert value == pytest.approx(0.1)
    for end in (low, high):  # the shares from which .1 is as far as the quantile allows (Wilson 1927)
        assert abs(end - 0.1) == pytest.approx(1.961152 * math.sqrt(end * (1 - end) / 2000), rel=1e-5)
    assert low < 0.1 < high
    assert mean_figure(hits) == (value, low, high)


def test_a_share_of_shared_photographs_is_that_of_fewer_images() -> None:
    # Every photograph of the first class ten times, with the same outcome each time.
    hits = (torch.arange(200) % 4 == 0).repeat_interleave(10)
    parents = Parentage(torch.arange(200).repeat_interleave(10), torch.arange(2000))
    clustered, few = share_figure(hits, parents), share_figure(torch.arange(200) % 4 == 0)
    assert clustered.value == few.value == 0.25
    assert (clustered.low, clustered.high) == pytest.approx((few.low, few.high), abs=1e-3)


def test_the_mean_over_pairs_has_the_interval_of_a_u_statistic() -> None:
    values = torch.tensor([1.0, 3.0, 5.0, 7.0])
    assert pairs_figure(values).half == pytest.approx(2 * mean_figure(values).half)
    assert pairs_figure(values).value == 4


def test_the_reach_of_fakes_by_the_jackknife() -> None:
    # Five reals, four fakes. Fake 0 alone reaches real 0; fake 1 alone reals 1 and 2; 2 and 3 together real 3.
    reached = torch.tensor([[1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0]]).bool()
    lost = torch.tensor([0.2, 0.4, 0.0, 0.0])  # share of reals that the absence of each fake costs
    squares = ((lost - lost.mean()) ** 2).sum().item()
    # A hundred copies, none of which reaches the reals of another: changes are a hundredth of the size.
    many = torch.block_diag(*[reached.float()] * 100).bool()
    for corrected, second in ((False, 0.0), (True, 0.2**2)):
        half = 1.965927 * math.sqrt((400 / 399 * squares - second / 2) / 100)  # t of 399 degrees of freedom
        assert reached_figure(many, corrected=corrected) == pytest.approx((0.8, 0.8 - half, 0.8 + half), rel=1e-5)
    assert reached_figure(reached).high == 1  # clipped


@pytest.mark.parametrize("reaches", [False, True])
def test_a_reach_of_nothing_or_everything_is_not_certain(reaches: bool) -> None:
    for corrected in (False, True):
        found = reached_figure(torch.full((4000, 2000), reaches), corrected=corrected)
        wanted = share_figure(torch.full((2000,), reaches))
        assert found == wanted
        assert 0.001 < found.high - found.low < 0.003
