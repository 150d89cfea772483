"""`evaluate`: every row against what it says it is, what is kept, and what is refused. Tiny models on drawings.

No recogniser is trained here: colours by place stand for one.
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
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from pegasus_lightning.data import silhouettes
from pegasus_lightning.data.silhouettes import load
from pegasus_lightning.evaluate import pipeline
from pegasus_lightning.evaluate.__main__ import _work, help_text
from pegasus_lightning.evaluate.benchmark import Benchmark, kind_of
from pegasus_lightning.evaluate.controls import cutmix
from pegasus_lightning.evaluate.image_sets import ImageSetMetrics
from pegasus_lightning.evaluate.settings import EVALUATE
from pegasus_lightning.generate import pretrained
from pegasus_lightning.generate.judge import Selector
from pegasus_lightning.generate.mixing import code_noise, recipes
from pegasus_lightning.generate.pairs import Parents, pairs_for
from pegasus_lightning.models import model_class
from pegasus_lightning.recognisers.committee import Committee
from pegasus_lightning.recognisers.network import Recogniser
from pegasus_lightning.recognisers.store import StoredRecogniser
from pegasus_lightning.recognisers.training import independent_recipe
from pegasus_lightning.runs.checkpoints import load_model, save_atomically
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
from pegasus_lightning.utils.program import run_program
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
COUNT, TEST = 64, 30
FAR = "pegasus.threshold=1"
ALWAYS = [f"count={COUNT}", FAR, "gpus=0"]
ROWS = ["pegasi", "pixel average", "CutMix", "reconstructions", "prior samples"]
REAL = ["real horse", "real bird", "real horse and bird", "true pegasi"]


class ByColour(nn.Module):
    """Sees the first class in bright, the second in blue images; its features are colours by place."""

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


def no_training(*_: Any, **__: Any) -> StoredRecogniser:
    return stored()


@pytest.fixture(scope="module", autouse=True)
def ready_made() -> Iterator[None]:
    """A recogniser that reports, none that selects; and drawings drawn once."""
    drawn: dict[str, Any] = {}

    def once(draw: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            key = repr((draw.__name__, arguments))
            if key not in drawn:
                drawn[key] = draw(*arguments)
            return drawn[key]

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pegasus_lightning.evaluate.pipeline.recogniser_for", no_training)
        patch.setattr("pegasus_lightning.generate.judge.find_recogniser", lambda *_, **__: None)
        patch.setattr(silhouettes, "load", once(silhouettes.load))
        patch.setattr(silhouettes, "load_scenes", once(silhouettes.load_scenes))
        yield


def no_model(*_: Any) -> dict[str, Figure]:
    """In place of `Benchmark._of_model`, where its figures are not looked at."""
    return {name: Figure(20.0, 19.0, 21.0) for name in ("psnr", "midpoint")}


def trained(folder: Path, *overrides: str) -> Path:
    return train(TRAIN.compose([*TINY, *DRAWN, *overrides, f"runs_dir={folder}"]), "tiny")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("runs"), "model=adversarial_vae")


@pytest.fixture
def run(original: Path, tmp_path: Path) -> Path:
    """A copy to write into."""
    return shutil.copytree(original, tmp_path / "runs" / original.name)


class Answer(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def evaluate(capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    def call(*arguments: str) -> Answer:
        code = run_program(EVALUATE, [*ALWAYS, *arguments], "help", _work)
        return Answer(code, *capsys.readouterr())

    return call


def folders(home: Path) -> list[Path]:
    """Of scorecards, hidden ones too, oldest first."""
    return sorted(home.iterdir(), key=lambda path: path.stat().st_mtime_ns) if home.exists() else []


def arrays_in(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / GALLERY) as arrays:
        return dict(arrays)


class Judged(NamedTuple):
    run: Path
    folder: Path
    card: Scorecard
    gallery: dict[str, np.ndarray]
    out: str


@pytest.fixture(scope="module")
def judged(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Judged:
    """What `evaluate` says of one run, by its defaults; many tests look at it."""
    run = shutil.copytree(original, tmp_path_factory.mktemp("judged") / original.name)
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", lambda *words, **_: said.append(" ".join(map(str, words))))
        assert run_program(EVALUATE, [*ALWAYS, f"run={run}", "seed=3"], "", _work) == 0, said
    (folder,) = folders(run / "evaluation")
    return Judged(run, folder, read_scorecard(folder / FILE), arrays_in(folder), "\n".join(said))


class Made(NamedTuple):
    """What the rows are, made once more by hand."""

    first: Tensor
    second: Tensor
    ratios: Tensor
    pegasi: Tensor
    reconstructions: Tensor
    prior: Tensor


@pytest.fixture(scope="module")
def made(judged: Judged) -> Made:
    drawn, labels = load(["horse", "bird"], "test", TEST, 0)
    parents = Parents(drawn[labels == 0], drawn[labels == 1], ("horse", "bird"))
    pegasus = judged.card.settings["pegasus"]
    pairs = pairs_for(parents, pegasus, COUNT, 3)
    chosen = recipes(pairs, (0.4, 0.6), seed=3)
    first, second = to_float(parents.first[chosen.first]), to_float(parents.second[chosen.second])
    model = load_model(judged.run)
    with model.inference():
        noise = code_noise(3, torch.arange(COUNT), 8)
        start, end = (model.encode(parent).sample_with(noise[:, side]) for side, parent in enumerate((first, second)))
        pegasi = model.decode(start + (end - start) * chosen.ratios[:, None])
        prior = model.sample_prior(COUNT, generator(3, Stream.PRIOR))
        return Made(first, second, chosen.ratios, pegasi, model.reconstruct(to_float(drawn)), prior)


def expected(images: Tensor) -> tuple[float, float]:
    return tuple(ByColour().probabilities(images).mean(0).tolist())  # type: ignore[return-value]


# Figures.


def test_the_scorecard_says_what_was_judged_and_how(judged: Judged) -> None:
    card = judged.card
    assert [*card.rows] == [*ROWS, *REAL]
    assert card.counts == {
        **dict.fromkeys(("pegasi", "pixel average", "CutMix", "prior samples"), COUNT),
        **{"reconstructions": 2 * TEST, "real horse": TEST, "real bird": TEST, "real horse and bird": 2 * TEST},
        "true pegasi": TEST,
    }
    assert (card.name, card.group, card.seed, card.classes) == ("tiny-s0", "tiny", 0, ["horse", "bird"])
    assert card.run == str(judged.run)
    assert card.batches == load_model(judged.run).batches_done
    assert card.settings["pegasus"]["threshold"] == 1
    assert card.settings["score"]["judge"] == "none"  # nothing was searched for
    assert (card.parents["split"], card.parents["source"]) == ("test", "silhouettes")
    assert card.recognisers == {
        "reports": {"file": "colours-0a.pt", "balanced_accuracy": [0.75, 0.5]},
        "selects": None,
    }
    assert judged.folder.name.startswith("colour-auto-none-s3-")
    assert sorted(path.name for path in judged.folder.iterdir()) == sorted([FILE, GALLERY])


def test_every_row_has_its_measures(judged: Judged) -> None:
    for row, figures in judged.card.rows.items():
        wanted = set(MEASURES) - {"linearity", "parent_distance", "inception_fid", "inception_kid"}
        wanted -= {"recognised_selecting"}  # nobody selects
        wanted |= {"linearity"} if row == "pegasi" else set()
        wanted |= {"parent_distance"} if row in ("pegasi", "pixel average", "CutMix") else set()
        assert figures.keys() == wanted, row
        for name, figure in figures.items():
            assert figure.low <= figure.value <= figure.high, f"{row} {name}"
    lines = {"line_distance", "line_smoothness"}
    assert judged.card.model.keys() == MODEL_MEASURES.keys() - lines


def test_every_row_is_of_the_images_that_it_names(judged: Judged, made: Made) -> None:
    drawn, labels = load(["horse", "bird"], "test", TEST, 0)
    pegasi, of = load(["pegasus"], "test", TEST, 0)
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
        figures = judged.card.rows[row]
        told[row] = (figures["p_first"].value, figures["p_second"].value)
        assert told[row] == pytest.approx(expected(wanted), abs=1e-4), row
        assert figures["variety"].value == pytest.approx(torch.pdist(wanted.flatten(1)).mean().item() / 3072**0.5, 1e-3)
    assert len({round(1e4 * p_second) for _, p_second in told.values()}) == len(images)  # they can be told apart


def test_distances_from_parents_and_from_overlays_by_hand(judged: Judged, made: Made) -> None:
    def rmse(one: Tensor, other: Tensor) -> Tensor:
        return (one - other).square().mean((1, 2, 3)).sqrt()

    nearer = torch.minimum(rmse(made.pegasi, made.first), rmse(made.pegasi, made.second)).mean().item()
    assert judged.card.rows["pegasi"]["parent_distance"].value == pytest.approx(nearer, rel=1e-4)
    apart = rmse(made.first, made.second)
    wanted = (apart * torch.minimum(made.ratios, 1 - made.ratios)).mean().item()
    assert judged.card.rows["pixel average"]["parent_distance"].value == pytest.approx(wanted, rel=1e-4)
    model = load_model(judged.run)
    with model.inference():
        ends = [model.reconstruct(parent) for parent in (made.first, made.second)]
    blend = torch.lerp(*ends, made.ratios[:, None, None, None])
    overlaid = rmse(made.pegasi, blend).mean().item()
    assert judged.card.rows["pegasi"]["linearity"].value == pytest.approx(overlaid, rel=1e-3)


def test_figures_of_the_model_itself_by_hand(judged: Judged, made: Made) -> None:
    drawn, _ = load(["horse", "bird"], "test", TEST, 0)
    error = (made.reconstructions - to_float(drawn)).square().mean((1, 2, 3))
    assert judged.card.model["psnr"].value == pytest.approx((-10 * error.log10()).mean().item(), rel=1e-4)
    training = to_float(load(["horse", "bird"], "train", 40, 0)[0]).flatten(1).double()
    _, _, directions = torch.linalg.svd(training - training.mean(0), full_matrices=False)
    rows = to_float(drawn).flatten(1).double()
    kept = directions[:8]  # as many as there are latents
    back = (training.mean(0) + (rows - training.mean(0)) @ kept.T @ kept).clamp(0, 1)
    error = (back - rows).square().mean(1)
    assert judged.card.model["pca_psnr"].value == pytest.approx((-10 * error.log10()).mean().item(), abs=0.01)
    model = load_model(judged.run)
    with model.inference():
        noise = code_noise(3, torch.arange(COUNT), 8)
        codes = [model.encode(side).sample_with(noise[:, i]) for i, side in enumerate((made.first, made.second))]
        first, middle, last = (model.decode(torch.lerp(*codes, ratio)) for ratio in (0.0, 0.5, 1.0))
    off = (middle - (first + last) / 2).square().mean((1, 2, 3)).sqrt()
    assert judged.card.model["midpoint"].value == pytest.approx(off.mean().item(), rel=1e-3)


def test_lines_are_judged_by_the_papers_figures_too(
    tmp_path: Path, evaluate: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pegasus_lightning.evaluate.benchmark.PATHS", 4)
    data = ["data=lines", "data.train_per_class=40", "data.test_per_class=30"]
    run = train(TRAIN.compose([*TINY, *data, "model=vae", f"runs_dir={tmp_path}"]), "tiny")
    assert evaluate(f"run={run}", "pegasus.pairs=random", "pegasus.threshold=null").code == 0
    (folder,) = folders(run / "evaluation")
    card = read_scorecard(folder / FILE)
    assert card.model.keys() == MODEL_MEASURES.keys()
    assert 0 < card.model["line_distance"].value < 2
    assert "true pegasi" not in card.rows  # this source draws none
    assert [*card.rows][-1].startswith("real ")


def test_a_plain_autoencoder_has_no_prior(tmp_path: Path, evaluate: Callable[..., Answer]) -> None:
    run = trained(tmp_path, "model=acai_paper")
    assert evaluate(f"run={run}").code == 0
    (folder,) = folders(run / "evaluation")
    assert [*read_scorecard(folder / FILE).rows] == [*(row for row in ROWS if row != "prior samples"), *REAL]


@pytest.mark.parametrize("ratio", ["[0,0]", "[1,1]", "[-0.5,1.5]"])
def test_parents_themselves_are_judged_too(
    ratio: str, run: Path, evaluate: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Controls at these ratios are training images, some of them several times."""
    monkeypatch.setattr(Benchmark, "_of_model", no_model)
    answer = evaluate(f"run={run}", "split=train", f"pegasus.ratio={ratio}", "pegasus.mixing=lerp")
    assert answer.code == 0, answer.err
    (folder,) = folders(run / "evaluation")
    rows = read_scorecard(folder / FILE).rows
    for row in ("pixel average", "CutMix"):
        copied = rows[row]["memorised"].value
        assert copied == 1 if ratio != "[-0.5,1.5]" else 0.4 < copied < 1


