"""What a person sees of a sweep while it runs: on a terminal a table, in a log file a line now and then."""

from __future__ import annotations

import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from types import TracebackType

from rich.console import Console, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pegasus_lightning.launch.jobs import Job, State
from pegasus_lightning.launch.progress import Tracker, summary
from pegasus_lightning.launch.tables import STYLES, Shortened, clock, epochs_of, figure, plain_table, reason_of, taken

REDRAW = 0.5  # seconds between two looks at the jobs
SECONDS_BETWEEN_LINES = 30.0  # away from a terminal, of one running job
HEAD_LINES = 2  # of a table: its head and the rule under it
SUMMARY_LINES = 2  # it may need, on a narrow terminal
# Which rows stay where there are more than the terminal has lines.
IMPORTANCE = (State.RUNNING, State.FAILED, State.STOPPED, State.QUEUED, State.FINISHED)


def live_table(jobs: Sequence[Job], now: float, tracker: Tracker | None = None, lines: int | None = None) -> Table:
    """The sweep as it stands: a row a job; under them why jobs failed, and the summary. A grid of one column.

    Args:
        now: seconds since the epoch.
        tracker: what has been seen of the jobs until now; without one there is only what they say at this moment.
        lines: that the table may take; where it would take more, running and failed jobs come first, and the rest are
            counted.
    """
    if tracker is None:
        tracker = Tracker()
        tracker.look(jobs, now)
    shown, hidden = _fitting(jobs, tracker, lines)
    table = plain_table()
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("run")
    table.add_column("state", no_wrap=True)
    table.add_column("on", no_wrap=True)
    table.add_column("epoch", justify="right", no_wrap=True)
    table.add_column("time", justify="right", no_wrap=True)
    table.add_column("PSNR", justify="right", no_wrap=True)
    longest = max((len(job.shown) for job in shown), default=0)
    for job in shown:
        table.add_row(*_row(job, now, tracker, longest))
    whole = Table.grid()
    whole.add_row(table)
    for job in shown:
        remark = _remark(job, tracker)
        if remark:
            line = f"#{job.number} {job.state}: {remark}"
            whole.add_row(Text(line, STYLES[job.state], no_wrap=True, overflow="ellipsis"))
    if hidden:
        counts = Counter(job.state for job in hidden)
        line = f"not shown: {', '.join(f'{counts[state]} {state}' for state in IMPORTANCE if counts[state])}"
        whole.add_row(Text(line, "dim", no_wrap=True, overflow="ellipsis"))
    whole.add_row(Text(summary(jobs, now, tracker)))
    return whole


def _fitting(jobs: Sequence[Job], tracker: Tracker, lines: int | None) -> tuple[list[Job], list[Job]]:
    """The jobs with a row (and a line for the reason), and those without."""
    heights = {job.number: 2 if _remark(job, tracker) else 1 for job in jobs}
    if lines is None or HEAD_LINES + sum(heights.values()) + SUMMARY_LINES <= lines:
        return list(jobs), []
    room = lines - HEAD_LINES - SUMMARY_LINES - 1  # that what is hidden takes
    ordered = sorted(jobs, key=lambda job: (IMPORTANCE.index(job.state), job.skipped, job.number))
    shown = 0
    while shown < len(ordered) and sum(heights[job.number] for job in ordered[: shown + 1]) <= room:
        shown += 1
    return ordered[:shown], ordered[shown:]


def _remark(job: Job, tracker: Tracker) -> str:
    return reason_of(job, tracker.status(job)) if job.state in (State.FAILED, State.STOPPED) else ""


def _row(job: Job, now: float, tracker: Tracker, longest: int) -> list[RenderableType]:
    quiet = "dim" if job.state is State.QUEUED or job.skipped else ""
    state = "finished before" if job.skipped else job.state.value
    psnr = _psnr(job, tracker)
    return [
        Text(str(job.number), quiet),
        Shortened(job.shown, longest, quiet),
        Text(state, STYLES[job.state]),
        Text(job.slot),
        Text(_progress(job, tracker), quiet),
        Text(_time(job, now, tracker)),
        Text("" if psnr is None else f"{psnr:.2f}", quiet),
    ]


def _progress(job: Job, tracker: Tracker) -> str:
    if job.state is State.QUEUED:
        return ""
    epochs = tracker.epochs(job) if job.state is State.RUNNING else epochs_of(tracker.status(job))
    if epochs is None:
        return "starting" if job.state is State.RUNNING else ""
    return f"{epochs}/{job.max_epochs}"


def _time(job: Job, now: float, tracker: Tracker) -> str:
    """What a running job has left, what an ended one took."""
    if job.state is not State.RUNNING:
        seconds = taken(job)
        return "" if seconds is None else clock(seconds)
    if (tracker.epochs(job) or 0) >= job.max_epochs:
        return "ending"
    left = tracker.time_left(job, now)
    return "" if left is None else f"{clock(left)} left"


