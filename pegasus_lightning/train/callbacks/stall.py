"""Notice a training that hangs, and write down where."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from pegasus_lightning.runs.folder import now

JOB = "PEGASUS_LIGHTNING_JOB"  # process ID of a sweep's job, in its environment
POLL = 5.0  # seconds; the time during which the whole process was stopped does not count


class StallWatch(pl.Callback):
    """After `after` seconds without a batch, write the stacks of all threads to `folder`/train.log, and say so.

    `report` is called with the field `stalled` of status.json. In a sweep the job then fails and ends, so that its slot
    is free for the next; a single run is left alone.
    """

    def __init__(self, after: float, folder: Path, report: Callable[..., None]) -> None:
        self.after, self.folder, self.report = after, folder, report
        self._beats, self._told = 0, False

    def _beat(self, *arguments: Any, **keywords: Any) -> None:
        self._beats += 1

    on_train_batch_end = on_validation_batch_end = on_test_batch_end = on_train_epoch_end = _beat

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch inside."""
        done = threading.Event()
        thread = threading.Thread(target=self._watch, args=(done,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            if self._told:
                self.report(stalled=None)

    def _watch(self, done: threading.Event) -> None:
        seen, idle, poll = self._beats, 0.0, min(POLL, self.after / 10)
        while not done.wait(poll):
            if self._beats != seen:
                if self._told:
                    self._told = False
                    self.report(stalled=None)
                seen, idle = self._beats, 0.0
                continue
            idle += poll
            if idle >= self.after and not self._told:
                self._told = True
                self._tell()

    def _tell(self) -> None:
        path = self.folder / "train.log"
        reason = f"stalled: no batch for {self.after:g} s (trainer.stall_after)"
        with open(path, "a") as file:
            file.write(f"{now()} {reason}. The stacks of all threads:\n")
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
        print(f"\nThe run has {reason}. {path} says where it hangs.", file=sys.stderr, flush=True)
        self.report(stalled=f"{now()}: no batch for {self.after:g} s; train.log says where")
        if os.environ.get(JOB) == str(os.getpid()):
            self.report(status="failed", exit_code=1, reason=f"{reason}; train.log says where")
            os._exit(1)  # the main thread does not answer
