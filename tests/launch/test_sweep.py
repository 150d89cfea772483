"""Tests of whole sweeps, with small programs instead of trainings, and (slow) with real ones."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from pegasus_lightning.launch import pool as pool_module
from pegasus_lightning.launch import sweep as sweep_module
from pegasus_lightning.launch.jobs import Job, read_jobs
from pegasus_lightning.launch.planning import Planned, plan
from pegasus_lightning.launch.sweep import PoolSettings, run_sweep
from pegasus_lightning.train.settings import TRAIN
from pegasus_lightning.utils.errors import UserError

FINE = """
import json, os, sys
from pathlib import Path
os.makedirs(sys.argv[1], exist_ok=True)
metrics = {"validation/psnr": float(sys.argv[2])}
fields = {"status": "finished", "exit_code": 0, "pid": os.getpid(), "epochs": 2, "metrics": metrics}
Path(sys.argv[1], "status.json").write_text(json.dumps(fields))
Path(sys.argv[1], "times").open("a").write("x")
"""
QUICK = PoolSettings(slots=2, report=False)


def planned(*seeds: int) -> list[Planned]:
    runs = []
    for seed in seeds:
        overrides = ["data=silhouettes", "trainer.gpus=0", "trainer.max_epochs=2", f"seed={seed}", "model=vae"]
        runs.append(plan(TRAIN.compose(overrides, with_hydra=True), overrides))
    return runs


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[int, str]:
    """The program of each job by number, instead of training; FINE for others."""
    chosen: dict[int, str] = {}
    make = sweep_module.job_of

    def with_program(number: int, run: Planned, logs: Path) -> Job:
        job = make(number, run, logs)
        job.command = [sys.executable, "-c", chosen.get(number, FINE), str(job.folder), str(20 + number)]
        return job

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep_module, "job_of", with_program)
    monkeypatch.setattr(pool_module, "POLL", 0.02)
    return chosen


@pytest.mark.promise(5)
def test_a_failure_makes_the_exit_code_1_and_is_listed_with_its_log(
    programs: dict[int, str], capsys: pytest.CaptureFixture
) -> None:
    programs[2] = "print('some words before'); raise ValueError('not today')"
    runs = planned(0, 1, 2)
    assert run_sweep(runs, QUICK) == 1
    out = capsys.readouterr().out
    assert "2 of 3 runs finished." in out
    assert "some words before" in out and "ValueError: not today" in out
    assert out.index("23.00") < out.index("21.00")  # ranked, the best first
    (file,) = Path("runs/single").glob("sweep-*/sweep.json")
    assert [job["state"] for job in read_jobs(file)] == ["finished", "failed", "finished"]
    assert "not today" in Path(read_jobs(file)[1]["log"]).read_text()


@pytest.mark.promise(7)
def test_run_again_finished_runs_are_left_alone_and_the_rest_is_done(
    programs: dict[int, str], capsys: pytest.CaptureFixture
) -> None:
    programs[2] = "raise SystemExit(5)"
    assert run_sweep(planned(0, 1, 2), QUICK) == 1
    del programs[2]
    capsys.readouterr()
    assert run_sweep(planned(0, 1, 2), QUICK) == 0
    assert "2 finished before, 1 to do" in capsys.readouterr().out
    assert [(run.folder / "times").read_text() for run in planned(0, 1, 2)] == ["x", "x", "x"]
    # Other runs are another sweep, with logs of its own; what both have is still finished.
    assert run_sweep(planned(1, 2, 3), QUICK) == 0
    assert len(list(Path("runs/single").glob("sweep-*"))) == 2
    assert [(run.folder / "times").read_text() for run in planned(0, 1, 2, 3)] == ["x"] * 4


def test_a_sweep_is_not_run_twice_at_a_time(programs: dict[int, str]) -> None:
    runs = planned(0, 1)
    assert run_sweep(runs, QUICK) == 0
    (folder,) = Path("runs/single").glob("sweep-*")
    with FileLock(folder / ".lock"), pytest.raises(UserError, match="running already"):
        run_sweep(runs, QUICK)


def test_a_page_that_cannot_be_made_does_not_make_the_runs_fail(
    programs: dict[int, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    import pegasus_lightning.report.page as page

    def broken(*arguments: Any) -> None:
        raise RuntimeError("no ink")

    monkeypatch.setattr(page, "write_report", broken)
    assert run_sweep(planned(0), PoolSettings(slots=1)) == 0
    assert "no ink" in capsys.readouterr().err


def test_what_cannot_be_shown_does_not_end_the_sweep(
    programs: dict[int, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def broken(self: Any, jobs: Any) -> None:
        raise RuntimeError("no screen")

    monkeypatch.setattr(sweep_module.LiveTable, "update", broken)
    assert run_sweep(planned(0, 1), QUICK) == 0
    assert capsys.readouterr().err.count("no screen") == 1


def test_the_page_shows_the_run_that_failed_too(programs: dict[int, str]) -> None:
    programs[1] = "raise SystemExit('gone wrong')"
    assert run_sweep(planned(0, 1), PoolSettings(slots=2)) == 1
    (path,) = Path("runs/single").glob("sweep-*/report.html")
    page = path.read_text()
    assert "-s0" in page and "-s1" in page
    assert "gone wrong" in page


# With real trainings: 36 images in batches of 12 are 3 batches an epoch.

SETTINGS = [
    "data=silhouettes",
    "data.train_per_class=20",
    "data.validation_fraction=0.1",
    "data.test_per_class=10",
    "data.batch_size=12",
    "model.networks.channels=4",
    "model.networks.latent_dim=8",
    "trainer.gpus=0",
    "trainer.max_epochs=12",
    "callbacks=quiet",
    "hydra.launcher.slots=2",
]
SWEEP = ["-m", "model=vae", "seed=0,1,2"]


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pegasus_lightning", *SETTINGS, *arguments],
        cwd=folder,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "2"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def weights(folder: Path) -> dict[str, str]:
    """SHA-256 of all weights, by run."""
    found = {}
    for path in sorted(folder.glob("runs/single/*/checkpoints/last.ckpt")):
        digest = hashlib.sha256()
        for name, value in sorted(torch.load(path, weights_only=True)["state_dict"].items()):
            digest.update(name.encode() + value.contiguous().numpy().tobytes())
        found[path.parent.parent.name] = digest.hexdigest()
    return found


def statuses(folder: Path) -> dict[str, dict[str, Any]]:
    return {path.parent.name: json.loads(path.read_text()) for path in folder.glob("runs/single/*/status.json")}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    process = start(folder, *SWEEP)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    return folder


@pytest.mark.slow
@pytest.mark.promise(7)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_sweep_that_was_stopped_is_continued_to_the_same_weights(unbroken: Path, tmp_path: Path, number: int) -> None:
    process = start(tmp_path, *SWEEP)
    deadline = time.monotonic() + 200
    while len(weights_there := list(tmp_path.glob("runs/single/*/checkpoints/last.ckpt"))) < 1:
        assert process.poll() is None and time.monotonic() < deadline, weights_there
        time.sleep(0.05)
    process.send_signal(number)
    out, _ = process.communicate(timeout=200)
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 128 + number
        assert "Run the same command again to continue it" in out
        reached = {name: (status["status"], status["reason"]) for name, status in statuses(tmp_path).items()}
        assert {state for state, _ in reached.values()} <= {"interrupted", "finished"}, reached

    process = start(tmp_path, *SWEEP)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    assert weights(tmp_path) == weights(unbroken)
    assert {status["status"] for status in statuses(tmp_path).values()} == {"finished"}


@pytest.mark.slow
@pytest.mark.promise(7)
@pytest.mark.promise(8)
def test_a_changed_configuration_is_never_mixed_in(unbroken: Path) -> None:
    before = {name: status["updated"] for name, status in statuses(unbroken).items()}
    old = weights(unbroken)
    process = start(unbroken, *SWEEP, "model.weights.kl=0.5", "trainer.max_epochs=1")
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    assert "3 to do" in out
    now = statuses(unbroken)
    assert len(now) == 6
    assert {name: now[name]["updated"] for name in before} == before
    assert {name: digest for name, digest in weights(unbroken).items() if name in old} == old


@pytest.mark.slow
@pytest.mark.promise(5)
@pytest.mark.promise(13)
def test_a_training_that_explodes_leaves_the_others_alone(tmp_path: Path) -> None:
    (tmp_path / "mine" / "model").mkdir(parents=True)
    explodes = "defaults: [vae]\nautoencoder_optimizer:\n  lr: 1e12\n"
    (tmp_path / "mine" / "model" / "explodes.yaml").write_text(explodes)
    arguments = ["-m", "--config-dir=mine", "model=vae,explodes", "trainer.max_epochs=1"]
    process = start(tmp_path, *arguments)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 1, out
    found = {name.partition(",")[0]: status for name, status in statuses(tmp_path).items()}
    assert (found["vae"]["status"], found["explodes"]["status"]) == ("finished", "failed")
    assert "became NaN or infinite at batch" in found["explodes"]["reason"]
    assert "became NaN or infinite at batch" in out
    (page,) = tmp_path.glob("runs/single/sweep-*/report.html")
    assert "explodes" in page.read_text()
