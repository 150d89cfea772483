"""Tests of checkpoints: saves that are killed, corrupt and foreign files, formats, loaded models."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import pickle
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

import pegasus_lightning
from pegasus_lightning import __version__
from pegasus_lightning.export.model_files import load_export
from pegasus_lightning.launch.command import run_command
from pegasus_lightning.models.two_player import TwoPlayerModel
from pegasus_lightning.runs import checkpoints
from pegasus_lightning.runs.checkpoints import (
    AtomicCheckpointIO,
    is_intact,
    latest_checkpoint,
    load_model,
    read_checkpoint,
    save_atomically,
)
from pegasus_lightning.utils.errors import UserError


def content(number: int) -> dict[str, Any]:
    weights = torch.full((50,), float(number))
    return {"state_dict": {"weights": weights}, "hyper_parameters": {}, "batches_done": number}


def number_in(path: Path) -> int:
    found = read_checkpoint(path)
    assert found["state_dict"]["weights"].eq(found["batches_done"]).all()
    return found["batches_done"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run folder in which numbers 1 and 2 were saved."""
    for number in (1, 2):
        save_atomically(content(number), tmp_path / "checkpoints" / "last.ckpt")
    return tmp_path


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def empty(path: Path) -> None:
    path.write_bytes(b"")


def test_the_last_and_the_one_before_are_kept(folder: Path) -> None:
    last, previous = folder / "checkpoints" / "last.ckpt", folder / "checkpoints" / "previous.ckpt"
    assert (number_in(last), number_in(previous)) == (2, 1)
    assert is_intact(last)
    assert is_intact(previous)
    assert latest_checkpoint(folder) == last
    save_atomically(content(3), last)
    assert (number_in(last), number_in(previous)) == (3, 2)
    names = sorted(os.listdir(folder / "checkpoints"))
    assert names == ["last.ckpt", "last.ckpt.sha256", "previous.ckpt", "previous.ckpt.sha256"]


