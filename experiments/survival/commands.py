"""The training command as a process, and its outcome in comparable form."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pegasus_lightning.runs.folder import events_folder

# 380 training images are 10 batches an epoch.
BATCHES_PER_EPOCH = 10
SETTINGS = [
    "data=silhouettes",
    "data.train_per_class=200",
    "data.test_per_class=40",
    "data.batch_size=38",
    "model.networks.channels=32",
    "trainer.gpus=0",
    "trainer.threads=1",
    "trainer.precision=32",
    "trainer.log_every_n_steps=1",  # so that metrics.jsonl shows when the first batch is done
    "trainer.checkpoint_every_n_epochs=1",
    "callbacks.progress_bar=false",
]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


@dataclass
class Process:
    """`python -m pegasus_lightning SETTINGS ...`, started in `folder` on construction; output goes to files."""

    folder: Path
    overrides: list[str]
    started: float = field(init=False)  # wall clock, to compare with the times of files
    popen: subprocess.Popen[bytes] = field(init=False)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pegasus_lightning", *SETTINGS, *self.overrides]
        self.started = time.time()
        with open(self.folder / "out", "wb") as out, open(self.folder / "err", "wb") as err:
            self.popen = subprocess.Popen(command, cwd=self.folder, env=ENVIRONMENT, stdout=out, stderr=err)

    @property
    def out(self) -> str:
        """The output so far."""
        return (self.folder / "out").read_text()

    @property
    def err(self) -> str:
        """The output to stderr so far."""
        return (self.folder / "err").read_text()


def the_run(folder: Path) -> Path | None:
    """Return the only run folder under `folder`, or None if it does not exist yet."""
    runs = folder / "runs" / "single"
    return next(iter(runs.iterdir()), None) if runs.is_dir() else None


def batches_logged(run: Path | None, since: float) -> int:
    """Return the last batch in metrics.jsonl; 0 if the file is older than `since` or missing."""
    path = run / "metrics.jsonl" if run is not None else None
    if path is None or not path.exists() or path.stat().st_mtime < since:
        return 0
    whole_lines = path.read_bytes().rpartition(b"\n")[0].splitlines()
    return int(json.loads(whole_lines[-1])["batch"]) if whole_lines else 0


def _digest(tensors: dict[str, torch.Tensor]) -> str:
    hasher = hashlib.sha256()
    for name in sorted(tensors):
        hasher.update(name.encode())
        hasher.update(tensors[name].contiguous().numpy().tobytes())
    return hasher.hexdigest()


def outcome(run: Path) -> dict[str, Any]:
    """Return the parts of a run that must not depend on interruptions.

    Hashes of the weights and of the optimizers' state; metrics.jsonl except the speed, which differs between any two
    runs; all of TensorBoard's steps by tag; hashes of the pictures.
    """
    content = torch.load(run / "checkpoints" / "last.ckpt", map_location="cpu", weights_only=True)
    moments = {
        f"{player} {index} {name}": value
        for player, optimizer in enumerate(content["optimizer_states"])
        for index, state in optimizer["state"].items()
        for name, value in state.items()
    }
    metrics = []
    for line in (run / "metrics.jsonl").read_text().splitlines():
        entry = json.loads(line)
        batch = entry.pop("batch")
        metrics += [[batch, tag, value] for tag, value in entry.items() if not tag.startswith("speed/")]
    board = EventAccumulator(str(events_folder(run)), size_guidance={"scalars": 0, "images": 0}).Reload()
    steps: dict[str, list[int]] = defaultdict(list)
    for tag in board.Tags()["scalars"]:
        steps[tag] = [event.step for event in board.Scalars(tag)]
    for tag in board.Tags()["images"]:
        steps[tag] = [event.step for event in board.Images(tag)]
    pictures = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (run / "images").glob("*.png")}
    return {
        "weights": _digest(content["state_dict"]),
        "optimizers": _digest(moments),
        "batches": content["batches_done"],
        "metrics": metrics,
        "steps": dict(steps),
        "pictures": pictures,
    }


def duplicate_steps(steps: dict[str, list[int]]) -> int:
    """Return the number of entries at a step at which their tag already has one."""
    return sum(len(at) - len(set(at)) for at in steps.values())