# Alarms, through all of it.


def sold_as_pegasi(monkeypatch: pytest.MonkeyPatch, images: Tensor) -> None:
    """The model's pegasi are these."""
    from pegasus_lightning.evaluate import benchmark
    from pegasus_lightning.generate.sampler import sample

    def make(*arguments: Any) -> Any:
        pegasi = sample(*arguments)
        object.__setattr__(pegasi.mixes, "images", images[: len(pegasi.chosen)])
        return pegasi

    monkeypatch.setattr(benchmark, "sample", make)
    monkeypatch.setattr(Benchmark, "_of_model", no_model)


def test_a_thief_is_caught(run: Path, evaluate: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch) -> None:
    stolen = to_float(load(["horse", "bird"], "train", 40, 0)[0])
    sold_as_pegasi(monkeypatch, stolen.flip(3))
    answer = evaluate(f"run={run}")
    assert answer.code == 0, answer.err
    (folder,) = folders(run / "evaluation")
    card, gallery = read_scorecard(folder / FILE), arrays_in(folder)
    assert card.rows["pegasi"]["memorised"] == Figure(1, 1, 1)
    assert len(card.alarms) == 1
    assert f"ALARM: {card.alarms[0]}" in answer.out
    assert "100.0% of the pegasi lie nearer to a training image" in answer.out
    assert (gallery["neighbour_distances"] == 0).all()
    assert np.array_equal(gallery["neighbours"], gallery["pegasi"][..., ::-1])
    for row in REAL[:3]:
        assert card.rows[row]["memorised"].value <= 1 / 30


