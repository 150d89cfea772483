"""What a person sees of a sweep while it runs, and how time left is reckoned."""

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
from rich.console import Console, RenderableType

from pegasus_lightning.launch.jobs import Job, State
from pegasus_lightning.launch.live_table import Watcher, live_table
from pegasus_lightning.launch.progress import Tracker, about, summary, sweep_left

BEGAN = 1_800_000_000.0  # of the sweep, seconds since the epoch


def a_job(folder: Path, number: int, name: str, state: State = State.RUNNING, **fields: Any) -> Job:
    """A job of 20 epochs whose run folder is `folder/name`."""
    if state is not State.QUEUED and not fields.get("skipped"):
        fields = {"began": BEGAN} | fields
    return Job(number, name, [], folder / name, ["false"], folder / f"{name}.log", 20, state=state, **fields)


def say(
    job: Job, epochs: int | None = None, started: float = BEGAN, limit: str | None = None, **metrics: float
) -> None:
    """Write the run's status.json, as a process that was started at `started` does."""
    when = datetime.fromtimestamp(started, timezone.utc).isoformat(timespec="seconds")
    content: dict[str, Any] = {"started": when, "limits": {"max_epochs": 20, "max_time": limit}}
    if epochs is not None:
        content["epochs"] = epochs
    content["metrics"] = {name.replace("__", "/"): value for name, value in metrics.items()}
    job.folder.mkdir(exist_ok=True)
    (job.folder / "status.json").write_text(json.dumps(content))


def seen(job: Job, *reports: tuple[float, int | None], **fields: Any) -> Tracker:
    """A tracker that saw the job report so many epochs so many seconds after the sweep began."""
    tracker = Tracker()
    for seconds, epochs in reports:
        say(job, epochs, **fields)
        tracker.look([job], BEGAN + seconds)
    return tracker


def rendered(renderable: RenderableType, width: int = 120) -> list[str]:
    """Lines as a log file gets them, without the blanks at their ends."""
    console = Console(width=width, force_terminal=False, file=io.StringIO())
    console.print(renderable)
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().split("\n")[:-1]
    assert all(len(line) <= width for line in lines)
    return [line.rstrip() for line in lines]


def cells(lines: list[str]) -> list[list[str]]:
    """A cell an item; cells stand at least two blanks apart, empty ones are lost."""
    return [re.split(" {2,}", line.strip()) for line in lines]


def test_time_left_of_a_fresh_run(tmp_path: Path) -> None:
    job = a_job(tmp_path, 1, "vae")
    tracker = seen(job, (6, None), (7, None))
    assert tracker.epochs(job) is None
    assert tracker.time_left(job, BEGAN + 8) is None
    say(job, 1)
    tracker.look([job], BEGAN + 16)  # the first epoch took the 10 s since training began at 6 s; 19 are to come
    assert tracker.time_left(job, BEGAN + 16) == 190
    assert tracker.time_left(job, BEGAN + 20) == 186
    say(job, 5)
    tracker.look([job], BEGAN + 48)  # four epochs in 32 s, without the first, which is slower: 15 times 8 s
    assert tracker.epochs(job) == 5
    assert tracker.time_left(job, BEGAN + 48) == 120
    assert tracker.time_left(job, BEGAN + 51) == 117
    assert tracker.time_left(job, BEGAN + 1000) == 112  # a slow epoch: the 14 after it are still to come
    say(job, 20)
    tracker.look([job], BEGAN + 1100)
    assert tracker.time_left(job, BEGAN + 1100) == 0
    job.state = State.FINISHED
    assert tracker.time_left(job, BEGAN + 1100) is None


def test_resumed_epochs_took_no_time(tmp_path: Path) -> None:
    job = a_job(tmp_path, 1, "vae")
    say(job, 11, started=BEGAN - 5000)  # what an earlier session left
    tracker = Tracker()
    tracker.look([job], BEGAN + 1)
    assert tracker.epochs(job) is None
    for seconds, epochs in ((15, None), (30, 12), (70, 14)):
        assert tracker.time_left(job, BEGAN + 40) is None
        say(job, epochs)
        tracker.look([job], BEGAN + seconds)
    # Two epochs in 40 s, six to come. Over 14 epochs in 70 s it would be 30 s.
    assert tracker.time_left(job, BEGAN + 70) == 120


