"""Tests of the pool with small programs instead of trainings: slots, order, signals, recorded states."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from filelock import FileLock

from pegasus_lightning.launch import pool as pool_module
from pegasus_lightning.launch.jobs import Job, State, label, read_jobs, write_jobs
from pegasus_lightning.launch.pool import Pool
from pegasus_lightning.launch.slots import Slot, cpu_slots, gpu_slots

# Writes status.json with the process ID, as a training does.
SAY = """
import json, os, signal, sys, time
from pathlib import Path
def say(status, **more):
    fields = {"status": status, "exit_code": None, "reason": None, "pid": os.getpid(), "epochs": 3} | more
    os.makedirs(sys.argv[1], exist_ok=True)
    Path(sys.argv[1], "status.json").write_text(json.dumps(fields))
"""
FINE = "say('finished', exit_code=0)"
WAIT = "time.sleep(60)"


@pytest.fixture(autouse=True)
def short_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "POLL", 0.02)


def job(folder: Path, number: int, program: str) -> Job:
    run = folder / f"run-{number}"
    return Job(
        number=number,
        name=run.name,
        overrides=[f"seed={number}"],
        folder=run,
        command=[sys.executable, "-c", SAY + program, str(run)],
        log=folder / "logs" / f"{run.name}.log",
        max_epochs=3,
        config="seed: 1\n",
        config_hash="abc",
    )


def status(one: Job) -> dict:
    return json.loads((one.folder / "status.json").read_text())


def slots(count: int) -> list[Slot]:
    return cpu_slots(count, count)


@pytest.mark.promise(6)
@pytest.mark.parametrize("jobs_per_gpu", [1, 2])
def test_never_more_jobs_on_a_gpu_at_a_time_than_it_may_have(tmp_path: Path, jobs_per_gpu: int) -> None:
    note = """
