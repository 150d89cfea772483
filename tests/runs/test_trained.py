"""Runs that lie about: which are found, what they are called once opened, and what is wrong with the others."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from pegasus_lightning.data.settings import data_settings
from pegasus_lightning.generate.session import check_classes, common_data, common_guide, images_of, load_common
from pegasus_lightning.models.two_player import TwoPlayerModel
from pegasus_lightning.runs.checkpoints import save_atomically
from pegasus_lightning.runs.trained import TrainedRun, find_runs, open_run, open_runs
from pegasus_lightning.utils.errors import UserError

CONFIG = "data:\n  source: cifar10\n  classes: [horse, bird]\nseed: 0\n"

Save = Callable[..., Path]


@pytest.fixture
def save(tiny: Callable[..., TwoPlayerModel]) -> Save:
    """save(file, variant, seed=0): a checkpoint as training leaves it."""

    def write(file: Path, variant: str = "vae", *, seed: int = 0, batches_done: int = 7) -> Path:
        model = tiny(variant, seed=seed)
        content = {
            "state_dict": model.state_dict(),
            "hyper_parameters": dict(model.hparams),
            "batches_done": batches_done,
        }
        save_atomically(content, file)
        return file

    return write


@pytest.fixture
def run(save: Save) -> Save:
    """run(folder, ...): a run's folder, saved once."""

    def write(folder: Path, *args: Any, config: str | None = CONFIG, **options: Any) -> Path:
        save(folder / "checkpoints" / "last.ckpt", *args, **options)
        if config is not None:
            (folder / "config.yaml").write_text(config)
        return folder

    return write


def empty_run(folder: Path) -> Path:
    """One that has not saved yet."""
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text(CONFIG)
    return folder


def found(*places: Path | str) -> list[Path]:
    return find_runs([str(place) for place in places])


# Found.


def test_a_run_its_checkpoints_and_its_files_are_found(run: Save, tmp_path: Path) -> None:
    home = run(tmp_path / "vae-s0-01234567")
    file = home / "checkpoints" / "last.ckpt"
    assert found(home) == [home]
    assert found(home / "checkpoints") == [home]
    assert found(file) == [file]
    assert found(f"{home}/") == [home]


def test_places_are_found_in_the_order_asked_each_once(run: Save, tmp_path: Path) -> None:
    one, two = run(tmp_path / "one"), run(tmp_path / "two")
    file = one / "checkpoints" / "last.ckpt"
    assert found(two, one, two, one / "checkpoints", file) == [two, one, file]
    assert found(two, tmp_path) == [two, one]