def test_a_job_that_is_started_again_is_followed_anew(tmp_path: Path) -> None:
    job = a_job(tmp_path, 1, "vae")
    tracker = seen(job, (10, 2), (20, 4))
    job.began = BEGAN + 100.0
    assert tracker.epochs(job) is None
    tracker.look([job], BEGAN + 101)
    assert tracker.epochs(job) is None
    assert tracker.time_left(job, BEGAN + 101) is None


@pytest.mark.parametrize(
    ("limit", "left"),
    [
        ("100s", 64),  # 12.5 epochs of 8 s: the 13th is finished, eight to come
        ("96s", 56),  # twelve, seven to come
        ("30s", 0),
        ("1h", 120),  # max_epochs comes first: 15 to come
        ("soon", 120),
        (None, 120),
    ],
)
def test_time_left_within_max_time(tmp_path: Path, limit: str | None, left: float) -> None:
    job = a_job(tmp_path, 1, "vae")
    tracker = seen(job, (10, 3), (26, 5), limit=limit)
    assert tracker.time_left(job, BEGAN + 26) == left


def test_what_is_left_of_a_sweep_by_hand(tmp_path: Path) -> None:
    running = a_job(tmp_path, 1, "a", slot="GPU 0")
    queued = [a_job(tmp_path, number, f"q{number}", State.QUEUED) for number in (5, 6, 7)]
    tracker = seen(running, (10, 3), (26, 5))  # 15 epochs of 8 s to come
    now = BEGAN + 26
    assert sweep_left([running], now, tracker) == 120
    # Nothing has ended: a job takes 26 + 120 s, and there is one slot. Three more of them follow.
    assert sweep_left([running, *queued], now, tracker) == 120 + 3 * 146
    other = a_job(tmp_path, 2, "b", slot="GPU 1", began=BEGAN + 16)
    assert sweep_left([other, *queued], now, tracker) is None  # nothing to tell it from
    # The other has reported nothing: it takes 146 s of which 10 are spent. Slots are free after 120 and 136 s; three
    # jobs of 146 s end after 266, 282 and 412 s.
    assert sweep_left([running, other, *queued], now, tracker) == 412
    done = a_job(tmp_path, 3, "c", State.FINISHED, slot="GPU 0", ended=BEGAN + 50)
    failed = a_job(tmp_path, 4, "d", State.FAILED, slot="GPU 0", ended=BEGAN + 1)
    before = a_job(tmp_path, 8, "e", State.FINISHED, skipped=True)
    # Now a job takes 50 s, failed and skipped ones aside: free after 120 and 40; ends 90, 140, 170.
    assert sweep_left([running, other, done, failed, before, *queued], now, tracker) == 170
    assert sweep_left([done, failed, before], now, tracker) is None
    assert sweep_left([before, *queued], now, tracker) is None
    # Only queued ones for a moment: two at a time, as there were.
    other.state, other.ended = State.FINISHED, BEGAN + 66
    assert sweep_left([other, done, *queued], now, tracker) == 100


def test_lengths_of_time_as_one_says_them() -> None:
    assert [about(s) for s in (3.2, 89, 90, 240, 5369, 5400, 172799, 273600)] == [
        "3 s",
        "89 s",
        "2 min",
        "4 min",
        "89 min",
        "1 h 30 min",
        "2 d 0 h",
        "3 d 4 h",
    ]