began = time.time()
say('finished')
time.sleep(.2)
end = {"gpu": os.environ["CUDA_VISIBLE_DEVICES"], "began": began, "ended": time.time()}
Path(sys.argv[1], "when.json").write_text(json.dumps(end))
"""
    jobs = [job(tmp_path, number, note) for number in range(1, 7)]
    Pool(jobs, gpu_slots(2, "GPU-aaaa,7", jobs_per_gpu=jobs_per_gpu, threads=4)).run()
    when = [json.loads((one.folder / "when.json").read_text()) for one in jobs]
    assert {entry["gpu"] for entry in when} == {"GPU-aaaa", "7"}
    for entry in when:
        beside = [w for w in when if w["gpu"] == entry["gpu"] and w["began"] <= entry["began"] < w["ended"]]
        assert len(beside) <= jobs_per_gpu
    assert [one.state for one in jobs] == [State.FINISHED] * 6
    assert {one.slot for one in jobs} <= {f"GPU {g}{n}" for g in ("GPU-aaaa", "7") for n in ("", " (1)", " (2)")}


@pytest.mark.promise(6)
def test_never_two_jobs_in_a_cpu_slot_at_a_time(tmp_path: Path) -> None:
    alone = f"assert not os.path.exists('{tmp_path}/busy')\nopen('{tmp_path}/busy', 'w').close()\ntime.sleep(.1)\n"
    jobs = [job(tmp_path, number, alone + f"os.remove('{tmp_path}/busy')\n" + FINE) for number in range(1, 5)]
    Pool(jobs, slots(1)).run()
    assert [one.state for one in jobs] == [State.FINISHED] * 4
    assert {one.slot for one in jobs} == {"CPU 1"}


@pytest.mark.promise(5)
def test_a_crash_stops_no_other_job_and_each_is_recorded_with_its_cause(tmp_path: Path) -> None:
    programs = [
        "print('all is well'); raise ValueError('the third weight is missing')",
        FINE,
        "say('running'); print('leaving'); sys.exit(3)",
        "say('running'); sys.exit(0)",
        "say('running', epochs=2); os.kill(os.getpid(), signal.SIGKILL)",
        FINE,
    ]
    jobs = [job(tmp_path, number, program) for number, program in enumerate(programs, start=1)]
    assert Pool(jobs, slots(2)).run() is None
    failed, finished = State.FAILED, State.FINISHED
    assert [one.state for one in jobs] == [failed, finished, failed, failed, failed, finished]
    assert [one.exit_code for one in jobs] == [1, 0, 3, 0, 137, 0]
    assert [one.reason for one in jobs] == [
        "ValueError: the third weight is missing",
        "",
        "leaving",
        "ended with exit code 0 before it had finished",
        "killed by SIGKILL (out of memory?)",
        "",
    ]
    assert "all is well" in jobs[0].log.read_text()
    for one in jobs:
        said = status(one)
        assert (said["status"], said["exit_code"]) == (one.state.value, one.exit_code)
        assert (said["reason"] or "") == one.reason
    assert status(jobs[4])["epochs"] == 2  # what it had reported stays
    # The first had not made its folder yet: the pool makes it, so that the page shows the run.
    assert (jobs[0].folder / "config.yaml").read_text() == "seed: 1\n"
    assert status(jobs[0])["command"] == ["__main__.py", "seed=1"]
    assert status(jobs[0])["config_hash"] == "abc"


def test_the_reason_that_a_run_gave_itself_is_kept(tmp_path: Path) -> None:
    one = job(
        tmp_path, 1, "say('failed', exit_code=1, reason='NonFiniteLoss:\\n kl')\nprint('other words')\nsys.exit(1)"
    )
    Pool([one], slots(1)).run()
    assert (one.state, one.reason) == (State.FAILED, "NonFiniteLoss: kl")
    assert status(one)["reason"] == "NonFiniteLoss:\n kl"


@pytest.mark.parametrize("old", ["finished", "interrupted"])
def test_the_status_of_an_earlier_session_is_ignored_and_kept(tmp_path: Path, old: str) -> None:
    one = job(tmp_path, 1, "sys.exit(0)")
    one.folder.mkdir()
    before = {"status": old, "exit_code": 0, "pid": 1, "epochs": 5}
    (one.folder / "status.json").write_text(json.dumps(before))
    Pool([one], slots(1)).run()
    assert one.state is State.FAILED
    assert status(one) == before


def test_a_status_that_is_wrongly_running_is_corrected(tmp_path: Path) -> None:
    one = job(tmp_path, 1, "sys.exit(3)")
    one.folder.mkdir()
    (one.folder / "status.json").write_text(json.dumps({"status": "running", "pid": 1, "epochs": 5}))
    Pool([one], slots(1)).run()
    assert (status(one)["status"], status(one)["exit_code"], status(one)["epochs"]) == ("failed", 3, 5)
    assert one.reason == "ended with exit code 3"


def test_a_run_that_another_process_finished_meanwhile_is_finished(tmp_path: Path) -> None:
    one = job(tmp_path, 1, "print('Already trained')")
    one.folder.mkdir()
    before = {"status": "finished", "exit_code": 0, "pid": 1, "epochs": 5}
    (one.folder / "status.json").write_text(json.dumps(before))
    Pool([one], slots(1), finished=lambda asked: asked is one).run()
    assert (one.state, status(one)) == (State.FINISHED, before)


def test_a_job_that_cannot_be_started_is_a_failure_of_its_own(tmp_path: Path) -> None:
    broken, fine = job(tmp_path, 1, FINE), job(tmp_path, 2, FINE)
    broken.command = [str(tmp_path / "no such program")]
    Pool([broken, fine], slots(1)).run()
    assert (broken.state, fine.state) == (State.FAILED, State.FINISHED)
    assert "could not be started" in broken.reason


def test_finished_jobs_are_left_alone(tmp_path: Path) -> None:
    done, todo = job(tmp_path, 1, "raise SystemExit(9)"), job(tmp_path, 2, FINE)
    done.state = State.FINISHED
    Pool([done, todo], slots(2)).run()
    assert (done.exit_code, done.began, todo.state) == (None, None, State.FINISHED)


@contextlib.contextmanager
def signalled(number: int, when: Sequence[Path], times: int = 1) -> Iterator[list[float]]:
    """Send this process a signal once the files exist, half a second apart; yield when they were sent."""
    sent: list[float] = []

    def send() -> None:
        deadline = time.monotonic() + 20
        while not all(path.exists() for path in when) and time.monotonic() < deadline:
            time.sleep(0.02)
        for index in range(times):
            time.sleep(0.5 * index)
            sent.append(time.time())
            os.kill(os.getpid(), number)

    thread = threading.Thread(target=send)
    thread.start()
    yield sent
    thread.join()


SAVES = """
def stop(number, frame):
    say('interrupted', exit_code=128 + number, reason='stopped by ' + signal.Signals(number).name)
    sys.exit(128 + number)
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, stop)
say('running')
time.sleep(60)
"""


@pytest.mark.promise(4)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_lets_all_running_jobs_save_and_starts_no_more(tmp_path: Path, number: int) -> None:
    jobs = [job(tmp_path, index, SAVES) for index in (1, 2, 3)]
    before = signal.getsignal(number)
    with signalled(number, [jobs[0].folder / "status.json", jobs[1].folder / "status.json"]):
        assert Pool(jobs, slots(2)).run() == number
    assert [one.state for one in jobs] == [State.STOPPED, State.STOPPED, State.QUEUED]
    assert [one.exit_code for one in jobs] == [128 + number, 128 + number, None]
    assert jobs[0].reason == f"stopped by {signal.Signals(number).name}"
    assert status(jobs[1])["status"] == "interrupted"
    assert not jobs[2].folder.exists()
    assert signal.getsignal(number) == before


def test_a_job_that_a_signal_reaches_before_it_began_is_stopped_and_did_not_fail(tmp_path: Path) -> None:
    # While packages are imported, a KeyboardInterrupt can end in any error, such as a RecursionError and exit code 1.
    startled = "Path(sys.argv[1]).with_suffix('.on').touch()\ntry:\n    time.sleep(60)\nfinally:\n    sys.exit(1)"
    one = job(tmp_path, 1, startled)
    with signalled(signal.SIGINT, [one.folder.with_suffix(".on")]):
        assert Pool([one], slots(1)).run() == signal.SIGINT
    assert (one.state, one.exit_code, one.reason) == (State.STOPPED, 1, "stopped before it began")
    assert status(one)["status"] == "interrupted"


def test_a_run_that_was_finished_before_a_signal_is_not_listed_as_killed(tmp_path: Path) -> None:
    one = job(tmp_path, 1, "Path(sys.argv[1]).with_suffix('.on').touch()\n" + WAIT)
    with signalled(signal.SIGINT, [one.folder.with_suffix(".on")]):
        assert Pool([one], slots(1), finished=lambda asked: True).run() == signal.SIGINT
    assert (one.state, one.reason) == (State.FINISHED, "")


KILLED = "did not stop in time and was killed; it goes on from its last checkpoint"
IGNORES = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nsay('running')\n" + WAIT


def test_a_job_that_ignores_the_signal_is_killed_in_the_end(tmp_path: Path) -> None:
    one = job(tmp_path, 1, IGNORES)
    with signalled(signal.SIGTERM, [one.folder / "status.json"]):
        assert Pool([one], slots(1), stop_timeout=0.5).run() == signal.SIGTERM
    assert (one.state, one.exit_code, one.reason) == (State.STOPPED, 137, KILLED)
    assert status(one)["status"] == "interrupted"


@pytest.mark.parametrize(("number", "soon"), [(signal.SIGINT, True), (signal.SIGTERM, False)])
def test_a_second_ctrl_c_does_not_wait_and_a_second_sigterm_does(tmp_path: Path, number: int, soon: bool) -> None:
    one = job(tmp_path, 1, IGNORES.replace("SIGTERM", signal.Signals(number).name))
    with signalled(number, [one.folder / "status.json"], times=2) as sent:
        Pool([one], slots(1), stop_timeout=2).run()
    assert one.ended is not None and len(sent) == 2
    assert (one.ended - sent[0] < 2) == soon
    assert one.exit_code == 137


def test_a_job_that_is_stopped_alone_does_not_stop_the_others(tmp_path: Path) -> None:
    jobs = [job(tmp_path, 1, SAVES.replace("time.sleep(60)", "os.kill(os.getpid(), 15)")), job(tmp_path, 2, FINE)]
    assert Pool(jobs, slots(1)).run() is None
    assert [one.state for one in jobs] == [State.STOPPED, State.FINISHED]


@pytest.mark.parametrize(("retries", "starts"), [(0, 1), (2, 3)])
def test_a_job_that_a_signal_killed_is_started_again_as_often_as_wanted(
    tmp_path: Path, retries: int, starts: int
) -> None:
    killed = job(tmp_path, 1, "os.kill(os.getpid(), 9)")
    failed = job(tmp_path, 2, "sys.exit(1)")  # it would fail again
    Pool([killed, failed], slots(1), retries=retries).run()
    assert [one.log.read_text().count("CPU") for one in (killed, failed)] == [starts, 1]
    assert (killed.state, failed.state) == (State.FAILED, State.FAILED)
    assert killed.reason == "killed by SIGKILL (out of memory?)"


def test_a_job_that_is_killed_once_finishes_with_one_retry(tmp_path: Path) -> None:
    again = (
        "if Path(sys.argv[1]).exists():\n    say('finished')\nelse:\n    say('running')\n    os.kill(os.getpid(), 9)"
    )
    one = job(tmp_path, 1, again)
    seen: list[tuple[State, str]] = []
    Pool([one], slots(1), retries=1, report=lambda jobs: seen.append((one.state, one.reason))).run()
    assert (State.FAILED, "killed by SIGKILL (out of memory?)") in seen
    assert (one.state, one.reason, one.retried, status(one)["status"]) == (State.FINISHED, "", 1, "finished")


@pytest.mark.promise(7)
def test_a_run_that_a_dying_process_still_holds_is_waited_for_and_others_go_first(tmp_path: Path) -> None:
    jobs = [job(tmp_path, 1, FINE), job(tmp_path, 2, FINE)]
    jobs[0].folder.mkdir()
    lock = FileLock(jobs[0].folder / ".lock", thread_local=False)
    lock.acquire()
    release = threading.Timer(0.5, lock.release)
    release.start()
    Pool(jobs, slots(1)).run()
    release.join()
    assert [one.state for one in jobs] == [State.FINISHED] * 2
    assert jobs[0].began is not None and jobs[1].ended is not None
    assert jobs[0].began > jobs[1].ended


def test_a_run_that_stays_locked_is_started_at_last_and_says_so_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "WAIT_FOR_LOCK", 0.3)
    one = job(tmp_path, 1, "print('is being trained by another process'); sys.exit(2)")
    one.folder.mkdir()
    with FileLock(one.folder / ".lock"):
        Pool([one], slots(1)).run()
    assert (one.state, one.reason) == (State.FAILED, "is being trained by another process")
    assert not (one.folder / "status.json").exists()  # the other process writes it


def test_the_last_report_has_the_final_states(tmp_path: Path) -> None:
    seen: list[list[State]] = []
    jobs = [job(tmp_path, number, FINE) for number in (1, 2)]
    Pool(jobs, slots(1), report=lambda jobs: seen.append([one.state for one in jobs])).run()
    assert seen[0] == [State.RUNNING, State.QUEUED]
    assert seen[-1] == [State.FINISHED, State.FINISHED]


def test_if_the_pool_itself_fails_its_jobs_may_save(tmp_path: Path) -> None:
    one = job(tmp_path, 1, SAVES)

    def broken(jobs: Sequence[Job]) -> None:
        if (one.folder / "status.json").exists():
            raise OSError("a bug")

    with pytest.raises(OSError, match="a bug"):
        Pool([one], slots(1), report=broken).run()
    assert (one.state, one.exit_code) == (State.STOPPED, 143)


def test_a_job_ends_when_its_pool_is_gone() -> None:
    code = "import time, threading\nfrom pegasus_lightning.launch.job_process import follow\n"
    code += (
        "threading.Thread(target=follow, args=(0,), daemon=True).start()\nprint('there', flush=True)\ntime.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None and process.stdout is not None
    assert process.stdout.readline() == b"there\n"
    assert process.poll() is None
    process.stdin.close()
    assert process.wait(20) == -signal.SIGTERM


def test_the_jobs_of_a_sweep_on_disk(tmp_path: Path) -> None:
    one = job(tmp_path, 4, FINE)
    one.state, one.exit_code, one.reason = State.FAILED, 137, "killed by SIGKILL"
    write_jobs(tmp_path / "sweep.json", [one])
    (read,) = read_jobs(tmp_path / "sweep.json")
    assert (read["name"], read["state"], read["exit_code"]) == ("run-4", "failed", 137)
    assert (read["reason"], read["overrides"]) == ("killed by SIGKILL", ["seed=4"])


def test_labels_leave_out_what_all_have_in_common(tmp_path: Path) -> None:
    names = ["vae,drawn,lr=1,channels=4-s0-0123abcd", "acai,drawn,channels=4-s1-89abcdef", "vae,drawn,channels=4,b-s10"]
    jobs = [job(tmp_path, number, FINE) for number in (1, 2, 3)]
    for one, name in zip(jobs, names, strict=True):
        one.name = name
    assert [one.shown for one in jobs] == names
    label(jobs)
    assert [one.shown for one in jobs] == ["vae,lr=1-s0", "acai-s1", "vae,b-s10"]
    jobs[1].name = "vae,drawn,lr=1,channels=4-s0-89abcdef"  # what tells it apart is its hash
    label(jobs[:2])
    assert [one.shown for one in jobs[:2]] == ["vae-s0-0123abcd", "vae-s0-89abcdef"]
    label(jobs[:1])
    assert jobs[0].shown == names[0]
