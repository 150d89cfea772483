"""A run's images are the run's images: another set is told, and never mixed in."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pegasus_lightning.data.batches import ImageSet
from pegasus_lightning.data.module import ImageDataModule, split_validation
from pegasus_lightning.data.settings import ImageFolderConfig
from pegasus_lightning.launch.command import run_command

SETTINGS = [
    "model=vae",
    "data=image_folder",
    "data.root=photos",
    "data.cache=cache",
    "data.batch_size=8",
    "data.validation_fraction=0.2",
    "model.networks.channels=4",
    "model.networks.latent_dim=8",
    "trainer.gpus=0",
    "trainer.max_epochs=1",
    "callbacks=quiet",
]


def draw(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ten horses and ten birds to train on, two of each to test, in a working folder of their own."""
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "photos"
    for label, name in enumerate(("horse", "bird")):
        for index in range(10):
            draw(root / "train" / name / f"{index}.png", 100 * label + index)
        for index in range(2):
            draw(root / "test" / name / f"{index}.png", 500 + 100 * label + index)
    return root


def validation_of(root: Path, **settings: bool) -> set[bytes]:
    config = ImageFolderConfig(root=str(root), cache="cache", batch_size=8, validation_fraction=0.2)
    module = ImageDataModule(config, seed=0, with_test=False, **settings)
    assert len(module.train) + len(module.validation) == len(list(root.glob("train/*/*")))
    return {image.numpy().tobytes() for image in module.validation.images}


@pytest.mark.promise(19)
def test_the_validation_images_follow_from_their_content(photos: Path) -> None:
    # By hand: the fifth of the files with the lowest SHA-256.
    files = sorted(photos.glob("train/*/*"), key=lambda file: hashlib.sha256(file.read_bytes()).digest())
    expected = {np.asarray(Image.open(file)).transpose(2, 0, 1).tobytes() for file in files[:4]}
    assert validation_of(photos) == expected
    for index, file in enumerate(sorted(photos.glob("train/*/*"))):  # other names, other order
        file.rename(file.with_name(f"z{99 - index}.png"))
    assert validation_of(photos) == expected
    assert validation_of(photos, by_position=True) != expected


def test_without_contents_the_split_is_that_of_earlier_versions() -> None:
    numbered = torch.arange(20, dtype=torch.uint8)[:, None, None, None].expand(20, 3, 32, 32)
    _, validation = split_validation(ImageSet(numbered, torch.zeros(20), ("a",)), 0.2)
    assert validation.images[:, 0, 0, 0].tolist() == [4, 15, 17, 8]  # seen at version 0.1.0


@pytest.mark.slow
@pytest.mark.promise(19)
def test_images_that_are_added_removed_or_replaced_are_told_and_never_mixed_in(
    photos: Path, capsys: pytest.CaptureFixture
) -> None:
    assert run_command(SETTINGS) == 0
    (run,) = Path("runs/single").iterdir()
    status = json.loads((run / "status.json").read_text())
    assert status["images"]["count"] == 20 and status["images"]["validation"] == "content"
    kept = photos.with_name("kept")
    shutil.copytree(photos, kept)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}

    def add() -> None:
        draw(photos / "train" / "bird" / "new.png", 900)

    def remove() -> None:
        (photos / "train" / "horse" / "3.png").unlink()

    def replace() -> None:
        draw(photos / "train" / "horse" / "3.png", 900)

    def move() -> None:  # to the other class
        (photos / "train" / "horse" / "3.png").rename(photos / "train" / "bird" / "from.png")

    capsys.readouterr()
    for change, count in [(add, 21), (remove, 19), (replace, 20), (move, 20)]:
        change()
        for more in ([], ["trainer.max_epochs=2"]):  # finished, and to be continued
            assert run_command([*SETTINGS, *more]) == 2
            said = capsys.readouterr().err
            assert f"was trained on 20 images, and photos now holds another set of {count}." in said
            assert said.count("\n") == 1
        assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
        shutil.rmtree(photos)
        shutil.copytree(kept, photos)

    for index, file in enumerate(sorted(photos.glob("train/horse/*"))):  # the same images under other names
        file.rename(file.with_name(f"z{99 - index}.png"))
    (run / "status.json").write_text("{")  # the checkpoint has the record too
    draw(photos / "train" / "horse" / "z99.png", 900)
    assert run_command([*SETTINGS, "trainer.max_epochs=2"]) == 2
    draw(photos / "train" / "horse" / "z99.png", 0)
    assert run_command([*SETTINGS, "trainer.max_epochs=2"]) == 0
    assert "Continuing from last.ckpt: 1 epochs done." in capsys.readouterr().out
    assert json.loads((run / "status.json").read_text())["images"] == status["images"]
    add()
    assert run_command([*SETTINGS, "run_name=larger"]) == 0  # the advice
    for file in photos.glob("train/horse/*"):
        file.unlink()  # images that are gone do not make a finished run another
    capsys.readouterr()
    assert run_command([*SETTINGS, "trainer.max_epochs=2"]) == 0
    assert "Already trained" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.promise(19)
def test_a_sweep_lists_a_finished_run_whose_images_have_changed(photos: Path, capfd: pytest.CaptureFixture) -> None:
    assert run_command(SETTINGS) == 0
    assert run_command(["-m", *SETTINGS, "seed=0"]) == 0
    assert "1 finished before" in capfd.readouterr().out
    draw(photos / "train" / "bird" / "new.png", 900)
    assert run_command(["-m", *SETTINGS, "seed=0"]) == 1
    assert "now holds another set of 21" in " ".join(capfd.readouterr().out.split())
