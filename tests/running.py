"""Whole runs on a few drawings: the command in this process, and what a run's folder then contains.

76 images in batches of 16 are 4 batches an epoch.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pegasus_lightning.launch.command import run_command
from pegasus_lightning.models.two_player import TwoPlayerModel

SETTINGS = [
    "data=silhouettes",
    "data.train_per_class=40",
    "data.test_per_class=10",
    "data.batch_size=16",
    "model.networks.channels=4",
    "model.networks.latent_dim=8",
    "trainer.gpus=0",
    "trainer.precision=32",
    "trainer.log_every_n_steps=3",
    "callbacks.image_columns=2",
    "callbacks.image_scale=1",
    "callbacks.progress_bar=false",
]


class Session(NamedTuple):
    code: int
    out: str
    err: str


def run(folder: Path, *overrides: str) -> Session:
    """Run the command in this process, in `folder`."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["pegasus_lightning"])
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        patch.setenv("HYDRA_FULL_ERROR", "0")
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = run_command([*SETTINGS, *overrides])
    return Session(code, out.getvalue(), err.getvalue())


def the_run(folder: Path, runs: str = "runs") -> Path:
    (found,) = (folder / runs / "single").iterdir()
    return found


def status_of(run_folder: Path) -> dict[str, Any]:
    return json.loads((run_folder / "status.json").read_text())


def checkpoint_of(run_folder: Path, name: str = "last.ckpt") -> dict[str, Any]:
    return torch.load(run_folder / "checkpoints" / name, weights_only=True)


def digest(run_folder: Path, checkpoint: str = "last.ckpt") -> str:
    """SHA-256 over the names and bytes of all weights and of the optimizers' moments in a checkpoint."""
    content, hasher = checkpoint_of(run_folder, checkpoint), hashlib.sha256()
    tensors = dict(content["state_dict"])
    for player, optimizer in enumerate(content["optimizer_states"]):
        for index, state in optimizer["state"].items():
            tensors |= {f"{player} {index} {name}": value for name, value in state.items()}
    assert len(tensors) > 50
    for name in sorted(tensors):
        hasher.update(name.encode())
        hasher.update(tensors[name].contiguous().numpy().tobytes())
    return hasher.hexdigest()


def logged(run_folder: Path) -> dict[str, dict[int, float]]:
    """metrics.jsonl as {tag: {batch: value}}; a repeated batch is an error."""
    values: dict[str, dict[int, float]] = defaultdict(dict)
    for line in (run_folder / "metrics.jsonl").read_text().splitlines():
        entry = json.loads(line)
        batch = entry.pop("batch")
        for tag, value in entry.items():
            assert batch not in values[tag], f"{tag} is repeated at batch {batch}"
            values[tag][batch] = value
    return dict(values)


def tensorboard(run_folder: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(run_folder), size_guidance={"scalars": 0, "images": 0})
    return accumulator.Reload()


def at_batch(number: int, action: Callable[[], None]) -> Callable[..., None]:
    """A training step that calls `action` after `number` batches."""
    step = TwoPlayerModel.training_step

    def replaced(self: TwoPlayerModel, batch: Any, batch_idx: int) -> None:
        if self.batches_done == number:
            action()
        step(self, batch, batch_idx)

    return replaced