def test_where_nothing_was_saved_there_is_none(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None
    (tmp_path / "checkpoints").mkdir()
    assert latest_checkpoint(tmp_path) is None


@pytest.mark.promise(3)
@pytest.mark.parametrize("spoil", [truncate, flip, empty])
def test_a_corrupt_last_is_named_and_the_previous_one_used(
    folder: Path, caplog: pytest.LogCaptureFixture, spoil: Any
) -> None:
    spoil(folder / "checkpoints" / "last.ckpt")
    with caplog.at_level(logging.WARNING, "pegasus_lightning"):
        found = latest_checkpoint(folder)
    assert found == folder / "checkpoints" / "previous.ckpt"
    assert number_in(found) == 1
    (record,) = caplog.records
    assert str(folder / "checkpoints" / "last.ckpt") in record.getMessage()
    assert "corrupt" in record.getMessage()
    with pytest.raises(UserError, match=r"last\.ckpt is corrupt"):
        read_checkpoint(folder / "checkpoints" / "last.ckpt")


@pytest.mark.promise(3)
@pytest.mark.parametrize("spoil", [truncate, flip, empty])
def test_after_a_corrupt_last_the_previous_one_stays_until_a_new_one_is_there(folder: Path, spoil: Any) -> None:
    last, previous = folder / "checkpoints" / "last.ckpt", folder / "checkpoints" / "previous.ckpt"
    spoil(last)
    save_atomically(content(3), last)
    assert (number_in(last), number_in(previous)) == (3, 1)


@pytest.mark.promise(3)
def test_two_corrupt_ones_are_an_error_that_names_the_folder(folder: Path) -> None:
    truncate(folder / "checkpoints" / "last.ckpt")
    flip(folder / "checkpoints" / "previous.ckpt")
    with pytest.raises(UserError) as error:
        latest_checkpoint(folder)
    for part in (str(folder), "last.ckpt", "previous.ckpt", "corrupt", "Delete"):
        assert part in str(error.value)


class Killed(BaseException):
    """Stands for SIGKILL: nothing happens after it."""


@contextlib.contextmanager
def killed_at(call: int, name: str) -> Iterator[list[int]]:
    """Raise Killed at the `call`-th call of `os.<name>`, from 1, and at every later call of `os`."""
    real, calls = {n: getattr(os, n) for n in ("replace", "unlink", "link")}, [0]

    def dead(*_: Any, **__: Any) -> None:
        raise Killed

    def watched(*arguments: Any, **keywords: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            for other in real:  # a killed process does not clean up
                patch.setattr(os, other, dead)
            raise Killed
        return real[name](*arguments, **keywords)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, name, watched)
        yield calls


def _moves_of_one_save(folder: Path) -> int:
    with killed_at(0, "replace") as calls:
        save_atomically(content(0), folder / "checkpoints" / "last.ckpt")
    return calls[0]


@pytest.mark.promise(2)
def test_killed_before_any_of_its_moves_a_save_leaves_an_intact_checkpoint(folder: Path, tmp_path: Path) -> None:
    copied = tmp_path / "copied"
    shutil.copytree(folder / "checkpoints", copied / "checkpoints")
    moves = _moves_of_one_save(copied)
    assert moves >= 4  # the new file, its hash, the kept file, its hash
    seen = set()
    for call in range(1, moves + 1):
        here = tmp_path / f"killed-{call}"
        shutil.copytree(folder / "checkpoints", here / "checkpoints")
        with pytest.raises(Killed), killed_at(call, "replace"):
            save_atomically(content(3), here / "checkpoints" / "last.ckpt")
        found = latest_checkpoint(here)
        assert found is not None
        assert number_in(found) in (2, 3), f"killed at move {call}: fell back two"
        seen.add(number_in(found))
        save_atomically(content(4), here / "checkpoints" / "last.ckpt")  # the next save succeeds
        assert number_in(here / "checkpoints" / "last.ckpt") == 4
        assert number_in(here / "checkpoints" / "previous.ckpt") in (2, 3)
    assert seen == {2, 3}  # kills before and after the decisive move


def test_keeping_what_is_kept_already_leaves_no_third_name(folder: Path) -> None:
    last, previous = folder / "checkpoints" / "last.ckpt", folder / "checkpoints" / "previous.ckpt"
    previous.unlink()
    os.link(last, previous)  # as after a kill between keeping the old file and moving the new one
    save_atomically(content(3), last)
    assert (number_in(last), number_in(previous)) == (3, 2)
    names = sorted(os.listdir(folder / "checkpoints"))
    assert names == ["last.ckpt", "last.ckpt.sha256", "previous.ckpt", "previous.ckpt.sha256"]


@pytest.mark.promise(2)
def test_killed_in_the_first_save_there_is_none_or_an_intact_one(tmp_path: Path) -> None:
    for call in range(1, 10):
        here = tmp_path / str(call)
        try:
            with killed_at(call, "replace"):
                save_atomically(content(1), here / "checkpoints" / "last.ckpt")
        except Killed:
            found = latest_checkpoint(here)
            assert found is None or number_in(found) == 1
        else:
            assert call > 2
            break


@pytest.mark.promise(2)
def test_a_full_disk_leaves_the_old_ones(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: object, file: Any) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space"):
        save_atomically(content(3), folder / "checkpoints" / "last.ckpt")
    monkeypatch.undo()
    assert number_in(folder / "checkpoints" / "last.ckpt") == 2
    assert number_in(folder / "checkpoints" / "previous.ckpt") == 1
    assert len(os.listdir(folder / "checkpoints")) == 4


def test_where_there_are_no_hard_links_the_previous_one_is_a_copy(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object) -> None:
        raise OSError("not supported")

    monkeypatch.setattr(checkpoints.os, "link", no_links)
    save_atomically(content(3), folder / "checkpoints" / "last.ckpt")
    assert number_in(folder / "checkpoints" / "last.ckpt") == 3
    assert number_in(folder / "checkpoints" / "previous.ckpt") == 2


class Malice:
    """Unpickling this would make the folder `sentinel`."""

    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.sentinel),)


@pytest.mark.promise(11)
@pytest.mark.parametrize("bare", [False, True], ids=["torch.save", "pickle"])
def test_no_code_in_a_checkpoint_is_run(tmp_path: Path, bare: bool) -> None:
    sentinel, path = tmp_path / "sentinel", tmp_path / "evil.ckpt"
    evil = content(1) | {"callbacks": Malice(sentinel)}
    if bare:
        path.write_bytes(pickle.dumps(evil))
    else:
        torch.save(evil, path)
    with pytest.raises(UserError, match=r"evil\.ckpt cannot be read"):
        read_checkpoint(path)
    with pytest.raises(UserError):
        load_model(path)
    assert not sentinel.exists()
    with contextlib.suppress(Exception):  # the file does run code if it is unpickled
        torch.load(path, weights_only=False)
    assert sentinel.exists()


@pytest.mark.promise(17)
@pytest.mark.parametrize("written", [2, 0, -1, "1", None, 1.0])
def test_an_unknown_format_is_refused_in_one_sentence(tmp_path: Path, written: object) -> None:
    path = tmp_path / "newer.ckpt"
    save_atomically(content(1) | {"format_version": written}, path)
    with pytest.raises(UserError) as error:
        read_checkpoint(path)
    assert str(error.value) == (
        f"{path} has format {written}, which this version ({__version__}) cannot read: it reads up to format 1. "
        "Use the version of pegasus_lightning that wrote it."
    )
    with pytest.raises(UserError, match="has format"):
        load_model(path)


