"""Tables printed at the end of a sweep: ranked runs, statistics over seeds, and failures."""

from __future__ import annotations

import re
import shlex
import signal
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from pegasus_lightning.launch.jobs import Job, State
from pegasus_lightning.runs.folder import RunName
from pegasus_lightning.runs.scorecards import MEASURES, MODEL_MEASURES
from pegasus_lightning.utils.errors import UserError
from pegasus_lightning.utils.foreign import open_regular

STYLES = {
    State.QUEUED: "dim",
    State.RUNNING: "yellow",
    State.FINISHED: "green",
    State.STOPPED: "magenta",
    State.PRUNED: "cyan",
    State.FAILED: "red",
}
ENDED = (State.FINISHED, State.PRUNED, State.STOPPED, State.FAILED)
# Columns beside the ranking metric, if any run has them: head, format. They are of the test split, by default.
OTHERS = {
    "final/psnr": ("final\nPSNR", ".2f"),
    "final/excess_bce": ("excess\nBCE", ".1f"),
    "final/kl": ("KL", ".1f"),
    "final/critic_real": ("C\nreal", ".2f"),
    "final/critic_fake": ("C\nfake", ".2f"),
}
HEADS = {"validation/psnr": ("valid.\nPSNR", ".2f")} | OTHERS  # short, so that the table fits 80 characters
BAD = ("bad", "fail", "failed", "unhealthy", "alarm")  # as in the report
NARROWEST = 16  # characters of a name in a line
TAIL_BYTES = 2**16  # read from the end of a log, which may be of any size
STOPPED_LINES = 3  # log lines shown for a stopped run, which did not fail
CONTROL = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # colours, cursor moves
    r"|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)"  # titles, links
    r"|\x1b[ -/]*[0-~]?"
    r"|[\x00-\x08\x0b-\x1f\x7f-\x9f]"
)


class ShellCommand:
    """A command that is wrapped between words with backslashes, so that it can be copied and run."""

    def __init__(self, words: Sequence[str], indent: int = 0) -> None:
        self.words, self.indent = [shlex.quote(word) for word in words], indent

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines, room = [" " * self.indent + self.words[0]], options.max_width - len(" \\")
        for word in self.words[1:]:
            if len(lines[-1]) + 1 + len(word) <= room:
                lines[-1] += f" {word}"
            else:
                lines.append(" " * (self.indent + 2) + word)
        # Fold words longer than a line rather than cut them, and write no padding after a backslash.
        yield Text(" \\\n".join(lines), overflow="fold")


def clock(seconds: float) -> str:
    """Return seconds as (hours,) minutes and seconds: `0:07`, `12:40`, `1:02:33`."""
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def taken(job: Job) -> float | None:
    """Return the seconds that the process of the job ran; None if it did not run or end."""
    return None if job.began is None or job.ended is None else job.ended - job.began


def figure(status: dict[str, Any], name: str) -> float | None:
    """Return a metric of a `status.json`; None if missing or not a finite number."""
    metrics = status.get("metrics")
    value = metrics.get(name) if isinstance(metrics, dict) else None
    if not isinstance(value, float) and type(value) is not int:
        return None
    return float(value) if abs(value) <= sys.float_info.max else None


def epochs_of(status: dict[str, Any]) -> int | None:
    """Return the number of epochs done according to a `status.json`; None if missing."""
    epochs = status.get("epochs")
    return epochs if isinstance(epochs, int) and not isinstance(epochs, bool) else None


def reason_of(job: Job, status: dict[str, Any]) -> str:
    """Return why a job failed or stopped, as one line of plain text; empty if unknown."""
    lines = plain_lines(str(job.reason or status.get("reason") or ""))
    return next((line.strip() for line in lines if line.strip()), "")


def plain_lines(text: str) -> list[str]:
    """Return the lines that a terminal would show in the end: only the last state of lines rewritten after a carriage
    return, without colours and control characters."""
    lines = []
    for line in text.split("\n"):
        states = [CONTROL.sub("", state).expandtabs().rstrip() for state in line.split("\r")]
        lines.append(next((state for state in reversed(states) if state), ""))
    return lines


