"""Codes: the posterior they are drawn from, and mixing two of them.

A ratio says how far a mix is on its way: 0 is the first parent (the horse), 1 the second (the bird).
"""

from __future__ import annotations

from collections.abc import Callable
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

    def take(self, indices: Tensor) -> Posterior:
        """Those of the images at `indices`, in that order."""
        return Posterior(self.mean[indices], self.log_variance[indices], self.deterministic)

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


def slerp(start: Tensor, end: Tensor, ratio: Tensor | float) -> Tensor:
    """Along the great circle (Shoemake 1985; for codes White 2016, arXiv 1609.04468): ratio 0 is `start`, 1 is `end`.

    sin((1 - ratio) w) / sin(w) * start + sin(ratio w) / sin(w) * end, w the angle between the two. A mix of
    two Gaussian codes keeps the length that such codes have, where `lerp`'s is shorter. Falls back to `lerp`
    where the angle, or its sine, vanishes (parallel, opposite or zero codes).

    Args:
        start, end: codes (B, latent_dim).
        ratio: a number, or anything that broadcasts against the codes, such as (B, 1).
    """
    lengths = start.norm(dim=-1, keepdim=True) * end.norm(dim=-1, keepdim=True)
    cosine = (start * end).sum(-1, keepdim=True) / lengths.clamp_min(1e-12)
    curved = (lengths > 1e-12) & (cosine.abs() < 1 - 1e-6)  # the sine is above 1e-3
    angle = torch.acos(torch.where(curved, cosine, torch.zeros_like(cosine)))  # a right angle where nothing is used
    arc = (torch.sin((1 - ratio) * angle) * start + torch.sin(ratio * angle) * end) / torch.sin(angle)
    return torch.where(curved, arc, lerp(start, end, ratio))


def class_direction(first: Tensor, second: Tensor) -> Tensor:
    """mean(second) - mean(first) over codes (N, latent_dim), (M, latent_dim): (latent_dim,).

    The way from one class to the other (attribute vectors: Larsen et al. 2016, sec. 4.3).
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
    """Mixed codes: `lerp`, `slerp`, `direction`, which is start + ratio * direction and takes nothing of `end`, or
    `learned`, as a model has learned it.

    Args:
        start, end: codes (B, latent_dim).
        ratio: 0 is `start`; a number, or anything that broadcasts against the codes, such as (B, 1).
        how: one of MIXINGS.
        direction: a `class_direction` (latent_dim,), for `direction` alone.
        learned: a model's `mix`, for `learned` alone; the codes are (B, latent_dim) then, the ratios (B, 1).

    Raises:
        ValueError: no such mixing, or no direction or model for it.
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
