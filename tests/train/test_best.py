"""The best checkpoint, and the end of a run that no longer improves, with validations by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from running import at_batch, checkpoint_of, run, status_of, the_run

from pegasus_lightning import load_export
from pegasus_lightning.export.__main__ import main as export
from pegasus_lightning.generate.__main__ import _work as generate_work
from pegasus_lightning.generate.settings import GENERATE
from pegasus_lightning.models.measured import MeasuredModel
from pegasus_lightning.models.two_player import TwoPlayerModel
from pegasus_lightning.runs.checkpoints import is_intact, load_model
from pegasus_lightning.utils.program import run_program

QUIET = ["callbacks.images=false", "callbacks.health=false", "trainer.evaluate_test=false"]


@pytest.fixture
def validations(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """validations([...], tag): what the validation after each epoch of 4 batches gives."""

    def script(values: list[float], tag: str = "validation/psnr") -> None:
        real = MeasuredModel.publish

        def publish(self: MeasuredModel, metrics: dict[str, float]) -> None:
            real(self, metrics | {tag: values[self.batches_done // 4 - 1]} if tag in metrics else metrics)

        monkeypatch.setattr(MeasuredModel, "publish", publish)

    return script


def best_of(folder: Path) -> int:
    """The batches done of best.ckpt, which is intact."""
    path = the_run(folder) / "checkpoints" / "best.ckpt"
    assert is_intact(path)
    return torch.load(path, weights_only=True)["batches_done"]


def test_the_best_checkpoint_is_that_of_the_best_validation(tmp_path: Path, validations) -> None:
    validations([20.0, 23.0, 21.0, 23.0])  # an equal one is not better
    assert run(tmp_path, "trainer.max_epochs=4", *QUIET).code == 0
    assert best_of(tmp_path) == 8
    assert checkpoint_of(the_run(tmp_path))["batches_done"] == 16
    assert load_model(the_run(tmp_path) / "checkpoints" / "best.ckpt").batches_done == 8
    assert load_model(the_run(tmp_path)).batches_done == 16


@pytest.mark.slow
@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_less_error_is_better_and_no_number_is_not(tmp_path: Path, validations, bad: float) -> None:
    validations([-bad, 30.0, 20.0, 25.0], "validation/excess_bce")
    assert run(tmp_path, "trainer.max_epochs=4", "trainer.monitor=validation/excess_bce", *QUIET).code == 0
    assert best_of(tmp_path) == 12


def test_a_best_validation_is_saved_between_two_saves(tmp_path: Path, validations) -> None:
    validations([20.0, 23.0, 21.0])
    assert run(tmp_path, "trainer.max_epochs=3", "trainer.checkpoint_every_n_epochs=50", *QUIET).code == 0
    assert best_of(tmp_path) == 8
    assert checkpoint_of(the_run(tmp_path))["batches_done"] == 12


@pytest.mark.slow
def test_a_run_that_no_longer_improves_ends_and_goes_on_with_more_patience(tmp_path: Path, validations) -> None:
    validations([20.0, 23.0, 21.0, 22.0, 22.5, 24.0, 1.0, 2.0, 3.0])
    limits = ["trainer.max_epochs=9", "trainer.patience=2", *QUIET]
    ended = run(tmp_path, *limits)
    reason = "trainer.patience=2: 4 of 9 epochs, no better validation/psnr since epoch 2"
    assert ended.code == 0
    assert "Stopped after 4 of 9 epochs (trainer.patience=2, no better validation/psnr since epoch 2)." in ended.out
    status = status_of(the_run(tmp_path))
    assert (status["status"], status["epochs"], status["reason"]) == ("finished", 4, reason)

    again = run(tmp_path, *limits)
    assert f"Already trained until {reason}" in again.out
    assert "raise trainer.patience to go on" in again.out
    assert "Already trained" in run(tmp_path, "trainer.max_epochs=20", *limits[1:]).out
    assert "Already trained" in run(tmp_path, "trainer.max_epochs=9", "trainer.patience=1", *QUIET).out
    assert "raise trainer.max_epochs to go on" in run(tmp_path, "trainer.max_epochs=3", *limits[1:]).out

    assert run(tmp_path, "trainer.max_epochs=9", "trainer.patience=3", *QUIET).code == 0
    status = status_of(the_run(tmp_path))
    assert status["epochs"] == 5  # the third in a row without a better one
    assert run(tmp_path, "trainer.max_epochs=9", *QUIET).code == 0
    status = status_of(the_run(tmp_path))
    assert (status["epochs"], status["reason"], status.get("stopped_by")) == (9, None, None)
    assert best_of(tmp_path) == 24


@pytest.mark.slow
def test_another_monitor_begins_anew(tmp_path: Path, validations) -> None:
    validations([20.0, 23.0])
    assert run(tmp_path, "trainer.max_epochs=1", *QUIET).code == 0
    assert best_of(tmp_path) == 4
    validations([1.0, 2.0], "validation/excess_bce")  # worse than before, if before counted
    assert run(tmp_path, "trainer.max_epochs=2", "trainer.monitor=validation/excess_bce", *QUIET).code == 0
    assert best_of(tmp_path) == 8


@pytest.mark.slow
def test_a_failure_after_the_best_validation_keeps_what_was_counted(
    tmp_path: Path, validations, monkeypatch: pytest.MonkeyPatch
) -> None:
    validations([20.0, 19.0, 18.0, 17.0, 16.0])
    limits = ["trainer.max_epochs=9", "trainer.patience=3", *QUIET]

    def burn() -> None:
        raise RuntimeError("the machine is on fire")

    with monkeypatch.context() as patch:
        patch.setattr(TwoPlayerModel, "training_step", at_batch(10, burn))
        with pytest.raises(RuntimeError, match="on fire"):
            run(tmp_path, *limits)
    assert run(tmp_path, *limits).code == 0
    assert status_of(the_run(tmp_path))["epochs"] == 4
    assert best_of(tmp_path) == 4


def test_a_status_of_before_has_no_patience(tmp_path: Path) -> None:
    """A run that 0.1 ended by time stays ended."""
    limits = ["trainer.max_epochs=50", "trainer.max_time=0.001s", *QUIET]
    assert run(tmp_path, *limits).code == 0
    path = the_run(tmp_path) / "status.json"
    old = json.loads(path.read_text())
    assert old.pop("stopped_by") == "trainer.max_time"
    for key in ("patience", "monitor"):
        del old["limits"][key]
    path.write_text(json.dumps(old))
    assert "Already trained" in run(tmp_path, *limits).out


@pytest.mark.slow
def test_commands_take_the_best(tmp_path: Path, validations, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    validations([20.0, 23.0, 21.0])
    assert run(tmp_path, "trainer.max_epochs=3", *QUIET).code == 0
    monkeypatch.chdir(tmp_path)
    place, few = f"run={the_run(tmp_path)}", ["gpus=0", "count=2", "figures=[best]", "pegasus.pairs=random"]
    for asked, batches in ((["checkpoint=best"], 8), ([], 12)):
        assert run_program(GENERATE, [place, *few, f"out=pegasi{batches}", *asked], generate_work) == 0
        assert json.loads((tmp_path / f"pegasi{batches}" / "pegasi.json").read_text())["batches"] == batches
    assert export([str(the_run(tmp_path)), "--checkpoint", "best", "--out", "shared"]) == 0
    assert load_export("shared").config  # it is whole
    assert "batch 8" in capsys.readouterr().out
    (the_run(tmp_path) / "checkpoints" / "best.ckpt").unlink()
    assert run_program(GENERATE, [place, *few, "out=none", "checkpoint=best"], generate_work) == 2
    assert "has no best.ckpt" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
