"""Before a long sweep: every configuration is tried for a few batches, which gives its hours and its disk space."""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from omegaconf import OmegaConf

from pegasus_lightning.launch.jobs import Job, State
from pegasus_lightning.launch.planning import Planned
from pegasus_lightning.runs.folder import config_hash
from pegasus_lightning.train.dry_run import EXPERIMENT, shortened
from pegasus_lightning.train.settings import about, parse_duration
from pegasus_lightning.utils.compose import plain

LONG, LONG_TIME = 1000, 3600.0  # epochs and seconds (max_time) of all runs together, from which on a sweep is tried


def is_long(runs: Sequence[Planned]) -> bool:
    """Return whether a sweep is worth a trial: it is long, and none of its runs has begun."""
    limits = [_limit(run) for run in runs]
    epochs = sum(run.config.trainer.max_epochs for run in runs)
    return epochs >= LONG and sum(limits) >= LONG_TIME and not any(run.folder.exists() for run in runs)


def _limit(run: Planned) -> float:
    """Return the seconds after which a run ends."""
    limit = run.config.trainer.max_time
    return float("inf") if limit is None else parse_duration(limit).total_seconds()


def trials_of(runs: Sequence[Planned]) -> tuple[list[Planned], list[int]]:
    """Return a dry run of each configuration, seeds aside, and the number of runs that it stands for."""
    keys = [config_hash(plain(run.config) | {"seed": 0}) for run in runs]
    first = dict(zip(reversed(keys), reversed(runs), strict=True))
    counts = Counter(keys)
    return [_trial(first[key]) for key in counts], [*counts.values()]


def _trial(run: Planned) -> Planned:
    config = shortened(OmegaConf.merge(run.config, {"trainer": {"dry_run": True}}))  # type: ignore[arg-type]
    folder = run.folder.parent.parent / EXPERIMENT / run.folder.name
    return replace(run, overrides=[*run.overrides, "trainer.dry_run=true"], config=config, folder=folder)


def conclude(jobs: Sequence[Job], runs: Sequence[Planned], counts: Sequence[int], slots: int) -> str:
    """Return what tried jobs say about the runs that they stand for, `counts` each. Remove the jobs' folders.

    Failures are printed. `runs` have the limits of time. "" means that no run works.
    """
    size, times = 0.0, list[float]()
    for job, run, count in zip(jobs, runs, counts, strict=True):
        figures = job.status().get("dry_run")
        if job.state is State.FAILED:
            print(f"{job.shown} does not work: {job.reason} (log: {job.log})", file=sys.stderr)
        if isinstance(figures, dict):
            times += count * [min(_limit(run), figures["seconds"])]
            size += count * figures["bytes"]
        shutil.rmtree(job.folder, ignore_errors=True)
    known = len(times)
    if not known:
        return ""
    home = jobs[0].folder.parent
    if home.exists() and not any(home.iterdir()):
        home.rmdir()
    free = shutil.disk_usage(home.parent).free
    side_by_side = min(slots, known)
    at_a_time = f", {side_by_side} at a time," if side_by_side > 1 else ""
    ends = [0.0] * side_by_side  # of the slots: a run takes the first that is free
    for taken in times:
        ends[ends.index(min(ends))] += taken
    return (
        f"{known} {'run takes' if known == 1 else 'runs take'} about {about(max(ends))}{at_a_time} and "
        f"{size / 1e9:.1f} GB of disk ({free / 1e9:.0f} GB are free), by the time of a few batches of each."
    )


def try_out(
    runs: Sequence[Planned], run_jobs: Callable[[Sequence[Planned]], tuple[list[Job], int | None]], slots: int
) -> tuple[int | None, bool]:
    """Try each configuration with `run_jobs`, and print an estimate.

    Return the signal that stopped it, or None, and whether any configuration works.
    """
    trials, counts = trials_of(runs)
    print(f"A long sweep: {len(trials)} configurations are tried for a few batches first.", flush=True)
    jobs, received = run_jobs(trials)
    by_hash = {config_hash(plain(run.config) | {"seed": 0}): run for run in runs}
    planned = [by_hash[config_hash(plain(trial.config) | {"seed": 0})] for trial in trials]
    line = conclude(jobs, planned, counts, slots)
    if received is None:
        print(f"Estimate: {line}" if line else "No configuration works: the sweep does not begin.", flush=True)
    return received, bool(line)
