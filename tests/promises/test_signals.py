"""Promise 4: after a signal a run saves, reports it, exits with 128 + n, and continues to the same weights."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1]

pytestmark = [pytest.mark.slow, pytest.mark.promise(4)]


MOMENTS = [
    "TwoPlayerModel.training_step before 6",  # in mid-epoch
    "TwoPlayerModel.training_step before 1",
    "TwoPlayerModel.training_step before 4",  # an epoch's last batch
    "TwoPlayerModel.training_step before 12",  # the last of all
    "TwoPlayerModel.validation_step before 2",
    "ImageGrids.draw before 1",
    "checkpoints.save_atomically before 2",
    "torch.save before 1",
]


CASES = [(point, number) for point in MOMENTS for number in SIGNALS]
if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as under nohup, where a run takes no notice of it
    CASES.append((MOMENTS[0], signal.SIGHUP))


@pytest.mark.parametrize(("point", "number"), CASES)
def test_a_signal_at_any_moment_of_the_training(
    command: Any, left: Callable[[Path], Any], unbroken: Any, tmp_path: Path, point: str, number: signal.Signals
) -> None:
    ended = command(tmp_path, strike=point, signal=number)
    assert ended.code == 128 + number
    assert number.name in ended.out
    assert "Run the same command again" in ended.out
    assert "Traceback" not in ended.err
    broken = left(tmp_path)
    assert (broken.status["status"], broken.status["exit_code"]) == ("interrupted", 128 + number)
    assert broken.content["batches_done"] == broken.status["batches"]
    again = command(tmp_path)
    assert again.code == 0, again.err
    run = left(tmp_path)
    assert run.digest == unbroken.digest
    assert run.steps == unbroken.steps
    assert run.pictures == unbroken.pictures
    measured = ("validation/", "test/", "final/")  # means over batches lose the batches before the signal
    assert [m for m in run.metrics if m[1].startswith(measured)] == [
        m for m in unbroken.metrics if m[1].startswith(measured)
    ]
