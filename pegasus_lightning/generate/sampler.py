"""Encode parent images, mix their codes, score the decoded mixes and keep the best."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pegasus_lightning.generate.mixing import Mixer, Mixes, Recipes, encode, mixing_of, recipes
from pegasus_lightning.generate.pairs import Pairs, Parents
from pegasus_lightning.generate.scores import CriticAndOverlap, CriticScore, Recognise, RecognisedAndReal, Score, total
from pegasus_lightning.generate.search import Ascent, best_of, guided, keep_best
from pegasus_lightning.generate.settings import GUIDANCE, PegasusConfig, SearchConfig
from pegasus_lightning.models.latent import Posterior, class_direction
from pegasus_lightning.models.networks import with_statistics_of
from pegasus_lightning.models.two_player import TwoPlayerModel
from pegasus_lightning.utils.bars import waiting
from pegasus_lightning.utils.randomness import Stream, generator
from pegasus_lightning.utils.tensors import in_batches

REFERENCE = 512  # images whose critic outputs give the scale of a score
MIN_REFERENCE = 64


class Sampler:
    """A model with the encoded parents of some pairs: it makes mixes and scores them.

    Use it inside `model.inference()`. Recipes point into the parents of the pairs; `parent_indices` gives their indices
    in the data.

    Args:
        settings: a `GenerateConfig` or an `EvaluateConfig`.
        others: images like the parents, if available. With few parents, statistics are taken over these.
    """

    def __init__(
        self,
        model: TwoPlayerModel,
        parents: Parents,
        pairs: Pairs,
        settings: Any,
        others: Parents | None = None,
    ) -> None:
        self.model, self.parents, self.settings, self.others = model, parents, settings, others
        pegasus: PegasusConfig = settings.pegasus
        self.indices, posteriors, own = [], [], []
        for images, chosen in ((parents.first, pairs.first), (parents.second, pairs.second)):
            indices, inverse = chosen.unique(return_inverse=True)
            self.indices.append(indices)
            own.append(inverse)
            posteriors.append(encode(model, images[indices]))
        self.pairs = dataclasses.replace(pairs, first=own[0], second=own[1])
        direction = None
        if pegasus.mixing == "direction":  # over all images, not the parents alone
            direction = class_direction(encode(model, parents.first).mean, encode(model, parents.second).mean)
        self.mixer = Mixer(
            model.decode,
            *posteriors,
            how=mixing_of(model, pegasus),
            sampled=pegasus.codes == "sampled",
            seed=settings.seed,
            direction=direction,
            learned=model.mix,
        )

    def parent_indices(self, chosen: Recipes) -> tuple[Tensor, Tensor]:
        """Return the parents' indices in the first and second class of the data."""
        return self.indices[0][chosen.first], self.indices[1][chosen.second]

    def originals(self, chosen: Recipes) -> tuple[Tensor, Tensor]:
        """Return the parents' images, uint8."""
        first, second = self.parent_indices(chosen)
        return self.parents.first[first], self.parents.second[second]

    @cached_property
    def critic(self) -> Callable[[Tensor], Tensor] | None:
        """The critic as a score of single images, relative to its outputs for reconstructions; None: no critic."""
        if self.model.critic is None:
            return None
        few = sum(len(images) for images in self.mixer.parents) < MIN_REFERENCE  # for example two image files
        if few and not self.model.config.sample_codes and self.others is None:
            return None  # a plain autoencoder has no prior to draw a reference from
        reference = torch.cat([images[: REFERENCE // 2] for images in self.mixer.parents])
        if few and self.others is not None:
            more = [in_batches(self.model.decode, posterior.mean) for posterior in self._posteriors_of_others]
            reference = torch.cat([reference, *(images[: REFERENCE // 2] for images in more)])
        elif few:
            noise = generator(self.settings.seed, Stream.PICTURES, 0, self.model.device)
            reference = torch.cat([reference, self.model.sample_prior(REFERENCE, noise)])
        judge = with_statistics_of(self.model.critic, reference)
        sign = 1.0 if self.model.real_is_high else -1.0
        return CriticScore(lambda images: sign * judge(images), reference)

    @cached_property
    def _posteriors_of_others(self) -> list[Posterior]:
        assert self.others is not None
        return [encode(self.model, images[: REFERENCE // 2]) for images in (self.others.first, self.others.second)]

    def _critic_score(self, images: Tensor) -> Tensor:
        """Return the critic's score (B,), zeros without a critic. The critic is prepared at the first call."""
        return images.new_zeros(len(images)) if self.critic is None else self.critic(images)

    def score(self, recognise: Recognise | None = None) -> Score:
        """Return the score that a search among these mixes maximises.

        Args:
            recognise: of a recogniser, see `Recognise`; if it gives no realism, the critic does. None: the critic
                alone scores.
        """
        weights = self.settings.score
        if recognise is not None:
            return RecognisedAndReal(
                recognise,
                self._critic_score,
                recognised_weight=weights.recognised,
                realism_weight=weights.realism,
                overlap_weight=weights.overlap,
                margin=weights.overlap_margin,
            )
        return CriticAndOverlap(
            self.critic,
            critic_weight=weights.critic,
            overlap_weight=weights.overlap,
            margin=weights.overlap_margin,
        )

    def make(self, chosen: Recipes) -> Mixes:
        """Return the mixes of recipes, made in batches."""
        batches = torch.arange(len(chosen)).split(self.settings.search.batch_size)
        return Mixes.cat([self.mixer(chosen.take(batch)) for batch in batches])

    def interpolations(self, pair: Recipes, ratios: Tensor) -> Tensor:
        """Return decoded mixes of each recipe's parents at all `ratios` (R,), not its own: (B, R, 3, 32, 32)."""
        start, end = (codes.repeat_interleave(len(ratios), 0) for codes in self.mixer.parent_codes(pair))
        codes = self.mixer.mix(start, end, ratios.to(start).repeat(len(pair)))
        return in_batches(self.model.decode, codes).unflatten(0, (len(pair), len(ratios)))

    def prior(self) -> tuple[Tensor, Tensor] | None:
        """Return mean and deviation (latent_dim,) of drawn codes of the parents, or of the others if parents are few.

        None: the standard normal. With a small KL weight, codes need not follow it.
        """
        parents = [self.mixer.first, self.mixer.second]
        means = torch.cat([parent.mean for parent in parents])
        if len(means) < MIN_REFERENCE and self.others is not None:
            parents = self._posteriors_of_others
            means = torch.cat([parent.mean for parent in parents])
        elif len(means) < MIN_REFERENCE and self.model.config.sample_codes:
            return None
        variance = means.var(0)
        if self.model.config.sample_codes:
            variance = variance + torch.cat([parent.log_variance for parent in parents]).exp().mean(0)
        return means.mean(0), variance.sqrt().clamp_min(1e-6)


@dataclass(frozen=True)
class Pegasi:
    """The N mixes that were made, best first after a search.

    Args:
        chosen: their recipes.
        terms: terms of their score by name, (N,) each.
        tried: number of candidates.
        ascent: of a guided search, in the same order; it has frames of the mixes in `recorded` alone.
        recorded: indices of the pegasi whose ascent has frames.
    """

    chosen: Recipes
    mixes: Mixes
    terms: Mapping[str, Tensor]
    tried: int
    ascent: Ascent | None = None
    recorded: Tensor | None = None

    @property
    def scores(self) -> Tensor:
        """The sum of the terms, (N,), on the CPU."""
        return total(self.terms).cpu()

    @property
    def ranking(self) -> Tensor:
        """The values that order them, (N,), on the CPU: the score, or the objective of a guided search.

        Guidance raises a saturating score to its maximum for all; the objective still tells them apart.
        """
        return self.scores if self.ascent is None else self.ascent.objective.cpu()

    def best(self, count: int) -> Tensor:
        """Return the indices of the best `count` by `ranking`, best first, no parent twice if there are enough."""
        return keep_best(self.ranking, self.chosen, min(count, len(self.chosen)), most_per_parent=1)


def sample(sampler: Sampler, count: int, score: Score) -> Pegasi:
    """Return `count` pegasi: all that are drawn, the best of many, or guided ones, as the `search` settings say."""
    settings = sampler.settings
    search: SearchConfig = settings.search
    method = search.method
    low, high = settings.pegasus.ratio
    ratios = 1 if method == "none" else search.ratios
    chosen = candidates = recipes(sampler.pairs, (low, high), ratios=ratios, seed=settings.seed)
    if method != "none":
        scores = best_of(sampler.mixer, candidates, score, batch_size=search.batch_size)
        chosen = candidates.take(keep_best(scores, candidates, count, most_per_parent=search.most_per_parent))
    with waiting("making the mixes"):
        mixes = sampler.make(chosen)
    if method != "guided":
        return Pegasi(chosen, mixes, _in_parts(score, mixes, search.batch_size), len(candidates))
    ascents = [_ascend(sampler, part, score) for part in mixes.split(search.batch_size)]
    objective = torch.cat([ascent.objective for ascent in ascents])
    order = torch.sort(objective, descending=True, stable=True).indices.cpu()  # ascents change the order
    mixes = Mixes.cat([ascent.mixes for ascent in ascents]).take(order)
    recorded = torch.nonzero(order < ascents[0].frames.shape[1]).flatten()
    ascent = Ascent(
        mixes,
        objective[order.to(objective.device)],
        torch.cat([ascent.trace for ascent in ascents], 1)[:, order],
        ascents[0].frames[:, order[recorded].to(mixes.codes.device)],
        ascents[0].steps,
    )
    terms = _in_parts(score, mixes, search.batch_size)
    return Pegasi(chosen.take(order), mixes, terms, len(candidates), ascent, recorded)


def _ascend(sampler: Sampler, start: Mixes, score: Score) -> Ascent:
    search = sampler.settings.search
    return guided(
        start,
        sampler.model.decode,
        score,
        critic=sampler.critic,
        prior=sampler.prior(),
        **{name: getattr(search, name) for name in GUIDANCE},
    )


def _in_parts(score: Score, mixes: Mixes, size: int) -> dict[str, Tensor]:
    with waiting("scoring the mixes"):
        parts = [score(part) for part in mixes.split(size)]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
