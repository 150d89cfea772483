"""Checkpoints that are never torn: save, find, check and load them.

A run keeps `checkpoints/last.ckpt`, the one before it, `previous.ckpt`, and that of the best validation, `best.ckpt`,
each beside a file with its SHA-256. Loading never executes code (see `utils/torch_file.py`): hyperparameters are plain
dicts, model classes come from the registry.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from omegaconf import OmegaConf
from pytorch_lightning.callbacks import Checkpoint
from torch import Tensor

from pegasus_lightning import __version__
from pegasus_lightning.models import model_class
from pegasus_lightning.models.two_player import TwoPlayerModel
from pegasus_lightning.runs.folder import config_hash, read_status
from pegasus_lightning.utils.devices import is_first_process
from pegasus_lightning.utils.errors import Interrupted, UserError, check_seed
from pegasus_lightning.utils.files import clear_leftovers, sha256, sync_folder, write_atomically, write_text
from pegasus_lightning.utils.foreign import Unreadable, open_regular, read_text
from pegasus_lightning.utils.torch_file import MAX_TORCH_BYTES, check_fits, read_torch_file

log = logging.getLogger(__name__)

LAST, PREVIOUS, BEST = "last.ckpt", "previous.ckpt", "best.ckpt"
LIMITS = ("max_epochs", "max_time", "patience", "monitor")  # settings of the trainer that end a run
FORMAT_VERSION = 1  # of training checkpoints; raise it when older code could not read what this code writes


def _hash_file(checkpoint: Path) -> Path:
    return checkpoint.with_name(checkpoint.name + ".sha256")


def _hashes(checkpoint: Path) -> list[str]:
    try:
        return read_text(_hash_file(checkpoint), limit=4096).split()
    except Unreadable:
        return []  # a damaged hash file counts as none


def is_intact(checkpoint: Path) -> bool:
    """Return whether the file is as it was saved. A save may be under way meanwhile."""
    while True:
        before = _identity(checkpoint)
        if before is None:
            return False
        if not checkpoint.is_file() or before[2] > MAX_TORCH_BYTES:
            return False
        if sha256(checkpoint) in _hashes(checkpoint):
            return True
        if _identity(checkpoint) == before:
            return False  # otherwise another file took its name between the two readings


def _identity(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def save_atomically(content: dict[str, Any], path: Path) -> None:
    """Save to `path`, and keep the file that was there as `previous.ckpt`. A kill at any moment leaves an intact file.

    The hash file holds the old and the new hash while the file is replaced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    clear_leftovers(path.parent)  # left by a killed save
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
    """Call `torch.save`, and raise a failed write (a full disk) as OSError."""
    try:
        torch.save(content, file)
    except RuntimeError as error:  # "unexpected pos": torch notices at the end that bytes are missing
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def _announce(path: Path, new_hash: str) -> None:
    """Let the hash file accept the present file at `path` and the one that will replace it."""
    write_text(_hash_file(path), "\n".join(dict.fromkeys([*_hashes(path), new_hash])) + "\n")


def keep_best(last: Path) -> None:
    """Give an intact `last.ckpt` the second name `best.ckpt`, unless it has it."""
    best = last.with_name(BEST)
    found = sha256(last)
    if found in _hashes(last) and not (best.exists() and sha256(best) == found):
        _keep_as(last, best, found)


def _keep_as(path: Path, kept: Path, its_hash: str) -> None:
    """Give the file at `path` a second name, replacing the file of that name; copy it if hard links fail."""
    staged = kept.with_name(f".{kept.name}.staged")
    staged.unlink(missing_ok=True)
    try:
        os.link(path, staged)
    except OSError:
        shutil.copyfile(path, staged)
    _announce(kept, its_hash)
    os.replace(staged, kept)
    staged.unlink(missing_ok=True)  # still there if both names were already one file
    write_text(_hash_file(kept), its_hash + "\n")


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint plugin: it saves with `save_atomically` and loads with `read_checkpoint`."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        save_atomically(checkpoint | {"format_version": FORMAT_VERSION}, Path(path))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        return read_checkpoint(Path(path))


