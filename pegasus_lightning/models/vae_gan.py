"""VAE/GAN (Larsen et al. 2016, arXiv 1512.09300): reconstruction measured in the critic's features."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from pegasus_lightning.models.losses import (
    Term,
    blind_loss,
    critic_loss_fake,
    critic_loss_real,
    feature_distance,
    generator_loss,
)
from pegasus_lightning.models.settings import BALANCED, DEFAULT_TASK, ModelConfig
from pegasus_lightning.models.two_player import Step, TwoPlayerModel
from pegasus_lightning.utils.randomness import Stream


@dataclass
class VAEGANWeights:
    kl: float = 1.0
    feature: float = 1.0  # in the encoder's loss
    decoder_feature: float = 0.1  # gamma: the feature term in the decoder's loss
    reconstruction: float = 0.0  # an optional pixel term for both; none in the paper
    adversarial_reconstruction: float = 1.0  # decoder: weight of -log C(x~)
    adversarial_noise: float = 1.0  # decoder: weight of -log C(x_p)
    critic_real: float = 1.0
    critic_reconstruction: float = 1.0
    critic_noise: float = 1.0


@dataclass
class VAEGANConfig(ModelConfig):
    name: str = "vae_gan"
    critic_tells: ClassVar[str | None] = DEFAULT_TASK
    weights: VAEGANWeights = field(default_factory=VAEGANWeights)


class VAEGAN(TwoPlayerModel):
    """Algorithm 1 of the paper, with the non-saturating GAN term. x~ = D(E(x)), x_p = D(z_p), z_p ~ N(0, I):

    encoder: KL + L_feat, with L_feat = 0.5 sum (C_l(x) - C_l(x~))^2 (eq. 7)
    decoder: gamma * L_feat + BCE(C(x~), 1) + BCE(C(x_p), 1)
    critic: BCE(C(x), 1) + BCE(C(x~), 0) + BCE(C(x_p), 0)

    No GAN gradient reaches the encoder and no feature gradient the critic. C_l is the input of the
    critic's last convolution.
    """

    Config = VAEGANConfig

    def autoencoder_losses(self, step: Step) -> dict[str, Term]:
        weights = self.config.weights
        # Prior samples pass through the decoder alone, so the encoder gets no gradient from them.
        samples = torch.sigmoid(self.decode_logits(self.draw(Stream.PRIOR, *step.codes.shape)))
        step.extra_images["noise"] = samples
        kind = self.config.adversarial_loss
        with torch.no_grad():
            real_features, real = self.critic.with_features(self.augment_for_critic(step.images, 0))
        features, outputs = self.critic.with_features(self.augment_for_critic(step.reconstructions, 0))
        noise = self.critic(self.augment_for_critic(samples, 1))
        return self.vae_terms(step, pixels=weights.reconstruction > 0) | {
            "feature": Term(feature_distance(real_features, features), weights.feature),
            "adversarial_reconstruction": Term(generator_loss(outputs, kind, real), weights.adversarial_reconstruction),
            "adversarial_noise": Term(generator_loss(noise, kind, real), weights.adversarial_noise),
        }

    def routes(self, terms: dict[str, Term]) -> list[tuple[Tensor, list[nn.Parameter]]]:
        feature = terms["feature"]
        vae = [terms[name].weighted for name in ("reconstruction", "kl") if name in terms]
        pixels = [terms["reconstruction"].weighted] if "reconstruction" in terms else []
        encoder_loss = torch.stack([*vae, feature.weighted]).sum()
        decoder_loss = self.balance_adversarial(
            [self.config.weights.decoder_feature * feature.value, *pixels],
            [terms["adversarial_reconstruction"].weighted, terms["adversarial_noise"].weighted],
        )
        return [(encoder_loss, list(self.encoder.parameters())), (decoder_loss, list(self.decoder.parameters()))]

    def critic_losses(self, step: Step) -> dict[str, Term]:
        weights = self.config.weights
        outputs = {
            "real": self.critic(self.augment_for_critic(step.images, 2)),
            "reconstruction": self.critic(self.augment_for_critic(step.reconstructions.detach(), 3)),
            "noise": self.critic(self.augment_for_critic(step.extra_images["noise"].detach(), 4)),
        }
        self.log_mean("critic/real", self.critic_probability(outputs["real"]))
        self.log_mean("critic/fake", self.critic_probability(outputs["reconstruction"]))
        self.log_mean("critic/noise", self.critic_probability(outputs["noise"]))
        kind, real = self.config.adversarial_loss, outputs["real"]
        shares = {"reconstruction": weights.critic_reconstruction, "noise": weights.critic_noise}
        return {
            "real": self._real_term(outputs, shares),
            **{name: Term(critic_loss_fake(outputs[name], kind, real), share) for name, share in shares.items()},
        }

    def _real_term(self, outputs: dict[str, Tensor], shares: dict[str, float]) -> Term:
        """Return the critic's term of real images; a balanced loss has that of each kind of fakes, at its weight."""
        kind = self.config.adversarial_loss
        if kind not in BALANCED:
            return Term(critic_loss_real(outputs["real"], kind), self.config.weights.critic_real)
        terms = [share * critic_loss_real(outputs["real"], kind, outputs[name]) for name, share in shares.items()]
        return Term(torch.stack(terms).sum())

    def blind_critic_loss(self) -> float | None:
        """Return 3 ln 3 - 2 ln 2 at weights of 1: two of three images are fake; see `blind_loss` for others."""
        weights = self.config.weights
        fake = weights.critic_reconstruction + weights.critic_noise
        return blind_loss(self.config.adversarial_loss, weights.critic_real, fake)