def test_the_users_home_is_understood(run: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = run(tmp_path / "runs" / "vae")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert found("~/runs/vae", "~/runs", "~/runs/v*") == [home]


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_runs_inside_a_folder_are_found_however_deep(run: Save, tmp_path: Path, depth: int) -> None:
    folder = tmp_path.joinpath(*"abc"[: depth - 1])
    homes = [run(folder / name) for name in ("two", "one")]
    (folder / "notes.txt").write_text("no run")
    assert found(tmp_path) == sorted(homes)


def test_runs_of_several_depths_are_found_together(run: Save, tmp_path: Path) -> None:
    homes = [run(tmp_path / name) for name in ("single/vae-s0", "acai-s1", "sweep/day/acai-s0")]
    assert set(found(tmp_path)) == set(homes)
    assert len(found(tmp_path)) == 3


def test_a_pattern_finds_runs_and_files(run: Save, tmp_path: Path) -> None:
    one, two = run(tmp_path / "day" / "vae-s1"), run(tmp_path / "day" / "vae-s0")
    run(tmp_path / "day" / "acai-s0")
    (tmp_path / "day" / "vae-notes").mkdir()  # matches, but is no run
    assert found(tmp_path / "*" / "vae*") == [two, one]
    assert found(tmp_path / "day" / "vae-s?" / "checkpoints" / "*.ckpt") == [
        home / "checkpoints" / "last.ckpt" for home in (two, one)
    ]


@pytest.mark.parametrize("pattern", ["", "*"])
def test_runs_that_have_not_saved_are_left_out_with_a_warning(
    run: Save, tmp_path: Path, caplog: pytest.LogCaptureFixture, pattern: str
) -> None:
    saved, unsaved = run(tmp_path / "vae"), empty_run(tmp_path / "acai")
    with caplog.at_level(logging.WARNING):
        assert found(f"{tmp_path}/{pattern}") == [saved]
    assert [record.getMessage() for record in caplog.records] == [f"{unsaved} has no checkpoint yet: left out."]


def test_a_run_named_by_itself_is_not_left_out(tmp_path: Path) -> None:
    unsaved = empty_run(tmp_path / "acai")
    assert found(unsaved) == [unsaved]
    with pytest.raises(UserError, match="holds no checkpoint"):
        open_run(unsaved)


def message_of(*places: Path | str) -> str:
    with pytest.raises(UserError) as error:
        found(*places)
    return str(error.value)


def test_where_there_is_no_run_it_says_so(run: Save, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    assert message_of(tmp_path / "photos") == (
        f"{tmp_path / 'photos'} holds no trained run: no folder in it has checkpoints."
    )
    run(tmp_path / "vae")
    assert "photos" in message_of(tmp_path / "vae", tmp_path / "photos")  # one good place does not hide a bad one


def test_a_missing_run_is_told_with_those_beside_it(run: Save, tmp_path: Path) -> None:
    missing = tmp_path / "zzz"
    assert message_of(missing) == f"There is no run folder or checkpoint {missing}."
    for name in ("vae-s0", "acai-s0"):
        run(tmp_path / name)
    (tmp_path / "photos").mkdir()
    assert message_of(missing) == f"There is no run folder or checkpoint {missing}. Runs there: acai-s0, vae-s0."
    missing = tmp_path / "vae-s1"
    assert message_of(missing) == f"There is no run folder or checkpoint {missing}. Did you mean 'vae-s0'?"
    assert "There is no run folder or checkpoint" in message_of(tmp_path / "p*")  # a folder, and no run
    assert "There is no run folder or checkpoint" in message_of(tmp_path / "nowhere" / "at" / "all")


# Opened.


def test_an_opened_run_has_its_model_its_configuration_and_its_name(
    run: Save, tiny: Callable[..., TwoPlayerModel], tmp_path: Path
) -> None:
    home = run(tmp_path / "acai,cifar10,channels=4-s3-0123abcd", "acai", seed=3, batches_done=11)
    opened = open_run(home)
    assert opened.name == "acai,channels=4-s3"
    assert opened.path == opened.folder == home
    assert opened.checkpoint == home / "checkpoints" / "last.ckpt"
    assert opened.config is not None
    assert opened.config.data.source == "cifar10"
    assert opened.classes == ["horse", "bird"]
    assert opened.model.batches_done == 11
    assert not opened.model.training
    wanted = tiny("acai", seed=3).state_dict()
    assert type(opened.model).__name__ == "ACAI"
    assert opened.model.state_dict().keys() == wanted.keys()
    assert all(torch.equal(value, wanted[name]) for name, value in opened.model.state_dict().items())


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("vae-s0-0123abcd", "vae-s0"),
        ("vae-s0-0123abc", "vae-s0-0123abc"),  # no hash: seven digits
        ("vae-s0-0123abcg", "vae-s0-0123abcg"),
        ("vae-0123abcd-s0", "vae-0123abcd-s0"),
        ("vae,lines-s0-0123abcd", "vae,lines-s0"),  # not the data of this run
        ("cifar10-s0-0123abcd", "cifar10-s0"),
    ],
)
def test_a_runs_name_is_its_folders_without_hash_and_data(run: Save, tmp_path: Path, folder: str, name: str) -> None:
    assert open_run(run(tmp_path / folder)).name == name


def test_a_file_in_a_runs_folder_knows_its_run(run: Save, save: Save, tmp_path: Path) -> None:
    home = run(tmp_path / "vae-s0-01234567", batches_done=1)
    save(home / "checkpoints" / "last.ckpt", batches_done=2)
    file = home / "checkpoints" / "previous.ckpt"
    opened = open_run(file)
    assert (opened.path, opened.checkpoint, opened.folder) == (file, file, home)
    assert opened.name == "vae-s0"
    assert opened.model.batches_done == 1


def test_a_file_on_its_own_has_no_run(run: Save, save: Save, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG)  # beside, but not a run's
    opened = [
        open_run(save(tmp_path / "models" / "horse.v2.ckpt")),
        open_run(run(tmp_path / "bare", config=None) / "checkpoints" / "last.ckpt"),
    ]
    assert [run.name for run in opened] == ["horse.v2", "last"]
    for one in opened:
        assert one.config is None
        assert one.folder is None
        assert one.classes == ["horse", "bird"]


