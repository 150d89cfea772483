"""Tests of the display of a running sweep and of the time left."""

from __future__ import annotations

import io
import json
import re
import sys
from collections import Counter
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pegasus_lightning.launch.jobs import Job, State
from pegasus_lightning.launch.live_table import LiveTable
from pegasus_lightning.launch.progress import Tracker, about, summary, sweep_left

BEGAN = 1_800_000_000.0  # of the sweep, seconds since the epoch


def a_job(folder: Path, number: int, name: str, state: State = State.RUNNING, **fields: Any) -> Job:
    """A job of 20 epochs whose run folder is `folder/name`."""
    if state is not State.QUEUED and not fields.get("skipped"):
        fields = {"began": BEGAN} | fields
    return Job(number, name, [], folder / name, ["false"], folder / f"{name}.log", 20, state=state, **fields)


def say(job: Job, epochs: int | None = None, started: float = BEGAN, limit: str | None = None, **psnr: float) -> None:
    """Write the run's status.json, as a process that was started at `started` does; `final=20.1` is `final/psnr`."""
    when = datetime.fromtimestamp(started, timezone.utc).isoformat(timespec="seconds")
    content: dict[str, Any] = {"started": when, "limits": {"max_epochs": 20, "max_time": limit}}
    content |= {} if epochs is None else {"epochs": epochs}
    job.folder.mkdir(exist_ok=True)
    metrics = {f"{when}/psnr": value for when, value in psnr.items()}
    (job.folder / "status.json").write_text(json.dumps(content | {"metrics": metrics}))


def tracked(job: Job, *reports: tuple[float, int | None], **fields: Any) -> Tracker:
    """A tracker to which the job reported (seconds after the sweep began, epochs)."""
    tracker = Tracker()
    for seconds, epochs in reports:
        say(job, epochs, **fields)
        tracker.update([job], BEGAN + seconds)
    return tracker


# Time left.


def test_time_left_of_a_fresh_run(tmp_path: Path) -> None:
    job = a_job(tmp_path, 1, "vae")
    tracker = tracked(job, (6, None), (7, None))
    assert tracker.epochs(job) is None
    assert tracker.time_left(job, BEGAN + 8) is None
    say(job, 1)
    tracker.update([job], BEGAN + 16)  # the training began at 6, so the first epoch took 10 s; 19 are left
    assert [tracker.time_left(job, BEGAN + seconds) for seconds in (16, 20)] == [190, 186]
    say(job, 5)
    tracker.update([job], BEGAN + 48)  # four epochs in 32 s, without the first, which is slower: 15 times 8 s
    assert tracker.epochs(job) == 5
    # A slow epoch takes no more than one off: the 14 after it are left.
    assert [tracker.time_left(job, BEGAN + seconds) for seconds in (48, 51, 1000)] == [120, 117, 112]
    say(job, 20)
    tracker.update([job], BEGAN + 1100)
    assert tracker.time_left(job, BEGAN + 1100) == 0
    job.state = State.FINISHED
    assert tracker.time_left(job, BEGAN + 1100) is None


def test_resumed_epochs_took_no_time_and_a_job_started_again_is_followed_anew(tmp_path: Path) -> None:
    job = a_job(tmp_path, 1, "vae")
    tracker = tracked(job, (1, 11), started=BEGAN - 5000)  # the report of an earlier session
    assert tracker.epochs(job) is None
    for seconds, epochs in ((15, None), (30, 12), (70, 14)):
        assert tracker.time_left(job, BEGAN + 40) is None
        say(job, epochs)
        tracker.update([job], BEGAN + seconds)
    # Two epochs in 40 s, six left. 14 epochs in 70 s would give 30 s.
    assert tracker.time_left(job, BEGAN + 70) == 120
    job.began = BEGAN + 100.0
    assert tracker.epochs(job) is None
    tracker.update([job], BEGAN + 101)
    assert (tracker.epochs(job), tracker.time_left(job, BEGAN + 101)) == (None, None)


def test_time_left_within_max_time(tmp_path: Path) -> None:
    # Epochs of 8 s, five done. 100 s are 12.5 epochs, and the 13th is finished: eight left.
    for limit, left in {"100s": 64, "96s": 56, "30s": 0, "1h": 120, "soon": 120, None: 120}.items():
        job = a_job(tmp_path, 1, "vae")
        assert tracked(job, (10, 3), (26, 5), limit=limit).time_left(job, BEGAN + 26) == left


