"""Tests of the command line: mistakes, help, configuration, a sweep over every model."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from omegaconf import OmegaConf

from pegasus_lightning import __version__
from pegasus_lightning.__main__ import main
from pegasus_lightning.launch.command import run_command
from pegasus_lightning.launch.planning import readable_name
from pegasus_lightning.train.settings import TRAIN
from pegasus_lightning.utils.compose import presets

PREFIX = "pegasus_lightning: "
SMALL = [
    "data=silhouettes",
    "data.train_per_class=40",
    "data.test_per_class=10",
    "data.batch_size=16",
    "model.networks.channels=4",
    "model.networks.latent_dim=8",
    "trainer.gpus=0",
    "trainer.max_epochs=1",
    "trainer.precision=32",
]
BASELINES = ["adversarial_vae", "two_fc_layers", "four_conv_layers", "spectral_norm"]
MODELS = ["vae", *BASELINES, "vae_gan", "acai", "acai_paper"]


class Answer(NamedTuple):
    code: int
    out: str
    err: str
    created: list[str]


def command(*arguments: str, folder: Path) -> Answer:
    """Run the command in a new process without GPUs."""
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-m", "pegasus_lightning", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return Answer(result.returncode, result.stdout, result.stderr, sorted(os.listdir(folder)))


def main_code() -> int:
    """Return the exit code of the console script with `sys.argv`."""
    try:
        main()
    except SystemExit as error:
        return int(error.code or 0)
    return 0


@pytest.fixture(scope="module")
def answer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Answer]]:
    """answer(*arguments) runs the command in this process, in an empty folder without GPUs, once for each line."""
    answers: dict[tuple[str, ...], Answer] = {}

    def run(*arguments: str) -> Answer:
        if arguments not in answers:
            folder = tmp_path_factory.mktemp("empty")
            out, err = io.StringIO(), io.StringIO()
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(folder)
                patch.setattr(sys, "argv", ["pegasus_lightning", *arguments])
                patch.setenv("CUDA_VISIBLE_DEVICES", "")
                patch.setenv("HYDRA_FULL_ERROR", "0")
                patch.setattr(torch.cuda, "is_available", lambda: False)
                patch.setattr(torch.cuda, "device_count", lambda: 0)
                with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                    code = main_code()
            answers[arguments] = Answer(code, out.getvalue(), err.getvalue(), sorted(os.listdir(folder)))
        return answers[arguments]

    return run


# Wrong command lines, and parts of their messages.
BEFORE_HYDRA_RUNS = [
    (["model=acia"], ["no model 'acia'", "Did you mean 'acai'?", "Choose from: acai, acai_document, acai_paper"]),
    (["data=silhouete"], ["no data 'silhouete'", "Did you mean 'silhouettes'?"]),
    (["modle=acai"], ["no setting 'modle'", "Did you mean 'model'?", "--cfg job"]),
    (["model.netwrks.channels=4"], ["no setting 'model.netwrks", "model.networks"]),
    (["model.networks.latent_dmi=3"], ["'model.networks.latent_dmi'", "Did you mean 'model.networks.latent_dim'?"]),
    (["trainer.epochs=3"], ["'trainer.epochs'", "Did you mean 'trainer.max_epochs'?"]),
    (["seeds=3"], ["'seeds'", "Did you mean 'seed'?"]),
    (["data=silhouettes", "data.batch_size=abc"], ["data.batch_size", "wrong type", "'abc'"]),
    (["seed=one"], ["seed", "wrong type", "'one'"]),
    (["data.flip=perhaps"], ["data.flip", "wrong type", "'perhaps'"]),
    (["model.networks.channels=1.5"], ["model.networks.channels", "wrong type"]),
    (["data.batch_size=0"], ["data.batch_size=0", "at least 2"]),
    (["model.networks.conv_layers=5"], ["model.networks.conv_layers=5", "2 to 4"]),
    (["model.autoencoder_optimizer.lr=-1"], ["model.autoencoder_optimizer.lr=-1", "at least 0"]),
    (["data.validation_fraction=2"], ["data.validation_fraction=2", "(0, 1)"]),
    (["seed=-1"], ["seed=-1", "0 up"]),
    (["model.networks.spectral_norm=everything"], ["spectral_norm=everything", "none, critic, all"]),
    (["model.networks.spectral_norm=al"], ["Did you mean 'all'?"]),
    (["trainer.precision=16"], ["trainer.precision=16", "auto, 32, bf16"]),
    (["resume=maybe"], ["resume=maybe", "auto, never, must"]),
    (["trainer.gpus=x"], ["trainer.gpus=x", "trainer.gpus=0 for the CPU"]),
    (["trainer.max_time=soon"], ["trainer.max_time=soon", "20m"]),
    (["seed=0,1"], ["add -m", "seed=[one,two]"]),
    (["seed=range(3)"], ["add -m"]),
    (["model=null"], ["model=null chooses nothing", "vae_gan"]),
    (["trainer.batch_size=64"], ["Did you mean 'data.batch_size'?"]),
    (["--cfg", "job", "hydra.searchpath=[pkg://spy]"], ["--config-dir=FOLDER"]),
    (["-m", "--cfg", "job", "model=vae,acai"], ["leave -m out"]),
    (["-m", "model=glob(v*)"], ["model=vae,acai"]),
    (["model=vae seed=1"], ["quote each by itself"]),
    (["runs_dir=${hydra:runtime.cwd}/x"], ["${hydra:...} is not known here"]),
    (["trainer=gpu"], ["trainer.gpus=1 takes a GPU"]),
    (["data.classes=[horse,", "bird]"], ["quotes: 'data.classes=[horse, bird]'"]),
    (["runs_dir=r\udcff"], ["not UTF-8"]),
    (["hydra.run.dir=x"], ["hydra.run cannot be set", "runs_dir, experiment_name and run_name"]),
    (["hydra.verbose=true"], ["hydra.verbose cannot be set"]),
    (["--hydra-help"], ["--help"]),
    (["--shell-completion", "install=bash"], ["--help"]),
    (["-m", "hydra/launcher=slurm", "seed=0,1"], ["no srun"]),
    (["logger=wandbb"], ["logger=wandbb", "Did you mean 'wandb'?"]),
    (["logger=[csv,ml]"], ["logger=ml is not a choice", "mlflow"]),
    (["trainer.accelerator=gpu"], ["trainer.gpus=1"]),
    (["+callbacks.early_stopping.patience=3"], ["trainer.patience=10 ends a run"]),
    (["model=vae", "model.weights.adversarial=2"], ["belongs to model=acai,"]),
    (["-m", "data=silhouettes,lines", "data.drawing_seed=3"], ["while -m sweeps over data"]),
    (["experiment_name=a/b"], ["experiment_name='a/b'"]),
    (["data.classes=[horse]"], ["['horse']", "data.classes=[horse,bird]"]),
    (["data=image_folder"], ["data.root=FOLDER", "FOLDER/{train,test}/<class>"]),
    (["model"], ["'model' is not understood", "key=value"]),
    (["model._target_=os.system"], ["'model._target_'"]),
    (["-m", "model=vae,acia"], ["no model 'acia'", "Did you mean 'acai'?"]),
    (["-m", "model=vae,acai", "seed=0,-1"], ["seed=-1"]),
    (["data=silhouettes", "-m", "model=vae,acia"], ["no model 'acia'"]),
    (["--nonsense"], ["--nonsense"]),
]
WHEN_IT_RUNS = [
    (["trainer.gpus=1"], ["trainer.gpus=1", "Type trainer.gpus=0"]),
    (["trainer.cpu_processes=4", "data.batch_size=10"], ["data.batch_size=10", "multiple of 4"]),
    (["trainer.gpus=64"], ["trainer.gpus=64", "Type trainer.gpus=0"]),
    (["trainer.gpus=[0,1]"], ["trainer.gpus=[0, 1]", "Type trainer.gpus=0"]),
    (["data=image_folder", "data.root=nowhere"], ["nowhere", "no folder"]),
    (["-m", "data=image_folder", "data.root=nowhere", "seed=0,1"], ["no folder nowhere"]),
    (
        ["data=cifar10", "data.download=false"],
        ["three ways", "cifar-10-python.tar.gz", "data=image_folder", "data=silhouettes"],
    ),
    (["data=silhouettes", "data.classes=[horse,hors]"], ["'hors'", "Did you mean 'horse'?"]),
    (["data=silhouettes", "data.train_per_class=40", "data.batch_size=128"], ["data.batch_size=128", "76 images"]),
    ([*SMALL, "resume=must"], ["resume=must", "no checkpoint", "Leave resume out"]),
]


def _first_three(case: tuple[list[str], list[str]]) -> str:
    return " ".join(case[0][:3])


@pytest.mark.promise(9)
@pytest.mark.promise(10)
@pytest.mark.parametrize("case", [*BEFORE_HYDRA_RUNS, *WHEN_IT_RUNS], ids=_first_three)
def test_a_mistake_ends_in_a_message_with_code_2_and_nothing_created(
    answer: Callable[..., Answer], case: tuple[list[str], list[str]]
) -> None:
    arguments, parts = case
    code, out, err, created = answer(*arguments)
    assert code == 2
    assert err.count(PREFIX) == 1
    for part in parts:
        assert part in err
    assert "Traceback" not in err + out
    assert out == ""
    assert created == []
    assert len(err) < 900
    assert err.startswith(PREFIX)  # no text of Hydra before or after it
    assert "Error executing job" not in err and "usage:" not in err


@pytest.mark.promise(9)
@pytest.mark.promise(11)
@pytest.mark.parametrize("addition", ["+foo=1", "++foo=1", "+model._target_=os.system", "++model.networks.depth=3"])
def test_a_setting_that_does_not_exist_cannot_be_added(answer: Callable[..., Answer], addition: str) -> None:
    # If the addition were accepted, resume=must would stop the run before anything is created.
    code, _, err, created = answer(*SMALL, "resume=must", addition)
    assert code == 2
    assert addition.lstrip("+").partition("=")[0] in err
    assert created == []


@pytest.mark.parametrize("key", ["model.latent_dim", "model.latent_dmi"])
def test_the_nearest_setting_is_offered_from_another_section_too(answer: Callable[..., Answer], key: str) -> None:
    assert "Did you mean 'model.networks.latent_dim'?" in answer(f"{key}=3").err


@pytest.mark.slow
@pytest.mark.promise(9)
@pytest.mark.promise(10)
@pytest.mark.parametrize(
    ("arguments", "part"),
    [(["-m", "model=vae,acia"], "Did you mean 'acai'?"), (["trainer.gpus=1", *SMALL[:4]], "Type trainer.gpus=0")],
)
def test_the_same_from_a_shell(tmp_path: Path, arguments: list[str], part: str) -> None:
    code, out, err, created = command(*arguments, folder=tmp_path)
    assert (code, out, created) == (2, "", [])
    assert err.count(PREFIX) == 1
    assert part in err
    assert "Traceback" not in err


@pytest.mark.promise(9)
@pytest.mark.parametrize(
    ("text", "part"),
    [
        (b"defaults: [vae]\n\tweights: {}\n", "own.yaml, line 2 is not YAML (found character '\\t' "),
        (b"weights: {kl: 3}\n", "begin it with a line such as `defaults: ["),
        (b"- vae\n", "own.yaml holds no settings"),
        (b"defaults: [v\xe9e]\n", "own.yaml is not text in UTF-8"),
    ],
)
def test_a_preset_that_cannot_be_read_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture, text: bytes, part: str
) -> None:
    own = tmp_path / "model" / "own.yaml"
    own.parent.mkdir()
    own.write_bytes(text)
    assert run_command(["-m", f"--config-dir={tmp_path}", "model=vae,own"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and part in err
    own.write_text("defaults: [vae]\nweights: {kl: 3}\n")  # as it is meant
    assert run_command([f"--config-dir={tmp_path}", "model=own", "--cfg", "job"]) == 0
    assert "kl: 3" in capsys.readouterr().out


def test_a_preset_of_a_group_with_one_schema_needs_no_defaults(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "trainer").mkdir()
    (tmp_path / "trainer" / "mine.yaml").write_text("max_epochs: 3\n")
    assert run_command([f"--config-dir={tmp_path}", "trainer=mine", "--cfg", "job"]) == 0
    assert "max_epochs: 3\n" in capsys.readouterr().out


@pytest.mark.promise(9)
def test_a_file_where_the_runs_should_lie_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs").touch()
    for sweep in ([], ["-m"]):
        assert run_command([*sweep, *SMALL]) == 2
        out, err = capsys.readouterr()
        assert err.startswith(f"{PREFIX}runs/single") and "runs is not a folder. Choose another runs_dir" in err
        assert err.count("\n") == 1 and not out


@pytest.mark.slow
def test_the_first_word_is_a_command(tmp_path: Path) -> None:
    for words in (["--version"], ["train", "--version"], ["generate", "--version"], ["report", "--version"]):
        assert command(*words, folder=tmp_path)[:2] == (0, f"pegasus_lightning {__version__}\n")
    assert "no run folder nowhere" in command("report", "run=nowhere", folder=tmp_path).err
    assert "no run folder or checkpoint a/b=c" in command("generate", "a/b=c", folder=tmp_path).err


@pytest.mark.parametrize("option", [["--help"], ["-h"], ["model=acai", "--help"]])
def test_help_names_every_choice_and_shows_examples(answer: Callable[..., Answer], option: list[str]) -> None:
    code, out, err, created = answer(*option)
    assert (code, err, created) == (0, "", [])
    words = set(out.replace("=", " ").split())
    for group in ("model", "data", "trainer", "callbacks", "experiment"):
        assert set(presets(group)) <= words
    assert set(MODELS) <= words
    examples = [line for line in out.splitlines() if line.strip().startswith("python -m pegasus_lightning ")]
    assert len(examples) >= 3


def test_the_examples_of_the_help_text_are_right(answer: Callable[..., Answer]) -> None:
    lines = [line.strip() for line in answer("--help").out.splitlines()]
    examples = [line.split()[3:] for line in lines if line.startswith("python -m pegasus_lightning ")]
    assert len(examples) >= 3
    for arguments in examples:  # with an impossible seed at the end: everything before it must be accepted
        swept = [a for a in arguments if not a.startswith("seed=")]
        assert answer(*swept, "seed=-1").err.startswith(f"{PREFIX}seed=-1 is out of range")


def test_cfg_job_shows_the_whole_configuration_and_creates_nothing(answer: Callable[..., Answer]) -> None:
    code, out, err, created = answer("model=acai_paper", "data=silhouettes", "seed=3", "--cfg", "job")
    assert (code, err, created) == (0, "", [])
    shown = OmegaConf.to_container(OmegaConf.create(out))
    assert isinstance(shown, dict)
    assert shown["model"]["name"] == "acai"
    assert shown["model"]["networks"]["latent_dim"] == 256
    assert shown["data"]["train_per_class"] == 2000
    assert shown["seed"] == 3
    assert {"trainer", "callbacks", "runs_dir", "resume"} <= shown.keys()


def test_the_readable_name_of_a_run() -> None:
    config = OmegaConf.create({"run_name": None, "model": {"name": "acai"}})
    choices = {"model": "acai_paper", "data": "cifar10"}
    overrides = ["model=acai_paper", "model.networks.latent_dim=64", "seed=3", "trainer.gpus=0", "data.root=/big/disk"]
    assert readable_name(config, choices, overrides) == "acai_paper,latent_dim=64"
    choices["data"] = "silhouettes"
    assert readable_name(config, choices, ["data.batch_size=8"]) == "acai_paper,silhouettes,batch_size=8"
    config.run_name = "mine"
    assert readable_name(config, choices, overrides) == "mine"


# A sweep over every model, in one new process.


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Answer, Path]:
    folder = tmp_path_factory.mktemp("sweep")
    # 2 * 20 images less 4 for validation: two batches of 18.
    overrides = [
        "data.train_per_class=20",
        "data.validation_fraction=0.1",
        "data.batch_size=18",
        "callbacks.image_columns=2",
        "callbacks.image_scale=1",
    ]
    return command("-m", "hydra/launcher=basic", f"model={','.join(MODELS)}", *SMALL, *overrides, folder=folder), folder


@pytest.mark.slow
def test_a_sweep_over_every_model_ends_well(swept: tuple[Answer, Path]) -> None:
    answer, folder = swept
    assert answer.code == 0, answer.err
    runs = [path for path in (folder / "runs" / "single").iterdir() if path.is_dir()]
    assert sorted(run.name.partition(",")[0] for run in runs) == sorted(MODELS)
    assert answer.created == ["runs"]


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_every_model_trains_two_batches_and_leaves_everything(swept: tuple[Answer, Path], model: str) -> None:
    (run,) = (swept[1] / "runs" / "single").glob(f"{model},*")
    assert run.name.endswith(json.loads((run / "status.json").read_text())["config_hash"][:8])
    status = json.loads((run / "status.json").read_text())
    assert (status["status"], status["exit_code"], status["reason"]) == ("finished", 0, None)
    assert (status["epochs"], status["batches"]) == (1, 2)
    assert all(value == value for value in status["metrics"].values())
    content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert content["batches_done"] == 2
    assert any(name.startswith("critic.") for name in content["state_dict"]) == (model != "vae")
    names = {path.name for path in (run / "images").iterdir()}
    assert names == {f"{what}-epoch-0001.png" for what in ("reconstructions", "interpolations", "mixes", "prior")}
    for name in names:
        assert (run / "images" / name).read_bytes().startswith(b"\x89PNG")
    events, final = sorted(run.glob("events.*"), key=lambda path: path.name.endswith(".final"))
    assert events.name.startswith("events.out.tfevents.") and final.name.startswith("events.out.tfevents.")
    assert (run / "metrics.jsonl").stat().st_size > 0
    assert "Networks:" in (run / "train.log").read_text()
    assert OmegaConf.load(run / "config.yaml").data.batch_size == 18


@pytest.mark.slow
@pytest.mark.promise(20)
@pytest.mark.parametrize("rank", ["0", "1"])
@pytest.mark.parametrize("sweep", [[], ["-m"]])
def test_a_process_that_another_program_started_as_one_of_several_trains_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: str, sweep: list[str]
) -> None:
    monkeypatch.setenv("LOCAL_RANK", rank)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    answer = command(*sweep, "model=vae", *SMALL, folder=tmp_path)
    assert (answer.code, answer.created) == (2, [])
    assert "unset LOCAL_RANK" in answer.err and answer.err.count("\n") == 1


@pytest.mark.parametrize(
    ("typed", "names"),
    [
        ("[true,1e3]", ["true", "1e3"]),
        ("[马, null]", ["马", "null"]),
        ("['a,b',10]", ["a,b", "10"]),
        ('["é b",horse]', ["é b", "horse"]),
        ("[horse, bird]", ["horse", "bird"]),
        ("[007,3d]", ["007", "3d"]),
    ],
)
def test_classes_are_names_whatever_they_look_like(typed: str, names: list[str]) -> None:
    parsed = TRAIN.parse_arguments([f"data.classes={typed}"])
    assert list(TRAIN.compose(parsed.overrides).data.classes) == names
    (swept,) = TRAIN.parse_arguments([f"data.classes={typed},[cat,ship]"]).overrides
    assert swept == f"{parsed.overrides[0]},[cat,ship]"
    # What Hydra reads as it is written stays, and with it the name of the run's folder.
    for plain in ("[horse,bird]", "[cat, ship]", '["my cat", ship]', "[0,1]", "[3d,a b]", f"[{'long' * 50},unclosed"):
        assert TRAIN.parse_arguments([f"data.classes={plain}"]).overrides == [f"data.classes={plain}"]
