"""Adversarial VAE, the source document's baseline: a VAE with a critic of its reconstructions."""

from __future__ import annotations

from dataclasses import dataclass, field

from pegasus_lightning.models.losses import Term, blind_loss, critic_loss_fake, critic_loss_real, generator_loss
from pegasus_lightning.models.settings import ModelConfig
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


class AdversarialVAE(TwoPlayerModel):
    """The source document's losses, each term times its weight:

    autoencoder: BCE_sum(D(z), x) + KL(q(z|x) || N(0, I)) + BCE_sum(C(D(z)), 1)
    critic: BCE_sum(C(D(z)), 0) + BCE_sum(C(x), 1)

    With `adversarial_loss=hinge`, hinge losses replace the three adversarial cross-entropies.
    """

    Config = AdversarialVAEConfig

    def autoencoder_losses(self, step: Step) -> dict[str, Term]:
        outputs = self.critic(self.augment_for_critic(step.reconstructions, 0))
        adversarial = generator_loss(outputs, self.config.adversarial_loss)
        return self.vae_terms(step) | {"adversarial": Term(adversarial, self.config.weights.adversarial)}

    def critic_losses(self, step: Step) -> dict[str, Term]:
        weights = self.config.weights
        kind = self.config.adversarial_loss
        fake = self.critic(self.augment_for_critic(step.reconstructions.detach(), 1))
        real = self.critic(self.augment_for_critic(step.images, 2))
        self.log_mean("critic/fake", self.critic_probability(fake))
        self.log_mean("critic/real", self.critic_probability(real))
        return {
            "fake": Term(critic_loss_fake(fake, kind), weights.critic_fake),
            "real": Term(critic_loss_real(real, kind), weights.critic_real),
        }

    def blind_critic_loss(self) -> float | None:
        """Return 2 ln 2 at weights of 1; 2 for hinge losses."""
        weights = self.config.weights
        return blind_loss(self.config.adversarial_loss, weights.critic_real, weights.critic_fake)
