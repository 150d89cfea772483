"""The posterior of codes, and functions that mix two codes.

A ratio of 0 is the first parent (the horse), 1 the second (the bird).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Posterior:
    """The diagonal Gaussian q(z|x): `mean` and `log_variance`, each (B, latent_dim).

    The posterior of a plain autoencoder is `deterministic`: its samples equal its mean.
    """

    mean: Tensor
    log_variance: Tensor
    deterministic: bool = False

    def take(self, indices: Tensor) -> Posterior:
        """Return the posterior of the images at `indices`, in that order."""
        return Posterior(self.mean[indices], self.log_variance[indices], self.deterministic)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Draw one code per image, (B, latent_dim)."""
        if self.deterministic:
            return self.mean
        noise = torch.randn(self.mean.shape, generator=generator, device=self.mean.device, dtype=torch.float32)
        return self.sample_with(noise)

    def sample_with(self, noise: Tensor) -> Tensor:
        """Return z = mean + exp(log_variance / 2) * noise (reparameterisation: Kingma & Welling 2014, eq. 10)."""
        if self.deterministic:
            return self.mean
        return self.mean + torch.exp(0.5 * self.log_variance) * noise


def lerp(start: Tensor, end: Tensor, ratio: Tensor | float) -> Tensor:
    """Return (1 - ratio) * start + ratio * end, of codes (B, latent_dim).

    `ratio` is a number, or anything that broadcasts against the codes, such as (B, 1).
    """
    return start + (end - start) * ratio


def slerp(start: Tensor, end: Tensor, ratio: Tensor | float) -> Tensor:
    """Interpolate along the great circle (Shoemake 1985; for codes: White 2016, arXiv 1609.04468).

    Returns sin((1 - ratio) w) / sin(w) * start + sin(ratio w) / sin(w) * end, where w is the angle between the codes
    (B, latent_dim); `ratio` as in `lerp`. A mix of two Gaussian codes keeps their typical length, while `lerp` shortens
    it. Falls back to `lerp` where the sine of the angle vanishes (parallel, opposite or zero codes).
    """
    lengths = start.norm(dim=-1, keepdim=True) * end.norm(dim=-1, keepdim=True)
    cosine = (start * end).sum(-1, keepdim=True) / lengths.clamp_min(1e-12)
    curved = (lengths > 1e-12) & (cosine.abs() < 1 - 1e-6)  # the sine is above 1e-3
    angle = torch.acos(torch.where(curved, cosine, torch.zeros_like(cosine)))  # a right angle where it is unused
    arc = (torch.sin((1 - ratio) * angle) * start + torch.sin(ratio * angle) * end) / torch.sin(angle)
    return torch.where(curved, arc, lerp(start, end, ratio))


def class_direction(first: Tensor, second: Tensor) -> Tensor:
    """Return mean(second) - mean(first) of codes (N, latent_dim) and (M, latent_dim): (latent_dim,).

    The direction from one class to the other, an attribute vector (Larsen et al. 2016, sec. 4.3).
    """
    return second.mean(0) - first.mean(0)


MIXINGS = ("lerp", "slerp", "direction", "learned")
Mix = Callable[[Tensor, Tensor, Tensor], Tensor]  # codes (B, latent_dim) twice and ratios (B,) to codes


def mix(
    start: Tensor,
    end: Tensor,
    ratio: Tensor | float,
    how: str = "lerp",
    direction: Tensor | None = None,
    learned: Mix | None = None,
) -> Tensor:
    """Return mixed codes (B, latent_dim).

    Args:
        start, end: codes (B, latent_dim).
        ratio: 0 is `start`; a number, or anything that broadcasts against the codes, such as (B, 1).
        how: one of MIXINGS; `direction` is start + ratio * direction and ignores `end`.
        direction: a `class_direction` (latent_dim,), used by `direction` only.
        learned: a model's `mix`, used by `learned` only, with codes (B, latent_dim) and ratios (B, 1).

    Raises:
        ValueError: unknown mixing, or its direction or model is missing.
    """
    if how == "lerp":
        return lerp(start, end, ratio)
    if how == "slerp":
        return slerp(start, end, ratio)
    if how == "learned" and learned is not None:
        return learned(start, end, torch.as_tensor(ratio).to(start).expand(len(start), 1).flatten())
    if how == "learned":
        raise ValueError("learned mixing needs a model that has learned it")
    if how != "direction":
        raise ValueError(f"mixing must be one of {MIXINGS}, not {how!r}")
    if direction is None:
        raise ValueError("mixing along a direction needs one: see class_direction")
    return start + ratio * direction