def test_a_collapse_is_noticed(run: Path, evaluate: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch) -> None:
    grey = torch.full((COUNT, 3, 32, 32), 0.9)
    sold_as_pegasi(monkeypatch, grey)
    answer = evaluate(f"run={run}")
    assert answer.code == 0, answer.err
    assert "The pegasi lie 0.000 apart" in answer.out
    assert "have modes collapsed?" in answer.out


# The gallery.


def test_the_gallery_holds_what_is_shown(judged: Judged, made: Made) -> None:
    gallery = judged.gallery
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
    drawn, labels = load(["horse", "bird"], "test", TEST, 0)
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
    model = load_model(judged.run)
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
    """To one level: another batch size may round otherwise."""
    return np.abs(pictures.astype(int) - to_uint8(images).transpose(0, 3, 1, 2)).max() <= 1


def test_neighbours_are_the_nearest_training_images_or_their_mirrors(judged: Judged, made: Made) -> None:
    training = load(["horse", "bird"], "train", 40, 0)[0]
    rows = [to_float(images).flatten(1).double() for images in (training, training.flip(3))]
    apart = torch.minimum(*(torch.cdist(made.pegasi[:16].flatten(1).double(), side) for side in rows)) / 3072**0.5
    nearest, which = apart.min(1)
    assert np.allclose(judged.gallery["neighbour_distances"], nearest, atol=1e-5)
    assert np.array_equal(judged.gallery["neighbours"], training[which].numpy())
    test = load(["horse", "bird"], "test", TEST, 0)[0]
    testing = to_float(test).flatten(1).double()
    apart = torch.minimum(*(torch.cdist(testing, side) for side in rows)).min(1).values / 3072**0.5
    assert judged.gallery["neighbour_limit"] == pytest.approx(apart.quantile(0.01).item(), rel=1e-5)


