"""The parents that the page offers: images of a data source, codes that come with a model, or draws from the prior."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from pegasus_lightning.data.parts import fit_to_mix
from pegasus_lightning.export.model_files import ExportedModel
from pegasus_lightning.generate.pairs import Parents
from pegasus_lightning.generate.pretrained import PretrainedModel
from pegasus_lightning.models.two_player import TwoPlayerModel
from pegasus_lightning.utils.randomness import Stream, generator

OFFERED = 12  # parents of a class on a page
OTHERS = 64  # of a class, for the statistics of a critic


class Offer(ABC):
    """Parents of two classes, in pages of `OFFERED`.

    `origin` is where they come from, as it is recorded; with it, a class and a number, a parent can be made again.
    `words` say it, to end the sentence "Parents are ...".
    """

    origin: dict[str, Any]
    words: str

    @abstractmethod
    def numbers(self, label: int, page: int) -> list[int]:
        """Return the numbers of the parents of a class (0 or 1) on a page."""

    @abstractmethod
    def images(self, label: int, numbers: list[int]) -> Tensor:
        """Return parents of a class, uint8 (N, 3, 32, 32). Raise IndexError for numbers that there are not."""

    def others(self) -> Parents | None:
        """Return some parents of both classes; None if nothing tells the classes apart."""
        return None


class OfImages(Offer):
    """Images of a split in an order that the seed decides, those that make good chimeras first if asked for."""

    def __init__(self, parents: Parents, origin: dict[str, Any], words: str, seed: int, *, fit: bool) -> None:
        self.parents, self.origin, self.words = parents, origin, words
        self.orders = []
        chosen = fit_to_mix(parents.first, parents.second) if fit else (torch.zeros(0), torch.zeros(0))
        for label, (images, good) in enumerate(zip((parents.first, parents.second), chosen, strict=True)):
            order = torch.randperm(len(images), generator=generator(seed, Stream.PAIRS, label))
            is_good = torch.isin(order, good)
            self.orders.append(torch.cat([order[is_good], order[~is_good]]))

    def numbers(self, label: int, page: int) -> list[int]:
        return _page(self.orders[label], page)

    def images(self, label: int, numbers: list[int]) -> Tensor:
        return (self.parents.first, self.parents.second)[label][numbers]

    def others(self) -> Parents | None:
        first, second = (self.images(label, self.orders[label][:OTHERS].tolist()) for label in (0, 1))
        return Parents(first, second, self.parents.classes)


class OfCodes(Offer):
    """Decoded means of the posteriors that come with a pretrained model."""

    def __init__(self, pretrained: PretrainedModel, seed: int) -> None:
        self.pretrained = pretrained
        self.origin = {"codes": "means", "near": "training images"}
        self.words = "decoded from codes that come with the model, each near that of a training image"
        self.orders = [
            torch.randperm(len(means), generator=generator(seed, Stream.PAIRS, label))
            for label, (means, _) in enumerate(pretrained.codes)
        ]

    def numbers(self, label: int, page: int) -> list[int]:
        return _page(self.orders[label], page)

    def images(self, label: int, numbers: list[int]) -> Tensor:
        return _decoded(self.pretrained.run.model, self.pretrained.codes[label][0][numbers])

    def others(self) -> Parents | None:
        first, second = (self.images(label, self.orders[label][:OTHERS].tolist()) for label in (0, 1))
        names = self.pretrained.run.classes
        return Parents(first, second, (names[0], names[1]))


class OfPrior(Offer):
    """Images decoded from z ~ N(0, I), which are of no class."""

    def __init__(self, model: TwoPlayerModel | ExportedModel, seed: int) -> None:
        self.model, self.seed = model, seed
        self.origin = {"prior": "N(0, I)", "seed": seed}
        self.words = "drawn from the model's prior, and may show neither class: there are no images"

    def numbers(self, label: int, page: int) -> list[int]:
        return [OFFERED * (2 * page + label) + number for number in range(OFFERED)]

    def images(self, label: int, numbers: list[int]) -> Tensor:
        latent_dim = self.model.config.networks.latent_dim
        noise = [torch.randn(latent_dim, generator=generator(self.seed, Stream.PRIOR, number)) for number in numbers]
        return _decoded(self.model, torch.stack(noise))


def _page(order: Tensor, page: int) -> list[int]:
    """Return the numbers on a page, in rounds through all of them."""
    return order[torch.arange(page * OFFERED, (page + 1) * OFFERED)[: len(order)] % len(order)].tolist()


def _decoded(model: TwoPlayerModel | ExportedModel, codes: Tensor) -> Tensor:
    return (model.decode(codes.to(model.device)) * 255).round().to(torch.uint8).cpu()
