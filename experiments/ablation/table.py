"""Tables of experiments/ablation, from the scorecards in a folder of evaluated runs.

    python experiments/ablation/table.py runs/first_light

Prints the pegasi of every group of runs (means over seeds, half widths of 95 % intervals), their differences to the
baseline, the controls, and the measures of the models themselves.
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
    difference,
    format_figure,
    groups,
    newest_scorecard,
    over_seeds,
    read_scorecard,
)

BASELINE = "adversarial_vae"
COLUMNS = ("recognised", "chimera", "p_first", "p_second", "kid", "density", "coverage", "precision", "recall")
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


def cell(measure: Measure, value: float, low: float, high: float) -> str:
    return f"{format_figure(measure, value)} ± {format_figure(measure, (high - low) / 2)}"


def main(place: str) -> None:
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
            row(f"`{group}` ({len(members)})", [cell(m, s.mean, s.low, s.high) for m, s in spreads])
    print(f"\n### Pegasi, difference to `{BASELINE}`\n")
    names = (*COLUMNS, "variety", "linearity")
    head("model", [MEASURES[name] for name in names])
    for group, members in found.items():
        if group == BASELINE:
            continue
        cells = []
        for name in names:
            d: Figure = difference(over(members, PEGASI, name), over(found[BASELINE], PEGASI, name))
            sure = "**" if d.low > 0 or d.high < 0 else ""
            cells.append(f"{sure}{cell(MEASURES[name], *d)}{sure}")
        row(f"`{group}`", cells)
    for names in (COLUMNS, MORE[:-1]):
        print("\n### Controls\n")
        head("what", [MEASURES[name] for name in names])
        first = found[BASELINE][0]
        for name, figures in first.rows.items():
            if name != PEGASI and name not in ("reconstructions", "prior samples"):
                row(name, [cell(MEASURES[n], *figures[n]) if n in figures else "" for n in names])
        for kind in ("reconstructions", "prior samples"):
            for group, members in found.items():
                if kind in members[0].rows:
                    spreads = [(MEASURES[n], over(members, kind, n)) for n in names if n in members[0].rows[kind]]
                    row(f"`{group}`: {kind}", [cell(m, s.mean, s.low, s.high) for m, s in spreads])
    print("\n### Models\n")
    names = [name for name in MODEL_MEASURES if name in cards[0].model]
    head("model", [MODEL_MEASURES[name] for name in names])
    for group, members in found.items():
        spreads = [(MODEL_MEASURES[name], over(members, "", name)) for name in names]
        row(f"`{group}`", [cell(m, s.mean, s.low, s.high) for m, s in spreads])
    for card in cards:
        for alarm in card.alarms:
            print(f"\n`{card.name}`: {alarm}")


if __name__ == "__main__":
    main(sys.argv[1])
