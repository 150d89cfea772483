"""Runs found again: what is known of each, which of them are asked for, in which order, and how they differ.

Of a run's folder status.json and the scorecards are read, and config.yaml where a question needs it. Whatever of it
cannot be read is missing, and named in `Entry.problems`.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pegasus_lightning.runs.folder import (
    ADDED,
    DRY_RUNS,
    NOT_IDENTITY,
    RunName,
    config_hash,
    find_runs,
    flat,
    is_locked,
    status_of,
)
from pegasus_lightning.runs.scorecards import (
    MEASURES,
    MODEL_MEASURES,
    PEGASI,
    Measure,
    Scorecard,
    read_scorecard,
    scorecards,
    with_panel,
)
from pegasus_lightning.runs.state import figures_of, moment, state_of, words_of
from pegasus_lightning.utils.errors import UserError, did_you_mean, listing
from pegasus_lightning.utils.foreign import Unreadable, inside, read_yaml

STATES = ("finished", "out of time", "running", "interrupted", "pruned", "failed", "died", "unreadable")
CONFIG_VALUES = 10_000  # most of config.yaml
ABBREVIATED = {"model": "model.name", "data": "data.source"}  # settings as they are typed, and in config.yaml
# Settings that say where a run trains and what is shown; how long it trains is none of them.
LEFT_OUT = {f"{group}.{key}" if group else key for group, keys in NOT_IDENTITY.items() for key in keys}
LEFT_OUT -= {"trainer.max_epochs", "trainer.max_time"}
STYLES = {"kl": ".1f", "critic_real": ".2f", "critic_fake": ".2f"}  # of figures that are no measure


@dataclass
class Entry:
    """A run in the catalogue."""

    folder: Path
    status: dict[str, Any] | None  # None: status.json cannot be read
    cards: dict[str, tuple[Path, Scorecard]]  # newest of each `Scorecard.key`, with its path; the newest first
    problems: list[str] = field(default_factory=list)  # what cannot be read, one sentence each
    name: str = ""  # short, and no other run of the catalogue has it
    card: Scorecard | None = None  # from the evaluation that most runs share

    @property
    def said(self) -> dict[str, Any]:
        """The status; empty if it cannot be read."""
        return self.status or {}

    @cached_property
    def state(self) -> str:
        """As `runs.state.state_of`, or unreadable."""
        if self.status is None:
            return "unreadable"
        return state_of(self.status, self.status.get("status") == "running" and is_locked(self.folder))

    @cached_property
    def nested(self) -> dict[str, Any]:
        """config.yaml; empty if it cannot be read."""
        path = self.folder / "config.yaml"
        try:
            return dict(read_yaml(inside(path, self.folder), entries=CONFIG_VALUES))
        except Unreadable as error:
            self.problems.append(str(error))
            return {}

    @cached_property
    def config(self) -> dict[str, Any]:
        """Settings by dotted key. A setting that came after the run has the value that changes nothing."""
        added = {".".join(["model", *keys]): value for keys, value in ADDED.items()} if self.nested else {}
        found = {str(key): value for key, value in flat(self.nested).items()}
        return found | {key: value for key, value in added.items() if key not in found}

    @cached_property
    def preset(self) -> str:
        """The preset of the model, or if none was typed the model's name; empty if unknown."""
        typed = [word.partition("=")[2] for word in words_of(self.said)[1:] if word.startswith("model=")]
        return typed[-1] if typed else str(self.config.get("model.name", ""))

    @cached_property
    def figures(self) -> dict[str, float]:
        """Finite figures: of the training by tag, such as validation/psnr, and of the scorecard by name."""
        found = figures_of(self.said)
        for row in (self.card.model, self.card.rows.get(PEGASI, {})) if self.card else ():
            found |= {name: figure.value for name, figure in row.items() if math.isfinite(figure.value)}
        return found

    @property
    def epochs(self) -> tuple[int | None, int | None]:
        """Epochs done, and epochs asked for; None if unknown."""
        limits = self.said.get("limits") or {"max_epochs": self.config.get("trainer.max_epochs")}
        asked = limits.get("max_epochs")
        return self.said.get("epochs"), asked if type(asked) is int else None

    @property
    def began(self) -> float:
        """When its last session began, in seconds since 1970; -inf if unknown."""
        found = moment(self.said, "started")
        return -math.inf if found is None else found

    @property
    def seconds(self) -> float | None:
        """How long its last session took, or takes by now; None if unknown."""
        end = time.time() if self.state == "running" else moment(self.said, "updated")
        return None if end is None or self.began == -math.inf else max(0.0, end - self.began)

    @cached_property
    def recipe(self) -> str | None:
        """Equal for runs that differ only in their seed, and are trained equally far; None if unknown."""
        try:
            return f"{config_hash(self.nested | {'seed': 0})} {self.epochs[0]}" if self.nested else None
        except (KeyError, AttributeError, TypeError):  # a damaged config.yaml
            return None