class SaveLast(Checkpoint):
    """Save `last.ckpt` every few epochs and after the last one, and keep that of the best validation as `best.ckpt`.

    Args:
        folder: the run's `checkpoints/`.
        every_n_epochs: the interval; a best validation is saved between two saves, too.
        check: raises `Interrupted` if the run is to stop; the callback saves before it passes this on.
        best_batch: returns the batches done at the best validation so far, -1 for none.
    """

    def __init__(
        self,
        folder: Path,
        every_n_epochs: int,
        check: Callable[[], object] = lambda: None,
        best_batch: Callable[[], int] = lambda: -1,
    ) -> None:
        self.path, self.every_n_epochs, self.check, self.best_batch = folder / LAST, every_n_epochs, check, best_batch
        self._saved_at = -1

    def save(self, trainer: pl.Trainer) -> None:
        """Save now, unless this batch is already saved."""
        batches_done: int = trainer.lightning_module.batches_done  # type: ignore[assignment]
        if batches_done == self._saved_at:
            return
        for logger in trainer.loggers:
            logger.save()  # the logged curves must reach as far as the checkpoint
        trainer.save_checkpoint(self.path)
        self._saved_at = batches_done
        if batches_done == self.best_batch() and trainer.is_global_zero:
            keep_best(self.path)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # A kill may have come between the save of the best validation and its second name.
        if pl_module.batches_done == self.best_batch() and self.path.exists() and trainer.is_global_zero:
            keep_best(self.path)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        try:
            self.check()
        except Interrupted:
            self.save(trainer)
            raise
        is_best = pl_module.batches_done == self.best_batch()
        if is_best or (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self.save(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Lightning calls this at a regular end alone (all epochs, max_time), which may lie between two saves.
        self.save(trainer)


def latest_checkpoint(run: Path) -> Path | None:
    """Return the newest intact checkpoint of a run folder; None if nothing was ever saved.

    A corrupt one is logged and skipped. Raise UserError if there are checkpoints, but none is intact.
    """
    folder = run / "checkpoints"
    found = [folder / name for name in (LAST, PREVIOUS) if (folder / name).exists()]
    for path in found:
        if is_intact(path):
            return path
        log.warning("Checkpoint %s is corrupt (its SHA-256 differs from the saved one): skipped.", path)
    if found:
        raise UserError(
            f"Every checkpoint in {folder} is corrupt ({', '.join(path.name for path in found)}). Delete the folder "
            f"{run} to train anew, or put a good copy back."
        )
    return None


def is_finished(folder: Path, config: dict[str, Any]) -> bool:
    """Return whether the folder's run has trained to the limits of `config`, and its last checkpoint is not corrupt.

    With `resume=never` no run counts as finished.
    """
    status = read_status(folder)
    if config["resume"] == "never" or status is None or status.get("status") != "finished":
        return False
    last = folder / "checkpoints" / LAST
    if last.exists() and not is_intact(last):
        return False  # `latest_checkpoint` reports it, and the run continues from the one before
    wanted, limits = config["trainer"], status.get("limits", {})
    if status.get("epochs", 0) >= wanted["max_epochs"]:
        return True
    if status.get("stopped_by") == "trainer.patience":
        patience, asked = limits.get("patience"), wanted["patience"]
        return wanted["monitor"] == limits.get("monitor") and None not in (patience, asked) and asked <= patience
    out_of_time = limits.get("max_time") is not None and status.get("epochs", 0) < limits.get("max_epochs", 0)
    return out_of_time and wanted["max_time"] == limits["max_time"]


def checkpoint_to_resume(folder: Path, config: dict[str, Any]) -> Path | None:
    """Return the checkpoint to continue from, None to start afresh, as the run's `resume` says (auto, never, must).

    Raise UserError if the folder does not fit `resume`, or belongs to another configuration.
    """
    resume = config["resume"]
    if resume == "never":
        if folder.exists() and is_first_process():
            raise UserError(f"resume=never, but {folder} exists. Delete it, or leave resume out to continue it.")
        return None
    checkpoint = latest_checkpoint(folder)
    status = read_status(folder)
    if checkpoint is not None and status is not None and status.get("config_hash") != config_hash(config):
        raise UserError(f"{folder} belongs to another configuration (the hashes differ). Choose another run_name.")
    if checkpoint is None and resume == "must" and is_first_process():
        raise UserError(f"resume=must, but {folder / 'checkpoints'} has no checkpoint. Leave resume out to start.")
    return checkpoint


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return the content of a checkpoint, on the CPU. No code in it is run.

    Raise UserError if it is missing, corrupt, not a checkpoint of this package, or of an unknown format.
    """
    if not path.exists():
        raise UserError(f"There is no checkpoint {path}.")
    open_regular(path, MAX_TORCH_BYTES).close()  # before its SHA-256, which would take for ever
    if _hash_file(path).exists() and not is_intact(path):
        raise UserError(f"The checkpoint {path} is corrupt: its SHA-256 is not the one it was saved with.")
    content = read_torch_file(path, object)
    kinds = {"state_dict": dict, "hyper_parameters": dict, "batches_done": int}
    if not isinstance(content, dict) or not all(isinstance(content.get(key), kind) for key, kind in kinds.items()):
        raise UserError(f"{path} is not a checkpoint of pegasus_lightning.")
    weights = content["state_dict"].items()
    if content["batches_done"] < 0 or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in weights):
        raise UserError(f"{path} is damaged: its number of batches or its weights are something else.")
    written = content.get("format_version", 1)  # release 0.1 wrote none
    if not (isinstance(written, int) and 1 <= written <= FORMAT_VERSION):
        raise UserError(
            f"{path} has format {written}, which this version ({__version__}) cannot read: it reads up to "
            f"format {FORMAT_VERSION}. Use the version of pegasus_lightning that wrote it."
        )
    return content


def read_to_continue(path: Path, model: TwoPlayerModel) -> tuple[int, int | None]:
    """Return the batches done at a checkpoint, and at the last entry of the log before it (None: unknown).

    Raise UserError if it cannot be read, or does not fit the model that is to be trained on.
    """
    content = read_checkpoint(path)
    check_fits(path, model, content["state_dict"])
    done = content["batches_done"]
    try:
        return done, done - max(content["logged"]["averages"]["counts"].values(), default=0)
    except (KeyError, TypeError, AttributeError):  # the first checkpoints have none
        return done, None


def find_checkpoint(source: Path | str) -> Path:
    """Return a run folder's newest intact checkpoint, or `source` if it is a file. Raise UserError if there is none."""
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
    """Return the trained model of a run folder or checkpoint file, in eval mode on `device`.

    It offers `encode`, `decode`, `reconstruct`, `sample_prior`, `mix` and `interpolate`; images are (B, 3, 32, 32) in
    [0, 1], codes (B, latent_dim). Raise UserError if there is no checkpoint, or it is corrupt, foreign, or of an
    unknown variant.
    """
    path = find_checkpoint(source)
    content = read_checkpoint(path)
    hyperparameters, weights = content["hyper_parameters"], content["state_dict"]
    model_on_meta(path, hyperparameters, weights)
    name, keywords = hyperparameters["model"]["name"], {k: hyperparameters[k] for k in ("seed", "classes")}
    model = model_class(name)(hyperparameters["model"], **keywords)
    model.load_state_dict(weights)
    model.batches_done = content["batches_done"]
    # The memory format of training, so that the same images give the same bits.
    return model.to(memory_format=torch.channels_last).to(device).eval()


def model_on_meta(
    path: Path, about: Mapping[str, Any], found: Mapping[str, Any], networks: Sequence[str] = ()
) -> TwoPlayerModel:
    """Return the model that a file describes, on the `meta` device, where it takes no memory.

    `about` has the keys `model`, `seed` and `classes`, and `found` tensors by name, or their shapes as lists. Raise
    UserError if they do not fit the model, or `networks` of it, so that a file of a few bytes cannot ask for a network
    of many.
    """
    try:
        settings, seed, classes = (about[key] for key in ("model", "seed", "classes"))
        check_seed(seed)
        if len(classes) != 2 or not all(isinstance(name, str) for name in classes):
            raise TypeError("there are not two classes")
        kind = model_class(settings["name"])
        sizes = OmegaConf.merge(OmegaConf.structured(kind.Config), settings).networks
        if max(sizes.fc_layers, sizes.residual_blocks) > len(found):
            raise ValueError("the networks have more layers than there are weights")
        with torch.device("meta"):
            model = kind(settings, seed=seed, classes=classes)
    except UserError:
        raise
    except Exception as error:  # OmegaConf's and PyTorch's have no common ancestor
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__  # the others are OmegaConf's
        raise UserError(f"{path} does not fit this version of pegasus_lightning: {reason}.") from error
    whole = torch.nn.ModuleDict({name: getattr(model, name) for name in networks}) if networks else model
    check_fits(path, whole, found)
    return model
