"""Saving and loading: checkpoints that are never torn, and models out of run folders.

A run keeps `checkpoints/last.ckpt` and the one before it, `previous.ckpt`, each with a SHA-256 beside
it. Loading never executes code: `weights_only=True`, plain-dict hyperparameters, the registry.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from pytorch_lightning.callbacks import Checkpoint

from pegasus_lightning.models import model_class
from pegasus_lightning.models.two_player import TwoPlayerModel
from pegasus_lightning.runs.folder import config_hash, read_status
from pegasus_lightning.utils.devices import is_first_process
from pegasus_lightning.utils.errors import Interrupted, UserError
from pegasus_lightning.utils.files import clear_leftovers, sha256, sync_folder, write_atomically, write_text

log = logging.getLogger(__name__)

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"


def _hash_file(checkpoint: Path) -> Path:
    return checkpoint.with_name(checkpoint.name + ".sha256")


def _hashes(checkpoint: Path) -> list[str]:
    path = _hash_file(checkpoint)
    return path.read_text(errors="replace").split() if path.exists() else []  # a damaged one holds for nothing


def is_intact(checkpoint: Path) -> bool:
    """Whether the file is one that was saved whole; a save may be under way meanwhile."""
    while True:
        before = _identity(checkpoint)
        if before is None:
            return False
        if sha256(checkpoint) in _hashes(checkpoint):
            return True
        if _identity(checkpoint) == before:
            return False  # else another took its name between the two readings


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns


def save_atomically(content: dict[str, Any], path: Path) -> None:
    """Save to `path`; what was there becomes `previous.ckpt`. Killed at any moment, an intact file remains.

    The hash file names the old and the new hash while the file changes under it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    clear_leftovers(path.parent)  # of a killed save
    staged = path.with_name(f".{path.name}.staged")
    try:
        write_atomically(staged, lambda file: _serialise(content, file))
        new_hash = sha256(staged)
        if path.exists() and (old_hash := sha256(path)) in _hashes(path):
            _keep_as(path, path.with_name(PREVIOUS), old_hash)
        _announce(path, new_hash)
        os.replace(staged, path)
    finally:
        staged.unlink(missing_ok=True)
    sync_folder(path.parent)
    write_text(_hash_file(path), new_hash + "\n")


def _serialise(content: dict[str, Any], file: BinaryIO) -> None:
    """`torch.save`, but a write that fails (a full disk) is told as the OSError that it is."""
    try:
        torch.save(content, file)
    except RuntimeError as error:  # "unexpected pos": it notices at the end that bytes are missing
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def _announce(path: Path, new_hash: str) -> None:
    """Let the hash file hold for what lies at `path` and for what will lie there."""
    write_text(_hash_file(path), "\n".join(dict.fromkeys([*_hashes(path), new_hash])) + "\n")


def _keep_as(path: Path, kept: Path, its_hash: str) -> None:
    """Give the file at `path` a second name, replacing what had it (a copy where hard links are not to be had)."""
    staged = kept.with_name(f".{kept.name}.staged")
    staged.unlink(missing_ok=True)
    try:
        os.link(path, staged)
    except OSError:
        shutil.copyfile(path, staged)
    _announce(kept, its_hash)
    os.replace(staged, kept)
    staged.unlink(missing_ok=True)  # still there if both were names of one file already
    write_text(_hash_file(kept), its_hash + "\n")


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's door to the disk, through `save_atomically` and `read_checkpoint`."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        save_atomically(checkpoint, Path(path))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        return read_checkpoint(Path(path))


