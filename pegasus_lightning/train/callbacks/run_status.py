"""The status of a run while it trains, and a clean end at a signal."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch

from pegasus_lightning.utils.errors import Interrupted, UserError, heeded_signals

REQUEUES = (signal.SIGUSR1, signal.SIGUSR2)  # a cluster's launcher sends one of these when the time is nearly over
SYNC_EVERY = 10  # batches; to synchronise, the processes wait for their devices


def requeue_signal() -> int | None:
    """Return the signal at which a library in this process (submitit) requeues the job; None if there is none.

    With one, the run saves first and then raises the signal again, and leaves SIGTERM, which Slurm also sends, alone.
    """
    return next((number for number in REQUEUES if callable(signal.getsignal(number))), None)


class RunStatus(pl.Callback):
    """Report progress after every epoch, and stop at the end of the batch in which a signal comes.

    After an epoch's last batch, validation, pictures and the save come first; then `SaveLast` calls `check`. The
    processes of a data-parallel run synchronise before they stop, because a signal may have reached one of them alone.

    `report` is called with the changed fields of `status.json`; `save` saves a checkpoint now.
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
            raise KeyboardInterrupt  # a second Ctrl-C stops at once
        self.received = number

    @contextmanager
    def handling_signals(self) -> Iterator[None]:
        """Install the signal handlers inside, and restore the former ones."""
        self.install_handlers()
        try:
            yield
        except UserError:
            self.check()  # a signal during the wait for the run's lock
            raise
        finally:
            self.restore_handlers()

    def install_handlers(self) -> None:
        """Install handlers that note the signal. Python allows that in the main thread alone: others have none."""
        if threading.current_thread() is not threading.main_thread():
            return
        requeue = requeue_signal()
        numbers = heeded_signals() if requeue is None else [signal.SIGINT, requeue]
        self._left_alone = {} if requeue is None else {signal.SIGTERM: signal.getsignal(signal.SIGTERM)}
        self._former = {number: signal.signal(number, self._receive) for number in numbers}

    def restore_handlers(self) -> None:
        """Restore the former handlers."""
        for number, handler in (self._former | self._left_alone).items():
            signal.signal(number, handler)
        self._former, self._left_alone = {}, {}

    def check(self) -> None:
        """Raise Interrupted if a signal has come."""
        if self.received is not None:
            raise Interrupted(self.received)

    def sync_signal(self, trainer: pl.Trainer) -> None:
        """Share a signal that any process of a data-parallel run has received with all of them."""
        if trainer.world_size > 1:
            number = torch.tensor([self.received or 0], device=trainer.strategy.root_device)
            torch.distributed.all_reduce(number, op=torch.distributed.ReduceOp.MAX)
            self.received = int(number.item()) or None

    def _reinstall_handlers(self) -> None:
        # Lightning wraps the handlers it finds in a SIGTERM handler that exits with 0 and saves nothing.
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
        self.report(
            epochs=trainer.current_epoch + 1,
            batches=pl_module.batches_done,
            metrics=pl_module.latest,
            weights=pl_module.term_weights,
        )
        self.sync_signal(trainer)