@pytest.mark.parametrize(
    "content",
    [
        None,
        "",
        '{"status": "run',
        "[1]",
        '{"metrics": null, "epochs": null, "limits": null, "started": null}',
        '{"metrics": [1], "epochs": "3", "limits": 3, "started": 5, "updated": {}}',
        '{"epochs": 3, "limits": {"max_time": []}, "started": "yesterday"}',
        '{"epochs": 3, "started": "+999999-01-01"}',
    ],
)
def test_a_torn_status_is_no_report_and_what_was_known_stays_known(tmp_path: Path, content: str | None) -> None:
    job = a_job(tmp_path, 1, "vae")
    tracker = tracked(job, (10, 3), (26, 5), limit="96s")
    (job.folder / "status.json").unlink()
    if content is not None:
        (job.folder / "status.json").write_text(content)
    tracker.update([job], BEGAN + 27)
    unreadable = not (content or "").endswith("}") or '"epochs": "3"' in str(content)  # torn, or no status at all
    assert tracker.time_left(job, BEGAN + 27) == (55 if unreadable else 119)  # 119: no max_time any more
    fresh = Tracker()
    fresh.update([job], BEGAN + 27)
    assert (fresh.epochs(job), fresh.time_left(job, BEGAN + 27)) == (None, None)


def test_time_left_of_a_sweep_by_hand(tmp_path: Path) -> None:
    running = a_job(tmp_path, 1, "a", slot="GPU 0")
    queued = [a_job(tmp_path, number, f"q{number}", State.QUEUED) for number in (5, 6, 7)]
    tracker = tracked(running, (10, 3), (26, 5))  # 15 epochs of 8 s left
    now = BEGAN + 26
    assert sweep_left([running], now, tracker) == 120
    # Nothing has ended: a job takes 26 + 120 s, and there is one slot. Three more follow.
    assert sweep_left([running, *queued], now, tracker) == 120 + 3 * 146
    other = a_job(tmp_path, 2, "b", slot="GPU 1", began=BEGAN + 16)
    assert sweep_left([other, *queued], now, tracker) is None  # no estimate yet
    # The other has reported nothing: it takes 146 s, 10 of them spent. Two slots share 120 + 136 + 3 * 146 s.
    assert sweep_left([running, other, *queued], now, tracker) == 347
    done = a_job(tmp_path, 3, "c", State.FINISHED, slot="GPU 0", ended=BEGAN + 50)
    failed = a_job(tmp_path, 4, "d", State.FAILED, slot="GPU 0", ended=BEGAN + 1)
    before = a_job(tmp_path, 8, "e", State.FINISHED, skipped=True)
    # Now a job takes 50 s; failed and skipped ones do not count. Two slots share 120 + 40 + 3 * 50 s.
    assert sweep_left([running, other, done, failed, before, *queued], now, tracker) == 155
    assert sweep_left([running, other, done], now, tracker) == 120  # the longest job, though 160 / 2 is less
    assert sweep_left([done, failed, before], now, tracker) is None
    assert sweep_left([before, *queued], now, tracker) is None
    # Only queued jobs for a moment: two slots, as before.
    other.state, other.ended = State.FINISHED, BEGAN + 66
    assert sweep_left([other, done, *queued], now, tracker) == 75


def test_rounded_lengths_of_time() -> None:
    lengths = {3.2: "3 s", 89: "89 s", 90: "2 min", 240: "4 min", 5369: "89 min", 5400: "1 h 30 min"}
    lengths |= {172799: "2 d 0 h", 273600: "3 d 4 h"}
    assert {seconds: about(seconds) for seconds in lengths} == lengths


