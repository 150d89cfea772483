"""Tests of clusters: only one party requeues a run, and the requeued run continues."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from pytorch_lightning.plugins.environments import LightningEnvironment, SLURMEnvironment

from pegasus_lightning.train.callbacks.run_status import RunStatus, requeue_signal
from pegasus_lightning.train.fit import build_trainer
from pegasus_lightning.train.settings import TRAIN, Config
from pegasus_lightning.utils.compose import typed
from pegasus_lightning.utils.devices import choose_devices

SETTINGS = ["data=silhouettes", "data.train_per_class=20", "data.test_per_class=10", "data.batch_size=8", "model=vae"]
SETTINGS += ["model.networks.channels=4", "model.networks.latent_dim=4", "trainer.gpus=0", "trainer.max_epochs=30"]
SETTINGS += ["callbacks=quiet"]


def test_lightning_does_not_requeue_under_slurm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in {"SLURM_NTASKS": "1", "SLURM_JOB_NAME": "sweep", "SLURM_JOB_ID": "7"}.items():
        monkeypatch.setenv(name, value)
    assert SLURMEnvironment.detect()
    settings = typed(TRAIN.compose([*SETTINGS]), Config)
    trainer = build_trainer(settings.trainer, choose_devices(0), logger=False, default_root_dir=tmp_path)
    environment = trainer._accelerator_connector.cluster_environment
    assert type(environment) is LightningEnvironment
    before = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGUSR2)}
    trainer._signal_connector.register_signal_handlers()
    try:
        assert {number: signal.getsignal(number) for number in before} == before
    finally:
        trainer._signal_connector.teardown()


@pytest.fixture
def requeuing() -> Iterator[list[int]]:
    """Handlers of SIGUSR2 and SIGTERM as submitit installs them; the signals they received."""
    got: list[int] = []
    former = {number: signal.getsignal(number) for number in (signal.SIGUSR2, signal.SIGTERM)}
    for number in former:
        signal.signal(number, lambda number, frame: got.append(number))
    yield got
    for number, handler in former.items():
        signal.signal(number, handler)


def test_the_signal_to_requeue_is_held_back_until_the_run_has_saved(requeuing: list[int]) -> None:
    assert requeue_signal() == signal.SIGUSR2
    status = RunStatus(lambda **fields: None, lambda trainer: None)
    status.install_handlers()
    signal.raise_signal(signal.SIGTERM)  # Slurm sends it too; submitit ignores it
    assert (status.received, requeuing) == (None, [signal.SIGTERM])
    signal.raise_signal(signal.SIGUSR2)
    assert (status.received, requeuing) == (signal.SIGUSR2, [signal.SIGTERM])
    status.restore_handlers()
    signal.raise_signal(signal.SIGUSR2)
    assert requeuing == [signal.SIGTERM, signal.SIGUSR2]


def test_without_requeuing_the_run_handles_the_signals_itself() -> None:
    assert requeue_signal() is None
    before = signal.getsignal(signal.SIGUSR2)
    status = RunStatus(lambda **fields: None, lambda trainer: None)
    status.install_handlers()
    assert signal.getsignal(signal.SIGUSR2) == before
    signal.raise_signal(signal.SIGTERM)
    status.restore_handlers()
    assert status.received == signal.SIGTERM


def test_the_preset_for_slurm_is_whole() -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher.config")
    launcher = TRAIN.compose(["hydra/launcher=slurm", "hydra.launcher.partition=gpu"], with_hydra=True).hydra.launcher
    assert launcher._target_.endswith("SlurmLauncher")
    assert (launcher.gpus_per_node, launcher.tasks_per_node, launcher.nodes) == (1, 1, 1)
    assert launcher.max_num_timeout > 0  # else submitit gives up at the first time limit
    assert launcher.signal_delay_s >= 60
    assert OmegaConf.missing_keys(launcher) == set()


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", "pegasus_lightning", *SETTINGS, *arguments],
        cwd=folder,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (path,) = folder.glob("runs/single/vae*/checkpoints/last.ckpt")
    return torch.load(path, weights_only=True)["state_dict"]


@pytest.mark.slow
def test_submitit_queues_a_run_again_and_it_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    unbroken = start(tmp_path / "unbroken")
    sweep = start(tmp_path / "sweep", "-m", "hydra/launcher=submitit_local")
    deadline = time.monotonic() + 200
    while not (found := list(tmp_path.glob("sweep/runs/single/vae*/checkpoints/last.ckpt"))):
        assert sweep.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    status = found[0].parent.parent / "status.json"
    os.kill(json.loads(status.read_text())["pid"], signal.SIGUSR2)
    for process in (sweep, unbroken):
        out, _ = process.communicate(timeout=300)
        assert process.returncode == 0, out
    said = "".join(path.read_text() for path in tmp_path.glob("sweep/runs/single/.submitit/*/*_log.out"))
    assert said.count("Requeued job") == 1
    assert "The run was stopped by SIGUSR2" in said
    assert "Continuing from last.ckpt" in said
    assert json.loads(status.read_text())["status"] == "finished"
    wanted, got = weights(tmp_path / "unbroken"), weights(tmp_path / "sweep")
    assert all(torch.equal(wanted[name], got[name]) for name in wanted)
