"""Tests of the store: trained once and found again under a name of images and recipe; broken files are replaced."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from pegasus_lightning.data.kinds import Kinds, load_kinds
from pegasus_lightning.data.settings import SilhouettesConfig
from pegasus_lightning.recognisers import store
from pegasus_lightning.recognisers.network import Recogniser
from pegasus_lightning.recognisers.store import RecogniserStore, StoredRecogniser, measure
from pegasus_lightning.recognisers.training import (
    RecogniserConfig,
    guiding_recipe,
    half_of,
    independent_recipe,
    standard_recipe,
)
from pegasus_lightning.utils.errors import UserError
from pegasus_lightning.utils.files import sha256

SOURCE = SilhouettesConfig(train_per_class=8, test_per_class=8)
RECIPE = RecogniserConfig("residual", least=16, most=16, batch_size=8)
IMAGES = load_kinds(SOURCE, "train").images[::5]


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[RecogniserConfig]:
    """The recipes of the trainings that were started."""
    started: list[RecogniserConfig] = []
    train = store.train_recogniser

    def watched(config: RecogniserConfig, kinds: Kinds, **others: Any) -> Recogniser:
        started.append(config)
        return train(config, kinds, **others)

    monkeypatch.setattr(store, "train_recogniser", watched)
    return started


def silent(folder: Path) -> RecogniserStore:
    return RecogniserStore(folder, say=lambda _: None)


def get(folder: Path, recipe: RecogniserConfig = RECIPE) -> StoredRecogniser:
    return silent(folder).get(SOURCE, recipe)


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> StoredRecogniser:
    """A recogniser, alone in its store."""
    return get(tmp_path_factory.mktemp("once") / "store")


@pytest.fixture
def stored(once: StoredRecogniser, tmp_path: Path) -> StoredRecogniser:
    """The same in a copy of its store, `tmp_path`."""
    shutil.copytree(once.path.parent, tmp_path, dirs_exist_ok=True)
    return once._replace(path=tmp_path / once.path.name)


def test_it_is_trained_once_and_then_the_same(tmp_path: Path, trainings: list[RecogniserConfig]) -> None:
    said: list[str] = []
    kept = RecogniserStore(tmp_path / "a" / "store", say=said.append)
    assert kept.find(SOURCE, RECIPE) is None
    assert not (tmp_path / "a").exists()
    first = kept.get(SOURCE, RECIPE)
    assert len(said) == 2
    assert "32 images" in said[0]  # eight of each of four kinds
    assert "horse or not" in said[1]
    for other in (kept.get(SOURCE, RECIPE), kept.find(SOURCE, RECIPE)):
        assert other is not None
        assert other.path == first.path
        assert other.quality == first.quality
        assert torch.equal(other.recogniser(IMAGES / 255), first.recogniser(IMAGES / 255))
        assert other.recogniser.frozen
        assert other.recogniser.classes == ("horse", "bird")
    assert len(trainings) == 1
    assert len(said) == 2


def test_the_name_says_of_what_and_both_files_are_all_there_is(stored: StoredRecogniser, tmp_path: Path) -> None:
    stem, _, digest = stored.path.stem.rpartition("-")
    assert stem == "horse-bird-residual-s0"
    assert len(digest) == 8
    assert int(digest, 16) >= 0
    files = {path.name for path in tmp_path.iterdir()} - {f".{stored.path.name}.lock"}
    assert files == {stored.path.name, stored.path.stem + ".json"}
    about = json.loads(stored.path.with_suffix(".json").read_text())
    assert about["sha256"] == sha256(stored.path)
    assert about["train_images"] == about["test_images"] == 32
    assert about["images_shown"] == 16
    assert about["temperature"] == stored.recogniser.temperature.tolist()
    assert set(about["both"]) == {"horse", "bird", "pegasus", "scene"}


def test_other_images_classes_or_recipe_have_another_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def name(source: Any = SOURCE, recipe: RecogniserConfig = RECIPE) -> str:
        return store._place(tmp_path, recipe, load_kinds(source, "train")).name

    names = [
        name(),
        name(dataclasses.replace(SOURCE, drawing_seed=1)),
        name(dataclasses.replace(SOURCE, train_per_class=9)),
        name(dataclasses.replace(SOURCE, classes=["bird", "horse"])),
        name(recipe=dataclasses.replace(RECIPE, lr=0.02)),
        name(recipe=dataclasses.replace(RECIPE, seed=1)),
        name(recipe=dataclasses.replace(RECIPE, architecture="plain")),
    ]
    hashes = [one[-11:-3] for one in names]
    assert len(set(hashes)) == len(names)
    # The test split and settings of the autoencoders alone are no part of it.
    assert name(dataclasses.replace(SOURCE, test_per_class=9, batch_size=7, validation_fraction=0.5)) == names[0]
    kinds = load_kinds(SOURCE, "train")
    kinds.images[5, 1, 7, 7] ^= 1  # a single bit of a single pixel
    assert store._place(tmp_path, RECIPE, kinds).name != names[0]
    monkeypatch.setattr(store, "RECIPE_VERSION", -1)
    assert name() != names[0]


@pytest.mark.parametrize("harm", ["a flipped bit", "cut short", "no json", "half a json", "weights of another net"])
def test_what_is_broken_is_logged_and_trained_again(
    harm: str,
    stored: StoredRecogniser,
    tmp_path: Path,
    trainings: list[RecogniserConfig],
    caplog: pytest.LogCaptureFixture,
) -> None:
    logits = stored.recogniser(IMAGES / 255)
    path, about = stored.path, stored.path.with_suffix(".json")
    whole = path.read_bytes()
    if harm == "a flipped bit":
        path.write_bytes(whole[:90_000] + bytes([whole[90_000] ^ 1]) + whole[90_001:])
    elif harm == "cut short":
        path.write_bytes(whole[:1000])
    elif harm == "no json":  # as after a kill between the two
        about.unlink()
    elif harm == "half a json":
        about.write_text(about.read_text()[:40])
    else:
        other = Recogniser("plain", ("horse", "bird"), kinds=4)
        torch.save(other.state_dict(), path)
        about.write_text(json.dumps({**stored.quality, "sha256": sha256(path)}))
    with caplog.at_level(logging.WARNING):
        assert silent(tmp_path).find(SOURCE, RECIPE) is None
    if harm != "no json":
        (message,) = caplog.messages
        assert "corrupt" in message
        assert "\n" not in message
    again = get(tmp_path)
    assert len(trainings) == 1
    assert torch.equal(again.recogniser(IMAGES / 255), logits)
    assert json.loads(about.read_text())["sha256"] == sha256(path)


def test_nothing_is_unpickled_but_tensors(stored: StoredRecogniser, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "sprung",))

    torch.save({"mean": Trap()}, stored.path)
    stored.path.with_suffix(".json").write_text(json.dumps({**stored.quality, "sha256": sha256(stored.path)}))
    assert silent(tmp_path).find(SOURCE, RECIPE) is None
    assert not (tmp_path / "sprung").exists()


def test_an_interrupted_training_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> Recogniser:
        raise KeyboardInterrupt

    train = store.train_recogniser
    monkeypatch.setattr(store, "train_recogniser", interrupted)
    with pytest.raises(KeyboardInterrupt):
        get(tmp_path)
    assert [path.suffix for path in tmp_path.iterdir()] in ([], [".lock"])
    monkeypatch.setattr(store, "train_recogniser", train)
    assert get(tmp_path).path.exists()  # nor is the lock still held


def test_two_at_a_time_train_one(tmp_path: Path, trainings: list[RecogniserConfig]) -> None:
    got: list[Any] = []
    said: list[str] = []

    def ask() -> None:
        got.append(RecogniserStore(tmp_path, say=said.append).get(SOURCE, RECIPE))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 3
    assert len(trainings) == 1
    assert sum("waiting" in line for line in said) == 2


def test_a_store_that_cannot_be_written_to_is_refused_before_the_training(
    tmp_path: Path, trainings: list[RecogniserConfig]
) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="XDG_CACHE_HOME"):
        get(tmp_path / "file" / "store")
    assert not trainings


def test_a_full_disk_costs_the_file_not_the_recogniser(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "write_json", full)
    stored = get(tmp_path)
    assert "No space left" in caplog.text
    assert stored.recogniser(IMAGES / 255).shape == (len(IMAGES), 2)
    assert silent(tmp_path).find(SOURCE, RECIPE) is None


def test_what_a_killed_training_left_is_cleared_away(stored: StoredRecogniser, tmp_path: Path) -> None:
    leftover, foreign = tmp_path / f".{stored.path.name}.0a1b2c3d.tmp", tmp_path / ".horse-cat.pt.0a1b2c3d.tmp"
    for path in (leftover, foreign):
        path.write_bytes(b"half")
    get(tmp_path)
    assert not leftover.exists()
    assert foreign.exists()  # perhaps being written


def test_quality_by_hand() -> None:
    """A recogniser that goes by two pixels: red above 1/2 is a horse, green a bird."""
    model = Recogniser("plain", ("horse", "bird"))
    model.forward = lambda images: (images[:, :2, 0, 0] - 0.5) * 1000  # type: ignore[method-assign]
    seen = torch.tensor([[1, 0], [1, 1], [0, 0], [0, 1], [1, 1], [0, 0]])  # said of two horses, a bird, three cats
    images = torch.zeros(6, 3, 32, 32, dtype=torch.uint8)
    images[:, :2, 0, 0] = (seen * 255).byte()
    targets = torch.tensor([[1, 0], [1, 0], [0, 1], [0, 0], [0, 0], [0, 0]]).float()
    test = Kinds(images, torch.tensor([0, 0, 1, 2, 2, 2]), ("horse", "bird", "cat"), targets)
    quality = measure(model, test)
    assert quality["sensitivity"] == pytest.approx([1, 0])
    assert quality["specificity"] == pytest.approx([3 / 4, 2 / 5])
    assert quality["balanced_accuracy"] == pytest.approx([7 / 8, 1 / 5])
    assert quality["both"] == pytest.approx({"horse": 1 / 2, "bird": 0, "cat": 1 / 3})
    assert quality["calibration_error"] == pytest.approx([1 / 8, (1 + 3 / 5) / 2])
    assert quality["test_images"] == 6


def test_an_empty_store_is_known_without_a_look_at_any_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Kinds:
        raise AssertionError("images were loaded")

    (tmp_path / "horse-bird-residual-s0-00000000.pt").touch()  # another architecture's
    monkeypatch.setattr(store, "load_kinds", refuse)
    assert silent(tmp_path).find(SOURCE, standard_recipe("plain")) is None
    with pytest.raises(AssertionError, match="images were loaded"):
        silent(tmp_path).find(SOURCE, standard_recipe("residual"))


def small_kinds() -> Kinds:
    images = (torch.arange(4 * 3 * 32 * 32) % 251).byte().view(4, 3, 32, 32)
    kinds = torch.tensor([0, 1, 0, 2])
    targets = torch.tensor([[1.0, 0], [0, 1], [1, 0], [0, 0]])
    return Kinds(images, kinds, ("horse", "bird", "cat"), targets)


LATER = ("half", "augmentation", "adversarial", "third")  # fields that came when recognisers were already kept


def test_a_recipe_without_the_later_fields_has_the_name_that_it_had_before_them(tmp_path: Path) -> None:
    kinds = small_kinds()
    for recipe in (RECIPE, RecogniserConfig("plain", seed=3, lr=0.02)):
        old = {name: value for name, value in dataclasses.asdict(recipe).items() if name not in LATER}
        digest = hashlib.sha256(json.dumps([1, old, kinds.names]).encode())
        for values in (kinds.images, kinds.kinds, kinds.targets):
            digest.update(values.numpy().tobytes())
        name = f"horse-bird-{recipe.architecture}-s{recipe.seed}-{digest.hexdigest()[:8]}.pt"
        assert store._place(tmp_path, recipe, kinds) == tmp_path / name
    assert store.RECIPE_VERSION == 1
    # And once and for all: what is kept on users' disks is found again.
    assert store._place(tmp_path, RecogniserConfig("plain"), kinds).name == "horse-bird-plain-s0-c6c3be1b.pt"


def test_each_of_the_later_fields_makes_another_name(tmp_path: Path) -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"half": 0},  # not taken for none
        {"half": 1},
        {"augmentation": ("cutout",)},
        {"augmentation": ("cutout", "contrast")},
        {"adversarial": 0.01},
    ]
    recipes = [dataclasses.replace(RECIPE, **change) for change in changes]
    names = [store._place(tmp_path, recipe, small_kinds()).name for recipe in recipes]
    assert len(set(names)) == len(names)
    guides, reports = guiding_recipe("plain"), independent_recipe("plain")
    assert len({store._place(tmp_path, recipe, small_kinds()) for recipe in (guides, reports)}) == 2


def test_what_is_said_and_recorded_is_of_the_half_it_learned_from(tmp_path: Path) -> None:
    said: list[str] = []
    recipe = dataclasses.replace(RECIPE, half=1)
    stored = RecogniserStore(tmp_path, say=said.append).get(SOURCE, recipe)
    assert "on 16 images" in said[0]  # four of each of four kinds
    assert stored.quality["train_images"] == len(half_of(load_kinds(SOURCE, "train"), 1)) == 16
    assert stored.quality["recipe"]["half"] == 1
    assert stored.quality["test_images"] == 32


def test_a_committee_is_trained_once_and_found_again(tmp_path: Path, trainings: list[RecogniserConfig]) -> None:
    def get_committee(*architectures: str, images: int = 8) -> StoredRecogniser:
        return silent(tmp_path).committee(SOURCE, architectures, images=images)

    first = get_committee("averaging", "residual")
    wanted = [dataclasses.replace(guiding_recipe(name), least=8, most=8) for name in ("averaging", "residual")]
    assert trainings == wanted
    again = get_committee("averaging", "residual")
    assert len(trainings) == 2
    for stored in (first, again):
        assert [member.architecture for member in stored.recogniser.members] == ["averaging", "residual"]
        assert all(member.frozen for member in stored.recogniser.members)
    assert torch.equal(first.recogniser(IMAGES / 255), again.recogniser(IMAGES / 255))
    assert first.path == again.path
    # Each lies in a file of its own, where it is found alone too; a third member trains that one alone.
    alone = silent(tmp_path).get(SOURCE, wanted[1])
    assert len(trainings) == 2
    assert torch.equal(alone.recogniser(IMAGES / 255), first.recogniser.members[1](IMAGES / 255))
    assert not first.path.exists()  # but its members' files do
    assert alone.path.name in [member["file"] for member in first.quality["members"]]
    assert first.member_hashes == [sha256(tmp_path / member["file"]) for member in first.quality["members"]]
    del first.quality["members"][0]["sha256"]  # as if it could not be saved
    assert first.member_hashes[0] == ""
    other = get_committee("residual", "plain")
    assert [recipe.architecture for recipe in trainings[2:]] == ["plain"]
    assert other.path != first.path
    get_committee("residual", images=9)
    assert trainings[-1].most == 9
    assert len(trainings) == 4


def test_too_few_images_to_learn_from_are_refused(
    tmp_path: Path, trainings: list[RecogniserConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three a class a half is one, and that is held out for the calibration."""
    few = load_kinds(SOURCE, "train")
    few = few.take(torch.cat([torch.nonzero(few.kinds == kind).flatten()[:3] for kind in range(2)]))
    monkeypatch.setattr(store, "load_kinds", lambda *_: few)
    with pytest.raises(UserError, match="too few training images to learn horse and bird from: 2 in all"):
        get(tmp_path, dataclasses.replace(RECIPE, half=0))
    assert trainings == []
    assert not list(tmp_path.glob("*.pt"))
