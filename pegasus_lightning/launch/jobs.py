"""Jobs, the runs of a sweep, and their file `sweep.json`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from pegasus_lightning.runs.folder import RunName, now, read_status
from pegasus_lightning.utils.files import write_json
from pegasus_lightning.utils.foreign import Unreadable, read_json


class State(str, Enum):
    """State of a job."""

    QUEUED = "queued"
    RUNNING = "running"
    FINISHED = "finished"
    STOPPED = "stopped"  # ended by a signal, with everything saved
    PRUNED = "pruned"  # ended early by the search, with everything saved; it is not continued
    FAILED = "failed"

    def __str__(self) -> str:
        return self.value


@dataclass
class Job:
    """One run of a sweep."""

    number: int  # from 1, in the order of the sweep
    name: str  # of the run folder
    overrides: list[str]  # of this run, as typed on the command line
    folder: Path  # the run folder; it need not exist
    command: list[str]  # as a list of words
    log: Path  # file of its console output
    max_epochs: int  # number of epochs to train
    state: State = State.QUEUED
    skipped: bool = False  # whether it had already ended for good when the sweep began
    end_early: str = ""  # why the pool is to end it now, one line
    slot: str = ""  # display name of its slot
    exit_code: int | None = None  # of its process, 128 + n if signal n killed it; None before the end
    reason: str = ""  # why it failed or stopped, one line
    retried: int = 0  # how often it was started again after a signal had killed it
    began: float | None = None  # seconds since the epoch
    ended: float | None = None  # seconds since the epoch
    label: str = ""  # the name without the parts common to all runs of the sweep; empty: the name
    environment: dict[str, str] = field(default_factory=dict, repr=False)  # variables set by its slot
    config: str = field(default="", repr=False)  # configuration of the run as YAML
    config_hash: str = ""  # `runs.folder.config_hash` of the configuration

    @property
    def shown(self) -> str:
        """Name in tables."""
        return self.label or self.name

    @property
    def typed(self) -> list[str]:
        """Arguments that start this run alone, as stored in `status.json`."""
        return ["__main__.py", *self.overrides]

    def status(self) -> dict[str, Any]:
        """Return the content of the run's `status.json`; empty if there is none."""
        return read_status(self.folder) or {}


def label(jobs: Sequence[Job]) -> None:
    """Set the jobs' labels: their names without the parts that all share, and without hashes unless labels coincide."""
    names = [RunName.parse(job.name) for job in jobs]
    middles = [set(name.readable.split(",")[1:]) for name in names]
    common = set.intersection(*middles) if len(jobs) > 1 else set()
    for job, name in zip(jobs, names, strict=True):
        model, *middle = name.readable.split(",")
        readable = ",".join([model, *(part for part in middle if part not in common)])
        job.label = readable + job.name.removeprefix(name.readable)
    short = [RunName.parse(job.label).short for job in jobs]
    if len(set(short)) == len(jobs) > 1:
        for job, text in zip(jobs, short, strict=True):
            job.label = text


def write_jobs(path: Path, jobs: Sequence[Job]) -> None:
    """Write the `sweep.json` of a sweep: the state of every job, readable during and after the sweep."""
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
    """Return the jobs in a `sweep.json`. Raise UserError for any other file."""
    jobs = read_json(path).get("jobs")
    if not isinstance(jobs, list) or not all(isinstance(job, dict) and "state" in job for job in jobs):
        raise Unreadable(path, "is not the list of a sweep's jobs")
    return jobs
