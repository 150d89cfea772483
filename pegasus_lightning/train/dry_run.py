"""`trainer.dry_run=true`: a few batches of all that a run does, and from their time what the whole run takes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf

from pegasus_lightning.data.module import ImageDataModule
from pegasus_lightning.runs.folder import DRY_RUNS as EXPERIMENT
from pegasus_lightning.train.settings import Config, about

BATCHES, WARMUP = 20, 5  # batches of training, and how many of them are not timed


def shortened(config: DictConfig) -> DictConfig:
    """Return what a dry run trains: one epoch, with the critic, in a folder of its own.

    Without `trainer.dry_run` return `config` itself.
    """
    if not config.trainer.dry_run:
        return config
    every = {"validate_every_n_epochs": 1, "checkpoint_every_n_epochs": 1, "log_every_n_steps": 1}
    short = {"trainer": every | {"max_epochs": 1, "max_time": None}, "callbacks": {"images_every_n_epochs": 1}}
    short["model"] = {"critic_starts_at": 0}
    return OmegaConf.merge(config, short, {"experiment_name": EXPERIMENT, "resume": "auto", "logger": "tensorboard"})  # type: ignore[return-value]


class Stopwatch(pl.Callback):
    """Time the batches of a dry run after the first few, and the validation. Only here the device is waited for."""

    def __init__(self, data: ImageDataModule) -> None:
        self.batches_an_epoch = data.train_batches_per_epoch
        self.batches = min(BATCHES, self.batches_an_epoch)
        self.skipped = min(WARMUP, self.batches - 1)
        self.batch = self.validation = 0.0  # seconds
        self._began = time.perf_counter()
        data.train = data.train.take(range(self.batches * data.config.batch_size))

    def _lap(self) -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        before, self._began = self._began, time.perf_counter()
        return self._began - before

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._lap()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx + 1 == self.skipped:
            self._lap()
        elif batch_idx + 1 == self.batches:
            self.batch = self._lap() / (self.batches - self.skipped)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._lap()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.validation = self.validation or self._lap()

    def figures(self, settings: Config, folder: Path) -> dict[str, float]:
        """Return the seconds and the bytes that the run takes whose settings are given, from its dry run in `folder`.

        A run keeps three checkpoints. `max_time` may end it earlier.
        """
        trainer, pictures = settings.trainer, sum(path.stat().st_size for path in (folder / "images").glob("*.png"))
        epochs, shown = trainer.max_epochs, settings.callbacks.images_every_n_epochs
        epoch = self.batches_an_epoch * self.batch + self.validation / trainer.validate_every_n_epochs
        saved = sum(path.stat().st_size for path in (folder / "checkpoints").glob("last.ckpt"))
        return {"seconds": epochs * epoch, "bytes": 3 * saved + pictures * (1 + epochs // shown)}

    def sentence(self, figures: dict[str, float], settings: Config) -> str:
        """Return what the command prints at the end."""
        tried = f"{self.batches} batches of training, validation, pictures, a checkpoint that loads"
        return (
            f"All of it works: {tried}{', and the test' if settings.trainer.evaluate_test else ''}. "
            "The dry run is deleted.\n"
            f"The whole run takes {about(figures['seconds'])} ({settings.trainer.max_epochs} epochs) and "
            f"{figures['bytes'] / 1e6:.0f} MB, by the time of {self.batches - self.skipped} batches."
        )
