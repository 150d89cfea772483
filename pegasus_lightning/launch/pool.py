"""The pool of a sweep: one process for each job and at most one in each slot, until all have ended or a signal arrives.

A crash ends only its own job. If the pool dies, its jobs save and end, as each reads from a pipe that the pool holds
open (`job_process.py`).
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any

from filelock import FileLock, Timeout

from pegasus_lightning.launch.jobs import Job, State
from pegasus_lightning.launch.slots import Slot
from pegasus_lightning.launch.tables import last_lines
from pegasus_lightning.runs.folder import LOCK, Status, is_locked, now, read_status
from pegasus_lightning.utils.errors import SIGNALS, heeded_signals
from pegasus_lightning.utils.files import write_text

HEAD = "--- "  # prefix of the line in a log that starts a session
POLL = 0.2  # seconds between checks of the processes
WAIT_FOR_LOCK = 120.0  # seconds that an earlier process of a run gets to save and end


class Pool:
    """Run jobs in slots.

    Args:
        jobs: changed in place; those whose state is QUEUED are run, in this order.
        slots: each takes one process at a time.
        finished: returns whether the job's folder holds the finished run; called when a process ends with 0.
        report: called with all jobs several times a second.
        stop_timeout: seconds that jobs get to save after a signal; then they are killed.
        retries: how often a job that another's signal killed, such as for want of memory, is started again.
        prepare: called with a queued job before it starts; returns whether to start it. It may change `jobs`.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        slots: Sequence[Slot],
        *,
        report: Callable[[Sequence[Job]], object] = lambda jobs: None,
        finished: Callable[[Job], bool] = lambda job: False,
        stop_timeout: float = 120.0,
        retries: int = 0,
        prepare: Callable[[Job], bool] = lambda job: True,
    ) -> None:
        self.jobs, self.slots, self.report, self.stop_timeout = jobs, slots, report, stop_timeout
        self.finished, self.retries, self.prepare = finished, retries, prepare
        self.received: int | None = None
        self._stopping = False
        self._kill_at: float | None = None
        self._running: dict[int, tuple[Job, subprocess.Popen[bytes]]] = {}  # by index in `slots`
        self._locked_since: dict[int, float] = {}
        self._ending: set[int] = set()  # numbers of jobs that were told to end early

    def run(self) -> int | None:
        """Run in the main thread until every job has ended. Return the signal that stopped the pool, or None."""
        former: dict[int, Any] = {number: signal.signal(number, self._receive) for number in heeded_signals()}
        try:
            while True:
                self._collect()
                if self.received is None:
                    self._fill()
                elif not self._running:
                    break
                self.report(self.jobs)
                self._end_early()
                if not self._running and not any(job.state is State.QUEUED for job in self.jobs):
                    break
                if self._kill_at is not None and time.monotonic() >= self._kill_at:
                    for _, process in self._running.values():
                        _send(process, signal.SIGKILL)
                time.sleep(POLL)
        finally:
            self._end_all()
            for number, handler in former.items():
                signal.signal(number, handler)
        return self.received

    def _end_all(self) -> None:
        """Let the jobs save if the pool itself fails. At a regular end none is running."""
        self._stopping = True
        for _, process in self._running.values():
            _send(process, signal.SIGTERM)
        deadline = time.monotonic() + self.stop_timeout
        for job, process in self._running.values():
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            self._conclude(job, process)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received, self._stopping = number, True
            self._kill_at = time.monotonic() + self.stop_timeout
            for _, process in self._running.values():
                _send(process, number)
        elif number == signal.SIGINT:  # a second Ctrl-C kills at once
            self._kill_at = time.monotonic()

    def _fill(self) -> None:
        """Start queued jobs in free slots, except those whose run is locked by another process."""
        for place in range(len(self.slots)):
            if place in self._running or self.received is not None:
                continue
            for job in [*self.jobs]:
                if job.state is State.QUEUED and not self._waits(job) and self.prepare(job):
                    self._start(job, place)
                    break

    def _end_early(self) -> None:
        """Let jobs with a reason to end save and end. They are told once: a second signal may meet their last words."""
        for job, process in self._running.values():
            if job.end_early and job.number not in self._ending:
                self._ending.add(job.number)
                _send(process, signal.SIGTERM)

    def _waits(self, job: Job) -> bool:
        """Return whether to wait for the run's lock: processes of a killed sweep may still be saving."""
        if not is_locked(job.folder):
            return False
        since = self._locked_since.setdefault(job.number, time.monotonic())
        # After that it is started anyway, and fails with a message about the lock.
        return time.monotonic() - since < WAIT_FOR_LOCK

    def _start(self, job: Job, place: int) -> None:
        slot = self.slots[place]
        environment = {**os.environ, **slot.environment, "PYTHONUNBUFFERED": "1"}
        job.state, job.slot, job.began = State.RUNNING, slot.name, time.time()
        job.environment = dict(slot.environment)
        try:
            job.log.parent.mkdir(parents=True, exist_ok=True)
            with open(job.log, "ab") as log:
                log.write(f"{HEAD}{now()} on {slot.name}\n".encode())
                log.flush()
                process = subprocess.Popen(
                    job.command,
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    start_new_session=True,  # Ctrl-C reaches only the pool, which passes it on once
                )
        except OSError as error:  # no memory or a full disk: other jobs may still start
            job.state, job.ended, job.reason = State.FAILED, time.time(), f"could not be started: {error}"
            return
        self._running[place] = (job, process)
        if self.received is not None:  # the signal came while the process was starting
            _send(process, self.received)

    def _collect(self) -> None:
        for place, (job, process) in list(self._running.items()):
            if process.poll() is None:
                continue
            assert process.stdin is not None
            process.stdin.close()
            del self._running[place]
            self._conclude(job, process)

    def _conclude(self, job: Job, process: subprocess.Popen[bytes]) -> None:
        stopped = self._stopping or bool(job.end_early)
        finished = (process.returncode == 0 or stopped) and self.finished(job)
        conclude(job, process.pid, process.returncode, finished=finished, stopped=stopped)
        if process.returncode < 0 and not stopped and job.retried < self.retries:
            self.report(self.jobs)  # its failure is shown before it is forgotten
            job.state, job.retried = State.QUEUED, job.retried + 1
            job.exit_code, job.ended, job.reason = None, None, ""


