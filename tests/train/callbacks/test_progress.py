"""Tests of the progress line."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pegasus_lightning.train.callbacks import progress
from pegasus_lightning.train.callbacks.progress import ProgressLine, SpeedWatch, numbers_that_matter, short_numbers


def trainer(epoch: int = 0, first: bool = True) -> Any:
    """A trainer after `epoch` of 20 epochs of 10 batches."""
    return SimpleNamespace(
        current_epoch=epoch,
        max_epochs=20,
        num_training_batches=10,
        is_global_zero=first,
        is_last_batch=False,
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
    )


def model(batches_done: int) -> Any:
    return SimpleNamespace(
        batches_done=batches_done, latest={"loss/kl": 31.237, "validation/psnr": 19.0}, term_weights={}
    )


class Clock:
    """time.monotonic, set by the test."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress.time, "monotonic", clock)
    return clock


def test_only_the_numbers_that_matter_in_words() -> None:
    metrics = {"validation/psnr": 19.8374, "loss/kl": 31.2, "speed/images_per_second": 5000.0, "critic/real": 0.5}
    assert numbers_that_matter(metrics, {"loss/kl": 1.0}) == "kl 31.2  C(real) 0.5  PSNR dB 19.84"
    assert numbers_that_matter(metrics, {"loss/kl": 0.03}) == "kl 31.2 (x0.03)  C(real) 0.5  PSNR dB 19.84"
    assert numbers_that_matter({}, {}) == ""


def test_away_from_a_terminal_it_is_one_line_every_few_seconds(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ProgressLine(seconds_between_lines=5)
    line.on_train_start(trainer(), model(40))  # a continued run with 40 batches done before
    lines = []
    for epoch, seconds in ((4, 4.0), (5, 2.0), (6, 4.0)):
        clock.now += seconds
        for batch in range(10):
            line.on_train_batch_end(trainer(epoch), model(10 * epoch + batch + 1), None, None, batch)
        line.on_train_epoch_end(trainer(epoch), model(10 * epoch + 10))
        lines.append(capsys.readouterr().err)
    # Printed 6 s after the start, after 20 batches of this session, with 140 left: 140 / (20 / 6) = 42 s.
    assert lines == ["", "epoch 6/20  3.3 batches/s  00:42 left  kl 31.24  PSNR dB 19\n", ""]


def test_the_last_epoch_is_always_told(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    line = ProgressLine(seconds_between_lines=1e9)
    line.on_train_start(trainer(), model(0))
    clock.now += 100
    line.on_train_epoch_end(trainer(18), model(190))
    assert capsys.readouterr().err == ""
    line.on_train_epoch_end(trainer(19), model(200))
    assert capsys.readouterr().err == "epoch 20/20  2.0 batches/s  00:00 left  kl 31.24  PSNR dB 19\n"


@pytest.mark.parametrize(("columns", "numbers"), [("200", "50/200"), ("80", "left, PSNR 19.0 dB  kl 31.2")])
def test_on_a_terminal_it_is_a_bar_over_the_whole_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], columns: str, numbers: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    line = ProgressLine()
    line.on_train_start(trainer(4), model(40))
    bar = line._bar
    assert bar is not None
    assert (bar.total, bar.n) == (200, 40)
    for batch in range(10):
        line.on_train_batch_end(trainer(4), model(41 + batch), None, None, batch)
    line.on_train_epoch_end(trainer(4), model(50))
    assert bar.n == 50
    bar.refresh()
    line.teardown(trainer(4), model(50), "fit")
    shown = capsys.readouterr().err
    assert "epoch 5/20" in shown
    assert numbers in shown and "kl 31.2" in shown
    assert "batches/s" not in shown  # no line beside the bar
    line.teardown(trainer(4), model(50), "test")  # the bar is closed once


def test_further_processes_are_silent(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for terminal in (False, True):
        monkeypatch.setattr(sys.stderr, "isatty", lambda terminal=terminal: terminal, raising=False)
        line = ProgressLine(seconds_between_lines=0)
        line.on_train_start(trainer(first=False), model(0))
        clock.now += 10
        line.on_train_batch_end(trainer(first=False), model(1), None, None, 0)
        line.on_train_epoch_end(trainer(19, first=False), model(10))
        line.teardown(trainer(first=False), model(10), "fit")
    assert capsys.readouterr().err == ""


def test_the_numbers_of_a_narrow_terminal_fit_behind_the_rest() -> None:
    metrics = {"validation/psnr": 19.8374, "loss/kl": 31.24, "critic/real": 0.6123, "critic/fake": 0.39}
    assert short_numbers(metrics) == "PSNR 19.8 dB  C 0.61/0.39  kl 31.2"
    assert short_numbers({"loss/kl": 3.0}) == "kl 3"
    before = "epoch 1000/1000  45.31batch/s 1:50:12 left  "
    assert len(before + short_numbers(metrics)) <= 80


def test_a_training_that_became_half_as_fast_is_told_once() -> None:
    watch = SpeedWatch()
    rates = [100, 40, 100, 40, 60, 49, 49, 10, 10]  # batches in 5 seconds each
    said = [watch.seen(rate, 5.0) for rate in rates]
    assert [bool(text) for text in said] == [False] * 6 + [True, False, False]
    assert "from 20.0 to 9.8 batches/s" in said[6] and "trainer.threads=1" in said[6]
    watch = SpeedWatch()
    assert not any(watch.seen(1, 1.0) for _ in range(50))  # short epochs are taken together
