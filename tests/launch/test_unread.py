"""Settings that nothing reads: refused in a single run, left out of a sweep."""

from __future__ import annotations

import json
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pegasus_lightning.launch import command
from pegasus_lightning.launch import pool as pool_module
from pegasus_lightning.launch import sweep as sweep_module
from pegasus_lightning.launch.command import run_command
from pegasus_lightning.launch.jobs import Job, read_jobs
from pegasus_lightning.launch.planning import Planned, check_jobs, readable_name
from pegasus_lightning.runs.folder import run_folder
from pegasus_lightning.train.settings import TRAIN
from pegasus_lightning.utils import compose
from pegasus_lightning.utils.compose import plain
from pegasus_lightning.utils.errors import UnreadSetting

TINY = [
    "data=silhouettes",
    "data.train_per_class=20",
    "data.test_per_class=10",
    "data.validation_fraction=0.1",
    "data.batch_size=18",
    "model.networks.channels=4",
    "model.networks.latent_dim=8",
    "trainer.gpus=0",
    "trainer.max_epochs=1",
    "trainer.evaluate_test=false",
    "callbacks=quiet",
]
NO_TRAINING = "resume=must"  # what is accepted ends with another message, as there is no checkpoint
R1 = "model.r1 means nothing with model=vae, which has no critic"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["pegasus_lightning"])
    return tmp_path


SINGLE = [
    (["model.r1=5", "model=vae"], "model.r1=5 means nothing with model=vae, which has no critic: leave it out."),
    (["model=vae", "model.r1=5"], "model.r1=5 means nothing with model=vae, which has no critic: leave it out."),
    (
        ["model=vae", "model.critic_augmentation=[cutout]", "model.r1=5", "model.networks.fc_width=9"],
        "model.r1=5 and model.critic_augmentation=[cutout] mean nothing with model=vae, which has no critic, and "
        "model.networks.fc_width=9 means nothing with model.networks.fc_layers=1: leave them out.",
    ),
    (
        ["model=vae", "model.critic_optimizer={lr:0.1,beta1:0.3}"],
        "model.critic_optimizer={lr:0.1,beta1:0.3} means nothing with model=vae, which has no critic: leave it out.",
    ),
    (["model=vae", "model.networks.spectral_norm=critic"], "means nothing with model=vae, which has no critic"),
    (["model=vae", "model.adaptive_adversarial=true"], "means nothing with model=vae, which has no critic"),
    (
        ["model=acai_paper", "model.adversarial_loss=hinge"],
        "model.adversarial_loss=hinge means nothing with model=acai, whose critic tells a coefficient, not real from "
        "fake: leave it out.",
    ),
    (["model=acai", "model.adaptive_adversarial=true"], "whose critic tells a coefficient, not real from fake"),
    (["model=acai", "model.weights.critic_regulariser=0", "model.weights.blend=0.5"], "critic_regulariser=0: leave it"),
    (
        ["model.networks.upsampling=nearest", "model.networks.decoder=residual"],
        "model.networks.decoder=residual: leave",
    ),
    (
        ["model=spectral_norm", "model.networks.critic_start=he"],
        "model.networks.critic_start=he means nothing with model.networks.spectral_norm=critic, which sets the size",
    ),
    (["model=vae_gan", "model.reconstruction=mse"], "means nothing with model.weights.reconstruction=0: leave it out."),
    (
        ["model.adaptive_adversarial=true", "model.weights.adversarial=3"],
        "model.weights.adversarial=3 means nothing with model.adaptive_adversarial=true: leave it out.",
    ),
    (["model.adaptive_adversarial=true", "model.weights.adversarial=0"], "means nothing with adversarial weights of 0"),
    (
        ["model.adversarial_loss=relativistic", "model.weights.critic_real=3"],
        "model.weights.critic_real=3 means nothing with model.adversarial_loss=relativistic, whose images have the",
    ),
    (
        ["model=pegasus", "model.learned_mixing=false", "model.weights.alpha=1", "model.weights.target=1"],
        "model.weights.target=1 and model.weights.alpha=1 mean nothing with model.learned_mixing=false: leave them",
    ),
    (
        ["model=pegasus", "model.mix_ratio=[0.1,0.2]"],
        "model.mix_ratio=[0.1,0.2] means nothing with model.learned_mixing=true: leave it out.",
    ),
]


@pytest.mark.promise(9)
@pytest.mark.parametrize(("overrides", "sentence"), SINGLE, ids=lambda case: str(case)[:60])
def test_a_single_run_is_refused(
    here: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], sentence: str
) -> None:
    assert run_command(["data=silhouettes", "trainer.gpus=0", NO_TRAINING, *overrides]) == 2
    out, err = capsys.readouterr()
    assert sentence in err
    assert (out, err.count("pegasus_lightning: "), err.count("\n")) == ("", 1, 1)
    assert os.listdir(here) == []


