"""Tests of the runs that a command line describes, and of mistakes found before anything is created."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pegasus_lightning.launch import planning
from pegasus_lightning.launch.command import run_command
from pegasus_lightning.launch.planning import check_jobs, jobs_of, plan
from pegasus_lightning.train.settings import TRAIN
from pegasus_lightning.utils.errors import UserError

CPU = ["data=silhouettes", "trainer.gpus=0"]


@pytest.mark.promise(9)
@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["seed=0,1,0"], ["the same run", "a value is listed twice"]),
        (["trainer.max_epochs=1,2"], ["the same run", "differ only in trainer.max_epochs"]),
        (["callbacks=default,quiet"], ["the same run", "callbacks"]),
        (["seed=0,1", "trainer.gpus=2"], ["CUDA_VISIBLE_DEVICES", "each run gets one GPU"]),
        (["seed=0,1", "trainer.gpus=[1,3]"], ["CUDA_VISIBLE_DEVICES=1,3"]),
        (["seed=0,1", "trainer.cpu_processes=2"], ["on its own"]),
        (["seed=0,1", "hydra.launcher.slots=0"], ["hydra.launcher.slots=0", "at least 1"]),
        (["seed=0,1", "hydra.launcher.jobs_per_gpu=0"], ["jobs_per_gpu=0"]),
        (["seed=0,1", "hydra.launcher.stop_timeout=0"], ["stop_timeout"]),
        (["seed=0,1", "hydra.launcher.slot=2"], ["hydra.launcher.slot", "Did you mean 'slots'?"]),
        (["seed=0,1", "hydra.launcher.slots=two"], ["hydra.launcher.slots", "type"]),
        (["seed=0,1", "hydra/launcher=pol"], ["'pol'", "Did you mean 'pool'?"]),
        (["seed=0,1", "hydra.launcher._target_=os.system"], ["'hydra.launcher._target_' cannot be set"]),
        (["seed=0,1", "hydra/launcher=ray_cluster"], ["pip install -e '.[ray]'"]),
        (["seed=0,1", "--config-dir=nowhere"], ["no such folder"]),
        (["seed=0,1", "--config-name=other"], ["one main configuration"]),
        (["seed=0,1", "hydra.launcher.rank_by=final/pnsr"], ["Did you mean 'final/psnr'?"]),
        (["seed=0,1", "resume=must"], ["resume=must"]),
        (["seed=0,1", "hydra.searchpath=[pkg://os]"], ["--config-dir=FOLDER"]),
        (["experiment=ablatoin"], ["Did you mean 'ablation'?"]),
    ],
)
def test_a_mistake_in_a_sweep_is_reported_before_anything_is_created(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    arguments: list[str],
    parts: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    if "hydra/launcher=ray_cluster" in arguments:
        pytest.importorskip("hydra_plugins.pegasus_pool")
        if os.path.isdir(
            os.path.join(os.path.dirname(os.__file__), "site-packages", "hydra_plugins", "hydra_ray_launcher")
        ):
            pytest.skip("the plugin is installed")
    assert run_command(["-m", *CPU, *arguments]) == 2
    out, err = capsys.readouterr()
    for part in parts:
        assert part in err
    assert "Traceback" not in err + out
    assert err.count("pegasus_lightning: ") == 1
    assert os.listdir(tmp_path) == []


def test_slots_are_of_the_cpu_not_of_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning.torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match="jobs_per_gpu"):
        check_jobs(["data=silhouettes", "seed=0,1", "hydra.launcher.slots=2"], multirun=True)
    check_jobs([*CPU, "seed=0,1", "hydra.launcher.slots=2"], multirun=True)


@pytest.mark.promise(8)
def test_each_run_has_a_folder_of_its_own_named_as_when_it_is_started_alone() -> None:
    jobs = jobs_of([*CPU, "model=vae,acai", "seed=0,1", "experiment_name=mine"], multirun=True)
    runs = [plan(TRAIN.compose(job, with_hydra=True), job) for job in jobs]
    names = [str(run.folder) for run in runs]
    assert [name.rpartition("-")[0] for name in names] == [
        f"runs/mine/{model},silhouettes-s{seed}" for model in ("vae", "acai") for seed in (0, 1)
    ]
    assert len({name.rpartition("-")[2] for name in names}) == 4
    assert "hydra" not in runs[0].config
    assert runs[0].overrides == [*CPU, "model=vae", "seed=0", "experiment_name=mine"]


def test_the_ablation_is_the_documents_grid_with_seeds_to_choose() -> None:
    models = ["vae", "adversarial_vae", "two_fc_layers", "four_conv_layers", "spectral_norm"]
    models += ["critic_without_batch_norm", "vae_gan", "acai", "acai_paper"]  # the control of spectral norm beside it
    preset = ["experiment=ablation"]
    assert jobs_of(preset, multirun=True) == [[f"model={model}", "seed=0", *preset] for model in models]
    asked = jobs_of(["experiment=demo_ablation", "seed=3,4"], multirun=True)
    assert len(asked) == 18
    assert {next(text for text in job if text.startswith("seed=")) for job in asked} == {"seed=3", "seed=4"}
    config = TRAIN.compose(["experiment=demo_ablation"])
    assert (config.data.source, config.experiment_name) == ("silhouettes", "demo_ablation")


def test_the_users_own_presets_are_found_for_every_job(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "wide.yaml").write_text("defaults: [vae]\nnetworks:\n  latent_dim: 77\n")
    overrides = [f'hydra.searchpath=["file://{tmp_path}"]', *CPU, "model=vae,wide"]
    jobs = jobs_of(overrides, multirun=True)
    runs = [plan(TRAIN.compose(job, with_hydra=True), job) for job in jobs]
    assert [run.config.model.networks.latent_dim for run in runs] == [128, 77]
    assert [run.folder.name.partition(",")[0] for run in runs] == ["vae", "wide"]


def test_a_sweep_without_m_is_refused_and_one_of_its_runs_can_be_chosen() -> None:
    with pytest.raises(
        UserError, match=r"sweep over model, seed: add -m to run it all, or choose model=\.\.\. and seed"
    ):
        check_jobs(["experiment=demo_ablation", "trainer.gpus=0"], multirun=False)
    check_jobs(["experiment=demo_ablation", "trainer.gpus=0", "model=acai", "seed=3"], multirun=False)


@pytest.mark.promise(11)
@pytest.mark.parametrize(
    "what", ["callbacks: {mine: {_target_: os.mkdir, path: made}}", "launcher: {_target_: os.mkdir}"]
)
def test_a_preset_cannot_have_hydra_build_what_it_names(tmp_path: Path, what: str) -> None:
    (tmp_path / "experiment").mkdir()
    preset = f"# @package _global_\nhydra:\n  {what}\n"
    (tmp_path / "experiment" / "evil.yaml").write_text(preset)
    with pytest.raises(UserError, match="not allowed"):
        check_jobs([f'hydra.searchpath=["file://{tmp_path}"]', *CPU, "experiment=evil", "seed=0"], multirun=False)


def test_the_jobs_name_which_other_settings_show_may_be_set() -> None:
    """Lightning gives the processes that it starts a name; hydra.help shows it."""
    plan(TRAIN.compose([*CPU, "hydra.job.name=train_ddp_process_1"], with_hydra=True), CPU)


@pytest.mark.promise(11)
@pytest.mark.parametrize(
    "what",
    ["sweeper: {params: {hydra.searchpath: '[pkg://spy_package]'}}", "job: {env_set: {LD_PRELOAD: evil.so}}"],
)
def test_a_preset_cannot_load_code_in_other_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    (tmp_path / "spy_package.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "evil.yaml").write_text(f"# @package _global_\nhydra:\n  {what}\n")
    typed = [f'hydra.searchpath=["file://{tmp_path}"]', *CPU, "experiment=evil", "seed=0"]
    for multirun in (False, True):
        with pytest.raises(UserError, match=r"cannot be set|not allowed"):
            check_jobs(typed, multirun=multirun)


def test_hydra_writes_a_sweep_into_the_home_folder_and_not_into_one_named_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/rider")
    for typed, folder in {"~/runs": "/home/rider/runs/mine", "a~/b": "a~/b/mine"}.items():
        composed = TRAIN.compose([f"runs_dir='{typed}'", "experiment_name=mine"], with_hydra=True)
        assert composed.hydra.sweep.dir == folder


@pytest.mark.promise(11)
def test_a_preset_cannot_change_the_logging(tmp_path: Path) -> None:
    """A handler made by `(): torch.load` would run the code in a file."""
    (tmp_path / "experiment").mkdir()
    for section in ("job_logging", "hydra_logging"):
        handler = f"  {section}: {{handlers: {{file: {{(): torch.load, f: evil.pt}}}}}}\n"
        (tmp_path / "experiment" / "evil.yaml").write_text("# @package _global_\nhydra:\n" + handler)
        with pytest.raises(UserError, match=f"hydra.{section} cannot be set"):
            check_jobs([f'hydra.searchpath=["file://{tmp_path}"]', *CPU, "experiment=evil", "seed=0"], multirun=False)


@pytest.mark.promise(11)
@pytest.mark.parametrize("path", ["[pkg://spy_package]", "[a],[pkg://spy_package]", "pkg://spy_package", "[/tmp]"])
def test_a_search_path_of_packages_is_refused_before_they_are_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    (tmp_path / "spy_package.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="--config-dir=FOLDER"):
        check_jobs([*CPU, f"hydra.searchpath={path}"], multirun=True)


@pytest.mark.promise(11)
@pytest.mark.parametrize(
    "override", ["+hydra.callbacks={mine:{_target_:os.mkdir}}", "+hydra.x=[{_target_:a}],2", "model._target_.x=1"]
)
def test_a_target_is_refused_anywhere(override: str) -> None:
    with pytest.raises(UserError, match="cannot be set so"):
        check_jobs([*CPU, override], multirun=True)


def test_a_name_may_have_target_in_it() -> None:
    check_jobs([*CPU, "run_name=my_target_x"], multirun=False)


def test_on_a_cluster_the_gpus_are_not_looked_for_here(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher.config")
    monkeypatch.setattr(planning.shutil, "which", lambda name: f"/usr/bin/{name}")
    check_jobs(["data=silhouettes", "trainer.gpus=1", "seed=0,1", "hydra/launcher=slurm"], multirun=True)
    with pytest.raises(UserError, match="PyTorch sees none"):
        check_jobs(["data=silhouettes", "trainer.gpus=1", "seed=0,1"], multirun=True)
