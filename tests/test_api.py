"""Tests of the package in Python: load, train, make_pegasi, read_images."""

from __future__ import annotations

import dataclasses
import doctest
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import pegasus_lightning
from pegasus_lightning import UserError, api, judge, load, load_images, make_pegasi, read_images
from pegasus_lightning.data import silhouettes
from pegasus_lightning.data.image_folder import decode
from pegasus_lightning.export.model_files import ExportedModel, export_checkpoint
from pegasus_lightning.models.vae import VAE
from pegasus_lightning.recognisers.store import RecogniserStore
from pegasus_lightning.recognisers.training import standard_recipe
from pegasus_lightning.runs.trained import open_run

ROOT = Path(__file__).parent.parent
TINY = [
    *("model=vae", "data=silhouettes", "data.train_per_class=24", "data.test_per_class=8", "data.batch_size=16"),
    *("model.networks.channels=4", "model.networks.latent_dim=8", "callbacks=quiet", "callbacks.images=false"),
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model that was trained in a thread, as notebooks and servers do."""
    home = tmp_path_factory.mktemp("api")
    found: list[Any] = []
    before = os.environ.get("CUDA_VISIBLE_DEVICES")

    def work() -> None:
        more = {"trainer.gpus": 0, "trainer.max_epochs": 1, "runs_dir": str(home / "runs"), "trainer.precision": "32"}
        found.append(pegasus_lightning.train(*TINY, **more))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == before
    return found[0]


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a large JPEG and a PNG with transparency."""
    noise = np.random.default_rng(0).integers(0, 256, (90, 120, 4), dtype=np.uint8)
    Image.fromarray(noise[..., :3]).resize((1200, 900)).save(tmp_path / "horse.jpg")
    Image.fromarray(noise).save(tmp_path / "bird.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_session_in_the_packages_docstring_runs(pictures: Path) -> None:
    failed, tried = doctest.testmod(pegasus_lightning, raise_on_error=False)
    assert (failed, tried) == (0, 8)
    assert all(getattr(pegasus_lightning, name).__doc__ for name in pegasus_lightning.__all__)


def test_the_session_of_the_documentation_runs(pictures: Path) -> None:
    text = (ROOT / "docs" / "runs.md").read_text().split("## Loading a model in Python")[1]
    code = text.split("```python\n")[1].split("```")[0]
    names: dict[str, Any] = {}
    exec("\n".join(line for line in code.splitlines() if not line.startswith("trained = ")), names)
    assert names["pegasi"].shape == (3, 3, 32, 32) and len(names["codes"]) == 2


def test_every_way_of_naming_a_model_gives_the_same_model(trained: Any, tmp_path: Path) -> None:
    runs, checkpoint = trained.folder.parent, trained.folder / "checkpoints" / "last.ckpt"
    export_checkpoint(checkpoint, tmp_path / "shared")
    images = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        wanted = trained.model.reconstruct(images)
        for source in (runs, trained.folder, str(checkpoint), tmp_path / "shared"):
            model = load(source)
            codes = model.encode(images).mean
            assert torch.equal(model.reconstruct(images), wanted)
            frames = model.interpolate(codes[:1], codes[1:2], torch.tensor([0.0, 1.0]))
            torch.testing.assert_close(frames[0], wanted[:2])
    assert isinstance(trained.model, VAE) and not trained.model.training
    assert isinstance(load(tmp_path / "shared"), ExportedModel)
    assert pegasus_lightning.train.trainer.train  # the package of that name is still there


def test_pegasi_by_hand(trained: Any, pictures: Path) -> None:
    images = torch.from_numpy(np.stack([decode(pictures / name) for name in ("horse.jpg", "bird.png")])) / 255
    assert torch.equal(read_images(["horse.jpg", Image.open("bird.png")]), images)
    model = trained.model
    with torch.no_grad():
        one, other = model.encode(images).mean
        wanted = model.decode(torch.stack([one + (other - one) * ratio for ratio in (0.25, 1.0)]))
        made = make_pegasi(trained.folder, "horse.jpg", images[1], ratio=[0.25, 1.0])
        torch.testing.assert_close(made, wanted, atol=1e-5, rtol=0)
    drawn = [make_pegasi(model, "horse.jpg", "bird.png", seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    with pytest.raises(UserError, match="2 first pictures, 1 second ones and 3 ratios: give one or 3 of each"):
        make_pegasi(model, images, images[0], ratio=[0.1, 0.2, 0.3])
    with pytest.raises(UserError, match="out of range: 0 is the first picture"):
        make_pegasi(model, "horse.jpg", "bird.png", ratio=1.5)


def test_arrays_of_every_layout_are_the_same_images(pictures: Path) -> None:
    pixels = np.asarray(Image.open("bird.png"))  # (90, 120, 4)
    wanted = read_images("bird.png")
    last, first = pixels, pixels.transpose(2, 0, 1)
    for array in (last, first, last[None], first[None], torch.tensor(first), (last / 255).astype(np.float32), [last]):
        assert torch.equal(read_images(array), wanted)
    grey = read_images(pixels[..., 0])
    assert torch.equal(grey, read_images(Image.fromarray(pixels[..., 0]))) and torch.equal(grey[:, 0], grey[:, 2])
    exact = torch.rand(2, 3, 32, 32)
    assert torch.equal(read_images(exact), exact)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 5, 32, 32), np.uint8), r"Images of shape \(2, 5, 32, 32\) are not understood: give \(H, W\), "),
        (np.zeros((3, 4, 4)), r"shape \(3, 4, 4\) .* at least 8"),
        (np.full((32, 32, 3), 2.0), "from 2 to 2: "),
        (np.full((32, 32, 3), np.nan), "from nan to nan: "),
        (np.zeros((32, 32), int), "of type int64: give uint8 or floats"),
        ({"a": 1}, "A dict is no image"),
        ([], "the list is empty"),
        ("nix.png", "There is no image nix.png"),
    ],
)
def test_what_is_no_image_gets_one_sentence(images: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        read_images(images)
    assert str(error.value).count("\n") == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["model=acaii"], "Did you mean 'acai'"),
        (["-m", "model=vae"], "'-m' is no setting: write key=value"),
        (["model.foo=3"], "There is no setting 'model.foo'"),
        (["trainer.max_epochs=x"], "trainer.max_epochs has a value of the wrong type"),
        (["trainer.dry_run=true"], "are for the command line"),
    ],
)
def test_a_mistake_in_a_training_is_a_user_error_and_writes_nothing(
    settings: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        pegasus_lightning.train(*settings, runs_dir=str(tmp_path / "runs"))
    assert not (tmp_path / "runs").exists()


def test_what_cannot_be_loaded_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"export pegasos. Did you mean 'pegasus'\?"):
        load("pegasos")
    for name in ("a", "b"):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        (tmp_path / name / "checkpoints" / "last.ckpt").touch()
    with pytest.raises(UserError, match="holds 2 runs: name one of"):
        load(tmp_path)


