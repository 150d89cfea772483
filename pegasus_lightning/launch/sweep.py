"""A sweep on this machine: run what is not finished in the pool, then print the ranking, the failures and the page."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from pegasus_lightning.launch.jobs import Job, State, label, write_jobs
from pegasus_lightning.launch.judging import evaluate, train_recognisers
from pegasus_lightning.launch.live_table import LiveTable
from pegasus_lightning.launch.planning import Planned, uses_gpus
from pegasus_lightning.launch.pool import Pool
from pegasus_lightning.launch.settings import PoolSettings
from pegasus_lightning.launch.slots import Slot, cpu_slots, cpu_slots_wanted, gpu_slots, physical_memory
from pegasus_lightning.launch.tables import failures, ranked_table, seeds_table
from pegasus_lightning.launch.trial import conclude, is_long, try_out
from pegasus_lightning.runs.checkpoints import is_finished
from pegasus_lightning.runs.folder import LOCK, config_hash
from pegasus_lightning.runs.images import check_images, images_now, recorded_images
from pegasus_lightning.utils.compose import plain
from pegasus_lightning.utils.errors import Interrupted, UserError
from pegasus_lightning.utils.files import make_folder

log = logging.getLogger(__name__)

FILE = "sweep.json"


def run_sweep(runs: Sequence[Planned], settings: PoolSettings, counts: Sequence[int] | None = None) -> int:
    """Run what is not finished. Return the exit code: 0 if every run is finished, 128 + n after signal n, else 1.

    There is at least one run, and no two share a folder. In a dry run, each stands for so many as `counts` says, one
    by default. Raise UserError if the same sweep is running already.
    """
    home = runs[0].folder.parent
    # The name is a hash of the runs, so the same command finds its logs again.
    identity = hashlib.sha256("\n".join(sorted(str(run.folder) for run in runs)).encode()).hexdigest()[:8]
    with holding(home / f"sweep-{identity}") as folder:
        jobs = [job_of(index, run, folder / "logs") for index, run in enumerate(runs, start=1)]
        label(jobs)
        slots = slots_for(runs, settings)
        announce(f"Sweep of {len(jobs)} runs", jobs, slots, home, folder)
        train = partial(run_jobs, jobs, runs, slots, settings, folder / FILE)
        if runs[0].config.trainer.dry_run:
            return _conclude_dry(jobs, runs, counts or [1] * len(jobs), slots, folder, train())
        received, works = try_long(runs, slots, settings, folder)
        if not works:
            return 1
        return carry_out(jobs, runs[0].config, slots, settings, folder, received, train)


@contextlib.contextmanager
def holding(folder: Path) -> Iterator[Path]:
    """Make a sweep's folder and hold its lock. Raise UserError if another process holds it."""
    make_folder(folder)
    _images_now.cache_clear()
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(
            f"This sweep is running already, in another process ({folder / FILE} has its progress)."
        ) from None
    try:
        yield folder
    finally:
        lock.release()


def announce(what: str, jobs: Sequence[Job], slots: Sequence[Slot], home: Path, folder: Path) -> None:
    """Print what it is, how many jobs there are, how many of them are done, and where they run."""
    waiting = sum(job.state is State.QUEUED for job in jobs)
    ended = "ended" if any(job.state in (State.PRUNED, State.FAILED) for job in jobs) else "finished"
    before = f"{len(jobs) - waiting} {ended} before, " if waiting < len(jobs) else ""
    at_a_time = f"at most {len(slots)} at a time ({', '.join(slot.name for slot in slots)})"
    print(f"{what} in {home}: {before}{waiting} to do{', ' + at_a_time if waiting else ''}.")
    print(f"Logs: {folder / 'logs'}", flush=True)


def try_long(
    runs: Sequence[Planned], slots: Sequence[Slot], settings: PoolSettings, folder: Path
) -> tuple[int | None, bool]:
    """Try each configuration of a long sweep. Return the signal that stopped it, or None, and whether to go on."""
    if not settings.trial or not is_long(runs):
        return None, True

    def run_trials(trials: Sequence[Planned]) -> tuple[list[Job], int | None]:
        tried = [job_of(index, trial, folder / "logs" / "tried") for index, trial in enumerate(trials, start=1)]
        label(tried)
        return tried, run_jobs(tried, trials, slots, settings, folder / "tried.json")

    received, works = try_out(runs, run_trials, len(slots))
    return received, works or received is not None