def _send(process: subprocess.Popen[bytes], number: int) -> None:
    if process.poll() is None:
        process.send_signal(number)


def conclude(job: Job, pid: int, returncode: int, *, finished: bool, stopped: bool) -> None:
    """Set a job's state, exit code and reason after its process ended, and correct status.json if the process did not.

    Args:
        pid: ID of the process.
        returncode: as in `subprocess`: -n if signal n killed the process.
        finished: whether the folder holds the finished run, whichever process trained it.
        stopped: whether the pool had stopped the process, or was about to end it early.
    """
    job.ended = time.time()
    job.exit_code = returncode if returncode >= 0 else 128 - returncode
    status = read_status(job.folder) or {}
    said = str(status.get("status")) if status.get("pid") == pid else None  # None: written by another session
    asked = job.exit_code in {128 + number for number in SIGNALS}
    if finished or (returncode == 0 and said == "finished"):
        job.state, job.reason = State.FINISHED, ""
        return
    # A signal while Python imports a package can end in any error: what did not begin did not fail.
    in_time = asked or job.exit_code == 128 + signal.SIGKILL or said is None
    was_stopped = said == "interrupted" or (stopped and in_time)
    job.state = State.STOPPED if was_stopped else State.FAILED
    job.reason = _reason(job, returncode, status if said in ("failed", "interrupted") else {})
    if job.end_early and was_stopped:
        job.state, job.reason = State.PRUNED, job.end_early
    # Another session's status is kept, unless it is "running", which is wrong by now.
    if job.state is State.PRUNED or (said in (None, "running") and status.get("status") in (None, "running")):
        correct_status(job, status)


def _reason(job: Job, returncode: int, status: Mapping[str, Any]) -> str:
    if job.state is State.STOPPED and returncode > 0 and not status:
        return "stopped before it began"
    if status.get("reason"):
        return " ".join(str(status["reason"]).split())
    if returncode < 0:
        if returncode == -signal.SIGKILL and job.state is State.STOPPED:
            return "did not stop in time and was killed; it goes on from its last checkpoint"
        name = signal.Signals(-returncode).name if -returncode in set(signal.Signals) else f"signal {-returncode}"
        hint = " (out of memory?)" if name == "SIGKILL" and job.state is State.FAILED else ""
        return f"killed by {name}{hint}"
    if returncode == 0:
        return "ended with exit code 0 before it had finished"
    said = [line.strip() for line in last_lines(job.log, 1) if not line.startswith(HEAD)]
    return said[0] if said else f"ended with exit code {returncode}"


def correct_status(job: Job, status: dict[str, Any]) -> None:
    """Write how a job ended that its process did not write, unless another process holds the run."""
    try:
        job.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(job.folder / LOCK, timeout=0):
            if job.config and not (job.folder / "config.yaml").exists():
                write_text(job.folder / "config.yaml", job.config)
            state = "failed" if job.state is State.FAILED else "interrupted"
            fields: dict[str, Any] = {"config_hash": job.config_hash, "command": job.typed} | status
            Status(job.folder, **fields | {"status": state, "exit_code": job.exit_code, "reason": job.reason}).update()
    except Timeout:
        pass
    except OSError as error:  # a full disk must not end the sweep
        job.reason += f" (status.json could not be written: {error})"
