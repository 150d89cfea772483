"""Tests of `generate` with one tiny model on drawings: what it writes, that it can be repeated, what it refuses."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pegasus_lightning.data.silhouettes import load
from pegasus_lightning.generate import pipeline, pretrained, session
from pegasus_lightning.generate.__main__ import _work
from pegasus_lightning.generate.figures import cards, mixes
from pegasus_lightning.generate.figures import draw as drawing
from pegasus_lightning.generate.figures import pipeline as pipeline_figures
from pegasus_lightning.generate.mixing import code_noise
from pegasus_lightning.generate.pairs import Parents
from pegasus_lightning.generate.settings import GENERATE, GenerateConfig, PegasusConfig, validate
from pegasus_lightning.models import model_class
from pegasus_lightning.models.latent import lerp
from pegasus_lightning.recognisers.committee import Committee
from pegasus_lightning.recognisers.network import Recogniser
from pegasus_lightning.recognisers.store import RecogniserStore, StoredRecogniser
from pegasus_lightning.runs.checkpoints import load_model
from pegasus_lightning.train.settings import TRAIN
from pegasus_lightning.train.trainer import train
from pegasus_lightning.utils import image_grid
from pegasus_lightning.utils.errors import UserError
from pegasus_lightning.utils.program import answered, quote_paths, run_program
from pegasus_lightning.utils.randomness import Stream, generator
from pegasus_lightning.utils.tensors import to_float, to_uint8

TINY = [
    "data.batch_size=16",
    "model.networks.channels=4",
    "model.networks.latent_dim=8",
    "trainer.gpus=0",
    "trainer.max_epochs=1",
    "trainer.precision=32",
    "trainer.evaluate_test=false",
    "callbacks=quiet",
    "callbacks.images=false",
]
DRAWN = ["data=silhouettes", "data.train_per_class=40", "data.test_per_class=30"]
FAR = "pegasus.threshold=1"
DEFAULT_FIGURES = ("best", "diagram", "gallery", "pegasi", "pipeline", "repeats")


def trained(folder: Path, *overrides: str) -> Path:
    return train(TRAIN.compose([*TINY, *overrides, f"runs_dir={folder}"]), "tiny")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("runs"), *DRAWN, "model=adversarial_vae")


def photos(*, of_each: int = 30) -> tuple[torch.Tensor, torch.Tensor]:
    """Horses and birds of the test split."""
    drawn, labels = load(["horse", "bird"], "test", of_each, 0)
    return drawn[labels == 0], drawn[labels == 1]


class Answer(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def generate(capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    def call(*arguments: str) -> Answer:
        code = run_program(GENERATE, [*arguments, "gpus=0"], _work)
        return Answer(code, *capsys.readouterr())

    return call


def make(out: Path | None, *runs: Path, **settings: Any) -> Path:
    """Call `generate` without a command line, presets and figures; the folder of the results of the first run.

    Args:
        settings: with __ for a dot.
    """
    defaults = {"run": [str(run) for run in runs], "out": out and str(out), "gpus": 0, "figures": [], "count": 3}
    config = OmegaConf.structured(GenerateConfig(**defaults, pegasus=PegasusConfig(threshold=1)))
    for key, value in settings.items():
        OmegaConf.update(config, key.replace("__", "."), value)
    validate(config)
    return pipeline.generate(config, [])[0]


@pytest.fixture(scope="module")
def made(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of one call with the default figures."""
    out = tmp_path_factory.mktemp("made") / "out"
    assert run_program(GENERATE, [f"run={run}", f"out={out}", "count=10", "seed=5", FAR, "gpus=0"], _work) == 0
    return out


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts drawn into pictures from here on."""
    texts: list[str] = []
    draw = image_grid.render_text

    def spy(text: str, *args: object, **keywords: object) -> np.ndarray:
        texts.append(text)
        return draw(text, *args, **keywords)  # type: ignore[arg-type]

    monkeypatch.setattr(image_grid, "render_text", spy)
    for module in (mixes, cards, pipeline_figures):
        monkeypatch.setattr(module, "render_text", spy)
    return texts


def record(folder: Path) -> dict:
    return json.loads((folder / "pegasi.json").read_text())


def folders(home: Path) -> list[Path]:
    """The folders of results; `latest` is a link to one of them."""
    found = [path for path in home.iterdir() if not path.is_symlink()]
    assert (home / "latest").resolve() in [path.resolve() for path in found]
    return found


def images_in(folder: Path) -> np.ndarray:
    with np.load(folder / "pegasi.npz") as arrays:
        return arrays["images"]


def same(images: torch.Tensor, saved: np.ndarray) -> bool:
    """Equal to one grey level: rounding depends on the batch size."""
    return np.abs(to_uint8(images).transpose(0, 3, 1, 2).astype(int) - saved).max() <= 1


def test_every_pegasus_can_be_made_again_by_hand_from_what_is_recorded(run: Path, made: Path) -> None:
    said, images = record(made), images_in(made)
    assert (images.shape, images.dtype) == ((10, 3, 32, 32), np.uint8)
    horses, birds = photos()
    model = load_model(run)
    for pegasus in said["pegasi"]:
        horse, bird = horses[[pegasus["first"]["index"]]], birds[[pegasus["second"]["index"]]]
        noise = code_noise(pegasus["seed"], torch.tensor([pegasus["draw"]]), 8)
        with model.inference():
            start = model.encode(to_float(horse)).sample_with(noise[:, 0])
            end = model.encode(to_float(bird)).sample_with(noise[:, 1])
            assert same(model.decode(lerp(start, end, pegasus["ratio"])), images[[pegasus["index"]]])
        assert 0.4 <= pegasus["ratio"] <= 0.6
        scores = pegasus["scores"]
        assert scores["score"] == pytest.approx(scores["critic"] + scores["overlap"], abs=1e-5)
        assert (pegasus["first"]["class"], pegasus["second"]["class"]) == ("horse", "bird")
    ranked = sorted(said["pegasi"], key=lambda pegasus: -pegasus["scores"]["score"])
    assert said["best"][0] == ranked[0]["index"]


@pytest.mark.slow
@pytest.mark.promise(14)
def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(
    run: Path, tmp_path: Path, generate: Callable[..., Answer]
) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert generate(f"run={run}", f"out={tmp_path / name}", "count=6", f"seed={seed}", FAR, "search=guided",
                        "search.steps=2", "search.pairs=8").code == 0  # fmt: skip
    names = sorted(path.name for path in (tmp_path / "a").iterdir() if path.is_file())
    pictures = ["best.png", "diagram.png", "filmstrip.png", "gallery.png", "pegasi.png"]
    pictures += ["pipeline.png", "repeats.png"]
    assert names == sorted([*pictures, "pegasi.json", "pegasi.npz"])
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
        if name != "diagram.png":
            assert (tmp_path / "a" / name).read_bytes() != (tmp_path / "c" / name).read_bytes(), name


def test_the_ratio_runs_from_the_first_class_to_the_second(run: Path, tmp_path: Path) -> None:
    model = load_model(run)
    for ratio, key, parents in zip((0, 1), ("first", "second"), photos(), strict=True):
        out = make(tmp_path / key, run, pegasus__ratio=[ratio, ratio], pegasus__codes="mean")
        chosen = parents[[pegasus[key]["index"] for pegasus in record(out)["pegasi"]]]
        with model.inference():
            assert same(model.reconstruct(to_float(chosen)), images_in(out))


def scores_in(folder: Path, name: str = "score") -> list[float]:
    return [pegasus["scores"][name] for pegasus in record(folder)["pegasi"]]


def test_best_of_keeps_better_ones_than_no_search_and_guidance_raises_their_score(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = make(tmp_path / "none", run, count=5)
    best = make(tmp_path / "best", run, count=5, search__method="best_of", search__pairs=100, search__ratios=3)
    assert "the best of 300 mixes" in capsys.readouterr().out
    assert scores_in(best) == sorted(scores_in(best), reverse=True)
    assert scores_in(best)[-1] > np.median(scores_in(drawn))
    parents = [pegasus["first"]["index"] for pegasus in record(best)["pegasi"]]
    assert max(parents.count(parent) for parent in parents) <= 2  # search.most_per_parent
    steps = {"search__method": "guided", "search__steps": 20, "search__pairs": 100, "search__ratios": 3}
    ascended = make(tmp_path / "guided", run, count=5, **steps)
    assert sum(scores_in(ascended)) > sum(scores_in(best)) + 0.05
    assert scores_in(ascended, "objective") == sorted(scores_in(ascended, "objective"), reverse=True)
    with np.load(ascended / "pegasi.npz") as arrays:
        assert arrays["trace"].shape == (21, 5)
        assert np.allclose(arrays["trace"][0], scores_in(ascended, "score_before"), atol=1e-5)
    make(tmp_path / "few", run, count=9, search__method="best_of", search__pairs=3, search__ratios=1)
    assert "3 pegasi (9 were asked for" in capsys.readouterr().out


def test_figures_go_into_the_runs_own_tensorboard_at_its_batch_once(run: Path, made: Path, tmp_path: Path) -> None:
    home = Path(shutil.copytree(run, tmp_path / "run"))
    before = set(home.glob("events.*"))
    for _ in range(2):
        make(None, home, figures=["pegasi", "best"])
    (added,) = set(home.glob("events.*")) - before  # the second replaced the first
    folder = (home / "pegasi" / "latest").resolve()
    assert added.name.endswith(f".{folder.name}")
    events = EventAccumulator(str(home), size_guidance={"images": 0}).Reload()
    figures = [tag for tag in events.Tags()["images"] if tag.startswith("pegasi/")]
    assert sorted(figures) == ["pegasi/best", "pegasi/pegasi"]
    picture = Image.open(folder / "best.png")
    (event,) = events.Images("pegasi/best")
    assert (event.step, event.width, event.height) == (load_model(run).batches_done, *picture.size)
    assert not list(made.rglob("events.*"))  # results elsewhere are no run of TensorBoard's


def test_without_out_results_lie_in_the_runs_folder_under_names_that_differ_with_the_settings(
    run: Path, tmp_path: Path
) -> None:
    home = shutil.copytree(run, tmp_path / "run")
    for settings in ({}, {}, {"seed": 1}, {"pegasus__mixing": "slerp"}):
        make(None, home, **settings)
    assert os.readlink(home / "pegasi" / "latest").startswith("colour-slerp-none-s0-")
    names = sorted(path.name[:-8] for path in folders(home / "pegasi"))
    assert names == ["colour-auto-none-s0-", "colour-auto-none-s1-", "colour-slerp-none-s0-"]


def test_several_runs_get_the_same_pairs_and_a_picture_side_by_side(
    run: Path, tmp_path: Path, generate: Callable[..., Answer], written: list[str]
) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(run, runs / "single" / "first,model=1")
    trained(runs, *DRAWN, "model=acai_paper")
    answer = generate(f"run={runs}", f"out={tmp_path / 'out'}", "count=3", "figures=[repeats,compare]", FAR)
    assert answer.code == 0, answer.err
    first, second = (record(tmp_path / "out" / name) for name in ("first,model=1", "tiny-s0"))
    for key in ("first", "second", "ratio"):
        assert [p[key] for p in first["pegasi"]] == [p[key] for p in second["pegasi"]]
    assert (tmp_path / "out" / "compare" / "compare.png").exists()
    assert {"first,model=1", "tiny-s0", "pixel average\n(control)"} <= set(written)
    assert any("codes are not sampled" in text for text in written)  # acai_paper's


def test_two_image_files_make_the_best_of_many_mixes(
    run: Path, tmp_path: Path, generate: Callable[..., Answer]
) -> None:
    horses, birds = photos()
    for name, image in (("a.png", horses[0]), ("b.png", birds[-1])):
        Image.fromarray(image.permute(1, 2, 0).numpy()).resize((64, 64), Image.Resampling.NEAREST).save(tmp_path / name)
    files = [f"first={tmp_path / 'a.png'}", f"second={tmp_path / 'b.png'}"]
    alone = shutil.copy(run / "checkpoints" / "last.ckpt", tmp_path / "alone.ckpt")
    answer = generate(f"run={alone}", *files, "pegasus.ratio=[0,0]", "pegasus.codes=mean")
    assert answer.code == 0, answer.err
    assert "8 pegasi, the best of 64 mixes\njudged by the model's critic\nopen " in answer.out
    (out,) = folders(tmp_path / "alone-pegasi")
    pictures = ("best", "diagram", "gallery", "interpolation", "pegasi", "pipeline", "repeats")
    assert {path.name for path in out.glob("*.png")} == {f"{name}.png" for name in pictures}
    model = load_model(run)
    with model.inference():
        wanted = to_uint8(model.reconstruct(to_float(horses[:1]))).transpose(0, 3, 1, 2)
    assert np.abs(wanted.astype(int) - images_in(out)).max() <= 24  # Lanczos brings 64 pixels back to 32, not exactly
    assert len(images_in(out)) == 8
    text = (out / "pegasi.json").read_text()
    assert json.loads(text)["parents"]["files"] == [".../a.png", ".../b.png"]
    assert str(tmp_path) not in text  # nothing tells where on this machine the files are


def test_two_image_files_are_mixed_by_models_of_the_same_classes_only(
    run: Path, tmp_path: Path, generate: Callable[..., Answer]
) -> None:
    Image.new("RGB", (32, 32), "brown").save(tmp_path / "a.png")
    files = [f"first={tmp_path / 'a.png'}", f"second={tmp_path / 'a.png'}"]
    content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    content["hyper_parameters"]["classes"] = ["cat", "ship"]
    torch.save(content, tmp_path / "other.ckpt")
    answer = generate(f"run={run}", f"run={tmp_path / 'other.ckpt'}", *files, f"out={tmp_path / 'out'}")
    assert answer.code == 2
    assert "different classes" in answer.err
    content["hyper_parameters"]["model"]["sample_codes"] = False
    content["state_dict"] = {k: v for k, v in content["state_dict"].items() if "log_variance" not in k}
    torch.save(content, tmp_path / "plain.ckpt")
    answer = generate(f"run={tmp_path / 'plain.ckpt'}", *files, f"out={tmp_path / 'out'}", "search=guided")
    assert answer.code == 2
    assert "codes are not sampled" in answer.err
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_on_its_own_takes_its_parents_from_the_data_that_is_named(
    run: Path, made: Path, tmp_path: Path, generate: Callable[..., Answer]
) -> None:
    alone = shutil.copy(run / "checkpoints" / "last.ckpt", tmp_path / "alone.ckpt")
    data = ["data=silhouettes", "data.test_per_class=30", "figures=[]"]
    answer = generate(f"run={alone}", f"out={tmp_path / 'out'}", "count=10", "seed=5", FAR, *data)
    assert answer.code == 0, answer.err
    assert np.array_equal(images_in(tmp_path / "out"), images_in(made))


def test_any_two_classes_make_mixes_under_their_own_names(
    tmp_path: Path, generate: Callable[..., Answer], written: list[str]
) -> None:
    noise = torch.Generator().manual_seed(0)
    for split, count in (("train", 12), ("test", 6)):
        for name in ("cat", "ship"):
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = torch.randint(0, 256, (32, 32, 3), generator=noise, dtype=torch.uint8)
                Image.fromarray(pixels.numpy()).save(folder / f"{i}.png")
    data = [
        "data=image_folder",
        f"data.root={tmp_path / 'photos'}",
        f"data.cache={tmp_path}",
        "data.classes=[cat,ship]",
    ]
    run = trained(tmp_path / "runs", *data, "model=vae")
    answer = generate(f"run={run}", f"out={tmp_path / 'out'}", "count=3", FAR, "search=guided", "search.steps=2")
    assert answer.code == 0, answer.err
    text = " ".join([*written, answer.out, (tmp_path / "out" / "pegasi.json").read_text()])
    assert "cat x ship" in text
    assert "mixes of cat and ship" in text
    assert "horse" not in text
    assert "bird" not in text


def test_originals_can_be_kept_out_of_the_pictures(
    run: Path, tmp_path: Path, generate: Callable[..., Answer], written: list[str]
) -> None:
    make(tmp_path / "shown", run, count=2, figures=["best"])
    assert any("original" in text for text in written)
    written.clear()
    generate(f"run={run}", f"out={tmp_path / 'hidden'}", "count=2", FAR, "originals=false")
    assert written
    assert not any("original" in text for text in written)


def shows(picture: Path, image: np.ndarray, scale: int) -> bool:
    """Whether a picture contains an image (3, 32, 32) uint8, enlarged, to one grey level."""
    pixels = np.asarray(Image.open(picture).convert("RGB")).astype(int)
    tile = image.transpose(1, 2, 0).astype(int).repeat(scale, axis=0).repeat(scale, axis=1)
    height, width = tile.shape[:2]
    starts = pixels[: len(pixels) - height + 1, : pixels.shape[1] - width + 1]
    places = np.argwhere((np.abs(starts - tile[0, 0]) <= 1).all(axis=-1))
    return any(np.abs(pixels[y : y + height, x : x + width] - tile).max() <= 1 for y, x in places)


def test_the_pipeline_shows_the_first_pegasus_and_its_own_parents(run: Path, made: Path, tmp_path: Path) -> None:
    picture = made / "pipeline.png"
    first, *others = record(made)["pegasi"]
    assert shows(picture, images_in(made)[0], 8)
    horses, birds = (images.numpy() for images in photos())
    assert shows(picture, horses[first["first"]["index"]], 4)
    assert shows(picture, birds[first["second"]["index"]], 4)
    other = next(p["first"]["index"] for p in others if p["first"]["index"] != first["first"]["index"])
    assert not shows(picture, horses[other], 4)

    hidden = make(tmp_path / "hidden", run, count=10, seed=5, figures=["pipeline"], originals=False)
    assert record(hidden)["pegasi"][0] == first
    picture = hidden / "pipeline.png"
    model = load_model(run)
    with model.inference():
        for parents, key in ((photos()[0], "first"), (photos()[1], "second")):
            parent = parents[[first[key]["index"]]]
            assert not shows(picture, parent[0].numpy(), 4)
            assert shows(picture, to_uint8(model.reconstruct(to_float(parent)))[0].transpose(2, 0, 1), 4)


def test_the_pipeline_names_what_was_done(run: Path, tmp_path: Path, written: list[str]) -> None:
    out = make(tmp_path / "plain", run, count=2, figures=["pipeline"], pegasus__mixing="slerp", pegasus__codes="mean")
    ratio = record(out)["pegasi"][0]["ratio"]
    assert {"slerp mix", f"at ratio {ratio:.2f}\nalong the arc\nfrom z1 to z2"} <= set(written)
    assert "code z1, the mean\n8 numbers" in written
    assert "gradient ascent" not in written
    written.clear()
    guided = {"search__method": "guided", "search__steps": 3, "search__pairs": 8}
    make(tmp_path / "guided", run, count=2, figures=["pipeline"], **guided)
    assert {"lerp mix", "code z1, sampled\n8 numbers", "on the code,\n3 steps"} <= set(written)


def test_an_error_while_writing_leaves_nothing_behind(
    run: Path, tmp_path: Path, generate: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pegasus_lightning.generate.pipeline.write_json", full)
    answer = generate(f"run={run}", f"out={tmp_path / 'deep' / 'out'}", "count=2", "figures=[best]", FAR)
    assert answer.code == 1
    assert "No space left" in answer.err
    assert list((tmp_path / "deep").iterdir()) == []


def test_results_replace_results_and_nothing_else(run: Path, tmp_path: Path) -> None:
    out = make(tmp_path / "out", run, figures=["best"])
    assert record(make(out, run, seed=1))["settings"]["seed"] == 1
    assert not (out / "best.png").exists()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds something else"):
        make(out, run, seed=2)
    assert record(out)["settings"]["seed"] == 1
    assert (out / "notes.txt").read_text() == "mine"
    with pytest.raises(UserError, match="is not a folder that can be written to"):
        make(run / "config.yaml" / "out", run)  # inside a file


def test_two_runs_of_one_name_do_not_share_a_folder(run: Path, tmp_path: Path) -> None:
    runs = [shutil.copytree(run, tmp_path / place / "vae-s0-0123abcd") for place in ("a", "b")]
    make(tmp_path / "out", *runs)
    assert len([folder for folder in (tmp_path / "out").iterdir() if (folder / "pegasi.json").exists()]) == 2


def test_what_is_not_about_images_does_not_make_two_runs_differ(run: Path, tmp_path: Path) -> None:
    other = shutil.copytree(run, tmp_path / "other-s0-0123abcd")
    config = other / "config.yaml"
    config.write_text(config.read_text().replace("batch_size: 16", "batch_size: 8"))
    assert make(tmp_path / "a", run, other).name == "tiny-s0"
    config.write_text(config.read_text().replace("test_per_class: 30", "test_per_class: 29"))
    with pytest.raises(UserError, match="different data"):
        make(tmp_path / "b", run, other)
    assert not (tmp_path / "b").exists()


def test_nothing_is_written_where_the_picture_of_all_cannot_be(run: Path, tmp_path: Path) -> None:
    other = shutil.copytree(run, tmp_path / "other-s0-0123abcd")
    out = tmp_path / "out"
    (out / "compare").mkdir(parents=True)
    (out / "compare" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="compare holds something else"):
        make(out, run, other, figures=None)
    assert [path.name for path in out.iterdir()] == ["compare"]


def test_directions_lead_from_class_to_class(run: Path, tmp_path: Path) -> None:
    mixing = {"pegasus__mixing": "direction", "pegasus__ratio": [0.5, 0.5], "pegasus__codes": "mean"}
    out = make(tmp_path / "out", run, **mixing)
    model = load_model(run)
    with model.inference():
        first, second = (model.encode(to_float(images)).mean for images in photos())
        chosen = [pegasus["first"]["index"] for pegasus in record(out)["pegasi"]]
        assert same(model.decode(first[chosen] + 0.5 * (second.mean(0) - first.mean(0))), images_in(out))


REFUSED: list[tuple[list[str], list[str]]] = [  # more bad values: test_settings.py
    (["run=nowhere"], ["no run folder or checkpoint nowhere"]),
    (["run=empty"], ["empty holds no run", "checkpoints"]),
    (["run=unsaved"], ["unsaved", "holds no checkpoint"]),
    (["run=torn"], ["Every checkpoint", "corrupt"]),
    (["run=foreign.ckpt"], ["foreign.ckpt", "not a checkpoint of pegasus_lightning"]),
    (["run=broken.png"], ["broken.png", "cannot be read as a checkpoint"]),
    (["run={run}", "data.classes=[cat,horse]"], ["not trained on 'cat'", "horse, bird"]),
    (["run={run}", "data.classes=[horse]"], ["two different classes"]),
    (["run={run}", "data=silhouete"], ["Did you mean 'silhouettes'?"]),
    (["run={run}", "data.rot=x"], ["data.rot"]),
    (["run={run}", "data=image_folder", "data.root=empty"], ["There is no folder 'test'"]),
    (["run={run}", "pegasus.threshold=0.000001"], ["pegasus.threshold=1e-06", "nearest"]),
    (["run={run}", "pegasus.rato=[0,1]"], ["pegasus.rato", "Did you mean 'pegasus.ratio'?"]),
    (["run={run}", "pegasus.ratio=0.5"], ["pegasus.ratio"]),
    (["run={run}", "search=bestof"], ["There is no search 'bestof'", "best_of"]),
    (["run={run}", "count=many"], ["count", "wrong type"]),
    (["run={run}", "figures=[compare]"], ["two or more"]),
    (["run={run}", "first=broken.png", "second=nix.png"], ["broken.png", "not an image that can be read"]),
    (["run={run}", "first=nix.png", "second=broken.png"], ["There is no image", "nix.png"]),
    (["run={run}", "first=a.png", "second=a.png", "data=silhouettes"], ["leave data out"]),
    (["run={run}", "figures=best"], ["takes a list", "figures=[best]"]),
    (["run={run}", "data=silhouettes,cifar10"], ["takes one"]),
    (["run={run}", "data.test_per_class=some"], ["data.test_per_class", "wrong type"]),
    (["run={run}", "data=image_folder", "data.root=moved"], ["There is no folder"]),
    (["run={run}", "--hydra-help"], ["no option --hydra_help"]),
    (["run="], ["run=FOLDER"]),
    (["run={run}", "out=."], ["is the current folder", "out=FOLDER"]),
    (["run={run}", "gpus=1"], ["gpus=1", "Type gpus=0"]),
    (["run={run}", "-m"], ["no -m"]),
    (["run={run}", "~count"], ["not removed"]),
    (["run={run}", "pretrained=pegasus"], ["run= and pretrained="]),
    (["pretrained=pegasos"], ["Did you mean 'pegasus'?"]),
    ([], ["run=FOLDER"]),
]


@pytest.fixture(scope="module")
def crowded(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what refused commands name."""
    folder = tmp_path_factory.mktemp("crowded")
    (folder / "empty").mkdir()
    (folder / "unsaved" / "checkpoints").mkdir(parents=True)
    torn = shutil.copytree(run, folder / "torn") / "checkpoints"
    for checkpoint in torn.glob("*.ckpt"):
        checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    torch.save({"state_dict": {}}, folder / "foreign.ckpt")
    (folder / "broken.png").write_text("no picture")
    return folder