def photographs_in(gallery: dict[str, np.ndarray]) -> dict[str, int]:
    """Of each array of pictures how many are the data's own, or their mirror images."""
    known = set()
    for split, count in (("train", 40), ("test", TEST)):
        images = load(["horse", "bird"], split, count, 0)[0]
        known |= {image.numpy().tobytes() for image in torch.cat([images, images.flip(3)])}
    return {
        name: sum(picture.tobytes() in known for picture in array.reshape(-1, 3, 32, 32))
        for name, array in gallery.items()
        if array.dtype == np.uint8
    }


def test_photographs_can_be_kept_out(
    judged: Judged, run: Path, evaluate: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = photographs_in(judged.gallery)
    assert {name for name, count in found.items() if count} == {"first", "second", "neighbours"}
    assert (found["first"], found["second"], found["neighbours"]) == (8, 8, 16)
    monkeypatch.setattr(Benchmark, "_of_model", no_model)
    assert evaluate(f"run={run}", "seed=3").code == 0
    assert evaluate(f"run={run}", "seed=3", "originals=false").code == 0  # and not what lies there with them
    with_them, without = folders(run / "evaluation")
    bare = arrays_in(without)
    assert judged.gallery.keys() - bare.keys() == {"first", "second", "neighbours", "blend", "cutmix"}
    assert sum(photographs_in(bare).values()) == 0
    for name, array in bare.items():
        assert np.array_equal(array, judged.gallery[name]), name
    one, other = (read_scorecard(folder / FILE) for folder in (with_them, without))
    assert (one.rows, one.key) == (other.rows, other.key)  # they can be compared all the same


def selecting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A recogniser that selects: the bluer, the better."""

    def blue(images: Tensor) -> tuple[Tensor, Tensor]:
        return 20 * (images[:, 2].mean((1, 2)) - 0.5)[:, None].repeat(1, 2), torch.zeros(len(images))

    monkeypatch.setattr(pipeline, "selector", lambda *_: Selector(blue, stored("selecting-0b.pt")))
    monkeypatch.setattr(Benchmark, "_of_model", no_model)


def test_the_selecting_recogniser_picks_for_the_gallery_and_the_other_reports(
    run: Path, made: Made, evaluate: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    selecting(monkeypatch)
    assert evaluate(f"run={run}", "seed=3").code == 0
    (folder,) = folders(run / "evaluation")
    card, gallery = read_scorecard(folder / FILE), arrays_in(folder)
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
    run: Path, evaluate: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ["search=best_of", "search.pairs=64", "search.ratios=4", "search.most_per_parent=null", "score.overlap=0"]
    selecting(monkeypatch)
    assert evaluate(f"run={run}", *more).code == 0
    (folder,) = folders(run / "evaluation")
    assert folder.name.startswith("colour-auto-best_of-s0-")
    drawn, labels = load(["horse", "bird"], "test", TEST, 0)
    settings = read_scorecard(folder / FILE).settings
    parents = Parents(drawn[labels == 0], drawn[labels == 1], ("horse", "bird"))
    chosen = recipes(pairs_for(parents, settings["pegasus"], 64, 0), (0.4, 0.6), ratios=4)
    model = load_model(run)
    with model.inference():
        noise = code_noise(0, chosen.draws, 8)
        start = model.encode(to_float(parents.first[chosen.first])).sample_with(noise[:, 0])
        end = model.encode(to_float(parents.second[chosen.second])).sample_with(noise[:, 1])
        candidates = model.decode(torch.lerp(start, end, chosen.ratios[:, None]))
    bluest = candidates[candidates[:, 2].mean((1, 2)).argmax()]
    assert close(arrays_in(folder)["pegasi"][:1], bluest[None])


# Judged once, kept apart, compared.


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A bench that only writes down whom it judged; its figures are the number of the judgement."""
    asked: list[str] = []

    def measure(self: Any, run: Any, key: str, identity: dict, origin: dict) -> tuple[Scorecard, dict[str, np.ndarray]]:
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

    monkeypatch.setattr(pipeline, "Benchmark", lambda *_: SimpleNamespace(measure=lambda *a: measure(None, *a)))
    return asked


def test_the_same_command_again_reads_and_says_so(run: Path, evaluate: Callable[..., Answer], quick: list[str]) -> None:
    first = evaluate(f"run={run}")
    (folder,) = folders(run / "evaluation")
    before = (folder / FILE).stat().st_mtime_ns
    again = evaluate(f"run={run}")
    assert (first.code, again.code, quick) == (0, 0, ["tiny-s0"])
    assert "Already judged" not in first.out
    assert "Already judged: tiny-s0 (again=true judges it once more)" in again.out
    assert again.out.split("\n", 1)[1] == first.out  # the same table
    assert str(folder / FILE) in again.out
    assert (folder / FILE).stat().st_mtime_ns == before
    third = evaluate(f"run={run}", "again=true")
    assert quick == ["tiny-s0", "tiny-s0"]
    assert "Already judged" not in third.out
    assert folders(run / "evaluation") == [folder]
    assert read_scorecard(folder / FILE).model["psnr"].value == 2


OTHERS = [
    ["seed=1"],
    ["threshold=0.6"],
    ["count=65"],
    ["split=train"],
    ["pegasus.codes=mean"],
    ["score.overlap=1"],
    ["data.drawing_seed=1"],
    ["data.test_per_class=29"],
    ["originals=false"],
]


def test_what_decides_the_figures_has_a_folder_of_its_own(
    run: Path, evaluate: Callable[..., Answer], quick: list[str]
) -> None:
    for other in ([], *OTHERS):
        assert evaluate(f"run={run}", *other).code == 0
    cards = [read_scorecard(folder / FILE) for folder in folders(run / "evaluation")]
    assert len(cards) == len(quick) == 10
    assert len({card.key for card in cards}) == 9
    assert cards[0].key == cards[-1].key  # figures with and without photographs beside them can be compared


def test_what_changes_no_figure_has_not(run: Path, evaluate: Callable[..., Answer], quick: list[str]) -> None:
    for same in ([], ["again=false"], ["recognisers=elsewhere"], ["data.batch_size=8"]):
        assert evaluate(f"run={run}", *same).code == 0
    assert len(folders(run / "evaluation")) == len(quick) == 1


def test_another_checkpoint_or_recogniser_has_a_folder_of_its_own(
    run: Path, evaluate: Callable[..., Answer], quick: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert evaluate(f"run={run}").code == 0
    checkpoint = run / "checkpoints" / "last.ckpt"
    content = torch.load(checkpoint, weights_only=True)
    name = next(name for name in content["state_dict"] if name.startswith("decoder") and name.endswith("weight"))
    content["state_dict"][name] = content["state_dict"][name] * 1.01
    save_atomically(content, checkpoint)  # as many batches, other weights
    assert evaluate(f"run={run}").code == 0
    monkeypatch.setattr(pipeline, "recogniser_for", lambda *_, **__: stored("colours-0c.pt"))
    assert evaluate(f"run={run}").code == 0
    cards = [read_scorecard(folder / FILE) for folder in folders(run / "evaluation")]
    assert len(cards) == len(quick) == 3
    assert cards[0].key == cards[1].key != cards[2].key


def test_who_reports_is_as_it_is_asked_for(
    run: Path, evaluate: Callable[..., Answer], quick: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, Any]] = []

    def recogniser_for(data: Any, architecture: str, **more: Any) -> StoredRecogniser:
        asked.append((architecture, more["recipe"]))
        return stored()

    monkeypatch.setattr(pipeline, "recogniser_for", recogniser_for)
    for reporter in ([], ["reporter=standard"], ["reporter=independent"]):
        assert evaluate(f"run={run}", *reporter).code == 0
    assert asked == [("residual", None), ("residual", None), ("residual", independent_recipe("residual"))]
    assert asked[-1][1].half == 1  # the committee's is 0
    standard, independent = (read_scorecard(folder / FILE) for folder in folders(run / "evaluation"))
    assert standard.key != independent.key
    assert len(quick) == 2


def test_the_packages_own_model_is_judged_on_images_that_are_named(
    evaluate: Callable[..., Answer], quick: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the committee that came with it, into a folder where one stands."""
    networks = {"channels": 4, "latent_dim": 16, "latent": "spatial"}
    model = model_class("pegasus")({"networks": networks, "learned_mixing": True}, classes=["horse", "bird"]).eval()
    committee = Committee([Recogniser("plain", ("horse", "bird"))])
    images, labels = load(["horse", "bird"], "train", 40, 0)
    parents = Parents(images[labels == 0], images[labels == 1], ("horse", "bird"))
    digest = pretrained.pack(model, committee, parents, {}, tmp_path / "pegasus.safetensors")
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path)
    monkeypatch.setattr(pretrained, "PRETRAINED", {"pegasus": digest})
    monkeypatch.chdir(tmp_path)
    judges: list[Any] = []
    bench = pipeline.Benchmark
    monkeypatch.setattr(pipeline, "Benchmark", lambda *given: judges.append(given[5]) or bench(*given))
    answer = evaluate("pretrained=pegasus", *DRAWN, "score.judge=committee")
    assert answer.code == 0, answer.err
    assert quick == ["pegasus"]
    assert [member.architecture for member in judges[0].stored.recogniser.members] == ["plain"]
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
    assert evaluate(f"run={run}", "out=~/home").code == 0
    assert len(folders(tmp_path / "home")) == 1
    alone = shutil.copy(run / "checkpoints" / "last.ckpt", tmp_path / "alone.ckpt")
    assert evaluate(f"run={alone}", *DRAWN).code == 0
    (folder,) = folders(tmp_path / "alone-evaluation")
    assert read_scorecard(folder / FILE).seed is None
    other = shutil.copytree(run, tmp_path / "runs" / "other-s1-0123abcd")
    assert evaluate(f"run={run}", f"run={other}", f"out={tmp_path / 'both'}").code == 0
    assert sorted(path.name for path in (tmp_path / "both").iterdir()) == ["other-s1", "tiny-s0"]


def test_controls_are_judged_once_for_several_runs(
    run: Path, tmp_path: Path, evaluate: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = shutil.copytree(run, tmp_path / "runs" / "other-s0-0123abcd")
    benches, sizes = [], []
    measure, begin = ImageSetMetrics.measure, ImageSetMetrics.__init__
    monkeypatch.setattr(Benchmark, "_of_model", no_model)
    monkeypatch.setattr(ImageSetMetrics, "__init__", lambda self, *a, **k: benches.append(1) or begin(self, *a, **k))
    monkeypatch.setattr(
        ImageSetMetrics, "measure", lambda self, images, *a: sizes.append(len(images)) or measure(self, images, *a)
    )
    answer = evaluate(f"run={run}", f"run={other}")
    assert answer.code == 0, answer.err
    # Pegasi, two controls of their pairs, reconstructions, prior; then the real ones.
    first = [COUNT, COUNT, COUNT, 2 * TEST, COUNT, TEST, TEST, 2 * TEST, TEST]
    assert sizes == [*first, COUNT, 2 * TEST, COUNT]  # of the second run what its own model made
    assert len(benches) == 1
    one, two = (read_scorecard(folders(home / "evaluation")[0] / FILE) for home in (run, other))
    assert one.rows == two.rows  # the same model on the same bench
    assert one.counts == two.counts
    assert one.name != two.name


def test_several_runs_are_compared_over_their_seeds(
    run: Path, tmp_path: Path, evaluate: Callable[..., Answer], quick: list[str]
) -> None:
    for seed, name in ((1, "tiny-s1-0123abcd"), (0, "vae-s0-0123abcd")):
        other = shutil.copytree(run, run.parent / name)
        config = other / "config.yaml"
        config.write_text(config.read_text().replace("\nseed: 0\n", f"\nseed: {seed}\n"))
    answer = evaluate(f"run={run.parent}")
    assert quick == ["tiny-s0", "tiny-s1", "vae-s0"]
    table = answer.out[answer.out.index("pegasi of") :].splitlines()
    head, tiny, vae, _ = (line.split("  ") for line in table)
    assert [head[0], tiny[0], vae[0]] == ["pegasi of", "tiny", "vae"]
    tiny, vae = ([cell.strip() for cell in line if cell.strip()] for line in (tiny, vae))
    assert (tiny[1], vae[1]) == ("2", "1")
    # Values 1 and 2, half widths .5: mean 1.5, deviation .707, half 1.96 * .707 / sqrt(2) = .98.
    assert "1.500 ±0.980 (0.707)" in tiny
    assert "3.000 ±0.500" in vae
    again = evaluate(f"run={run.parent}")
    assert again.out.count("Already judged") == 3
    assert again.out.endswith("\n".join(table) + "\n")


def test_twice_the_same_figures_to_the_last_bit(judged: Judged, run: Path, evaluate: Callable[..., Answer]) -> None:
    torch.manual_seed(123)  # of no consequence
    assert evaluate(f"run={run}", "seed=3").code == 0
    (folder,) = folders(run / "evaluation")
    assert folder.name == judged.folder.name
    one, other = (json.loads((place / FILE).read_text()) for place in (folder, judged.folder))
    assert one.pop("run") != other.pop("run")  # its place alone
    assert one == other
    for name, array in arrays_in(folder).items():
        assert np.array_equal(array, judged.gallery[name]), name


# TensorBoard.


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    board = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return {tag: [(event.step, event.value) for event in board.Scalars(tag)] for tag in board.Tags()["scalars"]}


def test_the_pegasis_figures_fill_the_runs_row_in_tensorboard(judged: Judged, original: Path) -> None:
    found, before = scalars(judged.run), scalars(original)
    assert {tag for tag in found if tag.startswith("evaluation/")} == {f"evaluation/{name}" for name in HPARAMS}
    for name in HPARAMS:
        ((step, value),) = found[f"evaluation/{name}"]
        assert step == judged.card.batches
        assert value == pytest.approx(judged.card.rows["pegasi"][name].value, rel=1e-6)
    assert {tag: values for tag, values in found.items() if not tag.startswith("evaluation/")} == before


def test_a_later_evaluation_takes_the_place_of_an_earlier_one(
    run: Path, evaluate: Callable[..., Answer], quick: list[str]
) -> None:
    before = scalars(run)
    for seed in (0, 1, 2):
        assert evaluate(f"run={run}", f"seed={seed}").code == 0
    found = scalars(run)
    for name in HPARAMS:
        assert [value for _, value in found[f"evaluation/{name}"]] == [3]
    assert before.items() <= found.items()


# Errors.


def test_an_end_half_way_leaves_nothing_half_written(
    run: Path, evaluate: Callable[..., Answer], quick: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = shutil.copytree(run, run.parent / "zebra-s0-0123abcd")
    makes = pipeline.Benchmark

    def stopped(*arguments: Any) -> Any:
        bench = makes(*arguments)

        def measure(of: Any, *more: Any) -> Any:
            if of.name == "zebra-s0":
                raise KeyboardInterrupt
            return bench.measure(of, *more)

        return SimpleNamespace(measure=measure)

    monkeypatch.setattr(pipeline, "Benchmark", stopped)
    answer = evaluate(f"run={run.parent}")
    assert answer.code == 130
    assert "nothing was left half-written" in answer.err
    (whole,) = folders(run / "evaluation")
    assert sorted(path.name for path in whole.iterdir()) == sorted([FILE, GALLERY])
    assert not (other / "evaluation").exists()
    monkeypatch.setattr(pipeline, "Benchmark", makes)
    answer = evaluate(f"run={run.parent}")  # goes on where it was
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


def test_what_a_power_cut_left_is_no_scorecard(judged: Judged, tmp_path: Path) -> None:
    whole = shutil.copytree(judged.folder, tmp_path / "evaluation" / "colour-lerp-none-s0-01234567")
    torn = shutil.copytree(judged.folder, tmp_path / "evaluation" / f".{whole.name}.0a1b2c3d.tmp")
    os.utime(torn / FILE, ns=(2 * 10**18, 2 * 10**18))
    assert newest_scorecard(tmp_path) == whole / FILE


REFUSED: list[tuple[list[str], list[str]]] = [
    ([], ["run=FOLDER"]),
    (["run=nowhere"], ["no run folder or checkpoint nowhere"]),
    (["run={folder}/empty"], ["empty", "holds no trained run"]),
    (["run={run}", "count=63"], ["count=63", "at least 64"]),
    (["run={run}", "count=10001"], ["count=10001", "at most"]),
    (["run={run}", "threshold=0"], ["threshold=0", "(0, 1)"]),
    (["run={run}", "treshold=0.5"], ["treshold", "Did you mean 'threshold'?"]),
    (["run={run}", "split=validation"], ["split", "test"]),
    (["run={run}", "reporter=independant"], ["reporter=independant", "Did you mean 'independent'?"]),
    (["run={run}", "score.judge=critics"], ["score.judge", "Did you mean 'critic'?"]),
    (["run={run}", "score.realism=-1"], ["score.realism=-1"]),
    (["run={run}", "gpus=2"], ["gpus=2", "gpus=0"]),
    (["run={run}", "gpus=1"], ["gpus=1", "Type gpus=0"]),
    (["run={run}", "search=best_of", "search.pairs=10", "search.ratios=2"], ["20 candidates", "search.pairs"]),
    (["run={run}", "search.steps=3"], ["search=best_of"]),
    (["run={run}", "figures=[best]"], ["no setting 'figures'"]),
    (["run={run}", "data=silhouete"], ["Did you mean 'silhouettes'?"]),
    (["run={run}", "data.classes=[cat,horse]"], ["not trained on 'cat'"]),
    (["run={run}", "data=image_folder", "data.root={folder}/moved"], ["There is no folder", "moved"]),
    (["run={run}", "data=image_folder", "data.root={folder}/empty"], ["There is no folder 'test'"]),
    (["run={folder}/alone.ckpt"], ["data=silhouettes"]),
    (["run={run}", "run={folder}/other"], ["different data"]),
    (["run={run}", "out={folder}/file"], ["file", "is not a folder", "out=FOLDER"]),
    (["run={run}", "out={folder}/file/deeper"], ["file", "is not a folder", "out=FOLDER"]),
    (["run={run}", "pegasus.threshold=0.000001"], ["pegasus.threshold=1e-06", "nearest"]),
    (["run={run}", "-m"], ["no -m"]),
]


@pytest.mark.parametrize(("arguments", "told"), REFUSED, ids=lambda value: " ".join(value)[:60])
def test_a_mistake_gets_one_message_exit_code_2_and_nothing_written_or_trained(
    arguments: list[str], told: list[str], run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def train_it(*_: Any, **__: Any) -> StoredRecogniser:
        raise AssertionError("a quarter of an hour's training, and then a refusal")

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(pipeline, "recogniser_for", train_it)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("mine")
    shutil.copy(run / "checkpoints" / "last.ckpt", tmp_path / "alone.ckpt")
    config = shutil.copytree(run, tmp_path / "other") / "config.yaml"
    config.write_text(config.read_text().replace("test_per_class: 30", "test_per_class: 29"))
    before = sorted(os.walk(tmp_path))
    given = [argument.format(folder=tmp_path, run=run) for argument in arguments]
    assert run_program(EVALUATE, [*(text for text in ALWAYS if text.split("=")[0] not in str(given)), *given], "",
                       _work) == 2  # fmt: skip
    (said,) = capsys.readouterr().err.strip().splitlines()
    assert said.startswith("pegasus_lightning: ")
    assert "Traceback" not in said
    for words in told:
        assert words in said
    assert sorted(os.walk(tmp_path)) == before


def test_a_folder_that_cannot_be_written_to_is_told_before_anything_is_done(
    run: Path, evaluate: Callable[..., Answer], quick: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline.os, "access", lambda path, mode: Path(path) != run)
    answer = evaluate(f"run={run}")
    assert answer.code == 2
    assert f"{run} is not a folder that can be written to. Say out=FOLDER." in answer.err
    assert quick == []
    assert not (run / "evaluation").exists()


def test_too_few_images_to_judge_by_are_told(
    run: Path, evaluate: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Benchmark, "_of_model", no_model)
    assert evaluate(f"run={run}", "data.train_per_class=8", "data.test_per_class=8").code == 0  # enough, just so
    shutil.rmtree(run / "evaluation")
    monkeypatch.setattr("pegasus_lightning.evaluate.benchmark.MIN_IMAGES", 9)
    for data, told in (("test", "There are 8 test images of horse"), ("train", "There are 8 train images of horse")):
        answer = evaluate(f"run={run}", f"data.{data}_per_class=8")
        assert (answer.code, answer.out) == (2, "")
        assert f"{told}: to judge by takes at least 9 of each class." in answer.err
        assert not (run / "evaluation").exists()


def test_help_and_the_configuration_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_program(EVALUATE, ["--help"], help_text(), _work) == 0
    shown = capsys.readouterr().out
    assert "python -m pegasus_lightning.evaluate" in shown
    assert "guided" in shown
    assert run_program(EVALUATE, ["--cfg", "job", "run=a,b", "search=guided"], "", _work) == 0
    shown = capsys.readouterr().out
    assert "- a,b\n" in shown
    assert "count: 2000" in shown
    assert "method: guided" in shown


def test_figures_that_never_reached_tensorboard_do_when_it_is_asked_again(
    run: Path, evaluate: Callable[..., Answer], quick: list[str]
) -> None:
    assert evaluate(f"run={run}").code == 0
    for file in (run / "tensorboard").glob("*.evaluation"):
        file.unlink()
    assert "Already judged" in evaluate(f"run={run}").out
    assert len(scalars(run)["evaluation/kid"]) == 1


def test_nothing_is_written_beside_a_training_that_goes_on(
    run: Path, evaluate: Callable[..., Answer], quick: list[str]
) -> None:
    status = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps(status | {"status": "running"}))
    assert evaluate(f"run={run}").code == 0
    assert not any(tag.startswith("evaluation/") for tag in scalars(run))


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
    answer = evaluate(f"run={run}", "inception=true")
    assert (answer.code, answer.err) == (0, "")
    (folder,) = folders(run / "evaluation")
    card = read_scorecard(folder / FILE)
    assert all("inception_fid" in card.rows[row] for row in ROWS if card.counts[row] == COUNT)
    assert "inception_fid" not in card.rows["real horse"]  # another number of images: not to be compared
    fid, kid = (card.rows["CutMix"][f"inception_{name}"] for name in ("fid", "kid"))
    assert 0 < fid.value < 3 and kid.low < kid.value < kid.high  # colours in [0, 1]: 3 is the most that means differ by
    assert "FID" in answer.out


def test_too_few_pegasi_for_a_fid_are_refused(run: Path, evaluate: Callable[..., Answer]) -> None:
    answer = evaluate(f"run={run}", "inception=true")
    assert answer.code == 2 and "inception=true takes count=2000" in answer.err


def test_what_runs_that_differ_in_their_seed_alone_have_in_common() -> None:
    def run(name: str, *overrides: str) -> TrainedRun:
        config = TRAIN.compose([*TINY, *DRAWN, "model=vae", *overrides])
        return TrainedRun(Path(name), Path(name), None, config, name)  # type: ignore[arg-type]

    first, second = kind_of(run("vae,beta=2-s0", "seed=0")), kind_of(run("vae,beta=2-s1-0123abcd", "seed=1"))
    assert first == second and first[0] == "vae,beta=2"
    other = kind_of(run("vae,beta=2-s0-ba9876fe-last", "seed=0", "model.weights.kl=2"))
    assert other[0] == "vae,beta=2" and other[1] != first[1]
    assert kind_of(run("vae-s1-s0", "seed=0"))[0] == "vae-s1"
    assert kind_of(TrainedRun(Path("a"), Path("a"), None, None, "last")) == ("last", "")  # type: ignore[arg-type]


def test_a_set_is_judged_once_for_one_recipe_and_anew_for_another() -> None:
    bench = object.__new__(Benchmark)
    bench._judged, bench.inception, bench.selects = {}, None, None
    bench.image_set_metrics = SimpleNamespace(measure=lambda images, parents: images)  # type: ignore[assignment]
    a, b = torch.zeros(1), torch.ones(1)
    assert bench._once("blend", a, b"pairs") is a
    assert bench._once("blend", b, b"pairs") is a
    assert bench._once("blend", b, b"other pairs") is b
    assert bench._once("CutMix", b, b"pairs") is b


def test_the_selecting_recognisers_share_by_hand() -> None:
    """It sees the first class in red, the second in green, each above a half; both must be seen."""
    seen = [(0.9, 0.8), (0.9, 0.2), (0.1, 0.7), (0.3, 0.2), (0.6, 0.6), (0.4, 0.6), (1.0, 1.0), (0.0, 1.0)]
    images = torch.zeros(8, 3, 32, 32)
    images[:, :2] = torch.tensor(seen)[:, :, None, None]
    shown: list[Tensor] = []

    def look(images: Tensor) -> tuple[Tensor, None]:
        shown.append(images)
        return 3 * (images[:, :2].mean((2, 3)) - 0.5), None

    bench = object.__new__(Benchmark)
    bench.inception, bench.device, bench.settings = None, torch.device("cpu"), {"threshold": 0.5}
    bench.image_set_metrics = SimpleNamespace(measure=lambda *_: SimpleNamespace(figures={}))  # type: ignore[assignment]
    bench.selects = Selector(look, stored())
    for given in (images, (255 * images).byte()):
        share = bench._verdict(given).figures["recognised_selecting"]
        assert share.value == 3 / 8
        assert 0 <= share.low < 3 / 8 < share.high <= 1
    assert all(part.is_floating_point() and part.max() <= 1 for part in shown)
    bench.settings = {
        "threshold": torch.sigmoid(torch.tensor(0.45)).item()
    }  # levels above .65: the first and the seventh
    assert bench._verdict(images).figures["recognised_selecting"].value == 2 / 8
    bench.selects = None
    assert bench._verdict(images).figures == {}