@pytest.mark.parametrize("text", ["data: [unclosed", "\tdata: 1", "data: ${", "\x00"])
def test_a_configuration_that_cannot_be_read_is_named(run: Save, tmp_path: Path, text: str) -> None:
    home = run(tmp_path / "vae", config=text)
    with pytest.raises(UserError) as error:
        open_run(home)
    assert f"{home / 'config.yaml'} cannot be read (" in str(error.value)


@pytest.mark.parametrize("text", ["", "- data\n- model\n", "model: {name: vae}", "data: cifar10", "data: [cifar10]"])
def test_a_configuration_of_something_else_is_named(run: Save, tmp_path: Path, text: str) -> None:
    home = run(tmp_path / "vae", config=text)
    with pytest.raises(UserError) as error:
        open_run(home)
    assert f"{home / 'config.yaml'} is not the configuration of a run: it has no section `data`." == str(error.value)


# Names.


def names_of(*paths: Path) -> list[str]:
    runs = open_runs(paths)
    assert [run.path for run in runs] == list(paths)
    return [run.name for run in runs]


def test_names_that_differ_stay_short(run: Save, tmp_path: Path) -> None:
    homes = [run(tmp_path / name) for name in ("vae-s0-01234567", "vae-s1-01234567", "acai-s0-89abcdef")]
    assert names_of(*homes) == ["vae-s0", "vae-s1", "acai-s0"]
    assert names_of() == []


def test_two_runs_of_one_name_are_told_apart_by_their_hash(run: Save, tmp_path: Path) -> None:
    homes = [
        run(tmp_path / "a" / "vae-s0-01234567"),
        run(tmp_path / "b" / "vae-s0-89abcdef"),
        run(tmp_path / "b" / "acai-s0-89abcdef"),
    ]
    assert names_of(*homes) == ["vae-s0-01234567", "vae-s0-89abcdef", "acai-s0-89abcdef"]


def test_two_checkpoints_of_one_run_are_told_apart_by_their_file(run: Save, save: Save, tmp_path: Path) -> None:
    home = run(tmp_path / "vae-s0-01234567", batches_done=1)
    save(home / "checkpoints" / "last.ckpt", batches_done=2)
    files = [home / "checkpoints" / name for name in ("last.ckpt", "previous.ckpt")]
    assert names_of(*files) == ["vae-s0-01234567-last", "vae-s0-01234567-previous"]
    assert [run.model.batches_done for run in open_runs(files)] == [2, 1]


def test_what_is_called_the_same_all_over_is_numbered(run: Save, save: Save, tmp_path: Path) -> None:
    homes = [run(tmp_path / place / "vae-s0-01234567") for place in ("here", "there")]
    assert names_of(*homes) == ["vae-s0-1", "vae-s0-2"]
    files = [save(tmp_path / place / "best.ckpt") for place in ("one", "two")]
    assert names_of(*files) == ["best-1", "best-2"]


# Classes.


def trained_on(*classes: str) -> TrainedRun:
    model: Any = SimpleNamespace(hparams={"classes": list(classes)})
    return TrainedRun(Path("runs/vae"), Path("last.ckpt"), model, None, "vae")