def _psnr(job: Job, tracker: Tracker) -> float | None:
    """dB, of the trained model, or else of the last validation."""
    status = tracker.status(job)
    if job.state is State.RUNNING and tracker.epochs(job) is None:
        return None  # an earlier session's
    final = figure(status, "final/psnr")
    return figure(status, "validation/psnr") if final is None else final


class _Screen(Console):
    """Standard error. When nobody reads it any more the sweep goes on in silence, where rich would exit."""

    def __init__(self) -> None:
        # FORCE_COLOR makes a log file look like a terminal to rich, but no cursor can be moved in it.
        super().__init__(stderr=True, force_interactive=None if sys.stderr.isatty() else False)

    def on_broken_pipe(self) -> None:
        self.quiet = True


class Watcher:
    """Shows a sweep while it runs.

    Args:
        console: standard error where it is None.
        time_now: seconds since the epoch.
    """

    def __init__(self, console: Console | None = None, time_now: Callable[[], float] = time.time) -> None:
        self.console = _Screen() if console is None else console
        self.tracker = Tracker()
        self._time_now = time_now
        self._live: Live | None = None
        self._jobs: list[Job] = []
        self._states: list[State] = []
        self._looked = -math.inf
        self._said = 0.0
        self._told: dict[int, tuple[State, int | None]] = {}  # by job: the state and the epochs last written

    def __enter__(self) -> Watcher:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Take the terminal, where there is one."""
        self._said = self._time_now()
        if self.console.is_terminal and self.console.is_interactive:
            # What others print goes above the table; what they print into a file stays theirs.
            self._live = Live(console=self.console, auto_refresh=False, redirect_stdout=sys.stdout.isatty())
            if not self._try(self._live.start):
                self._live = None  # half started, it could not be stopped either

    def update(self, jobs: Sequence[Job]) -> None:
        """Show how the jobs stand. Cheap unless a state has changed or half a second has passed."""
        now = self._time_now()
        states = [job.state for job in jobs]
        if states == self._states and 0 <= now - self._looked < REDRAW:
            return
        self._jobs, self._states, self._looked = list(jobs), states, now
        self.tracker.look(jobs, now)
        self._try(lambda: self._draw(now))

    def stop(self) -> None:
        """Show the jobs as they are now, and give the terminal back."""
        now = self._time_now()
        self.tracker.look(self._jobs, now)
        if self._jobs:
            self._try(lambda: self._draw(now, refresh=False))  # the live table draws itself once more when it stops
        if self._live is not None:
            self._try(self._live.stop)
            self._live = None

    def _try(self, show: Callable[[], object]) -> bool:
        try:
            show()
        except OSError:  # the terminal was closed; the sweep goes on
            self.console.quiet = True
            return False
        return True

    def _draw(self, now: float, refresh: bool = True) -> None:
        if self._live is not None:
            table = live_table(self._jobs, now, self.tracker, self.console.size.height - 1)
            self._live.update(table, refresh=refresh)
        else:
            self._write(now)

    def _write(self, now: float) -> None:
        due = not 0 <= now - self._said < SECONDS_BETWEEN_LINES
        before = [job for job in self._jobs if job.skipped and job.number not in self._told]
        if before:
            self._line(f"{len(before)} of {len(self._jobs)} finished before")
        for job in self._jobs:
            told, epochs = self._told.get(job.number, (State.QUEUED, None)), self.tracker.epochs(job)
            if job.skipped or job.state is State.QUEUED:
                pass
            elif job.state is not told[0]:
                text = self._began(job) if job.state is State.RUNNING else self._ended(job, now)
                self._line(f"[{job.number}/{len(self._jobs)}] {job.shown} {text}")
                epochs = None
            elif job.state is State.RUNNING and due and epochs is not None and epochs != told[1]:
                self._line(f"[{job.number}/{len(self._jobs)}] {job.shown} {self._goes_on(job, now)}")
            else:
                epochs = told[1]
            self._told[job.number] = (job.state, epochs)
        if due:
            self._said = now

    def _began(self, job: Job) -> str:
        return f"started on {job.slot}" if job.slot else "started"

    def _goes_on(self, job: Job, now: float) -> str:
        psnr = _psnr(job, self.tracker)
        words = [f"epoch {_progress(job, self.tracker)}", _time(job, now, self.tracker)]
        return ", ".join([word for word in words if word] + ([] if psnr is None else [f"PSNR {psnr:.2f} dB"]))

    def _ended(self, job: Job, now: float) -> str:
        seconds, reason, psnr = taken(job), _remark(job, self.tracker), _psnr(job, self.tracker)
        text = job.state.value + ("" if seconds is None else f" after {clock(seconds)}")
        if reason:
            text += f": {reason}"
        elif psnr is not None:
            text += f", PSNR {psnr:.2f} dB"
        return f"{text} ({summary(self._jobs, now, self.tracker)})"

    def _line(self, text: str) -> None:
        self.console.print(Text(text), soft_wrap=True, highlight=False)
