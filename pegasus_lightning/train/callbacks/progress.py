"""Progress line of a training: epoch, batches/s, time left and the main metrics."""

from __future__ import annotations

import logging
import shutil
import sys
import time
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from tqdm import tqdm

log = logging.getLogger(__name__)
WIDE = 120  # columns that the whole line takes

SHOWN = {
    "loss/reconstruction": "pixels",
    "loss/feature": "features",
    "loss/kl": "kl",
    "loss/adversarial": "adv",
    "critic/real": "C(real)",
    "critic/fake": "C(fake)",
    "critic/blend": "C(blend)",
    "critic/mix": "C(mix)",
    "validation/psnr": "PSNR dB",
}


def numbers_that_matter(metrics: Mapping[str, float], weights: Mapping[str, float]) -> str:
    """Return the available main metrics, such as `kl 31.2 (x0.03)  adv 0.71  PSNR dB 19.8`.

    Terms are unweighted; their weights, by tag, are shown if they are not 1.
    """
    shown = []
    for name, label in SHOWN.items():
        if name in metrics:
            weight = weights.get(name, 1.0)
            shown.append(f"{label} {metrics[name]:.4g}" + (f" (x{weight:.4g})" if weight != 1 else ""))
    return "  ".join(shown)


def short_numbers(metrics: Mapping[str, float]) -> str:
    """Return the main metrics in 40 characters: `PSNR 19.8 dB  C 0.61/0.39  kl 31.2`, C of real and of fake images."""
    parts = [f"PSNR {metrics['validation/psnr']:.1f} dB"] if "validation/psnr" in metrics else []
    if "critic/real" in metrics and "critic/fake" in metrics:
        parts.append(f"C {metrics['critic/real']:.2f}/{metrics['critic/fake']:.2f}")
    return "  ".join([*parts, *([f"kl {metrics['loss/kl']:.3g}"] if "loss/kl" in metrics else [])])


class SpeedWatch:
    """Notice a training on the CPU that has become half as fast.

    `seen(batches, seconds)` takes what was trained, and returns a sentence once, when two windows of `WINDOW` seconds
    in a row were slower than half of the fastest; else "".
    """

    WINDOW = 5.0

    def __init__(self) -> None:
        self._batches, self._seconds, self._best, self._slow, self._told = 0, 0.0, 0.0, 0, False

    def seen(self, batches: int, seconds: float) -> str:
        """Take what was trained in a stretch of time."""
        self._batches, self._seconds = self._batches + batches, self._seconds + seconds
        if self._seconds < self.WINDOW or self._told:
            return ""
        rate = self._batches / self._seconds
        self._batches, self._seconds, self._best = 0, 0.0, max(self._best, rate)
        self._slow = self._slow + 1 if rate < self._best / 2 else 0
        self._told = self._slow == 2
        if not self._told:
            return ""
        return (
            f"The training has slowed down from {self._best:.1f} to {rate:.1f} batches/s. If other programs need the "
            "CPU, stop it with Ctrl-C and continue it by the same command with trainer.threads=1."
        )


class ProgressLine(pl.Callback):
    """Show one progress bar for the whole run on a terminal, or one line an epoch elsewhere.

    `seconds_between_lines` is the shortest time between two lines; the last epoch is always printed.
    """

    def __init__(self, seconds_between_lines: float = 5.0) -> None:
        self.seconds_between_lines = seconds_between_lines
        self._bar: tqdm | None = None
        self._printed = self._began = time.monotonic()
        self._began_at = 0
        self._speed: SpeedWatch | None = None
        self._epoch_began, self._epoch_began_at, self._narrow = self._began, 0, False

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if not trainer.is_global_zero:
            return
        self._began, self._began_at = time.monotonic(), pl_module.batches_done
        if trainer.strategy.root_device.type == "cpu" and torch.get_num_threads() > 1:
            self._speed = SpeedWatch()
        if sys.stderr.isatty():
            self._narrow = shutil.get_terminal_size().columns < WIDE
            place = "" if self._narrow else "{bar:12} {n_fmt}/{total_fmt}"
            self._bar = tqdm(
                total=_total_batches(trainer),
                initial=pl_module.batches_done,
                unit="batch",
                smoothing=0.05,
                dynamic_ncols=True,
                bar_format=f"{{desc}} {place} {{rate_fmt}} {{remaining}} left{{postfix}}",
            )

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._epoch_began, self._epoch_began_at = time.monotonic(), pl_module.batches_done

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        if self._bar is not None:
            self._bar.set_description_str(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}", refresh=False)
            latest = pl_module.latest
            numbers = short_numbers(latest) if self._narrow else numbers_that_matter(latest, pl_module.term_weights)
            self._bar.set_postfix_str(numbers, refresh=False)
            self._bar.update()
        if self._speed is not None and trainer.is_last_batch:
            trained = pl_module.batches_done - self._epoch_began_at
            said = self._speed.seen(trained, time.monotonic() - self._epoch_began)
            if said:
                tqdm.write(said, file=sys.stderr)
                log.info(said)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        last = trainer.current_epoch + 1 == trainer.max_epochs
        due = time.monotonic() - self._printed >= self.seconds_between_lines or last
        if self._bar is None and trainer.is_global_zero and due:
            self._printed = time.monotonic()
            rate = (pl_module.batches_done - self._began_at) / (self._printed - self._began)
            left = max(0, _total_batches(trainer) - pl_module.batches_done) / rate
            print(
                f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  {rate:.1f} batches/s  "
                f"{tqdm.format_interval(left)} left  {numbers_that_matter(pl_module.latest, pl_module.term_weights)}",
                file=sys.stderr,
                flush=True,
            )

    def teardown(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _total_batches(trainer: pl.Trainer) -> int:
    return int(trainer.num_training_batches * (trainer.max_epochs or 0))
