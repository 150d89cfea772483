"""Tables of the catalogue: in a terminal as wide as it is, and whole where a file or another program reads them."""

from __future__ import annotations

import csv
import io
import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pegasus_lightning.runs.catalogue import Entry, by_recipe, differing, measure_of, ranked, tags
from pegasus_lightning.runs.folder import RunName
from pegasus_lightning.runs.scorecards import format_figure
from pegasus_lightning.runs.state import printable

COLOURS = {"running": "yellow", "finished": "green", "out of time": "green", "interrupted": "magenta", "pruned": "cyan"}
COLOURS |= {"failed": "red", "died": "red", "unreadable": "red"}
TELLING = ("validation", "final", "health")  # groups of figures that `show` and `compare` show, beside a scorecard's
NARROWEST = 24  # characters of a name in a line
GAP = 2  # characters between columns
# Columns of figures: tag, head. Of the validation, which every run has at every epoch.
FIGURES = {
    "validation/psnr": "valid.\nPSNR",
    "final/psnr": "final\nPSNR",
    "validation/kl": "KL",
    "validation/critic_real": "C\nreal",
    "validation/critic_fake": "C\nfake",
    "winged": "winged",
    "recognised": "both\nseen",
}
LEAST = ("validation/critic_fake", "validation/critic_real", "time", "validation/kl", "final/psnr")  # go first
TEXTS = ("name", "status", "setting")  # keys of columns that stand to the left
KEPT = ("name", "status", "epochs")  # columns that never go


@dataclass(frozen=True)
class Column:
    """A column of a table. `head` has one line or two."""

    key: str
    head: str
    cells: list[str]

    @cached_property
    def width(self) -> int:
        """The characters of the longest line."""
        return max(cell_len(line) for text in (self.head, *self.cells) for line in text.split("\n"))


def told(text: str, longest: int = 5000) -> str:
    """Return a text of a foreign file in one line, see `printable`."""
    return printable(" ".join(text.split()) if "\n" in text or "\t" in text else text, longest)


def print_runs(console: Console, entries: Sequence[Entry], by: str = "", shared: Sequence[str] = ()) -> None:
    """Print a row a run. Columns without room in a terminal are left out, and named below.

    `by` is a figure that is shown in any case, and `shared` what is left out of the names.
    """
    columns, left_out = _fitting(_columns(entries, by), console.width, by)
    if shared:
        console.print(Text(f"Of all: {told(', '.join(shared))}", "dim"))
    _print(console, columns, [COLOURS.get(entry.state, "") for entry in entries])
    if left_out:
        console.print(Text(f"No room here for: {', '.join(left_out)}. `| cat` shows all.", "dim"))


def _print(console: Console, columns: Sequence[Column], colours: Sequence[str] = (), settings: int = 0) -> None:
    """Print a table, plain where no terminal shows it. `settings`: rows above a blank line; `colours`: of each status.

    Texts stand to the left, figures to the right.
    """
    left = [column.key in TEXTS for column in columns]
    rows = list(zip(*(column.cells for column in columns), strict=True))
    if not console.is_terminal:
        rule = "\u2500" * (sum(column.width + GAP for column in columns) - GAP)
        tall = 1 + max(column.head.count("\n") for column in columns)
        heads = list(zip(*(f"\n{column.head}".split("\n")[-tall:] for column in columns), strict=True))
        lines = [_line(columns, left, cells) for cells in [*heads, *rows]]
        above = len(heads) + settings
        print("\n".join([*lines[:tall], rule, *lines[tall:above], *([""] if settings else []), *lines[above:]]))
        return
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for column, text in zip(columns, left, strict=True):
        justify: Any = "left" if text else "right"
        table.add_column(Text(column.head), justify=justify, vertical="top", overflow="fold", no_wrap=not text)
    for index, row in enumerate(rows):
        styles = [colours[index] if colours and column.key == "status" else "" for column in columns]
        table.add_row(*map(Text, row, styles), end_section=index + 1 == settings)
    console.print(table)


