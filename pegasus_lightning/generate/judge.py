"""The recogniser that a search is scored by, where one is trained: recognisability times realism."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from pegasus_lightning.data.module import in_mixed_order, load_split
from pegasus_lightning.generate.pretrained import PretrainedModel
from pegasus_lightning.generate.scores import CriticScore, Recognise
from pegasus_lightning.recognisers.network import COMMITTEE, SELECTS
from pegasus_lightning.recognisers.store import StoredRecogniser, committee_for, find_recogniser, recogniser_for
from pegasus_lightning.utils.errors import UserError
from pegasus_lightning.utils.tensors import in_batches, to_float

BANK, HELD = 2000, 512  # training images that a search takes for real, and others that say how near real ones lie


def store(settings: dict[str, Any]) -> Path | None:
    """The folder of trained recognisers; None for the one in the user's cache."""
    return None if settings["recognisers"] is None else Path(settings["recognisers"]).expanduser()


@dataclass(frozen=True)
class Selector:
    """A recogniser that selects.

    Args:
        look: what `Sampler.score` takes.
        stored: the recogniser.
    """

    look: Recognise
    stored: StoredRecogniser


def selector(
    settings: dict[str, Any],
    data: DictConfig | None,
    device: torch.device,
    guide: dict[str, Any] | None = None,
    shipped: PretrainedModel | None = None,
) -> Selector | None:
    """The recogniser that a search is to be scored by; None where the model's critic has to do.

    With `score.judge=auto` it is one that was trained before; with `recogniser` it is trained now if it must be, with
    `committee` the several that guide a model in its training (`recogniser_store.committee_for`) are. A recogniser's
    realism is how near an image's features lie to the nearest of `BANK` training images, beside how near others lie.
    Of a committee, which climbs much higher, the model's critic says it: features that one asks for both classes and
    for realism too lead to pictures that please a stranger less (experiments/pegasus has both).

    Args:
        guide: a `GuideConfig` as a plain dict, the models' own; None: the usual committee.
        shipped: a model that comes with the package: its own committee judges, unless another is asked for.

    Raises:
        UserError: a recogniser is asked for, and there is no data to train it on.
    """
    judge = settings["score"]["judge"]
    if shipped is not None and judge in ("auto", "committee"):
        return Selector(
            lambda images: (shipped.committee(images), None), StoredRecogniser(shipped.committee, shipped.run.path, {})
        )
    if judge == "critic" or (judge == "auto" and data is None):
        return None
    if data is None:
        raise UserError(
            f"score.judge={judge} needs images to learn from: leave it out with first= and second=, or name data=... ."
        )
    stored: StoredRecogniser | None
    if judge == "recogniser":
        stored = recogniser_for(data, SELECTS, device=device, folder=store(settings))
    elif judge == "committee":
        own = guide or {"architectures": COMMITTEE, "images": None}
        stored = committee_for(data, own["architectures"], images=own["images"], device=device, folder=store(settings))
    else:
        try:
            stored = find_recogniser(data, SELECTS, device=device, folder=store(settings))
        except UserError:  # no training images are there: none of the recognisers can be theirs
            return None
    if stored is None:
        return None
    recogniser = stored.recogniser
    if judge == "committee":
        return Selector(lambda images: (recogniser(images), None), stored)
    images = in_mixed_order(load_split(data, "train")).images.to(device)
    held = min(HELD, len(images) // 2)  # none of them in the bank, where each would be its own nearest
    with torch.no_grad():
        bank, others = (
            in_batches(recogniser.features, to_float(some)) for some in (images[:-held][:BANK], images[-held:])
        )
    realism = CriticScore(lambda features: -torch.cdist(features, bank).amin(1), others)

    def look(images: Tensor) -> tuple[Tensor, Tensor]:
        features = recogniser.features(images)
        return recogniser.classify(features), realism(features)

    return Selector(look, stored)
