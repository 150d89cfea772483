"""Tests of tables from scorecards, by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from pegasus_lightning.report.comparison import choose_baseline, compare
from pegasus_lightning.runs.scorecards import PEGASI, PRIOR, Figure, Scorecard

Card = Callable[..., Scorecard]


def rows(table):  # type: ignore[no-untyped-def]
    """{row: {column: cell}}."""
    heads = [column.measure.title for column in table.columns]
    return {row.name: dict(zip(heads, row.cells, strict=True)) for row in table.rows}


def pegasi(**figures: Figure) -> dict[str, dict[str, Figure]]:
    return {PEGASI: figures}


def seeds(card: Card, group: str, count: int = 3, **values: float) -> list[Scorecard]:
    """Scorecards of so many seeds, whose figures are `value` and .01 and .02 to either side of it."""
    return [
        card(
            group,
            seed,
            rows=pegasi(**{name: Figure(value + apart, math.nan, math.nan) for name, value in values.items()}),
        )
        for seed, apart in zip(range(count), (0.0, 0.01, -0.01, 0.02, -0.02), strict=False)
    ]


def test_values_differences_and_intervals_are_those_worked_out_by_hand(card: Card) -> None:
    baseline, other = (seeds(card, name, recognised=seen, kid=kid) for name, seen, kid in (
        ("adversarial_vae", 0.20, 1.0), ("acai", 0.28, 1.02)
    ))  # fmt: skip
    (comparison,) = compare([*other, *baseline])
    found = rows(comparison.pegasi)
    assert list(found) == ["acai", "adversarial_vae"]  # the one with more recognised images first
    # Deviation .01 over three seeds, t = 4.3027: 4.3027 * .01 / sqrt(3) = .0248.
    first = found["adversarial_vae"]["both seen"]
    assert (first.text, first.half, first.difference, first.verdict) == ("20.0%", "2.5", "", "")
    # 28 - 20 = 8; t = 2.7764 at four degrees of freedom: 2.7764 * sqrt(2 * .01^2 / 3) = .0227.
    seen = found["acai"]["both seen"]
    assert (seen.text, seen.half, seen.difference, seen.interval) == ("28.0%", "2.5", "+8.0 pp", "[+5.7, +10.3]")
    assert seen.verdict == "better"
    kid = found["acai"]["KID*"]
    assert (kid.text, kid.difference, kid.interval, kid.verdict) == ("1.020", "+0.020", "[\u22120.003, +0.043]", "")


@pytest.mark.parametrize("counts", [(1, 1), (1, 5), (2, 2), (2, 5), (5, 2)])
def test_under_three_seeds_a_side_there_is_a_difference_and_no_verdict(card: Card, counts: tuple[int, int]) -> None:
    (comparison,) = compare(
        [*seeds(card, "adversarial_vae", counts[0], kid=1.0), *seeds(card, "acai", counts[1], kid=9.0)]
    )
    cell = rows(comparison.pegasi)["acai"]["KID*"]
    assert cell.difference.startswith(("+8.0", "+7.9"))
    assert (cell.interval != "") == (1 not in counts)
    assert cell.verdict == ""


@pytest.mark.parametrize(
    ("measure", "value", "verdict"),
    [
        ("recognised", 0.5, "better"),  # more is better
        ("recognised", 0.1, "worse"),
        ("kid", 0.5, "worse"),  # less is better
        ("kid", 0.1, "better"),
        ("p_first", 0.5, "differs"),  # neither is
        ("p_first", 0.1, "differs"),
        ("recognised", 0.31, ""),
    ],
)
def test_a_difference_has_a_verdict_only_where_its_interval_leaves_out_0(
    card: Card, measure: str, value: float, verdict: str
) -> None:
    (comparison,) = compare(
        [*seeds(card, "adversarial_vae", **{measure: 0.3}), *seeds(card, "acai", **{measure: value})]
    )
    ((cell,),) = [list(cells.values()) for name, cells in rows(comparison.pegasi).items() if name == "acai"]
    assert cell.verdict == verdict


def test_seeds_of_a_group_share_a_row(card: Card) -> None:
    cards = [card("vae", seed, rows=pegasi(kid=Figure(v, v - 0.1, v + 0.1))) for seed, v in ((1, 3.0), (0, 1.0))]
    (comparison,) = compare(cards)
    (row,) = comparison.pegasi.rows
    # Mean 2, deviation sqrt(2), standard error 1 over 2 seeds: half width t = 12.706.
    assert (row.name, row.note, row.cells[0].text, row.cells[0].half) == ("vae", "seeds 0, 1", "2.000", "12.706")
    assert row.cells[0].detail == "95 %: \u221210.706 to 14.706; 2 seeds: 1.000, 3.000"


def test_what_rounds_to_0_has_no_sign_and_what_is_not_defined_is_a_dash(card: Card) -> None:
    cards = [
        card("adversarial_vae", rows=pegasi(kid=Figure(0.5, 0.4, 0.6), density=Figure(1.0, 0.9, 1.1))),
        card("acai", rows=pegasi(kid=Figure(0.4999, 0.4, 0.6), density=Figure(math.nan, math.nan, math.nan))),
        card("vae", rows=pegasi(kid=Figure(0.5, 0.4, 0.6))),
    ]
    (comparison,) = compare(cards)
    found = rows(comparison.pegasi)
    assert found["acai"]["KID*"].difference == "0.000"
    for name in ("acai", "vae"):
        cell = found[name]["density"]
        assert (cell.text, cell.half, cell.difference, cell.verdict) == ("\u2013", "", "", "")
        assert math.isnan(cell.value)


def test_the_baseline_is_the_plain_adversarial_vae_or_what_is_asked_for_or_the_first() -> None:
    names = ["acai", "adversarial_vae,channels=64", "adversarial_vae", "vae"]
    assert choose_baseline(names) == "adversarial_vae"
    assert choose_baseline(names[:2]) == "adversarial_vae,channels=64"
    assert choose_baseline(["vae_gan", "vae"]) == "vae_gan"
    assert choose_baseline(names, "vae") == "vae"
    assert choose_baseline(["vae_gan", "acai"], "vae") == "vae_gan"


def test_controls_that_are_the_same_for_all_are_one_row_others_a_row_a_group(card: Card) -> None:
    def sets(own: float) -> dict[str, dict[str, Figure]]:
        figure = {"recognised": Figure(own, own, own), "kid": Figure(own, own, own)}
        real = {"recognised": Figure(0.41 + own * 1e-9, 0.4, 0.42), "kid": Figure(0.5, math.nan, math.nan)}
        return {PEGASI: figure, "pixel average": real, "CutMix": figure, PRIOR: figure}

    (comparison,) = compare(
        [card("vae", rows=sets(0.1)), card("acai", rows=sets(0.2)), card("acai", 1, rows=sets(0.3))]
    )
    controls = rows(comparison.pegasi)
    assert [(row.name, row.is_control) for row in comparison.pegasi.rows] == [
        ("pixel average", True),
        ("acai", False),
        ("CutMix, acai", True),
        ("vae", False),
        ("CutMix, vae", True),
    ]  # by the share recognised: .41, .25, .25, .1, .1
    # A control that three scorecards share has the interval of one, not of an average.
    assert (controls["pixel average"]["both seen"].text, controls["pixel average"]["both seen"].half) == (
        "41.0%",
        "1.0",
    )
    assert controls["CutMix, acai"]["both seen"].text == "25.0%"
    assert list(rows(comparison.own)) == [f"{PRIOR}, vae", f"{PRIOR}, acai"]
    assert [column.measure.title for column in comparison.pegasi.columns] == ["both seen", "KID*"]
    assert [(point.name, point.control) for point in comparison.points] == [("vae", False), ("acai", False)]


def test_controls_with_both_figures_are_in_the_plot(card: Card) -> None:
    (comparison,) = compare([card("vae")])
    assert [(point.name, point.control) for point in comparison.points] == [("vae", False), ("pixel average", True)]


def test_ways_of_evaluating_are_never_compared(card: Card) -> None:
    cards = [
        card("vae", key="b", settings={"count": 64, "search": {"method": "guided"}}),
        card("vae", key="a"),
        card("acai", key="a"),
    ]
    usual, other = compare(cards, "acai")
    assert (usual.baseline, list(usual.cards), usual.settings) == ("acai", ["acai", "vae"], [])
    assert (other.baseline, list(other.cards)) == ("vae", ["vae"])
    assert other.settings == [("count", "64"), ("search.method", "guided")]


def test_an_unknown_measure_is_a_column_of_its_own_after_the_known(card: Card) -> None:
    (comparison,) = compare([card("vae", rows=pegasi(glow=Figure(1, 0, 2), kid=Figure(1, 0, 2)))])
    assert [column.measure.title for column in comparison.pegasi.columns] == ["KID*", "glow"]