def carry_out(
    jobs: Sequence[Job],
    config: DictConfig,
    slots: Sequence[Slot],
    settings: PoolSettings,
    folder: Path,
    received: int | None,
    train: Callable[[], int | None],
) -> int:
    """Call `train`, and evaluate the runs if the settings say so; print the results. Return the exit code.

    `received` is the signal that came before, or None; `train` returns the one that stopped it.
    """
    judged, failed = settings.evaluate, False
    try:
        if judged and received is None and not train_recognisers(config.data):
            print("The recognisers could not be trained: the runs are trained, and not evaluated.", file=sys.stderr)
            judged, failed = False, True
    except Interrupted as error:
        received = error.number
    if received is None:
        received = train()
    unexplained = [job for job in jobs if job.state is State.FAILED or received is None]
    finished = [job.folder for job in jobs if job.state is State.FINISHED]
    if judged and received is None and finished:
        try:
            failed = not evaluate(finished, slots, folder / "logs")
        except Interrupted as error:
            received = error.number
    _print_results(jobs, unexplained, settings, folder.parent, folder / "report.html")
    if received is not None:
        how = "Run the same command again" if config.resume != "never" else "Run the same command without resume=never"
        print(f"The sweep was stopped. {how} to continue it.", file=sys.stderr)
        return 128 + received
    return 0 if not failed and all(job.state in (State.FINISHED, State.PRUNED) for job in jobs) else 1


def _conclude_dry(
    jobs: Sequence[Job],
    runs: Sequence[Planned],
    counts: Sequence[int],
    slots: Sequence[Slot],
    folder: Path,
    received: int | None,
) -> int:
    """Say what dry runs have shown, and remove their folders. Return the exit code."""
    if received is not None:
        print("The sweep was stopped. Run the same command again to continue it.", file=sys.stderr)
        return 128 + received
    done = sum(job.state is State.FINISHED for job in jobs)
    print(conclude(jobs, runs, counts, len(slots)))
    print(f"All of it works: {done} dry runs." if done == len(jobs) else f"{done} of {len(jobs)} runs work.")
    if done < len(jobs):
        return 1
    shutil.rmtree(folder)
    with contextlib.suppress(OSError):  # of other dry runs
        folder.parent.rmdir()
    return 0


def run_jobs(
    jobs: Sequence[Job],
    runs: Sequence[Planned],
    slots: Sequence[Slot],
    settings: PoolSettings,
    path: Path,
) -> int | None:
    """Run the jobs of these runs in the slots, and keep their list at `path`. Return the signal that stopped them."""
    wanted = {job.number: plain(run.config) for job, run in zip(jobs, runs, strict=True)}
    return fill_slots(jobs, slots, settings, path, lambda job: is_finished(job.folder, wanted[job.number]))


def fill_slots(
    jobs: Sequence[Job],
    slots: Sequence[Slot],
    settings: PoolSettings,
    path: Path,
    finished: Callable[[Job], bool],
    watch: Callable[[], object] = lambda: None,
    prepare: Callable[[Job], bool] = lambda job: True,
) -> int | None:
    """Run the jobs in the slots with a live table, and keep their list at `path`. Return the signal that stopped them.

    `finished` and `prepare` are those of the pool; `watch` is called several times a second.
    """
    with LiveTable() as table:
        reporter = _Reporter(table, path)

        def report(jobs: Sequence[Job]) -> None:
            watch()
            reporter.report(jobs)

        received = Pool(
            jobs,
            slots,
            report=report,
            finished=finished,
            stop_timeout=settings.stop_timeout,
            retries=settings.retries,
            prepare=prepare,
        ).run()
    watch()
    write_jobs(path, jobs)
    return received


