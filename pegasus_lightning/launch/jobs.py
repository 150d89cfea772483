"""One run of a sweep, as the pool and the tables see it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from pegasus_lightning.runs.folder import now, read_status
from pegasus_lightning.utils.files import write_json


class State(str, Enum):
    """How a job stands."""

    QUEUED = "queued"
    RUNNING = "running"
    FINISHED = "finished"
    STOPPED = "stopped"  # a signal ended it, and everything is saved
    FAILED = "failed"

    def __str__(self) -> str:
        return self.value


@dataclass
class Job:
    """One run of a sweep.

    Args:
        number: from 1, in the order of the sweep.
        name: the run folder's name.
        overrides: what makes it this run, as they would be typed.
        folder: the run's folder; it need not exist.
        command: what starts it, a word an item.
        log: where its console output goes.
        max_epochs: that it is to train.
        label: the name without what all runs of the sweep have in common; empty: the name.
        environment: variables that its slot set.
        config, config_hash: the run's configuration as YAML, and `runs.config_hash` of it.
        state: queued, running, finished, stopped, failed.
        skipped: it had been finished before this sweep began.
        slot: what it ran on, as a person calls it.
        exit_code: of its process, 128 + n where signal n killed it; None before.
        reason: why it failed or stopped, one line.
        began, ended: seconds since the epoch.
    """

    number: int
    name: str
    overrides: list[str]
    folder: Path
    command: list[str]
    log: Path
    max_epochs: int
    state: State = State.QUEUED
    skipped: bool = False
    slot: str = ""
    exit_code: int | None = None
    reason: str = ""
    began: float | None = None
    ended: float | None = None
    label: str = ""
    environment: dict[str, str] = field(default_factory=dict, repr=False)
    config: str = field(default="", repr=False)
    config_hash: str = ""

    @property
    def shown(self) -> str:
        """What tables call it."""
        return self.label or self.name

    @property
    def typed(self) -> list[str]:
        """The words that would start this run alone, as `status.json` keeps them."""
        return ["__main__.py", *self.overrides]

    def status(self) -> dict[str, Any]:
        """What the run's own `status.json` says; empty where there is none."""
        return read_status(self.folder) or {}


def label(jobs: Sequence[Job]) -> None:
    """Give the jobs labels: of `vae,silhouettes,channels=4-s0-1a2b3c4d` what stands between commas after the model's
    name is left out where it stands in every name."""
    parts = [_parts(job.name) for job in jobs]
    common = set.intersection(*(set(middle) for _, middle, _ in parts)) if len(jobs) > 1 else set()
    for job, (model, middle, tail) in zip(jobs, parts, strict=True):
        job.label = ",".join([model, *(part for part in middle if part not in common)]) + tail


def _parts(name: str) -> tuple[str, list[str], str]:
    match = re.fullmatch(r"(.*?)(-s\d+-[0-9a-f]{8})?", name)
    assert match is not None
    model, *middle = match[1].split(",")
    return model, middle, match[2] or ""


def write_jobs(path: Path, jobs: Sequence[Job]) -> None:
    """The sweep's `sweep.json`: a line of facts a job, for whoever looks while it runs or afterwards."""
    lines = [
        {
            "name": job.name,
            "state": job.state.value,
            "exit_code": job.exit_code,
            "reason": job.reason,
            "slot": job.slot,
            "began": job.began,
            "ended": job.ended,
            "overrides": job.overrides,
            "log": str(job.log),
        }
        for job in jobs
    ]
    write_json(path, {"updated": now(), "jobs": lines})


def read_jobs(path: Path) -> list[dict[str, Any]]:
    """The jobs of a `sweep.json`."""
    content: list[dict[str, Any]] = json.loads(path.read_text())["jobs"]
    return content