class SaveLast(Checkpoint):
    """Saves `last.ckpt` every so many epochs and after the last one, whatever the metrics say.

    Args:
        folder: the run's `checkpoints/`.
        every_n_epochs: between saves.
        check: raises `Interrupted` if the run is to stop: then it saves first.
    """

    def __init__(self, folder: Path, every_n_epochs: int, check: Callable[[], object] = lambda: None) -> None:
        self.path = folder / LAST
        self.every_n_epochs = every_n_epochs
        self.check = check
        self._saved_at = -1

    def save(self, trainer: pl.Trainer) -> None:
        """Save now, unless the present batch is saved already."""
        batches_done: int = trainer.lightning_module.batches_done  # type: ignore[assignment]
        if batches_done != self._saved_at:
            for logger in trainer.loggers:
                logger.save()  # what the curves show must not end before the checkpoint does
            trainer.save_checkpoint(self.path)
            self._saved_at = batches_done

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        try:
            self.check()
        except Interrupted:
            self.save(trainer)
            raise
        if (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self.save(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Reached on a regular end only (all epochs, max_time), which may lie between two saves.
        self.save(trainer)


def latest_checkpoint(run: Path) -> Path | None:
    """The newest intact checkpoint of a run folder, or None where nothing was ever saved.

    A corrupt one is named in the log and passed over.

    Raises:
        UserError: there are checkpoints, and none is intact.
    """
    folder = run / "checkpoints"
    found = [folder / name for name in (LAST, PREVIOUS) if (folder / name).exists()]
    for path in found:
        if is_intact(path):
            return path
        log.warning("Checkpoint %s is corrupt (its SHA-256 is not the one it was saved with): passed over.", path)
    if found:
        raise UserError(
            f"Every checkpoint in {folder} is corrupt ({', '.join(path.name for path in found)}). Delete the folder "
            f"{run} to train anew, or put a good copy back."
        )
    return None


def is_finished(folder: Path, settings: dict[str, Any]) -> bool:
    """Whether the folder holds this very run, trained as long as is asked for now, its last checkpoint not corrupt."""
    status = read_status(folder)
    if settings["resume"] == "never" or status is None or status.get("status") != "finished":
        return False
    last = folder / "checkpoints" / LAST
    if last.exists() and not is_intact(last):
        return False  # `latest_checkpoint` says so, and the run goes on from the one before
    trainer, limits = settings["trainer"], status.get("limits", {})
    if status.get("epochs", 0) >= trainer["max_epochs"]:
        return True
    out_of_time = limits.get("max_time") is not None and status.get("epochs", 0) < limits["max_epochs"]
    return out_of_time and trainer["max_time"] == limits["max_time"]


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of an intact checkpoint, on the CPU. No code in it is run.

    Raises:
        UserError: it is missing, corrupt, or not one of this project's.
    """
    if not path.exists():
        raise UserError(f"There is no checkpoint {path}.")
    if _hash_file(path).exists() and not is_intact(path):
        raise UserError(f"The checkpoint {path} is corrupt: its SHA-256 is not the one it was saved with.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{path} cannot be read as a checkpoint ({type(error).__name__}).") from error
    if not isinstance(content, dict) or not {"state_dict", "hyper_parameters", "batches_done"} <= content.keys():
        raise UserError(f"{path} is not a checkpoint of pegasus_lightning.")
    return content


def find_checkpoint(source: Path | str) -> Path:
    """The newest intact checkpoint of a run folder, or the checkpoint file that is named.

    Raises:
        UserError: there is none.
    """
    path = Path(source).expanduser()
    if not path.exists():
        raise UserError(f"There is no run folder or checkpoint {path}.")
    if not path.is_dir():
        return path
    newest = latest_checkpoint(path)
    if newest is None:
        raise UserError(f"{path} holds no checkpoint: it is not a run folder, or the run never saved.")
    return newest


def load_model(source: Path | str, device: torch.device | str = "cpu") -> TwoPlayerModel:
    """The trained model of a run folder or of one checkpoint file, in eval mode on `device`.

    Raises:
        UserError: there is none, it is corrupt or foreign, or names an unknown variant.
    """
    path = find_checkpoint(source)
    content = read_checkpoint(path)
    hyperparameters = content["hyper_parameters"]
    try:
        name, keywords = hyperparameters["model"]["name"], {k: hyperparameters[k] for k in ("seed", "classes")}
        model = model_class(name)(hyperparameters["model"], **keywords)
        model.load_state_dict(content["state_dict"])
    except (KeyError, TypeError, RuntimeError) as error:
        raise UserError(f"{path} does not fit this version of pegasus_lightning: {error}") from error
    model.batches_done = content["batches_done"]
    # As in training, so that the same images give the same bits.
    return model.to(memory_format=torch.channels_last).to(device).eval()


def checkpoint_to_resume(folder: Path, settings: dict[str, Any]) -> Path | None:
    """The checkpoint to go on from, after `resume`: auto, never or must."""
    resume = settings["resume"]
    if resume == "never":
        if folder.exists() and is_first_process():
            raise UserError(f"resume=never, but {folder} exists. Delete it, or leave resume out to continue it.")
        return None
    checkpoint = latest_checkpoint(folder)
    status = read_status(folder)
    if checkpoint is not None and status is not None and status.get("config_hash") != config_hash(settings):
        raise UserError(f"{folder} belongs to another configuration (the hashes differ). Choose another run_name.")
    if checkpoint is None and resume == "must" and is_first_process():
        raise UserError(f"resume=must, but {folder / 'checkpoints'} has no checkpoint. Leave resume out to start.")
    return checkpoint
