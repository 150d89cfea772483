"""What `evaluate` prints: one sentence of the headline figures beside the control, and for several runs a line each."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence

from pegasus_lightning.evaluate.tables import aligned, cell
from pegasus_lightning.runs.folder import RunName
from pegasus_lightning.runs.scorecards import (
    MEASURES,
    MODEL_MEASURES,
    PEGASI,
    PIXEL_AVERAGE,
    VERDICT_SEEDS,
    Figure,
    Scorecard,
    Spread,
    format_figure,
    groups,
    over_seeds,
    shown_ends,
)

WIDTH, LEAST_NAME = 80, 20
COLUMNS = ("recognised", "winged", "panel_winged", "kid", "coverage")  # of a line a run, those that are measured
NUMBERS = ("no", "one", "two")
PAGE = "python -m pegasus_lightning.report"


def sentence(cards: Sequence[Scorecard]) -> str:
    """Return the headline figures as one sentence, and another on what they cannot decide."""
    found = groups(cards)
    if len(found) > 1:
        return _sentence_of_many(found)
    ((name, members),) = found.items()
    seeds = len(members)
    own = [figures for card in members if (figures := card.rows[PEGASI])]
    control = members[0].rows.get(PIXEL_AVERAGE, {})
    parts = []
    for key, verb in (("recognised", "both seen in"), ("winged", "winged"), ("panel_winged", "winged to a panel")):
        if all(key in figures for figures in own):
            value = _with_interval(key, over_seeds([figures[key] for figures in own]))
            of = f" of {members[0].counts[PEGASI]:,} pegasi" if key == "recognised" else ""
            beside = f", {_value(key, control[key])} of pixel averages" if key in control else ""
            parts.append(f"{verb} {value}{of}{beside}")
    beside = f", {_value('kid', control['kid'])} of pixel averages" if "kid" in control else ""
    parts.append(f"KID* {_with_interval('kid', over_seeds([figures['kid'] for figures in own]))}{beside}")
    psnr = over_seeds([card.model["psnr"] for card in members]).mean
    parts.append(f"reconstructions {psnr:.1f} dB")
    named = name if seeds > 1 else members[0].name
    over = f" ({seeds} seeds)" if seeds > 1 else ""
    return f"{named}{over}: {'; '.join(parts)}. {_verdict([seeds])}"


def _sentence_of_many(found: dict[str, list[Scorecard]]) -> str:
    cards = [card for members in found.values() for card in members]
    shares = {name: over_seeds([card.rows[PEGASI]["recognised"] for card in found[name]]).mean for name in found}
    known = {name: share for name, share in shares.items() if not math.isnan(share)}
    names = dict(zip(found, _short([*found]), strict=True))
    low, high = (choose(known or shares, key=lambda name: shares[name]) for choose in (min, max))
    ends = [f"{format(shares[name], '.1%')} ({names[name]})" for name in (low, high)]
    control = cards[0].rows.get(PIXEL_AVERAGE, {}).get("recognised")
    beside = f", and in {_value('recognised', control)} of pixel averages" if control else ""
    between = " to ".join(ends) if shares[low] != shares[high] else format(shares[low], ".1%")
    counts = [len(members) for members in found.values()]
    return f"Both seen in {between} of {cards[0].counts[PEGASI]:,} pegasi{beside}. {_verdict(counts)}"


def _verdict(seeds: Sequence[int]) -> str:
    fewest = min(seeds)
    if fewest < VERDICT_SEEDS:
        each = " each" if len(seeds) > 1 and len(set(seeds)) == 1 else " of some" if len(seeds) > 1 else ""
        named = f"{NUMBERS[fewest].capitalize()} seed{'s' if fewest > 1 else ''}{each}"
        return f"{named}: no verdict between runs (it takes {VERDICT_SEEDS})."
    return "The page says which differences between models count."


def _value(key: str, figure: Figure) -> str:
    return format_figure(MEASURES[key], figure.value)


def _with_interval(key: str, figure: Spread) -> str:
    """Return `value (low to high)`, with the sign of a percentage once."""
    measure = MEASURES[key]
    text = format_figure(measure, figure.mean)
    if math.isnan(figure.low):
        return text
    ends = shown_ends(measure, figure.low, figure.high)
    low, high = (format_figure(measure, end).removesuffix("%") for end in ends)
    return f"{text} ({low} to {high})"


def lines_of(cards: Sequence[Scorecard]) -> str:
    """Return a line a run, one for the mean over the seeds of each model, and the control's; at most WIDTH wide.

    Where the columns leave no room for the names, the last of them are left out.
    """
    labels = _short([card.name for card in cards])
    rows = [[card] for card in cards]
    for group, members in groups(cards).items():
        if len(members) > 1:
            labels.append(f"{RunName.parse(group).readable.partition(',')[0]}, {len(members)} seeds")
            rows.append(members)
    columns = [
        ["PSNR", *(cell(MODEL_MEASURES["psnr"], over_seeds([c.model["psnr"] for c in row])) for row in rows), ""]
    ]
    control = cards[0].rows.get(PIXEL_AVERAGE, {})
    for name in COLUMNS:
        found = [[card.rows[PEGASI].get(name) for card in row] for row in rows]
        if any(figure for row in found for figure in row):
            means = [over_seeds(known) if (known := [f for f in row if f]) == row else None for row in found]
            cells = [cell(MEASURES[name], figure) for figure in [*means, control.get(name)]]
            columns.insert(-1, [MEASURES[name].title, *cells])
    while len(columns) > 2 and WIDTH - _width(columns) < LEAST_NAME:
        del columns[-2]
    names = ["", *(_clipped(label, WIDTH - _width(columns)) for label in labels), PIXEL_AVERAGE]
    lines = aligned([*zip(names, *columns, strict=True)])
    return "\n".join(line.rstrip() for line in (lines if control else lines[:-1]))


def _width(columns: Sequence[Sequence[str]]) -> int:
    return sum(2 + max(map(len, column)) for column in columns)


def _short(names: Sequence[str]) -> list[str]:
    """Return names of runs or models without the settings that all of them share."""
    parsed = [RunName.parse(name) for name in names]
    parts = [name.readable.split(",") for name in parsed]
    shared = set.intersection(*(set(some[1:]) for some in parts)) if len(names) > 1 else set()
    kept = [",".join([some[0], *(part for part in some[1:] if part not in shared)]) for some in parts]
    short = [name._replace(readable=text).short for name, text in zip(parsed, kept, strict=True)]
    return short if len(set(short)) == len(short) else list(names)


def _clipped(name: str, room: int) -> str:
    """Return a name that has `room` characters or fewer, with its end, which tells seeds apart."""
    return name if len(name) <= room else f"{name[: room - 9]}…{name[-8:]}"


def page_command(places: Sequence[str]) -> str:
    """Return the command that makes the page of these runs."""
    return " ".join([PAGE, *(shlex.quote(place) for place in places)])
