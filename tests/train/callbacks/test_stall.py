"""A training that hangs is noticed, and says where."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pegasus_lightning.data.batches import TrainBatches
from pegasus_lightning.launch.command import run_command

pytestmark = pytest.mark.promise(21)
SETTINGS = [
    "model=vae",
    "data=silhouettes",
    "data.train_per_class=20",
    "data.test_per_class=10",
    "data.batch_size=12",
    "data.validation_fraction=0.1",
    "model.networks.channels=4",
    "trainer.gpus=0",
    "trainer.max_epochs=1",
    "trainer.stall_after=2s",
    "callbacks=quiet",
]


@pytest.mark.slow
def test_where_a_run_hangs_is_said_and_a_single_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    original, seen = TrainBatches.__iter__, []

    def a_source_that_hangs(self: TrainBatches) -> object:
        for number, batch in enumerate(original(self)):
            if number == 1:
                time.sleep(3)
                (path,) = Path("runs/single").glob("*/status.json")
                seen.append(json.loads(path.read_text()))
            yield batch

    monkeypatch.setattr(TrainBatches, "__iter__", a_source_that_hangs)
    assert run_command(SETTINGS) == 0
    (run,) = Path("runs/single").iterdir()
    log = (run / "train.log").read_text()
    assert "stalled: no batch for 2 s (trainer.stall_after)" in log
    assert "in a_source_that_hangs" in log
    assert "train.log says where it hangs" in capsys.readouterr().err
    assert seen[0]["status"] == "running"
    assert seen[0]["stalled"].endswith(": no batch for 2 s; train.log says where")
    status = json.loads((run / "status.json").read_text())
    assert (status["status"], status["stalled"]) == ("finished", None)


@pytest.mark.slow
def test_in_a_sweep_a_run_that_hangs_fails_and_ends(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys, threading, time\n"
        "if 'pegasus_lightning.launch.job_process' in sys.orig_argv and 'seed=1' in sys.orig_argv:\n"
        "    from pegasus_lightning.data.batches import TrainBatches\n"
        "    TrainBatches.__iter__ = lambda self: time.sleep(1000)\n"
    )
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "pegasus_lightning", "-m", *SETTINGS, "seed=0,1", "hydra.launcher.slots=2"]
    ended = subprocess.run(
        [*command, "trainer.stall_after=10s"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert ended.returncode == 1, ended.stdout
    found = {path.parent.name: json.loads(path.read_text()) for path in tmp_path.glob("runs/single/*/status.json")}
    assert sorted(status["status"] for status in found.values()) == ["failed", "finished"]
    (failed,) = (status for status in found.values() if status["status"] == "failed")
    assert failed["reason"] == "stalled: no batch for 10 s (trainer.stall_after); train.log says where"
    assert "stalled: no batch for 10 s" in " ".join(ended.stdout.split())