def job_of(number: int, run: Planned, logs: Path) -> Job:
    """Return the job of a planned run. It is skipped if the run is finished."""
    settings = plain(run.config)
    dry = settings["trainer"]["dry_run"]
    finished = not dry and is_finished(run.folder, settings) and _has_its_images(run)
    return Job(
        number=number,
        name=run.folder.name,
        overrides=list(run.overrides),
        folder=run.folder,
        command=[sys.executable, "-m", "pegasus_lightning.launch.job_process", *run.overrides],
        log=logs / f"{number}-{run.folder.name}.log",
        max_epochs=settings["trainer"]["max_epochs"],
        state=State.FINISHED if finished else State.QUEUED,
        skipped=finished,
        config=OmegaConf.to_yaml(run.config, resolve=True),
        config_hash=config_hash(settings),
    )


@lru_cache(maxsize=100)
def _images_now(root: str, classes: tuple[str, ...], cache: str | None) -> dict[str, Any] | None:
    return images_now(OmegaConf.create({"source": "image_folder", "root": root, "classes": classes, "cache": cache}))


def _has_its_images(run: Planned) -> bool:
    """Return False for a run whose images have changed: its process says so, and the sweep lists it."""
    data, record = run.config.data, recorded_images(run.folder, None)
    if record is None or data.source != "image_folder":
        return True
    try:
        check_images(run.folder, data, record, _images_now(data.root, tuple(data.classes), data.cache))
    except UserError:
        return False
    return True


def slots_for(runs: Sequence[Planned], settings: PoolSettings) -> list[Slot]:
    """Return the slots of a sweep of these runs."""
    threads = torch.get_num_threads()
    if uses_gpus(runs):
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        return gpu_slots(torch.cuda.device_count(), visible, jobs_per_gpu=settings.jobs_per_gpu, threads=threads)
    # Count all runs, finished ones too, so that a repeated sweep gives each run as many threads as before: their number
    # decides the order of sums, and so the last bits.
    return cpu_slots(settings.slots or cpu_slots_wanted(len(runs), threads, physical_memory()), threads)


class _Reporter:
    """Show the jobs and keep `sweep.json` up to date. An error here does not end the sweep."""

    def __init__(self, table: LiveTable, path: Path) -> None:
        self.table, self.path = table, path
        self._written: list[State] = []
        self._told: set[str] = set()

    def report(self, jobs: Sequence[Job]) -> None:
        try:
            self.table.update(jobs)
            states = [job.state for job in jobs]
            if states != self._written:
                write_jobs(self.path, jobs)
                self._written = states
        except Exception as error:
            if str(error) not in self._told:
                self._told.add(str(error))
                print(f"The sweep goes on, but its progress cannot be shown: {error}", file=sys.stderr)


def _print_results(
    jobs: Sequence[Job], unexplained: Sequence[Job], settings: PoolSettings, home: Path, page: Path
) -> None:
    """Print the tables, the failures among `unexplained` with the end of their logs, and what to do next."""
    console = Console()
    for part in (ranked_table(jobs, settings.rank_by), seeds_table(jobs, settings.rank_by), *failures(unexplained)):
        if part is not None:
            console.print(part)
    made = settings.report and _make_page(jobs, page)
    finished = sum(job.state is State.FINISHED for job in jobs)
    pruned = sum(job.state is State.PRUNED for job in jobs)
    print(f"{finished} of {len(jobs)} runs finished{f', {pruned} pruned' if pruned else ''}.")
    if made:
        print(f"  page        {page}")
    print(f"  judge them  python -m pegasus_lightning.evaluate run={home}")
    print(f"  TensorBoard tensorboard --logdir {home}", flush=True)


def _make_page(jobs: Sequence[Job], page: Path) -> bool:
    """Write the report of all runs, also failed ones. Return whether it could be written."""
    from pegasus_lightning.report.page import write_report  # matplotlib is slow to import

    places = [str(job.folder) for job in jobs if (job.folder / "status.json").exists()]
    if not places:
        return False
    try:
        write_report(places, str(page), None, True)
    except Exception as error:  # the runs are trained nevertheless
        print(f"The page could not be made: {type(error).__name__}: {error}", file=sys.stderr)
        log.debug("report", exc_info=True)
        return False
    return True
