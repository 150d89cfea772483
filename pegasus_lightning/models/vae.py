"""Plain VAE (Kingma & Welling 2014), for comparison with the adversarial variants."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from pegasus_lightning.models.losses import Term
from pegasus_lightning.models.settings import ModelConfig
from pegasus_lightning.models.two_player import Step, TwoPlayerModel


@dataclass
class VAEWeights:
    reconstruction: float = 1.0
    kl: float = 1.0


@dataclass
class VAEConfig(ModelConfig):
    critic_tells: ClassVar[str | None] = None
    name: str = "vae"
    weights: VAEWeights = field(default_factory=VAEWeights)


class VAE(TwoPlayerModel):
    """A VAE without a critic:

    L = reconstruction * BCE_sum(D(z), x) + kl * KL(q(z|x) || N(0, I))
    """

    Config = VAEConfig

    def autoencoder_losses(self, step: Step) -> dict[str, Term]:
        return self.vae_terms(step)