def test_classes_that_the_model_knows_pass_in_any_order() -> None:
    check_classes(trained_on("horse", "bird"), SimpleNamespace(classes=["bird", "horse"]))


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["hrose", "bird"], "was not trained on 'hrose': its classes are horse, bird. Did you mean 'horse'?"),
        (["horse", "truck"], "was not trained on 'truck': its classes are horse, bird."),
    ],
)
def test_a_class_that_the_model_does_not_know_is_refused(classes: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        check_classes(trained_on("horse", "bird"), SimpleNamespace(classes=classes))
    assert str(error.value) == f"runs/vae {message}"


def test_a_run_keeps_its_name_and_configuration_wherever_one_stands(
    run: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run(tmp_path / "thing-s0-0123abcd")
    for inside, place in ((".", "."), (".", "checkpoints"), ("checkpoints", "last.ckpt"), ("checkpoints", ".")):
        monkeypatch.chdir(folder / inside)
        (path,) = found(place)
        opened = open_run(path)
        assert opened.name == "thing-s0"
        assert opened.config is not None
        assert opened.folder == folder


@pytest.mark.parametrize("text", ["data: ${nope}", "data:\n  source: ${nope}"])
def test_a_configuration_that_points_nowhere_is_told(run: Save, tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        open_run(run(tmp_path / "thing", config=text))


# Data.


def trained_with(data: str, *, known: bool = True) -> TrainedRun:
    """A run of a horse and a bird out of `data`, overrides of `silhouettes`' settings."""
    model: Any = SimpleNamespace(hparams={"classes": ["horse", "bird"]})
    settings = data_settings(None, ["data=silhouettes", *data.split()])
    config = OmegaConf.create({"data": settings}) if known else None
    return TrainedRun(Path(f"runs/{data or 'vae'}"), Path("last.ckpt"), model, config, "vae")


def test_the_data_of_several_runs_is_what_they_have_in_common() -> None:
    runs = [trained_with("data.batch_size=8"), trained_with("data.flip=false", known=True)]
    config = common_data(runs, [], "parents from")
    assert (config.source, list(config.classes), config.batch_size) == ("silhouettes", ["horse", "bird"], 8)
    alone = trained_with("", known=False)
    assert common_data([alone, *runs], [], "parents from") == config
    changed = common_data(runs, ["data.test_per_class=9"], "parents from")
    assert (changed.test_per_class, changed.batch_size) == (9, 8)
    assert common_data([alone], ["data=lines", "data.classes=[horse,bird]"], "parents from").source == "lines"


def test_runs_of_different_images_need_a_word() -> None:
    runs = [trained_with(""), trained_with("data.drawing_seed=1")]
    with pytest.raises(UserError, match=r"different data. Say which to take images from, as in data=SOURCE"):
        common_data(runs, [], "images from")
    assert common_data(runs, ["data.drawing_seed=2"], "images from").drawing_seed == 2
    with pytest.raises(UserError, match="a checkpoint on its own"):
        common_data([trained_with("", known=False)], [], "images from")
    with pytest.raises(UserError, match="was not trained on 'truck'"):
        common_data(runs, ["data=cifar10", "data.classes=[horse,truck]"], "images from")


def test_what_is_about_images_and_what_is_not() -> None:
    plain = images_of(data_settings(None, ["data=silhouettes"]))
    same = ["data.batch_size=3", "data.flip=false", "data.validation_fraction=0.3", "data.on_device=false"]
    assert plain == images_of(data_settings(None, ["data=silhouettes", *same]))
    for other in ("train_per_class=3", "test_per_class=3", "drawing_seed=3", "classes=[bird,horse]"):
        assert plain != images_of(data_settings(None, ["data=silhouettes", f"data.{other}"])), other
    photos = [images_of(data_settings(None, ["data=image_folder", "data.root=a", *more]))
              for more in ([], ["data.cache=b"], ["data.root=b"])]  # fmt: skip
    assert photos[0] == photos[1] != photos[2]


def test_images_that_have_moved_are_asked_for(tmp_path: Path) -> None:
    gone = [f"data.root={tmp_path / 'gone'}"]
    config = data_settings(None, ["data=image_folder", *gone, "data.classes=[horse,bird]"])
    runs = [trained_with("")]
    with pytest.raises(UserError) as error:
        load_common(runs, config, "test", [])
    assert "gone" in str(error.value)
    assert str(error.value).endswith("runs/vae had its images there; data.root=FOLDER says where they are now.")
    with pytest.raises(UserError) as error:
        load_common(runs, config, "test", gone)  # who has typed it knows
    assert "had its images there" not in str(error.value)
    drawn = data_settings(None, ["data=silhouettes", "data.test_per_class=3"])
    assert len(load_common(runs, drawn, "test", [])) == 6


def test_runs_have_a_guide_in_common_where_all_have_the_same(run: Save, tmp_path: Path) -> None:
    one, other = ({"architectures": [name], "images": 900} for name in ("plain", "averaging"))
    guides = {"a": one, "b": one, "c": other, "d": None}
    opened = {}
    for name, guide in guides.items():
        model = {} if guide is None else {"guide": guide}
        config = {"data": {"source": "cifar10", "classes": ["horse", "bird"]}, "seed": 0, "model": model}
        opened[name] = open_run(run(tmp_path / name, config=OmegaConf.to_yaml(OmegaConf.create(config))))
    for names, wanted in (("a", one), ("ab", one), ("ac", None), ("ad", None), ("d", None), ("c", other)):
        assert common_guide([opened[name] for name in names]) == wanted, names
