"""Trained runs: find them and open them with their model and configuration."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from pegasus_lightning.models.two_player import TwoPlayerModel
from pegasus_lightning.runs.checkpoints import find_checkpoint, load_model
from pegasus_lightning.runs.folder import RunName, find_runs
from pegasus_lightning.utils.errors import UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainedRun:
    """A model from a run folder, or from a checkpoint file on its own."""

    path: Path  # the run's folder or the file, as the user named it
    checkpoint: Path  # the file that was loaded
    model: TwoPlayerModel
    config: DictConfig | None  # the run's configuration; None for a file outside a run's folder
    name: str  # in captions and folders

    @property
    def folder(self) -> Path | None:
        """The run's folder, if any."""
        return None if self.config is None else self.checkpoint.absolute().parent.parent

    @property
    def classes(self) -> list[str]:
        return list(self.model.hparams["classes"])


def find_trained(places: Sequence[str]) -> list[Path]:
    """Return the run folders with a checkpoint, and the checkpoint files, in `places`; see `find_runs`.

    A run without a checkpoint (in its first epoch, or failed) is left out with a warning, unless it was named itself.
    Raise UserError if a place is missing, or holds nothing trained.
    """
    found: list[Path] = []
    for place in places:
        inside = find_runs([place], "checkpoints")
        saved = [run for run in inside if run.is_file() or any((run / "checkpoints").glob("*.ckpt"))]
        if inside == [Path(place).expanduser()]:
            saved = inside
        for run in inside:
            if run not in saved:
                log.warning("%s has no checkpoint yet: left out.", run)
        found += saved
    if not found:
        raise UserError(f"No run in {', '.join(places)} has a checkpoint yet.")
    return list(dict.fromkeys(found))


def open_run(path: Path, device: torch.device | str = "cpu") -> TrainedRun:
    """Load what `find_trained` found. Its name is the folder's, without the hash and the name of the data source.

    Raise UserError for no checkpoint, a corrupt or foreign one, or a config.yaml that cannot be read.
    """
    checkpoint = find_checkpoint(path)
    model = load_model(checkpoint, device)
    home = checkpoint.absolute().parent.parent
    config_file = home / "config.yaml"
    if checkpoint.absolute().parent.name != "checkpoints" or not config_file.exists():
        return TrainedRun(path, checkpoint, model, None, checkpoint.stem)
    try:
        config = OmegaConf.load(config_file)
        OmegaConf.resolve(config)
    except Exception as error:  # YAML's and OmegaConf's errors have no common ancestor
        raise UserError(f"{config_file} cannot be read ({type(error).__name__}).") from error
    if not isinstance(config, DictConfig) or not isinstance(config.get("data"), DictConfig):
        raise UserError(f"{config_file} is not the configuration of a run: it has no section `data`.")
    return TrainedRun(path, checkpoint, model, config, RunName.parse(home.name).caption(config.data.get("source")))


def open_runs(paths: Sequence[Path], device: torch.device | str = "cpu") -> list[TrainedRun]:
    """Apply `open_run` to each. Where names collide, add the hash, the checkpoint's name or a number."""
    runs = [open_run(path, device) for path in paths]
    longer = (
        lambda run, i: run.name,
        lambda run, i: run.name if run.folder is None else run.folder.name,
        lambda run, i: f"{run.name if run.folder is None else run.folder.name}-{run.checkpoint.stem}",
        lambda run, i: f"{run.name}-{i + 1}",
    )
    for call in longer:
        names = [call(run, i) for i, run in enumerate(runs)]
        if len(set(names)) == len(names):
            break
    return [replace(run, name=name) for run, name in zip(runs, names, strict=True)]
