"""What the page works on: one model, the parents that it offers, and the judge that improves mixes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from pegasus_lightning.data.own_images import read_images
from pegasus_lightning.data.room import with_room
from pegasus_lightning.demo.parents import Offer
from pegasus_lightning.export.model_files import ExportedModel
from pegasus_lightning.generate.judge import Selector, open_selector
from pegasus_lightning.generate.mixing import Mixes
from pegasus_lightning.generate.pairs import Parents, choose_pairs
from pegasus_lightning.generate.pretrained import PretrainedModel
from pegasus_lightning.generate.sampler import Sampler
from pegasus_lightning.generate.search import ascend
from pegasus_lightning.generate.settings import GENERATE, GUIDANCE, GenerateConfig
from pegasus_lightning.models.two_player import TwoPlayerModel
from pegasus_lightning.recognisers.store import RecogniserStore
from pegasus_lightning.recognisers.winged import chimera_name
from pegasus_lightning.utils.compose import typed
from pegasus_lightning.utils.tensors import to_float

ROW = 11  # pictures from one parent to the other
PRESET, PRESET_BY_PARTS = "guided", "guided_winged"  # of conf/search, for improving


@dataclass(frozen=True)
class Parent:
    """An image that can be mixed."""

    pixels: Tensor  # uint8 (3, 32, 32)
    origin: dict[str, Any]  # its index in its source, or its file


@dataclass(frozen=True)
class Choice:
    """What is mixed."""

    first: Parent
    second: Parent
    ratio: float = 0.5  # 0 is the first parent, 1 the second
    where: Tensor | None = None  # bool (32, 32): pixels where a limb may be; None: anywhere
    code: Tensor | None = None  # (latent_dim,), of an improved mix; None: the mix itself

    def with_(self, **changes: Any) -> Choice:
        """Return the choice with changes, which end an improvement."""
        return dataclasses.replace(self, **({"code": None} | changes))


class Improved(NamedTuple):
    """A step of `DemoSession.improve`."""

    step: int
    steps: int
    code: Tensor  # (latent_dim,), the best so far
    score: float  # of its picture
    seen: float | None  # product of the two probabilities that a recogniser gives that; None: there is no recogniser


@dataclass(frozen=True)
class DemoSession:
    """One model with its parents. Its methods may be called by several threads."""

    model: TwoPlayerModel | ExportedModel  # in eval mode
    name: str
    path: Path  # as the user named it
    classes: tuple[str, str]
    offer: Offer
    store: RecogniserStore
    data: Any = None  # the `data` configuration of the images that parents are taken from, if any
    pretrained: PretrainedModel | None = None

    @property
    def by_parts(self) -> bool:
        """Whether the model has learned to mix by parts."""
        return self.model.mixer is not None

    @property
    def batches_done(self) -> int:
        """The batches that the model was trained on."""
        model = self.model
        return int(model.about["batches_done"]) if isinstance(model, ExportedModel) else model.batches_done

    def offered(self, label: int, page: int) -> list[Parent]:
        """Return parents of one class (0 or 1) to choose from; each page has others."""
        return self.numbered(label, self.offer.numbers(label, page))

    @torch.no_grad()
    def numbered(self, label: int, numbers: list[int]) -> list[Parent]:
        """Return parents of one class by their numbers. Raise IndexError for numbers that there are not."""
        pixels = self.offer.images(label, numbers)
        return [Parent(image, {"index": number}) for image, number in zip(pixels, numbers, strict=True)]

    def read(self, path: Path) -> Parent:
        """Return a picture of any size. Raise UserError if it cannot be used."""
        pixels = (read_images(path)[0] * 255).round().to(torch.uint8)
        return Parent(pixels, {"file": path.name})

    @torch.no_grad()
    def code(self, parent: Parent) -> Tensor:
        """Return the mean code of a parent, (1, latent_dim)."""
        mean: Tensor = self.model.encode(to_float(parent.pixels[None]).to(self.model.device)).mean
        return mean

    @torch.no_grad()
    def codes(self, choice: Choice, ratios: Sequence[float]) -> Tensor:
        """Return the mixed codes at `ratios`, (R, latent_dim)."""
        start, end = (self.code(parent).expand(len(ratios), -1) for parent in (choice.first, choice.second))
        options: dict[str, Any] = {}
        if choice.where is not None and self.by_parts:
            options = {"where": choice.where[None, None].to(start.device)}
        mixed: Tensor = self.model.mix(start, end, torch.tensor(ratios).to(start), **options)
        return mixed

    @torch.no_grad()
    def pictures(self, choice: Choice, ratios: Sequence[float]) -> Tensor:
        """Return the decoded mixes at `ratios`, (R, 3, 32, 32), without an improvement."""
        decoded: Tensor = self.model.decode(self.codes(choice, ratios))
        return decoded.cpu()

    @torch.no_grad()
    def picture(self, choice: Choice) -> Tensor:
        """Return the chosen mix, or its improvement, (3, 32, 32)."""
        if choice.code is None:
            return self.pictures(choice, [choice.ratio])[0]
        decoded: Tensor = self.model.decode(choice.code[None].to(self.model.device))
        return decoded[0].cpu()

    @torch.no_grad()
    def ground(self, parent: Parent) -> Tensor:
        """Return the picture that a model that mixes by parts puts a limb on, (3, 32, 32)."""
        decoded: Tensor = self.model.decode(self.code(parent))
        return with_room(decoded)[0].cpu()

    @cached_property
    def guidance(self) -> GenerateConfig:
        """The settings of the ascent, from a preset of `generate`."""
        preset = PRESET_BY_PARTS if self.by_parts and self.pretrained is not None else PRESET
        settings = typed(GENERATE.compose([f"search={preset}"]), GenerateConfig)
        return dataclasses.replace(settings, score=dataclasses.replace(settings.score, judge="auto"))

    @cached_property
    def selector(self) -> Selector | None:
        """The recogniser that guides; None: the model's critic does. None is trained for it."""
        own = None if self.pretrained is None else self.pretrained.as_stored
        return open_selector("auto", self.data, self.store, guided=True, own=own)

    @property
    def sought(self) -> str:
        """What a recogniser looks for, in words."""
        first, second = self.classes
        return chimera_name(self.classes) if self.pretrained is not None else f"both {first} and {second}"

    @property
    def can_improve(self) -> bool:
        """Whether the model can be guided at all: an export has no critic."""
        return not isinstance(self.model, ExportedModel)

    def why_not_improved(self) -> str | None:
        """Return why nothing can guide an ascent, as a sentence; None: something can."""
        if isinstance(self.model, ExportedModel):
            return "An export has no critic to improve a mix with: name the run itself, with run=RUN."
        if self.selector is None and self.model.critic is None:
            return "This model has no critic, and no recogniser of its images is trained yet."
        if self.selector is None and not self.model.config.sample_codes and self.offer.others() is None:
            return (
                "This model's critic needs images to compare with, and the run's are not there: say data.root=FOLDER."
            )
        return None

    def improve(self, choice: Choice) -> Iterator[Improved]:
        """Climb from the chosen picture, and yield each step. The caller may stop at any one."""
        model, settings = cast(TwoPlayerModel, self.model), self.guidance
        with torch.no_grad():
            parents = Parents(choice.first.pixels[None], choice.second.pixels[None], self.classes)
            pair = choose_pairs(parents.first, parents.second, 1, method="random")
            sampler = Sampler(model, parents, pair, settings, self.offer.others())
            score = sampler.score(self.selector.recognise if self.selector else None)
            code = self.codes(choice, [choice.ratio]) if choice.code is None else choice.code[None].to(model.device)
            first, second = sampler.mixer.parents
            start = Mixes(code, model.decode(code), first, second, torch.tensor([choice.ratio]).to(code))
            critic, prior = sampler.critic, sampler.prior()
        options = {name: getattr(settings.search, name) for name in GUIDANCE}
        best = -math.inf
        told: tuple[float, float | None] = (0.0, None)
        for number, step in enumerate(ascend(start, model.decode, score, critic=critic, prior=prior, **options)):
            if step.best.item() > best:
                best, told = step.best.item(), (step.score.item(), self._seen(step.images))
            yield Improved(number, settings.search.steps, step.best_codes[0].cpu(), *told)

    @torch.no_grad()
    def _seen(self, images: Tensor) -> float | None:
        if self.selector is None:
            return None
        return torch.sigmoid(self.selector.recognise(images)[0][0]).prod().item()
