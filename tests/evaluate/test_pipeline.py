"""Tests of `evaluate` with tiny models on drawings: rows of the scorecard, saved files, errors.

No recogniser is trained: colours by position replace its features.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from pegasus_lightning.data import silhouettes
from pegasus_lightning.data.controls import cutmix
from pegasus_lightning.evaluate import pipeline
from pegasus_lightning.evaluate.__main__ import _work, help_text
from pegasus_lightning.evaluate.benchmark import Benchmark, kind_of
from pegasus_lightning.evaluate.image_sets import ImageSetMetrics
from pegasus_lightning.evaluate.settings import EVALUATE, EvaluateConfig
from pegasus_lightning.generate import pretrained
from pegasus_lightning.generate.judge import Selector
from pegasus_lightning.generate.mixing import code_noise, recipes
from pegasus_lightning.generate.pairs import Parents, pairs_for
from pegasus_lightning.generate.sampler import sample
from pegasus_lightning.generate.session import Session
from pegasus_lightning.generate.settings import PegasusConfig
from pegasus_lightning.models import model_class
from pegasus_lightning.models.two_player import TwoPlayerModel
from pegasus_lightning.recognisers.committee import Committee
from pegasus_lightning.recognisers.network import REPORTS, Recogniser
from pegasus_lightning.recognisers.store import RecogniserStore, StoredRecogniser
from pegasus_lightning.recognisers.training import RecogniserConfig, independent_recipe, standard_recipe, winged_recipe
from pegasus_lightning.runs.checkpoints import load_model, save_atomically
from pegasus_lightning.runs.places import path_shown
from pegasus_lightning.runs.scorecards import (
    FILE,
    GALLERY,
    HPARAMS,
    MEASURES,
    MODEL_MEASURES,
    Figure,
    Scorecard,
    newest_scorecard,
    read_scorecard,
)
from pegasus_lightning.runs.trained import TrainedRun
from pegasus_lightning.train.settings import TRAIN
from pegasus_lightning.train.trainer import train
from pegasus_lightning.utils.devices import machine
from pegasus_lightning.utils.program import answered, run_program
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
COUNT, TRAIN_COUNT, TEST = 64, 40, 30
DRAWN = ["data=silhouettes", f"data.train_per_class={TRAIN_COUNT}", f"data.test_per_class={TEST}"]
FAR = "pegasus.threshold=1"
ALWAYS = [f"count={COUNT}", FAR, "gpus=0"]
ROWS = ["pegasi", "pixel average", "CutMix", "reconstructions", "prior samples"]
REAL = ["real horse", "real bird", "real horse and bird", "true pegasi"]


class ByColour(nn.Module):
    """Recogniser: the first class is bright, the second blue; the features are colours by position."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(10.0), requires_grad=False)

    def features(self, images: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d((images + images.flip(3)) / 2, 4).flatten(1)

    def classify(self, features: Tensor) -> Tensor:
        red, green, blue = features.unflatten(1, (3, 16)).mean(2).unbind(1)
        return self.weight * torch.stack([(red + green + blue) / 3 - 0.5, blue - red], 1)

    def probabilities(self, images: Tensor) -> Tensor:
        return self.classify(self.features(images)).sigmoid()


def stored(name: str = "colours-0a.pt") -> StoredRecogniser:
    return StoredRecogniser(ByColour(), Path("store") / name, {"balanced_accuracy": [0.75, 0.5]})  # type: ignore[arg-type]


@pytest.fixture(scope="module", autouse=True)
def ready_made() -> Iterator[None]:
    """Use a reporting recogniser without a selecting one, and cache drawings."""
    drawn: dict[str, Any] = {}

    def once(draw: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            key = repr((draw.__name__, arguments))
            if key not in drawn:
                drawn[key] = draw(*arguments)
            return drawn[key]

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RecogniserStore, "get", lambda *_: stored())
        patch.setattr(RecogniserStore, "find", lambda *_: None)
        patch.setattr(silhouettes, "load", once(silhouettes.load))
        patch.setattr(silhouettes, "load_scenes", once(silhouettes.load_scenes))
        yield


def photos(split: str = "test") -> tuple[Tensor, Tensor]:
    """Images and labels of a split."""
    return silhouettes.load(["horse", "bird"], split, TRAIN_COUNT if split == "train" else TEST, 0)


def no_model(*_: Any) -> dict[str, Figure]:
    """Replacement of `Benchmark._of_model` for tests that do not use its figures."""
    return {name: Figure(20.0, 19.0, 21.0) for name in ("psnr", "midpoint")}


def trained(folder: Path, *overrides: str) -> Path:
    return train(TRAIN.compose([*TINY, *DRAWN, *overrides, f"runs_dir={folder}"]), "tiny")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("runs"), "model=adversarial_vae")


@pytest.fixture(scope="module")
def model(original: Path) -> TwoPlayerModel:
    return load_model(original)


@pytest.fixture
def run(original: Path, tmp_path: Path) -> Path:
    """Writable copy of a trained run."""
    return shutil.copytree(original, tmp_path / "runs" / original.name)


