"""Tests of a search over settings, with small programs instead of trainings, and (slow) with real ones."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from pegasus_lightning.launch import pool as pool_module
from pegasus_lightning.launch import search as search_module
from pegasus_lightning.launch.best import in_batches, in_full
from pegasus_lightning.launch.command import run_command
from pegasus_lightning.launch.jobs import Job, read_jobs
from pegasus_lightning.launch.planning import Planned, jobs_of, plan
from pegasus_lightning.launch.search import run_search
from pegasus_lightning.launch.settings import PoolSettings, SearchSettings
from pegasus_lightning.launch.space import read_space
from pegasus_lightning.runs.state import state_of
from pegasus_lightning.train.settings import TRAIN
from pegasus_lightning.utils.errors import UserError

optuna = pytest.importorskip("optuna")

# Writes status.json as a training does. The value is best, 20, for a learning rate of 1e-3.
SAY = """
import json, math, os, signal, sys, time
from pathlib import Path
folder, lr = Path(sys.argv[1]), float(sys.argv[2])
value = 20 - abs(math.log10(lr) + 3)
def say(status, epochs, value, **more):
    os.makedirs(folder, exist_ok=True)
    fields = {"status": status, "exit_code": None, "reason": None, "pid": os.getpid(), "epochs": epochs}
    (folder / "new").write_text(json.dumps(fields | {"metrics": {"validation/psnr": value}} | more))
    os.replace(folder / "new", folder / "status.json")
(folder.parent / "begun").open("a").write(sys.argv[1] + chr(10))
"""
FINE = "say('finished', 4, value, exit_code=0)"
FIXED = ["data=silhouettes", "trainer.gpus=0", "trainer.max_epochs=4", "model=vae"]
LR = "model.autoencoder_optimizer.lr=tag(log,interval(1e-5,1e-1))"
ONE = PoolSettings(slots=1, report=False)
HOME = Path("runs/single")


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[int, str]:
    """The program of each trial by number, instead of training; FINE for others."""
    chosen: dict[int, str] = {}
    make = search_module.job_of

    def with_program(number: int, run: Planned, logs: Path) -> Job:
        job = make(number, run, logs)
        lr = str(run.config.model.autoencoder_optimizer.lr)
        job.command = [sys.executable, "-c", SAY + chosen.get(number, FINE), str(job.folder), lr]
        return job

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(search_module, "job_of", with_program)
    monkeypatch.setattr(pool_module, "POLL", 0.02)
    return chosen


def search(trials: int, *more: str, pool: PoolSettings = ONE, **settings: Any) -> int:
    return run_search([*FIXED, *(more or [LR])], SearchSettings(n_trials=trials, **settings), pool)


def drawn() -> list[str]:
    """The learning rates of the search's trials, as typed."""
    (file,) = HOME.glob("search-*/sweep.json")
    return [text for job in read_jobs(file) for text in job["overrides"] if text.startswith(LR.partition("=")[0])]


def states() -> list[str]:
    (file,) = HOME.glob("search-*/sweep.json")
    return [job["state"] for job in read_jobs(file)]


def begun() -> int:
    return len((HOME / "begun").read_text().splitlines())


