"""Tests of the folders of results: names, and refusals before anything is written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pegasus_lightning.generate.settings import GenerateConfig
from pegasus_lightning.runs.folder import find_runs
from pegasus_lightning.runs.places import (
    check_writable,
    digest,
    link_latest,
    origin_told,
    path_told,
    same_origin,
    title,
)
from pegasus_lightning.utils.errors import UserError

OURS = {"scores.json", "grid.png"}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with results of several kinds."""
    folders = {"empty": [], "ours": [*OURS], "half": ["grid.png"], "foreign": ["scores.json", "photo.jpg"]}
    for folder, names in folders.items():
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / name).write_text("precious")
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("ours")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        (".", ". is the current folder: name another one with out=FOLDER."),
        ("file", "file is not a folder: name another one with out=FOLDER."),
        ("link", "link is not a folder: name another one with out=FOLDER."),
        ("foreign", "foreign holds something else than earlier results: name another folder with out=FOLDER."),
        ("half", "half holds something else than earlier results: name another folder with out=FOLDER."),
        ("file/new", "file/new cannot be made: {here}/file is not a folder that can be written to. Say out=FOLDER."),
    ],
)
def test_a_folder_that_cannot_take_results_is_refused(here: Path, folder: str, message: str) -> None:
    before = sorted(here.rglob("*"))
    for path, name in ((Path(folder), folder), (here / folder, str(here / folder))):
        with pytest.raises(UserError) as error:
            check_writable(path, "out=FOLDER", ours=OURS, needed={"scores.json"})
        said = message.format(here=here)
        assert str(error.value) == said.replace(folder, name if name != f"{here}/." else str(here), 1)
    assert sorted(here.rglob("*")) == before


@pytest.mark.parametrize("folder", ["empty", "ours", "new", "new/and/deeper"])
def test_a_new_folder_or_one_of_earlier_results_is_taken_and_not_made(here: Path, folder: str) -> None:
    before = sorted(here.rglob("*"))
    assert check_writable(Path(folder), "--out FOLDER", ours=OURS, needed={"scores.json"}) == Path(folder)
    assert sorted(here.rglob("*")) == before


def test_what_a_folder_holds_does_not_matter_if_nothing_is_said_of_it(here: Path) -> None:
    assert check_writable(here / "foreign", "out=FOLDER") == here / "foreign"
    assert check_writable(here / "half", "out=FOLDER", ours=OURS) == here / "half"  # nothing is needed


def test_a_folder_that_may_not_be_written_to_is_refused(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != here / "empty" and access(path, mode))
    for folder in ("empty", "empty/new"):
        with pytest.raises(UserError) as error:
            check_writable(Path(folder), "--out FOLDER")
        assert str(error.value) == (
            f"{folder} cannot be made: {here / 'empty'} is not a folder that can be written to. Say --out FOLDER."
        )


def test_the_name_of_a_folder_of_results() -> None:
    # SHA-256 of [1, {"a": 2, "b": 3}], as sha256sum gives it.
    content = [1, {"b": 3, "a": 2}]
    assert digest(content) == digest([1, {"a": 2, "b": 3}]) == "ec175154"
    settings = GenerateConfig(seed=7)
    assert title(settings, content) == f"{settings.pegasus.pairs}-{settings.pegasus.mixing}-none-s7-ec175154"


def test_a_path_is_told_without_the_users_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "anna"
    (home / "work").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home / "work")
    for path, told in (
        ("runs/first", "runs/first"),
        (home / "work" / "runs" / "first", "runs/first"),
        ("../photos/cats", "~/photos/cats"),
        ("~/photos", "~/photos"),
        (home / "photos", "~/photos"),
        (tmp_path / "ben" / "photos", ".../photos"),
        (home / "work", "~/work"),
    ):
        assert path_told(path) == told
    monkeypatch.chdir("/")  # below which everything lies
    assert path_told(tmp_path / "ben" / "photos") == ".../photos"
    monkeypatch.delenv("HOME")
    assert path_told("runs") == ".../runs"


def test_the_parents_of_an_old_record_are_those_of_a_new_one(tmp_path: Path) -> None:
    old = {"source": "image_folder", "root": f"{tmp_path}/photos", "split": "test"}
    new = origin_told(old)
    assert new == old | {"root": ".../photos"}
    assert same_origin(old, new) and same_origin(old, old | {"root": "~/photos"})
    assert same_origin(new | {"root": "photos/cropped"}, new | {"root": "~/project/photos/cropped"})
    assert not same_origin(new | {"root": "old/cropped"}, new | {"root": "new/cropped"})
    for other in (old | {"root": "drawings"}, old | {"split": "train"}, {"files": ["a"]}, None, []):
        assert not same_origin(old, other) and not same_origin(other, new)
    assert origin_told({"files": [f"{tmp_path}/a.png"]}) == {"files": [".../a.png"]}
    assert origin_told({"codes": "drawn"}) == {"codes": "drawn"}


def test_the_link_to_the_latest_results_moves_and_harms_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "run" / "pegasi"
    for name in ("a", "b"):
        (home / name).mkdir(parents=True)
        link_latest(home / name)
        assert os.readlink(home / "latest") == name  # relative: it holds when the run is moved
    (tmp_path / "run" / "checkpoints").mkdir()
    assert find_runs([str(tmp_path)], "checkpoints") == [tmp_path / "run"]
    (home / "latest").unlink()
    (home / "latest").mkdir()
    link_latest(home / "a")
    assert not (home / "latest").is_symlink()  # somebody's folder

    def refuse(*_: object, **__: object) -> None:
        raise OSError(1, "Operation not permitted")

    (home / "latest").rmdir()
    monkeypatch.setattr("os.symlink", refuse)  # as on some file systems
    link_latest(home / "a")
    assert sorted(path.name for path in home.iterdir()) == ["a", "b"]