@pytest.mark.promise(9)
@pytest.mark.promise(10)
@pytest.mark.parametrize(("arguments", "told"), REFUSED, ids=lambda value: " ".join(value)[:60])
def test_a_mistake_gets_one_message_exit_code_2_and_nothing_written(
    arguments: list[str], told: list[str], run: Path, crowded: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.chdir(crowded)
    before = [sorted(os.walk(folder)) for folder in (crowded, run)]
    given = [argument.format(run=run) for argument in arguments]
    if not any(argument.startswith("out=") for argument in given):
        given.append("out=out")
    assert run_program(GENERATE, given, _work) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert said[-1].startswith("pegasus_lightning: ")
    assert len([line for line in said if not line.startswith("Checkpoint ")]) == 1  # a corrupt one is named in the log
    assert "Traceback" not in " ".join(said)
    for words in told:
        assert words in said[-1]
    assert [sorted(os.walk(folder)) for folder in (crowded, run)] == before


def test_paths_are_taken_as_they_are() -> None:
    quoted = quote_paths(["run=a,b=1", 'run=it"s', "out=x y", "count=3", "data.root=~/p", "out=null", "first="])
    assert quoted == ['out="x y"', "count=3", 'data.root="~/p"', "out=null", "first=", r'run=["a,b=1","it\"s"]']
    config = GENERATE.compose([quoted[-1]])
    assert list(config.run) == ["a,b=1", 'it"s']
    assert quote_paths(["recognisers=/tmp/a,b=c"]) == ['recognisers="/tmp/a,b=c"']


def test_help_and_the_configuration_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert answered(["--help"], lambda: "words of help")
    assert capsys.readouterr().out == "words of help\n"
    assert run_program(GENERATE, ["--cfg", "job", "run=a,b", "search=guided"], _work) == 0
    shown = capsys.readouterr().out
    assert "- a,b\n" in shown
    assert "method: guided" in shown


# A recogniser that scores.


class _Blue(torch.nn.Module):
    """Recogniser of both classes in what is blue; its features are colours."""

    def features(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3))

    def classify(self, features: torch.Tensor) -> torch.Tensor:
        return 20 * (features[:, 2:] - 0.5).repeat(1, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.classify(self.features(images))

    def probabilities(self, images: torch.Tensor) -> torch.Tensor:
        return self(images).sigmoid()


BLUE = StoredRecogniser(_Blue(), Path("store") / "blue-0a.pt", {})  # type: ignore[arg-type]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Calls of the store, in which the recogniser is trained."""
    calls: list[str] = []
    monkeypatch.setattr(RecogniserStore, "find", lambda *_: calls.append("found") or BLUE)
    monkeypatch.setattr(RecogniserStore, "get", lambda *_: calls.append("made") or BLUE)
    return calls


def test_a_recogniser_that_is_trained_scores(run: Path, tmp_path: Path, asked: list[str]) -> None:
    out = make(tmp_path / "out", run, count=6, score__recognised=2)
    assert asked == ["found"]
    said, images = record(out), images_in(out)
    assert said["settings"]["score"]["judge"] == "blue-0a"
    for pegasus in said["pegasi"]:
        scores = pegasus["scores"]
        assert scores.keys() == {"recognised", "realism", "overlap", "score"}
        logit = 20 * (images[pegasus["index"]][2].mean() / 255 - 0.5)
        assert scores["recognised"] == pytest.approx(-2 * 2 * np.log1p(np.exp(-logit)), abs=0.02)
        assert scores["realism"] < 0
        assert scores["score"] == pytest.approx(scores["recognised"] + scores["realism"] + scores["overlap"], abs=1e-5)
    make(tmp_path / "made", run, score__judge="recogniser")
    assert asked == ["found", "made"]


def test_the_critic_scores_if_the_settings_say_so(run: Path, tmp_path: Path, asked: list[str]) -> None:
    home = shutil.copytree(run, tmp_path / "run")
    make(None, home, score__judge="critic")
    assert asked == []
    (out,) = folders(home / "pegasi")
    assert record(out)["settings"]["score"]["judge"] == "critic"
    assert record(out)["pegasi"][0]["scores"].keys() == {"critic", "overlap", "score"}
    make(None, home)  # results by one do not replace those by the other
    assert len(folders(home / "pegasi")) == 2


def test_two_image_files_are_scored_by_the_critic_and_by_nothing_else(
    run: Path, tmp_path: Path, asked: list[str]
) -> None:
    Image.new("RGB", (32, 32), "brown").save(tmp_path / "a.png")
    files = {"first": str(tmp_path / "a.png"), "second": str(tmp_path / "a.png"), "pegasus__threshold": None}
    with pytest.raises(UserError, match=r"score.judge=recogniser needs images to learn from"):
        make(tmp_path / "out", run, **files, score__judge="recogniser")
    assert not (tmp_path / "out").exists()
    said = record(make(tmp_path / "out", run, **files, pegasus__codes="mean"))
    assert said["settings"]["score"]["judge"] == "critic" and said["mixes_tried"] == 64
    scores, ratios = ([pegasus[key] for pegasus in said["pegasi"]] for key in ("scores", "ratio"))
    assert scores[0].keys() == {"critic", "overlap", "score"}
    assert len(scores) == 3 == len({*ratios}) and all(0.4 <= ratio <= 0.6 for ratio in ratios)
    drawn = torch.rand(64, generator=generator(0, Stream.RATIOS)) * 0.2 + 0.4  # by hand: all that were tried
    model = load_model(run)
    brown = to_float(torch.tensor(np.array(Image.open(tmp_path / "a.png")).transpose(2, 0, 1))[None])
    assert {round(ratio, 5) for ratio in ratios} <= {round(ratio, 5) for ratio in drawn.tolist()}
    with model.inference():
        assert same(model.reconstruct(brown).expand(3, -1, -1, -1), images_in(tmp_path / "out"))
    assert asked == ["found"]  # for the notes alone


def test_parents_that_do_not_look_like_their_class_get_a_note(
    run: Path, tmp_path: Path, asked: list[str], generate: Callable[..., Answer]
) -> None:
    Image.new("RGB", (64, 32), "blue").save(tmp_path / "blue.png")
    Image.new("RGB", (32, 64), "brown").save(tmp_path / "brown.png")
    files = [f"first={tmp_path / 'blue.png'}", f"second={tmp_path / 'brown.png'}"]
    answer = generate(f"run={run}", *files, "figures=[]", "count=2", f"out={tmp_path / 'out'}")
    assert answer.code == 0, answer.err
    assert answer.out.count("Note: ") == 1 and "Note: the second picture does not look like a bird.\n" in answer.out


# Weights that come with the package.


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a tiny untrained model in one file, and the hash of the file."""
    networks = {"channels": 4, "latent_dim": 16, "latent": "spatial", "decoder": "residual"}
    model = model_class("pegasus")({"networks": networks, "learned_mixing": True}, seed=5, classes=["horse", "bird"])
    committee = Committee([Recogniser("plain", ("horse", "bird"), seed=2)])
    folder, parents = tmp_path_factory.mktemp("package"), Parents(*photos(), ("horse", "bird"))
    return folder, pretrained.pack(model.eval(), committee, parents, {}, folder / "pegasus.safetensors")


@pytest.fixture
def in_the_package(
    packed: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> pretrained.PretrainedModel:
    """The tiny model in place of the one that comes with the package."""
    for module in (pretrained, pipeline):
        monkeypatch.setattr(module, "FOLDER", packed[0])
    monkeypatch.setattr(pretrained, "PRETRAINED", {"pegasus": packed[1]})
    monkeypatch.setattr(session, "PARENTS_PER_CLASS", 80)
    monkeypatch.chdir(tmp_path)
    return pretrained.open_pretrained("pegasus")


def test_the_packages_own_model_makes_pegasi_with_no_data_and_no_training(
    in_the_package: pretrained.PretrainedModel, tmp_path: Path, generate: Callable[..., Answer], written: list[str]
) -> None:
    answer = generate("pretrained=pegasus", "count=6", "figures=[pegasi,best,pipeline]", "score.judge=winged", FAR)
    assert answer.code == 0, answer.err
    (out,) = folders(tmp_path / "pegasi" / "pegasus")
    said, images = record(out), images_in(out)
    assert said["parents"] == {"codes": "drawn", "near": "training images"}
    assert "Parents: codes that come with the model, each near that of a training image." in answer.out
    lines = answer.out.splitlines()[-2:]
    assert lines[0] == "judged by the winged judges that come with the model; realism by its critic"
    assert lines[1] == f"open {out.relative_to(tmp_path)}/pegasi.png"
    assert said["settings"]["pretrained"] == "pegasus"
    assert {"learned mix", "horse,\nfrom a stored code", "bird,\nfrom a stored code"} <= set(written)
    assert not any("reconstruction" in text or "decoded par" in text for text in written)
    assert shows(out / "pipeline.png", images[0], 8)
    best = said["pegasi"][said["best"][0]]
    drawn = in_the_package.sample_parents(80, 0)
    assert shows(out / "best.png", drawn.first[best["first"]["index"]].numpy(), 6)  # the parent itself
    # The same by hand: parents decoded from drawn codes, encoded again, mixed as the model has learned it.
    parents = in_the_package.sample_parents(80, 0)
    model = in_the_package.run.model
    for pegasus, image in zip(said["pegasi"], images, strict=True):
        own = (parents.first[pegasus["first"]["index"]], parents.second[pegasus["second"]["index"]])
        noise = code_noise(0, torch.tensor([pegasus["draw"]]), 16)
        with torch.no_grad():
            codes = [model.encode(to_float(i[None])).sample_with(noise[:, k]) for k, i in enumerate(own)]
            again = model.decode(model.mix(*codes, torch.tensor([pegasus["ratio"]])))
        assert same(again, image[None])
        both = torch.nn.functional.logsigmoid(in_the_package.committee(again)).sum().item()
        assert pegasus["scores"]["recognised"] == pytest.approx(both, abs=1e-3)


@pytest.mark.parametrize(("mixing", "named"), [("auto", "learned"), ("slerp", "slerp")])
def test_a_figure_names_the_mixing(in_the_package: pretrained.PretrainedModel, mixing: str, named: str) -> None:
    settings = GenerateConfig(pegasus=PegasusConfig(mixing=mixing, codes="mean"), seed=3)
    footer = drawing._footer(in_the_package.run, settings, 1, False)
    assert footer == f"pegasus, batch 0, colour pairs, {named}, ratio 0.4 to 0.6, codes not sampled, no search, seed 3"


def test_the_packages_own_model_takes_two_files_or_data_too(
    in_the_package: pretrained.PretrainedModel,
    tmp_path: Path,
    generate: Callable[..., Answer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, images in zip(("horse", "bird"), photos(of_each=8), strict=True):
        Image.fromarray(images[0].permute(1, 2, 0).numpy()).save(tmp_path / f"{name}.png")
    others: list[Any] = []
    make = session.Sampler

    def sampler(*given: Any) -> Any:
        others.extend((given[4].first, given[4].second))
        return make(*given)

    with monkeypatch.context() as patch:
        patch.setattr(session, "Sampler", sampler)
        answer = generate("pretrained=pegasus", "first=horse.png", "second=bird.png", "out=two", "figures=[best]")
    assert answer.code == 0, answer.err
    assert record(tmp_path / "two")["parents"] == {"files": ["horse.png", "bird.png"]}
    assert [len(images) for images in others] == [256, 256]  # the critic is measured against drawn parents
    answer = generate("pretrained=pegasus", *DRAWN, "out=drawn", "count=2", "figures=[best]", FAR)
    assert answer.code == 0, answer.err
    assert record(tmp_path / "drawn")["parents"]["source"] == "silhouettes"
    answer = generate("pretrained=pegasus", "score.judge=recogniser")  # a committee comes with it, but no data
    assert answer.code == 2
    assert "score.judge=recogniser needs images to learn from" in answer.err


def test_the_preset_for_winged_pairs() -> None:
    config = GENERATE.compose(["search=winged", "pretrained=pegasus", "search.pairs=10"])
    validate(config)
    assert (config.search.method, config.search.pairs, config.search.ratios) == ("best_of", 10, 2)
    assert (config.pegasus.pairs, config.pegasus.codes, list(config.pegasus.ratio)) == ("winged", "mean", [0.4, 0.6])
    assert (config.score.judge, config.score.realism) == ("winged", 0)
