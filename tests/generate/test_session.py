"""Tests of what a session opens for its settings, and of the data and classes that several runs share."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from pegasus_lightning.data.settings import data_settings
from pegasus_lightning.generate import session
from pegasus_lightning.generate.pairs import Pairs, Parents
from pegasus_lightning.generate.pretrained import PretrainedModel
from pegasus_lightning.generate.session import Session, _load_common, common_data, images_of
from pegasus_lightning.generate.settings import GenerateConfig, ScoreConfig, SearchConfig
from pegasus_lightning.recognisers.store import RecogniserStore, StoredRecogniser
from pegasus_lightning.runs.trained import TrainedRun
from pegasus_lightning.utils.errors import UserError


def trained_with(data: str, *, known: bool = True, model: dict[str, Any] | None = None) -> TrainedRun:
    """A run of horses and birds; `data` holds overrides of the settings of `silhouettes`."""
    network: Any = SimpleNamespace(hparams={"classes": ["horse", "bird"]})
    settings = data_settings(None, ["data=silhouettes", *data.split()])
    config = OmegaConf.create({"data": settings, "model": model or {}}) if known else None
    return TrainedRun(Path(f"runs/{data or 'vae'}"), Path("last.ckpt"), network, config, "vae")


def test_the_data_of_several_runs_is_what_they_have_in_common() -> None:
    runs = [trained_with("data.batch_size=8"), trained_with("data.flip=false")]
    config = common_data(runs, [], "parents from")
    assert (config.source, list(config.classes), config.batch_size) == ("silhouettes", ["horse", "bird"], 8)
    alone = trained_with("", known=False)
    assert common_data([alone, *runs], [], "parents from") == config
    changed = common_data(runs, ["data.test_per_class=9"], "parents from")
    assert (changed.test_per_class, changed.batch_size) == (9, 8)
    assert common_data([alone], ["data=lines", "data.classes=[horse,bird]"], "parents from").source == "lines"


def test_runs_with_different_images_need_an_override() -> None:
    runs = [trained_with(""), trained_with("data.drawing_seed=1")]
    with pytest.raises(UserError, match=r"different data. Say which to take images from, as in data=SOURCE"):
        common_data(runs, [], "images from")
    assert common_data(runs, ["data.drawing_seed=2"], "images from").drawing_seed == 2
    with pytest.raises(UserError, match="a checkpoint on its own"):
        common_data([trained_with("", known=False)], [], "images from")


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ("hrose,bird", "runs/vae was not trained on 'hrose': its classes are horse, bird. Did you mean 'horse'?"),
        ("horse,truck", "runs/vae was not trained on 'truck': its classes are horse, bird."),
    ],
)
def test_a_class_that_the_model_was_not_trained_on_is_refused(classes: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        common_data([trained_with("")], ["data=cifar10", f"data.classes=[{classes}]"], "images from")
    assert str(error.value) == message
    swapped = common_data([trained_with("")], ["data.classes=[bird,horse]"], "images from")
    assert list(swapped.classes) == ["bird", "horse"]


def test_the_settings_that_decide_which_images_there_are() -> None:
    plain = images_of(data_settings(None, ["data=silhouettes"]))
    same = ["data.batch_size=3", "data.flip=false", "data.validation_fraction=0.3", "data.on_device=false"]
    assert plain == images_of(data_settings(None, ["data=silhouettes", *same]))
    for other in ("train_per_class=3", "test_per_class=3", "drawing_seed=3", "classes=[bird,horse]"):
        assert plain != images_of(data_settings(None, ["data=silhouettes", f"data.{other}"])), other
    photos = [images_of(data_settings(None, ["data=image_folder", "data.root=a", *more]))
              for more in ([], ["data.cache=b"], ["data.root=b"])]  # fmt: skip
    assert photos[0] == photos[1] != photos[2]


def test_the_user_is_asked_for_images_that_have_moved(tmp_path: Path) -> None:
    gone = [f"data.root={tmp_path / 'gone'}"]
    config = data_settings(None, ["data=image_folder", *gone, "data.classes=[horse,bird]"])
    runs = [trained_with("")]
    with pytest.raises(UserError) as error:
        _load_common(runs, config, "test", [])
    assert "gone" in str(error.value)
    assert str(error.value).endswith("runs/vae had its images there; data.root=FOLDER says where they are now.")
    with pytest.raises(UserError) as error:
        _load_common(runs, config, "test", gone)  # the folder was typed just now
    assert "had its images there" not in str(error.value)
    drawn = data_settings(None, ["data=silhouettes", "data.test_per_class=3"])
    assert len(_load_common(runs, drawn, "test", [])) == 6


def session_of(settings: GenerateConfig, **more: Any) -> Session:
    """A session without images, of one run."""
    images, none = torch.zeros(1, 3, 32, 32, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64)
    parents, pairs = Parents(images, images, ("horse", "bird")), Pairs(none, none, None, 0, 1)
    runs = [trained_with("")]
    return Session(settings, torch.device("cpu"), runs, parents, pairs, {}, **more)


def test_the_store_lies_where_the_settings_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/rider")
    cpu = torch.device("cpu")
    assert session_of(GenerateConfig(recognisers="~/kept")).store == RecogniserStore(Path("/home/rider/kept"), cpu)
    assert session_of(GenerateConfig()).store == RecogniserStore(None, cpu)


def test_the_selector_gets_data_store_and_a_pretrained_models_committee(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(session, "open_selector", lambda *given, **more: calls.append((*given, more)) or "selector")
    data = data_settings(None, ["data=silhouettes"])
    opened = session_of(GenerateConfig(score=ScoreConfig(judge="committee")), data=data)
    assert opened.selector == opened.selector == "selector"  # opened once
    assert calls == [("committee", data, opened.store, {"guided": False, "own": None})]
    committee: Any = object()
    pretrained = PretrainedModel(opened.runs[0], committee, [])
    assert session_of(GenerateConfig(), pretrained=pretrained).selector == "selector"
    assert calls[1][:2] == ("auto", None)
    search = SearchConfig(method="guided")
    assert session_of(GenerateConfig(search=search), data=data).selector == "selector"
    assert calls[2][3]["guided"] is True
    assert calls[1][3]["own"] == StoredRecogniser(committee, Path("runs/vae"), {})
