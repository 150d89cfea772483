"""The evaluation of a sweep: recognisers trained first, then a process of `evaluate` in each slot."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from omegaconf import DictConfig

from pegasus_lightning.launch.slots import Slot
from pegasus_lightning.runs.folder import flat
from pegasus_lightning.utils.compose import plain

COMMAND = [sys.executable, "-m", "pegasus_lightning.evaluate"]
POLL = 0.2  # seconds between checks of the processes


def train_recognisers(data: DictConfig) -> bool:
    """Train the recognisers that evaluations of runs on such data need. Return whether they are trained."""
    settings = plain(data)
    words = [f"data={settings.pop('source')}", *(f"data.{k}={json.dumps(v)}" for k, v in flat(settings).items())]
    return subprocess.run([*COMMAND, "prepare=true", *words], check=False).returncode == 0


def evaluate(runs: Sequence[Path], slots: Sequence[Slot], logs: Path) -> None:
    """Evaluate the runs, one process in each slot, then print their comparison. Say which failed, and where its log is.

    Raise KeyboardInterrupt at SIGINT or SIGTERM, when the processes were told to end.
    """
    waiting, running = [*runs], dict[str, tuple[Path, subprocess.Popen[bytes]]]()
    judged: list[Path] = []
    logs.mkdir(parents=True, exist_ok=True)
    print(f"Evaluating {len(runs)} runs, at most {len(slots)} at a time. Logs: {logs}", flush=True)
    with _terminable():
        try:
            while waiting or running:
                for slot in slots:
                    if waiting and slot.name not in running:
                        run = waiting.pop(0)
                        with open(logs / f"evaluate-{run.name}.log", "ab") as log:
                            process = subprocess.Popen(
                                [*COMMAND, f"run={run}"], env=os.environ | slot.environment, stdout=log, stderr=log
                            )
                        running[slot.name] = (run, process)
                for name, (run, process) in [*running.items()]:
                    if process.poll() is None:
                        continue
                    del running[name]
                    judged += [run] if process.returncode == 0 else []
                    said = "done" if process.returncode == 0 else f"failed, see {logs / f'evaluate-{run.name}.log'}"
                    print(
                        f"  {run.name}: {said} ({len(runs) - len(waiting) - len(running)} of {len(runs)})", flush=True
                    )
                time.sleep(POLL)
            if judged:
                subprocess.run([*COMMAND, *(f"run={run}" for run in judged)], check=False)
        finally:
            for _, process in running.values():
                process.terminate()


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM raise KeyboardInterrupt, as SIGINT does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    former = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)