def read_catalogue(places: Sequence[str]) -> list[Entry]:
    """Return the runs in `places` (see `find_runs`), the newest first.

    What a dry run left behind is left out, unless it was named. Raise UserError if a place is missing, or holds no run.
    """
    places = [place.removeprefix("run=") for place in places]  # as other commands spell it
    named = any(DRY_RUNS in Path(place).absolute().parts for place in places)
    found = find_runs(places, "status.json")
    kept = [run for run in found if named or run.absolute().parent.name != DRY_RUNS]
    entries = sorted(map(_entry, kept), key=lambda entry: entry.began, reverse=True)
    shared = Counter(key for entry in entries for key in entry.cards)
    for entry, name in zip(entries, short_names([entry.folder for entry in entries]), strict=True):
        entry.name = name
        if entry.cards:
            entry.card = entry.cards[max(entry.cards, key=lambda key: shared[key])][1]
    return entries


def _entry(folder: Path) -> Entry:
    problems: list[str] = []
    cards: dict[str, tuple[Path, Scorecard]] = {}
    status = None
    try:
        status = status_of(folder)
    except Unreadable as error:
        problems.append(str(error))
    for path in scorecards(folder):
        try:
            card = with_panel(read_scorecard(inside(path, folder)), folder)
            cards.setdefault(card.key, (path, card))
        except UserError as error:  # Unreadable, or of a later version
            problems.append(str(error))
    return Entry(folder, status, cards, problems)


def short_names(folders: Sequence[Path]) -> list[str]:
    """Return names without what all share and without hashes; where names coincide, longer ones."""
    names = [RunName.parse(folder.absolute().name) for folder in folders]
    shared = shared_parts(folders)
    short = []
    for name in names:
        model, *rest = name.readable.split(",")
        short.append(name._replace(readable=",".join([model, *(part for part in rest if part not in shared)])).short)
    for longer in (
        lambda folder, name: f"{folder.absolute().parent.name}/{name}",
        lambda folder, name: f"{folder.absolute().parent.name}/{folder.absolute().name}",
        lambda folder, name: str(folder),
    ):
        count = Counter(short)
        short = [longer(folder, name) if count[name] > 1 else name for folder, name in zip(folders, short, strict=True)]
    return short


def shared_parts(folders: Sequence[Path]) -> list[str]:
    """Return what the names of all runs share beside the model, such as `silhouettes`; empty for a single run."""
    parts = [RunName.parse(folder.absolute().name).readable.split(",")[1:] for folder in folders]
    return [part for part in parts[0] if all(part in other for other in parts)] if len(parts) > 1 else []


def chosen(
    entries: Sequence[Entry], states: Sequence[str] = (), models: Sequence[str] = (), where: Sequence[str] = ()
) -> list[Entry]:
    """Return the runs in one of the states, of one of the models, and with all of the settings `key=value`.

    Raise UserError for a setting that no run has.
    """
    kept = [entry for entry in entries if not states or entry.state in states]
    kept = [entry for entry in kept if not models or entry.preset in models]
    for text in where:
        key, equals, value = text.partition("=")
        key = ABBREVIATED.get(key, key)
        if not equals:
            raise UserError(f"--where {text} needs a value, such as --where {text}=1.")
        known = {known for entry in entries for known in entry.config}
        if key not in known:
            ends = [other for other in sorted(known) if other.endswith(f".{key}")]
            hint = f" Did you mean '{ends[0]}'?" if ends else did_you_mean(key, sorted(known))
            raise UserError(f"No run has a setting {key}.{hint}")
        kept = [entry for entry in kept if key in entry.config and same_value(entry.config[key], value)]
    return kept


