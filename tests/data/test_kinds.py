"""Kinds of images beside the two classes, and their targets."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from pegasus_lightning.data import cifar10, silhouettes
from pegasus_lightning.data.kinds import load_kinds
from pegasus_lightning.data.module import load_split
from pegasus_lightning.data.settings import CIFAR10Config, ImageFolderConfig, LinesConfig, SilhouettesConfig
from pegasus_lightning.utils.errors import UserError


def save(root: Path, split: str, kind: str, red: int) -> None:
    (root / split / kind).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (32, 32), (red, 0, 0)).save(root / split / kind / f"{red}.png")


@pytest.fixture
def folder(tmp_path: Path) -> ImageFolderConfig:
    """horse and bird; cat in train only, newt in test only; an empty folder, one with a text file, a hidden one."""
    root = tmp_path / "images"
    for split, kind, red in (
        ("train", "bird", 1), ("train", "cat", 2), ("train", "cat", 3), ("train", "horse", 4), ("train", ".thumbs", 5),
        ("test", "bird", 6), ("test", "horse", 7), ("test", "newt", 8),
    ):  # fmt: skip
        save(root, split, kind, red)
    (root / "train" / "empty").mkdir()
    (root / "train" / "dog").mkdir()
    (root / "train" / "dog" / "notes.txt").write_text("no dogs yet")
    (root / "train" / "dog" / "._a.png").write_bytes(b"what macOS leaves")
    return ImageFolderConfig(root=str(root), classes=["horse", "bird"], cache=str(tmp_path / "cache"))


def test_every_folder_with_images_is_a_kind_the_two_classes_first(folder: ImageFolderConfig) -> None:
    train, test = load_kinds(folder, "train"), load_kinds(folder, "test")
    assert train.names == ("horse", "bird", "cat")
    assert train.classes == ("horse", "bird")
    assert train.images[:, 0, 0, 0].tolist() == [4, 1, 2, 3]
    assert train.kinds.tolist() == [0, 1, 2, 2]
    assert train.targets.tolist() == [[1, 0], [0, 1], [0, 0], [0, 0]]
    assert test.names == ("horse", "bird", "newt")
    assert test.images[:, 0, 0, 0].tolist() == [7, 6, 8]
    assert test.targets.tolist() == [[1, 0], [0, 1], [0, 0]]


def test_the_order_of_the_classes_is_that_of_the_config(folder: ImageFolderConfig) -> None:
    folder.classes = ["cat", "horse"]
    kinds = load_kinds(folder, "train")
    assert kinds.names == ("cat", "horse", "bird")
    assert kinds.images[:, 0, 0, 0].tolist() == [2, 3, 4, 1]
    assert kinds.targets.tolist() == [[1, 0], [1, 0], [0, 1], [0, 0]]


def test_a_class_asked_for_must_be_there_in_either_split(folder: ImageFolderConfig) -> None:
    folder.classes = ["horse", "cat"]
    with pytest.raises(UserError, match="no class 'cat'"):
        load_kinds(folder, "test")
    folder.classes = ["horse", "dog"]  # a folder without images
    with pytest.raises(UserError, match=r"no \.png"):
        load_kinds(folder, "train")
    folder.root += "/nowhere"
    with pytest.raises(UserError, match="There is no folder"):
        load_kinds(folder, "train")


def test_cifar10_gives_all_ten(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def archive(root: Path, classes: list[str], split: str, download: bool) -> tuple[torch.Tensor, torch.Tensor]:
        asked.append(list(classes))
        return torch.zeros(10, 3, 32, 32, dtype=torch.uint8), torch.arange(10)

    monkeypatch.setattr(cifar10, "load", archive)
    kinds = load_kinds(CIFAR10Config(classes=["horse", "bird"]), "train")
    assert asked == [list(kinds.names)]
    assert kinds.names[:2] == ("horse", "bird")
    assert sorted(kinds.names) == sorted(cifar10.CLASSES)
    assert kinds.targets[:2].tolist() == [[1, 0], [0, 1]]
    assert not kinds.targets[2:].any()


def test_silhouettes_tell_the_truth_about_a_pegasus_and_an_empty_scene() -> None:
    config = SilhouettesConfig(train_per_class=3, test_per_class=2)
    kinds = load_kinds(config, "train")
    assert kinds.names == ("horse", "bird", "pegasus", "scene")
    assert kinds.kinds.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert kinds.targets[::3].tolist() == [[1, 0], [0, 1], [1, 1], [0, 0]]
    drawn, _ = silhouettes.load(["horse", "bird", "pegasus"], "train", 3, 0)
    assert torch.equal(kinds.images[:9], drawn)
    assert torch.equal(load_kinds(config, "test").images[-2:], silhouettes.load_scenes("test", 2, 0))
    config.classes = ["bird", "pegasus"]
    kinds = load_kinds(config, "train")
    assert kinds.names == ("bird", "pegasus", "horse", "scene")
    assert kinds.targets[::3].tolist() == [[1, 0], [1, 1], [0, 0], [0, 0]]


def test_many_silhouettes_are_drawn_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = SilhouettesConfig(train_per_class=2, test_per_class=2)
    fresh = load_kinds(config, "train").images
    assert not list(tmp_path.iterdir())  # too few images to be cached
    drawings: list[str] = []
    scenes = silhouettes.load_scenes
    monkeypatch.setattr(silhouettes, "load_scenes", lambda *key: drawings.append(key[0]) or scenes(*key))
    monkeypatch.setattr("pegasus_lightning.data.kinds.WORTH_KEEPING", 8)
    for _ in range(2):
        assert torch.equal(load_kinds(config, "train").images, fresh)
    assert drawings == ["train"]
    load_kinds(config, "test")
    load_kinds(SilhouettesConfig(train_per_class=2, drawing_seed=1), "train")
    load_kinds(SilhouettesConfig(train_per_class=3), "train")
    load_kinds(SilhouettesConfig(train_per_class=2, classes=["bird", "horse"]), "train")
    assert len(drawings) == 5
    monkeypatch.setattr("PIL.__version__", "another")  # another version may draw other pixels
    load_kinds(config, "train")
    assert len(drawings) == 6


def test_lines_have_no_others_and_are_what_the_model_trains_on() -> None:
    config = LinesConfig(train_per_class=3, test_per_class=2)
    kinds, split = load_kinds(config, "test"), load_split(config, "test")
    assert kinds.names == ("up", "down")
    assert torch.equal(kinds.images, split.images)
    assert kinds.targets.tolist() == [[1, 0], [1, 0], [0, 1], [0, 1]]


def test_taking_keeps_image_kind_and_target_together(folder: ImageFolderConfig) -> None:
    taken = load_kinds(folder, "train").take(torch.tensor([3, 1]))
    assert len(taken) == 2
    assert taken.images[:, 0, 0, 0].tolist() == [3, 1]
    assert taken.kinds.tolist() == [2, 1]
    assert taken.targets.tolist() == [[0, 0], [0, 1]]
