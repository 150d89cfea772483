"""Tests of `trainer.dry_run` and `init_from`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pegasus_lightning import load_model
from pegasus_lightning.launch.command import run_command
from pegasus_lightning.train.dry_run import Stopwatch
from pegasus_lightning.train.settings import Config

SMALL = ["data=silhouettes", "data.train_per_class=40", "data.test_per_class=10", "data.batch_size=8"]
SMALL += ["model.networks.channels=4", "model.networks.latent_dim=4", "callbacks.image_columns=2", "trainer.gpus=0"]


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["pegasus_lightning"])


def only_run(model: str) -> Path:
    (found,) = Path("runs/single").glob(f"{model}*")
    return found


def test_a_dry_run_says_that_all_works_and_keeps_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    settings = [*SMALL, "model=acai", "resume=never"]
    assert run_command([*settings, "trainer.dry_run=true", "trainer.max_epochs=3"]) == 0
    out = capsys.readouterr().out
    # 80 images less 4 for validation are 9 batches of 8.
    assert "All of it works: 9 batches of training, validation, pictures, a checkpoint that loads, and the test." in out
    assert "(3 epochs)" in out
    assert not any(Path("runs").rglob("*"))


def test_the_estimate_counts_batches_validations_checkpoints_and_pictures(tmp_path: Path) -> None:
    for place, size in {"images/a.png": 1000, "images/b.png": 500, "checkpoints/last.ckpt": 20000}.items():
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_bytes(bytes(size))
    watch = Stopwatch.__new__(Stopwatch)
    watch.batches_an_epoch, watch.batch, watch.validation = 70, 0.5, 4.0
    settings = Config()
    settings.trainer.max_epochs, settings.trainer.validate_every_n_epochs = 100, 2
    # 100 (70 * .5 + 4 / 2) s; three checkpoints, pictures after the first epoch and every tenth.
    assert watch.figures(settings, tmp_path) == {"seconds": 3700.0, "bytes": 60000 + 1500 * 11}


@pytest.mark.slow
def test_a_run_begins_with_the_weights_of_another(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command([*SMALL, "model=vae", "trainer.max_epochs=1", "model.ema_decay=0.9"]) == 0
    first = only_run("vae")
    frozen = ["model.autoencoder_optimizer.lr=1e-30", "data.drawing_seed=7", "seed=3", f"init_from={first}"]
    assert run_command([*SMALL, "model=adversarial_vae", "trainer.max_epochs=1", "model.ema_decay=0.9", *frozen]) == 0
    assert f"Weights of {first} after 9 batches: encoder, decoder; new: critic." in capsys.readouterr().out
    trained, begun = load_model(first), load_model(only_run("adversarial_vae"))
    assert trained.averaged is not None and begun.averaged is not None
    for name in ("encoder", "decoder"):  # those of inference, in both places
        for weights in (getattr(begun, name), begun.averaged[name]):
            for key, value in weights.named_parameters():
                torch.testing.assert_close(value, dict(trained.averaged[name].named_parameters())[key])
    assert "from=vae" in only_run("adversarial_vae").name

    other = ["model=vae", "model.networks.channels=8", f"init_from={first}"]
    assert run_command([*SMALL[:4], *SMALL[5:], *other]) == 2
    assert "its encoder has other layers. Add model.networks.channels=4." in capsys.readouterr().err
    assert run_command([*SMALL, "model=vae", "init_from=nowhere"]) == 2
    assert "nowhere" in capsys.readouterr().err
