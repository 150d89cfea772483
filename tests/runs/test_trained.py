"""Tests of finding and opening trained runs: names, configurations, errors."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pegasus_lightning.models.two_player import TwoPlayerModel
from pegasus_lightning.runs.checkpoints import save_atomically
from pegasus_lightning.runs.trained import find_trained, open_run, open_runs
from pegasus_lightning.utils.errors import UserError

CONFIG = "data:\n  source: cifar10\n  classes: [horse, bird]\nseed: 0\n"

Save = Callable[..., Path]


@pytest.fixture
def save(tiny: Callable[..., TwoPlayerModel]) -> Save:
    """save(file, variant, seed=0) writes a checkpoint as training does."""

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
    """run(folder, ...) writes a run folder with one checkpoint."""

    def write(folder: Path, *args: Any, config: str | None = CONFIG, **options: Any) -> Path:
        save(folder / "checkpoints" / "last.ckpt", *args, **options)
        if config is not None:
            (folder / "config.yaml").write_text(config)
        return folder

    return write


def empty_run(folder: Path) -> Path:
    """A run folder without a checkpoint."""
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text(CONFIG)
    return folder


def found(*places: Path | str) -> list[Path]:
    return find_trained([str(place) for place in places])


# Found. Places and patterns are tested in test_folder.py.


def test_runs_and_checkpoint_files_are_found_in_the_order_of_the_places(run: Save, tmp_path: Path) -> None:
    one, two = run(tmp_path / "one"), run(tmp_path / "two")
    file = one / "checkpoints" / "last.ckpt"
    assert found(two, one, two, one / "checkpoints", file) == [two, one, file]
    assert found(two, tmp_path) == [two, one]
    assert found(f"{tmp_path}/*/checkpoints/*.ckpt") == [file, two / "checkpoints" / "last.ckpt"]


@pytest.mark.parametrize("pattern", ["", "*"])
def test_runs_without_a_checkpoint_are_left_out_with_a_warning(
    run: Save, tmp_path: Path, caplog: pytest.LogCaptureFixture, pattern: str
) -> None:
    unsaved = empty_run(tmp_path / "acai")
    with pytest.raises(UserError) as error:
        found(f"{tmp_path}/{pattern}")
    assert str(error.value) == f"No run in {tmp_path}/{pattern} has a checkpoint yet."
    saved = run(tmp_path / "vae")
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert found(f"{tmp_path}/{pattern}") == [saved]
    assert [record.getMessage() for record in caplog.records] == [f"{unsaved} has no checkpoint yet: left out."]


def test_a_run_named_by_itself_is_not_left_out(tmp_path: Path) -> None:
    unsaved = empty_run(tmp_path / "acai")
    assert found(unsaved) == [unsaved]
    with pytest.raises(UserError, match="holds no checkpoint"):
        open_run(unsaved)


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


def test_a_file_in_a_runs_folder_knows_its_run(run: Save, save: Save, tmp_path: Path) -> None:
    home = run(tmp_path / "vae-s0-01234567", batches_done=1)
    save(home / "checkpoints" / "last.ckpt", batches_done=2)
    file = home / "checkpoints" / "previous.ckpt"
    opened = open_run(file)
    assert (opened.path, opened.checkpoint, opened.folder) == (file, file, home)
    assert opened.name == "vae-s0"
    assert opened.model.batches_done == 1


def test_a_file_on_its_own_has_no_run(run: Save, save: Save, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG)  # not of a run
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
