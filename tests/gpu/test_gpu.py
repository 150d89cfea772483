"""What only a GPU can show: exact resumption, a NaN's batch, jobs that share a GPU, equal pegasi, bf16 beside fp32.

Skipped without a GPU. `PEGASUS_GPU_REHEARSAL=1` runs the same tests on the CPU, with data small enough for it.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

REHEARSAL = os.environ.get("PEGASUS_GPU_REHEARSAL") == "1"
GPUS = 0 if REHEARSAL else 1
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not (REHEARSAL or torch.cuda.is_available()), reason="needs a GPU"),
]

PER_CLASS = 40 if REHEARSAL else 400  # silhouettes; 4 or 47 batches of 16 an epoch
SETTINGS = [
    "data=silhouettes",
    f"data.train_per_class={PER_CLASS}",
    "data.test_per_class=10",
    "data.batch_size=16",
    f"model.networks.channels={4 if REHEARSAL else 64}",
    f"trainer.gpus={GPUS}",
    "trainer.precision=bf16",
    "trainer.max_epochs=3",
    "trainer.log_every_n_steps=3",
    "callbacks.image_columns=2",
    "callbacks.image_scale=1",
    "callbacks.progress_bar=false",
]
BATCHES = int(2 * PER_CLASS * 0.95) // 16

# The command with deterministic kernels; STRIKE=kill:N kills it before batch N, STRIKE=nan:N spoils an image there.
COMMAND = """
import importlib, os, signal, sys
import torch
torch.use_deterministic_algorithms(True, warn_only=True)
torch.backends.cudnn.benchmark = False
from pegasus_lightning.models.two_player import TwoPlayerModel
what, _, number = os.environ.get("STRIKE", "").partition(":")
step = TwoPlayerModel.training_step

def struck(self, batch, batch_idx):
    if what and self.batches_done + 1 == int(number):
        if what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        batch[0][0, 0, 0, 0] = float("nan")
    return step(self, batch, batch_idx)

TwoPlayerModel.training_step = struck
module = sys.argv[1]
sys.argv = sys.argv[1:]
importlib.import_module(module + ".__main__").main()
"""


def call(
    folder: Path, *arguments: str, module: str = "pegasus_lightning", strike: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run a command of the package in `folder`."""
    environment = os.environ | {"STRIKE": strike, "CUBLAS_WORKSPACE_CONFIG": ":4096:8", "OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-c", COMMAND, module, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def trained(folder: Path, *overrides: str, strike: str = "") -> Path:
    """Train to the end in `folder`, and return the run's folder."""
    ended = call(folder, *SETTINGS, *overrides, strike=strike)
    assert ended.returncode == 0, ended.stderr
    (run,) = (folder / "runs" / "single").iterdir()
    return run


def digest(run: Path) -> str:
    """SHA-256 over the weights and the optimizers' moments of a run."""
    content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True, map_location="cpu")
    tensors = dict(content["state_dict"])
    for player, optimizer in enumerate(content["optimizer_states"]):
        for index, state in optimizer["state"].items():
            tensors |= {f"{player} {index} {name}": value for name, value in state.items()}
    hasher = hashlib.sha256()
    for name in sorted(tensors):
        hasher.update(name.encode() + tensors[name].contiguous().numpy().tobytes())
    return hasher.hexdigest()


def curve(run: Path, tag: str) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line[tag] for line in lines if tag in line]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("unbroken"))


def test_killed_in_an_epoch_and_resumed_it_is_bit_identical(unbroken: Path, tmp_path: Path) -> None:
    ended = call(tmp_path, *SETTINGS, strike=f"kill:{BATCHES + 2}")
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    resumed = trained(tmp_path)
    assert digest(resumed) == digest(unbroken)
    assert curve(resumed, "loss/reconstruction") == curve(unbroken, "loss/reconstruction")


def test_a_nan_is_named_at_its_batch(tmp_path: Path) -> None:
    batch = BATCHES + 2
    ended = call(tmp_path, *SETTINGS, strike=f"nan:{batch}")
    assert ended.returncode != 0
    assert f"at batch {batch}" in ended.stdout + ended.stderr


def test_two_jobs_share_a_gpu(tmp_path: Path) -> None:
    launcher = ["hydra.launcher.jobs_per_gpu=2", "hydra.launcher.slots=2", "hydra.launcher.report=false"]
    if not REHEARSAL:
        launcher.remove("hydra.launcher.slots=2")
    ended = call(tmp_path, "-m", *SETTINGS, "experiment_name=pair", "seed=0,1", *launcher)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    runs = [path.parent for path in (tmp_path / "runs" / "pair").glob("*/status.json")]
    assert [json.loads((run / "status.json").read_text())["status"] for run in runs] == ["finished"] * 2
    (record,) = (tmp_path / "runs" / "pair").glob("sweep-*/sweep.json")
    jobs = json.loads(record.read_text())["jobs"]
    assert max(job["began"] for job in jobs) < min(job["ended"] for job in jobs)  # at the same time
    assert digest(runs[0]) != digest(runs[1])


def test_the_same_command_makes_the_same_pegasi(unbroken: Path, tmp_path: Path) -> None:
    made = []
    for name in ("one", "two"):
        out = tmp_path / name
        arguments = [f"run={unbroken}", f"out={out}", "count=4", "seed=3", "pegasus.threshold=1", f"gpus={GPUS}"]
        ended = call(tmp_path, *arguments, module="pegasus_lightning.generate")
        assert ended.returncode == 0, ended.stderr
        made.append({path.name: path.read_bytes() for path in out.iterdir() if path.is_file()})
    assert any(name.endswith(".png") for name in made[0])
    assert made[0] == made[1]


def test_the_curve_of_bf16_is_that_of_fp32(unbroken: Path, tmp_path: Path) -> None:
    exact = trained(tmp_path, "trainer.precision=32", "trainer.evaluate_test=false")
    rounded, wanted = (torch.tensor(curve(run, "loss/reconstruction")) for run in (unbroken, exact))
    assert len(rounded) == len(wanted) >= 3
    # Relative rounding of bfloat16 is 2^-9; the pixel term sums 3072 errors of either sign.
    torch.testing.assert_close(rounded, wanted, rtol=0.02, atol=0)
    assert not torch.equal(rounded, wanted)