def last_lines(path: Path, count: int) -> list[str]:
    """Return the last lines of a log without trailing blank lines; empty if it cannot be read."""
    try:
        with open_regular(path) as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - TAIL_BYTES))
            lines = plain_lines(file.read().decode("utf-8", errors="replace"))
    except (OSError, UserError):
        return []
    if size > TAIL_BYTES and len(lines) > 1:
        lines = lines[1:]  # incomplete: its beginning was not read
    while lines and not lines[-1]:
        lines.pop()
    return lines[max(0, len(lines) - count) :]


def lower_is_better(metric: str) -> bool:
    """Look up the last part of a name such as `final/excess_bce`. Unknown metrics: lower is better for losses only."""
    group, _, name = metric.rpartition("/")
    measure = (MEASURES | MODEL_MEASURES).get(name)
    return group == "loss" if measure is None else measure.better == "lower"


def head_of(metric: str) -> tuple[str, str]:
    """Return the head of a metric's column and the format of its values."""
    if metric in HEADS:
        return HEADS[metric]
    measure = (MEASURES | MODEL_MEASURES).get(metric.rpartition("/")[2])
    return metric.replace("/", "/\n"), ".4g" if measure is None else measure.style


def plain_table(title: str = "") -> Table:
    """Return an empty table whose only rule is below its head, so that it looks the same in a log file."""
    heading = Text(title, "bold") if title else None
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.title, table.title_justify = heading, "left"
    return table


def ranked_table(jobs: Sequence[Job], rank_by: str) -> Table:
    """Return ended runs ranked by a metric of their `status.json`; unfinished runs and those without it are last.

    Columns without values are left out. Health checks with a bad verdict are listed below the run name.
    """
    ended = [(job, job.status()) for job in jobs if job.state in ENDED]
    values = {job.number: figure(status, rank_by) for job, status in ended if job.state is State.FINISHED}
    sign = 1 if lower_is_better(rank_by) else -1

    def place(pair: tuple[Job, dict[str, Any]]) -> tuple[bool, float, int, int]:
        job = pair[0]
        value = values.get(job.number)
        return value is None, sign * (value or 0.0), ENDED.index(job.state), job.number

    metrics = _shown(rank_by, (status for _, status in ended))
    table = plain_table(f"Ranked by {rank_by}, {'lowest' if sign > 0 else 'highest'} first")
    table.add_column("rank", no_wrap=True)
    table.add_column("run", overflow="fold", min_width=NARROWEST)
    for metric in metrics:
        table.add_column(head_of(metric)[0], justify="right", no_wrap=True)
    table.add_column("epochs", justify="right", no_wrap=True)
    table.add_column("time", justify="right", no_wrap=True)
    for rank, (job, status) in enumerate(sorted(ended, key=place), start=1):
        ranked = values.get(job.number) is not None
        best = "bold" if ranked and rank == 1 else ""
        unranked = "-" if job.state is State.FINISHED else job.state.value
        seconds = taken(job)
        cells: list[RenderableType] = [
            Text(str(rank), best) if ranked else Text(unranked, STYLES[job.state]),
            Text("\n").join([Text(job.shown, best), *_notes(status)]),
            *(Text(_written(metric, figure(status, metric)), best if metric == rank_by else "") for metric in metrics),
            _epochs(job, status),
            "before" if job.skipped else "-" if seconds is None else clock(seconds),
        ]
        table.add_row(*cells)
    return table


def seeds_table(jobs: Sequence[Job], rank_by: str) -> Table | None:
    """Return mean and standard deviation (n - 1) over the finished seeds of each variant; None if none has two."""
    variants = _variants([job for job in jobs if job.state is State.FINISHED])
    if all(len(members) < 2 for members in variants.values()):
        return None
    statuses = {name: [job.status() for job in members] for name, members in variants.items()}
    metrics = _shown(rank_by, (status for members in statuses.values() for status in members))
    figures = {name: {metric: _figures(members, metric) for metric in metrics} for name, members in statuses.items()}
    sign = 1 if lower_is_better(rank_by) else -1

    def place(name: str) -> tuple[bool, float]:
        values = figures[name][rank_by]
        return not values, sign * mean(values) if values else 0.0

    table = plain_table("Mean and standard deviation over seeds")
    table.add_column("variant", overflow="fold", min_width=NARROWEST)
    table.add_column("seeds", justify="right", no_wrap=True)
    for metric in metrics:
        table.add_column(head_of(metric)[0], justify="right", no_wrap=True)
    for name in sorted(variants, key=place):
        cells = [_spread(metric, figures[name][metric]) for metric in metrics]
        table.add_row(Text(name), str(len(variants[name])), *cells)
    return table