@pytest.fixture
def eight(tmp_path: Path) -> tuple[list[Job], Tracker]:
    """Eight jobs in every state, 60 s after the sweep began."""
    jobs = [
        a_job(tmp_path, 1, "vae-s0-00000001", State.FINISHED, skipped=True),
        a_job(tmp_path, 2, "vae-s1-00000002", State.FINISHED, slot="GPU 0", ended=BEGAN + 40),
        a_job(tmp_path, 3, "acai-s0-00000003", State.FAILED, slot="GPU 1", ended=BEGAN + 12, reason="killed [x]\nmore"),
        a_job(tmp_path, 4, "acai-s1-00000004", State.STOPPED, slot="GPU 1", ended=BEGAN + 9, reason="stopped"),
        a_job(tmp_path, 5, "vae_gan-s0-00000005", slot="GPU 0", began=BEGAN + 20),
        a_job(tmp_path, 6, "vae_gan-s1-00000006", slot="GPU 1", began=BEGAN + 40),
        a_job(tmp_path, 7, "plain-s0-00000007", slot="GPU 2", began=BEGAN + 20),
        a_job(tmp_path, 8, "plain-s1-00000008", State.QUEUED),
    ]
    say(jobs[0], 20, started=BEGAN - 9000, final__psnr=20.136, validation__psnr=3.0)
    say(jobs[1], 20, final__psnr=20.5)
    say(jobs[3], 3)
    say(jobs[5], 11, started=BEGAN - 9000, validation__psnr=15.0)
    say(jobs[7], 11, started=BEGAN - 9000, validation__psnr=15.0)
    tracker = Tracker()
    for epochs, seconds in ((2, 30), (4, 50)):
        say(jobs[4], epochs, started=BEGAN + 21, validation__psnr=18.314)
        say(jobs[6], 5 * epochs, started=BEGAN + 21)
        tracker.look(jobs, BEGAN + seconds)
    return jobs, tracker


ROWS = [
    ["1", "vae-s0-00000001", "finished before", "20/20", "20.14"],
    ["2", "vae-s1-00000002", "finished", "GPU 0", "20/20", "0:40", "20.50"],
    ["3", "acai-s0-00000003", "failed", "GPU 1", "0:12"],
    ["4", "acai-s1-00000004", "stopped", "GPU 1", "3/20", "0:09"],
    ["5", "vae_gan-s0-00000005", "running", "GPU 0", "4/20", "2:30 left", "18.31"],
    ["6", "vae_gan-s1-00000006", "running", "GPU 1", "starting"],
    ["7", "plain-s0-00000007", "running", "GPU 2", "20/20", "ending"],
    ["8", "plain-s1-00000008", "queued"],
]
REASONS = [["#3 failed: killed [x]"], ["#4 stopped: stopped"]]
# A job takes 40 s. Slots are free after 150, 20 and 0 s: the queued one ends after 40 s, the fifth after 150.
SUMMARY = ["2 of 8 done, 3 running, 1 failed, 1 stopped, 1 queued; about 2 min left"]


def test_the_table_of_a_sweep_under_way(eight: tuple[list[Job], Tracker]) -> None:
    jobs, tracker = eight
    lines = rendered(live_table(jobs, BEGAN + 60, tracker))
    assert cells(lines[:1]) == [["#", "run", "state", "on", "epoch", "time", "PSNR"]]
    assert set(lines[1]) == {"─"}
    assert cells(lines[2:]) == [*ROWS, *REASONS, SUMMARY]
    assert rendered(live_table(jobs, BEGAN + 60, tracker, lines=14)) == lines


def test_with_too_few_lines_running_and_failed_jobs_come_first(eight: tuple[list[Job], Tracker]) -> None:
    jobs, tracker = eight
    lines = rendered(live_table(jobs, BEGAN + 60, tracker, lines=12))
    running, failed, stopped, queued = ROWS[4:7], ROWS[2], ROWS[3], ROWS[7]
    # Twelve lines: two of the head, three for counts and a summary that may take two; seven are left.
    assert cells(lines[2:]) == [*running, failed, stopped, *REASONS, ["not shown: 1 queued, 2 finished"], SUMMARY]
    lines = rendered(live_table(jobs, BEGAN + 60, tracker, lines=10))
    assert cells(lines[2:]) == [*running, failed, REASONS[0], ["not shown: 1 stopped, 1 queued, 2 finished"], SUMMARY]
    jobs[2].reason = jobs[3].reason = ""
    lines = rendered(live_table(jobs, BEGAN + 60, tracker, lines=11))
    assert cells(lines[2:]) == [*running, failed, stopped, queued, ["not shown: 2 finished"], SUMMARY]


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_table_never_takes_more_lines_than_it_may(eight: tuple[list[Job], Tracker], width: int) -> None:
    jobs, tracker = eight
    for allowed in range(6, 16):
        lines = rendered(live_table(jobs, BEGAN + 60, tracker, lines=allowed), width)
        assert len(lines) <= allowed
        assert lines[-1].endswith("left")


