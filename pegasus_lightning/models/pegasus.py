"""Our own: an adversarial VAE that is trained on the chimeras themselves."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pegasus_lightning import losses
from pegasus_lightning.augmentation import NUMBERS, OPERATIONS, augment
from pegasus_lightning.config import ModelConfig
from pegasus_lightning.latent import lerp
from pegasus_lightning.mixing_network import MixNetwork
from pegasus_lightning.models.adversarial_vae import blind_loss
from pegasus_lightning.models.two_player import Step, TwoPlayerModel
from pegasus_lightning.networks import frozen
from pegasus_lightning.randomness import Stream, derived_seed

GUIDED_BY = tuple(OPERATIONS)  # what the guide is shown is altered by all of them, as what it learned from
THUMBNAIL = 4  # side of what parents are compared by, and of what their mix keeps of them


class Guide(Protocol):
    """What a model is trained by beside its critic: frozen networks that know the two classes, taken in turn."""

    def to(self, device: torch.device) -> Any:
        """Move there."""

    def logits(self, images: Tensor, turn: int) -> Tensor:
        """Is the first class in each image, is the second? (B, 2), differentiable in the images."""

    def distance(self, images: Tensor, others: Tensor, turn: int) -> Tensor:
        """How unlike each image is to the other at its place, in features: (B,), differentiable in `others`."""


@dataclass
class PegasusWeights:
    reconstruction: float = 1.0  # the pixel term
    kl: float = 1.0
    feature: float = 0.0  # distance of image and reconstruction in the critic's penultimate layer
    perceptual: float = 0.0  # the same in the layers of the guide
    adversarial: float = 1.0
    guidance: float = 0.0  # mixes that the guide does not take for both classes
    cycle: float = 0.0  # mixes whose codes cannot be read out of them again
    layout: float = 0.0  # mixes whose thumbnails are not the blend of their parents'
    critic_real: float = 1.0
    critic_fake: float = 1.0
    fake_reconstruction: float = 1.0  # these three: shares in what the critic takes for fake
    fake_mix: float = 0.5
    fake_sample: float = 0.25


@dataclass
class GuideConfig:
    """The recognisers that guide: trained once for the data, then kept (`evaluation/recogniser_store.py`)."""

    architectures: list[str] = field(default_factory=lambda: ["plain", "averaging"])
    images: int | None = None  # shown to each while it learns; null: as many as its recipe says


@dataclass
class PegasusModelConfig(ModelConfig):
    name: str = "pegasus"
    learned_mixing: bool = False  # mix by a MixNetwork; else along the straight line
    mix_ratio: list[float] = field(default_factory=lambda: [0.3, 0.7])  # of mixes in training
    mix_pairs: str = "random"  # random, or alike: the bird in the batch that most resembles the horse
    margin: float = 2.0  # logit from which the guide is content
    guides: str = "all"  # what the guidance reaches: all, or mixing alone, which leaves the decoder honest
    guide: GuideConfig = field(default_factory=GuideConfig)
    weights: PegasusWeights = field(default_factory=PegasusWeights)


class _Pairs(NamedTuple):
    """Indices into the batch, (P,) each, and 1 where they are first and second class: a batch may lack one."""

    first: Tensor
    second: Tensor
    valid: Tensor


def _thumbnails(images: Tensor) -> Tensor:
    """Images (B, 3, H, W) averaged in THUMBNAIL x THUMBNAIL cells, (B, 3 THUMBNAIL^2)."""
    return F.adaptive_avg_pool2d(images, THUMBNAIL).flatten(1)


class Pegasus(TwoPlayerModel):
    """An adversarial VAE whose fakes are reconstructions, mixes of a first-class and a second-class code, and samples.

    M: the mixes, one for two images; m, f: their shares; A: the recogniser that guides (never the one that reports).

    autoencoder: pixel term + KL + feature and perceptual distance of x and x~ + sum of shares * (-C(fake))
        + guidance * mean over M of the sum over both classes of softplus(margin - A(D(z_m)))
        + cycle * mean |E(D(z_m)) - z_m|^2
        + layout * mean |t(D(z_m)) - (1 - r) t(x_1) - r t(x_2)|^2, t: thumbnails of 4 x 4 pixels
    critic: hinge(C(x)) + sum of shares * hinge(C(fake)), or with cross-entropies

    Critics that see mixes: Beckham et al. 2019 (arXiv 1903.02709). Guidance by a classifier while the generator trains:
    Odena et al. 2017 (arXiv 1610.09585), here towards two classes at once, which no image it learns from shows. Mixes
    teach decoder and mixing; the encoder's codes are taken as they are (it feels them through the decoder's BatchNorm).
    """

    Config = PegasusModelConfig
    guide: Guide | None = None

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
        """Parameters of encoder, decoder and mixing."""
        more = [] if self.mixer is None else list(self.mixer.parameters())
        return [*self.encoder.parameters(), *self.decoder.parameters(), *more]

    @property
    def needs_guide(self) -> bool:
        """Whether any term asks the guide."""
        return self.config.weights.guidance > 0 or self.config.weights.perceptual > 0

    def on_fit_start(self) -> None:
        """The guide follows the model to its device."""
        if self.guide is not None:
            self.guide.to(self.device)

    def mix(self, first: Tensor, second: Tensor, ratios: Tensor) -> Tensor:
        if self.mixer is None:
            return super().mix(first, second, ratios)
        mixed: Tensor = self._network("mixer")(first, second, ratios)
        return mixed

    def forward_batch(self, images: Tensor, labels: Tensor | None = None) -> Step:
        posterior = self.encode(images)
        codes = posterior.sample_with(self.draw(Stream.NOISE, *posterior.mean.shape))
        labels = torch.zeros(len(images), dtype=torch.int64, device=images.device) if labels is None else labels
        self._pairs = self._opposites(images, labels)
        low, high = self.config.mix_ratio
        self._ratios = ratios = low + (high - low) * self.draw(Stream.MIXING, len(self._pairs.first), uniform=True)
        known = codes.detach()
        parts = [codes, self.mix(known[self._pairs.first], known[self._pairs.second], ratios)]
        if self.config.weights.fake_sample:
            parts.append(self.draw(Stream.PRIOR, max(1, len(images) // 4), codes.shape[1]))
        self._mixed_codes = parts[1]
        decoded = self.decode_logits(torch.cat(parts)).split([len(part) for part in parts])
        names = ("mix", "sample")[: len(parts) - 1]
        further = {name: torch.sigmoid(logits) for name, logits in zip(names, decoded[1:], strict=True)}
        return Step(images, posterior, codes, decoded[0], labels, further)

    def _opposites(self, images: Tensor, labels: Tensor) -> _Pairs:
        """Half as many pairs as images; each class is not counted, since that would wait for a GPU."""
        order = labels.argsort(stable=True)
        half = max(1, len(order) // 2)
        first, second = order[:half], order.flip(0)[:half]
        if self.config.mix_pairs == "alike":
            small = _thumbnails(images)
            same = labels[first][:, None] == labels
            second = (torch.cdist(small[first], small) + 1e3 * same).argmin(1)
        return _Pairs(first, second, (labels[first] < labels[second]).float())

    def _shares(self, step: Step) -> dict[str, float]:
        """Of each kind of fake that there is, by name; they sum to 1."""
        weights = self.config.weights
        own = {name: getattr(weights, f"fake_{name}") for name in ("reconstruction", *step.further)}
        return {name: share / sum(own.values()) for name, share in own.items() if share}

    def autoencoder_losses(self, step: Step) -> dict[str, Tensor]:
        weights, kind = self.config.weights, self.config.adversarial_loss
        terms = {
            "reconstruction": weights.reconstruction * self.pixel_term(step),
            "kl": weights.kl * self.kl_term(step),
        }
        fakes = {"reconstruction": step.reconstructions} | step.further
        shares = self._shares(step)
        features = self.critic.features(self.seen(torch.cat([fakes[name] for name in shares]), 0))
        outputs = self.critic.score(features).split([len(fakes[name]) for name in shares])
        for (name, share), output in zip(shares.items(), outputs, strict=True):
            terms[f"adversarial_{name}"] = weights.adversarial * share * losses.passes_for_real(output, kind)
        if weights.feature:
            both = torch.cat([self.seen(step.reconstructions, 1), self.seen(step.images, 1)])  # altered alike
            found, real = self.critic.features(both).chunk(2)
            terms["feature"] = weights.feature * losses.feature_distance(real.detach(), found)
        if self.guide is not None:
            terms |= self._guided(step, self.guide)
        if weights.cycle:
            with frozen(self.encoder):
                read = self.encode(step.further["mix"]).mean
            apart = (read - self._mixed_codes.detach()).square().sum(1)
            terms["cycle"] = weights.cycle * (self._pairs.valid * apart).mean()
        if weights.layout:
            small = _thumbnails(step.images)
            blend = lerp(small[self._pairs.first], small[self._pairs.second], self._ratios[:, None])
            apart = (_thumbnails(step.further["mix"]) - blend).square().sum(1)
            terms["layout"] = weights.layout * (self._pairs.valid * apart).mean()
        return terms

    def _guided(self, step: Step, guide: Guide) -> dict[str, Tensor]:
        weights, terms = self.config.weights, {}
        if weights.perceptual:
            # Every second image: the guide's first layers cost as much as the whole critic.
            distance = guide.distance(step.images[::2], step.reconstructions[::2], self.batches_done)
            terms["perceptual"] = weights.perceptual * distance.mean()
        if weights.guidance:
            mixes = step.further["mix"]
            uniforms = self.draw(Stream.AUGMENTATION, len(mixes), NUMBERS, uniform=True, part=4)
            logits = guide.logits(augment(mixes, uniforms, GUIDED_BY), self.batches_done)
            reluctance = losses.at_least(logits, self.config.margin).sum(1)
            terms["guidance"] = weights.guidance * (self._pairs.valid * reluctance).mean()
            self.watch("guide/both", (logits > 0).all(1).float())
        return terms

    def routes(self, terms: dict[str, Tensor]) -> list[tuple[Tensor, list[nn.Parameter]]]:
        if self.config.guides == "all" or self.mixer is None or "guidance" not in terms:
            return super().routes(terms)
        others = {name: value for name, value in terms.items() if name != "guidance"}
        return [*super().routes(others), (terms["guidance"], list(self.mixer.parameters()))]

    def critic_losses(self, step: Step) -> dict[str, Tensor]:
        weights, kind = self.config.weights, self.config.adversarial_loss
        shares = self._shares(step)
        fakes = {"reconstruction": step.reconstructions} | step.further
        shown = torch.cat([fakes[name].detach() for name in shares])
        outputs = self.critic(self.seen(shown, 2)).split([len(fakes[name]) for name in shares])
        real = self.critic(self.seen(step.images, 3))
        terms = {"real": weights.critic_real * losses.taken_for_real(real, kind)}
        self.watch("critic/real", self.opinion(real))
        for (name, share), output in zip(shares.items(), outputs, strict=True):
            terms[name] = weights.critic_fake * share * losses.taken_for_fake(output, kind)
            self.watch("critic/fake" if name == "reconstruction" else f"critic/{name}", self.opinion(output))
        return terms

    def blind_critic_loss(self) -> float | None:
        """2 ln 2 at weights of 1; 2 for hinge losses."""
        weights = self.config.weights
        return blind_loss(self.config.adversarial_loss, weights.critic_real, weights.critic_fake)
