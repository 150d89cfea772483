"""Trained runs, found and opened again: their model, their configuration, the data they know."""

from __future__ import annotations

import glob
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from pegasus_lightning.data.batches import ImageSet
from pegasus_lightning.data.common import listing
from pegasus_lightning.data.module import load_split
from pegasus_lightning.models.settings import validate_data
from pegasus_lightning.models.two_player import TwoPlayerModel
from pegasus_lightning.runs.checkpoints import find_checkpoint, load_model
from pegasus_lightning.runs.folder import NOT_IDENTITY
from pegasus_lightning.train.settings import plain
from pegasus_lightning.utils.compose import data_settings
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


def common_data(runs: Sequence[TrainedRun], overrides: Sequence[str], purpose: str) -> DictConfig:
    """The one `data` configuration that all runs were trained on, with overrides such as `data=silhouettes`; validated.

    Args:
        purpose: ends the sentence "Say which to take ...", such as "parents from".

    Raises:
        UserError: none is known, they differ, or a model was not trained on its classes.
    """
    known = [run.config.data for run in runs if run.config is not None]
    if not known and not overrides:
        raise UserError(
            f"{runs[0].path} is a checkpoint on its own, which does not say where images come from: add for "
            "example data=silhouettes, or data=image_folder data.root=FOLDER."
        )
    if not overrides and any(images_of(data) != images_of(known[0]) for data in known):
        raise UserError(
            f"These runs were trained on different data. Say which to take {purpose}, as in data=SOURCE, or name fewer."
        )
    config = data_settings(known[0] if known else None, overrides)
    assert config is not None
    validate_data(config)
    for run in runs:
        check_classes(run, config)
    return config


def common_guide(runs: Sequence[TrainedRun]) -> dict[str, Any] | None:
    """The `model.guide` that all runs have alike; None where one has none or another."""
    guides = [None if run.config is None else plain(run.config).get("model", {}).get("guide") for run in runs]
    return guides[0] if all(guide == guides[0] for guide in guides) else None


def load_common(runs: Sequence[TrainedRun], config: DictConfig, split: str, overrides: Sequence[str]) -> ImageSet:
    """One split of `common_data`. Raises UserError where it is not to be had, or no longer."""
    try:
        return load_split(config, split)
    except UserError as error:
        moved = "" if overrides else f" {runs[0].path} had its images there; data.root=FOLDER says where they are now."
        raise UserError(f"{error}{moved}") from error


def images_of(data: DictConfig) -> dict[str, Any]:
    """What of a data configuration decides which images there are."""
    ways = ("batch_size", "flip", "validation_fraction", *NOT_IDENTITY["data"])
    return {key: value for key, value in plain(data).items() if key not in ways}


def check_classes(run: TrainedRun, data: Any) -> None:
    """Raise UserError unless the model was trained on both classes of a `data` configuration."""
    for name in data.classes:
        if name not in run.classes:
            hint = did_you_mean(name, run.classes)
            raise UserError(f"{run.path} was not trained on '{name}': its classes are {', '.join(run.classes)}.{hint}")