class Answer(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def evaluate(capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    def call(*arguments: str) -> Answer:
        code = run_program(EVALUATE, [*ALWAYS, *arguments], _work)
        return Answer(code, *capsys.readouterr())

    return call


def evaluate_run(run: Path, *overrides: str) -> Scorecard:
    """Evaluate one run without a command line and without presets."""
    data = [text for text in overrides if text.startswith(("data=", "data."))]
    pegasus = PegasusConfig(threshold=1)
    defaults = OmegaConf.structured(EvaluateConfig(run=[str(run)], count=COUNT, gpus=0, pegasus=pegasus))
    others = OmegaConf.from_dotlist([text for text in overrides if text not in data])
    (card,) = pipeline.evaluate(OmegaConf.merge(defaults, others), data)  # type: ignore[arg-type]
    return card


def folders(home: Path) -> list[Path]:
    """Folders of scorecards, including hidden ones, oldest first."""
    return sorted(home.iterdir(), key=lambda path: path.stat().st_mtime_ns) if home.exists() else []


def arrays_in(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / GALLERY) as arrays:
        return dict(arrays)


class Evaluated(NamedTuple):
    run: Path
    folder: Path
    card: Scorecard
    gallery: dict[str, np.ndarray]
    out: str


@pytest.fixture(scope="module")
def evaluated(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Evaluated:
    """Result of `evaluate` for one run with the defaults; used by many tests."""
    run = shutil.copytree(original, tmp_path_factory.mktemp("evaluated") / original.name)
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", lambda *words, **_: said.append(" ".join(map(str, words))))
        assert run_program(EVALUATE, [*ALWAYS, f"run={run}", "seed=3"], _work) == 0, said
    (folder,) = folders(run / "evaluation")
    return Evaluated(run, folder, read_scorecard(folder / FILE), arrays_in(folder), "\n".join(said))


class Made(NamedTuple):
    """Images of the rows, computed independently."""

    first: Tensor
    second: Tensor
    ratios: Tensor
    pegasi: Tensor
    reconstructions: Tensor
    prior: Tensor


@pytest.fixture(scope="module")
def made(evaluated: Evaluated, model: TwoPlayerModel) -> Made:
    drawn, labels = photos()
    parents = Parents(drawn[labels == 0], drawn[labels == 1], ("horse", "bird"))
    pairs = pairs_for(parents, PegasusConfig(**evaluated.card.settings["pegasus"]), COUNT, 3)
    chosen = recipes(pairs, (0.4, 0.6), seed=3)
    first, second = to_float(parents.first[chosen.first]), to_float(parents.second[chosen.second])
    with model.inference():
        noise = code_noise(3, torch.arange(COUNT), 8)
        start, end = (model.encode(parent).sample_with(noise[:, side]) for side, parent in enumerate((first, second)))
        pegasi = model.decode(start + (end - start) * chosen.ratios[:, None])
        prior = model.sample_prior(COUNT, generator(3, Stream.PRIOR))
        return Made(first, second, chosen.ratios, pegasi, model.reconstruct(to_float(drawn)), prior)


def expected(images: Tensor) -> tuple[float, float]:
    return tuple(ByColour().probabilities(images).mean(0).tolist())  # type: ignore[return-value]


# Figures.


def test_the_scorecard_says_what_was_measured_and_how(evaluated: Evaluated, model: TwoPlayerModel) -> None:
    card = evaluated.card
    assert [*card.rows] == [*ROWS, *REAL]
    assert card.counts == {
        **dict.fromkeys(("pegasi", "pixel average", "CutMix", "prior samples"), COUNT),
        **{"reconstructions": 2 * TEST, "real horse": TEST, "real bird": TEST, "real horse and bird": 2 * TEST},
        "true pegasi": TEST,
    }
    assert (card.name, card.group, card.seed, card.classes) == ("tiny-s0", "tiny", 0, ["horse", "bird"])
    assert card.run == f".../{evaluated.run.name}"
    assert card.batches == model.batches_done
    assert card.settings["pegasus"]["threshold"] == 1
    assert card.settings["score"]["judge"] == "none"  # no search
    assert (card.parents["split"], card.parents["source"]) == ("test", "silhouettes")
    assert card.recognisers == {"reports": {"file": "colours-0a.pt", "balanced_accuracy": [0.75, 0.5]}, "selects": None}
    (trained_on,) = card.machines
    assert (trained_on["precision"], trained_on["device"]) == ("32-true", "cpu")
    assert card.judged_on == machine("cpu", 1, "32-true")
    assert evaluated.folder.name.startswith("colour-auto-none-s3-")
    assert sorted(path.name for path in evaluated.folder.iterdir()) == sorted([FILE, GALLERY])


def test_every_row_has_its_measures(evaluated: Evaluated) -> None:
    for row, figures in evaluated.card.rows.items():
        wanted = set(MEASURES) - {"linearity", "parent_distance", "inception_fid", "inception_kid"}
        wanted -= {"recognised_selecting", "winged"}  # no selecting recogniser, no winged judge,
        wanted = {name for name in wanted if not name.startswith("panel_")}  # no panel
        wanted |= {"linearity"} if row == "pegasi" else set()
        wanted |= {"parent_distance"} if row in ("pegasi", "pixel average", "CutMix") else set()
        assert figures.keys() == wanted, row
        for name, figure in figures.items():
            assert figure.low <= figure.value <= figure.high, f"{row} {name}"
    lines = {"line_distance", "line_smoothness"}
    assert evaluated.card.model.keys() == MODEL_MEASURES.keys() - lines


def test_every_row_is_of_the_images_that_it_names(evaluated: Evaluated, made: Made) -> None:
    drawn, labels = photos()
    pegasi, of = silhouettes.load(["pegasus"], "test", TEST, 0)
    assert (of == 0).all()
    real = to_float(drawn)
    ratios = made.ratios[:, None, None, None]
    images = {
        "pegasi": made.pegasi,
        "pixel average": (1 - ratios) * made.first + ratios * made.second,
        "CutMix": cutmix(made.first, made.second, made.ratios, 3),
        "reconstructions": made.reconstructions,
        "prior samples": made.prior,
        "real horse": real[labels == 0],
        "real bird": real[labels == 1],
        "real horse and bird": real,
        "true pegasi": to_float(pegasi),
    }
    told = {}
    for row, wanted in images.items():
        figures = evaluated.card.rows[row]
        told[row] = (figures["p_first"].value, figures["p_second"].value)
        assert told[row] == pytest.approx(expected(wanted), abs=1e-4), row
        assert figures["variety"].value == pytest.approx(torch.pdist(wanted.flatten(1)).mean().item() / 3072**0.5, 1e-3)
    assert len({round(1e4 * p_second) for _, p_second in told.values()}) == len(images)  # all rows differ


def test_distances_from_parents_and_from_overlays_by_hand(
    evaluated: Evaluated, made: Made, model: TwoPlayerModel
) -> None:
    def rmse(one: Tensor, other: Tensor) -> Tensor:
        return (one - other).square().mean((1, 2, 3)).sqrt()

    nearer = torch.minimum(rmse(made.pegasi, made.first), rmse(made.pegasi, made.second)).mean().item()
    assert evaluated.card.rows["pegasi"]["parent_distance"].value == pytest.approx(nearer, rel=1e-4)
    apart = rmse(made.first, made.second)
    wanted = (apart * torch.minimum(made.ratios, 1 - made.ratios)).mean().item()
    assert evaluated.card.rows["pixel average"]["parent_distance"].value == pytest.approx(wanted, rel=1e-4)
    with model.inference():
        ends = [model.reconstruct(parent) for parent in (made.first, made.second)]
    blend = torch.lerp(*ends, made.ratios[:, None, None, None])
    overlaid = rmse(made.pegasi, blend).mean().item()
    assert evaluated.card.rows["pegasi"]["linearity"].value == pytest.approx(overlaid, rel=1e-3)


def test_figures_of_the_model_itself_by_hand(evaluated: Evaluated, made: Made, model: TwoPlayerModel) -> None:
    drawn, _ = photos()
    error = (made.reconstructions - to_float(drawn)).square().mean((1, 2, 3))
    assert evaluated.card.model["psnr"].value == pytest.approx((-10 * error.log10()).mean().item(), rel=1e-4)
    training = to_float(photos("train")[0]).flatten(1).double()
    _, _, directions = torch.linalg.svd(training - training.mean(0), full_matrices=False)
    rows = to_float(drawn).flatten(1).double()
    kept = directions[:8]  # as many as latent dimensions
    back = (training.mean(0) + (rows - training.mean(0)) @ kept.T @ kept).clamp(0, 1)
    error = (back - rows).square().mean(1)
    assert evaluated.card.model["pca_psnr"].value == pytest.approx((-10 * error.log10()).mean().item(), abs=0.01)
    with model.inference():
        noise = code_noise(3, torch.arange(COUNT), 8)
        codes = [model.encode(side).sample_with(noise[:, i]) for i, side in enumerate((made.first, made.second))]
        first, middle, last = (model.decode(torch.lerp(*codes, ratio)) for ratio in (0.0, 0.5, 1.0))
    off = (middle - (first + last) / 2).square().mean((1, 2, 3)).sqrt()
    assert evaluated.card.model["midpoint"].value == pytest.approx(off.mean().item(), rel=1e-3)


def test_a_plain_autoencoder_on_lines_has_the_papers_figures_and_no_prior(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pegasus_lightning.evaluate.benchmark.PATHS", 4)
    data = ["data=lines", "data.train_per_class=10", "data.test_per_class=8"]
    run = train(TRAIN.compose([*TINY, *data, "model=acai_paper", f"runs_dir={tmp_path}"]), "tiny")
    fewest = "data.train_per_class=8"  # and test_per_class: enough for an evaluation
    card = evaluate_run(run, "pegasus.pairs=random", "pegasus.threshold=null", fewest)
    assert card.model.keys() == MODEL_MEASURES.keys()
    assert 0 < card.model["line_distance"].value < 2
    one, other = card.classes  # this source does not draw true pegasi
    real = [f"real {one}", f"real {other}", f"real {one} and {other}"]
    assert [*card.rows] == [*(row for row in ROWS if row != "prior samples"), *real]


@pytest.mark.parametrize(("low", "high"), [(0, 0), (-0.5, 1.5)])
def test_controls_beyond_the_parents_are_the_parents(
    low: float, high: float, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Controls at these ratios are training images, some repeated."""
    monkeypatch.setattr(Benchmark, "_of_model", no_model)
    monkeypatch.setattr(Benchmark, "_real_images", lambda _: {})
    card = evaluate_run(run, "split=train", f"pegasus.ratio=[{low},{high}]", "pegasus.mixing=lerp")
    ratios = low + (high - low) * torch.rand(COUNT, generator=generator(0, Stream.RATIOS))
    parents = ((ratios <= 0) | (ratios >= 1)).float().mean().item()
    for row in ("pixel average", "CutMix"):
        copied = card.rows[row]["memorised"].value
        assert parents <= copied <= (1 if low == high else 0.999)


# Alarms, end to end.


def test_stolen_and_collapsed_pegasi_raise_both_alarms(
    run: Path, evaluate: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mirrored training images, most of them the same one, take the place of the pegasi."""
    stolen = to_float(photos("train")[0].flip(3))
    sold = torch.cat([stolen[:8], stolen[8:9].repeat(COUNT - 8, 1, 1, 1)])

    def steal(*arguments: Any) -> Any:
        pegasi = sample(*arguments)
        object.__setattr__(pegasi.mixes, "images", sold)
        return pegasi

    monkeypatch.setattr("pegasus_lightning.evaluate.benchmark.sample", steal)
    monkeypatch.setattr(Benchmark, "_of_model", no_model)
    answer = evaluate(f"run={run}")
    assert answer.code == 0, answer.err
    (folder,) = folders(run / "evaluation")
    card, gallery = read_scorecard(folder / FILE), arrays_in(folder)
    assert card.rows["pegasi"]["memorised"].value == 1
    memorised, collapsed = card.alarms
    assert "100.0% of the pegasi lie nearer to a training image" in memorised
    assert f"The pegasi lie {torch.pdist(sold.flatten(1)).mean() / 3072**0.5:.3f} apart" in collapsed
    assert "have modes collapsed?" in collapsed
    assert f"ALARM: {memorised}\nALARM: {collapsed}\n" in answer.out
    assert (gallery["neighbour_distances"] == 0).all()
    assert np.array_equal(gallery["neighbours"], gallery["pegasi"][..., ::-1])
    for row in REAL[:3]:
        assert card.rows[row]["memorised"].value <= 1 / TEST


# The gallery.


def test_the_gallery_holds_what_is_shown(evaluated: Evaluated, made: Made, model: TwoPlayerModel) -> None:
    gallery = evaluated.gallery
    shapes = {name: array.shape for name, array in gallery.items()}
    picture = (3, 32, 32)
    assert shapes == {
        **dict.fromkeys(("first", "second", "blend", "cutmix"), (8, *picture)),
        **dict.fromkeys(("first_reconstructed", "second_reconstructed"), (8, *picture)),
        **{"frames": (8, 21, *picture), "ratios": (21,), "pair_indices": (8, 2)},
        **dict.fromkeys(("pegasi", "neighbours"), (16, *picture)),
        **{"pegasi_ratios": (16,), "pegasi_probabilities": (16, 2), "pegasi_selected": (16,)},
        **{"neighbour_distances": (16,), "neighbour_limit": ()},
    }
    for name, array in gallery.items():
        assert (array.dtype == np.uint8) == (array.shape[-3:] == picture), name
    assert not gallery["pegasi_selected"].any()
    assert np.allclose(gallery["ratios"], np.linspace(0, 1, 21))
    assert np.allclose(gallery["pegasi_ratios"], made.ratios[:16])
    drawn, labels = photos()
    for side, name in enumerate(("first", "second")):
        assert np.array_equal(gallery[name], drawn[labels == side][gallery["pair_indices"][:, side]].numpy())
        assert np.array_equal(gallery[name], to_uint8((made.first, made.second)[side][:8]).transpose(0, 3, 1, 2))
    assert close(gallery["pegasi"], made.pegasi[:16])
    wanted = ByColour().probabilities(made.pegasi[:16])
    assert np.allclose(gallery["pegasi_probabilities"], wanted, atol=1e-4)
    assert close(gallery["blend"], (made.first[:8] + made.second[:8]) / 2)
    assert np.array_equal(
        gallery["cutmix"],
        to_uint8(cutmix(made.first[:8], made.second[:8], torch.full((8,), 0.5), 3)).transpose(0, 3, 1, 2),
    )
    with model.inference():
        for name, parents in (("first", made.first), ("second", made.second)):
            assert close(gallery[f"{name}_reconstructed"], model.reconstruct(parents[:8]))
        noise = code_noise(3, torch.arange(8), 8)
        start, end = (
            model.encode(parents[:8]).sample_with(noise[:, i]) for i, parents in enumerate((made.first, made.second))
        )
        for place in (0, 7, 20):
            assert close(gallery["frames"][:, place], model.decode(torch.lerp(start, end, place / 20)))


def close(pictures: np.ndarray, images: Tensor) -> bool:
    """Equal to one grey level: rounding depends on the batch size."""
    return np.abs(pictures.astype(int) - to_uint8(images).transpose(0, 3, 1, 2)).max() <= 1


def test_neighbours_are_the_nearest_training_images_or_their_mirrors(evaluated: Evaluated, made: Made) -> None:
    training = photos("train")[0]
    rows = [to_float(images).flatten(1).double() for images in (training, training.flip(3))]
    apart = torch.minimum(*(torch.cdist(made.pegasi[:16].flatten(1).double(), side) for side in rows)) / 3072**0.5
    nearest, which = apart.min(1)
    assert np.allclose(evaluated.gallery["neighbour_distances"], nearest, atol=1e-5)
    assert np.array_equal(evaluated.gallery["neighbours"], training[which].numpy())
    test = photos()[0]
    testing = to_float(test).flatten(1).double()
    apart = torch.minimum(*(torch.cdist(testing, side) for side in rows)).min(1).values / 3072**0.5
    assert evaluated.gallery["neighbour_limit"] == pytest.approx(apart.quantile(0.01).item(), rel=1e-5)


def photographs_in(gallery: dict[str, np.ndarray]) -> dict[str, int]:
    """Number of pictures in each array that are images of the data or their mirror images."""
    known = set()
    for split in ("train", "test"):
        images = photos(split)[0]
        known |= {image.numpy().tobytes() for image in torch.cat([images, images.flip(3)])}
    return {
        name: sum(picture.tobytes() in known for picture in array.reshape(-1, 3, 32, 32))
        for name, array in gallery.items()
        if array.dtype == np.uint8
    }


def test_photographs_can_be_kept_out(evaluated: Evaluated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = photographs_in(evaluated.gallery)
    assert {name: count for name, count in found.items() if count} == {"first": 8, "second": 8, "neighbours": 16}
    monkeypatch.setattr(Benchmark, "_of_model", no_model)
    run = shutil.copytree(evaluated.run, tmp_path / evaluated.run.name)
    card = evaluate_run(run, "seed=3", "originals=false")
    (without,) = (folder for folder in folders(run / "evaluation") if folder.name != evaluated.folder.name)
    bare = arrays_in(without)
    assert evaluated.gallery.keys() - bare.keys() == {"first", "second", "neighbours", "blend", "cutmix"}
    assert sum(photographs_in(bare).values()) == 0
    for name, array in bare.items():
        assert np.array_equal(array, evaluated.gallery[name]), name
    assert (card.rows, card.key) == (evaluated.card.rows, evaluated.card.key)  # still comparable


def use_selector(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use a selecting recogniser that prefers blue."""

    def blue(images: Tensor) -> tuple[Tensor, Tensor]:
        return 20 * (images[:, 2].mean((1, 2)) - 0.5)[:, None].repeat(1, 2), torch.zeros(len(images))

    selector = Selector(blue, stored("selecting-0b.pt"), "a judge of blue")
    monkeypatch.setattr("pegasus_lightning.generate.session.open_selector", lambda *_, **__: selector)
    monkeypatch.setattr(Benchmark, "_of_model", no_model)


def test_the_selecting_recogniser_picks_for_the_gallery_and_the_other_reports(
    run: Path, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_selector(monkeypatch)
    card = evaluate_run(run, "seed=3")
    gallery = arrays_in(*folders(run / "evaluation"))
    assert gallery["pegasi_selected"].tolist() == [False] * 16 + [True] * 16
    best = made.pegasi[:, 2].mean((1, 2)).argsort(descending=True)[:16]
    assert close(gallery["pegasi"][16:], made.pegasi[best])
    assert np.allclose(gallery["pegasi_ratios"][16:], made.ratios[best])
    assert np.allclose(gallery["pegasi_probabilities"][16:], ByColour().probabilities(made.pegasi[best]), atol=1e-4)
    assert card.rows["pegasi"]["p_first"].value == pytest.approx(expected(made.pegasi)[0], abs=1e-4)  # all of them
    for row, images in (
        ("pegasi", made.pegasi),
        ("reconstructions", made.reconstructions),
        ("prior samples", made.prior),
    ):
        share = (images[:COUNT, 2].mean((1, 2)) > 0.5).float().mean().item()
        assert card.rows[row]["recognised_selecting"].value == pytest.approx(share), row
    assert all("recognised_selecting" in figures for figures in card.rows.values())
    assert card.recognisers["selects"]["file"] == "selecting-0b.pt"
    assert card.recognisers["reports"]["file"] == "colours-0a.pt"
    assert card.settings["score"]["judge"] == "none"


def test_a_search_is_scored_by_the_selecting_recogniser(
    run: Path, model: TwoPlayerModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ["method=best_of", "pairs=64", "ratios=4", "most_per_parent=null"]
    use_selector(monkeypatch)
    monkeypatch.setattr(Benchmark, "_real_images", lambda _: {})
    settings = evaluate_run(run, *(f"search.{text}" for text in more), "score.overlap=0").settings
    (folder,) = folders(run / "evaluation")
    assert folder.name.startswith("colour-auto-best_of-s0-")
    drawn, labels = photos()
    parents = Parents(drawn[labels == 0], drawn[labels == 1], ("horse", "bird"))
    chosen = recipes(pairs_for(parents, PegasusConfig(**settings["pegasus"]), 64, 0), (0.4, 0.6), ratios=4)
    with model.inference():
        noise = code_noise(0, chosen.draws, 8)
        start = model.encode(to_float(parents.first[chosen.first])).sample_with(noise[:, 0])
        end = model.encode(to_float(parents.second[chosen.second])).sample_with(noise[:, 1])
        candidates = model.decode(torch.lerp(start, end, chosen.ratios[:, None]))
    bluest = candidates[candidates[:, 2].mean((1, 2)).argmax()]
    assert close(arrays_in(folder)["pegasi"][:1], bluest[None])


# Cached, separate and compared evaluations.


@pytest.fixture
def quick(model: TwoPlayerModel, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replace the benchmark: record the runs; all figures are the number of the evaluation. All runs have one model."""
    asked: list[str] = []

    def benchmark(session: Session, *_: Any) -> Any:
        return SimpleNamespace(measure=lambda *given: measure(session.origin, *given))

    def measure(origin: dict, run: Any, key: str, identity: dict) -> tuple[Scorecard, dict[str, np.ndarray]]:
        asked.append(run.name)
        value = float(len(asked))
        numbers = {name: Figure(value, value - 0.5, value + 0.5) for name in MEASURES}
        model = {name: Figure(value, value - 0.5, value + 0.5) for name in MODEL_MEASURES}
        seed = None if run.config is None else run.config.seed
        group = run.name.removesuffix(f"-s{seed}")
        described = {"reports": {"file": "colours"}, "selects": None}
        rows, counts = {"pegasi": numbers}, {"pegasi": COUNT}
        card = Scorecard(str(run.path), run.name, group, seed, run.model.batches_done, ["horse", "bird"], key, identity,
                         origin, described, rows, counts, model)  # fmt: skip
        return card, {"ratios": np.zeros(3)}

    monkeypatch.setattr(pipeline, "Benchmark", benchmark)
    monkeypatch.setattr("pegasus_lightning.runs.trained.load_model", lambda *_: model)
    return asked


def test_the_same_command_again_reads_the_scorecard_and_again_replaces_it(
    run: Path, evaluate: Callable[..., Answer], quick: list[str]
) -> None:
    before = scalars(run)
    first = evaluate(f"run={run}")
    (folder,) = folders(run / "evaluation")
    written = (folder / FILE).stat().st_mtime_ns
    for file in run.glob("*.evaluation"):
        file.unlink()
    again = evaluate(f"run={run}")
    assert (first.code, again.code, quick) == (0, 0, ["tiny-s0"])
    assert "Already judged" not in first.out
    assert "Already judged: tiny-s0 (again=true judges it once more)" in again.out
    assert again.out.split("\n", 1)[1] == first.out  # the same table
    assert path_shown(folder / FILE) in again.out
    assert (folder / FILE).stat().st_mtime_ns == written
    assert [value for _, value in scalars(run)["evaluation/kid"]] == [1]  # written anew
    (folder / FILE).write_text("{")
    damaged = evaluate(f"run={run}")
    assert damaged.code == 0 and "is not a scorecard" in damaged.out and quick.pop() == "tiny-s0"
    third = evaluate(f"run={run}", "again=true")
    assert quick == ["tiny-s0", "tiny-s0"]
    assert "Already judged" not in third.out
    assert folders(run / "evaluation") == [folder]
    assert read_scorecard(folder / FILE).model["psnr"].value == 2
    found = scalars(run)
    for name in HPARAMS:
        assert [value for _, value in found[f"evaluation/{name}"]] == [2]  # in place of the earlier one
    assert before.items() <= found.items()


SAME = ["again=false", "recognisers=x", "data.batch_size=8", "reporter=standard"]
OTHERS = [
    "seed=1",
    "threshold=0.6",
    "count=65",
    "split=train",
    "pegasus.codes=mean",
    "pegasus.ratio=[0.1,0.2]",
    "data.drawing_seed=1",
    "data.test_per_class=29",
    "reporter=independent",
]


def test_what_decides_the_figures_has_a_folder_of_its_own(
    run: Path, quick: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipes: list[RecogniserConfig] = []
    monkeypatch.setattr(RecogniserStore, "get", lambda _, data, recipe: recipes.append(recipe) or stored())
    keys = [evaluate_run(run).key]
    keys += [evaluate_run(run, same).key for same in SAME]
    assert len(set(keys)) == len(folders(run / "evaluation")) == len(quick) == 1
    keys += [evaluate_run(run, other).key for other in OTHERS]
    assert len(set(keys)) == len(folders(run / "evaluation")) == len(quick) == 1 + len(OTHERS)
    assert recipes == [standard_recipe("residual")] * (len(recipes) - 1) + [independent_recipe("residual")]
    assert recipes[-1].half == 1  # the committee's is 0
    assert evaluate_run(run, "originals=false").key == keys[0]  # comparable with and without photographs
    assert len(folders(run / "evaluation")) == len(quick) == 2 + len(OTHERS)


def test_another_checkpoint_or_recogniser_has_a_folder_of_its_own(
    run: Path, quick: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [evaluate_run(run).key]
    checkpoint = run / "checkpoints" / "last.ckpt"
    content = torch.load(checkpoint, weights_only=True)
    name = next(name for name in content["state_dict"] if name.startswith("decoder") and name.endswith("weight"))
    content["state_dict"][name] = content["state_dict"][name] * 1.01
    save_atomically(content, checkpoint)  # same number of batches, other weights
    keys.append(evaluate_run(run).key)
    monkeypatch.setattr(RecogniserStore, "get", lambda *_: stored("colours-0c.pt"))
    keys.append(evaluate_run(run).key)
    assert len(folders(run / "evaluation")) == len(quick) == 3
    assert keys[0] == keys[1] != keys[2]


def test_the_packages_own_model_is_evaluated_on_images_that_are_named(
    evaluate: Callable[..., Answer], quick: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The committee packed with it selects; results go into the current folder."""
    networks = {"channels": 4, "latent_dim": 16, "latent": "spatial"}
    model = model_class("pegasus")({"networks": networks, "learned_mixing": True}, classes=["horse", "bird"]).eval()
    committee = Committee([Recogniser("plain", ("horse", "bird"))])
    images, labels = photos("train")
    parents = Parents(images[labels == 0], images[labels == 1], ("horse", "bird"))
    digest = pretrained.pack(model, committee, parents, {}, tmp_path / "pegasus.safetensors")
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path)
    monkeypatch.setattr(pretrained, "PRETRAINED", {"pegasus": digest})
    monkeypatch.chdir(tmp_path)
    sessions: list[Session] = []
    benchmark = pipeline.Benchmark
    monkeypatch.setattr(pipeline, "Benchmark", lambda *given: sessions.append(given[0]) or benchmark(*given))
    answer = evaluate("pretrained=pegasus", *DRAWN)
    assert answer.code == 0, answer.err
    assert quick == ["pegasus"]
    assert [member.architecture for member in sessions[0].selector.stored.recogniser.members] == ["plain"]
    assert list((tmp_path / "pegasi" / "pegasus" / "evaluation").glob(f"*/{FILE}"))
    for wrong, told in ((["pretrained=pegasus"], "data="), (["pretrained=pegasus", "run=x"], "leave one of them out")):
        answer = evaluate(*wrong)
        assert answer.code == 2
        assert told in answer.err


def test_results_lie_where_they_are_wanted(
    run: Path, tmp_path: Path, evaluate: Callable[..., Answer], quick: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert evaluate(f"run={run}", f"out={tmp_path / 'out, all=mine'}").code == 0
    (folder,) = folders(tmp_path / "out, all=mine")
    assert (folder / FILE).exists()
    assert not (run / "evaluation").exists()
    monkeypatch.setenv("HOME", str(tmp_path))
    evaluate_run(run, "out=~/home")
    assert len(folders(tmp_path / "home")) == 1
    alone = shutil.copy(run / "checkpoints" / "last.ckpt", tmp_path / "alone.ckpt")
    assert evaluate_run(alone, *DRAWN).seed is None
    assert len(folders(tmp_path / "alone-evaluation")) == 1
    other = shutil.copytree(run, tmp_path / "runs" / "other-s1-0123abcd")
    assert evaluate(f"run={run}", f"run={other}", f"out={tmp_path / 'both'}").code == 0
    assert sorted(path.name for path in (tmp_path / "both").iterdir()) == ["other-s1", "tiny-s0"]


def test_figures_are_the_same_to_the_last_bit_and_controls_are_measured_once_for_several_runs(
    evaluated: Evaluated, run: Path, evaluate: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = shutil.copytree(run, run.parent / "other-s0-0123abcd")
    began, sizes = [], []
    measure, begin = ImageSetMetrics.measure, ImageSetMetrics.__init__
    monkeypatch.setattr(ImageSetMetrics, "__init__", lambda self, *a, **k: began.append(1) or begin(self, *a, **k))
    monkeypatch.setattr(
        ImageSetMetrics, "measure", lambda self, images, *a: sizes.append(len(images)) or measure(self, images, *a)
    )
    torch.manual_seed(123)  # must have no effect
    answer = evaluate(f"run={run}", f"run={other}", "seed=3")
    assert answer.code == 0, answer.err
    # Pegasi, two controls of their pairs, reconstructions, prior samples; then the real images.
    first = [COUNT, COUNT, COUNT, 2 * TEST, COUNT, TEST, TEST, 2 * TEST, TEST]
    assert sizes == [*first, COUNT, 2 * TEST, COUNT]  # of the second run only what its model made
    assert len(began) == 1
    for home, name in ((run, "tiny-s0"), (other, "other-s0")):  # the same model
        (folder,) = folders(home / "evaluation")
        assert folder.name == evaluated.folder.name
        one, same = (json.loads((place / FILE).read_text()) for place in (folder, evaluated.folder))
        same |= {"run": f".../{home.name}", "name": name, "group": name.removesuffix("-s0")}
        assert one == same
        for array, values in arrays_in(folder).items():
            assert np.array_equal(values, evaluated.gallery[array]), array


def test_several_runs_are_compared_over_their_seeds(
    run: Path, tmp_path: Path, evaluate: Callable[..., Answer], quick: list[str]
) -> None:
    for seed, name in ((1, "tiny-s1-0123abcd"), (0, "vae-s0-0123abcd")):
        other = shutil.copytree(run, run.parent / name)
        config = other / "config.yaml"
        config.write_text(config.read_text().replace("\nseed: 0\n", f"\nseed: {seed}\n"))
    answer = evaluate(f"run={run.parent}", "verbose=true")
    assert quick == ["tiny-s0", "tiny-s1", "vae-s0"]
    table = answer.out[answer.out.index("pegasi of") :].splitlines()[:4]
    head, tiny, vae, _ = (line.split("  ") for line in table)
    assert [head[0], tiny[0], vae[0]] == ["pegasi of", "tiny", "vae"]
    tiny, vae = ([cell.strip() for cell in line if cell.strip()] for line in (tiny, vae))
    assert (tiny[1], vae[1]) == ("2", "1")
    # Values 1 and 2: mean 1.5, deviation .707; Student's t is 12.706 for two seeds: 12.706 * .707 / sqrt(2).
    assert "1.500 ±6.353 (0.707)" in tiny
    assert "3.000 ±0.500" in vae
    again = evaluate(f"run={run.parent}")  # the same scorecards, without the tables
    assert again.out.count("Already judged") == 3 and len(quick) == 3
    lines = again.out.splitlines()
    (mean,) = (line for line in lines if line.startswith("tiny, 2 seeds"))
    assert "150.0% ±635.3" in mean and "pegasi of" not in again.out
    assert f"  the page   python -m pegasus_lightning.report {run.parent}" in lines
    assert all(len(line) <= 80 for line in lines if not line.startswith(("Already", "  ", "  scorecard")))


# TensorBoard.


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    board = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    return {tag: [(event.step, event.value) for event in board.Scalars(tag)] for tag in board.Tags()["scalars"]}


def test_the_pegasis_figures_fill_the_runs_row_in_tensorboard(evaluated: Evaluated, original: Path) -> None:
    found, before = scalars(evaluated.run), scalars(original)
    assert {tag for tag in found if tag.startswith("evaluation/")} == {f"evaluation/{name}" for name in HPARAMS}
    for name in HPARAMS:
        ((step, value),) = found[f"evaluation/{name}"]
        assert step == evaluated.card.batches
        assert value == pytest.approx(evaluated.card.rows["pegasi"][name].value, rel=1e-6)
    assert {tag: values for tag, values in found.items() if not tag.startswith("evaluation/")} == before


def test_nothing_is_written_beside_a_training_that_goes_on(run: Path, quick: list[str]) -> None:
    status = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps(status | {"status": "running"}))
    evaluate_run(run)
    assert not any(tag.startswith("evaluation/") for tag in scalars(run))


# Errors.


def test_an_end_half_way_leaves_nothing_half_written(
    run: Path, evaluate: Callable[..., Answer], quick: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = shutil.copytree(run, run.parent / "zebra-s0-0123abcd")
    makes = pipeline.Benchmark

    def stopped(*arguments: Any) -> Any:
        benchmark = makes(*arguments)

        def measure(of: Any, *more: Any) -> Any:
            if of.name == "zebra-s0":
                raise KeyboardInterrupt
            return benchmark.measure(of, *more)

        return SimpleNamespace(measure=measure)

    monkeypatch.setattr(pipeline, "Benchmark", stopped)
    answer = evaluate(f"run={run.parent}")
    assert answer.code == 130
    assert "nothing was left half-written" in answer.err
    (whole,) = folders(run / "evaluation")
    assert sorted(path.name for path in whole.iterdir()) == sorted([FILE, GALLERY])
    assert not (other / "evaluation").exists()
    monkeypatch.setattr(pipeline, "Benchmark", makes)
    answer = evaluate(f"run={run.parent}")  # resumes
    assert answer.code == 0
    assert quick == ["tiny-s0", "zebra-s0"]


def test_a_full_disk_leaves_nothing_half_written(
    run: Path, evaluate: Callable[..., Answer], quick: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: Any, **_: Any) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pipeline.np, "savez_compressed", full)
    answer = evaluate(f"run={run}")
    assert answer.code == 1
    assert "No space left" in answer.err
    assert "Traceback" not in answer.err
    assert folders(run / "evaluation") == []
    assert not any(tag.startswith("evaluation/") for tag in scalars(run))


def test_what_a_power_cut_left_is_no_scorecard(evaluated: Evaluated, tmp_path: Path) -> None:
    whole = shutil.copytree(evaluated.folder, tmp_path / "evaluation" / "colour-lerp-none-s0-01234567")
    torn = shutil.copytree(evaluated.folder, tmp_path / "evaluation" / f".{whole.name}.0a1b2c3d.tmp")
    os.utime(torn / FILE, ns=(2 * 10**18, 2 * 10**18))
    assert newest_scorecard(tmp_path) == whole / FILE


REFUSED: list[tuple[list[str], list[str]]] = [  # more bad values: test_settings.py
    ([], ["run=FOLDER"]),
    (["run=nowhere"], ["no run folder or checkpoint nowhere"]),
    (["run=empty"], ["empty holds no run", "checkpoints"]),
    (["run={run}", "count=63"], ["count=63", "at least 64"]),
    (["run={run}", "treshold=0.5"], ["treshold", "Did you mean 'threshold'?"]),
    (["run={run}", "gpus=1"], ["gpus=1", "Type gpus=0"]),
    (["run={run}", "inception=true"], ["inception=true takes count=2000"]),
    (["run={run}", "data=silhouete"], ["Did you mean 'silhouettes'?"]),
    (["run={run}", "data.classes=[cat,horse]"], ["not trained on 'cat'"]),
    (["run={run}", "data=image_folder", "data.root=moved"], ["There is no folder", "moved"]),
    (["run={run}", "data=image_folder", "data.root=empty"], ["There is no folder 'test'"]),
    (["run=alone.ckpt"], ["data=silhouettes"]),
    (["run={run}", "run=other"], ["different data"]),
    (["run={run}", "out=file"], ["file is not a folder", "out=FOLDER"]),
    (["run={run}", "out=file/deeper"], ["file is not a folder", "out=FOLDER"]),
    (["run={run}", "pegasus.threshold=0.000001"], ["pegasus.threshold=1e-06", "nearest"]),
    (["run={run}", "-m"], ["no -m"]),
]


@pytest.fixture(scope="module")
def crowded(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what refused commands name."""
    folder = tmp_path_factory.mktemp("crowded")
    (folder / "empty").mkdir()
    (folder / "file").write_text("mine")
    shutil.copy(original / "checkpoints" / "last.ckpt", folder / "alone.ckpt")
    config = shutil.copytree(original, folder / "other") / "config.yaml"
    config.write_text(config.read_text().replace("test_per_class: 30", "test_per_class: 29"))
    return folder


@pytest.mark.parametrize(("arguments", "told"), REFUSED, ids=lambda value: " ".join(value)[:60])
def test_a_mistake_gets_one_message_exit_code_2_and_nothing_written_or_trained(
    arguments: list[str], told: list[str], original: Path, crowded: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def train_it(*_: Any) -> StoredRecogniser:
        raise AssertionError("a quarter of an hour's training, and then a refusal")

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(RecogniserStore, "get", train_it)
    monkeypatch.chdir(crowded)
    before = [sorted(os.walk(folder)) for folder in (crowded, original)]
    given = [argument.format(run=original) for argument in arguments]
    defaults = [text for text in ALWAYS if text.split("=")[0] not in str(given)]
    assert run_program(EVALUATE, [*defaults, *given], _work) == 2
    (said,) = capsys.readouterr().err.strip().splitlines()
    assert said.startswith("pegasus_lightning: ")
    assert "Traceback" not in said
    for words in told:
        assert words in said
    assert [sorted(os.walk(folder)) for folder in (crowded, original)] == before


def test_a_folder_that_cannot_be_written_to_is_refused_before_anything_is_done(
    run: Path, evaluate: Callable[..., Answer], quick: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pegasus_lightning.runs.places.os.access", lambda path, mode: Path(path) != run)
    answer = evaluate(f"run={run}")
    assert answer.code == 2
    assert f"{run} is not a folder that can be written to. Say out=FOLDER." in answer.err
    assert quick == []
    assert not (run / "evaluation").exists()


def test_too_few_images_are_refused(
    run: Path, evaluate: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pegasus_lightning.evaluate.benchmark.MIN_IMAGES", 9)
    for split in ("test", "train"):
        answer = evaluate(f"run={run}", f"data.{split}_per_class=8")
        assert (answer.code, answer.out) == (2, "")
        message = f"There are 8 {split} images of horse: an evaluation takes at least 9 of each class."
        assert message in answer.err
        assert not (run / "evaluation").exists()


def test_help_and_the_configuration_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert answered(["--help"], help_text)
    shown = capsys.readouterr().out
    assert "python -m pegasus_lightning.evaluate" in shown
    assert "guided" in shown
    assert run_program(EVALUATE, ["--cfg", "job", "run=a,b", "search=guided"], _work) == 0
    shown = capsys.readouterr().out
    assert "- a,b\n" in shown
    assert "count: 2000" in shown
    assert "method: guided" in shown


def test_inceptions_figures_stand_in_the_same_table(
    run: Path, evaluate: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    class MeanColours(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.float().mean((2, 3)) / 255

    for module in ("settings", "inception"):
        monkeypatch.setattr(f"pegasus_lightning.evaluate.{module}.MIN_FOR_FID", COUNT)
    monkeypatch.setattr("pegasus_lightning.evaluate.pipeline.inception_network", MeanColours)
    monkeypatch.setattr(Benchmark, "_of_model", no_model)
    answer = evaluate(f"run={run}", "inception=true", "verbose=true")
    assert (answer.code, answer.err) == (0, "")
    (folder,) = folders(run / "evaluation")
    card = read_scorecard(folder / FILE)
    assert all("inception_fid" in card.rows[row] for row in ROWS if card.counts[row] == COUNT)
    assert "inception_fid" not in card.rows["real horse"]  # another number of images, not comparable
    fid, kid = (card.rows["CutMix"][f"inception_{name}"] for name in ("fid", "kid"))
    assert 0 < fid.value < 3 and kid.low < kid.value < kid.high  # colours in [0, 1]: at most 3
    assert "FID" in answer.out


def test_what_runs_that_differ_in_their_seed_alone_have_in_common() -> None:
    config = TRAIN.compose([*TINY, *DRAWN, "model=vae"])

    def run(name: str, seed: int, kl: float = 1) -> TrainedRun:
        own = OmegaConf.merge(config, {"seed": seed, "model": {"weights": {"kl": kl}}})
        return TrainedRun(Path(name), Path(name), None, own, name)  # type: ignore[arg-type]

    first, second = kind_of(run("vae,beta=2-s0", 0)), kind_of(run("vae,beta=2-s1-0123abcd", 1))
    assert first == second and first[0] == "vae,beta=2"
    other = kind_of(run("vae,beta=2-s0-ba9876fe-last", 0, kl=2))
    assert other[0] == "vae,beta=2" and other[1] != first[1]
    assert kind_of(run("vae-s1-s0", 0))[0] == "vae-s1"
    assert kind_of(TrainedRun(Path("a"), Path("a"), None, None, "last")) == ("last", "")  # type: ignore[arg-type]


def bare_benchmark(**attributes: Any) -> Benchmark:
    """A benchmark without data, with these attributes alone."""
    benchmark = object.__new__(Benchmark)
    vars(benchmark).update({"inception": None, "selector": None, "winged": None} | attributes)
    return benchmark


def test_a_set_is_measured_once_for_one_recipe_and_anew_for_another() -> None:
    metrics = SimpleNamespace(measure=lambda images, parents, parentage: images)
    once = bare_benchmark(_measured={}, image_set_metrics=metrics)._once
    a, b = torch.zeros(1), torch.ones(1)
    assert once("blend", a, b"pairs") is a
    assert once("blend", b, b"pairs") is a
    assert once("blend", b, b"other pairs") is b
    assert once("CutMix", b, b"pairs") is b


def test_the_selecting_recognisers_share_by_hand() -> None:
    """The first class is red above 0.5, the second green above 0.5; both must be recognised."""
    seen = [(0.9, 0.8), (0.9, 0.2), (0.1, 0.7), (0.3, 0.2), (0.6, 0.6), (0.4, 0.6), (1.0, 1.0), (0.0, 1.0)]
    images = torch.zeros(8, 3, 32, 32)
    images[:, :2] = torch.tensor(seen)[:, :, None, None]
    shown: list[Tensor] = []

    def recognise(images: Tensor) -> tuple[Tensor, None]:
        shown.append(images)
        return 3 * (images[:, :2].mean((2, 3)) - 0.5), None

    selector = Selector(recognise, stored(), "a judge")

    def measured(images: Tensor, threshold: float, selector: Selector | None = selector) -> Any:
        metrics = SimpleNamespace(measure=lambda *_: SimpleNamespace(figures={}))
        benchmark = bare_benchmark(device=torch.device("cpu"), image_set_metrics=metrics, selector=selector)
        benchmark.settings = EvaluateConfig(threshold=threshold)
        return benchmark._measure(images).figures

    for given in (images, (255 * images).byte()):
        share = measured(given, 0.5)["recognised_selecting"]
        assert share.value == 3 / 8
        assert 0 <= share.low < 3 / 8 < share.high <= 1
    assert all(part.is_floating_point() and part.max() <= 1 for part in shown)
    strict = torch.sigmoid(torch.tensor(0.45)).item()  # levels above .65: images 1 and 7
    assert measured(images, strict)["recognised_selecting"].value == 2 / 8
    assert measured(images, strict, selector=None) == {}


def test_the_winged_share_is_that_of_the_judges_second_output() -> None:
    levels = torch.tensor([0.1, 0.6, 0.94, 0.96, 1.0])
    images = torch.zeros(5, 3, 32, 32)
    images[:, 0] = 1  # the first class is in all of them
    images[:, 1] = levels[:, None, None]

    class ByGreen(nn.Module):
        def probabilities(self, images: Tensor) -> Tensor:
            return images[:, :2].mean((2, 3))

    metrics = SimpleNamespace(measure=lambda *_: SimpleNamespace(figures={}))
    benchmark = bare_benchmark(
        device=torch.device("cpu"), image_set_metrics=metrics, winged=StoredRecogniser(ByGreen(), Path("w.pt"), {})
    )
    benchmark.settings = EvaluateConfig()
    for given in (images, (255 * images).byte()):
        assert benchmark._measure(given).figures["winged"].value == 2 / 5  # beyond .95


def test_a_winged_judge_reports_if_it_is_asked_for_or_trained(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, Any]] = []
    monkeypatch.setattr(Benchmark, "_of_model", no_model)

    def get(store: RecogniserStore, data: Any, recipe: Any) -> StoredRecogniser:
        asked.append(("get", recipe))
        return stored("colours-0a.pt" if recipe.third is None else "winged-0c.pt")

    def find(store: RecogniserStore, data: Any, recipe: Any) -> None:
        asked.append(("find", recipe))

    monkeypatch.setattr(RecogniserStore, "get", get)
    monkeypatch.setattr(RecogniserStore, "find", find)
    plain = evaluate_run(run)
    assert ("find", winged_recipe(REPORTS, 2)) in asked and "winged" not in plain.rows["pegasi"]
    card = evaluate_run(run, "winged=true")
    assert ("get", winged_recipe(REPORTS, 2)) in asked
    assert card.recognisers["winged"]["file"] == "winged-0c.pt" and card.key != plain.key
    assert all("winged" in figures for figures in card.rows.values())
    asked.clear()
    assert evaluate_run(run, "winged=false").key == plain.key
    assert not [recipe for _, recipe in asked if recipe.third is not None]


def test_what_a_panel_said_is_printed_and_not_written_into_the_scorecard(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Benchmark, "_of_model", no_model)
    card = evaluate_run(run)
    assert "to a panel" not in capsys.readouterr().out
    asked = {part: card.settings[part] for part in ("pegasus", "search")}
    row = {letter: {"value": 0.125, "low": 0.0, "high": 0.25} for letter in ("H", "R", "W", "B", "N", "realism")}
    record = {"batches": card.batches, "parents": card.parents, "settings": asked, "pegasi": "p", "rows": {"p": row}}
    (run / "panel").mkdir()
    (run / "panel" / "a.json").write_text(json.dumps(record))
    again = evaluate_run(run)
    said = capsys.readouterr().out
    assert "Already judged" in said and "winged to a panel 12% (0 to 25)" in " ".join(said.split())
    assert again == card
