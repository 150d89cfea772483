"""The model `pegasus` of this project: an adversarial VAE whose mixing of two codes by parts is taught by examples."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pegasus_lightning.data.augmentation import NUMBERS as OPERANDS
from pegasus_lightning.data.augmentation import augment
from pegasus_lightning.data.lessons import Lessons
from pegasus_lightning.data.room import with_room
from pegasus_lightning.models import losses
from pegasus_lightning.models.losses import Term, blind_loss
from pegasus_lightning.models.mixing_network import (
    SHARPNESS,
    UNKNOWN,
    Limb,
    MixNetwork,
    mix_by_parts,
    put_on,
)
from pegasus_lightning.models.moves import NUMBERS, came_from_inside, move, random_affine
from pegasus_lightning.models.networks import final_side
from pegasus_lightning.models.settings import BALANCED, DEFAULT_TASK, ModelConfig
from pegasus_lightning.models.two_player import Step, TwoPlayerModel
from pegasus_lightning.utils.randomness import Stream, derived_seed
from pegasus_lightning.utils.tensors import IMAGE_SIZE, to_float

SHOWN = ("target", "mix")  # kinds of fakes beside reconstructions


@dataclass
class PegasusWeights:
    reconstruction: float = 1.0  # pixel term of the images
    kl: float = 1.0
    target: float = 0.3  # pixel term of the reconstructed targets of lessons
    limb: float = 2.0  # further weight of the limb's pixels in it
    root: float = 1.0  # these three teach the mixing network: cross-entropy of the place where the limb grows,
    alpha: float = 0.1  # cross-entropy of the limb's alpha, summed over the pixels,
    colour: float = 1.0  # and squared error of its colours
    moves: float = 0.0  # pixel term of images that are decoded from moved codes
    adversarial: float = 1.0
    critic_real: float = 1.0
    critic_fake: float = 1.0
    fake_reconstruction: float = 1.0  # these three: shares of the kinds of fakes in both players' terms
    fake_target: float = 0.2
    fake_mix: float = 0.2


@dataclass
class PegasusModelConfig(ModelConfig):
    name: str = "pegasus"
    critic_tells: ClassVar[str | None] = DEFAULT_TASK
    learned_mixing: bool = False  # codes are mixed by a MixNetwork; else linearly
    lessons: int = 16384  # number of lessons, of which each batch takes some:
    lesson_share: float = 0.25  # lessons in a batch, as a share of its images,
    target_share: float = 0.125  # and those whose targets are reconstructed
    mix_share: float = 0.0625  # pairs of a batch's images that are mixed and decoded, as a share
    move_share: float = 0.125  # images of a batch whose codes are moved and decoded, as a share
    mirror_moves: bool = False  # half of the moves mirror
    mix_ratio: list[float] = field(default_factory=lambda: [0.3, 0.7])  # range of ratios of linear mixes in training
    weights: PegasusWeights = field(default_factory=PegasusWeights)


class BatchLessons(NamedTuple):
    """The lessons of a batch: images (T, 3, 32, 32) in [0, 1], alpha of the targets' limbs (T, 1, 32, 32), and the
    places of the code (T,) where these grow."""

    first: Tensor
    second: Tensor
    targets: Tensor
    limbs: Tensor
    roots: Tensor


@dataclass
class PegasusStep(Step):
    """A step with its lessons and moves."""

    lessons: BatchLessons | None = None
    limb: Limb | None = None  # what the mixing network draws for them
    matrices: Tensor | None = None  # random moves of the first images, (M, 2, 3)
    extra_logits: dict[str, Tensor] = field(default_factory=dict)  # decoded beside the reconstructions, by kind
    mixed: Tensor | None = None  # indices of the mixes' first parents in the batch, (P,)
    partners: dict[str, Tensor] = field(default_factory=dict)  # by kind: each fake's image, as an index into `real`


class Pegasus(TwoPlayerModel):
    """An adversarial VAE that learns from examples to mix two codes by parts.

    A lesson is an image of each class and the composition that their mix should look like (`data/lessons.py`). L is the
    limb that the mixing network draws for a lesson, with its root where the target has it. T are targets, M the mixes
    of pairs of the batch's images at ratio 1/2. What the mixing network reads is encoded without gradients.

    autoencoder: pixel terms of the reconstructions of x and T, where the limb's pixels weigh more + KL
        + cross-entropies of the place where the limb grows and of alpha + squared error of its colours
        + pixel term of decode(move(z)) against move(x)
        + sum of shares * adversarial terms of the fakes
    critic: images from fakes, which are reconstructions of x and T, and M, each kind with its share. A relativistic
        critic compares each reconstruction with its image, and M with compositions.

    Without learned mixing there are no lessons, and M are linear mixes.

    Compositions as teachers: Dwibedi et al. 2017 (arXiv 1708.01642). Mixes among the critic's fakes: Beckham et al.
    2019 (arXiv 1903.02709). Codes that can be moved: Kouzelis et al. 2025 (arXiv 2502.09509).
    """

    Config = PegasusModelConfig
    lessons: Lessons | None = None

    def __init__(self, config: Any = None, **keywords: Any) -> None:
        super().__init__(config, **keywords)
        if self.config.learned_mixing:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(derived_seed(self.seed, Stream.WEIGHTS, 1))
                self.mixer = MixNetwork(self.config.networks)
            if self.averaged is not None:
                self.averaged["mixer"] = copy.deepcopy(self.mixer).requires_grad_(False)

    @cached_property
    def autoencoder_parameters(self) -> list[nn.Parameter]:
        """Parameters of encoder, decoder and mixing network."""
        more = [] if self.mixer is None else list(self.mixer.parameters())
        return [*self.encoder.parameters(), *self.decoder.parameters(), *more]

    def on_fit_start(self) -> None:
        """Move the lessons to the model's device. Raise RuntimeError if there are none to learn mixing from."""
        if self.lessons is not None:
            object.__setattr__(self, "lessons", self.lessons.to(self.device))
        elif self.config.learned_mixing:
            raise RuntimeError("learned mixing needs lessons, and the model has none (see `train.trainer`)")

    def mix(self, first: Tensor, second: Tensor, ratios: Tensor, where: Tensor | None = None) -> Tensor:
        """Return codes between `first` and `second`. `where` says where a limb may be (`mix_by_parts`), if learned."""
        if self.mixer is None:
            return super().mix(first, second, ratios)
        network = cast(MixNetwork, self._network("mixer"))
        return mix_by_parts(network, lambda images: self.encode(images).mean, self.decode, first, second, ratios, where)

    def forward_batch(self, images: Tensor, labels: Tensor | None = None) -> Step:
        count, pairs = len(images), self._pairs(labels, len(images))
        lessons = self._lessons_of_batch(_share(self.config.lesson_share, count))
        few = _share(self.config.target_share, count)
        posterior = self.encode(images if lessons is None else torch.cat([images, lessons.targets[:few]]))
        drawn = posterior.sample_with(self.draw(Stream.NOISE, *posterior.mean.shape))
        codes = drawn[:count]
        parts = {"reconstruction": codes}
        kept: dict[str, Any] = {}  # fields of the step
        if lessons is None:
            low, high = self.config.mix_ratio
            ratios = low + (high - low) * self.draw(Stream.MIXING, len(pairs[0]), uniform=True)
            parts["mix"] = self.mix(codes[pairs[0]], codes[pairs[1]], ratios)
        else:
            pictures = with_room(torch.cat([lessons.first, images[pairs[0]]]))
            with torch.no_grad():
                shown = torch.cat([pictures, lessons.second])
                first, second = self.encode(shown).mean.split([len(pictures), len(lessons.second)])
            others = torch.cat([second, codes[pairs[1]].detach()])
            limb = self.mixer(first, others, F.pad(lessons.roots, (0, len(pairs[0])), value=UNKNOWN))
            kept = {"lessons": lessons, "limb": Limb(*(some[: len(second)] for some in limb))}
            of_pairs = Limb(*(some[len(second) :] for some in limb))
            parts["mix"] = self.encode(put_on(pictures[len(second) :], of_pairs, SHARPNESS)).mean
            parts["target"] = drawn[count:]
        if self.config.weights.moves:
            kept["matrices"] = self._moves(count)
            maps = codes[: len(kept["matrices"])].unflatten(1, (-1, *[self._side] * 2))
            parts["moved"] = move(maps, kept["matrices"]).flatten(1)
        logits = self.decode_logits(torch.cat(list(parts.values()))).split([len(part) for part in parts.values()])
        decoded = dict(zip(parts, logits, strict=True))
        own = decoded.pop("reconstruction")
        step = PegasusStep(images, posterior, codes, own, labels, extra_logits=decoded, mixed=pairs[0], **kept)
        step.extra_images = {kind: torch.sigmoid(decoded[kind].float()) for kind in SHOWN if kind in decoded}
        self.show_critic(step)
        return step

    def _lessons_of_batch(self, count: int) -> BatchLessons | None:
        """Return `count` lessons for this batch, drawn with replacement; None: none are used.

        Both images are mirrored at random, and the target with the first one.
        """
        if not self.config.learned_mixing:
            return None
        assert self.lessons is not None
        uniforms = self.draw(Stream.LESSONS, count, 3, uniform=True)
        chosen = (uniforms[:, 0] * len(self.lessons)).long().clamp(max=len(self.lessons) - 1)
        mirrored = (uniforms[:, 1:] < 0.5)[:, :, None, None, None]
        drawn = [to_float(kind[chosen]) for kind in list(self.lessons)[:4]]
        which = (0, 1, 0, 0)
        first, second, targets, limbs = (
            torch.where(mirrored[:, i], kind.flip(3), kind) for i, kind in zip(which, drawn, strict=True)
        )
        column, row = self.lessons.roots[chosen].unbind(1)
        column = torch.where(mirrored[:, 0].flatten(), IMAGE_SIZE - 1 - column, column)
        size = IMAGE_SIZE // self._side  # of a place, in pixels
        return BatchLessons(first, second, targets, limbs, row // size * self._side + column // size)

    def _pairs(self, labels: Tensor | None, count: int) -> tuple[Tensor, Tensor]:
        """Return pairs of images of different classes, (P,) indices each, as far as the batch has them.

        Of a batch with fewer, further pairs are of one class. Classes are not counted, because that would synchronise
        a GPU.
        """
        labels = torch.zeros(count, dtype=torch.int64, device=self.device) if labels is None else labels
        order, pairs = labels.argsort(stable=True), _share(self.config.mix_share, count)
        return order[:pairs], order.flip(0)[:pairs]

    def _moves(self, count: int) -> Tensor:
        """Return random matrices for the first images of the batch, (M, 2, 3)."""
        uniforms = self.draw(Stream.MOVES, _share(self.config.move_share, count), NUMBERS, uniform=True)
        return random_affine(uniforms, self.config.mirror_moves)

    @property
    def _side(self) -> int:
        """The side of a code as a map; 1 for a flat one."""
        return final_side(self.config.networks) if self.config.networks.latent == "spatial" else 1

    def show_critic(self, step: Step) -> None:
        """Run the critic on images and fakes, each fake augmented as its partner is."""
        assert isinstance(step, PegasusStep) and step.mixed is not None
        count, first = len(step.images), step.mixed
        targets = [] if step.lessons is None else [step.lessons.targets[: len(step.extra_logits["target"])]]
        shown = torch.cat([step.images, *targets])
        own = torch.arange(len(shown), device=shown.device)
        partners = {"reconstruction": own[:count], "target": own[count:], "mix": first}
        if targets:  # with learned mixing, mixes should look like compositions
            partners["mix"] = count + torch.arange(len(first), device=shown.device) % len(targets[0])
        fakes = {"reconstruction": step.reconstructions} | step.extra_images
        shares = self._shares(fakes)
        step.partners = {kind: partners[kind] for kind in fakes if shares[kind]}
        altered = torch.cat([fakes[kind] for kind in step.partners])
        if self.config.critic_augmentation:
            uniforms = self.draw(Stream.AUGMENTATION, len(shown), OPERANDS, uniform=True)
            shown = augment(shown, uniforms, self.config.critic_augmentation)
            altered = augment(
                altered, uniforms[torch.cat(list(step.partners.values()))], self.config.critic_augmentation
            )
        sizes = [len(chosen) for chosen in step.partners.values()]
        by_kind = dict(zip(step.partners, altered.split(sizes), strict=True))
        partners = step.partners
        real: list[Tensor] = []  # not the step, which holds the pass: a cycle would keep each batch's memory
        step.fakes = self.one_pass(by_kind, lambda outputs: self._fake_loss(outputs, partners, *real))
        step.real = self.critic(shown)
        real.append(step.real.detach())

    def _shares(self, kinds: Iterable[str]) -> dict[str, float]:
        """Return the share of each of these kinds of fakes; they sum to 1."""
        own = {kind: getattr(self.config.weights, f"fake_{kind}") for kind in kinds}
        return {kind: share / sum(own.values()) for kind, share in own.items()}

    def _fake_terms(self, outputs: dict[str, Tensor], partners: dict[str, Tensor], real: Tensor) -> dict[str, Term]:
        """Return the critic's terms for its outputs for fakes, by kind, and for real images."""
        weight, loss = self.config.weights.critic_fake, self.config.adversarial_loss
        return {
            kind: Term(losses.critic_loss_fake(outputs[kind], loss, real[partners[kind]]), weight * share)
            for kind, share in self._shares(outputs).items()
        }

    def _fake_loss(self, outputs: dict[str, Tensor], partners: dict[str, Tensor], real: Tensor) -> Tensor:
        return torch.stack([term.weighted for term in self._fake_terms(outputs, partners, real).values()]).sum()

    def autoencoder_losses(self, step: Step) -> dict[str, Term]:
        assert isinstance(step, PegasusStep) and step.fakes is not None and step.real is not None
        weights, loss, pixels = self.config.weights, self.config.adversarial_loss, self.config.reconstruction
        terms = self.vae_terms(step)
        if step.lessons is not None:
            assert step.limb is not None
            lessons, limb, alpha = step.lessons, step.limb, step.lessons.limbs
            made = step.extra_logits["target"]
            weighing = 1 + weights.limb * alpha[: len(made)]
            terms["target"] = Term(
                losses.pixel_error(made, lessons.targets[: len(made)], pixels, weighing), weights.target
            )
            terms["root"] = Term(F.cross_entropy(limb.places, lessons.roots), weights.root)
            missed = F.binary_cross_entropy_with_logits(limb.alpha_logits, alpha, reduction="none")
            apart = alpha * (limb.colours - lessons.targets).square()
            terms |= {
                "alpha": Term(missed.flatten(1).sum(1).mean(), weights.alpha),
                "colour": Term(apart.flatten(1).sum(1).mean(), weights.colour),
            }
        if step.matrices is not None:
            wanted = move(step.images[: len(step.matrices)], step.matrices)
            inside = came_from_inside(step.matrices, IMAGE_SIZE)
            terms["moved"] = Term(losses.pixel_error(step.extra_logits["moved"], wanted, pixels, inside), weights.moves)
        outputs = step.fakes.for_autoencoder
        for kind, share in self._shares(outputs).items():
            passing = losses.generator_loss(outputs[kind], loss, step.real[step.partners[kind]])
            terms[f"adversarial_{kind}"] = Term(passing, weights.adversarial * share)
        return terms

    def critic_losses(self, step: Step) -> dict[str, Term]:
        assert isinstance(step, PegasusStep) and step.fakes is not None and step.real is not None
        weights, loss = self.config.weights, self.config.adversarial_loss
        outputs = step.fakes.for_critic
        own = step.real[: len(step.images)]  # the others are targets of lessons
        if loss in BALANCED:
            by_kind = {k: losses.critic_loss_real(step.real[step.partners[k]], loss, outputs[k]) for k in outputs}
            shares = self._shares(outputs)
            real = Term(torch.stack([shares[kind] * by_kind[kind] for kind in shares]).sum(), weights.critic_fake)
        else:
            real = Term(losses.critic_loss_real(step.real, loss), weights.critic_real)
        self.log_mean("critic/real", self.critic_probability(own))
        for kind, values in outputs.items():
            tag = "critic/fake" if kind == "reconstruction" else f"critic/{kind}"
            self.log_mean(tag, self.critic_probability(values))
        return {"real": real} | self._fake_terms(outputs, step.partners, step.real)

    def critic_penalties(self, step: Step) -> dict[str, Term]:
        """Return the penalties at every fourth image: a penalty costs several times as much as the critic's loss."""
        few = PegasusStep(step.images[::4], step.posterior, step.codes, step.logits[::4])
        return super().critic_penalties(few)

    def blind_critic_loss(self) -> float | None:
        """Return 2 ln 2 at weights of 1; see `blind_loss` for other losses."""
        weights = self.config.weights
        return blind_loss(self.config.adversarial_loss, weights.critic_real, weights.critic_fake)


def _share(share: float, count: int) -> int:
    """Return a share of a batch, at least 1."""
    return max(1, round(share * count))
