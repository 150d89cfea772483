"""Tests of the terminal tables: each value in its column and row, correctly rounded."""

from __future__ import annotations

import itertools
import math

from pegasus_lightning.evaluate.tables import comparison_table, console_table
from pegasus_lightning.runs.scorecards import CUTMIX, MEASURES, MODEL_MEASURES, PEGASI, Figure, Scorecard

NAN = math.nan
NONE = Figure(NAN, NAN, NAN)

# Tested measures; their values differ by an eighth, in this order.
PLACED = ("recognised", "chimera", "p_first", "p_second", "kid", "density", "coverage", "precision", "recall",
          "linearity", "recognised_selecting")  # fmt: skip


def around(value: float, half: float) -> Figure:
    return Figure(value, value - half, value + half)


def card(name: str = "acai-s0", seed: int | None = 0, value: float = 0.25, half: float = 0.012, key: str = "k",
         alarms: tuple[str, ...] = ()) -> Scorecard:  # fmt: skip
    figures = {name: around(value, half) for name in MEASURES}
    figures |= {name: around(value + place / 8, half) for place, name in enumerate(PLACED)}
    return Scorecard(
        run="runs/x",
        name=name,
        group=name.removesuffix(f"-s{seed}"),
        seed=seed,
        batches=1200,
        classes=["cat", "ship"],
        key=key,
        settings={},
        parents={},
        recognisers={"reports": {"file": "cat-ship-residual.pt"}, "selects": None},
        rows={PEGASI: figures, CUTMIX: figures | {"kid": NONE, "parent_distance": Figure(0.5, NAN, NAN)}},
        counts={PEGASI: 2000, CUTMIX: 64},
        model={"psnr": around(21.5, 0.125), "midpoint": NONE},
        alarms=list(alarms),
    )


def cells(table: str, heads: list[str]) -> dict[str, list[str]]:
    """Rows of the table with these heads: first cell to the other cells, split at the ends of the heads."""
    lines = table.splitlines()
    top = next(index for index, line in enumerate(lines) if all(head in line for head in heads))
    ends, found = [], 0
    for head in heads:
        found = lines[top].index(head, found) + len(head)
        ends.append(found)
    body = {}
    for line in lines[top + 1 :]:
        if not line:
            break
        label = line[: ends[0]].split("  ")[0]
        edges = [len(label), *ends]
        body[label] = [line[start:end].strip() for start, end in itertools.pairwise(edges)]
    return body


SETS = ["p cat", "p ship", "KID* ↓", "density ↑", "coverage ↑", "precision ↑", "recall ↑"]
PEOPLE = ["panel: W ↑", "panel: first", "panel: second", "panel: nothing ↓", "panel: realism ↑"]
FIRST = ["both seen ↑", "by selector", "winged ↑", *PEOPLE, "2 min p ↑", *SETS]


def test_a_runs_rows_stand_under_their_heads_with_half_their_interval() -> None:
    table = console_table(card())
    assert table.splitlines()[0].startswith("acai-s0, batch 1200, judged by cat-ship-residual.pt")
    rows = cells(table, FIRST)
    assert [*rows] == ["pegasi (2,000)", "CutMix (64)"]
    # recognised .25, by the selector 1.5, then from .375 in steps of an eighth; half widths .012.
    assert rows["pegasi (2,000)"] == [
        "25.0% ±1.2", "150.0% ±1.2", "25.0% ±1.2", "25% ±1", "25% ±1", "25% ±1", "25% ±1", "0.2 ±0.0",
        "0.375 ±0.012", "0.50 ±0.01", "0.62 ±0.01", "0.750 ±0.012",
        "0.88 ±0.01", "1.00 ±0.01", "1.12 ±0.01", "1.25 ±0.01",
    ]  # fmt: skip
    assert rows["CutMix (64)"][11] == "-"  # undefined


def test_without_a_selecting_recogniser_a_winged_judge_or_a_panel_there_is_no_column_of_it() -> None:
    plain = card()
    for figures in plain.rows.values():
        for name in [
            name for name in figures if name in ("recognised_selecting", "winged") or name.startswith("panel")
        ]:
            del figures[name]
    table = console_table(plain)
    assert not any(head in table for head in ("by selector", "winged", "panel"))
    rows = cells(table, ["both seen ↑", "2 min p ↑", *SETS])
    assert rows["pegasi (2,000)"][:2] == ["25.0% ±1.2", "0.375 ±0.012"]
    assert rows["pegasi (2,000)"][-1] == "1.25 ±0.01"


def test_what_a_row_does_not_have_is_left_blank_and_an_interval_that_is_unknown_left_out() -> None:
    plain = card()
    del plain.rows[CUTMIX]["linearity"]
    rows = cells(console_table(plain), ["from parent", "not overlaid ↑"])
    assert rows["pegasi (2,000)"][-1] == "1.375 ±0.012"
    assert rows["CutMix (64)"][-2].split("  ")[-1].strip() == "0.500"
    assert rows["CutMix (64)"][-1] == ""


def test_the_models_own_figures_and_the_alarms_follow() -> None:
    lines = console_table(card(alarms=("Fire.", "Water."))).splitlines()
    assert [line.split() for line in lines[-4:-2]] == [["PSNR", "21.50", "±0.12"], ["midpoint", "-"]]
    assert lines[-2:] == ["ALARM: Fire.", "ALARM: Water."]
    assert "ALARM" not in console_table(card())


def compared(table: str) -> dict[str, list[str]]:
    rows = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in table.splitlines()]
    return {row[0]: row[1:] for row in rows}


def test_runs_are_compared_over_their_seeds_by_hand() -> None:
    cards = [card("acai-s1", 1, 0.5), card("vae-s0", 0, 0.125), card("acai-s0", 0, 0.25)]
    rows = compared(comparison_table(cards))
    assert [*rows][:3] == ["pegasi of", "acai", "vae"]
    heads = rows["pegasi of"]
    assert heads[:2] == ["seeds", "both seen ↑"]
    assert heads[-2:] == ["PSNR ↑", "midpoint ↑"]
    # .25 and .5: mean .375, deviation .1768, half 12.706 * .1768 / sqrt(2) = 1.588.
    assert rows["acai"][:2] == ["2", "37.5% ±158.8 (17.7)"]
    assert rows["acai"][heads.index("KID* ↓")] == "0.875 ±1.588 (0.177)"
    # Equal seeds: the half width of the images, .125.
    assert rows["acai"][heads.index("PSNR ↑")] == "21.50 ±0.12 (0.00)"
    assert rows["acai"][heads.index("midpoint ↑")] == "-"
    assert rows["vae"][:2] == ["1", "12.5% ±1.2"]


def test_runs_measured_in_two_ways_are_not_averaged() -> None:
    rows = compared(comparison_table([card("vae-s0", 0, key="a"), card("vae-s1", 1, key="b")]))
    one, other = [*rows][1:3]
    assert one.startswith("vae (a")
    assert other.startswith("vae (b")
    assert rows[one][0] == rows[other][0] == "1"


def test_every_measure_fits_a_table() -> None:
    model = {name: around(0.5, 0.1) for name in MODEL_MEASURES}
    plain = card()
    plain.model.update(model)
    table = console_table(plain)
    own = [measure for name, measure in MEASURES.items() if name not in ("p_first", "p_second")]
    for measure in (*own, *MODEL_MEASURES.values()):
        assert measure.title in table, measure
    comparison_table([plain])
