"""Adversarial VAE, the source document's baseline: a VAE with a critic of its reconstructions."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

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

    With `adversarial_loss=hinge`, hinge losses replace the three adversarial cross-entropies; with `relativistic`, the
    losses of pairs of an image and its reconstruction.
    """

    Config = AdversarialVAEConfig

    def forward_batch(self, images: Tensor, labels: Tensor | None = None) -> Step:
        step = super().forward_batch(images, labels)
        shown = {"reconstruction": self.augment_for_critic(step.reconstructions, 0)}
        step.fakes = self.one_pass(shown, lambda outputs: self._fake_term(outputs["reconstruction"], step).weighted)
        step.real = self.critic(self.augment_for_critic(step.images, 2))
        return step

    def _fake_term(self, outputs: Tensor, step: Step) -> Term:
        loss = critic_loss_fake(outputs, self.config.adversarial_loss, step.real)
        return Term(loss, self.config.weights.critic_fake)

    def autoencoder_losses(self, step: Step) -> dict[str, Term]:
        assert step.fakes is not None
        outputs = step.fakes.for_autoencoder["reconstruction"]
        adversarial = generator_loss(outputs, self.config.adversarial_loss, step.real)
        return self.vae_terms(step) | {"adversarial": Term(adversarial, self.config.weights.adversarial)}

    def critic_losses(self, step: Step) -> dict[str, Term]:
        assert step.fakes is not None
        assert step.real is not None
        weights, kind = self.config.weights, self.config.adversarial_loss
        fake, real = step.fakes.for_critic["reconstruction"], step.real
        self.log_mean("critic/fake", self.critic_probability(fake))
        self.log_mean("critic/real", self.critic_probability(real))
        return {
            "fake": self._fake_term(fake, step),
            "real": Term(critic_loss_real(real, kind, fake), weights.critic_real),
        }

    def blind_critic_loss(self) -> float | None:
        """Return 2 ln 2 at weights of 1; 2 for hinge losses."""
        weights = self.config.weights
        return blind_loss(self.config.adversarial_loss, weights.critic_real, weights.critic_fake)