# The display.


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Sweep:
    """Eight jobs in every state on a terminal, 60 s after the sweep began."""

    def __init__(self, folder: Path, height: int = 40, width: int = 200) -> None:
        self.now, self.file = BEGAN, Terminal()
        self.jobs = [
            a_job(folder, 1, "vae-s0", State.FINISHED, skipped=True),
            a_job(folder, 2, "vae-s1", State.FINISHED, slot="GPU 0", ended=BEGAN + 40),
            a_job(folder, 3, "acai-s0", State.FAILED, slot="GPU 1", ended=BEGAN + 12, reason="killed [x]\nmore"),
            a_job(folder, 4, "acai-s1", State.STOPPED, slot="GPU 1", ended=BEGAN + 9, reason="stopped"),
            a_job(folder, 5, "vae_gan-s0", slot="GPU 0", began=BEGAN + 20),
            a_job(folder, 6, "vae_gan-s1", slot="GPU 1", began=BEGAN + 40),
            a_job(folder, 7, "plain-s0", slot="GPU 2", began=BEGAN + 20),
            a_job(folder, 8, "plain-s1", State.QUEUED),
        ]
        console = Console(
            file=self.file, force_terminal=True, width=width, height=height, color_system=None, _environ={}
        )
        self.table = LiveTable(console, lambda: self.now)

    def __enter__(self) -> Sweep:
        self.table.__enter__()
        say(self.jobs[0], 20, started=BEGAN - 9000, final=3.0, validation=20.136)
        say(self.jobs[1], 20, final=20.5)
        say(self.jobs[3], 3)
        for job in (self.jobs[5], self.jobs[7]):
            say(job, 11, started=BEGAN - 9000, validation=15.0)
        for epochs, seconds in ((2, 30), (4, 50), (4, 60)):
            say(self.jobs[4], epochs, started=BEGAN + 21, validation=18.314)
            say(self.jobs[6], 5 * epochs, started=BEGAN + 21)
            self.update(seconds)
        return self

    def __exit__(self, *error: Any) -> None:
        self.table.__exit__(*error)

    def update(self, seconds: float) -> None:
        self.now = BEGAN + seconds
        self.table.update(self.jobs)

    @property
    def screen(self) -> list[str]:
        """The table as it was drawn last, without bars and with one blank between words."""
        lines = self.file.getvalue().split("\x1b[2K")[-1].splitlines()
        return [" ".join(re.sub("[━╸╺]", " ", line).split()) for line in lines]


ROWS = [
    "1 vae-s0 finished before 20/20 20.14 dB",
    "2 vae-s1 finished GPU 0 20/20 0:40 20.50 dB",
    "3 acai-s0 failed GPU 1 0:12",
    "4 acai-s1 stopped GPU 1 3/20 0:09",
    "5 vae_gan-s0 running GPU 0 4/20 2:30 left 18.31 dB",
    "6 vae_gan-s1 running GPU 1 starting",
    "7 plain-s0 running GPU 2 20/20 ending",
    "8 plain-s1 queued",
]
# A job takes 40 s. Three slots share 150 + 20 + 0 + 40 s, and the fifth job alone takes 150 s.
SUMMARY = "2 of 8 done, 3 running, 1 failed, 1 stopped, 1 queued; about 2 min left"


def test_a_terminal_shows_names_states_epochs_and_why_jobs_failed(tmp_path: Path) -> None:
    with Sweep(tmp_path) as sweep:
        assert sweep.screen == [*ROWS, SUMMARY]
    printed = sweep.file.getvalue()  # the reasons once each, above the table
    assert printed.count("[3/8] acai-s0 failed after 0:12: killed [x] (") == 1
    assert printed.count("[4/8] acai-s1 stopped after 0:09: stopped (") == 1
    assert "more" not in printed and "started on" not in printed


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_narrow_terminal_shows_the_whole_summary_and_some_of_each_name(tmp_path: Path, width: int) -> None:
    with Sweep(tmp_path, width=width) as sweep:
        lines = sweep.screen
        assert " ".join(lines[8:]) == SUMMARY
        assert [line.partition(" ")[2].partition(" ")[0] for line in lines[:8]] == [row.split()[1] for row in ROWS]


@pytest.mark.parametrize(("height", "rows"), [(10, "2345678"), (9, "345678"), (7, "3567"), (6, "567"), (2, "5")])
def test_on_a_low_terminal_running_and_failed_jobs_stay(tmp_path: Path, height: int, rows: str) -> None:
    with Sweep(tmp_path, height) as sweep:
        summary = f"{SUMMARY}; {8 - len(rows)} not shown"
        assert sweep.screen == [*(row for row in ROWS if row[0] in rows), summary]


def test_a_terminal_is_redrawn_at_most_twice_a_second_and_at_every_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: Counter[str] = Counter()
    status = Job.status
    with Sweep(tmp_path) as sweep:
        before = sweep.file.getvalue()
        monkeypatch.setattr(Job, "status", lambda job: read.update([job.name]) or status(job))
        for tenth in range(1, 21):
            sweep.update(60.001 + tenth / 10)
        drawn = sweep.file.getvalue().count(SUMMARY[:9]) - before.count(SUMMARY[:9])
        assert drawn == 4  # at 0.5, 1.0, 1.5 and 2.0 s
        assert read == {"vae_gan-s0": 4, "vae_gan-s1": 4, "plain-s0": 4}  # nothing of ended and queued ones
        sweep.jobs[4].state, sweep.jobs[4].ended = State.FINISHED, BEGAN + 62
        sweep.update(62.001)
        assert sweep.screen[-1] == summary(sweep.jobs, sweep.now, sweep.table.tracker)
    assert "\x1b[?25l" in before  # no cursor
    assert sweep.file.getvalue().rstrip().endswith("\x1b[?25h")  # the cursor again


