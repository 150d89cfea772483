"""Promise 1 (and 12): a run that is killed at a given call and run again equals one that was never killed."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.promise(1)]

# Where SIGKILL is sent. A save is: write_atomically the staged file, [_keep_as the one before], _announce the
# new hash, move, sync_folder, write the hash. With a save every 2 epochs there are two, after batches 8 and 12.
POINTS = [
    "TwoPlayerModel.training_step before 1",  # nothing is saved yet
    "TwoPlayerModel.training_step before 7",  # in mid-epoch
    "TwoPlayerModel.training_step after 8",  # an epoch's last batch is done; its validation and its save are not
    "TwoPlayerModel.validation_step before 2",
    "ImageGrids.draw before 2",
    "checkpoints.save_atomically before 2",
    "torch.save before 2",  # the temporary file is there and empty
    "checkpoints.write_atomically after 2",  # the staged file is whole
    "checkpoints._keep_as before 1",
    "checkpoints._keep_as after 1",
    "checkpoints._announce after 2",
    "checkpoints.sync_folder before 2",  # the file is moved; the hash file still lists the old hash too
    "checkpoints.save_atomically after 2",  # the end of an epoch
    "TwoPlayerModel.training_step before 9",
    "TwoPlayerModel.training_step before 12",
]


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("point", POINTS)
def test_killed_anywhere_and_run_again_it_is_the_unbroken_run(
    command: Any, left: Callable[[Path], Any], unbroken: Any, tmp_path: Path, point: str, every: int
) -> None:
    cadence = f"trainer.checkpoint_every_n_epochs={every}"
    assert command(tmp_path, cadence, strike=point).code == -signal.SIGKILL
    assert left(tmp_path).status["status"] == "running"
    again = command(tmp_path, cadence)
    assert again.code == 0, again.err
    run = left(tmp_path)
    assert run.status["status"] == "finished"
    assert run.digest == unbroken.digest
    assert run.metrics == unbroken.metrics
    assert run.steps == unbroken.steps
    assert run.pictures == unbroken.pictures


# The weights are final and saved; later log entries are not.
AFTER_TRAINING = [
    "TwoPlayerModel.test_step before 1",
    "TwoPlayerModel.on_test_epoch_end after 1",
    "RunLogger.close_hparams after 1",
]


@pytest.mark.parametrize("point", AFTER_TRAINING)
def test_killed_after_the_last_save_it_is_the_unbroken_run(
    command: Any, left: Callable[[Path], Any], unbroken: Any, tmp_path: Path, point: str
) -> None:
    assert command(tmp_path, strike=point).code == -signal.SIGKILL
    assert command(tmp_path).code == 0
    run = left(tmp_path)
    assert run.digest == unbroken.digest
    assert run.metrics == unbroken.metrics
    assert run.steps == unbroken.steps
    assert run.pictures == unbroken.pictures


def test_killed_before_the_last_pictures_they_are_drawn_by_the_next(
    command: Any, left: Callable[[Path], Any], unbroken: Any, tmp_path: Path
) -> None:
    assert command(tmp_path, strike="checkpoints.save_atomically after 3").code == -signal.SIGKILL
    assert command(tmp_path).code == 0
    run = left(tmp_path)
    assert run.digest == unbroken.digest
    assert run.steps == unbroken.steps
    assert run.pictures == unbroken.pictures


def test_without_a_test_split_nothing_is_logged_twice(
    command: Any, left: Callable[[Path], Any], tmp_path: Path
) -> None:
    without = "trainer.evaluate_test=false"
    assert command(tmp_path, without, strike="RunLogger.close_hparams before 1").code == -signal.SIGKILL
    assert command(tmp_path, without).code == 0
    assert left(tmp_path).steps["1-main/PSNR"] == [4, 8, 12]
    assert len(set(left(tmp_path).metrics)) == len(left(tmp_path).metrics)


def test_killed_again_and_again_it_is_the_unbroken_run(
    command: Any, left: Callable[[Path], Any], unbroken: Any, tmp_path: Path
) -> None:
    for point in ("TwoPlayerModel.training_step before 3", "torch.save before 1", "checkpoints.sync_folder before 1",
                  "TwoPlayerModel.training_step before 3", "TwoPlayerModel.training_step before 4"):  # fmt: skip
        assert command(tmp_path, strike=point).code == -signal.SIGKILL
    assert command(tmp_path).code == 0
    run = left(tmp_path)
    assert (run.digest, run.metrics, run.steps) == (unbroken.digest, unbroken.metrics, unbroken.steps)
    assert run.pictures == unbroken.pictures
