"""The recogniser that scores a search: how recognisable and how realistic an image is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import torch
from omegaconf import DictConfig
from torch import Tensor

from pegasus_lightning.data.module import in_mixed_order, load_split
from pegasus_lightning.generate.pretrained import PRETRAINED, head_of_pretrained, open_pretrained
from pegasus_lightning.generate.scores import CriticScore, Recognise
from pegasus_lightning.models.two_player import TwoPlayerModel
from pegasus_lightning.recognisers import winged
from pegasus_lightning.recognisers.network import COMMITTEE, SELECTS, Recogniser
from pegasus_lightning.recognisers.store import RecogniserStore, StoredRecogniser
from pegasus_lightning.recognisers.training import standard_recipe, winged_recipe
from pegasus_lightning.utils.errors import UserError
from pegasus_lightning.utils.tensors import as_float, in_batches, to_float

BANK, HELD = 2000, 512  # training images that count as real, and others that give the scale of distances to them


@dataclass(frozen=True)
class Selector:
    """A recogniser that selects: `recognise` is what `Sampler.score` takes, `stored` where it comes from."""

    recognise: Recognise
    stored: StoredRecogniser
    words: str  # what it is, to end the sentence "judged by ..."


def open_selector(
    judge: str,
    data: DictConfig | None,
    store: RecogniserStore,
    *,
    guided: bool = False,
    own: StoredRecogniser | None = None,
) -> Selector | None:
    """Return the recogniser that scores a search; None: the model's critic scores it.

    A recogniser also gives realism: the distance of an image's features to the nearest of `BANK` training images, on
    the scale of other training images. A committee gives none, and the model's critic does: guided by features that
    give both, codes move to pictures that other recognisers take for neither class (experiments/pegasus has figures).

    Args:
        judge: `score.judge`. auto: a recogniser that is trained already; recogniser: trained now if need be;
            committee: two of other families, for guided searches; winged: the winged judges that guide, with
            `guided`, else the one that selects; critic.
        guided: whether the search climbs along the judge's gradient.
        data: the images to learn from; None: there are none, and a judge that needs them raises UserError.
        own: the winged judges of a pretrained model, which score for auto, and for winged if guided or without data.
    """
    if own is not None and (judge == "auto" or (judge == "winged" and (guided or data is None))):
        return Selector(
            lambda images: (own.recogniser(images), None), own, "the winged judges that come with the model"
        )
    if judge == "critic" or (judge == "auto" and data is None):
        return None
    if data is None:
        raise UserError(
            f"score.judge={judge} needs images to learn from: leave it out with first= and second=, or name data=... ."
        )
    if judge == "committee":
        committee = store.committee(data, COMMITTEE)
        return Selector(lambda images: (committee.recogniser(images), None), committee, "two recognisers")
    if judge == "winged":
        store = winged_store(store, data.classes)
        recipe = winged_recipe(SELECTS, winged.SELECTS)
        judges = store.winged_guides(data, COMMITTEE) if guided else store.get(data, recipe)
        words = "the winged judges that guide" if guided else "the winged judge that selects"
        return Selector(lambda images: (judges.recogniser(images), None), judges, words)
    if judge == "recogniser":
        return _with_realism(store.get(data, standard_recipe(SELECTS)), data, store)
    try:
        found = store.find(data, standard_recipe(SELECTS))
    except UserError:  # there are no training images: no recogniser in the store can be of this data
        return None
    return None if found is None else _with_realism(found, data, store)


def winged_store(store: RecogniserStore, classes: Sequence[str]) -> RecogniserStore:
    """Return a store whose winged judges know reconstructions of the models in the package that know the classes."""
    models: dict[str, Callable[[Tensor], Tensor]] = {}
    for name in PRETRAINED:
        known, digest = head_of_pretrained(name)
        if known == [*classes]:
            models[digest] = partial(_reconstruct, name, store.device)
    return replace(store, reconstruct=models)


@lru_cache(maxsize=1)
def _pretrained_model(name: str, device: torch.device | str) -> TwoPlayerModel:
    return open_pretrained(name, device).run.model


def _reconstruct(name: str, device: torch.device | str, images: Tensor) -> Tensor:
    model = _pretrained_model(name, device)
    with torch.no_grad(), model.inference():
        return model.reconstruct(as_float(images).to(model.device)).cpu()


def _with_realism(stored: StoredRecogniser, data: DictConfig, store: RecogniserStore) -> Selector:
    recogniser: Recogniser = stored.recogniser
    images = in_mixed_order(load_split(data, "train")).images.to(store.device)
    held = min(HELD, len(images) // 2)  # not in the bank, where each would be its own nearest neighbour
    with torch.no_grad():
        bank, others = (
            in_batches(recogniser.features, to_float(some)) for some in (images[:-held][:BANK], images[-held:])
        )
    realism = CriticScore(lambda features: -torch.cdist(features, bank).amin(1), others)

    def recognise(images: Tensor) -> tuple[Tensor, Tensor]:
        features = recogniser.features(images)
        return recogniser.classify(features), realism(features)

    return Selector(recognise, stored, "the selecting recogniser")