def test_eighty_columns_shorten_names_and_nothing_else(tmp_path: Path) -> None:
    name = "adversarial_vae,silhouettes,latent_dim=128,kl=0.1,upsampling=nearest-s0-efbd3233"
    jobs = [a_job(tmp_path, 10, name, slot="GPU 0"), a_job(tmp_path, 11, "vae-s0-11111111", State.QUEUED)]
    tracker = seen(jobs[0], (10, 3), (3610, 5), validation__psnr=20.0)
    lines = rendered(live_table(jobs, BEGAN + 3610, tracker), width=80)
    assert cells(lines[2:4]) == [
        ["10", "adversarial_vae…pling=nearest-s0", "running", "GPU 0", "5/20", "7:30:00 left", "20.00"],
        ["11", "vae-s0", "queued"],
    ]


def test_without_a_tracker_the_table_says_what_the_runs_say_now(tmp_path: Path) -> None:
    job = a_job(tmp_path, 1, "vae", slot="CPU 1")
    say(job, 5)
    assert cells(rendered(live_table([job], BEGAN + 60)))[2:] == [
        ["1", "vae", "running", "CPU 1", "5/20"],
        ["0 of 1 done, 1 running"],
    ]


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
def test_a_torn_status_is_no_report(tmp_path: Path, content: str | None) -> None:
    job = a_job(tmp_path, 1, "vae")
    job.folder.mkdir()
    if content is not None:
        (job.folder / "status.json").write_text(content)
    assert cells(rendered(live_table([job], BEGAN + 60)))[2] == ["1", "vae", "running", "starting"]
    tracker = seen(job, (10, 3), (26, 5))
    if content is not None:
        (job.folder / "status.json").write_text(content)
    tracker.look([job], BEGAN + 27)
    assert tracker.time_left(job, BEGAN + 27) == 119


def test_what_was_known_stays_known_while_a_status_cannot_be_read(tmp_path: Path) -> None:
    job = a_job(tmp_path, 1, "vae")
    tracker = seen(job, (10, 3), (26, 5), limit="96s")
    (job.folder / "status.json").write_text('{"status": "run')
    tracker.look([job], BEGAN + 27)
    assert tracker.time_left(job, BEGAN + 27) == 55


class Clock:
    """The time, set by hand."""

    def __init__(self) -> None:
        self.now = BEGAN

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    """Says it is one."""

    def isatty(self) -> bool:
        return True


def test_in_a_log_file_a_line_when_a_job_starts_and_ends_and_now_and_then(tmp_path: Path) -> None:
    clock, file = Clock(), io.StringIO()
    long = "a" * 100 + "-s0-00000001"
    jobs = [
        a_job(tmp_path, 1, long, State.QUEUED),
        a_job(tmp_path, 2, "vae-s0-00000002", State.QUEUED),
        a_job(tmp_path, 3, "vae-s1-00000003", State.FINISHED, skipped=True),
    ]
    told = []
    with Watcher(Console(file=file, width=80), clock) as watcher:

        def at(seconds: float) -> list[str]:
            clock.now = BEGAN + seconds
            watcher.update(jobs)
            told.append(file.getvalue())
            return told[-1][len(told[-2]) if len(told) > 1 else 0 :].splitlines()

        assert at(0) == ["1 of 3 finished before"]
        jobs[0].state, jobs[0].slot, jobs[0].began = State.RUNNING, "GPU 0", BEGAN + 1
        assert at(1) == [f"[1/3] {long} started on GPU 0"]  # one line, however narrow
        say(jobs[0], 2, started=BEGAN + 1, validation__psnr=17.0)
        assert at(11) == []
        say(jobs[0], 4, started=BEGAN + 1, validation__psnr=18.0)
        assert at(29.9) == []
        assert at(31) == [f"[1/3] {long} epoch 4/20, 2:30 left, PSNR 18.00 dB"]
        assert at(62) == []  # nothing new
        say(jobs[0], 5, started=BEGAN + 1, validation__psnr=18.5)
        assert at(63) == []
        # Three epochs in 52 s; 15 take 260 s, of which one's, 17.3 s, is over.
        assert at(93) == [f"[1/3] {long} epoch 5/20, 4:03 left, PSNR 18.50 dB"]
        say(jobs[0], 20, started=BEGAN + 1, final__psnr=20.136)
        jobs[0].state, jobs[0].ended = State.FINISHED, BEGAN + 761
        jobs[1].state, jobs[1].ended, jobs[1].reason = State.FAILED, BEGAN + 761, "could not be started: no memory"
        assert at(93.1) == [
            f"[1/3] {long} finished after 12:40, PSNR 20.14 dB (2 of 3 done, 1 failed)",
            "[2/3] vae-s0-00000002 failed: could not be started: no memory (2 of 3 done, 1 failed)",
        ]
    assert file.getvalue() == told[-1]