def failures(jobs: Sequence[Job], lines: int = 12) -> list[RenderableType]:
    """Return for each failed or stopped job how and why it ended, the end of its log, and how to run it alone.

    Args:
        lines: number of log lines for a failed job; at most three are shown for a stopped one.
    """
    return [_failure(job, lines) for job in jobs if job.state in (State.FAILED, State.STOPPED)]


def _failure(job: Job, lines: int) -> Group:
    reason, seconds = reason_of(job, job.status()), taken(job)
    head = Text.assemble("\n", (job.name, "bold"), " ", (job.state.value, STYLES[job.state]), overflow="fold")
    head.append("" if seconds is None else f" after {clock(seconds)}")
    head.append(f" on {job.slot}" if job.slot else "")
    head.append(f", {_exit(job, reason)}")
    shown = last_lines(job.log, lines if job.state is State.FAILED else min(lines, STOPPED_LINES))
    parts: list[RenderableType] = [head]
    if reason:
        parts.append(Text(f"  {reason}", overflow="fold"))
    parts.append(
        Text(f"  {'the end of its log' if shown else 'its log is empty or missing'}: {job.log}", overflow="fold")
    )
    parts += [Text(f"    {line}", overflow="fold") for line in shown]
    parts.append(Text("  to run it alone:"))
    # The number of threads is part of the command because it affects the last bits of the weights.
    variables = [f"{name}={value}" for name, value in job.environment.items()]
    return Group(*parts, ShellCommand([*variables, "python", "-m", "pegasus_lightning", *job.overrides], indent=4))


def _exit(job: Job, reason: str) -> str:
    """Return a text such as `exit code 137: killed by SIGKILL`, without a signal that `reason` already names."""
    if job.exit_code is None:
        return "no exit code"
    number = job.exit_code - 128
    if number not in {known.value for known in signal.Signals}:
        return f"exit code {job.exit_code}"
    asked = job.state is State.STOPPED and number != signal.SIGKILL
    spelled = f"{'stopped' if asked else 'killed'} by {signal.Signals(number).name}"
    return f"exit code {job.exit_code}" + ("" if spelled in reason else f": {spelled}")


def _shown(rank_by: str, statuses: Iterable[dict[str, Any]]) -> list[str]:
    known = list(statuses)
    return [rank_by] + [
        name for name in OTHERS if name != rank_by and any(figure(status, name) is not None for status in known)
    ]


def _figures(statuses: Sequence[dict[str, Any]], metric: str) -> list[float]:
    return [value for value in (figure(status, metric) for status in statuses) if value is not None]


def _written(metric: str, value: float | None) -> str:
    return "-" if value is None else format(value, head_of(metric)[1])


def _spread(metric: str, values: Sequence[float]) -> str:
    if len(values) < 2:
        return _written(metric, values[0] if values else None)
    return f"{_written(metric, mean(values))} ± {_written(metric, stdev(values))}"


def _epochs(job: Job, status: dict[str, Any]) -> str:
    epochs = epochs_of(status)
    return "-" if epochs is None else f"{epochs}/{job.max_epochs}"


def _notes(status: dict[str, Any]) -> list[Text]:
    """Return notes on a run: that its time was over, and the health checks with a bad verdict, in red."""
    health = status.get("health")
    entries = [entry for entry in health if isinstance(entry, dict)] if isinstance(health, list) else []
    names = [str(entry.get("name")) for entry in entries if str(entry.get("verdict")).lower() in BAD]
    late = [Text("out of time", "yellow")] if status.get("status") == "finished" and status.get("reason") else []
    return [*late, *([Text(", ".join(names), "red")] if names else [])]


def _variants(jobs: Sequence[Job]) -> dict[str, list[Job]]:
    """Group jobs that differ in their seed only, by their common name; if several groups share a name, the settings in
    which they differ follow it."""
    found: dict[tuple[str, tuple[str, ...]], list[Job]] = {}
    for job in jobs:
        settings = tuple(sorted(text for text in job.overrides if text.partition("=")[0] != "seed"))
        found.setdefault((RunName.parse(job.shown).readable, settings), []).append(job)
    named = {}
    for (name, settings), members in found.items():
        common = set(settings).intersection(*(others for other, others in found if other == name))
        telling = sorted(set(settings) - common)
        named[f"{name} ({', '.join(telling)})" if telling else name] = members
    return named
