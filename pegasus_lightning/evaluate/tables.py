"""Scorecards as whole text tables (`verbose=true`): the image sets of one run, and several runs compared."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pegasus_lightning.runs.scorecards import (
    MEASURES,
    MODEL_MEASURES,
    PEGASI,
    VERDICT_SEEDS,
    Figure,
    Measure,
    Scorecard,
    Spread,
    format_figure,
    groups,
    over_seeds,
)

PANEL = ("panel_winged", "panel_first", "panel_second", "panel_nothing", "panel_realism")
TABLES = (
    ("recognised", "recognised_selecting", "winged", *PANEL, "chimera", "p_first", "p_second")
    + ("kid", "density", "coverage", "precision", "recall"),
    ("nearest_pixels", "nearest_features", "memorised", "variety", "variety_features", "parent_distance", "linearity"),
)
INCEPTION = ("inception_fid", "inception_kid")
COMPARED = ("recognised", "chimera", "kid", "density", "coverage", "memorised", "variety", "linearity")
COMPARED_MODEL = ("psnr", "midpoint")
ARROWS = {"higher": " ↑", "lower": " ↓", "": ""}


def cell(measure: Measure, figure: Figure | Spread | None) -> str:
    """Return `value ±half`, with the half width of the 95 % interval."""
    if figure is None:
        return ""
    text = format_figure(measure, figure.mean if isinstance(figure, Spread) else figure.value)
    half = figure.half
    return text if math.isnan(half) else f"{text} ±{format_figure(measure, half).removesuffix('%')}"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return one line per row with columns of equal width, the first left-aligned, the others right-aligned."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for first, *others in rows:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]))
    return lines


def console_table(card: Scorecard) -> str:
    """Return the table of one run: a row per image set with 95 % intervals, then model metrics and alarms."""
    reports = card.recognisers["reports"]
    lines = [f"{card.name}, batch {card.batches}, judged by {reports['file']} (features of its own where there is a *)"]
    titles = {"p_first": f"p {card.classes[0]}", "p_second": f"p {card.classes[1]}"}
    inception = tuple(name for name in INCEPTION if name in card.rows[PEGASI])
    for table in (*TABLES, inception) if inception else TABLES:
        names = [name for name in table if name in card.rows[PEGASI]]
        head = [titles.get(name, MEASURES[name].title) + ARROWS[MEASURES[name].better] for name in names]
        rows = [["", *head]]
        rows += [
            [f"{row} ({card.counts[row]:,})", *(cell(MEASURES[name], figures.get(name)) for name in names)]
            for row, figures in card.rows.items()
        ]
        lines += ["", *aligned(rows)]
    lines.append("")
    lines += aligned([[MODEL_MEASURES[name].title, cell(MODEL_MEASURES[name], f)] for name, f in card.model.items()])
    lines += [f"ALARM: {alarm}" for alarm in card.alarms]
    return "\n".join(lines)


def comparison_table(cards: Sequence[Scorecard]) -> str:
    """Return the table of several runs: means over seeds with 95 % intervals, and the spread over seeds if several."""
    columns = [(PEGASI, name, MEASURES[name]) for name in COMPARED]
    columns += [("", name, MODEL_MEASURES[name]) for name in COMPARED_MODEL]
    rows = [["pegasi of", "seeds", *(measure.title + ARROWS[measure.better] for _, _, measure in columns)]]
    for group, members in groups(cards).items():
        cells = []
        for row, name, measure in columns:
            found = [(card.rows[row] if row else card.model)[name] for card in members]
            spread = over_seeds(found)
            seeds = "" if math.isnan(spread.spread) else f" ({format_figure(measure, spread.spread).removesuffix('%')})"
            cells.append(cell(measure, spread) + seeds)
        rows.append([group, str(len(members)), *cells])
    note = (
        "± is half of a 95 % interval: over the seeds (Student's t), with a single seed over its images. In brackets: "
        f"the standard deviation over seeds. Fewer than {VERDICT_SEEDS} seeds a side decide nothing."
    )
    return "\n".join([*aligned(rows), note])
