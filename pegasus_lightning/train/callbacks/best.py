"""The best validation of a run, and the end of a run that no longer improves."""

from __future__ import annotations

import math
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.trainer.states import TrainerFn


class BestValidation(pl.Callback):
    """Know when a validation was the best so far, and stop after `patience` validations without a better one.

    What it knows is in every checkpoint, so a resumed run stops where an uninterrupted one does. `SaveLast` keeps the
    checkpoint of the best validation.

    Args:
        monitor: the metric, such as "validation/psnr".
        highest: whether the largest value is the best.
        patience: None: never stop.
    """

    def __init__(self, monitor: str, *, highest: bool, patience: int | None = None) -> None:
        self.monitor, self.highest, self.patience = monitor, highest, patience
        self.value = math.nan  # of the best validation
        self.batch = -1  # batches done then; -1: there was none
        self.waited = 0  # validations since

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if self.gave_up:  # a kill came after the last save
            trainer.should_stop = True

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            return
        value: float = trainer.strategy.broadcast(pl_module.latest[self.monitor])  # one decision for all processes
        better = value > self.value if self.highest else value < self.value
        if better or (self.batch < 0 and not math.isnan(value)):
            self.value, self.batch, self.waited = value, pl_module.batches_done, 0
        else:
            self.waited += 1

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if self.gave_up:
            trainer.should_stop = True

    @property
    def gave_up(self) -> bool:
        """Whether `patience` validations in a row were not better than the best one."""
        return self.patience is not None and self.waited >= self.patience

    def told(self, batches_per_epoch: int) -> str:
        """Return why the run ends, in words."""
        if self.batch < 0:
            return f"no {self.monitor} was a number"
        return f"no better {self.monitor} since epoch {self.batch // batches_per_epoch}"

    def state_dict(self) -> dict[str, Any]:
        return {"monitor": self.monitor, "value": self.value, "batch": self.batch, "waited": self.waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict["monitor"] == self.monitor:  # of another metric, no validation counts
            self.value, self.batch, self.waited = (state_dict[key] for key in ("value", "batch", "waited"))
