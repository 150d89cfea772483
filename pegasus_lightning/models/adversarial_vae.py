"""Adversarial VAE, the baseline of the source document: a VAE whose reconstructions must also pass a critic."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor

from pegasus_lightning.config import ModelConfig
from pegasus_lightning.losses import label_cross_entropy
from pegasus_lightning.models.two_player import Step, TwoPlayerModel


@dataclass
class AdversarialVAEWeights:
    reconstruction: float = 1.0
    kl: float = 1.0
    adversarial: float = 1.0
    critic_real: float = 1.0
    critic_fake: float = 1.0


@dataclass
class AdversarialVAEConfig(ModelConfig):
    name: str = "adversarial_vae"
    weights: AdversarialVAEWeights = field(default_factory=AdversarialVAEWeights)


def blind_cross_entropy(real: float, fake: float) -> float:
    """Minimum over p of -(real ln p + fake ln(1 - p)), in nats, reached at p = real / (real + fake).

    A blind critic's loss: it says p to all, against the label 1 weighted `real` and 0 weighted `fake`.
    """
    return -sum(weight * math.log(weight / (real + fake)) for weight in (real, fake) if weight)


class AdversarialVAE(TwoPlayerModel):
    """The source document's losses, each term times its weight:

    autoencoder: BCE_sum(D(z), x) + KL(q(z|x) || N(0, I)) + BCE_sum(C(D(z)), 1)
    critic: BCE_sum(C(D(z)), 0) + BCE_sum(C(x), 1)
    """

    Config = AdversarialVAEConfig

    def autoencoder_losses(self, step: Step) -> dict[str, Tensor]:
        weights = self.config.weights
        return {
            "reconstruction": weights.reconstruction * self.pixel_term(step),
            "kl": weights.kl * self.kl_term(step),
            "adversarial": weights.adversarial * label_cross_entropy(self.critic(step.reconstructions), 1.0),
        }

    def critic_losses(self, step: Step) -> dict[str, Tensor]:
        weights = self.config.weights
        fake = self.critic(step.reconstructions.detach())
        real = self.critic(step.images)
        self.watch("critic/fake", self.opinion(fake))
        self.watch("critic/real", self.opinion(real))
        return {
            "fake": weights.critic_fake * label_cross_entropy(fake, 0.0),
            "real": weights.critic_real * label_cross_entropy(real, 1.0),
        }

    def blind_critic_loss(self) -> float | None:
        """2 ln 2 at weights of 1."""
        return blind_cross_entropy(self.config.weights.critic_real, self.config.weights.critic_fake)
