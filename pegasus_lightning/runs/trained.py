"""Trained runs: find them and open them with their model and configuration."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pegasus_lightning.data.settings import DATA_SCHEMAS, validate_data
from pegasus_lightning.models.two_player import TwoPlayerModel
from pegasus_lightning.runs.checkpoints import BEST, find_checkpoint, load_model
from pegasus_lightning.runs.folder import RunName, find_runs
from pegasus_lightning.utils.errors import UserError
from pegasus_lightning.utils.foreign import Unreadable, is_inside, read_yaml

CHECKPOINTS = ("last", "best")  # of a run that can be asked for
UNTOUCHED = {"cache": None, "download": False}  # of the section `data` of a run that is only read

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


def find_trained(places: Sequence[str], checkpoint: str = "last") -> list[Path]:
    """Return the run folders with a checkpoint, and the checkpoint files, in `places`; see `find_runs`.

    With `checkpoint="best"` return the `best.ckpt` of each run, that of its best validation. A run without a checkpoint
    (in its first epoch, or failed) is left out with a warning, unless it was named itself. Raise UserError if a place
    is missing, or holds nothing trained.
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
    found = list(dict.fromkeys(found))
    return [_best_of(path) for path in found] if checkpoint == "best" else found


def _best_of(run: Path) -> Path:
    if run.is_file():
        raise UserError(f"{run} is one checkpoint, and the best is chosen among those of a run: name the run's folder.")
    best = run / "checkpoints" / BEST
    if not best.exists():
        raise UserError(
            f"{run} has no {BEST}: an earlier release trained it, or it has not been validated. Take its last."
        )
    return best


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
    if not is_inside(config_file, home):
        raise UserError(f"{config_file} is a link out of the run's folder: put the file itself there.")
    config = _configuration(config_file)
    return TrainedRun(path, checkpoint, model, config, RunName.parse(home.name).caption(config.data.get("source")))


def _configuration(path: Path) -> DictConfig:
    """Return the configuration of a run that is read: its images are neither downloaded nor cached where it says."""
    try:
        content = read_yaml(path, object)
    except Unreadable as error:
        raise UserError(f"{path} cannot be read (it {error.reason}).") from error
    data, seed = (content.get(key) if isinstance(content, dict) else None for key in ("data", "seed"))
    if not isinstance(data, dict):
        raise UserError(f"{path} is not the configuration of a run: it has no section `data`.")
    if type(seed) is not int:
        raise UserError(f"{path} is damaged: its seed is {seed!r:.40}, and not a whole number.")
    schema = DATA_SCHEMAS.get(str(data.get("source")))
    if schema is not None:
        try:
            validate_data(OmegaConf.merge(OmegaConf.structured(schema), data))
        except (OmegaConfBaseException, UserError, ValueError, TypeError) as error:
            reason = str(error).splitlines()[0].removesuffix(".")  # the others are OmegaConf's own words
            raise UserError(f"{path} is damaged, in its section `data`: {reason}.") from error
    content["data"] = data | {key: value for key, value in UNTOUCHED.items() if key in data}
    return OmegaConf.create(content)


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
