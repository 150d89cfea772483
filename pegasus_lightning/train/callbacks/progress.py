"""Progress line of a training: epoch, batches/s, time left and the main metrics."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
from tqdm import tqdm

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


class ProgressLine(pl.Callback):
    """Show one progress bar for the whole run on a terminal, or one line an epoch elsewhere.

    `seconds_between_lines` is the shortest time between two lines; the last epoch is always printed.
    """

    def __init__(self, seconds_between_lines: float = 5.0) -> None:
        self.seconds_between_lines = seconds_between_lines
        self._bar: tqdm | None = None
        self._printed = self._began = time.monotonic()
        self._began_at = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if not trainer.is_global_zero:
            return
        self._began, self._began_at = time.monotonic(), pl_module.batches_done
        if sys.stderr.isatty():
            self._bar = tqdm(
                total=_total_batches(trainer),
                initial=pl_module.batches_done,
                unit="batch",
                smoothing=0.05,
                dynamic_ncols=True,
                bar_format="{desc} {bar:12} {n_fmt}/{total_fmt} {rate_fmt} {remaining} left  {postfix}",
            )

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        if self._bar is not None:
            self._bar.set_description_str(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}", refresh=False)
            self._bar.set_postfix_str(numbers_that_matter(pl_module.latest, pl_module.term_weights), refresh=False)
            self._bar.update()

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
