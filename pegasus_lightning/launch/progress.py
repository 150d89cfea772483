"""How far a sweep is: what each job has said while it ran, and how long that lets the rest take."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from statistics import mean
from typing import Any

from pegasus_lightning.launch.jobs import Job, State
from pegasus_lightning.launch.tables import ENDED, epochs_of, taken
from pegasus_lightning.train.settings import parse_duration
from pegasus_lightning.utils.errors import UserError


@dataclass
class _Seen:
    """Of one job, since `began`: what its status said, and when (seconds since the epoch) it had done how much.

    Args:
        at_start: when its training was first seen to have begun.
        first, last: epochs at the first and at the newest report of this session, and when it was seen.
    """

    began: float | None
    status: dict[str, Any] = field(default_factory=dict)
    ended: bool = False
    at_start: float | None = None
    first: tuple[int, float] | None = None
    last: tuple[int, float] | None = None


class Tracker:
    """Follows the jobs' `status.json`, each read once a `look` while the job runs and once after its end."""

    def __init__(self) -> None:
        self._seen: dict[int, _Seen] = {}

    def look(self, jobs: Sequence[Job], now: float) -> None:
        """Note how far the jobs are at `now`, in seconds since the epoch."""
        for job in jobs:
            seen = self._seen.get(job.number)
            if seen is None or seen.began != job.began:
                seen = self._seen[job.number] = _Seen(job.began)
            if job.state is State.QUEUED or seen.ended:
                continue
            seen.status, seen.ended = job.status() or seen.status, job.state in ENDED
            if not _of_this_session(seen.status, job.began):
                continue
            epochs = epochs_of(seen.status)
            if epochs is None:
                if seen.at_start is None and "limits" in seen.status:
                    seen.at_start = now
            elif seen.last is None or epochs > seen.last[0]:
                seen.last = (epochs, now)
                seen.first = seen.first or seen.last

    def status(self, job: Job) -> dict[str, Any]:
        """What the job's status said at the last look; empty for a queued one."""
        return self._of(job).status

    def epochs(self, job: Job) -> int | None:
        """Epochs done, resumed ones included; None before the first report of this session."""
        last = self._of(job).last
        return None if last is None else last[0]

    def time_left(self, job: Job, now: float) -> float | None:
        """Seconds until a running job has trained; None where there is nothing to tell it from yet.

        An epoch takes what the epochs between the first and the newest report took: the epochs of the first report are
        resumed ones, and took none of this session's time. A first report of one epoch is a fresh run's, and that
        epoch took the time since training began. `max_time`, which counts earlier sessions too and lets the epoch
        finish, is taken to allow ceil(max_time / seconds an epoch) epochs in all.
        """
        seen = self._of(job)
        if job.state is not State.RUNNING or seen.first is None or seen.last is None:
            return None
        (first, first_at), (last, last_at) = seen.first, seen.last
        began = job.began if seen.at_start is None else seen.at_start
        if last > first:
            an_epoch = (last_at - first_at) / (last - first)
        elif last == 1 and began is not None:
            an_epoch = last_at - began
        else:
            return None
        if an_epoch <= 0:
            return None
        limit = _max_time(seen.status)
        total = job.max_epochs if limit is None else min(job.max_epochs, math.ceil(limit / an_epoch))
        return max(0.0, (total - last) * an_epoch - min(max(0.0, now - last_at), an_epoch))

    def _of(self, job: Job) -> _Seen:
        seen = self._seen.get(job.number)
        return seen if seen is not None and seen.began == job.began else _Seen(job.began)


def _of_this_session(status: dict[str, Any], began: float | None) -> bool:
    """Whether the process that was started at `began` wrote the status, whose times are whole seconds."""
    try:
        started = datetime.fromisoformat(str(status.get("started") or status.get("updated"))).timestamp()
    except (ValueError, OverflowError, OSError):
        return False
    return began is not None and started >= math.floor(began)


def _max_time(status: dict[str, Any]) -> float | None:
    limits = status.get("limits")
    limit = limits.get("max_time") if isinstance(limits, dict) else None
    if limit is None:
        return None
    try:
        return parse_duration(limit).total_seconds()
    except (UserError, OverflowError):
        return None


def sweep_left(jobs: Sequence[Job], now: float, tracker: Tracker) -> float | None:
    """Seconds until the last job has ended; None where nothing is left, or there is nothing to tell it from.

    A queued job takes the mean time of the finished ones; before any has finished, of what running ones have taken and
    have left. Each queued job goes to the slot that is free first.
    """
    running = [job for job in jobs if job.state is State.RUNNING and job.began is not None]
    queued = sum(job.state is State.QUEUED for job in jobs)
    ended = (taken(job) for job in jobs if job.state is State.FINISHED)  # None: it had been finished before
    times = [seconds for seconds in ended if seconds is not None]
    known = [(now - (job.began or now), tracker.time_left(job, now)) for job in running]
    times = times or [spent + left for spent, left in known if left is not None]
    if not times or not (running or queued):
        return None
    a_job = mean(times)
    slots = len({job.slot for job in jobs if job.slot})
    free = [max(0.0, a_job - spent) if left is None else left for spent, left in known]
    free += [0.0] * (max(1, slots) - len(free))
    heapq.heapify(free)
    for _ in range(queued):
        heapq.heappush(free, heapq.heappop(free) + a_job)
    return max(free)


def about(seconds: float) -> str:
    """`40 s`, `4 min`, `2 h 10 min`, `3 d 4 h`: a length of time as one says it."""
    if seconds < 89.5:
        return f"{round(seconds)} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"


def summary(jobs: Sequence[Job], now: float, tracker: Tracker) -> str:
    """`3 of 7 done, 2 running, 1 failed, 1 queued; about 4 min left`."""
    count = Counter(job.state for job in jobs)
    words = [f"{count[State.FINISHED]} of {len(jobs)} done"]
    for state in (State.RUNNING, State.FAILED, State.STOPPED, State.QUEUED):
        words += [f"{count[state]} {state.value}"] if count[state] else []
    left = sweep_left(jobs, now, tracker)
    return ", ".join(words) + ("" if left is None else f"; about {about(left)} left")
