"""Tests of what a sweep does around its runs: dry runs and their estimate before, evaluations after."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from pegasus_lightning.launch import judging, trial
from pegasus_lightning.launch.command import run_command
from pegasus_lightning.launch.jobs import Job, State
from pegasus_lightning.launch.planning import Planned, jobs_of, plan
from pegasus_lightning.launch.slots import Slot
from pegasus_lightning.train.settings import TRAIN
from pegasus_lightning.utils.compose import plain
from pegasus_lightning.utils.errors import Interrupted

SWEEP = ["model=vae,acai", "seed=0,1,2", "data=silhouettes", "trainer.max_epochs=1000"]


def planned(*more: str) -> list[Planned]:
    return [plan(TRAIN.compose(job, with_hydra=True), job) for job in jobs_of([*SWEEP, *more], True)]


def test_each_configuration_is_tried_once_with_its_first_seed(tmp_path: Path) -> None:
    runs = planned(f"runs_dir={tmp_path}")
    assert trial.is_long(runs)
    trials, counts = trial.trials_of(runs)
    assert counts == [3, 3]
    assert [(one.config.model.name, one.config.seed) for one in trials] == [("vae", 0), ("acai", 0)]
    for one, run in zip(trials, runs[::3], strict=True):
        assert (one.config.trainer.max_epochs, one.config.trainer.dry_run) == (1, True)
        assert one.folder == tmp_path / ".dry_run" / run.folder.name
        # The job's own process finds the same folder.
        again = plan(TRAIN.compose(one.overrides, with_hydra=True), one.overrides)
        assert again.folder == one.folder and plain(again.config) == plain(one.config)
    runs[4].folder.mkdir(parents=True)
    assert not trial.is_long(runs), "a sweep that goes on is not tried again"
    assert not trial.is_long(planned("trainer.max_epochs=100", f"runs_dir={tmp_path / 'other'}"))


def test_the_estimate_is_the_sum_over_the_runs_shared_by_the_slots(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = planned(f"runs_dir={tmp_path}", "trainer.max_time=1h")
    trials, counts = trial.trials_of(runs)
    jobs = []
    for index, (one, seconds) in enumerate(zip(trials, (1800.0, 7200.0), strict=True), start=1):
        one.folder.mkdir(parents=True)
        figures = {"seconds": seconds, "bytes": 200_000_000 * index}
        (one.folder / "status.json").write_text(json.dumps({"status": "finished", "dry_run": figures}))
        state = State.FINISHED
        jobs.append(Job(index, one.folder.name, [], one.folder, [], tmp_path / "log", 1, state))
    # 3 runs of half an hour, 3 of two hours that max_time ends after one, each in the first of 2 free slots:
    # (.5 + .5 + 1 = 2 h) and (.5 + 1 + 1 = 2.5 h). 3 * (.2 + .4) GB.
    line = trial.conclude(jobs, [runs[0], runs[3]], counts, 2)
    assert line.startswith("6 runs take about 2 h 30 min, 2 at a time, and 1.8 GB of disk (")
    assert not (tmp_path / ".dry_run").exists()
    jobs[0].state, jobs[0].reason = State.FAILED, "out of memory"
    assert trial.conclude(jobs, [runs[0], runs[3]], counts, 2) == ""
    assert f"{jobs[0].shown} does not work: out of memory" in capsys.readouterr().err


# In place of the evaluation: write the slot's number, and fail for the run "bad".
FAKE = """import os, sys, time
runs = [word[4:] for word in sys.argv[1:]]
if len(runs) > 1:
    print("compared", *map(os.path.basename, runs))
else:
    open(runs[0] + ".judged", "w").write(os.environ["SLOT"])
    time.sleep(float(os.environ["PAUSE"]))
    sys.exit(runs[0].endswith("bad"))
"""


@pytest.mark.slow
def test_runs_are_evaluated_side_by_side_and_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(judging, "COMMAND", [sys.executable, "-c", FAKE])
    monkeypatch.setenv("PAUSE", "0.5")
    runs, slots = [tmp_path / name for name in ("a", "bad", "c")], [Slot(f"CPU {n}", {"SLOT": n}) for n in "12"]
    assert not judging.evaluate(runs, slots, tmp_path / "logs"), "one failed"
    assert {run.name: Path(f"{run}.judged").read_text() for run in runs[:2]} == {"a": "1", "bad": "2"}
    out = capfd.readouterr().out
    assert "compared a c" in out, "the run that failed is left out"
    assert f"bad: failed, see {tmp_path / 'logs' / 'evaluate-bad.log'}" in out

    monkeypatch.setenv("PAUSE", "60")
    threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM)).start()
    began = time.monotonic()
    with pytest.raises(Interrupted) as error:
        judging.evaluate(runs, slots, tmp_path)
    assert error.value.exit_code == 143
    assert time.monotonic() - began < 30


def test_a_dry_run_never_stands_beside_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["-m", *SWEEP, "trainer.dry_run=false,true"]) == 2  # its folder would be removed
    assert "trainer.dry_run holds for a whole sweep" in capsys.readouterr().err


def test_a_path_with_accents_reaches_the_recognisers_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = tmp_path / "said"
    monkeypatch.setattr(
        judging, "COMMAND", [sys.executable, "-c", f"import sys; open({str(said)!r}, 'w').write(repr(sys.argv[1:]))"]
    )
    data = OmegaConf.create({"source": "image_folder", "root": "données, 1", "classes": ["马", "bird"], "cache": None})
    assert judging.train_recognisers(data)
    assert said.read_text() == repr(
        [
            "prepare=true",
            "data=image_folder",
            'data.root="données, 1"',
            'data.classes=["马", "bird"]',
            "data.cache=null",
        ]
    )


@pytest.mark.slow
def test_a_dry_sweep_tries_every_run_and_keeps_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["pegasus_lightning"])
    small = ["data=silhouettes", "data.train_per_class=40", "data.test_per_class=10", "data.batch_size=8"]
    small += ["model.networks.channels=4", "model.networks.latent_dim=4", "callbacks.image_columns=2"]
    assert run_command(["-m", *small, "model=vae,acai", "trainer.dry_run=true"]) == 0
    assert "All of it works: 2 dry runs." in capsys.readouterr().out
    assert not Path("runs/.dry_run").exists()
