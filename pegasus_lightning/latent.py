"""Codes: the posterior they are drawn from, and mixing two of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Posterior:
    """The diagonal Gaussian q(z|x): `mean` and `log_variance`, each (B, latent_dim).

    A plain autoencoder's posterior is `deterministic`: its samples are its mean.
    """

    mean: Tensor
    log_variance: Tensor
    deterministic: bool = False

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """One code an image, (B, latent_dim)."""
        if self.deterministic:
            return self.mean
        noise = torch.randn(self.mean.shape, generator=generator, device=self.mean.device, dtype=torch.float32)
        return self.sample_with(noise)

    def sample_with(self, noise: Tensor) -> Tensor:
        """Reparameterisation (Kingma & Welling 2014, eq. 10): z = mean + exp(log_variance / 2) * noise."""
        if self.deterministic:
            return self.mean
        return self.mean + torch.exp(0.5 * self.log_variance) * noise


def lerp(start: Tensor, end: Tensor, ratio: Tensor | float) -> Tensor:
    """(1 - ratio) * start + ratio * end: ratio 0 is `start`, 1 is `end`.

    Args:
        start, end: codes (B, latent_dim).
        ratio: a number, or anything that broadcasts against the codes, such as (B, 1).
    """
    return start + (end - start) * ratio
