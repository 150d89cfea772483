"""Run folders as the report reads them. Nothing in them is believed: what cannot be read is a problem of its run."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from pegasus_lightning.runs.folder import NOT_IDENTITY, RunName, flat, is_locked, status_of
from pegasus_lightning.runs.gallery import Gallery, read_gallery
from pegasus_lightning.runs.scorecards import GALLERY, Scorecard, read_scorecard, scorecards, with_panel
from pegasus_lightning.runs.state import command_of, printable, state_of
from pegasus_lightning.utils.errors import UserError, listing
from pegasus_lightning.utils.foreign import MEGABYTE, Unreadable, inside, open_regular, parse_json, read_yaml

LOG_LINES, LOG_WIDTH = 15, 300  # lines of train.log that are shown, and their longest length
CONFIG_BYTES, CONFIG_VALUES = MEGABYTE, 10_000  # most of config.yaml
CURVES_BYTES, LINE_BYTES, CURVES = 256 * MEGABYTE, 64 * 1024, 200  # most of metrics.jsonl: in all, a line, tags
POINTS = 1_000_000  # most points of all curves of a run, and lines
LONGEST = 300  # most points of a curve that are kept; longer curves are averaged in segments
LARGEST = 1e39  # no value of float32 is larger
MAX_PICTURES, MAX_KINDS = 10_000, 12  # most saved grids of a run, and kinds of them
MAX_PROBLEMS = 30  # most that are said of a run
KINDS = ("interpolations", "mixes", "prior", "reconstructions")  # saved image grids, in the order of the page
PHOTOGRAPHS = ("reconstructions",)  # kinds that show photographs of the data set

Curve = list[tuple[int, float]]
T = TypeVar("T")


@dataclass(frozen=True)
class Run:
    """The contents of a run's folder."""

    folder: Path
    name: str  # on the page, with the seed
    group: str  # the name without the seed
    status: dict[str, Any] = field(default_factory=dict)  # `status.json`; empty if it cannot be read
    config: dict[str, Any] = field(default_factory=dict)  # values by dotted key; empty if `config.yaml` cannot be read
    curves: dict[str, Curve] = field(default_factory=dict)  # (batches done, value) by tag, in order of the batches
    grids: dict[str, dict[int, Path]] = field(default_factory=dict)  # PNG files by kind and epochs done
    log: list[str] = field(default_factory=list)  # last lines of `train.log`
    has_checkpoint: bool = False  # whether a model was saved
    cards: dict[str, tuple[Path, Scorecard]] = field(default_factory=dict)  # newest of each `Scorecard.key`, with path
    card: Scorecard | None = None  # from the evaluation whose key most runs share
    gallery: Gallery | None = None  # of the same evaluation
    drawn: Gallery | None = None  # of the pictures that training saved, if nothing was evaluated
    problems: list[str] = field(default_factory=list)  # what could not be read, one sentence each
    locked: bool = False  # whether a process trains it

    @property
    def state(self) -> str:
        """running, finished, interrupted, failed, died (no process is left), out of time, pruned, or unknown."""
        return state_of(self.status, self.locked)

    @property
    def date(self) -> str:
        """The day of its last update, as 2026-02-03; empty if unknown."""
        found = re.match(r"\d{4}-\d{2}-\d{2}", self.said("updated"), re.ASCII)
        return found[0] if found else ""

    @property
    def cause(self) -> str:
        """Why it did not finish, as far as known: its recorded reason, else the last line of a failed run's log."""
        if self.state == "died":
            return f"Its process is gone; last heard of {self.said('updated') or 'at an unknown time'}."
        return self.said("reason") or (self.log[-1] if self.state == "failed" and self.log else "")

    def last(self, tag: str) -> float:
        """Return the last value of a metric; NaN if there is none."""
        recorded = self.status.get("metrics")
        value = recorded.get(tag) if isinstance(recorded, dict) else None
        if not isinstance(value, (int, float)) or not abs(value) < LARGEST:
            value = next((value for _, value in reversed(self.curves.get(tag, [])) if math.isfinite(value)), math.nan)
        return float(value)

    def said(self, field: str) -> str:
        """Return a field of the status as text; empty if missing."""
        value = self.status.get(field)
        return "" if value is None else str(value)

    @property
    def weights(self) -> dict[str, float]:
        """Weights of the loss terms, by tag; empty for runs that logged weighted terms."""
        found = self.status.get("weights")
        pairs = found.items() if isinstance(found, dict) else ()
        return {tag: float(weight) for tag, weight in pairs if isinstance(weight, (int, float))}

    @property
    def complete(self) -> bool:
        """Whether it finished and left a model."""
        return self.state == "finished" and self.has_checkpoint

    @property
    def classes(self) -> list[str]:
        """The two classes; empty if unknown."""
        found = self.card.classes if self.card else self.config.get("data.classes")
        return [printable(str(name), 40) for name in found] if isinstance(found, list) and len(found) == 2 else []

    @property
    def seed(self) -> Any:
        """Seed of the training; None if unknown."""
        return self.card.seed if self.card else self.config.get("seed")

    @property
    def command(self) -> str:
        """The command of the run, quoted for a shell; empty if unknown."""
        return command_of(self.status)


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Return the contents of these runs. Runs of the same name are named by their whole folder name or path."""
    runs = [_read_run(folder) for folder in folders]
    shared = Counter(key for run in runs for key in run.cards)
    runs = [_with_card(run, shared) for run in runs]
    for longer in (lambda run: run.folder.resolve().name, lambda run: str(run.folder)):
        names = Counter(run.name for run in runs)
        runs = [replace(run, name=longer(run)) if names[run.name] > 1 else run for run in runs]
    return runs


def _read_run(folder: Path) -> Run:
    problems: list[str] = []

    def attempt(read: Callable[[], T], otherwise: T) -> T:
        try:
            return read()
        except Unreadable as error:
            problems.append(_problem(error, folder))
        except OSError as error:  # of the disk
            problems.append(f"A file could not be read: {error.strerror}.")
        return otherwise

    nothing: dict[str, Any] = {}
    status = attempt(lambda: status_of(folder), nothing)
    config = attempt(lambda: _config(folder), nothing)
    name = RunName.parse(folder.resolve().name).caption(config.get("data.source"))
    return Run(
        folder,
        name=name,
        group=name if RunName.parse(name).suffix else RunName.parse(name).readable,
        status=status,
        config=config,
        curves=attempt(lambda: _curves(folder, problems), {}),
        grids=_grids(folder, problems),
        log=attempt(lambda: _last_lines(folder), []),
        has_checkpoint=any((folder / "checkpoints").glob("*.ckpt")),
        cards=_cards(folder, problems),
        problems=problems,
        locked=is_locked(folder),
    )


def _problem(error: Unreadable, folder: Path) -> str:
    """Return what is shown of a file that cannot be read: `metrics.jsonl could not be read: it is ...`."""
    name = error.path.relative_to(folder) if error.path.is_relative_to(folder) else error.path
    if isinstance(error.__cause__, FileNotFoundError):
        return f"There is no {name}."
    return f"{name} could not be read: it {error.reason}."


def _cards(folder: Path, problems: list[str]) -> dict[str, tuple[Path, Scorecard]]:
    cards: dict[str, tuple[Path, Scorecard]] = {}
    unreadable: list[Unreadable] = []
    for path in scorecards(folder):
        try:
            card = with_panel(read_scorecard(inside(path, folder)), folder, unreadable)
            cards.setdefault(card.key, (path, card))
        except Unreadable as error:
            unreadable.append(error)
        except UserError as error:  # of another version
            problems.append(str(error))
    said = list(dict.fromkeys(_problem(error, folder) for error in unreadable))
    more = [f"{len(said) - MAX_PROBLEMS} more files of its evaluations could not be read."]
    problems += said[:MAX_PROBLEMS] + (more if said[MAX_PROBLEMS:] else [])
    return cards


def _with_card(run: Run, shared: Mapping[str, int]) -> Run:
    """Set the scorecard whose key most runs share (in a tie the newest), and its gallery."""
    if not run.cards:
        return run
    path, card = run.cards[max(run.cards, key=lambda key: shared[key])]
    problems = list(run.problems)
    gallery = None
    try:
        gallery = read_gallery(inside(path.parent / GALLERY, run.folder))
    except Unreadable as error:
        problems.append(_problem(error, run.folder))
    return replace(run, name=card.name, group=card.group, card=card, gallery=gallery, problems=problems)


def _config(folder: Path) -> dict[str, Any]:
    path = inside(folder / "config.yaml", folder)
    return flat(read_yaml(path, limit=CONFIG_BYTES, entries=CONFIG_VALUES))


def config_difference(run: Run, baseline: Run) -> list[tuple[str, str, str]]:
    """Return (key, the run's value, the baseline's value) of differing settings; a dash stands for a missing value.

    Settings that do not identify a run (`runs.folder.NOT_IDENTITY`) are left out, except the length of the training,
    because a comparison with a longer training is not fair.
    """
    left_out = {f"{group}.{key}" if group else key for group, keys in NOT_IDENTITY.items() for key in keys}
    left_out -= {"trainer.max_epochs", "trainer.max_time"}
    keys = dict.fromkeys([*baseline.config, *run.config])
    kept = [key for key in keys if key not in left_out and key.partition(".")[0] not in left_out]
    pairs = [(key, _setting(run.config, key), _setting(baseline.config, key)) for key in kept]
    return [(key, here, there) for key, here, there in pairs if here != there]


def _setting(config: dict[str, Any], key: str) -> str:
    """Return a value as YAML would write it."""
    if key not in config:
        return "\u2013"
    value = config[key]
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else printable(str(value), 300)


def _curves(folder: Path, problems: list[str]) -> dict[str, Curve]:
    path = inside(folder / "metrics.jsonl", folder)
    curves: dict[str, Curve] = {}
    lines = torn = points = 0
    with open_regular(path, CURVES_BYTES) as file:
        while (line := file.readline(LINE_BYTES)) and points < POINTS:
            lines, points = lines + 1, points + 1
            try:
                batch, values = _measured(path, line)
            except (Unreadable, ValueError):
                torn += bool(line.strip())
                continue
            points += len(values)
            for tag, value in values.items():
                if tag in curves or len(curves) < CURVES:
                    curves.setdefault(tag, []).append((batch, value))
    if torn:
        problems.append(f"metrics.jsonl: {torn} of {lines} lines cannot be read and are left out.")
    if line or len(curves) == CURVES:
        problems.append(
            f"metrics.jsonl holds more than {CURVES} curves or {POINTS} points and lines: the rest is left out."
        )
    lost = sorted(tag for tag, curve in curves.items() if not all(math.isfinite(value) for _, value in curve))
    if lost:
        first = min(batch for tag in lost for batch, value in curves[tag] if not math.isfinite(value))
        problems.append(f"Not finite from batch {first} on: {listing(lost)}.")
    return {tag: shorten(sorted(curve, key=lambda point: point[0])) for tag, curve in curves.items()}


def _measured(path: Path, line: bytes) -> tuple[int, dict[str, float]]:
    """Return the batch and the values of a line of metrics.jsonl. Raise Unreadable or ValueError."""
    values = parse_json(path, line.decode())
    batch = values.pop("batch", None)
    if not isinstance(batch, int) or isinstance(batch, bool) or batch < 0:
        raise ValueError("no batch")
    numbers = {t: float(v) for t, v in values.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
    if any(LARGEST < abs(value) < math.inf for value in numbers.values()):
        raise ValueError("beyond float32")
    return batch, numbers


def shorten(curve: Curve, most: int = LONGEST) -> Curve:
    """Return at most `most` points: means of segments of equal length, at their mean batch."""
    length = math.ceil(len(curve) / most)
    parts = [curve[i : i + length] for i in range(0, len(curve), length)]
    return [(round(sum(b for b, _ in part) / len(part)), sum(v for _, v in part) / len(part)) for part in parts]


def _grids(folder: Path, problems: list[str]) -> dict[str, dict[int, Path]]:
    found: dict[str, dict[int, Path]] = {}
    for path in sorted(islice((folder / "images").glob("*.png"), MAX_PICTURES)):
        if match := re.fullmatch(r"([\w-]{1,60})-epoch-([0-9]{1,9})\.png", path.name):
            found.setdefault(match[1], {})[int(match[2])] = path
    order = [*(kind for kind in KINDS if kind in found), *(kind for kind in found if kind not in KINDS)]
    if order[MAX_KINDS:]:
        problems.append(f"images holds {len(order)} kinds of pictures: {len(order) - MAX_KINDS} are left out.")
    return {kind: dict(sorted(found[kind].items())) for kind in order[:MAX_KINDS]}


def _last_lines(folder: Path) -> list[str]:
    if not (folder / "train.log").exists():
        return []
    with open_regular(inside(folder / "train.log", folder)) as file:
        file.seek(0, 2)
        file.seek(max(0, file.tell() - 64 * 1024))
        text = file.read(64 * 1024).decode("utf-8", errors="replace")
    return [line.rstrip()[:LOG_WIDTH] for line in text.splitlines() if line.strip()][-LOG_LINES:]
