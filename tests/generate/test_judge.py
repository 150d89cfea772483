"""Tests of the recogniser that scores a search: which one it is, and its realism by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pegasus_lightning.data.batches import ImageSet
from pegasus_lightning.data.module import in_mixed_order
from pegasus_lightning.data.settings import data_settings
from pegasus_lightning.generate import judge as module
from pegasus_lightning.generate.judge import Selector, open_selector
from pegasus_lightning.generate.pretrained import PRETRAINED, head_of_pretrained, open_pretrained
from pegasus_lightning.recognisers.network import COMMITTEE, SELECTS
from pegasus_lightning.recognisers.store import RecogniserStore, StoredRecogniser
from pegasus_lightning.recognisers.training import standard_recipe, winged_recipe
from pegasus_lightning.utils.errors import UserError
from pegasus_lightning.utils.tensors import to_float

DATA = data_settings(None, ["data=silhouettes"])
STORE = RecogniserStore()


class ByPlace(nn.Module):
    """Features are the levels at 2 x 2 places; logits the first two of them."""

    def features(self, images: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(images.mean(1, keepdim=True), 2).flatten(1)

    def classify(self, features: Tensor) -> Tensor:
        return features[:, :2]

    def forward(self, images: Tensor) -> Tensor:
        return self.classify(self.features(images))


STORED = StoredRecogniser(ByPlace(), Path("store") / "places-0a.pt", {})


def noise(count: int, key: int = 0) -> ImageSet:
    """Bright and dark images of two classes in turn."""
    random = torch.Generator().manual_seed(key)
    levels = torch.randint(0, 200, (count, 1, 2, 2), generator=random, dtype=torch.uint8)
    images = levels.repeat_interleave(16, 2).repeat_interleave(16, 3).repeat(1, 3, 1, 1)
    return ImageSet(images, torch.arange(count) % 2, ("horse", "bird"))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Calls of the store's methods; all return STORED."""
    calls: list[tuple[Any, ...]] = []

    def method(name: str) -> Any:
        def call(store: RecogniserStore, data: Any, wanted: Any, **more: Any) -> StoredRecogniser:
            assert store is STORE
            assert data is DATA
            calls.append((name, wanted, *more.values()))
            return STORED

        return call

    for name in ("find", "get", "committee"):
        monkeypatch.setattr(RecogniserStore, name, method(name))
    monkeypatch.setattr(module, "load_split", lambda data, split: noise(60) if split == "train" else None)
    return calls


def opened(judge: str, **options: Any) -> Selector:
    selector = open_selector(judge, DATA, STORE, **options)
    assert selector is not None
    return selector


def test_a_recogniser_is_found_or_trained_as_the_settings_say(asked: list[Any]) -> None:
    for judge, method in (("auto", "find"), ("recogniser", "get")):
        assert opened(judge).stored is STORED
        assert asked.pop() == (method, standard_recipe(SELECTS))


