"""Tests of the sentence and the lines that `evaluate` prints: right figures, honest about seeds, narrow."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pegasus_lightning.evaluate.summary import WIDTH, lines_of, page_command, sentence
from pegasus_lightning.runs.scorecards import PEGASI, PIXEL_AVERAGE, Figure, Scorecard

SHARED = "silhouettes,train_per_class=200,channels=8"


def card(name: str, seed: int, seen: float, *, winged: float | None = None, psnr: float = 20.13) -> Scorecard:
    own = {"recognised": Figure(seen, seen - 0.011, seen + 0.014), "kid": Figure(2.38, 2.3, 2.46)}
    own |= {"coverage": Figure(0.03, 0.02, 0.04)} | ({} if winged is None else {"winged": Figure(winged, 0.001, 0.02)})
    control = {
        "recognised": Figure(0.123, 0.1, 0.15),
        "kid": Figure(0.734, 0.7, 0.8),
        "coverage": Figure(0.5, 0.4, 0.6),
    }
    control |= {} if winged is None else {"winged": Figure(0.0, 0.0, 0.01)}
    group, rows = f"{name},{SHARED}", {PEGASI: own, PIXEL_AVERAGE: control}
    model = {"psnr": Figure(psnr, psnr - 0.2, psnr + 0.2)}
    return Scorecard("runs/x", f"{group}-s{seed}", group, seed, 9, ["horse", "bird"], "k", {}, {}, {}, rows,
                     {PEGASI: 2000}, model)  # fmt: skip


def test_one_run_is_one_sentence_beside_its_control_without_a_verdict() -> None:
    assert sentence([card("acai", 0, 0.031)]) == (
        f"acai,{SHARED}-s0: both seen in 3.1% (2.0 to 4.5) of 2,000 pegasi, 12.3% of pixel averages; KID* 2.380 (2.300 "
        "to 2.460), 0.734 of pixel averages; reconstructions 20.1 dB. One seed: no verdict between runs (it takes 3)."
    )
    assert "; winged 1.0% (0.1 to 2.0), 0.0% of pixel averages; " in sentence([card("acai", 0, 0.031, winged=0.01)])


@pytest.mark.parametrize(
    ("seeds", "verdict"),
    [
        ((1, 1), "One seed each: no verdict between runs (it takes 3)."),
        ((2, 3), "Two seeds of some: no verdict between runs (it takes 3)."),
        ((3, 3), "The page says which differences between models count."),
    ],
)
def test_several_models_are_a_span_and_a_verdict_takes_three_seeds(seeds: tuple[int, int], verdict: str) -> None:
    cards = [card("acai", seed, 0.02) for seed in range(seeds[0])] + [
        card("vae", seed, 0.3) for seed in range(seeds[1])
    ]
    assert sentence(cards) == (
        f"Both seen in 2.0% (acai) to 30.0% (vae) of 2,000 pegasi, and in 12.3% of pixel averages. {verdict}"
    )


def test_a_line_a_run_the_mean_over_seeds_and_the_control_fit_a_terminal() -> None:
    cards = [card("acai", 0, 0.1), card("acai", 1, 0.2), card("vae", 0, 0.3)]
    lines = lines_of(cards).splitlines()
    assert [line.partition("  ")[0].strip() for line in lines] == [
        "", "acai-s0", "acai-s1", "vae-s0", "acai, 2 seeds", "pixel average",
    ]  # fmt: skip
    assert lines[1].split()[1:3] == ["10.0%", "±1.4"]
    # .1 and .2: mean .15, deviation .0707; 12.706 * .0707 / sqrt(2) = .635.
    assert lines[4].split()[3:5] == ["15.0%", "±63.5"]
    assert lines[5].split()[2:4] == ["12.3%", "±2.7"]
    wide = lines_of([card("acai", 0, 1, winged=1), card("acai", 1, 0.5, winged=1)])  # no room for the coverage
    assert wide.split("\n")[0].split() == ["both", "seen", "winged", "KID*", "PSNR"] and wide.split()[5] == "acai-s0"
    long = [replace(one, name=f"{'x' * 90}{index}-s{index}") for index, one in enumerate(cards)]
    clipped = lines_of(long).splitlines()
    assert max(map(len, [*lines, *clipped])) <= WIDTH
    assert [line.split()[0][-5:] for line in clipped[1:4]] == ["x0-s0", "x1-s1", "x2-s2"]


def test_the_command_for_the_page_can_be_typed() -> None:
    assert page_command(["runs/a", "runs/*/vae x"]) == "python -m pegasus_lightning.report runs/a 'runs/*/vae x'"