@pytest.mark.promise(17)
def test_a_checkpoint_without_a_format_is_read_and_new_ones_have_one(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    save_atomically(content(3), path)  # as release 0.1 did
    assert "format_version" not in torch.load(path, weights_only=True)
    assert number_in(path) == 3
    AtomicCheckpointIO().save_checkpoint(content(4), path)
    assert torch.load(path, weights_only=True)["format_version"] == 1
    assert number_in(path) == 4


@pytest.mark.parametrize("foreign", [{"state_dict": {}}, [1, 2], torch.zeros(3), {"epoch": 1, "hyper_parameters": {}}])
def test_a_foreign_file_is_refused(tmp_path: Path, foreign: object) -> None:
    torch.save(foreign, tmp_path / "foreign.pt")
    with pytest.raises(UserError, match="not a checkpoint of pegasus_lightning"):
        read_checkpoint(tmp_path / "foreign.pt")


def test_what_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint"):
        read_checkpoint(tmp_path / "absent.ckpt")
    with pytest.raises(UserError, match="holds no checkpoint"):
        load_model(tmp_path)
    (tmp_path / "text.ckpt").write_text("hello")
    with pytest.raises(UserError, match="cannot be read"):
        load_model(tmp_path / "text.ckpt")


# Models from run folders.


class Trained(NamedTuple):
    run: Path
    images: torch.Tensor
    reconstructions: torch.Tensor
    outputs: torch.Tensor
    state: dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A run with averaged weights, and the outputs of its model for a fixed batch at the end of training."""
    folder, seen = tmp_path_factory.mktemp("trained"), []
    images = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    publish = TwoPlayerModel.on_test_epoch_end

    def look(self: TwoPlayerModel) -> None:
        publish(self)
        state = {name: value.clone() for name, value in self.state_dict().items()}
        seen.append((self.reconstruct(images), self.critic(images), state))

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["pegasus_lightning"])
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        patch.setenv("HYDRA_FULL_ERROR", "0")
        patch.setattr(TwoPlayerModel, "on_test_epoch_end", look)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            code = run_command(
                [
                    "model.networks.channels=4", "model.networks.latent_dim=8", "model.ema_decay=0.9",
                    "data=silhouettes", "data.train_per_class=20", "data.test_per_class=8", "data.batch_size=16",
                    "data.classes=[bird,pegasus]", "seed=5", "callbacks=quiet",
                    "trainer.gpus=0", "trainer.precision=32", "trainer.max_epochs=2",
                ]
            )  # fmt: skip
    assert code == 0
    (run,) = (folder / "runs" / "single").iterdir()
    ((reconstructions, outputs, state),) = seen
    return Trained(run, images, reconstructions, outputs, state)


def test_a_loaded_model_is_the_trained_one_bit_for_bit(trained: Trained) -> None:
    model = load_model(trained.run)
    assert not model.training
    assert model.batches_done == 4
    assert (model.hparams["seed"], model.hparams["classes"]) == (5, ["bird", "pegasus"])
    loaded = model.state_dict()
    assert loaded.keys() == trained.state.keys()
    assert any(name.startswith("averaged.") for name in loaded)
    assert all(torch.equal(loaded[name], value) for name, value in trained.state.items())
    with torch.no_grad():
        assert torch.equal(model.reconstruct(trained.images), trained.reconstructions)
        assert torch.equal(model.critic(trained.images), trained.outputs)


def test_a_model_is_loaded_from_a_file_too(trained: Trained) -> None:
    path = trained.run / "checkpoints" / "last.ckpt"
    with torch.no_grad():
        assert torch.equal(load_model(path).reconstruct(trained.images), trained.reconstructions)
        previous = load_model(str(path.with_name("previous.ckpt")))
        assert previous.batches_done == 2
        assert not torch.equal(previous.reconstruct(trained.images), trained.reconstructions)


@pytest.mark.promise(3)
def test_a_model_survives_a_corrupt_last(trained: Trained, tmp_path: Path) -> None:
    shutil.copytree(trained.run, tmp_path / "run")
    flip(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert load_model(tmp_path / "run").batches_done == 2


@pytest.mark.promise(11)
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": "os.system"}, "os.system"),
        ({"networks": {"latent_dim": 9}}, "does not fit"),
        ({"_target_": "os.system"}, "does not fit"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(
    trained: Trained, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    altered = read_checkpoint(trained.run / "checkpoints" / "last.ckpt")
    altered["hyper_parameters"]["model"] |= change
    torch.save(altered, tmp_path / "altered.ckpt")
    with pytest.raises(UserError) as error:
        load_model(tmp_path / "altered.ckpt")
    assert said in str(error.value)


def test_the_package_offers_the_functions_that_load_models() -> None:
    assert pegasus_lightning.load_model is load_model
    assert pegasus_lightning.load_export is load_export
    with pytest.raises(AttributeError, match="module 'pegasus_lightning' has no attribute 'load_modle'"):
        _ = pegasus_lightning.load_modle
