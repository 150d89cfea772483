"""Tests of signals during a run, and of the status reported after an epoch."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from pegasus_lightning.train.callbacks.run_status import Interrupted, RunStatus
from pegasus_lightning.utils.errors import SIGNALS

MODEL = SimpleNamespace(batches_done=7, latest={"loss/kl": 1.5}, term_weights={"loss/kl": 0.5})
TRAINER: Any = SimpleNamespace(current_epoch=1, is_last_batch=False, world_size=1)


class Notes:
    """A RunStatus that records its calls in order."""

    def __init__(self) -> None:
        self.written: list[Any] = []
        self.callback = RunStatus(
            lambda **fields: self.written.append(fields), lambda trainer: self.written.append(trainer)
        )


@pytest.fixture
def notes() -> Iterator[Notes]:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup ignores it
    former = {number: signal.getsignal(number) for number in SIGNALS}
    notes = Notes()
    notes.callback.install_handlers()
    yield notes
    notes.callback.restore_handlers()
    assert {number: signal.getsignal(number) for number in SIGNALS} == former


@pytest.mark.promise(4)
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 138), (signal.SIGHUP, 129)]
)
def test_a_signal_waits_for_the_end_of_the_batch_then_saves_then_ends(
    notes: Notes, number: signal.Signals, code: int
) -> None:
    notes.callback.check()
    os.kill(os.getpid(), number)
    assert notes.written == []
    with pytest.raises(Interrupted, match=f"stopped by {number.name}") as interrupt:
        notes.callback.on_train_batch_end(TRAINER, MODEL, None, None, 0)
    assert interrupt.value.exit_code == code
    assert notes.written == [TRAINER, {"epochs": 1, "batches": 7}]
    with pytest.raises(Interrupted):
        notes.callback.check()


@pytest.mark.promise(4)
def test_under_nohup_a_closed_terminal_ends_nothing() -> None:
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        notes = Notes()
        notes.callback.install_handlers()
        os.kill(os.getpid(), signal.SIGHUP)
        notes.callback.check()
        notes.callback.restore_handlers()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, former)


def test_after_an_epochs_last_batch_the_epoch_is_finished_first(notes: Notes) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    last: Any = SimpleNamespace(current_epoch=1, is_last_batch=True, world_size=1)
    notes.callback.on_train_batch_end(last, MODEL, None, None, 0)
    assert notes.written == []
    with pytest.raises(Interrupted):
        notes.callback.on_train_batch_end(TRAINER, MODEL, None, None, 0)


def test_without_a_signal_a_batch_ends_quietly(notes: Notes) -> None:
    notes.callback.on_train_batch_end(TRAINER, MODEL, None, None, 0)
    assert notes.written == []


def test_a_second_ctrl_c_does_not_wait(notes: Notes) -> None:
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_a_second_sigterm_does(notes: Notes) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Interrupted, match="SIGTERM"):
        notes.callback.check()


def test_the_signals_are_given_back() -> None:
    received: list[int] = []
    former = signal.signal(signal.SIGUSR1, lambda number, _: received.append(number))
    try:
        notes = Notes()
        notes.callback.install_handlers()
        notes.callback.restore_handlers()
        os.kill(os.getpid(), signal.SIGUSR1)
        assert received == [signal.SIGUSR1]
        notes.callback.check()
    finally:
        signal.signal(signal.SIGUSR1, former)


def test_an_epoch_is_reported_with_the_latest_metrics() -> None:
    notes = Notes()
    notes.callback.on_train_epoch_end(TRAINER, MODEL)
    assert notes.written == [{"epochs": 2, "batches": 7, "metrics": {"loss/kl": 1.5}, "weights": {"loss/kl": 0.5}}]
