"""What the run folder says of the run while it trains, and how a signal ends it with nothing lost."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch

from pegasus_lightning.utils.errors import SIGNALS, Interrupted

REQUEUES = (signal.SIGUSR1, signal.SIGUSR2)  # by one of these a cluster's launcher says that the time is nearly over
SYNC_EVERY = 10  # batches: to agree, the processes wait for their devices


def requeue_signal() -> int | None:
    """The signal at which somebody in this process (submitit) queues the job again; None where nobody does.

    Then the run saves first and hands the signal on, and SIGTERM, which Slurm sends along, is left to them too.
    """
    return next((number for number in REQUEUES if callable(signal.getsignal(number))), None)


class RunStatus(pl.Callback):
    """Reports progress after every epoch, and stops at the end of the batch in which a signal comes.

    After an epoch's last batch its validation, pictures and save come first (`SaveLast` asks `check`). The processes
    of a data-parallel run agree before they stop: a signal may have reached one of them alone.

    Attributes:
        report: takes the fields of `status.json` that changed.
        save: saves a checkpoint now.
    """

    def __init__(
        self,
        report: Callable[..., None] = lambda **fields: None,
        save: Callable[[pl.Trainer], None] = lambda trainer: None,
    ) -> None:
        self.report, self.save = report, save
        self.received: int | None = None
        self._former: dict[int, Any] = {}
        self._left_alone: dict[int, Any] = {}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt  # a second Ctrl-C does not wait for the end of the batch
        self.received = number

    def install_handlers(self) -> None:
        """Take the signals over; `restore_handlers` gives them back."""
        requeue = requeue_signal()
        numbers = SIGNALS if requeue is None else (signal.SIGINT, requeue)
        self._left_alone = {} if requeue is None else {signal.SIGTERM: signal.getsignal(signal.SIGTERM)}
        self._former = {number: signal.signal(number, self._receive) for number in numbers}

    def restore_handlers(self) -> None:
        """Give the signals back."""
        for number, handler in (self._former | self._left_alone).items():
            signal.signal(number, handler)
        self._former, self._left_alone = {}, {}

    def check(self) -> None:
        """Raise if a signal has come."""
        if self.received is not None:
            raise Interrupted(self.received)

    def sync_signal(self, trainer: pl.Trainer) -> None:
        """Let every process of a data-parallel run know of a signal that any of them has received."""
        if trainer.world_size > 1:
            number = torch.tensor([self.received or 0], device=trainer.strategy.root_device)
            torch.distributed.all_reduce(number, op=torch.distributed.ReduceOp.MAX)
            self.received = int(number.item()) or None

    def _reinstall_handlers(self) -> None:
        # Lightning puts a SIGTERM handler of its own around what it finds, which exits with 0 and saves nothing.
        for number in self._former:
            signal.signal(number, self._receive)
        for number, handler in self._left_alone.items():
            signal.signal(number, handler)

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._reinstall_handlers()

    def on_test_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._reinstall_handlers()

    def on_test_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        self.sync_signal(trainer)
        self.check()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        if trainer.is_last_batch:
            return
        if trainer.world_size > 1:
            if pl_module.batches_done % SYNC_EVERY:
                return
            self.sync_signal(trainer)
        if self.received is not None:
            self.save(trainer)
            self.report(epochs=trainer.current_epoch, batches=pl_module.batches_done)
            self.check()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.report(epochs=trainer.current_epoch + 1, batches=pl_module.batches_done, metrics=pl_module.latest)
        self.sync_signal(trainer)
