"""What the run folder says of the run while it trains, and how a signal ends it with nothing lost."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytorch_lightning as pl

from pegasus_lightning.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
REQUEUES = (signal.SIGUSR1, signal.SIGUSR2)  # by one of these a cluster's launcher says that the time is nearly over


def requeue_signal() -> int | None:
    """The signal at which somebody in this process (submitit) queues the job again; None where nobody does.

    Then the run saves first and hands the signal on, and SIGTERM, which Slurm sends along, is left to them too.
    """
    return next((number for number in REQUEUES if callable(signal.getsignal(number))), None)


class RunStatus(pl.Callback):
    """Reports progress after every epoch, and stops at the end of the batch in which a signal comes.

    After an epoch's last batch its validation and pictures come first, and the run stops a batch later.

    Args:
        report: takes the fields of `status.json` that changed.
        save: saves a checkpoint now.
    """

    def __init__(self, report: Callable[..., None], save: Callable[[pl.Trainer], None]) -> None:
        self.report, self.save = report, save
        self.received: int | None = None
        self._former: dict[int, Any] = {}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt  # a second Ctrl-C does not wait for the end of the batch
        self.received = number

    def listen(self) -> None:
        """Take the signals over; `deaf` gives them back."""
        requeue = requeue_signal()
        numbers = SIGNALS if requeue is None else (signal.SIGINT, requeue)
        self._former = {number: signal.signal(number, self._receive) for number in numbers}

    def deaf(self) -> None:
        """Give the signals back."""
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former = {}

    def check(self) -> None:
        """Raise if a signal has come."""
        if self.received is not None:
            raise Interrupted(self.received)

    def _listen_again(self) -> None:
        # Lightning puts a SIGTERM handler of its own around ours, which exits with 0 and saves nothing.
        for number in self._former:
            signal.signal(number, self._receive)

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._listen_again()

    def on_test_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._listen_again()

    def on_test_batch_end(self, *args: Any) -> None:
        self.check()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        if self.received is not None and not trainer.is_last_batch:  # else the epoch is finished first, and judged
            self.save(trainer)
            self.report(epochs=trainer.current_epoch, batches=pl_module.batches_done)
            self.check()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.report(epochs=trainer.current_epoch + 1, batches=pl_module.batches_done, metrics=pl_module.latest)