@pytest.mark.parametrize(
    "overrides",
    [
        ["model=vae", "model.r1=0", "model.critic_augmentation=[]"],  # as the preset has them
        ["model=pegasus", "model.learned_mixing=false"],  # the schema's weights of lessons are then unread
        ["model=pegasus", "model.networks.spectral_norm=critic"],  # and here its critic_start
        ["model=vae_gan", "model.reconstruction=mse", "model.weights.reconstruction=1"],
        ["model=acai", "model.r1=5"],
        ["experiment=demo_ablation", "model=vae", "seed=0"],
    ],
)
def test_what_is_read_or_as_in_the_preset_is_accepted(overrides: list[str]) -> None:
    assert check_jobs(["data=silhouettes", "trainer.gpus=0", *overrides], multirun=False) == []


@pytest.mark.promise(9)
@pytest.mark.parametrize(
    ("networks", "advice"),
    [
        (["spectral_norm=critic"], ["critic_batch_norm=false"]),
        (["spectral_norm=all"], ["critic_batch_norm=false", "batch_norm=false"]),
        (["spectral_norm=all", "critic_batch_norm=false"], ["batch_norm=false"]),
        (["spectral_norm=all", "batch_norm=false"], ["critic_batch_norm=false"]),
    ],
)
def test_spectral_norm_under_batch_norm_is_refused_and_the_advice_works(
    capsys: pytest.CaptureFixture[str], networks: list[str], advice: list[str]
) -> None:
    typed = ["data=silhouettes", "trainer.gpus=0", NO_TRAINING, *(f"model.networks.{text}" for text in networks)]
    assert run_command(typed) == 2
    said = capsys.readouterr().err
    add = " ".join(f"model.networks.{text}" for text in advice)
    assert said.endswith(f"is undone by BatchNorm in the same layers: add {add}.\n")
    check_jobs([*typed, *add.split()], multirun=False)


def test_without_a_critic_spectral_norm_needs_no_change_of_one() -> None:
    check_jobs(
        [*TINY, "model=vae", "model.networks.spectral_norm=all", "model.networks.batch_norm=false"], multirun=False
    )


@pytest.mark.parametrize("kind", ["experiment", "model"])
def test_a_setting_of_a_users_preset_counts_unless_it_is_the_models_own(
    here: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    (here / "presets" / kind).mkdir(parents=True)
    text = {
        "experiment": "# @package _global_\ndefaults: [override /model: vae]\nmodel:\n  r1: 5\n",
        "model": "defaults: [vae]\nr1: 5\n",
    }[kind]
    (here / "presets" / kind / "mine.yaml").write_text(text)
    typed = ["--config-dir=presets", f"{kind}=mine", "data=silhouettes", "trainer.gpus=0", NO_TRAINING]
    code = run_command(typed)
    said = capsys.readouterr().err
    assert code == 2
    if kind == "model":
        assert "no checkpoint" in said
        return
    assert "model.r1=5.0 means nothing with model=vae, which has no critic: add model.r1=0.0." in said
    assert run_command([*typed, "model.r1=0.0"]) == 2
    assert "no checkpoint" in capsys.readouterr().err  # the advice works


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[list[str]]]:
    """ran(): the overrides of the jobs that the pool has run. Each job writes a finished status and nothing more."""
    status = {"status": "finished", "exit_code": 0, "epochs": 1, "metrics": {}}
    program = "import os, sys; os.makedirs(sys.argv[1], exist_ok=True); "
    program += "open(sys.argv[1] + '/status.json', 'w').write(sys.argv[2])"
    make = sweep_module.job_of
    jobs: list[Job] = []

    def with_program(number: int, run: Planned, logs: Path) -> Job:
        job = make(number, run, logs)
        job.command = [sys.executable, "-c", program, str(job.folder), json.dumps(status)]
        jobs.append(job)
        return job

    monkeypatch.setattr(sweep_module, "job_of", with_program)
    monkeypatch.setattr(pool_module, "POLL", 0.02)
    return lambda: [job.overrides for job in jobs]


