"""Trained runs, found and opened again: their model, their configuration, the data they know."""

from __future__ import annotations

import glob
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from pegasus_lightning.data.common import listing
from pegasus_lightning.models.two_player import TwoPlayerModel
from pegasus_lightning.runs.checkpoints import find_checkpoint, load_model
from pegasus_lightning.utils.errors import UserError, did_you_mean

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainedRun:
    """A model out of a run folder, or out of a checkpoint file on its own.

    Args:
        path: what was asked for: the run's folder, or the file.
        checkpoint: the file that was loaded.
        config: the run's configuration; None for a file that lies outside a run's folder.
        name: what captions and folders call it.
    """

    path: Path
    checkpoint: Path
    model: TwoPlayerModel
    config: DictConfig | None
    name: str

    @property
    def folder(self) -> Path | None:
        """The run's folder, where there is one."""
        return None if self.config is None else self.checkpoint.absolute().parent.parent

    @property
    def classes(self) -> list[str]:
        """The two classes it was trained on."""
        return list(self.model.hparams["classes"])


def _is_run(folder: Path) -> bool:
    return (folder / "checkpoints").is_dir()


def _saved(runs: list[Path]) -> list[Path]:
    """Those that saved a checkpoint; the others (still in their first epoch, or failed) are named in the log."""
    for run in runs:
        if not any((run / "checkpoints").glob("*.ckpt")):
            log.warning("%s has no checkpoint yet: left out.", run)
    return [run for run in runs if any((run / "checkpoints").glob("*.ckpt"))]


def find_runs(places: Sequence[str]) -> list[Path]:
    """Run folders and checkpoint files. A place is one, a folder that holds runs, or a pattern such as `runs/*/vae*`.

    Raises:
        UserError: a place is missing, or nothing trained is in it.
    """
    found: list[Path] = []
    for place in places:
        path = Path(place).expanduser()
        if path.absolute().name == "checkpoints" and path.is_dir():
            path = path.absolute().parent
        if path.is_file() or (path.is_dir() and _is_run(path)):
            found.append(path)
        elif path.is_dir():
            inside = sorted({p.parent for depth in ("*", "*/*", "*/*/*") for p in path.glob(f"{depth}/checkpoints")})
            if not inside:
                raise UserError(f"{path} holds no trained run: no folder in it has checkpoints.")
            found += _saved(inside)
        else:
            matches = [Path(match) for match in sorted(glob.glob(str(path)))]
            trained = [match for match in matches if match.is_file()]
            trained += _saved([match for match in matches if _is_run(match)])
            if not trained:
                beside = sorted(entry.name for entry in path.parent.glob("*/") if _is_run(entry))
                hint = did_you_mean(path.name, beside) or (f" Runs there: {listing(beside)}." if beside else "")
                raise UserError(f"There is no run folder or checkpoint {path}.{hint}")
            found += trained
    return list(dict.fromkeys(found))


def open_run(path: Path, device: torch.device | str = "cpu") -> TrainedRun:
    """Load what `find_runs` found. Its name is the folder's, without the hash and the name of the data.

    Raises:
        UserError: no checkpoint, a corrupt or foreign one, or a config.yaml that cannot be read.
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
    name = re.sub(r"-[0-9a-f]{8}$", "", home.name).replace(f",{config.data.get('source')}", "")
    return TrainedRun(path, checkpoint, model, config, name)


def open_runs(paths: Sequence[Path], device: torch.device | str = "cpu") -> list[TrainedRun]:
    """`open_run` of each, under names that differ: with the hash, the checkpoint or a number where they must."""
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
