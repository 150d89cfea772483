"""Tests of the command before it serves anything: what it opens and what it refuses."""

from __future__ import annotations

import importlib.util
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from pegasus_lightning.demo import settings
from pegasus_lightning.demo.__main__ import _work
from pegasus_lightning.demo.opening import open_demo
from pegasus_lightning.demo.parents import OfCodes, OfImages, OfPrior
from pegasus_lightning.demo.serve import address_of
from pegasus_lightning.demo.settings import DEMO, DemoConfig
from pegasus_lightning.export.model_files import export_checkpoint
from pegasus_lightning.runs.checkpoints import find_checkpoint
from pegasus_lightning.train.settings import TRAIN
from pegasus_lightning.train.trainer import train
from pegasus_lightning.utils.program import run_program

TINY = [
    *("data=silhouettes", "data.train_per_class=40", "data.test_per_class=30", "data.batch_size=16"),
    *("model.networks.channels=4", "model.networks.latent_dim=8", "callbacks=quiet", "callbacks.images=false"),
    *("trainer.gpus=0", "trainer.max_epochs=1", "trainer.precision=32", "trainer.evaluate_test=false"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(TRAIN.compose([*TINY, f"runs_dir={tmp_path_factory.mktemp('runs')}"]), "tiny")


class Answer(NamedTuple):
    code: int
    err: str


@pytest.fixture
def demo(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Answer]:
    """The command, as if Gradio were installed."""
    monkeypatch.setattr(settings, "find_spec", lambda name: importlib.util.find_spec("json"))

    def call(*arguments: str) -> Answer:
        return Answer(run_program(DEMO, arguments, _work), capsys.readouterr().err)

    return call


def test_a_run_offers_its_test_images(run: Path) -> None:
    session, folder = open_demo(DemoConfig(run=[str(run)], gpus=0), [])
    assert isinstance(session.offer, OfImages)
    assert session.offer.origin["split"] == "test"
    assert len(session.offer.parents.first) == 30
    assert (session.classes, session.by_parts) == (("horse", "bird"), False)
    assert folder == run / "pegasi" / "favourites"
    assert session.why_not_improved() is None


def test_a_run_whose_images_are_gone_draws_from_the_prior(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / run.name)
    text = (copy / "config.yaml").read_text().replace("silhouettes", "cifar10", 1)
    kept = [line for line in text.splitlines() if "per_class" not in line and "drawing_seed" not in line]
    (copy / "config.yaml").write_text(
        "\n".join(kept).replace("  source: cifar10", f"  source: cifar10\n  root: {tmp_path}/gone")
    )
    session, _ = open_demo(DemoConfig(run=[str(copy)], gpus=0), [])
    assert isinstance(session.offer, OfPrior)


def test_an_export_mixes_as_its_run_and_cannot_be_improved(run: Path, tmp_path: Path) -> None:
    export_checkpoint(find_checkpoint(run), tmp_path / "export")
    own, _ = open_demo(DemoConfig(run=[str(run)], gpus=0), [])
    alone, folder = open_demo(DemoConfig(export=str(tmp_path / "export"), gpus=0), [])
    assert isinstance(alone.offer, OfPrior)
    assert folder == Path("pegasi/export/favourites")
    drawn, _ = open_demo(DemoConfig(export=str(tmp_path / "export"), gpus=0), ["data=silhouettes"])
    assert isinstance(drawn.offer, OfImages)
    from pegasus_lightning.demo.session import Choice

    choice = Choice(own.offered(0, 0)[0], own.offered(1, 0)[0], 0.6)
    torch.testing.assert_close(alone.picture(choice), own.picture(choice))
    assert "run=RUN" in str(alone.why_not_improved())


def test_the_default_model_comes_with_the_package_and_guides_with_its_own_judges() -> None:
    session, folder = open_demo(DemoConfig(gpus=0), [])
    assert isinstance(session.offer, OfCodes)
    assert (session.name, session.by_parts, folder) == ("pegasus", True, Path("pegasi/pegasus/favourites"))
    assert session.guidance.search.steps == 20  # of guided_winged
    assert session.selector is not None
    assert "winged judges" in session.selector.words


def test_a_port_in_use_is_one_sentence(demo: Callable[..., Answer]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, err = demo(f"port={port}")
    assert (code, err) == (2, f"pegasus_lightning: Port {port} is in use: say port={port + 1}, or end what uses it.\n")


def test_the_address_to_open_is_one_that_a_browser_takes() -> None:
    assert address_of("127.0.0.1", 7860) == address_of("0.0.0.0", 7860) == "http://127.0.0.1:7860"
    assert address_of("::1", 80) == address_of("::", 80) == "http://[::1]:80"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run=a", "pretrained=pegasus"], "run= and pretrained= each name a model"),
        (["port=0"], "port=0 is out of range: it must be at least 1."),
        (["host=203.0.113.7"], "host=203.0.113.7 is no address of this machine: leave it out"),
        (["run=a", "split=tset"], "split=tset is not a choice. Did you mean 'test'?"),
        (["split=train"], "split=train means nothing with a pretrained model without data="),
        (["prot=1"], "There is no setting 'prot'. Did you mean 'port'?"),
    ],
)
def test_wrong_settings_are_one_sentence(demo: Callable[..., Answer], arguments: list[str], said: str) -> None:
    code, err = demo(*arguments)
    assert code == 2
    assert err.startswith(f"pegasus_lightning: {said}")
    assert err.count("\n") == 1


def test_without_gradio_it_says_how_to_install_it(demo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "find_spec", lambda name: None)
    code, err = demo()
    assert (code, err) == (
        2,
        "pegasus_lightning: The demo needs a package that is not installed. In a checkout: pip install -e '.[demo]'.\n",
    )