@pytest.mark.slow
@pytest.mark.promise(9)
def test_a_sweep_runs_the_other_combinations_and_says_which_are_left_out(
    here: Path, ran: Callable[[], list[list[str]]], capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = ["-m", *TINY, "model=vae,adversarial_vae", "model.r1=0,5", "seed=0,1", "hydra.launcher.report=false"]
    assert run_command(sweep) == 0
    out, err = capsys.readouterr()
    assert err.splitlines()[0] == f"Left out, because {R1}: model=vae model.r1=5 (2 runs)"
    assert (out + err).count("Left out") == 1
    assert "Sweep of 6 runs" in out
    kept = [[text for text in job if text.startswith(("model=", "model.r1", "seed"))] for job in ran()]
    assert sorted(kept) == sorted(
        [f"model={model}", f"model.r1={r1}", f"seed={seed}"]
        for model, r1 in (("vae", 0), ("adversarial_vae", 0), ("adversarial_vae", 5))
        for seed in (0, 1)
    )
    (folder,) = here.glob("runs/single/sweep-*")
    assert len(read_jobs(folder / "sweep.json")) == 6
    assert len([*here.glob("runs/single/*/status.json")]) == 6
    # The same sweep again is the same sweep: it finds its folder.
    assert run_command(sweep) == 0
    assert list(here.glob("runs/single/sweep-*")) == [folder]


def test_the_lines_are_few(ran: object) -> None:
    lines = check_jobs(
        [*TINY, "model=vae,acai,vae_gan", "model.r1=1,2", "model.adversarial_loss=bce,hinge"], multirun=True
    )
    both = "model.r1 and model.adversarial_loss mean nothing with model=vae, which has no critic"
    coefficient = "model=acai, whose critic tells a coefficient, not real from fake"
    assert lines == [
        f"Left out, because {R1}: model=vae model.r1=1 model.adversarial_loss=bce, "
        "model=vae model.r1=2 model.adversarial_loss=bce",
        f"Left out, because {both}: model=vae model.r1=1 model.adversarial_loss=hinge, "
        "model=vae model.r1=2 model.adversarial_loss=hinge",
        f"Left out, because model.adversarial_loss means nothing with {coefficient}: "
        "model=acai model.r1=1 model.adversarial_loss=hinge, model=acai model.r1=2 model.adversarial_loss=hinge",
    ]


def test_a_sweep_in_batches_leaves_a_whole_batch_out(ran: Callable[[], list[list[str]]]) -> None:
    assert run_command(["-m", *TINY, "model=vae,acai", "model.r1=5", "hydra.sweeper.max_batch_size=1"]) == 0
    assert ["model=acai" in job for job in ran()] == [True]


@pytest.mark.promise(9)
@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["model=vae", "model.r1=5,6"], [R1, "No combination of the sweep remains"]),
        (["model=vae,acai", "model.r1=5", "seed=0,-1"], ["seed=-1"]),  # another mistake refuses the sweep
        (["model=vae,acai", "model.r1=5", "seed=0,0"], ["the same run"]),
    ],
)
@pytest.mark.parametrize("launcher", ["pool", "basic"])
def test_a_sweep_is_refused(
    here: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], parts: list[str], launcher: str
) -> None:
    assert run_command(["-m", *TINY, f"hydra/launcher={launcher}", *overrides]) == 2
    out, err = capsys.readouterr()
    for part in parts:
        assert part in err
    assert (out, err.count("pegasus_lightning: "), err.count("\n")) == ("", 1, 1)
    assert os.listdir(here) == []


def test_another_launcher_leaves_them_out_too(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def forget(overrides: list[str], multirun: bool) -> list[str]:
        lines = check_jobs(overrides, multirun)
        compose._composed.cache_clear()  # as in a process of a cluster
        return lines

    monkeypatch.setattr(command, "check_jobs", forget)
    assert run_command(["-m", "hydra/launcher=basic", *TINY, "model=vae,adversarial_vae", "model.r1=5"]) == 0
    err = capsys.readouterr().err
    assert f"Left out, because {R1}: model=vae model.r1=5\n" in err
    assert "Left out: model.r1=5 means nothing with model=vae, which has no critic: leave it out.\n" in err
    (run,) = here.glob("runs/single/*/status.json")
    assert run.parent.name.startswith("adversarial_vae")


def test_a_run_that_was_begun_before_can_go_on(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    typed = [*TINY, "model=vae", "model.r1=5", NO_TRAINING]
    composed = TRAIN.compose(typed)
    folder = run_folder(plain(composed), readable_name(composed, {"model": "vae", "data": "silhouettes"}, typed))
    assert run_command(typed) == 2
    assert "model.r1=5 means nothing" in capsys.readouterr().err
    folder.mkdir(parents=True)
    (folder / "status.json").write_text("{}")
    assert run_command(typed) == 2
    assert "no checkpoint" in capsys.readouterr().err  # what it says of a run that it would continue


def test_the_error_survives_a_process_boundary() -> None:
    error = pickle.loads(pickle.dumps(UnreadSetting("sentence", "reason", ["model.r1=5"])))
    assert (str(error), error.reason, error.settings) == ("sentence", "reason", ["model.r1=5"])
