"""Table of the ladder, from the scorecards of its runs (see `ladder.py`).

    python experiments/pegasus/table.py runs/pegasus_ladder

One row for each rung: means over seeds with half their 95 % intervals; then the controls, equal for all rungs.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

from ladder import RUNGS

from pegasus_lightning.runs.scorecards import (
    CUTMIX,
    MEASURES,
    MODEL_MEASURES,
    PEGASI,
    PIXEL_AVERAGE,
    RECONSTRUCTIONS,
    Scorecard,
    format_figure,
    newest_scorecard,
    over_seeds,
    read_scorecard,
)

OF_PEGASI = (
    "winged",
    "recognised",
    "kid",
    "density",
    "coverage",
    "nearest_pixels",
    "linearity",
    "variety",
)


def images_per_second(run: Path) -> float:
    """Return the median of the logged speeds of a run."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return statistics.median(line[key] for line in lines for key in ["speed/images_per_second"] if key in line)


def figures(cards: list[Scorecard], row: str) -> list[str]:
    """Return one cell for each measure of a set of images."""
    cells = []
    for name in OF_PEGASI:
        found = [card.rows[row][name] for card in cards if name in card.rows[row]]
        spread = over_seeds(found) if found else None
        half = "" if spread is None else f" ± {format_figure(MEASURES[name], spread.half)}"
        cells.append("-" if spread is None else format_figure(MEASURES[name], spread.mean) + half)
    return cells


def main(place: str) -> None:
    """Print the table."""
    found: dict[str, list[tuple[Path, Scorecard]]] = {}
    for run in sorted(Path(place).iterdir()):
        card = newest_scorecard(run) if run.is_dir() else None
        if card is not None:
            found.setdefault(run.name.rpartition("-s")[0].split(",")[0], []).append((run, read_scorecard(card)))
    head = ["rung", "seeds", *(MEASURES[name].title for name in OF_PEGASI), "KID* rec.", "PSNR", "images/s"]
    print("| " + " | ".join(head) + " |\n|" + " --- |" * len(head))
    every: list[Scorecard] = []
    for name, _, _ in RUNGS:
        if name not in found:
            continue
        cards = [card for _, card in found[name]]
        every += cards
        reconstructed = over_seeds([card.rows[RECONSTRUCTIONS]["kid"] for card in cards]).mean
        psnr = over_seeds([card.model["psnr"] for card in cards])
        speed = statistics.mean(images_per_second(run) for run, _ in found[name])
        more = [f"{reconstructed:.3f}", format_figure(MODEL_MEASURES["psnr"], psnr.mean), f"{speed:.0f}"]
        print("| " + " | ".join([name, str(len(cards)), *figures(cards, PEGASI), *more]) + " |")
    real = [row for row in every[0].rows if row.startswith("real ")] if every else []
    for row in (PIXEL_AVERAGE, CUTMIX, *real):
        print("| " + " | ".join([f"({row})", "", *figures(every[:1], row), "", "", ""]) + " |")


if __name__ == "__main__":
    main(*sys.argv[1:])
