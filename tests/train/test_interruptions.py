"""Tests of signals outside training batches, two commands on one run, and a missing test split."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from pegasus_lightning.launch.command import run_command
from pegasus_lightning.models.two_player import TwoPlayerModel

SETTINGS = ["data=silhouettes", "data.train_per_class=20", "data.test_per_class=10", "data.batch_size=8"]
SETTINGS += ["model.networks.channels=4", "model.networks.latent_dim=4", "trainer.gpus=0", "trainer.max_epochs=2"]
SETTINGS += ["callbacks=quiet"]


def the_run(folder: Path) -> Path:
    (found,) = (folder / "runs" / "single").iterdir()
    return found


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(the_run(folder) / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def status(folder: Path) -> dict:
    return json.loads((the_run(folder) / "status.json").read_text())


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The weights of a run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("unbroken")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run_command(SETTINGS) == 0
    return weights(folder)


@pytest.mark.promise(4)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("moment", ["validation_step", "test_step"])
def test_a_signal_outside_a_training_batch_is_heeded(tmp_path, monkeypatch, unbroken, moment, number):
    monkeypatch.chdir(tmp_path)
    original, sent = getattr(TwoPlayerModel, moment), []

    def with_signal(self, batch, batch_idx):
        if not sent:
            sent.append(number)
            os.kill(os.getpid(), number)
        return original(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(TwoPlayerModel, moment, with_signal)
        assert run_command(SETTINGS) == 128 + number
    assert (status(tmp_path)["status"], status(tmp_path)["exit_code"]) == ("interrupted", 128 + number)

    assert run_command(SETTINGS) == 0
    assert (status(tmp_path)["status"], status(tmp_path)["epochs"]) == ("finished", 2)
    got = weights(tmp_path)
    assert unbroken.keys() == got.keys()
    assert all(torch.equal(unbroken[name], got[name]) for name in got)


@pytest.mark.slow
def test_a_run_in_training_is_not_trained_by_a_second_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run_command([*SETTINGS, "trainer.max_epochs=1"]) == 0
    before = (the_run(tmp_path) / "checkpoints" / "last.ckpt").read_bytes()
    with FileLock(the_run(tmp_path) / ".lock"):
        assert run_command(SETTINGS) == 2
    assert "another process" in capsys.readouterr().err
    assert (the_run(tmp_path) / "checkpoints" / "last.ckpt").read_bytes() == before


def test_a_missing_test_split_is_reported_before_the_training(tmp_path, monkeypatch, capsys):
    from PIL import Image

    for name in ("horse", "bird"):
        (tmp_path / "photos" / "train" / name).mkdir(parents=True)
        for index in range(10):
            Image.new("RGB", (32, 32), (index, 0, 0)).save(tmp_path / "photos" / "train" / name / f"{index}.png")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    arguments = ["data=image_folder", f"data.root={tmp_path / 'photos'}", "data.batch_size=4", "trainer.gpus=0"]
    assert run_command(arguments) == 2
    assert "test" in capsys.readouterr().err
    assert list((tmp_path / "here").iterdir()) == []


def test_a_run_without_validation_or_test_still_ends_with_figures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_command([*SETTINGS, "trainer.evaluate_test=false", "trainer.validate_every_n_epochs=5"]) == 0
    assert status(tmp_path)["metrics"]["final/psnr"] == status(tmp_path)["metrics"]["validation/psnr"]


@pytest.mark.promise(4)
def test_a_run_of_one_batch_an_epoch_heeds_a_signal_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    original, steps = TwoPlayerModel.training_step, []

    def with_signal(self, batch, batch_idx):
        steps.append(batch_idx)
        if len(steps) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batch, batch_idx)

    monkeypatch.setattr(TwoPlayerModel, "training_step", with_signal)
    assert run_command([*SETTINGS, "data.batch_size=32", "trainer.max_epochs=50"]) == 143
    assert steps == [0, 0]
    assert (status(tmp_path)["status"], status(tmp_path)["epochs"]) == ("interrupted", 2)
    last = torch.load(the_run(tmp_path) / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["batches_done"] == 2


@pytest.mark.promise(4)
def test_a_sigterm_that_another_handler_ignores_does_not_end_the_run(tmp_path, monkeypatch):
    """Submitit ignores SIGTERM, which Slurm sends with the requeue signal; Lightning would exit with 0."""
    monkeypatch.chdir(tmp_path)
    original, got = TwoPlayerModel.training_step, []

    def with_signal(self, batch, batch_idx):
        if self.batches_done == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batch, batch_idx)

    monkeypatch.setattr(TwoPlayerModel, "training_step", with_signal)
    former = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR2)}
    try:
        for number in former:
            signal.signal(number, lambda number, frame: got.append(number))
        assert run_command(SETTINGS) == 0
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
    assert got == [signal.SIGTERM]
    assert (status(tmp_path)["status"], status(tmp_path)["epochs"]) == ("finished", 2)


@pytest.mark.slow
@pytest.mark.promise(4)
def test_a_signal_to_one_of_two_processes_stops_both(tmp_path):
    arguments = [*SETTINGS, "trainer.cpu_processes=2", "trainer.max_epochs=100000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "pegasus_lightning", *arguments],
        cwd=tmp_path, env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 200
    while not list(tmp_path.glob("runs/single/*/checkpoints/last.ckpt")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    try:
        out, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 143, out
    assert status(tmp_path)["status"] == "interrupted"
