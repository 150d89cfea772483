"""The model `pegasus` of this project: an adversarial VAE that is trained on decoded mixes, too."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pegasus_lightning.data.augmentation import NUMBERS, OPERATIONS, augment
from pegasus_lightning.models import losses
from pegasus_lightning.models.latent import lerp
from pegasus_lightning.models.losses import Term, blind_loss
from pegasus_lightning.models.mixing_network import MixNetwork
from pegasus_lightning.models.networks import as_in_inference
from pegasus_lightning.models.settings import ModelConfig
from pegasus_lightning.models.two_player import Step, TwoPlayerModel
from pegasus_lightning.utils.randomness import Stream, derived_seed

GUIDED_BY = tuple(OPERATIONS)  # augmentations of the guide's inputs: all of them, as in its training
THUMBNAIL = 4  # side of the thumbnails by which images are compared


class Guide(Protocol):
    """Frozen networks that recognise the two classes, used in turn: a model is trained by them beside its critic."""

    def to(self, device: torch.device) -> Any:
        """Move to a device."""

    def logits(self, images: Tensor, turn: int) -> Tensor:
        """Return logits of the two classes (B, 2), differentiable in the images."""

    def distance(self, images: Tensor, others: Tensor, turn: int) -> Tensor:
        """Return the feature distance of each image to its counterpart, (B,), differentiable in `others`."""


@dataclass
class PegasusWeights:
    reconstruction: float = 1.0  # the pixel term
    kl: float = 1.0
    feature: float = 0.0  # distance of image and reconstruction in the critic's penultimate layer
    perceptual: float = 0.0  # distance of the same in the layers of the guide
    adversarial: float = 1.0
    guidance: float = 0.0  # chimeras in which the guide does not recognise both classes
    layout: float = 0.0  # distance of a chimera's thumbnail from the blend of its parents'
    stay: float = 0.0  # learned mixing: distance from the linear mix
    chimera: float = 0.3  # learned mixing: -log C(chimera)
    critic_real: float = 1.0
    critic_fake: float = 1.0
    fake_reconstruction: float = 1.0  # these four: shares of the kinds of fakes in both players' terms
    fake_mix: float = 0.5
    fake_sample: float = 0.25
    fake_chimera: float = 0.25


@dataclass
class GuideConfig:
    """The recognisers that guide a model, trained once for its data (`recognisers/store.py`)."""

    architectures: list[str] = field(default_factory=lambda: ["plain", "averaging"])
    images: int | None = None  # training images shown to each, repeats counted; null: as its recipe says


@dataclass
class PegasusModelConfig(ModelConfig):
    name: str = "pegasus"
    learned_mixing: bool = False  # chimeras are mixed by a MixNetwork; else they are the linear mixes
    mix_ratio: list[float] = field(default_factory=lambda: [0.3, 0.7])  # range of mixing ratios in training
    mix_pairs: str = "random"  # random, or alike: each horse with the most similar bird of the batch
    margin: float = 2.0  # guide logit above which guidance fades
    guide: GuideConfig = field(default_factory=GuideConfig)
    weights: PegasusWeights = field(default_factory=PegasusWeights)


class BatchPairs(NamedTuple):
    """Pairs of a batch: indices into it, (P,) each, and 1 where the classes differ (a batch may lack one class)."""

    first: Tensor
    second: Tensor
    valid: Tensor


def _thumbnails(images: Tensor) -> Tensor:
    """Return images (B, 3, H, W) averaged in THUMBNAIL x THUMBNAIL cells, (B, 3 THUMBNAIL^2)."""
    return F.adaptive_avg_pool2d(images, THUMBNAIL).flatten(1)


@dataclass
class PegasusStep(Step):
    """A step with the pairs of the batch; `offset` (P, latent_dim) is the learned mix minus the linear mix."""

    pairs: BatchPairs | None = None
    offset: Tensor | None = None


class Pegasus(TwoPlayerModel):
    """An adversarial VAE whose fakes are reconstructions, mixes of a first-class and a second-class code, and samples.

    M: mixes z_m = (1 - r) z_1 + r z_2, one for two images; A: the guide, never the reporting recogniser;
    K: the chimeras, which are D(M), or with learned mixing D(MixNetwork(z_1, z_2, r)).

    autoencoder: pixel term + KL + feature distance of x and x~, perceptual distance of every second x and its x~
        + sum of shares * (-log C(fake))
    for the chimeras: guidance * mean over K of the sum over both classes of softplus(margin - A(chimera))
        + layout * mean |t(chimera) - (1 - r) t(x_1) - r t(x_2)|^2, t: thumbnails of 4 x 4 pixels
    with learned mixing also: stay * mean |MixNetwork(z_1, z_2, r) - z_m|^2 + chimera * (-log C(chimera))
    critic: real from fake, by cross-entropies or hinge losses, each kind of fake with its share

    With learned mixing, chimeras are decoded as in inference: with the averaged weights and the running statistics.

    Without learned mixing the chimera terms train the decoder. With it they train the mixing network alone: a guided
    decoder soon draws one pattern over all mixes, in which the guide recognises both classes and no other network does.

    Mixes among the critic's fakes: Beckham et al. 2019 (arXiv 1903.02709). Guidance by a classifier during training:
    Odena et al. 2017 (arXiv 1610.09585), here towards two classes at once, which no training image shows. The codes of
    mixes are detached, so the encoder is affected by mixes through the decoder's BatchNorm alone.
    """

    Config = PegasusModelConfig
    guide: Guide | None = None
    guide_identity: list[str] | None = None  # SHA-256 of the guide's members, kept in checkpoints

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

    @property
    def needs_guide(self) -> bool:
        """Whether any loss term uses the guide."""
        return self.config.weights.guidance > 0 or self.config.weights.perceptual > 0

    def on_fit_start(self) -> None:
        """Move the guide to the model's device.

        Raise RuntimeError if a loss term uses a guide, and the model has none (see `train.guide.give_guide`).
        """
        if self.guide is not None:
            self.guide.to(self.device)
        elif self.needs_guide:
            raise RuntimeError("guidance and the perceptual term need a guide, and the model has none")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        if self.guide_identity is not None:
            checkpoint["guide"] = self.guide_identity

    def mix(self, first: Tensor, second: Tensor, ratios: Tensor) -> Tensor:
        if self.mixer is None:
            return super().mix(first, second, ratios)
        return self._network("mixer")(first, second, ratios)

    def forward_batch(self, images: Tensor, labels: Tensor | None = None) -> Step:
        posterior = self.encode(images)
        codes = posterior.sample_with(self.draw(Stream.NOISE, *posterior.mean.shape))
        labels = torch.zeros(len(images), dtype=torch.int64, device=images.device) if labels is None else labels
        pairs = self._opposites(images, labels)
        low, high = self.config.mix_ratio
        ratios = low + (high - low) * self.draw(Stream.MIXING, len(pairs.first), uniform=True)
        first, second = (codes.detach()[chosen] for chosen in (pairs.first, pairs.second))
        parts = {"reconstruction": codes, "mix": lerp(first, second, ratios[:, None])}
        if self.config.weights.fake_sample:
            parts["sample"] = self.draw(Stream.PRIOR, max(1, len(images) // 4), codes.shape[1])
        logits = self.decode_logits(torch.cat(list(parts.values()))).split([len(part) for part in parts.values()])
        decoded = dict(zip(parts, logits, strict=True))
        extra = {name: torch.sigmoid(decoded[name]) for name in parts if name != "reconstruction"}
        offset = None
        if self.mixer is not None:
            learned = self.mixer(first, second, ratios)
            offset = learned - parts["mix"]
            # The BatchNorm statistics of a batch of chimeras differ from the running ones, and a mixing that is trained
            # with the former looks worse in inference.
            decoder = self.decoder if self.averaged is None else self.averaged["decoder"]
            with as_in_inference(decoder):
                extra["chimera"] = torch.sigmoid(decoder(learned))
        reconstructions = decoded["reconstruction"]
        step = PegasusStep(images, posterior, codes, reconstructions, labels, extra, ratios, pairs=pairs, offset=offset)
        step.fakes = self.one_pass(self._shown(step), self._fake_loss)
        return step

    def _opposites(self, images: Tensor, labels: Tensor) -> BatchPairs:
        """Return half as many pairs as images. Classes are not counted, because that would synchronise a GPU."""
        order = labels.argsort(stable=True)
        half = max(1, len(order) // 2)
        first, second = order[:half], order.flip(0)[:half]
        if self.config.mix_pairs == "alike":
            small = _thumbnails(images)
            same = labels[first][:, None] == labels
            second = (torch.cdist(small[first], small) + 1e3 * same).argmin(1)
        return BatchPairs(first, second, (labels[first] < labels[second]).float())

    def _shares(self, names: Iterable[str]) -> dict[str, float]:
        """Return the share of each of these kinds of fakes; they sum to 1."""
        own = {name: getattr(self.config.weights, f"fake_{name}") for name in names}
        return {name: share / sum(own.values()) for name, share in own.items()}

    def _shown(self, step: Step) -> dict[str, Tensor]:
        """Return the fakes that a player asks the critic about, by kind, augmented with one draw for both players."""
        fakes = {"reconstruction": step.reconstructions} | step.extra_images
        shares = self._shares(fakes)
        fakes = {name: images for name, images in fakes.items() if shares[name] or name == "chimera"}
        altered = self.augment_for_critic(torch.cat(list(fakes.values())), 0)
        return dict(zip(fakes, altered.split([len(images) for images in fakes.values()]), strict=True))

    def _fake_terms(self, outputs: dict[str, Tensor]) -> dict[str, Term]:
        """Return the critic's terms for its outputs for fakes, by kind."""
        weight, kind = self.config.weights.critic_fake, self.config.adversarial_loss
        shares = {name: share for name, share in self._shares(outputs).items() if share}
        return {name: Term(losses.critic_loss_fake(outputs[name], kind), weight * shares[name]) for name in shares}

    def _fake_loss(self, outputs: dict[str, Tensor]) -> Tensor:
        return torch.stack([term.weighted for term in self._fake_terms(outputs).values()]).sum()

    def autoencoder_losses(self, step: Step) -> dict[str, Term]:
        assert step.fakes is not None
        weights, kind = self.config.weights, self.config.adversarial_loss
        terms = self.vae_terms(step)
        outputs = step.fakes.for_autoencoder
        for name, share in self._shares(outputs).items():
            if share and name != "chimera":
                loss = losses.generator_loss(outputs[name], kind)
                terms[f"adversarial_{name}"] = Term(loss, weights.adversarial * share)
        if weights.feature:
            same_draws = [self.augment_for_critic(images, 1) for images in (step.reconstructions, step.images)]
            found, real = self.critic.features(torch.cat(same_draws)).chunk(2)
            terms["feature"] = Term(losses.feature_distance(real.detach(), found), weights.feature)
        if weights.perceptual and self.guide is not None:
            # Every second image, because the guide's first layers cost as much as the whole critic.
            distance = self.guide.distance(step.images[::2], step.reconstructions[::2], self.batches_done)
            terms["perceptual"] = Term(distance.mean(), weights.perceptual)
        return terms | self._chimera_losses(step)

    def _chimera_losses(self, step: Step) -> dict[str, Term]:
        """Return the loss terms of the chimeras; see the class."""
        assert isinstance(step, PegasusStep) and step.pairs is not None and step.ratios is not None
        weights, pairs = self.config.weights, step.pairs
        terms: dict[str, Term] = {}
        chimeras = step.extra_images["mix" if self.mixer is None else "chimera"]
        if weights.guidance and self.guide is not None:
            uniforms = self.draw(Stream.AUGMENTATION, len(chimeras), NUMBERS, uniform=True, part=4)
            logits = self.guide.logits(augment(chimeras, uniforms, GUIDED_BY), self.batches_done)
            reluctance = losses.softplus_margin(logits, self.config.margin).sum(1)
            terms["guidance"] = Term((pairs.valid * reluctance).mean(), weights.guidance)
            self.log_mean("guide/both", (logits > 0).all(1).float())
        if weights.layout:
            small = _thumbnails(step.images)
            blend = lerp(small[pairs.first], small[pairs.second], step.ratios[:, None])
            apart = (_thumbnails(chimeras) - blend).square().sum(1)
            terms["layout"] = Term((pairs.valid * apart).mean(), weights.layout)
        if step.offset is not None:
            terms["stay"] = Term(step.offset.square().sum(1).mean(), weights.stay)
            assert step.fakes is not None
            outputs = step.fakes.for_autoencoder["chimera"]
            terms["chimera"] = Term(losses.generator_loss(outputs, self.config.adversarial_loss), weights.chimera)
        return terms

    def routes(self, terms: dict[str, Term]) -> list[tuple[Tensor, list[nn.Parameter]]]:
        if self.mixer is None:
            return super().routes(terms)
        own = [name for name in ("guidance", "layout", "stay", "chimera") if name in terms]
        others = {name: term for name, term in terms.items() if name not in own}
        chimeras = torch.stack([terms[name].weighted for name in own]).sum()
        ((loss, _),) = super().routes(others)
        own_networks = [*self.encoder.parameters(), *self.decoder.parameters()]
        return [(loss, own_networks), (chimeras, list(self.mixer.parameters()))]

    def critic_losses(self, step: Step) -> dict[str, Term]:
        assert step.fakes is not None
        weights, kind = self.config.weights, self.config.adversarial_loss
        real = self.critic(self.augment_for_critic(step.images, 3))
        self.log_mean("critic/real", self.critic_probability(real))
        outputs = step.fakes.for_critic
        terms = self._fake_terms(outputs)
        for name in terms:
            tag = "critic/fake" if name == "reconstruction" else f"critic/{name}"
            self.log_mean(tag, self.critic_probability(outputs[name]))
        return {"real": Term(losses.critic_loss_real(real, kind), weights.critic_real)} | terms

    def blind_critic_loss(self) -> float | None:
        """Return 2 ln 2 at weights of 1; 2 for hinge losses."""
        weights = self.config.weights
        return blind_loss(self.config.adversarial_loss, weights.critic_real, weights.critic_fake)
