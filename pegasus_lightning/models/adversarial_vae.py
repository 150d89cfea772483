"""Adversarial VAE, the source document's baseline: a VAE with a critic of its reconstructions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from pegasus_lightning.models.losses import Term, blind_loss, critic_loss_fake, critic_loss_real, generator_loss
from pegasus_lightning.models.settings import BALANCED, DEFAULT_TASK, ModelConfig
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
    critic_tells: ClassVar[str | None] = DEFAULT_TASK
    weights: AdversarialVAEWeights = field(default_factory=AdversarialVAEWeights)


class AdversarialVAE(TwoPlayerModel):
    """The source document's losses, each term times its weight:

    autoencoder: BCE_sum(D(z), x) + KL(q(z|x) || N(0, I)) + BCE_sum(C(D(z)), 1)
    critic: BCE_sum(C(D(z)), 0) + BCE_sum(C(x), 1)

    Another `adversarial_loss` replaces the three adversarial cross-entropies. `relativistic` compares each image with
    its reconstruction.
    """

    Config = AdversarialVAEConfig

    def forward_batch(self, images: Tensor, labels: Tensor | None = None) -> Step:
        step = super().forward_batch(images, labels)
        self.show_critic(step)
        return step

    def show_critic(self, step: Step) -> None:
        shown = {"reconstruction": self.augment_for_critic(step.reconstructions, 0)}
        real: list[Tensor] = []  # not the step, which holds the pass: a cycle would keep each batch's memory
        step.fakes = self.one_pass(shown, lambda outputs: self._fake_term(outputs["reconstruction"], *real).weighted)
        if self.config.adversarial_loss == "relativistic":
            step.real = self._real_outputs(step)
            real.append(step.real.detach())

    def _real_outputs(self, step: Step) -> Tensor:
        outputs: Tensor = self.critic(self.augment_for_critic(step.images, 2))
        return outputs

    def _fake_term(self, outputs: Tensor, real: Tensor | None = None) -> Term:
        loss = critic_loss_fake(outputs, self.config.adversarial_loss, real)
        return Term(loss, self.config.weights.critic_fake)

    def autoencoder_losses(self, step: Step) -> dict[str, Term]:
        assert step.fakes is not None
        outputs = step.fakes.for_autoencoder["reconstruction"]
        adversarial = generator_loss(outputs, self.config.adversarial_loss, step.real)
        return self.vae_terms(step) | {"adversarial": Term(adversarial, self.config.weights.adversarial)}

    def critic_losses(self, step: Step) -> dict[str, Term]:
        assert step.fakes is not None
        weights, kind = self.config.weights, self.config.adversarial_loss
        fake = step.fakes.for_critic["reconstruction"]
        real = self._real_outputs(step) if step.real is None else step.real
        weight = weights.critic_fake if kind in BALANCED else weights.critic_real  # one loss of both sides
        self.log_mean("critic/fake", self.critic_probability(fake))
        self.log_mean("critic/real", self.critic_probability(real))
        return {
            "fake": self._fake_term(fake, real),
            "real": Term(critic_loss_real(real, kind, fake), weight),
        }

    def blind_critic_loss(self) -> float | None:
        """Return 2 ln 2 at weights of 1; see `blind_loss` for other losses."""
        weights = self.config.weights
        return blind_loss(self.config.adversarial_loss, weights.critic_real, weights.critic_fake)
