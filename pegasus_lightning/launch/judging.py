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
from pegasus_lightning.utils.errors import Interrupted, heeded_signals
from pegasus_lightning.utils.files import make_folder

COMMAND = [sys.executable, "-m", "pegasus_lightning.evaluate"]
POLL = 0.2  # seconds between checks of the processes


def train_recognisers(data: DictConfig) -> bool:
    """Train the recognisers that evaluations of runs on such data need. Return whether they are trained.

    Raise Interrupted at a signal.
    """
    settings = plain(data)
    texts = {key: json.dumps(value, ensure_ascii=False) for key, value in flat(settings).items() if key != "source"}
    words = [f"data={settings['source']}", *(f"data.{key}={text}" for key, text in texts.items())]
    with _processes() as running:
        process = subprocess.Popen([*COMMAND, "prepare=true", *words])
        running[""] = process
        return process.wait() == 0


def evaluate(runs: Sequence[Path], slots: Sequence[Slot], logs: Path) -> bool:
    """Evaluate the runs, one process in each slot, then print their comparison. Return whether all succeeded.

    What failed is said, with its log. Raise Interrupted at a signal.
    """
    waiting = [*runs]
    places: dict[str, Path] = {}
    judged: list[Path] = []
    make_folder(logs)
    print(f"Evaluating {len(runs)} runs, at most {len(slots)} at a time. Logs: {logs}", flush=True)
    with _processes() as running:
        while waiting or running:
            for slot in slots:
                if waiting and slot.name not in running:
                    run = places[slot.name] = waiting.pop(0)
                    with open(logs / f"evaluate-{run.name}.log", "ab") as log:
                        running[slot.name] = subprocess.Popen(
                            [*COMMAND, f"run={run}"], env=os.environ | slot.environment, stdout=log, stderr=log
                        )
            for name, process in [*running.items()]:
                if process.poll() is None:
                    continue
                del running[name]
                run, done = places[name], process.returncode == 0
                judged += [run] if done else []
                said = "done" if done else f"failed, see {logs / f'evaluate-{run.name}.log'}"
                print(f"  {run.name}: {said} ({len(runs) - len(waiting) - len(running)} of {len(runs)})", flush=True)
            time.sleep(POLL)
        if judged:
            running[""] = subprocess.Popen([*COMMAND, *(f"run={run}" for run in judged)])
            return running.pop("").wait() == 0 and len(judged) == len(runs)
    return False


@contextmanager
def _processes() -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """Give a dict of running processes, by name. A signal raises Interrupted, and they are ended and waited for."""
    running: dict[str, subprocess.Popen[bytes]] = {}

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number)

    former = {number: signal.signal(number, interrupt) for number in heeded_signals()}
    try:
        yield running
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()
        for number, handler in former.items():
            signal.signal(number, handler)
