"""Two image files as the parents of `generate first=... second=...`: many mixes of one pair, and notes about them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pegasus_lightning.data.image_folder import read_image
from pegasus_lightning.generate.pairs import Parents
from pegasus_lightning.generate.pretrained import PretrainedModel
from pegasus_lightning.generate.settings import GenerateConfig
from pegasus_lightning.recognisers.network import REPORTS, SELECTS, predict
from pegasus_lightning.recognisers.store import RecogniserStore
from pegasus_lightning.recognisers.training import standard_recipe
from pegasus_lightning.runs.trained import TrainedRun
from pegasus_lightning.utils.errors import UserError

DRAWS, KEPT = 64, 8  # mixes that are tried without a search, and the best of them that are kept by default
UNLIKELY, LIKELY = 0.2, 0.8  # probabilities: one horse in twenty of CIFAR-10 lies below the first


def of_two_files(settings: GenerateConfig) -> GenerateConfig:
    """Return the settings with what two files imply: without a search, the best of DRAWS mixes of the one pair."""
    count = settings.count or KEPT
    search = replace(settings.search, most_per_parent=None)
    if search.method == "none":
        search = replace(search, method="best_of", pairs=max(DRAWS, count), ratios=1)
    return replace(settings, count=count, search=search, pegasus=replace(settings.pegasus, pairs="files"))


def read_two_files(
    runs: Sequence[TrainedRun], settings: GenerateConfig, overrides: Sequence[str]
) -> tuple[Parents, dict[str, Any]]:
    """Return two image files as the only parents, and the record of it. Raise UserError if they cannot be used."""
    if overrides:
        raise UserError("first= and second= are the parents: leave data out.")
    for run in runs:
        if run.classes != runs[0].classes:
            raise UserError(f"{runs[0].path} and {run.path} were trained on different classes: take one at a time.")
        if settings.search.method == "guided" and not run.model.config.sample_codes:
            raise UserError(f"{run.path} is not guided by two images: its codes are not sampled. Leave search out.")
    paths = [Path(str(name)).expanduser() for name in (settings.first, settings.second)]
    first, second = (torch.tensor(read_image(path))[None] for path in paths)
    classes = runs[0].classes
    return Parents(first, second, (classes[0], classes[1])), {"files": [str(path) for path in paths]}


def notes(
    parents: Parents, runs: Sequence[TrainedRun], store: RecogniserStore, pretrained: PretrainedModel | None
) -> list[str]:
    """Return sentences about parents that do not look like their class, to a recogniser that is at hand; none: [].

    The judges of a pretrained model know the first class alone: of the second picture they say if it looks like that.
    """
    first, second = parents.classes
    images = torch.cat([parents.first, parents.second])
    if pretrained is not None:
        found = predict(torch.nn.Sequential(pretrained.committee, torch.nn.Sigmoid()), images, store.device)[:, 0]
        told = [f"the first picture does not look like {_a(first)}"] if found[0] < UNLIKELY else []
        told += [f"the second picture looks like {_a(first)}, not like {_a(second)}"] if found[1] > LIKELY else []
        return told
    seen = _by_the_store(images, runs, store)
    if seen is None:
        return []
    named = (("first", first, seen[0, 0]), ("second", second, seen[1, 1]))
    return [f"the {place} picture does not look like {_a(name)}" for place, name, p in named if p < UNLIKELY]


def _by_the_store(images: Tensor, runs: Sequence[TrainedRun], store: RecogniserStore) -> Tensor | None:
    """Return the probabilities (N, 2) of a recogniser of a run's images; None if none is trained."""
    for run in [run for run in runs if run.config is not None and list(run.config.data.classes) == run.classes]:
        for role in (SELECTS, REPORTS):
            with suppress(UserError):  # its images are gone
                if (stored := store.find(run.config.data, standard_recipe(role))) is not None:  # type: ignore[union-attr]
                    return predict(stored.recogniser.probabilities, images, store.device)
    return None


def _a(name: str) -> str:
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"