def _line(columns: Sequence[Column], left: Sequence[bool], cells: Sequence[str]) -> str:
    blanks = [" " * (column.width - cell_len(text)) for column, text in zip(columns, cells, strict=True)]
    padded = [t + blank if to_left else blank + t for t, blank, to_left in zip(cells, blanks, left, strict=True)]
    return (" " * GAP).join(padded).rstrip()


def _columns(entries: Sequence[Entry], by: str) -> list[Column]:
    asked = (
        {}
        if by in FIGURES or not any(by in entry.figures for entry in entries)
        else {by: told(by, 60).replace("/", "/\n", 1)}
    )
    columns = [
        Column("name", "name", [told(entry.name, 300) for entry in entries]),
        Column("status", "status", [told(entry.state, 20) for entry in entries]),
        Column("epochs", "epochs", [epochs_of(entry) for entry in entries]),
        Column("time", "time", ["" if (s := entry.seconds) is None else clock(s) for entry in entries]),
        *(Column(tag, head, [written(entry, tag) for entry in entries]) for tag, head in (FIGURES | asked).items()),
    ]
    return [column for column in columns if column.key in KEPT or any(column.cells)]


def _fitting(columns: list[Column], width: int, by: str) -> tuple[list[Column], list[str]]:
    """Return the columns that fit a width, names wrapped, and the heads of the others."""
    name, *others = columns
    droppable = [key for key in (*LEAST, *reversed(FIGURES)) if key != by]
    left_out = []
    while (room := width - sum(column.width + GAP for column in others)) < min(name.width, NARROWEST):
        gone = next((key for key in droppable if any(column.key == key for column in others)), None)
        if gone is None:
            break
        left_out += [column.head.replace("\n", " ") for column in others if column.key == gone]
        others = [column for column in others if column.key != gone]
    names = [wrapped(text, max(room, NARROWEST // 2)) for text in name.cells]
    return [replace(name, cells=names), *others], left_out


def wrapped(name: str, room: int) -> str:
    """Return a name in lines of at most `room` characters, broken after commas where it can be."""
    lines = [""]
    for piece in re.findall(r"[^,/]*[,/]|[^,/]+", name):
        if lines[-1] and cell_len(lines[-1] + piece) > room:
            lines.append("")
        lines[-1] += piece
    return "\n".join(lines)


def telling(entries: Sequence[Entry]) -> list[str]:
    """Return the figures that tell how good runs are, without those of single batches and of the way there."""
    return [tag for tag in tags(entries) if tag.partition("/")[0] in TELLING or "/" not in tag]


def written(entry: Entry, tag: str) -> str:
    """Return a figure of a run as text; empty if it has none."""
    return format_figure(measure_of(tag), entry.figures[tag]) if tag in entry.figures else ""


def clock(seconds: float) -> str:
    """Return seconds as (hours,) minutes and seconds: `0:07`, `12:40`, `1:02:33`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def epochs_of(entry: Entry) -> str:
    done, asked = entry.epochs
    return "" if done is None and asked is None else f"{0 if done is None else done}/{'?' if asked is None else asked}"


def print_best(console: Console, entries: Sequence[Entry], by: str, lowest: bool | None) -> None:
    """Print the best run by a figure with the other seeds of it, what that is worth, and last its folder alone."""
    order = ranked(entries, by, lowest)
    groups = by_recipe(order)
    own = groups[0]
    print_runs(console, own, by)
    measure, first = measure_of(by), own[0]
    what = "lowest" if lowest or (lowest is None and measure.better == "lower") else "highest"
    said = [f"{first.name} has the {what} {by} of {len(order)} run{'s' * (len(order) > 1)}: {written(first, by)}."]
    if alike := sum(entry.figures[by] == first.figures[by] for entry in order) - 1:
        said.append(f"{alike} other{' has' if alike == 1 else 's have'} the same.")
    if len(own) > 1:
        said.append(f"It is one of {len(own)} seeds; their mean is {format_figure(measure, _mean(own, by))}.")
    else:
        said.append("It is a single seed: another one may be better or worse by chance.")
    seeds = [group for group in groups if len(group) > 1]
    means = sorted(seeds, key=lambda group: _mean(group, by), reverse=what == "highest")
    if means and means[0] is not own:
        mean, name = format_figure(measure, _mean(means[0], by)), RunName.parse(means[0][0].name).readable
        said.append(f"Of those with several seeds, {name} has the best mean: {mean} ({len(means[0])} seeds).")
    if "/" not in by and len({entry.card.key for entry in order if entry.card}) > 1:
        said.append("The evaluations have different settings, data or recognisers: such figures are not comparable.")
    for sentence in said:
        console.print(Text(told(sentence)))
    print(first.folder)


def _mean(entries: Sequence[Entry], tag: str) -> float:
    return statistics.fmean(entry.figures[tag] for entry in entries)


def print_comparison(console: Console, entries: Sequence[Entry]) -> None:
    """Print the settings in which runs differ and their figures, a column a run, and what to beware of."""
    letters = [_letter(index) for index in range(len(entries))]
    for letter, entry in zip(letters, entries, strict=True):
        console.print(Text(f"{letter}  {told(entry.name)}  ({told(str(entry.folder))})"), soft_wrap=True)
    settings = differing(entries)
    rows = {key: [told(value, 60) for value in values] for key, values in settings.items()}
    rows |= {"status": [told(entry.state, 20) for entry in entries], "epochs": [epochs_of(entry) for entry in entries]}
    rows |= {tag: [written(entry, tag) for entry in entries] for tag in telling(entries)}
    columns = [Column(letter, letter, [cells[i] for cells in rows.values()]) for i, letter in enumerate(letters)]
    head = Column("setting", "", [told(key, 60) for key in rows])
    while columns:  # in as many tables as the width asks for
        count = 1
        while head.width + sum(GAP + column.width for column in columns[: count + 1]) <= console.width:
            if (count := count + 1) > len(columns):
                break
        console.print()
        _print(console, [head, *columns[:count]], settings=len(settings))
        columns = columns[count:]
    for hint in _hints(entries, set(settings)):
        console.print(Text(hint))


def _letter(index: int) -> str:
    return chr(ord("A") + index) if index < 26 else f"A{index + 1}"


def _hints(entries: Sequence[Entry], keys: set[str]) -> list[str]:
    hints = []
    unknown = [entry.name for entry in entries if not entry.config]
    if unknown:
        hints.append(f"The settings of {told(', '.join(unknown))} are not known.")
    if keys == {"seed"}:
        hints.append("They differ in nothing but the seed: so far apart are figures by chance.")
    elif "seed" in keys:
        hints.append("Their seeds differ too: a part of the difference of figures is chance.")
    photographs = {str(images) for entry in entries if (images := entry.said.get("images")) is not None}
    if any(key.startswith("data.") for key in keys) or len(photographs) > 1:
        hints.append("Their data differ: compare figures of different images with care.")
    if len({entry.card.key for entry in entries if entry.card}) > 1:
        hints.append("Their evaluations have different settings, data or recognisers: such figures are not comparable.")
    return hints


def as_csv(entries: Sequence[Entry]) -> str:
    """Return a row a run as CSV: what it is, the settings in which the runs differ, and all figures."""
    settings, figures = differing(entries), tags(entries)
    fields: dict[str, Callable[[Entry], Any]] = {
        "name": lambda entry: told(entry.name),
        "folder": lambda entry: str(entry.folder),
        "status": lambda entry: told(entry.state),
        "epochs": lambda entry: entry.epochs[0],
        "max_epochs": lambda entry: entry.epochs[1],
        "started": lambda entry: told(str(entry.said.get("started") or "")),
        "seconds": lambda entry: None if (taken := entry.seconds) is None else round(taken),
    }
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*fields, *map(told, settings), *map(told, figures)])
    for index, entry in enumerate(entries):
        chosen = ["" if values[index] == "\u2013" else told(values[index]) for values in settings.values()]
        writer.writerow([*(tell(entry) for tell in fields.values()), *chosen, *(entry.figures.get(t) for t in figures)])
    return text.getvalue()