def test_the_images_of_a_run_are_those_it_was_trained_on(trained: Any) -> None:
    images, labels, classes = load_images(trained.folder, split="train")
    drawn, kinds = silhouettes.load(["horse", "bird"], "train", 24, 0)
    assert torch.equal(images, drawn / 255) and torch.equal(labels, kinds) and classes == ("horse", "bird")
    other = load_images("data=silhouettes", "data.test_per_class=9", "data.classes=[bird,horse]")
    assert (len(other.images), other.classes, other.labels.sum()) == (18, ("bird", "horse"), 9)
    assert len(load_images(trained.folder, "data.test_per_class=10").images) == 20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data=silhouette"], "Did you mean 'silhouettes'"),
        (["runs/nothing"], "There is no run folder"),
        (["data=image_folder"], "data.root=FOLDER"),
        (["data=silhouettes", "data.test_per_class=0"], "at least 8"),
    ],
)
def test_images_that_there_are_not_are_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_images(*arguments)
    with pytest.raises(UserError, match="no split 'val'"):
        load_images("data=silhouettes", split="val")


def test_the_judge_is_the_recogniser_that_evaluate_reports_with(
    trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shown a few images alone, whatever its recipe says."""
    recipe = dataclasses.replace(standard_recipe("residual"), epochs=1, least=32, most=32)
    asked: list[str] = []
    monkeypatch.setattr(api, "standard_recipe", lambda architecture: asked.append(architecture) or recipe)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    images = load_images(trained.folder).images
    found = judge(images, trained.folder)
    assert asked == ["residual"] and found.shape == (16, 2)
    stored = RecogniserStore().find(open_run(trained.folder).config.data, recipe)  # type: ignore[union-attr]
    assert stored is not None
    with torch.no_grad():
        torch.testing.assert_close(found, torch.sigmoid(stored.recogniser(images)))
    same = ["data=silhouettes", "data.train_per_class=24", "data.test_per_class=8"]
    torch.testing.assert_close(judge(images[:3], *same), found[:3])
    assert len(list(tmp_path.rglob("*.pt"))) == 1  # one recogniser served all
