"""The display of a running sweep: a live table on a terminal, a line now and then in a log file."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from pegasus_lightning.launch.jobs import Job, State
from pegasus_lightning.launch.progress import Tracker, summary
from pegasus_lightning.launch.tables import NARROWEST, clock, epochs_of, figure, reason_of, taken
from pegasus_lightning.runs.folder import RunName

REDRAW = 0.5  # seconds between two updates
SECONDS_BETWEEN_LINES = 30.0  # in a log file, for one running job
SUMMARY_LINES = 3  # lines kept free for the summary, which may wrap
# The order in which rows are kept if the terminal is too low.
IMPORTANCE = (State.RUNNING, State.FAILED, State.STOPPED, State.QUEUED, State.PRUNED, State.FINISHED)


class _Screen(Console):
    """Standard error. If it is closed, the sweep goes on silently, where rich would exit."""

    def __init__(self) -> None:
        # FORCE_COLOR makes a log file look like a terminal to rich, but no cursor can be moved in it.
        super().__init__(stderr=True, force_interactive=None if sys.stderr.isatty() else False)

    def on_broken_pipe(self) -> None:
        self.quiet = True


class _Rows(Progress):
    """A row for each job, and below them the summary, which may be wrapped."""

    summary = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        yield Text(self.summary)


class LiveTable:
    """Shows a sweep while it runs, by default on standard error; `time_now` returns seconds since the epoch."""

    def __init__(self, console: Console | None = None, time_now: Callable[[], float] = time.time) -> None:
        self.console = _Screen() if console is None else console
        self.tracker = Tracker()
        self._time_now = time_now
        self._progress: _Rows | None = None
        self._rows: dict[int, TaskID] = {}  # by job
        self._jobs: list[Job] = []
        self._states: list[State] = []
        self._updated = -math.inf
        self._printed = 0.0
        self._told: dict[int, tuple[State, int | None]] = {}  # by job: the state and epochs of its last line

    def __enter__(self) -> LiveTable:
        self._printed = self._time_now()
        if self.console.is_terminal and self.console.is_interactive:
            name = Column(no_wrap=True, overflow="ellipsis", ratio=1, min_width=NARROWEST)
            self._progress = _Rows(
                TextColumn("{task.description}", markup=False, table_column=name),
                *(TextColumn(f"{{task.fields[{field}]}}", markup=False) for field in ("state", "slot")),
                BarColumn(bar_width=12),
                *(TextColumn(f"{{task.fields[{field}]}}", justify="right") for field in ("epochs", "time", "psnr")),
                console=self.console,
                auto_refresh=False,
                expand=True,
                # Standard output is printed above the table, unless it goes to a file.
                redirect_stdout=sys.stdout.isatty(),
            )
            if not self._try(self._progress.start):
                self._progress = None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        now = self._time_now()
        self.tracker.update(self._jobs, now)
        if self._jobs:
            self._try(lambda: self._show(now))
        if self._progress is not None:
            self._try(self._progress.stop)
            self._progress = None

    def update(self, jobs: Sequence[Job]) -> None:
        """Show the jobs. This is cheap unless a state has changed or half a second has passed."""
        now = self._time_now()
        states = [job.state for job in jobs]
        if states == self._states and 0 <= now - self._updated < REDRAW:
            return
        self._jobs, self._states, self._updated = list(jobs), states, now
        self.tracker.update(jobs, now)
        self._try(lambda: self._show(now))

    def _try(self, show: Callable[[], object]) -> bool:
        try:
            show()
        except OSError:  # the terminal was closed; the sweep goes on
            self.console.quiet = True
            return False
        return True

    def _show(self, now: float) -> None:
        self._print(now)
        if self._progress is not None:
            self._redraw(self._progress, now)

    def _redraw(self, progress: _Rows, now: float) -> None:
        ordered = sorted(self._jobs, key=lambda job: (IMPORTANCE.index(job.state), job.skipped, job.number))
        visible = {job.number for job in ordered[: max(1, self.console.size.height - SUMMARY_LINES)]}
        progress.disable = True  # adding a row would draw all rows
        for job in self._jobs:
            row = {
                "description": f"{job.number} {RunName.parse(job.shown).short}",
                "state": f"{job.state.value} before" if job.skipped else job.state.value,
                "slot": job.slot,
                "epochs": self._epochs(job),
                "time": self._time(job, now),
                "psnr": "" if (psnr := self._psnr(job)) is None else f"{psnr:.2f} dB",
            }
            if job.number not in self._rows:
                self._rows[job.number] = progress.add_task(total=job.max_epochs, **row)  # type: ignore[arg-type]
            done = job.max_epochs if job.state is State.FINISHED else self.tracker.epochs(job) or 0
            shown = job.number in visible
            progress.update(self._rows[job.number], completed=done, visible=shown, **row)  # type: ignore[arg-type]
        progress.disable = False
        hidden = len(self._jobs) - len(visible)
        progress.summary = summary(self._jobs, now, self.tracker) + (f"; {hidden} not shown" if hidden > 0 else "")
        progress.refresh()

    def _print(self, now: float) -> None:
        """Print a line for each job that started or ended; in a log file also for running jobs now and then."""
        live = self._progress is not None
        due = not live and not 0 <= now - self._printed < SECONDS_BETWEEN_LINES
        before = [job for job in self._jobs if job.skipped and job.number not in self._told]
        before = [job for job in before if job.state is State.FINISHED]
        if before and not live:
            self._line(f"{len(before)} of {len(self._jobs)} finished before")
        for job in self._jobs:
            (told, epochs), done = self._told.get(job.number, (State.QUEUED, None)), self.tracker.epochs(job)
            head = f"[{job.number}/{len(self._jobs)}] {job.shown}"
            if not job.skipped and job.state is not told and job.state is not State.QUEUED:
                if job.state is State.RUNNING and not live:
                    self._line(f"{head} started on {job.slot}" if job.slot else f"{head} started")
                elif job.state in (State.FAILED, State.STOPPED, State.PRUNED) or (
                    job.state is State.FINISHED and not live
                ):
                    self._line(f"{head} {self._ended(job, now)}")
                epochs = None
            elif job.state is State.RUNNING and due and done is not None and done != epochs:
                words = [f"epoch {self._epochs(job)}", self._time(job, now)]
                words += [] if (psnr := self._psnr(job)) is None else [f"PSNR {psnr:.2f} dB"]
                self._line(f"{head} {', '.join(word for word in words if word)}")
                epochs = done
            self._told[job.number] = (job.state, epochs)
        if due:
            self._printed = now

    def _ended(self, job: Job, now: float) -> str:
        seconds, reason, psnr = taken(job), reason_of(job, self.tracker.status(job)), self._psnr(job)
        text = job.state.value + ("" if seconds is None else f" after {clock(seconds)}")
        if reason:
            text += f": {reason.removeprefix('pruned ')}"
        if psnr is not None and job.state is State.FINISHED:
            text += f", PSNR {psnr:.2f} dB"
        return f"{text} ({summary(self._jobs, now, self.tracker)})"

    def _line(self, text: str) -> None:
        self.console.print(Text(text), soft_wrap=True, highlight=False)

    def _epochs(self, job: Job) -> str:
        if job.state is State.QUEUED:
            return ""
        epochs = self.tracker.epochs(job) if job.state is State.RUNNING else epochs_of(self.tracker.status(job))
        if epochs is None:
            return "starting" if job.state is State.RUNNING else ""
        return f"{epochs}/{job.max_epochs}"

    def _time(self, job: Job, now: float) -> str:
        """Return the time that a running job has left, or that an ended one took."""
        if job.state is not State.RUNNING:
            return "" if (seconds := taken(job)) is None else clock(seconds)
        if (self.tracker.epochs(job) or 0) >= job.max_epochs:
            return "ending"
        return "" if (left := self.tracker.time_left(job, now)) is None else f"{clock(left)} left"

    def _psnr(self, job: Job) -> float | None:
        """Return the PSNR in dB of the last validation, or else of the trained model."""
        status = self.tracker.status(job)
        if job.state is State.RUNNING and self.tracker.epochs(job) is None:
            return None
        validated = figure(status, "validation/psnr")
        return figure(status, "final/psnr") if validated is None else validated
