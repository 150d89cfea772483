"""Run folders as the report reads them. A file that cannot be read is noted as a problem of its run."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from pegasus_lightning.runs.folder import NOT_IDENTITY, RunName, flat, read_status
from pegasus_lightning.runs.gallery import Gallery, read_gallery
from pegasus_lightning.runs.scorecards import FILE, GALLERY, Scorecard, read_scorecard, with_panel
from pegasus_lightning.utils.errors import UserError

LOG_LINES, LOG_WIDTH = 15, 300  # lines of train.log that are shown, and their longest length
KINDS = ("interpolations", "mixes", "prior", "reconstructions")  # saved image grids, in the order of the page
PHOTOGRAPHS = ("reconstructions",)  # kinds that show photographs of the data set

Curve = list[tuple[int, float]]


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
    problems: list[str] = field(default_factory=list)  # what could not be read, one sentence each

    @property
    def state(self) -> str:
        """running, finished, interrupted, failed or unknown."""
        return self.said("status") or "unknown"

    def said(self, field: str) -> str:
        """Return a field of the status as text; empty if missing."""
        value = self.status.get(field)
        return "" if value is None else str(value)

    @property
    def weights(self) -> dict[str, float]:
        """Weights of the loss terms, by tag; empty for runs that logged weighted terms."""
        found = self.status.get("weights")
        pairs = found.items() if isinstance(found, dict) else ()
        return {str(tag): float(weight) for tag, weight in pairs if isinstance(weight, (int, float))}

    @property
    def complete(self) -> bool:
        """Whether it finished and left a model."""
        return self.state == "finished" and self.has_checkpoint

    @property
    def classes(self) -> list[str]:
        """The two classes; empty if unknown."""
        found = self.card.classes if self.card else self.config.get("data.classes")
        return [str(name) for name in found] if isinstance(found, list) else []

    @property
    def seed(self) -> Any:
        """Seed of the training; None if unknown."""
        return self.card.seed if self.card else self.config.get("seed")

    @property
    def command(self) -> str:
        """The command of the run, quoted for a shell; empty if unknown."""
        words = self.status.get("command")
        if not isinstance(words, list) or not words:
            return ""
        program = "python -m pegasus_lightning" if words[0] == "__main__.py" else shlex.quote(str(words[0]))
        return " ".join([program, *(shlex.quote(str(word)) for word in words[1:])])


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Return the contents of these runs. Runs of the same name are named by their whole folder name or path."""
    runs = [_read_run(folder) for folder in folders]
    shared = Counter(key for run in runs for key in run.cards)
    runs = [_with_card(run, shared) for run in runs]
    for longer in (lambda run: run.folder.resolve().name, lambda run: str(run.folder)):
        names = [run.name for run in runs]
        runs = [replace(run, name=longer(run)) if names.count(run.name) > 1 else run for run in runs]
    return runs


def _read_run(folder: Path) -> Run:
    problems: list[str] = []
    status = read_status(folder)
    if status is None:
        problems.append("status.json cannot be read: how the run ended is not known.")
    config = _config(folder / "config.yaml", problems)
    name = RunName.parse(folder.resolve().name).caption(config.get("data.source"))
    return Run(
        folder,
        name=name,
        group=name if RunName.parse(name).suffix else RunName.parse(name).readable,
        status=status or {},
        config=config,
        curves=_curves(folder / "metrics.jsonl", problems),
        grids=_grids(folder / "images"),
        log=_last_lines(folder / "train.log"),
        has_checkpoint=any((folder / "checkpoints").glob("*.ckpt")),
        cards=_cards(folder, problems),
        problems=problems,
    )


def _cards(folder: Path, problems: list[str]) -> dict[str, tuple[Path, Scorecard]]:
    cards: dict[str, tuple[Path, Scorecard]] = {}
    paths = folder.glob(f"evaluation/*/{FILE}")
    for path in sorted(paths, key=lambda path: (path.stat().st_mtime_ns, path), reverse=True):
        try:
            card = with_panel(read_scorecard(path), folder)
            cards.setdefault(card.key, (path, card))
        except UserError as error:
            problems.append(str(error))
    return cards


def _with_card(run: Run, shared: Mapping[str, int]) -> Run:
    """Set the scorecard whose key most runs share (in a tie the newest), and its gallery."""
    if not run.cards:
        return run
    path, card = run.cards[max(run.cards, key=lambda key: shared[key])]
    problems = list(run.problems)
    gallery = None
    try:
        gallery = read_gallery(path.parent / GALLERY)
    except UserError as error:
        problems.append(str(error))
    return replace(run, name=card.name, group=card.group, card=card, gallery=gallery, problems=problems)


def _config(path: Path, problems: list[str]) -> dict[str, Any]:
    try:
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
        if isinstance(content, dict):
            return flat(content)
        problems.append(f"{path.name} is not the configuration of a run.")
    except Exception as error:  # YAML's and OmegaConf's errors have no common ancestor
        problems.append(f"{path.name} cannot be read ({type(error).__name__}).")
    return {}


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
    return "null" if value is None else str(value)


def _curves(path: Path, problems: list[str]) -> dict[str, Curve]:
    curves: dict[str, Curve] = {}
    torn = 0
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        problems.append("There is no metrics.jsonl that can be read: no curves.")
        return {}
    for line in lines:
        try:
            values = json.loads(line)
            batch = int(values.pop("batch"))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
            torn += bool(line.strip())
            continue
        for tag, value in values.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                curves.setdefault(str(tag), []).append((batch, float(value)))
    if torn:
        problems.append(f"metrics.jsonl: {torn} of {len(lines)} lines cannot be read and are left out.")
    lost = sorted(tag for tag, curve in curves.items() if not all(math.isfinite(value) for _, value in curve))
    if lost:
        first = min(batch for tag in lost for batch, value in curves[tag] if not math.isfinite(value))
        problems.append(f"Not finite from batch {first} on: {', '.join(lost)}.")
    return {tag: sorted(curve, key=lambda point: point[0]) for tag, curve in curves.items()}


def _grids(folder: Path) -> dict[str, dict[int, Path]]:
    found: dict[str, dict[int, Path]] = {}
    for path in sorted(folder.glob("*.png")):
        if match := re.fullmatch(r"([\w-]+)-epoch-(\d+)\.png", path.name):
            found.setdefault(match[1], {})[int(match[2])] = path
    order = [*(kind for kind in KINDS if kind in found), *(kind for kind in found if kind not in KINDS)]
    return {kind: dict(sorted(found[kind].items())) for kind in order}


def _last_lines(path: Path) -> list[str]:
    try:
        with open(path, "rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - 64 * 1024))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    return [line.rstrip()[:LOG_WIDTH] for line in text.splitlines() if line.strip()][-LOG_LINES:]
