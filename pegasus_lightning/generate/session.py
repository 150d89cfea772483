"""What `generate` and `evaluate` open before they work: models, parents, pairs, the selecting recogniser."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from pegasus_lightning.data.batches import ImageSet
from pegasus_lightning.data.module import load_split
from pegasus_lightning.data.settings import data_settings, validate_data
from pegasus_lightning.generate.judge import Selector, open_selector
from pegasus_lightning.generate.mixing import mixing_of
from pegasus_lightning.generate.pairs import Pairs, Parents, choose_pairs, wanted_pairs
from pegasus_lightning.generate.pretrained import PretrainedModel, open_pretrained
from pegasus_lightning.generate.sampler import REFERENCE, Sampler
from pegasus_lightning.generate.settings import GenerateConfig
from pegasus_lightning.generate.two_files import notes, of_two_files, read_two_files
from pegasus_lightning.models.two_player import TwoPlayerModel
from pegasus_lightning.recognisers.store import RecogniserStore
from pegasus_lightning.runs.folder import NOT_IDENTITY
from pegasus_lightning.runs.trained import TrainedRun, find_trained, open_runs
from pegasus_lightning.utils.bars import waiting
from pegasus_lightning.utils.compose import plain
from pegasus_lightning.utils.devices import one_device
from pegasus_lightning.utils.errors import UserError, did_you_mean

MANY = 64  # pegasi, if no number is given
PARENTS_PER_CLASS = 1000  # decoded from drawn codes, if no images are given


@dataclass(frozen=True)
class Session:
    """What a command works on."""

    settings: Any  # a `GenerateConfig` or `EvaluateConfig`, with what the parents imply (two files are one pair)
    device: torch.device
    runs: list[TrainedRun]  # the models
    parents: Parents
    pairs: Pairs
    origin: dict[str, Any]  # where the parents come from, as it is recorded
    data: DictConfig | None = None  # the `data` configuration of the images that parents are taken from, if any
    split: ImageSet | None = None  # these images
    others: Parents | None = None  # images like the parents, if these are two files and such images are at hand
    pretrained: PretrainedModel | None = None  # the model that comes with the package, if it is used

    @cached_property
    def store(self) -> RecogniserStore:
        """The trained recognisers."""
        folder = self.settings.recognisers
        return RecogniserStore(None if folder is None else Path(folder).expanduser(), self.device)

    @cached_property
    def selector(self) -> Selector | None:
        """The recogniser that scores a search, trained now if need be; None: the model's critic scores it."""
        own = None if self.pretrained is None else self.pretrained.as_stored
        guided = self.settings.search.method == "guided"
        return open_selector(self.settings.score.judge, self.data, self.store, guided=guided, own=own)

    def notes(self) -> list[str]:
        """Return sentences about two image files that do not look like their class; none for other parents."""
        if "files" not in self.origin:
            return []
        return notes(self.parents, self.runs, self.store, self.pretrained)

    @property
    def judge_name(self) -> str:
        """The file of the recogniser that scores a search, or "critic", in records of what was asked."""
        return self.selector.stored.path.name if self.selector else "critic"

    def sampler(self, model: TwoPlayerModel) -> Sampler:
        """Return a sampler of one model over the pairs. Use it inside `model.inference()`."""
        return Sampler(model, self.parents, self.pairs, self.settings, self.others)


def open_session(settings: Any, data_overrides: Sequence[str], purpose: str) -> Session:
    """Open the models of a validated `GenerateConfig` or `EvaluateConfig`, and choose parents and pairs.

    `data_overrides` are such as `data=silhouettes`. `purpose` says what the images are for, to end the sentence "Say
    which to take ...". Raise UserError, before anything is written, if a run, device, class, image or pair is missing.
    """
    device = one_device(settings.gpus)
    with waiting("loading the model"):
        pretrained = None if settings.pretrained is None else open_pretrained(settings.pretrained, device)
        named = [] if pretrained is not None else find_trained(settings.run, settings.checkpoint)
        runs = open_runs(named, device) if pretrained is None else [pretrained.run]
    for run in runs:
        mixing_of(run.model, settings.pegasus)  # check all before any work begins
    if isinstance(settings, GenerateConfig) and settings.first is not None:
        parents, origin = read_two_files(runs, settings, data_overrides)
        settings = of_two_files(settings)
        pairs = choose_pairs(parents.first, parents.second, settings.search.pairs, method="random")
        others = None if pretrained is None else pretrained.sample_parents(REFERENCE // 2, settings.seed)
        return Session(settings, device, runs, parents, pairs, origin, others=others, pretrained=pretrained)
    if settings.count is None:
        settings = replace(settings, count=MANY)
    if isinstance(settings, GenerateConfig) and pretrained is not None and not data_overrides:
        parents = pretrained.sample_parents(PARENTS_PER_CLASS, settings.seed)
        settings = replace(settings, originals=False)  # there are none
        pairs = wanted_pairs(parents, settings)
        return Session(settings, device, runs, parents, pairs, {"codes": "drawn"}, pretrained=pretrained)
    data = common_data(runs, data_overrides, purpose)
    split = _load_common(runs, data, settings.split, data_overrides)
    parents = Parents.of(split)
    origin = {"split": settings.split} | images_of(data)
    pairs = wanted_pairs(parents, settings)
    return Session(settings, device, runs, parents, pairs, origin, data, split, pretrained=pretrained)


def common_data(runs: Sequence[TrainedRun], overrides: Sequence[str], purpose: str) -> DictConfig:
    """Return the `data` configuration of all runs, changed by overrides such as `data=silhouettes`, and validated.

    Raise UserError if none is known, they differ, or a model was not trained on its classes.
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
        for name in config.classes:
            if name not in run.classes:
                hint, own = did_you_mean(name, run.classes), ", ".join(run.classes)
                raise UserError(f"{run.path} was not trained on '{name}': its classes are {own}.{hint}")
    return config


def images_of(data: DictConfig) -> dict[str, Any]:
    """Return the fields of a `data` configuration that decide which images there are."""
    ways = ("batch_size", "flip", "validation_fraction", *NOT_IDENTITY["data"])
    return {key: value for key, value in plain(data).items() if key not in ways}


def _load_common(runs: Sequence[TrainedRun], config: DictConfig, split: str, overrides: Sequence[str]) -> ImageSet:
    try:
        return load_split(config, split)
    except UserError as error:
        moved = "" if overrides else f" {runs[0].path} had its images there; data.root=FOLDER says where they are now."
        raise UserError(f"{error}{moved}") from error