def test_in_a_log_file_a_line_when_a_job_starts_and_ends_and_now_and_then(tmp_path: Path) -> None:
    clock, file = [BEGAN], io.StringIO()
    long = "a" * 100 + "-s0-00000001"
    jobs = [
        a_job(tmp_path, 1, long, State.QUEUED),
        a_job(tmp_path, 2, "vae-s0-00000002", State.QUEUED),
        a_job(tmp_path, 3, "vae-s1-00000003", State.FINISHED, skipped=True),
    ]
    with LiveTable(Console(file=file, width=80), lambda: clock[0]) as live:

        def at(seconds: float) -> list[str]:
            """The new lines of an update."""
            clock[0], there = BEGAN + seconds, len(file.getvalue())
            live.update(jobs)
            return file.getvalue()[there:].splitlines()

        assert at(0) == ["1 of 3 finished before"]
        jobs[0].state, jobs[0].slot, jobs[0].began = State.RUNNING, "GPU 0", BEGAN + 1
        assert at(1) == [f"[1/3] {long} started on GPU 0"]  # one line, however narrow
        say(jobs[0], 2, started=BEGAN + 1, validation=17.0)
        assert at(11) == []
        say(jobs[0], 4, started=BEGAN + 1, validation=18.0)
        assert at(29.9) == []
        assert at(31) == [f"[1/3] {long} epoch 4/20, 2:30 left, PSNR 18.00 dB"]
        assert at(62) == []  # nothing new
        say(jobs[0], 5, started=BEGAN + 1, validation=18.5)
        assert at(63) == []
        # Three epochs in 52 s: 15 take 260 s, of which one's 17.3 s have passed.
        assert at(93) == [f"[1/3] {long} epoch 5/20, 4:03 left, PSNR 18.50 dB"]
        say(jobs[0], 20, started=BEGAN + 1, final=20.136)
        jobs[0].state, jobs[0].ended = State.FINISHED, BEGAN + 761
        jobs[1].state, jobs[1].ended, jobs[1].reason = State.FAILED, BEGAN + 761, "could not be started: no memory"
        last = [
            f"[1/3] {long} finished after 12:40, PSNR 20.14 dB (2 of 3 done, 1 failed)",
            "[2/3] vae-s0-00000002 failed: could not be started: no memory (2 of 3 done, 1 failed)",
        ]
        assert at(93.1) == last
    assert file.getvalue().splitlines()[-2:] == last


def test_what_is_printed_into_a_file_stays_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Sweep(tmp_path) as sweep:
        print("a result")
    assert capsys.readouterr().out == "a result\n"
    assert "a result" not in sweep.file.getvalue()


@pytest.mark.parametrize("forced", [False, True])
def test_colours_asked_for_in_a_log_file_move_no_cursor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forced: bool
) -> None:
    file = io.StringIO()
    monkeypatch.setattr(sys, "stderr", file)
    if forced:
        monkeypatch.setenv("FORCE_COLOR", "1")
    with LiveTable(time_now=lambda: BEGAN) as live:
        live.update([a_job(tmp_path, 1, "vae", slot="CPU 1")])
    assert file.getvalue() == "[1/1] vae started on CPU 1\n"


@pytest.mark.parametrize("error", [BrokenPipeError, OSError])
@pytest.mark.parametrize("terminal", [True, False])
def test_a_closed_terminal_does_not_end_the_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[OSError], terminal: bool
) -> None:
    class Closed(io.StringIO):
        flush = None  # type: ignore[assignment]

        def isatty(self) -> bool:
            return terminal

        def write(self, text: str) -> int:
            raise error(5, "Input/output error")

    closed, clock, job = Closed(), [BEGAN], a_job(tmp_path, 1, "vae")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", closed)
    with LiveTable(time_now=lambda: clock[0]) as live:
        live.update([job])
        clock[0] += 60
        job.state = State.FINISHED
        live.update([job])
    assert live.console.quiet
    assert sys.stderr is closed
