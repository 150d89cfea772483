"""Progress of a sweep: the epochs that jobs have reported, and estimates of the time left."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from statistics import mean
from typing import Any

from pegasus_lightning.launch.jobs import Job, State
from pegasus_lightning.launch.tables import ENDED, epochs_of, taken
from pegasus_lightning.train.settings import about, parse_duration
from pegasus_lightning.utils.errors import UserError


@dataclass
class _Reports:
    """The reports of a job since `began`: its status, and (epochs done, time) of the first and the newest report."""

    began: float | None
    status: dict[str, Any] = field(default_factory=dict)
    ended: bool = False
    training_since: float | None = None  # when its status first had the limits of the training
    first: tuple[int, float] | None = None
    last: tuple[int, float] | None = None


class Tracker:
    """Reads the jobs' `status.json`, once an `update` while a job runs and once after its end."""

    def __init__(self) -> None:
        self._reports: dict[int, _Reports] = {}

    def update(self, jobs: Sequence[Job], now: float) -> None:
        """Read how far the jobs are at `now`, in seconds since the epoch."""
        for job in jobs:
            reports = self._of(job)
            self._reports[job.number] = reports
            if job.state is State.QUEUED or reports.ended:
                continue
            reports.status, reports.ended = job.status() or reports.status, job.state in ENDED
            if not _is_of_this_session(reports.status, job.began):
                continue
            epochs = epochs_of(reports.status)
            if epochs is None and reports.training_since is None and "limits" in reports.status:
                reports.training_since = now
            if epochs is not None and (reports.last is None or epochs > reports.last[0]):
                reports.last = (epochs, now)
                reports.first = reports.first or reports.last

    def status(self, job: Job) -> dict[str, Any]:
        """Return the job's status at the last update; empty for a queued job."""
        return self._of(job).status

    def epochs(self, job: Job) -> int | None:
        """Return the epochs done, with those of earlier sessions; None before the first report of this session."""
        last = self._of(job).last
        return None if last is None else last[0]

    def time_left(self, job: Job, now: float) -> float | None:
        """Return the seconds until a running job has trained; None if there is no estimate yet.

        The time of an epoch is measured between the first and the newest report. If there is only one report, of
        one epoch, it is the time since the training began. `max_time` limits the number of epochs.
        """
        reports = self._of(job)
        if job.state is not State.RUNNING or job.began is None or reports.first is None or reports.last is None:
            return None
        (first, first_at), (last, last_at) = reports.first, reports.last
        if last == first:
            first, first_at = last - 1, reports.training_since or job.began
            if last != 1:
                return None  # resumed epochs took none of this session's time
        epoch = (last_at - first_at) / (last - first)
        if epoch <= 0:
            return None
        limit = _max_time(reports.status)
        total = job.max_epochs if limit is None else min(job.max_epochs, math.ceil(limit / epoch))
        return max(0.0, (total - last) * epoch - min(max(0.0, now - last_at), epoch))

    def _of(self, job: Job) -> _Reports:
        reports = self._reports.get(job.number)
        return reports if reports is not None and reports.began == job.began else _Reports(job.began)


def _is_of_this_session(status: dict[str, Any], began: float | None) -> bool:
    """Return whether the process that began at `began` wrote the status, whose times are whole seconds."""
    try:
        started = datetime.fromisoformat(str(status.get("started") or status.get("updated"))).timestamp()
    except (ValueError, OverflowError, OSError):
        return False
    return began is not None and started >= math.floor(began)


def _max_time(status: dict[str, Any]) -> float | None:
    limits = status.get("limits")
    limit = limits.get("max_time") if isinstance(limits, dict) else None
    try:
        return None if limit is None else parse_duration(limit).total_seconds()
    except (UserError, OverflowError):
        return None


def sweep_left(jobs: Sequence[Job], now: float, tracker: Tracker) -> float | None:
    """Return the seconds until the last job has ended; None if nothing is left or there is no estimate yet.

    A job takes the mean time of the finished ones, or of the running ones (so far and left). The work left is divided
    evenly among the slots, so this is a lower bound.
    """
    running = [job for job in jobs if job.state is State.RUNNING and job.began is not None]
    queued = sum(job.state is State.QUEUED for job in jobs)
    lefts = [(now - (job.began or now), tracker.time_left(job, now)) for job in running]
    times = [seconds for job in jobs if job.state is State.FINISHED and (seconds := taken(job)) is not None]
    times = times or [spent + left for spent, left in lefts if left is not None]
    if not times or not (running or queued):
        return None
    work = [max(0.0, mean(times) - spent) if left is None else left for spent, left in lefts]
    slots = max(1, len({job.slot for job in jobs if job.slot}))
    return max([*work, (sum(work) + queued * mean(times)) / slots])


def summary(jobs: Sequence[Job], now: float, tracker: Tracker) -> str:
    """Return `3 of 7 done, 2 running, 1 failed, 1 queued; about 4 min left`."""
    count = Counter(job.state for job in jobs)
    words = [f"{count[State.FINISHED]} of {len(jobs)} done"]
    for state in (State.RUNNING, State.PRUNED, State.FAILED, State.STOPPED, State.QUEUED):
        words += [f"{count[state]} {state.value}"] if count[state] else []
    left = sweep_left(jobs, now, tracker)
    return ", ".join(words) + ("" if left is None else f"; about {about(left)} left")
