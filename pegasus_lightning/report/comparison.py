"""Tables from scorecards: every group of runs compared with the baseline, between the controls."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from pegasus_lightning.report.read import printable
from pegasus_lightning.runs.folder import flat
from pegasus_lightning.runs.scorecards import (
    MEASURES,
    MODEL_MEASURES,
    PEGASI,
    PRIOR,
    RECONSTRUCTIONS,
    Figure,
    Measure,
    Scorecard,
    Spread,
    difference,
    differs,
    format_figure,
    groups,
    over_seeds,
)

BASELINE = "adversarial_vae"  # default
MINUS = "\u2212"
MAX_COMPARISONS, MAX_SETTINGS = 12, 20  # most comparisons, and most settings of one that are named
MAX_UNKNOWN = 20  # most columns of measures, and most image sets, that this version does not know
OWN = (RECONSTRUCTIONS, PRIOR)  # sets that a model makes, even if there is only one model
RANKING = ("winged", "recognised")  # measures by which sets are ordered, if one has them; more is better
# Columns shown by default.
MAIN: tuple[str, ...] = (
    "recognised",
    "winged",
    "panel_winged",
    "panel_nothing",
    "panel_realism",
    "kid",
    "density",
    "coverage",
    "memorised",
    "variety",
    "linearity",
)
MAIN += ("psnr", "ssim", "excess_bce", "largest_step", "relative_midpoint", "line_distance", "line_smoothness")


@dataclass(frozen=True)
class Column:
    """A measure as a column; `main` columns are always shown."""

    measure: Measure
    main: bool

    @property
    def arrow(self) -> str:
        """Arrow in the direction of better values."""
        return {"higher": "\u2191", "lower": "\u2193"}.get(self.measure.better, "")

    @property
    def help(self) -> str:
        """Meaning of the measure and the direction of better values."""
        better = f" {self.measure.better.capitalize()} is better." if self.measure.better else ""
        return f"{self.measure.meaning}{better}"


@dataclass(frozen=True)
class Cell:
    """A formatted figure."""

    value: float  # for sorting; NaN if undefined
    text: str  # the value, in the format of the measure
    half: str  # half of its 95 % interval, in the format of the measure
    detail: str  # the interval and the value of each seed
    difference: str = ""  # to the baseline; empty for the baseline itself
    interval: str = ""  # 95 % interval of the difference; empty without one
    verdict: str = ""  # better, worse or differs; empty if the interval contains 0, or for too few seeds


@dataclass(frozen=True)
class Row:
    """Cells of a group or a control, one per column."""

    name: str
    note: str
    cells: list[Cell]
    is_baseline: bool = False
    is_control: bool = False


@dataclass(frozen=True)
class Table:
    """Rows with common columns."""

    columns: list[Column]
    rows: list[Row]


@dataclass(frozen=True)
class Point:
    """A set of images in the plot of recognised share against KID."""

    name: str
    recognised: Spread
    kid: Spread
    control: bool


@dataclass(frozen=True)
class Comparison:
    """Comparison of scorecards with one key. The tables `pegasi` and `own` have the same columns."""

    baseline: str  # group that the others are compared with
    settings: list[tuple[str, str]]  # evaluation settings, (key, value), that differ from the first comparison's
    cards: dict[str, list[Scorecard]]  # by group
    ranked_by: str  # measure that orders `pegasi`, the best first; empty without one
    pegasi: Table  # of models and controls
    own: Table  # the other image sets that models make
    models: Table  # metrics of the models themselves
    points: list[Point]  # of the plot: pegasi, and the controls that are the same for all models
    spreads: dict[str, dict[str, Spread]]  # figures by row of `pegasi` and measure


def choose_baseline(names: Iterable[str], wanted: str | None = None) -> str:
    """Return `wanted` if it is a group; else the adversarial VAE with the shortest name, else the first group."""
    names = list(names)
    alike = sorted((name for name in names if name.startswith(BASELINE)), key=len)
    return wanted if wanted in names else (alike or names)[0]


def compare(cards: Sequence[Scorecard], baseline: str | None = None) -> list[Comparison]:
    """Return one comparison per evaluation setting (`Scorecard.key`), the most common first, up to MAX_COMPARISONS."""
    by_key: dict[str, list[Scorecard]] = {}
    for card in cards:
        by_key.setdefault(card.key, []).append(card)
    ordered = sorted(by_key.values(), key=len, reverse=True)[:MAX_COMPARISONS]
    return [_compare(members, baseline, ordered[0][0]) for members in ordered]


def _settings(card: Scorecard, usual: Scorecard) -> list[tuple[str, str]]:
    ours, theirs = (dict(flat({**one.settings, "parents": one.parents})) for one in (card, usual))
    found = [(key, printable(str(value), 200)) for key, value in ours.items() if value != theirs.get(key)]
    return found[:MAX_SETTINGS]


def _compare(cards: Sequence[Scorecard], wanted: str | None, usual: Scorecard) -> Comparison:
    grouped = groups(cards)
    baseline = choose_baseline(grouped, wanted)
    grouped = {baseline: grouped[baseline]} | grouped
    pegasi = {name: [card.rows.get(PEGASI, {}) for card in members] for name, members in grouped.items()}
    models = {name: [card.model for card in members] for name, members in grouped.items()}
    controls, own = _other_sets(grouped)
    shared = {name: rows for name, rows in controls.items() if name in cards[0].rows}
    every = [*pegasi.values(), *controls.values(), *own.values()]
    columns = _columns(MEASURES, [figures for members in every for figures in members])
    model_columns = _columns(MODEL_MEASURES, [figures for members in models.values() for figures in members])
    notes = {name: _seeds(members) for name, members in grouped.items()}
    ranked_by = next((name for name in RANKING if name in columns), "")
    rows = _rows(columns, pegasi, notes, baseline)
    rows += [replace(row, is_control=True) for row in _rows(columns, controls)]
    if ranked_by:
        places = [[*columns].index(name) for name in RANKING if name in columns]
        rows.sort(key=lambda row: [_descending(row.cells[place].value) for place in places])
    return Comparison(
        baseline,
        _settings(cards[0], usual),
        grouped,
        ranked_by,
        pegasi=Table(list(columns.values()), rows),
        own=Table(list(columns.values()), _rows(columns, own)),
        models=Table(list(model_columns.values()), _rows(model_columns, models, notes, baseline)),
        points=[*_points(pegasi, control=False), *_points(shared, control=True)],
        spreads={name: _spreads(members) for name, members in (controls | pegasi).items()},
    )


def _descending(value: float) -> float:
    return math.inf if math.isnan(value) else -value


def _points(sets: Mapping[str, Sequence[Mapping[str, Figure]]], control: bool) -> list[Point]:
    points = []
    for name, members in sets.items():
        spreads = _spreads(members)
        axes = [spreads[axis] for axis in ("recognised", "kid") if axis in spreads]
        if len(axes) == 2 and all(math.isfinite(value) for axis in axes for value in axis[:3]):
            points.append(Point(name, axes[0], axes[1], control))
    return points


def _columns(known: Mapping[str, Measure], figures: Iterable[Mapping[str, Figure]]) -> dict[str, Column]:
    """Return the measures that any set has, in the order of `known`; unknown ones come last, titled by their name."""
    present = dict.fromkeys(name for one in figures for name in one)
    unknown = [name for name in present if name not in known][:MAX_UNKNOWN]
    ordered = [*(name for name in known if name in present), *unknown]
    plain = {name: Measure(name, "", ".3f", "A measure of a later version.") for name in ordered}
    return {name: Column(known.get(name, plain[name]), name in MAIN or name not in known) for name in ordered}


def _seeds(members: Sequence[Scorecard]) -> str:
    seeds = [str(card.seed) for card in members if card.seed is not None]
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(seeds)}" if seeds else ""


Sets = dict[str, list[dict[str, Figure]]]


def _other_sets(grouped: Mapping[str, Sequence[Scorecard]]) -> tuple[Sets, Sets]:
    """Return the figures of the controls and of the other image sets of each model, without the pegasi.

    A control that is the same for all models is one row, under its own name; every other set has one row per group.
    """
    counted = Counter(name for cards in grouped.values() for card in cards for name in card.rows if name != PEGASI)
    most = {name for name, _ in counted.most_common(MAX_UNKNOWN)}
    names = [name for name in counted if name in most]
    controls: Sets = {}
    own: Sets = {}
    for name in names:
        having = {group: [c.rows[name] for c in cards if name in c.rows] for group, cards in grouped.items()}
        everyone = [row for rows in having.values() for row in rows]
        if name not in OWN and all(_same(row, everyone[0]) for row in everyone):
            controls[name] = everyone[:1]
        else:
            rows = {f"{name}, {group}": members for group, members in having.items() if members}
            (own if name in OWN else controls).update(rows)
    return controls, own


def _same(row: Mapping[str, Figure], other: Mapping[str, Figure]) -> bool:
    """Return whether two rows are equal up to the rounding of different machines."""
    return row.keys() == other.keys() and all(
        math.isclose(a, b, rel_tol=1e-4, abs_tol=1e-6) or (math.isnan(a) and math.isnan(b))
        for name in row
        for a, b in zip(row[name], other[name], strict=True)
    )


def _spreads(members: Sequence[Mapping[str, Figure]]) -> dict[str, Spread]:
    names = dict.fromkeys(name for figures in members for name in figures)
    return {name: over_seeds([figures[name] for figures in members if name in figures]) for name in names}


def _rows(
    columns: Mapping[str, Column],
    sets: Mapping[str, Sequence[Mapping[str, Figure]]],
    notes: Mapping[str, str] | None = None,
    baseline: str | None = None,
) -> list[Row]:
    against = _spreads(sets[baseline]) if baseline is not None else {}
    rows = []
    for name, members in sets.items():
        spreads = _spreads(members)
        cells = [
            cell(column.measure, spreads.get(key), None if name == baseline else against.get(key))
            for key, column in columns.items()
        ]
        rows.append(Row(name, (notes or {}).get(name, ""), cells, name == baseline))
    return rows


def cell(measure: Measure, spread: Spread | None, baseline: Spread | None = None) -> Cell:
    """Return a formatted figure, with its difference to the baseline if given."""
    if spread is None or math.isnan(spread.mean):
        return Cell(math.nan, "\u2013", "", "not defined")
    half = spread.half
    detail = f"95 %: {plain(measure, spread.low)} to {plain(measure, spread.high)}"
    if math.isnan(spread.low):
        detail = "no interval (of a release whose intervals were too narrow: evaluate again)"
    if len(spread.values) > 1:
        detail += f"; {len(spread.values)} seeds: {', '.join(plain(measure, value) for value in spread.values)}"
    written = plain(measure, half).rstrip("%") if math.isfinite(half) else ""
    cell = Cell(spread.mean, plain(measure, spread.mean), written, detail)
    if baseline is None or math.isnan(baseline.mean):
        return cell
    apart = difference(spread, baseline)
    verdict = ""
    if differs(spread, baseline):
        good = {"higher": apart.value > 0, "lower": apart.value < 0}.get(measure.better)
        verdict = "differs" if good is None else "better" if good else "worse"
    interval = f"[{_signed(measure, apart.low)}, {_signed(measure, apart.high)}]"
    unit = " pp" if measure.style.endswith("%") else ""
    return replace(
        cell,
        difference=f"{_signed(measure, apart.value)}{unit}",
        interval=interval if math.isfinite(apart.low) and math.isfinite(apart.high) else "",
        verdict=verdict,
    )


def plain(measure: Measure, value: float) -> str:
    """Return a value in the format of its measure, with a minus sign that is one."""
    return format_figure(measure, value).replace("-", MINUS)


def _signed(measure: Measure, value: float) -> str:
    """Format a value with its sign (none if it rounds to 0), percentages in points."""
    if measure.style.endswith("%"):
        text = format(100 * value, f"+{measure.style[:-1]}f")
    else:
        text = format(value, f"+{measure.style}")
    return text[1:] if text.strip("+-0.") == "" else text.replace("-", MINUS)