def test_on_a_terminal_it_redraws_at_most_twice_a_second_and_at_every_change(
    eight: tuple[list[Job], Tracker], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, file = Clock(), Terminal()
    jobs = eight[0]
    read: Counter[str] = Counter()
    status = Job.status

    def counted(job: Job) -> dict[str, Any]:
        read[job.name] += 1
        return status(job)

    monkeypatch.setattr(Job, "status", counted)
    console = Console(file=file, force_terminal=True, width=80, height=40, color_system=None, _environ={})
    watcher = Watcher(console, clock)
    watcher.start()
    assert "\x1b[?25l" in file.getvalue()  # no cursor
    for tenth in range(21):
        clock.now = BEGAN + 60 + tenth / 10 + 0.001 * (tenth > 0)
        watcher.update(jobs)
    assert file.getvalue().count("PSNR") == 5  # at 0, 0.5, 1.0, 1.5 and 2.0 s
    assert read["vae_gan-s0-00000005"] == 5
    assert read["vae-s1-00000002"] == 1  # it has ended
    assert read["plain-s1-00000008"] == 0  # it is queued
    jobs[4].state, jobs[4].ended = State.FINISHED, BEGAN + 62
    watcher.update(jobs)
    assert file.getvalue().count("PSNR") == 6
    assert summary(jobs, clock.now, watcher.tracker) in file.getvalue()
    watcher.stop()
    assert file.getvalue().count("PSNR") == 7
    assert file.getvalue().rstrip().endswith("\x1b[?25h")  # the cursor again
    watcher.stop()


def test_what_is_printed_into_a_file_stays_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = Terminal()
    with Watcher(Console(file=file, force_terminal=True, force_interactive=True), Clock()) as watcher:
        watcher.update([a_job(tmp_path, 1, "vae")])
        print("a result")
    assert capsys.readouterr().out == "a result\n"
    assert "a result" not in file.getvalue()


class Closed(io.StringIO):
    """Nobody reads it any more."""

    error: type[OSError] = BrokenPipeError

    def write(self, text: str) -> int:
        raise self.error(5, "Input/output error")

    flush = None  # type: ignore[assignment]


@pytest.mark.parametrize("error", [BrokenPipeError, OSError])
@pytest.mark.parametrize("terminal", [True, False])
def test_the_sweep_goes_on_when_standard_error_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[OSError], terminal: bool
) -> None:
    closed = Closed()
    monkeypatch.setattr(closed, "error", error)
    monkeypatch.setattr(closed, "isatty", lambda: terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", closed)
    job, clock = a_job(tmp_path, 1, "vae"), Clock()
    with Watcher(time_now=clock) as watcher:
        watcher.update([job])
        clock.now += 60
        job.state = State.FINISHED
        watcher.update([job])
    assert watcher.console.quiet
    assert sys.stderr is closed


@pytest.mark.parametrize("forced", [False, True])
def test_colours_asked_for_in_a_log_file_move_no_cursor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forced: bool
) -> None:
    file = io.StringIO()
    monkeypatch.setattr(sys, "stderr", file)
    if forced:
        monkeypatch.setenv("FORCE_COLOR", "1")
    with Watcher(time_now=Clock()) as watcher:
        watcher.update([a_job(tmp_path, 1, "vae", slot="CPU 1")])
    assert file.getvalue() == "[1/1] vae started on CPU 1\n"
