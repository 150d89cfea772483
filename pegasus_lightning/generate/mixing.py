"""Mixes: recipes (parents, ratio, draw of their codes), the mixed codes, and the images they decode to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from pegasus_lightning.generate.pairs import Pairs
from pegasus_lightning.generate.settings import PegasusConfig
from pegasus_lightning.models.latent import Mix, Posterior, mix
from pegasus_lightning.models.two_player import TwoPlayerModel
from pegasus_lightning.utils.errors import UserError
from pegasus_lightning.utils.randomness import Stream, generator
from pegasus_lightning.utils.tensors import BATCH, in_batches, to_float


@dataclass(frozen=True)
class Recipes:
    """The recipes of N mixes; all fields are (N,), on the CPU."""

    first: Tensor  # indices of the first parents
    second: Tensor  # indices of the second parents
    ratios: Tensor  # 0 is the first parent, 1 the second
    draws: Tensor  # numbers of the draws of the parents' codes; number and seed alone decide the noise

    def __len__(self) -> int:
        return len(self.first)

    def take(self, indices: Tensor) -> Recipes:
        """Return the recipes at `indices`, in that order."""
        return Recipes(self.first[indices], self.second[indices], self.ratios[indices], self.draws[indices])


def recipes(pairs: Pairs, ratio_range: tuple[float, float], *, ratios: int = 1, seed: int = 0) -> Recipes:
    """Return `ratios` recipes of every pair, pair after pair, each at a ratio drawn uniformly from `ratio_range`."""
    low, high = ratio_range
    count = len(pairs) * ratios
    drawn = torch.rand(count, generator=generator(seed, Stream.RATIOS))
    return Recipes(
        pairs.first.repeat_interleave(ratios),
        pairs.second.repeat_interleave(ratios),
        low + (high - low) * drawn,
        torch.arange(count),
    )


def code_noise(seed: int, draws: Tensor, latent_dim: int) -> Tensor:
    """Return standard normal noise for both parents of every draw, (N, 2, latent_dim), a function of (seed, draw)."""
    noise = [torch.randn(2, latent_dim, generator=generator(seed, Stream.CODES, draw)) for draw in draws.tolist()]
    return torch.stack(noise)


@dataclass(frozen=True)
class Mixes:
    """Decoded mixes, and their parents for a score to compare them with.

    The parents are decoded from their posterior means. The codes of a mix are drawn, so the draw is part of its
    distance from the parents' pixel blend.
    """

    codes: Tensor  # (B, latent_dim)
    images: Tensor  # (B, 3, 32, 32) in [0, 1]
    first: Tensor  # (B, 3, 32, 32)
    second: Tensor  # (B, 3, 32, 32)
    ratios: Tensor  # (B,)

    def take(self, indices: Tensor) -> Mixes:
        """Return the mixes at `indices`, in that order."""
        here = indices.to(self.codes.device)
        return Mixes(*(getattr(self, field.name)[here] for field in fields(self)))

    def split(self, size: int) -> list[Mixes]:
        """Return batches of at most `size`, in order."""
        return [self.take(part) for part in torch.arange(len(self.codes)).split(size)]

    @staticmethod
    def cat(parts: Sequence[Mixes]) -> Mixes:
        """Return the mixes of all `parts`, one after another."""
        return Mixes(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Mixes)))

    def pixel_blend(self) -> Tensor:
        """Return (1 - ratio) * first + ratio * second, pixel by pixel: two overlaid images."""
        return torch.lerp(self.first, self.second, self.ratios[:, None, None, None])


class Mixer:
    """Make mixes from recipes, with one model.

    Args:
        decode: codes (B, latent_dim) to images (B, 3, 32, 32) in [0, 1].
        first, second: posteriors of all parents that recipes point to.
        how: one of `latent.MIXINGS`.
        sampled: draw the parents' codes from their posteriors, or take the posterior means.
        seed: of the draws.
        direction, learned: for how="direction" and how="learned", see `latent.mix`.
    """

    def __init__(
        self,
        decode: Callable[[Tensor], Tensor],
        first: Posterior,
        second: Posterior,
        *,
        how: str = "lerp",
        sampled: bool = True,
        seed: int = 0,
        direction: Tensor | None = None,
        learned: Mix | None = None,
    ) -> None:
        self.decode, self.first, self.second = decode, first, second
        with torch.no_grad():
            self.parents = (in_batches(decode, first.mean), in_batches(decode, second.mean))
        self.how, self.sampled, self.seed = how, sampled, seed
        self.direction, self.learned = direction, learned

    def parent_codes(self, chosen: Recipes) -> tuple[Tensor, Tensor]:
        """Return the codes of both parents of each recipe, (B, latent_dim) each."""
        device = self.first.mean.device
        first, second = (p.take(i.to(device)) for p, i in ((self.first, chosen.first), (self.second, chosen.second)))
        if not self.sampled:
            return first.mean, second.mean
        noise = code_noise(self.seed, chosen.draws, first.mean.shape[1]).to(device)
        return first.sample_with(noise[:, 0]), second.sample_with(noise[:, 1])

    def mix(self, start: Tensor, end: Tensor, ratios: Tensor) -> Tensor:
        """Return the parents' codes (B, latent_dim), mixed at ratios (B,)."""
        return mix(start, end, ratios[:, None], self.how, self.direction, self.learned)

    def __call__(self, chosen: Recipes) -> Mixes:
        """Return the mixes of recipes, as one batch."""
        start, end = self.parent_codes(chosen)
        ratios = chosen.ratios.to(start)
        codes = self.mix(start, end, ratios)
        first, second = (
            images[i.to(start.device)] for images, i in zip(self.parents, (chosen.first, chosen.second), strict=True)
        )
        return Mixes(codes, self.decode(codes), first, second, ratios)


def encode(model: TwoPlayerModel, images: Tensor) -> Posterior:
    """Return q(z|x) of uint8 images (N, 3, 32, 32), computed in batches on the model's device."""
    parts = [model.encode(to_float(part.to(model.device))) for part in images.split(BATCH)]
    means, log_variances = ([getattr(p, name) for p in parts] for name in ("mean", "log_variance"))
    return Posterior(torch.cat(means), torch.cat(log_variances), parts[0].deterministic)


def mixing_of(model: TwoPlayerModel, settings: PegasusConfig) -> str:
    """Return the mixing method: the configured one; for `auto`, learned if the model has learned it, else lerp.

    Raise UserError if the model has not learned to mix, or a ratio lies outside [0, 1] and the mixing is learned.
    """
    asked, (low, high) = settings.mixing, settings.ratio
    if asked == "learned" and model.mixer is None:
        raise UserError(
            "pegasus.mixing=learned needs a model that has learned to mix (model.learned_mixing=true, as model=pegasus "
            "has it). Leave it out: the best that a model can is taken."
        )
    how = asked if asked != "auto" else "lerp" if model.mixer is None else "learned"
    if how == "learned" and not 0 <= low <= high <= 1:
        raise UserError(
            f"pegasus.ratio=[{low},{high}] lies beyond the parents, and a learned mixing ends at them: stay within 0 "
            "to 1, or say pegasus.mixing=lerp too."
        )
    return how
