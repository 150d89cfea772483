"""What `generate` and `evaluate` open before they work: runs, data, parents."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from pegasus_lightning.data.batches import ImageSet
from pegasus_lightning.data.module import load_split
from pegasus_lightning.data.settings import data_settings, validate_data
from pegasus_lightning.generate.pairs import Parents
from pegasus_lightning.runs.folder import NOT_IDENTITY
from pegasus_lightning.runs.trained import TrainedRun
from pegasus_lightning.utils.compose import plain
from pegasus_lightning.utils.errors import UserError, did_you_mean


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


def two_files(
    runs: list[TrainedRun], settings: dict[str, Any], overrides: Sequence[str]
) -> tuple[Parents, dict[str, Any]]:
    """Two image files as the only parents, and how that is recorded."""
    from pegasus_lightning.data.image_folder import read_image

    if overrides:
        raise UserError("first= and second= are the parents: leave data out.")
    for run in runs:
        if run.classes != runs[0].classes:
            raise UserError(f"{runs[0].path} and {run.path} were trained on different classes: take one at a time.")
        if settings["search"]["method"] != "none" and not run.model.config.sample_codes:
            raise UserError(f"{run.path} is not searched: its codes are not sampled, so two images have few mixes.")
    paths = [Path(settings[key]).expanduser() for key in ("first", "second")]
    first, second = (torch.tensor(read_image(path))[None] for path in paths)
    classes = runs[0].classes
    return Parents(first, second, (classes[0], classes[1])), {"files": [str(path) for path in paths]}