def test_values_are_drawn_in_their_range_and_rounded_inside_it() -> None:
    texts = ["a=interval(0.99,0.99999)", "b=int(interval(2,9))", "c=range(16,64,16)", "d=null,0.5", "e=1", "b=3,4"]
    fixed, space = read_space({"e": "interval(0,1)", "f": "tag(log,interval(1e-3,1))"}, texts)
    assert fixed == ["e=1"]
    by_key = {dimension.key: dimension for dimension in space}
    assert list(by_key) == ["e", "f", "a", "b", "c", "d"][1:]
    assert by_key["a"].written(0.999876) == "a=0.9999" and by_key["a"].written(0.999987) == "a=0.999987"
    assert by_key["f"].written(0.00123456) == "f=0.001235" and by_key["f"].log
    assert by_key["b"].choices == ("3", "4"), "the last of several values of a setting counts"
    c = by_key["c"].distribution()
    assert (c.low, c.high, c.step) == (16, 48, 16), "as in a sweep, a range leaves its end out"
    assert by_key["c"].probes() == ["c=16", "c=48"] and by_key["d"].probes() == ["d=null", "d=0.5"]


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("interval(1e-2,1e-4)", "write the lower end first"),
        ("tag(log,interval(0,1))", "begin above 0"),
        ("interval(1e-4", "a search also takes interval"),
        ("interval(-1,1)", "must be at least 0"),
        ("1e-3", "There is nothing to search"),
    ],
)
def test_a_wrong_space_is_one_sentence_and_creates_nothing(
    typed: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["-m", "hydra/sweeper=optuna", *FIXED, f"model.autoencoder_optimizer.lr={typed}"]
    assert run_command(words) == 2
    message = capsys.readouterr().err
    assert said in message and message.count("\n") == 1
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("hydra.launcher.rank_by=final/psnr", "test split, which is not for choosing"),
        ("seed=0,1", "give seed one value"),
        ("trainer.max_epochs=2,3", "trainer.max_epochs makes no other run"),
        ("hydra.sweeper.n_trials=0", "must be at least 1"),
        ("hydra.sweeper.n_trails=9", "Did you mean 'n_trials'?"),
        ("resume=must", "leave resume=must out"),
        (f"run_name={58 * 'x'}", "use at most 57 characters"),  # 60 with "-01"
    ],
)
def test_what_a_search_cannot_do_is_one_sentence(
    word: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_command(["-m", "hydra/sweeper=optuna", *FIXED, LR, word]) == 2
    message = capsys.readouterr().err
    assert said in message and message.count("\n") == 1
    assert not [*tmp_path.iterdir()]


def test_without_the_package_the_command_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("pegasus_lightning.launch.space.find_spec", lambda name: None)
    assert run_command(["-m", "experiment=search_baseline", "data=silhouettes"]) == 2
    assert "pip install -e '.[search]'" in capsys.readouterr().err


def test_the_best_trial_comes_first_with_the_command_that_trains_it_in_full(
    programs: dict[int, str], capsys: pytest.CaptureFixture
) -> None:
    assert search(4, random_trials=2) == 0
    out = capsys.readouterr().out
    rates = [float(text.partition("=")[2]) for text in drawn()]
    assert len(set(rates)) == 4 and all(1e-5 <= rate <= 1e-1 for rate in rates)
    # By hand: the value is 20 less the distance of the exponent from -3.
    best, *others = sorted(range(1, 5), key=lambda number: abs(math.log10(rates[number - 1]) + 3))
    table = out[out.index("Settings, best first") : out.index("The best is")]
    assert [int(line.split()[0]) for line in table.splitlines() if line[:2].isdigit()] == [best, *others]
    assert f"The best is trial {best:02}, " in out
    typed = out[out.rindex("python -m") :].replace("\\\n", " ").split()[3:]
    full = plan(TRAIN.compose(typed, with_hydra=True), typed)
    assert full.config.trainer.max_epochs == 1000
    assert full.config.model.autoencoder_optimizer.lr == rates[best - 1]
    assert full.folder.parent == Path("runs/single_best")


def test_in_full_drops_the_limits_of_a_trial_and_keeps_its_settings() -> None:
    trial = ["experiment=search_baseline", "data=silhouettes", "trainer.max_time=5m", "model.weights.kl=2"]
    assert in_full([*trial, "trainer.gpus=0", "trainer.max_epochs=3", "run_name=search-1a2b-07"]) == [
        "experiment=search_baseline",
        "data=silhouettes",
        "model.weights.kl=2",
        "trainer.gpus=0",
        "experiment_name=search_baseline_best",
        "trainer.max_epochs=1000",
    ]


def test_settings_that_count_batches_are_named_as_they_stay() -> None:
    adam = "model.autoencoder_optimizer"
    words = ["data=silhouettes", f"{adam}.schedule=linear", f"{adam}.schedule_batches=150", "model.kl_warmup=20"]
    assert in_batches([*words, f"{adam}.lr=0.01"]) == ["model.kl_warmup=20", f"{adam}.schedule_batches=150"]
    assert in_batches(words[:1]) == []


@pytest.mark.slow
@pytest.mark.promise(7)
def test_the_same_command_goes_on_to_the_trials_of_an_unbroken_search(
    programs: dict[int, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    assert search(4, random_trials=2) == 0
    unbroken = drawn()
    (tmp_path / "broken").mkdir()
    monkeypatch.chdir(tmp_path / "broken")
    prepare = search_module.Search.prepare

    def dies(self: search_module.Search, job: Job) -> bool:
        if job.number == 3:
            self.study.ask({})  # killed while its settings are drawn
            with (self.folder / "journal.log").open("ab") as file:
                file.write(b'{"op_code":4,"wor')  # and while a line is written
            raise KeyboardInterrupt
        return prepare(self, job)

    monkeypatch.setattr(search_module.Search, "prepare", dies)
    with pytest.raises(KeyboardInterrupt):
        search(4, random_trials=2)
    assert begun() == 2
    monkeypatch.setattr(search_module.Search, "prepare", prepare)
    capsys.readouterr()
    assert search(4, random_trials=2) == 0
    assert "2 finished before, 2 to do" in capsys.readouterr().out
    assert drawn() == unbroken and begun() == 4
    # A larger number adds trials to those that are there.
    assert search(5, random_trials=2) == 0 and begun() == 5
    assert drawn()[:4] == unbroken and len(set(drawn())) == 5
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    assert search(1, seed=1) == 0
    assert drawn()[0] not in unbroken


def test_a_trial_that_diverges_is_a_failure_that_is_not_tried_again(
    programs: dict[int, str], capsys: pytest.CaptureFixture
) -> None:
    programs[2] = "say('failed', 1, 5, exit_code=1, reason='kl became NaN or infinite at batch 3.'); sys.exit(1)"
    programs[3] = "raise ValueError('the disk is full')"
    assert search(3) == 1
    assert states() == ["finished", "failed", "failed"]
    first = drawn()
    del programs[3]
    assert search(3) == 1
    assert states() == ["finished", "failed", "finished"], "another cause may have gone"
    assert drawn() == first and begun() == 4
    assert "became NaN or infinite" in capsys.readouterr().out


LONG = """
def end(*signal):
    say('interrupted', 2, value, exit_code=143, reason='stopped by SIGTERM')
    sys.exit(143)
signal.signal(signal.SIGTERM, end)
for epoch in (1, 2, 3):
    say('running', epoch, value)
    time.sleep(1.0 if epoch == 2 and value < 19 else 0.1)
say('finished', 4, value, exit_code=0)
"""


class InOrder(optuna.samplers.RandomSampler):
    """Draws these learning rates, one after the other."""

    def __init__(self, **settings: Any) -> None:
        self.number = settings.get("seed", 0)
        super().__init__()

    def sample_independent(self, *arguments: Any, **keywords: Any) -> str:
        return ("0.01", "0.001", "0.0001", "1e-05")[self.number]


@pytest.mark.slow
def test_a_trial_worse_than_the_median_at_its_epoch_is_pruned_and_stays_so(
    programs: dict[int, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    # Three trials of 20 - 1, 20 - 0 and 20 - 1; the fourth is two decades off, and is ended after two epochs.
    programs |= dict.fromkeys((1, 2, 3, 4), LONG)
    monkeypatch.setattr(optuna.samplers, "TPESampler", InOrder)
    space = f"{LR.partition('=')[0]}=1e-2,1e-3,1e-4,1e-5"
    for _ in range(2):
        assert search(4, space, prune_after_trials=3, prune_after_epochs=2) == 0
        assert states() == ["finished", "finished", "finished", "pruned"]
        assert begun() == 4, "what is pruned is not trained again"
        (path,) = HOME.glob("trial-*-04-*/status.json")
        status = json.loads(path.read_text())
        assert (status["status"], state_of(status, False), status["epochs"]) == ("interrupted", "pruned", 2)
        assert status["reason"].startswith("pruned at epoch 2 of 4, as validation/psnr 18.00 is worse")
        assert "3 of 4 runs finished, 1 pruned." in capsys.readouterr().out
        # The journal counts: a kill of the sweep may leave another reason.
        path.write_text(json.dumps(status | {"reason": "stopped by SIGTERM"}))


def four_trials(programs: dict[int, str], monkeypatch: pytest.MonkeyPatch, at_the_signal: str) -> str:
    """Let the fourth trial be told to end early, and do this then. Return the space."""
    programs |= dict.fromkeys((1, 2, 3), LONG)
    programs[4] = LONG.replace(LONG[LONG.index("    say('inter") : LONG.index("signal.signal")], at_the_signal)
    monkeypatch.setattr(optuna.samplers, "TPESampler", InOrder)
    return f"{LR.partition('=')[0]}=1e-2,1e-3,1e-4,1e-5"


@pytest.mark.slow
def test_a_trial_that_finishes_before_it_can_be_pruned_is_finished(
    programs: dict[int, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    # Its patience has ended, and the signal comes too late.
    ends = """
    say('finished', 3, value, exit_code=0, stopped_by='trainer.patience', limits={'monitor': 'validation/psnr'})
    sys.exit(0)
"""
    space, contents = four_trials(programs, monkeypatch, ends), []
    for _ in range(2):
        assert search(4, space, prune_after_trials=3, prune_after_epochs=2) == 0
        assert states() == ["finished"] * 4 and begun() == 4
        (path,) = HOME.glob("trial-*-04-*/status.json")
        contents.append(path.read_text())
        out = capsys.readouterr().out
        assert "4 of 4 runs finished." in out
        table = out[out.index("Settings, best first") : out.index("The best is")]
        assert [line.split()[:2] for line in table.splitlines() if line[:2].isdigit()][-1] == ["04", "18.00"]
    assert contents[0] == contents[1] and json.loads(contents[0])["status"] == "finished"


@pytest.mark.slow
@pytest.mark.parametrize("retries", [0, 1])
def test_a_trial_killed_while_it_is_pruned_is_pruned(
    programs: dict[int, str], monkeypatch: pytest.MonkeyPatch, retries: int
) -> None:
    space = four_trials(programs, monkeypatch, "    os.kill(os.getpid(), 9)\n")
    pool = PoolSettings(slots=1, report=False, retries=retries)
    assert search(4, space, pool=pool, prune_after_trials=3, prune_after_epochs=2) == 0
    assert states() == ["finished"] * 3 + ["pruned"] and begun() == 4


@pytest.mark.slow
def test_a_trial_that_was_to_be_pruned_when_the_search_died_is_pruned(
    programs: dict[int, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    programs |= dict.fromkeys((1, 2, 3, 4), LONG)
    monkeypatch.setattr(optuna.samplers, "TPESampler", InOrder)
    space = f"{LR.partition('=')[0]}=1e-2,1e-3,1e-4,1e-5"
    end_early = pool_module.Pool._end_early

    def dies(self: pool_module.Pool) -> None:
        if any(job.end_early for job in self.jobs):
            raise KeyboardInterrupt
        end_early(self)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(pool_module.Pool, "_end_early", dies)
        search(4, space, prune_after_trials=3, prune_after_epochs=2)
    for _ in range(2):
        assert search(4, space, prune_after_trials=3, prune_after_epochs=2) == 0
        assert states() == ["finished"] * 3 + ["pruned"] and begun() == 4
    (path,) = HOME.glob("trial-*-04-*/status.json")
    assert state_of(json.loads(path.read_text()), False) == "pruned"


def test_a_full_disk_does_not_end_the_search_and_its_journal_stays_whole(
    programs: dict[int, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from optuna.storages.journal import JournalFileBackend
    from optuna.storages.journal._storage import JournalOperation

    append, left = JournalFileBackend.append_logs, [3]

    def full(self: Any, logs: list[dict[str, Any]]) -> None:
        if logs[0]["op_code"] == JournalOperation.SET_TRIAL_STATE_VALUES and left[0]:
            left[0] -= 1
            with open(self._file_path, "ab") as file:
                file.write(b'{"op_code":6,"wor')
            raise OSError(errno.ENOSPC, "No space left on device")
        append(self, logs)

    monkeypatch.setattr(JournalFileBackend, "append_logs", full)
    assert search(3) == 0
    assert left == [0] and begun() == 3
    assert capsys.readouterr().err.count("The search goes on, but its journal cannot be written") == 1
    (path,) = HOME.glob("search-*/journal.log")
    written = [json.loads(line) for line in path.read_text().splitlines()]
    assert sum(line["op_code"] == JournalOperation.SET_TRIAL_STATE_VALUES for line in written) == 3


@pytest.mark.slow
def test_without_pruning_the_same_trial_is_trained_to_its_end(
    programs: dict[int, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    programs |= dict.fromkeys((1, 2, 3, 4), LONG)
    monkeypatch.setattr(optuna.samplers, "TPESampler", InOrder)
    space = f"{LR.partition('=')[0]}=1e-2,1e-3,1e-4,1e-5"
    assert search(4, space, prune=False, prune_after_trials=3, prune_after_epochs=2) == 0
    assert states() == ["finished"] * 4


def test_a_space_with_fewer_runs_than_trials_is_searched_once(
    programs: dict[int, str], capsys: pytest.CaptureFixture
) -> None:
    assert search(5, f"{LR.partition('=')[0]}=1e-2,1e-3") == 0
    assert begun() == 2 and states() == ["finished", "finished"]
    out = capsys.readouterr().out
    assert "gave no new run, the last because these are the settings of trial" in out
    assert out.count("The search ends early") == 1


def test_a_search_without_a_trial_is_a_failure(programs: dict[int, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_module.Search, "_assign", lambda *_: "nothing fits")
    assert search(2) == 1


def test_a_search_is_not_run_twice_at_a_time(programs: dict[int, str]) -> None:
    assert search(1) == 0
    (folder,) = HOME.glob("search-*/")
    with FileLock(folder / ".lock"), pytest.raises(UserError, match="running already"):
        search(2)


def test_a_dry_run_tries_the_ends_of_the_space_in_place_of_trials(tmp_path: Path) -> None:
    words = [*FIXED, "hydra/sweeper=optuna", "model.networks.latent_dim=int(interval(4,64))", "model.weights.kl=1,2,3"]
    tried = [plan(TRAIN.compose(job, with_hydra=True), job).config.model for job in jobs_of(words, True)]
    assert [(one.networks.latent_dim, one.weights.kl) for one in tried] == [(26, 1), (4, 2), (64, 3)]


@pytest.mark.slow
@pytest.mark.promise(7)
def test_a_real_search_that_was_killed_goes_on(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pegasus_lightning", "-m", "experiment=search_baseline", "data=silhouettes"]
    command += ["data.train_per_class=20", "data.validation_fraction=0.1", "data.test_per_class=10"]
    command += ["data.batch_size=12", "model.networks.channels=4", "model.networks.latent_dim=4,8", "callbacks=quiet"]
    command += ["trainer.gpus=0", "trainer.max_epochs=12", "hydra.launcher.slots=2", "hydra.sweeper.n_trials=3"]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}

    def start() -> subprocess.Popen[str]:
        streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(command, cwd=tmp_path, env=environment, **streams)

    process, deadline = start(), time.monotonic() + 200
    home = tmp_path / "runs" / "search_baseline"
    while not [*home.glob("*/checkpoints/last.ckpt")]:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=200)
    process = start()
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    runs = [json.loads(path.read_text()) for path in home.glob("*/status.json")]
    assert [(run["status"], run["epochs"]) for run in runs] == [("finished", 12)] * 3
    assert "3 of 3 runs finished." in out and "experiment_name=search_baseline_best" in out
    logs = [path.read_text() for path in home.glob("search-*/logs/*.log")]
    assert len(logs) == 3 and any("Continuing from last.ckpt" in log for log in logs)
