"""Promise 1 (and 12): a run that is killed at a given call and run again equals one that was never killed."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

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
    "checkpoints.keep_best before 2",  # the best validation is saved, and is not yet best.ckpt
    "checkpoints.keep_best after 2",
    "checkpoints.keep_best before 3",  # of the last epoch
    "checkpoints._announce after 8",  # of the last epoch: the new hash is listed, and best.ckpt is the old one
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
    assert run.digest_of("best.ckpt") == unbroken.digest_of("best.ckpt")
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


# Four batches an epoch, twelve in all: each schedule is under way at batch 7, where the run is killed.
RATES = [f"model.{player}_optimizer.{field}" for player in ("autoencoder", "critic")
         for field in ("warmup=3", "schedule=cosine", "schedule_batches=11", "weight_decay=0.1")]  # fmt: skip
SCHEDULES = {
    "rates": [*RATES, "model.ema_decay=0.99", "model.ema_warmup=2", "model.kl_warmup=3", "model.kl_cycle=5"],
    "late critic": ["model.critic_starts_at=5", "model.critic_ramp=5", "model.adaptive_adversarial=true"],
    "several steps": ["model.critic_steps=3", "model.adversarial_loss=lsgan"],
    "wgan_gp": ["model.adversarial_loss=wgan_gp", "model.networks.critic_batch_norm=false"],
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_goes_on_where_it_was(command: Any, left: Callable[[Path], Any], tmp_path: Path, name: str) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    assert command(whole, *SCHEDULES[name]).code == 0
    assert command(broken, *SCHEDULES[name], strike="TwoPlayerModel.training_step before 7").code == -signal.SIGKILL
    assert command(broken, *SCHEDULES[name]).code == 0
    assert left(broken).digest == left(whole).digest
    assert left(broken).metrics == left(whole).metrics


@pytest.mark.parametrize(
    "point",
    [
        "TwoPlayerModel.training_step before 11",
        "checkpoints.save_atomically after 3",
        "checkpoints.save_atomically after 4",
        "TwoPlayerModel.test_step before 1",
    ],
)
def test_patience_counts_on_after_a_kill(command: Any, left: Callable[[Path], Any], tmp_path: Path, point: str) -> None:
    """A rate of 0 after the first epoch: no later validation is better, so a patience of 3 ends the fourth epoch."""
    still = [f"model.{player}_optimizer.{field}" for player in ("autoencoder", "critic")
             for field in ("schedule=linear", "schedule_batches=4")]  # fmt: skip
    settings = [*still, "model.networks.batch_norm=false", "trainer.max_epochs=9", "trainer.patience=3"]
    assert command(tmp_path, *settings, strike=point).code == -signal.SIGKILL
    assert command(tmp_path, *settings).code == 0
    run = left(tmp_path)
    assert (run.status["epochs"], run.status["stopped_by"]) == (4, "trainer.patience")
    assert torch.load(run.checkpoints / "best.ckpt", weights_only=True)["batches_done"] == 4
    assert run.content["batches_done"] == 16
