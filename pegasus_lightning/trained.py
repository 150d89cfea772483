"""Trained runs, found and opened again: their model, their configuration, the data they know."""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from pegasus_lightning.checkpoints import find_checkpoint, load_model
from pegasus_lightning.data.common import listing
from pegasus_lightning.errors import UserError, did_you_mean
from pegasus_lightning.models.two_player import TwoPlayerModel


@dataclass(frozen=True)
class TrainedRun:
    """A model out of a run folder, or out of a checkpoint file on its own.

    Args:
        path: what was asked for: the run's folder, or the file.
        checkpoint: the file that was loaded.
        config: the run's configuration; None for a file that lies outside a run's folder.
    """

    path: Path
    checkpoint: Path
    model: TwoPlayerModel
    config: DictConfig | None

    @property
    def folder(self) -> Path | None:
        """The run's folder, where there is one."""
        return None if self.config is None else self.checkpoint.parent.parent

    @property
    def name(self) -> str:
        """What captions call it: the folder's name without the hash and the name of the data."""
        if self.config is None:
            return self.checkpoint.stem
        name = re.sub(r"-[0-9a-f]{8}$", "", self.checkpoint.parent.parent.name)
        return name.replace(f",{self.config.data.get('source')}", "")


def _is_run(folder: Path) -> bool:
    return (folder / "checkpoints").is_dir()


def find_runs(places: Sequence[str]) -> list[Path]:
    """Run folders and checkpoint files. A place is one, a folder that holds runs, or a pattern such as `runs/*/vae*`.

    Raises:
        UserError: a place is missing, or nothing trained is in it.
    """
    found: list[Path] = []
    for place in places:
        path = Path(place).expanduser()
        if path.is_file() or (path.is_dir() and _is_run(path)):
            found.append(path)
        elif path.is_dir():
            inside = sorted({p.parent for depth in ("*", "*/*", "*/*/*") for p in path.glob(f"{depth}/checkpoints")})
            if not inside:
                raise UserError(f"{path} holds no trained run: no folder in it has checkpoints.")
            found += inside
        else:
            matches = [Path(match) for match in sorted(glob.glob(str(path)))]
            trained = [match for match in matches if match.is_file() or _is_run(match)]
            if not trained:
                beside = sorted(entry.name for entry in path.parent.glob("*/") if _is_run(entry))
                hint = did_you_mean(path.name, beside) or (f" Runs there: {listing(beside)}." if beside else "")
                raise UserError(f"There is no run folder or checkpoint {path}.{hint}")
            found += trained
    return list(dict.fromkeys(found))


def open_run(path: Path, device: torch.device | str = "cpu") -> TrainedRun:
    """Load what `find_runs` found.

    Raises:
        UserError: no checkpoint, a corrupt or foreign one, or a config.yaml that cannot be read.
    """
    checkpoint = find_checkpoint(path)
    model = load_model(checkpoint, device)
    config_file = checkpoint.parent.parent / "config.yaml"
    if checkpoint.parent.name != "checkpoints" or not config_file.exists():
        return TrainedRun(path, checkpoint, model, None)
    try:
        config = OmegaConf.load(config_file)
    except Exception as error:  # YAML's and OmegaConf's errors have no common ancestor
        raise UserError(f"{config_file} cannot be read ({type(error).__name__}).") from error
    if not isinstance(config, DictConfig) or not isinstance(config.get("data"), DictConfig):
        raise UserError(f"{config_file} is not the configuration of a run: it has no section `data`.")
    return TrainedRun(path, checkpoint, model, config)


def check_classes(run: TrainedRun, data: Any) -> None:
    """Raise UserError unless the model was trained on both classes of a `data` configuration."""
    known = list(run.model.hparams["classes"])
    for name in data.classes:
        if name not in known:
            hint = did_you_mean(name, known)
            raise UserError(f"{run.path} was not trained on '{name}': its classes are {', '.join(known)}.{hint}")
