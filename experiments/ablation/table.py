"""Tables of experiments/ablation, from the scorecards in a folder of evaluated runs.

    python experiments/ablation/table.py runs/ablation

Prints the pegasi of every group of runs (means over seeds, half widths of 95 % intervals by Student's t), their
differences to the baseline (Welch's intervals; bold: a verdict, with three seeds or more on both sides), the controls,
and the measures of the models themselves. A second argument names another baseline.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from pegasus_lightning.runs.scorecards import (
    MEASURES,
    MODEL_MEASURES,
    PEGASI,
    Figure,
    Measure,
    Spread,
    difference,
    differs,
    format_figure,
    groups,
    newest_scorecard,
    over_seeds,
    read_scorecard,
)

BASELINE = "adversarial_vae"
COLUMNS = ("recognised", "chimera", "p_first", "p_second", "kid", "density", "coverage", "precision", "recall")
COMPARED_MODEL = ("psnr", "ssim", "largest_step", "relative_midpoint")
MORE = (
    "nearest_pixels",
    "nearest_features",
    "memorised",
    "variety",
    "variety_features",
    "parent_distance",
    "linearity",
)


def row(name: str, cells: Sequence[str]) -> None:
    print(f"| {name} | " + " | ".join(cells) + " |")


def head(first: str, measures: Sequence[Measure]) -> None:
    row(first, [measure.title for measure in measures])
    row("---", ["---"] * len(measures))


def cell(measure: Measure, figure: Figure | Spread) -> str:
    value = figure.mean if isinstance(figure, Spread) else figure.value
    return f"{format_figure(measure, value)} ± {format_figure(measure, figure.half).removesuffix('%')}"


def main(place: str, baseline: str = BASELINE) -> None:
    paths = [newest_scorecard(folder) for folder in sorted(Path(place).iterdir()) if folder.is_dir()]
    cards = [read_scorecard(path) for path in paths if path is not None]
    found = groups(cards)

    def over(members: Sequence, section: str, name: str):  # type: ignore[no-untyped-def, type-arg]
        return over_seeds([(card.rows[section] if section else card.model)[name] for card in members])

    for names in (COLUMNS, MORE):
        print("\n### Pegasi\n")
        head("model (seeds)", [MEASURES[name] for name in names])
        for group, members in found.items():
            spreads = [(MEASURES[name], over(members, PEGASI, name)) for name in names]
            row(f"`{group}` ({len(members)})", [cell(m, s) for m, s in spreads])
    names = [*((PEGASI, name, MEASURES[name]) for name in (*COLUMNS, "variety", "linearity"))]
    names += [("", name, MODEL_MEASURES[name]) for name in COMPARED_MODEL]
    print(f"\n### Difference to `{baseline}`\n")
    head("model", [measure for _, _, measure in names])
    for group, members in found.items():
        if group == baseline:
            continue
        cells = []
        for section, name, measure in names:
            own, other = over(members, section, name), over(found[baseline], section, name)
            sure = "**" if differs(own, other) else ""
            cells.append(f"{sure}{cell(measure, difference(own, other))}{sure}")
        row(f"`{group}`", cells)
    for names in (COLUMNS, MORE[:-1]):
        print("\n### Controls\n")
        head("what", [MEASURES[name] for name in names])
        first = found[baseline][0]
        for name, figures in first.rows.items():
            if name != PEGASI and name not in ("reconstructions", "prior samples"):
                row(name, [cell(MEASURES[n], figures[n]) if n in figures else "" for n in names])
        for kind in ("reconstructions", "prior samples"):
            for group, members in found.items():
                if kind in members[0].rows:
                    spreads = [(MEASURES[n], over(members, kind, n)) for n in names if n in members[0].rows[kind]]
                    row(f"`{group}`: {kind}", [cell(m, s) for m, s in spreads])
    print("\n### Models\n")
    names = [name for name in MODEL_MEASURES if name in cards[0].model]
    head("model", [MODEL_MEASURES[name] for name in names])
    for group, members in found.items():
        spreads = [(MODEL_MEASURES[name], over(members, "", name)) for name in names]
        row(f"`{group}`", [cell(m, s) for m, s in spreads])
    for card in cards:
        for alarm in card.alarms:
            print(f"\n`{card.name}`: {alarm}")


if __name__ == "__main__":
    main(*sys.argv[1:])