def test_the_critic_scores_if_the_settings_say_so_or_nothing_is_trained(
    asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert open_selector("critic", DATA, STORE) is None
    for judge in ("auto", "critic"):
        assert open_selector(judge, None, STORE) is None
    with pytest.raises(UserError, match=r"score.judge=recogniser needs images.*first= and second="):
        open_selector("recogniser", None, STORE)
    assert asked == []
    monkeypatch.setattr(RecogniserStore, "find", lambda *_: None)
    monkeypatch.setattr(module, "load_split", None)  # not needed
    assert open_selector("auto", DATA, STORE) is None


def test_a_model_that_brings_its_committee_is_scored_by_it(asked: list[Any]) -> None:
    own = StoredRecogniser(ByPlace(), Path("own.pt"), {})
    images = torch.rand(3, 3, 32, 32)
    for judge, data in (("auto", None), ("auto", DATA), ("winged", None)):
        selector = open_selector(judge, data, STORE, own=own)
        assert selector is not None and selector.stored is own
        logits, realism = selector.recognise(images)
        torch.testing.assert_close(logits, own.recogniser(images))
        assert realism is None
    guiding = open_selector("winged", DATA, STORE, own=own, guided=True)
    assert guiding is not None and guiding.stored is own
    assert asked == []
    assert open_selector("critic", DATA, STORE, own=own) is None
    assert opened("recogniser", own=own).stored is STORED


@pytest.mark.parametrize(("count", "held"), [(60, 12), (13, 6)])
def test_realism_by_hand(asked: list[Any], monkeypatch: pytest.MonkeyPatch, count: int, held: int) -> None:
    """How near an image is to the nearest of the bank, beside how near training images outside it are."""
    monkeypatch.setattr(module, "BANK", 40)
    monkeypatch.setattr(module, "HELD", 12)
    monkeypatch.setattr(module, "load_split", lambda data, split: noise(count))
    images = to_float(in_mixed_order(noise(count)).images)
    bank, others = images[: min(40, count - held)], images[-held:]

    def closeness(some: Tensor) -> Tensor:
        features = [ByPlace().features(side).double() for side in (some, bank)]
        return torch.tensor([-min(math.dist(one, other) for other in features[1].tolist())
                             for one in features[0].tolist()])  # fmt: skip

    usual = closeness(others)
    assert usual.max() < 0  # none of these is its own neighbour
    rated = torch.cat([bank[:2], others[:2], to_float(noise(2, key=9).images), torch.ones(1, 3, 32, 32)])
    wanted = F.logsigmoid((closeness(rated) - usual.mean()) / usual.std())
    logits, realism = opened("auto").recognise(rated)
    assert realism is not None
    torch.testing.assert_close(realism, wanted, rtol=1e-3, atol=1e-3)
    assert realism.argmin() == 6  # white is like none of them
    torch.testing.assert_close(logits, ByPlace()(rated))


def test_a_search_can_climb_on_both_and_one_pass_gives_both(asked: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    passes = []
    features = ByPlace.features
    monkeypatch.setattr(ByPlace, "features", lambda self, images: passes.append(len(images)) or features(self, images))
    selector = opened("auto")
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1)).requires_grad_()
    passes.clear()
    outputs = selector.recognise(images)
    assert passes == [3]
    for output in outputs:
        assert output is not None
        (gradient,) = torch.autograd.grad(output.sum(), images, retain_graph=True)
        assert gradient.isfinite().all()
        assert gradient.abs().sum() > 0


def test_without_training_images_there_is_no_recogniser_of_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any) -> StoredRecogniser:
        raise UserError("There is no folder 'train'.")

    monkeypatch.setattr(RecogniserStore, "find", missing)
    monkeypatch.setattr(RecogniserStore, "get", missing)
    assert open_selector("auto", DATA, STORE) is None
    with pytest.raises(UserError, match="no folder 'train'"):
        open_selector("recogniser", DATA, STORE)


def test_the_committee_scores_if_the_settings_say_so(asked: list[Any]) -> None:
    images = torch.rand(3, 3, 32, 32)
    logits, realism = opened("committee").recognise(images)
    torch.testing.assert_close(logits, ByPlace()(images))
    assert realism is None  # the model's critic gives it
    assert asked == [("committee", ("plain", "averaging"))]


def test_winged_judges_select_and_others_guide(asked: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    known: list[dict[str, Any]] = []

    def guides(store: RecogniserStore, data: Any, architectures: Any) -> StoredRecogniser:
        asked.append(("winged_guides", architectures))
        return STORED

    def get(store: RecogniserStore, data: Any, recipe: Any) -> StoredRecogniser:
        known.append(dict(store.reconstruct))
        asked.append(("get", recipe))
        return STORED

    monkeypatch.setattr(RecogniserStore, "winged_guides", guides)
    monkeypatch.setattr(RecogniserStore, "get", get)
    images = torch.rand(3, 3, 32, 32)
    for guided, wanted in ((False, ("get", winged_recipe(SELECTS, 1))), (True, ("winged_guides", COMMITTEE))):
        logits, realism = opened("winged", guided=guided).recognise(images)
        assert asked.pop() == wanted
        torch.testing.assert_close(logits, ByPlace()(images))
        assert realism is None  # the model's critic gives it
    assert list(known[0]) == [
        head_of_pretrained(name)[1] for name in PRETRAINED
    ]  # horses and birds: the package's model knows them
    (reconstruct,) = known[0].values()
    model = open_pretrained("pegasus").run.model
    with torch.no_grad(), model.inference():
        torch.testing.assert_close(reconstruct(images), model.reconstruct(images))
    other = data_settings(None, ["data=silhouettes", "data.classes=[bird,horse]"])
    open_selector("winged", other, STORE)
    assert known[1] == {}
