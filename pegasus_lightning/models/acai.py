"""ACAI (Berthelot et al. 2018, arXiv 1807.07543): interpolations that fool a critic of the mixing coefficient."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from pegasus_lightning.models.latent import lerp
from pegasus_lightning.models.losses import Term, coefficient_error, mean_square
from pegasus_lightning.models.settings import ModelConfig
from pegasus_lightning.models.two_player import Step, TwoPlayerModel
from pegasus_lightning.utils.randomness import Stream


@dataclass
class ACAIWeights:
    reconstruction: float = 1.0
    kl: float = 1.0  # 0 in the paper, whose autoencoder is plain
    adversarial: float = 0.5  # lambda
    critic_coefficient: float = 1.0
    critic_regulariser: float = 1.0
    blend: float = 0.2  # gamma: share of the image in the regulariser's blend with its reconstruction


@dataclass
class ACAIConfig(ModelConfig):
    critic_tells: ClassVar[str | None] = "a coefficient"
    name: str = "acai"
    weights: ACAIWeights = field(default_factory=ACAIWeights)


class ACAI(TwoPlayerModel):
    """The critic regresses the mixing coefficient of a decoded mix; the autoencoder drives its output to 0.

    alpha = 0.5 - |u - 0.5|, u ~ U(0, 1); z_a = alpha z + (1 - alpha) z[reversed]
    autoencoder (eq. 1): reconstruction + KL + lambda * mean C(D(z_a))^2
    critic (eq. 2): mean (C(D(z_a)) - alpha)^2 + mean C(gamma x + (1 - gamma) x~)^2

    This is the source document's variant, a VAE with this critic. The preset `acai_paper` has the paper's settings. The
    critic's output is a real number, without a sigmoid.
    """

    Config = ACAIConfig
    real_is_high = False

    def autoencoder_losses(self, step: Step) -> dict[str, Term]:
        uniform = self.draw(Stream.MIXING, len(step.codes), uniform=True)
        alpha = step.ratios = 0.5 - (uniform - 0.5).abs()
        mixed = lerp(step.codes.flip(0), step.codes, alpha[:, None])
        mixes = step.extra_images["mix"] = torch.sigmoid(self.decode_logits(mixed))
        adversarial = mean_square(self.critic(self.augment_for_critic(mixes, 0)))
        return self.vae_terms(step) | {"adversarial": Term(adversarial, self.config.weights.adversarial)}

    def critic_losses(self, step: Step) -> dict[str, Term]:
        weights = self.config.weights
        assert step.ratios is not None
        mixes = self.critic(self.augment_for_critic(step.extra_images["mix"].detach(), 1))
        blend = lerp(step.reconstructions.detach(), step.images, weights.blend)
        blends = self.critic(self.augment_for_critic(blend, 2))
        self.log_mean("critic/blend", blends)  # of images with their reconstructions; no image is shown alone
        self.log_mean("critic/mix", mixes)
        return {
            "coefficient": Term(coefficient_error(mixes, step.ratios), weights.critic_coefficient),
            "regulariser": Term(mean_square(blends), weights.critic_regulariser),
        }

    def blind_critic_loss(self) -> float | None:
        """Return min over c of w_c E(c - alpha)^2 + w_r c^2; alpha is uniform on [0, 0.5]: mean 1/4, variance 1/48.

        1/48 + 1/32 at weights of 1, reached at c = 1/8.
        """
        coefficient, regulariser = self.config.weights.critic_coefficient, self.config.weights.critic_regulariser
        if not coefficient:
            return 0.0  # c = 0
        return coefficient / 48 + coefficient * regulariser / (coefficient + regulariser) / 16

    def critic_probability(self, critic_outputs: Tensor) -> Tensor:
        """Return the outputs, which are mixing coefficients, unchanged."""
        return critic_outputs