def same_value(value: Any, typed: str) -> bool:
    """Return whether a setting has the value that was typed: 1e-3 is 0.001, and [horse,bird] has no spaces."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            return float(value) == float(typed)
        except ValueError:
            return False
    return _bare(setting(value)) == _bare(typed.lower() if isinstance(value, bool) else typed)


def _bare(text: str) -> str:
    return "".join(character for character in text if character not in " '\"")


def setting(value: Any) -> str:
    """Return the value of a setting as it is typed."""
    if isinstance(value, list):
        return f"[{','.join(map(setting, value))}]"
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return str(value)


def differing(entries: Sequence[Entry]) -> dict[str, list[str]]:
    """Return the settings in which runs differ: their values, one a run, by key; a dash stands for a missing one."""
    keys = dict.fromkeys(key for entry in entries for key in entry.config)
    kept = [key for key in keys if key not in LEFT_OUT and key.partition(".")[0] not in LEFT_OUT]
    rows = {key: [setting(e.config[key]) if key in e.config else "\u2013" for e in entries] for key in kept}
    return {key: values for key, values in rows.items() if len(set(values)) > 1}


def tags(entries: Iterable[Entry]) -> list[str]:
    """Return the names of all figures that any of the runs has."""
    return list(dict.fromkeys(tag for entry in entries for tag in entry.figures))


def measure_of(tag: str) -> Measure:
    """Return what is known of a figure. `better` is empty where neither more nor less is better."""
    group, _, name = tag.rpartition("/")
    unknown = Measure(tag, "lower" if group == "loss" else "", STYLES.get(name, ".4g"), "")
    return (MEASURES | MODEL_MEASURES).get(name, unknown)


def with_figure(entries: Sequence[Entry], tag: str) -> list[Entry]:
    """Return the runs that have a figure. Raise UserError, with those that there are, if none has it."""
    found = [entry for entry in entries if tag in entry.figures]
    if not found:
        there = tags(entries)
        raise UserError(f"No run has a figure {tag}.{did_you_mean(tag, there)} Figures: {listing(there)}.")
    return found


def ranked(entries: Sequence[Entry], tag: str, lowest: bool | None = None) -> list[Entry]:
    """Return the runs that have a figure, the best first. `lowest`: whether less is better; None: as its measure says.

    Raise UserError if no run has it, or if nothing says what is better.
    """
    found, better = with_figure(entries, tag), measure_of(tag).better
    if lowest is None and not better:
        raise UserError(f"Neither more nor less {tag} is better in itself: add --lowest or --highest.")
    less = better == "lower" if lowest is None else lowest
    return sorted(found, key=lambda entry: entry.figures[tag], reverse=not less)


def by_recipe(entries: Sequence[Entry]) -> list[list[Entry]]:
    """Return groups of runs that differ only in their seed, in the order of their first runs."""
    groups: dict[str, dict[Any, Entry]] = {}
    for entry in entries:  # of copies of a run the first counts
        groups.setdefault(entry.recipe or str(entry.folder), {}).setdefault(str(entry.config.get("seed")), entry)
    return [list(group.values()) for group in groups.values()]


SORTS: dict[str, Callable[[Entry], Any]] = {"name": lambda entry: entry.name, "status": lambda entry: entry.state}


def ordered(entries: Sequence[Entry], by: str) -> list[Entry]:
    """Return the runs by name, by status, or by a figure: the best first, those without it last. Raise UserError."""
    if by in SORTS:
        return sorted(entries, key=SORTS[by])
    with_it = ranked(entries, by, lowest=measure_of(by).better == "lower")
    return with_it + [entry for entry in entries if by not in entry.figures]
