"""Tests of searches for a known optimum: planted among candidates, or computed by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pegasus_lightning.generate.mixing import Mixer, Mixes, Recipes
from pegasus_lightning.generate.search import best_of, guided, keep_best
from pegasus_lightning.models.latent import Posterior
from pegasus_lightning.utils.randomness import Stream, generator

SHAPE, LATENTS = (3, 2, 2), 12


def decode(codes: Tensor) -> Tensor:
    """Every latent a value of the image (and no view of it: Adam changes codes in place)."""
    return codes.unflatten(1, SHAPE).clone()


def normal(*shape: int, key: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(key, Stream.NOISE))


def candidates_of(count: int) -> Recipes:
    first, second = (torch.randint(50, (count,), generator=generator(key, Stream.PAIRS)) for key in (0, 1))
    return Recipes(first, second, torch.rand(count, generator=generator(0, Stream.RATIOS)), torch.arange(count))


def some_mixer() -> Mixer:
    posteriors = (Posterior(normal(50, LATENTS, key=key), normal(50, LATENTS, key=key + 1)) for key in (0, 2))
    return Mixer(decode, *posteriors)


@pytest.mark.parametrize("batch_size", [1, 7, 250, 1000])
def test_the_best_of_many_is_found_whatever_the_batches(batch_size: int) -> None:
    mixer, candidates, planted = some_mixer(), candidates_of(250), 137
    target = mixer(candidates).codes[planted]
    sizes = []

    def score(mixes: Mixes) -> dict[str, Tensor]:
        sizes.append(len(mixes.codes))
        assert not torch.is_grad_enabled()
        return {"near": -(mixes.codes - target).square().sum(1), "bright": 0.1 * mixes.images.mean((1, 2, 3))}

    scores = best_of(mixer, candidates, score, batch_size=batch_size)
    assert scores.shape == (250,)
    assert scores.dtype == torch.float32
    assert max(sizes) == min(batch_size, 250)
    assert scores.argmax() == planted
    alone = mixer(candidates)
    wanted = [0.1 * code.mean().item() - ((code - target) ** 2).sum().item() for code in alone.codes]
    assert scores.tolist() == pytest.approx(wanted, rel=1e-4, abs=1e-5)
    assert keep_best(scores, candidates, 1).tolist() == [planted]


def test_many_candidates_keep_no_gradients() -> None:
    weight = torch.ones((), requires_grad=True)

    def score(mixes: Mixes) -> dict[str, Tensor]:
        return {"any": (weight * mixes.codes.sum(1)).double()}

    scores = best_of(some_mixer(), candidates_of(5), score)
    assert not scores.requires_grad
    assert scores.dtype == torch.float32
    assert torch.is_grad_enabled()


def kept(
    scores: list[float], pairs: list[tuple[int, int]], count: int, most_per_parent: int | None = None
) -> list[int]:
    first, second = torch.tensor(pairs).unbind(1)
    recipes = Recipes(first, second, torch.zeros(len(pairs)), torch.arange(len(pairs)))
    return keep_best(torch.tensor(scores), recipes, count, most_per_parent=most_per_parent).tolist()


APART = [(n, n + 10) for n in range(6)]
NAN, INF = math.nan, math.inf


def test_the_best_come_first_and_of_equals_the_earlier() -> None:
    assert kept([1, 5, 3, 4, 2, 0], APART, 4) == [1, 3, 2, 4]
    assert kept([1, 2, 1, 2, 1, 2], APART, 5) == [1, 3, 5, 0, 2]
    assert kept([1, 5, 3, 4, 2, 0], APART, 0) == []
    assert kept([0.0] * 40, [(n, n) for n in range(40)], 40) == list(range(40))  # a stable sort


def test_what_has_no_score_comes_last() -> None:
    assert kept([NAN, 1, NAN, -INF, INF, 2], APART, 6) == [4, 5, 1, 0, 2, 3]
    assert kept([NAN, -3, NAN, -INF, -2, -1], APART, 3) == [5, 4, 1]


def test_a_pair_is_taken_once() -> None:
    pairs = [(0, 0), (0, 0), (1, 1), (0, 0), (1, 1), (2, 2)]
    assert kept([6, 5, 4, 3, 2, 1], pairs, 3) == [0, 2, 5]
    assert kept([1, 2, 3, 4, 5, 6], pairs, 3) == [5, 4, 3]
    assert kept([2, 1], [(0, 1), (1, 0)], 2) == [0, 1]  # not the same pair


def test_a_parent_is_in_no_more_mixes_than_allowed() -> None:
    pairs = [(0, 0), (0, 1), (0, 2), (1, 0), (2, 0), (3, 3), (4, 4)]
    scores = [7.0, 6, 5, 4, 3, 2, 1]
    assert kept(scores, pairs, 4, 1) == [0, 1, 5, 6]  # number 1, the best of the others, fills up
    assert kept(scores, pairs, 3, 1) == [0, 5, 6]
    assert kept(scores, pairs, 4, 2) == [0, 1, 3, 5]
    assert kept(scores, pairs, 4, None) == [0, 1, 2, 3]
    # Number 5 of the first class is not number 5 of the second, and a repeat does not wear its parents.
    assert kept([3, 2, 1], [(5, 6), (7, 5), (5, 5)], 2, 1) == [0, 1]
    assert kept([5, 4, 3, 2], [(0, 0), (0, 0), (0, 1), (0, 2)], 2, 2) == [0, 2]


def test_too_few_pairs_are_filled_up_with_the_best_of_the_others() -> None:
    pairs = [(0, 0), (1, 1), (0, 0), (1, 1), (0, 0)]
    assert kept([1, 2, 3, 4, 5], pairs, 4) == [4, 3, 2, 1]
    assert kept([9, 1, 8, 0, 7], pairs, 5) == [0, 2, 4, 1, 3]  # all of them, best first
    assert kept([1, 2, 3, 4, 5], pairs, 10) == [4, 3, 2, 1, 0]  # there are no more


def test_those_that_fill_up_stand_where_their_score_puts_them() -> None:
    pairs = [(0, 0), (0, 0), (0, 0), (1, 1)]
    assert kept([9, 8, 7, 1], pairs, 3) == [0, 1, 3]


def test_kept_indices_index() -> None:
    found = keep_best(torch.tensor([1.0, 2.0]), candidates_of(2), 1)
    assert found.dtype == torch.int64


# Guided ascent.


def starting_at(codes: Tensor) -> Mixes:
    first, second = decode(torch.zeros_like(codes)), decode(torch.ones_like(codes))
    return Mixes(codes, decode(codes), first, second, torch.full((len(codes),), 0.5))


def nearness(target: Tensor) -> Callable[[Mixes], dict[str, Tensor]]:
    return lambda mixes: {"near": -(mixes.images - decode(target)).square().sum((1, 2, 3))}


def brightness(mixes: Mixes) -> dict[str, Tensor]:
    """Of gradient 1 in every latent."""
    return {"bright": mixes.images.sum((1, 2, 3))}


def nothing(mixes: Mixes) -> dict[str, Tensor]:
    return {"nothing": 0 * mixes.images.sum((1, 2, 3))}


def test_ascent_reaches_a_known_optimum() -> None:
    start, target = starting_at(normal(3, LATENTS)), 0.5 * normal(3, LATENTS, key=1)
    ascent = guided(start, decode, nearness(target), steps=300, lr=0.05, start_weight=0)
    torch.testing.assert_close(ascent.mixes.codes, target, rtol=0, atol=0.01)
    assert ascent.trace.shape == (301, 3)
    torch.testing.assert_close(ascent.trace[0], -(start.codes - target).square().sum(1))
    assert (ascent.trace[1:40] > ascent.trace[:39]).all()
    assert ascent.trace[-1].tolist() == pytest.approx([0, 0, 0], abs=1e-3)


def test_the_first_step_of_adam_by_hand() -> None:
    codes = torch.zeros(1, LATENTS)
    target = torch.tensor([[1.0, -1.0] * 6])
    ascent = guided(starting_at(codes), decode, nearness(target), steps=1, lr=0.125)
    torch.testing.assert_close(ascent.mixes.codes, 0.125 * target)  # by the learning rate, uphill
    assert ascent.trace.flatten().tolist() == pytest.approx([-12, -12 * 0.875**2])


def test_what_is_returned_is_decoded_and_keeps_its_parents() -> None:
    start = starting_at(normal(2, LATENTS))
    mixes = guided(start, decode, brightness, steps=3).mixes
    assert torch.equal(mixes.images, decode(mixes.codes))
    assert torch.equal(mixes.first, start.first)
    assert torch.equal(mixes.second, start.second)
    assert torch.equal(mixes.ratios, start.ratios)


def test_the_start_the_decoder_and_the_score_are_left_alone() -> None:
    weight = torch.ones((), requires_grad=True)
    start = starting_at(normal(2, LATENTS))
    codes, images = start.codes.clone(), start.images.clone()

    def score(mixes: Mixes) -> dict[str, Tensor]:
        return {"bright": weight * mixes.images.sum((1, 2, 3))}

    ascent = guided(start, lambda codes: decode(weight * codes), score, steps=3)
    assert not torch.equal(ascent.mixes.codes, codes)
    assert torch.equal(start.codes, codes)
    assert torch.equal(start.images, images)
    assert not start.codes.requires_grad
    assert weight.grad is None
    for tensor in (ascent.mixes.codes, ascent.mixes.images, ascent.trace, ascent.frames):
        assert not tensor.requires_grad


def test_it_works_where_gradients_are_off() -> None:
    start, target = starting_at(normal(2, LATENTS)), normal(2, LATENTS, key=1)
    wanted = guided(start, decode, nearness(target), steps=5)
    with torch.no_grad():
        found = guided(start, decode, nearness(target), steps=5)
        assert not torch.is_grad_enabled()
    assert torch.equal(found.mixes.codes, wanted.mixes.codes)
    assert torch.equal(found.trace, wanted.trace)


def test_candidates_do_not_meet() -> None:
    start, target = starting_at(normal(3, LATENTS)), normal(3, LATENTS, key=1)
    together = guided(start, decode, nearness(target), steps=20)
    for row in range(3):
        one = torch.tensor([row])
        alone = guided(start.take(one), decode, nearness(target[one]), steps=20)
        torch.testing.assert_close(together.mixes.codes[one], alone.mixes.codes)
        torch.testing.assert_close(together.trace[:, one], alone.trace)


@pytest.mark.parametrize("lr", [0.05, 3.0])  # 3: it jumps to and fro
def test_of_each_path_the_code_with_the_highest_objective_is_returned(lr: float) -> None:
    start, target = starting_at(2 * normal(5, LATENTS)), normal(5, LATENTS, key=1)
    way: list[Tensor] = []

    def score(mixes: Mixes) -> dict[str, Tensor]:
        way.append(mixes.codes.detach().clone())
        return nearness(target)(mixes)

    def critic(images: Tensor) -> Tensor:
        return torch.sin(3 * images).sum((1, 2, 3))

    weights = {"critic_weight": 2.0, "prior_weight": 8.0, "start_weight": 3.0}
    ascent = guided(start, decode, score, critic=critic, steps=30, lr=lr, **weights)
    codes = torch.stack(way)
    assert torch.equal(codes[0], start.codes)
    assert len(codes) == 31
    scores = -(codes - target).square().sum(2)
    beyond = (codes.square().mean(2) - 1).clamp_min(0)
    away = (codes - start.codes).square().mean(2)
    objective = scores + 2 * torch.sin(3 * codes).sum(2) - 8 * beyond / 2 - 3 * away / 2
    best = objective.argmax(0)
    assert len(set(best.tolist()) - {30}) > 0  # not the last of all
    torch.testing.assert_close(ascent.trace, scores)  # the score alone
    torch.testing.assert_close(ascent.objective, objective.amax(0))
    for row in range(5):
        assert torch.equal(ascent.mixes.codes[row], codes[best[row], row])


def test_a_start_that_cannot_be_improved_is_returned() -> None:
    target = 0.5 * normal(2, LATENTS)
    ascent = guided(starting_at(target), decode, lambda m: nearness(target + 1e-6)(m), steps=5, lr=1.0)
    assert torch.equal(ascent.mixes.codes, target)


def test_the_critics_weight_by_hand() -> None:
    def critic(images: Tensor) -> Tensor:
        return -(images - 3).square().sum((1, 2, 3)) / 2

    start = starting_at(torch.full((2, LATENTS), 2.0))
    # 1 = weight * (c - 3) where the critic pulls back as much as the score pulls on.
    for weight, stop in ((0.5, 5.0), (2.0, 3.5)):
        options = {"critic": critic, "critic_weight": weight}
        ascent = guided(start, decode, brightness, prior_weight=0, start_weight=0, steps=300, **options)
        torch.testing.assert_close(ascent.mixes.codes, torch.full((2, LATENTS), stop), rtol=0, atol=0.02)
    for options in ({}, {"critic": critic, "critic_weight": 0.0}):
        ascent = guided(start, decode, brightness, prior_weight=0, start_weight=0, steps=100, **options)
        torch.testing.assert_close(ascent.mixes.codes, torch.full((2, LATENTS), 2 + 100 * 0.06), rtol=0.01, atol=0)


def test_the_priors_weight_by_hand() -> None:
    start = starting_at(torch.zeros(1, LATENTS))
    # Where the score's gradient, 1, is the penalty's, weight * c / latents.
    ascent = guided(start, decode, brightness, prior_weight=6.0, start_weight=0, steps=300)
    torch.testing.assert_close(ascent.mixes.codes, torch.full((1, LATENTS), 12 / 6), rtol=0, atol=0.02)
    # weight * z / (latents * deviation) with z = (c - mean) / deviation: z is 3, c is mean + 3 * deviation.
    prior = (torch.full((LATENTS,), 0.5), torch.full((LATENTS,), 0.5))
    ascent = guided(start, decode, brightness, prior=prior, prior_weight=2.0, start_weight=0, steps=300)
    torch.testing.assert_close(ascent.mixes.codes, torch.full((1, LATENTS), 0.5 + 3 * 0.5), rtol=0, atol=0.02)


@pytest.mark.parametrize(
    ("weight", "deviation", "stop"),
    [
        (0.0, 1.0, 3.0),  # the score's own optimum
        (1.0, 1.0, 2.0),  # half-way
        (4.0, 1.0, 1.4),
        (4.0, 2.0, 2.0),  # in deviations it is as near as at weight 1
        (0.5, 0.5, 5 / 3),
    ],
)
def test_the_starts_weight_by_hand(weight: float, deviation: float, stop: float) -> None:
    def score(mixes: Mixes) -> dict[str, Tensor]:
        return {"near": -(mixes.images - 3).square().mean((1, 2, 3)) / 2}

    # 3 - c = weight * (c - 1) / deviation^2, wherever the prior's mean is.
    prior = (torch.full((LATENTS,), 7.0), torch.full((LATENTS,), deviation))
    start, options = starting_at(torch.ones(2, LATENTS)), {"prior": prior, "prior_weight": 0.0, "steps": 300}
    ascent = guided(start, decode, score, start_weight=weight, **options)
    torch.testing.assert_close(ascent.mixes.codes, torch.full((2, LATENTS), stop), rtol=0, atol=0.01)
    wanted = -((3 - stop) ** 2) / 2 - weight * ((stop - 1) / deviation) ** 2 / 2
    assert ascent.objective.tolist() == pytest.approx([wanted] * 2, abs=1e-3)


def test_each_latent_is_pulled_to_its_own_start_in_its_own_deviation() -> None:
    def score(mixes: Mixes) -> dict[str, Tensor]:
        return {"near": -(mixes.images - 3).square().mean((1, 2, 3)) / 2}

    deviations, starts = torch.tensor([1.0, 2.0] * 6), torch.tensor([[-1.0] * 6 + [1.0] * 6, [5.0] * 12])
    prior = (torch.zeros(LATENTS), deviations)
    ascent = guided(starting_at(starts), decode, score, prior=prior, prior_weight=0, steps=400)  # by default 0.5
    pull = torch.tensor([0.5, 0.125] * 6)
    torch.testing.assert_close(ascent.mixes.codes, (3 + pull * starts) / (1 + pull), rtol=0, atol=0.01)


def test_the_objective_of_what_is_returned_by_hand() -> None:
    def critic(images: Tensor) -> Tensor:
        return images.square().sum((1, 2, 3))

    start = starting_at(4 * normal(4, LATENTS))
    mean, deviation = 0.1 * normal(LATENTS, key=1), 0.5 + normal(LATENTS, key=2).abs()
    weights = {"critic_weight": 0.25, "prior_weight": 3.0, "start_weight": 7.0}
    ascent = guided(start, decode, brightness, critic=critic, prior=(mean, deviation), steps=7, **weights)
    assert ascent.objective.shape == (4,)
    assert not ascent.objective.requires_grad
    for row in range(4):
        code = ascent.mixes.codes[row]
        beyond = max(0.0, (((code - mean) / deviation) ** 2).mean().item() - 1)
        away = (((code - start.codes[row]) / deviation) ** 2).mean().item()
        assert beyond > 0.1
        assert away > 0
        wanted = code.sum().item() + 0.25 * (code**2).sum().item() - 3 * beyond / 2 - 7 * away / 2
        assert ascent.objective[row].item() == pytest.approx(wanted, rel=1e-4)


def test_a_firm_prior_holds_codes_where_they_are_usual() -> None:
    start = starting_at(normal(4, LATENTS))
    ascent = guided(start, decode, brightness, prior_weight=200.0, steps=100)
    assert ascent.mixes.codes.square().mean(1).tolist() == pytest.approx([1] * 4, abs=0.1)
    assert (ascent.mixes.codes.sum(1) > start.codes.sum(1) + 2).all()  # it has gone on along the sphere


@pytest.mark.parametrize(
    ("level", "prior", "stop"),
    [
        (0.99, None, 0.99),  # mean square below 1: no pull at all
        (2.0, None, 1.5),
        (-2.0, None, -1.5),
        (2.0, (0.0, 3.0), 2.0),  # usual under a wide prior
        (2.0, (5.0, 1.0), 2.5),  # pulled to where this prior has its codes
        (2.0, (2.1, 0.2), 2.0),
        (2.0, (2.45, 0.1), 2.4),  # and no further than where they are usual
    ],
)
def test_the_prior_pulls_only_what_is_unusual(level: float, prior: tuple[float, float] | None, stop: float) -> None:
    moments = None if prior is None else tuple(torch.full((LATENTS,), value) for value in prior)
    start = starting_at(torch.full((1, LATENTS), level))
    ascent = guided(start, decode, nothing, prior=moments, steps=5, lr=0.1)
    found = ascent.mixes.codes
    torch.testing.assert_close(found, torch.full((1, LATENTS), stop), rtol=0, atol=0.03)
    assert torch.equal(found, start.codes) == (level == stop)


def test_the_prior_counts_the_mean_over_latents() -> None:
    codes = torch.zeros(1, LATENTS)
    codes[0, 0] = 3.0  # 9 / 12 is below 1: one latent far out is usual
    assert torch.equal(guided(starting_at(codes), decode, nothing, steps=3).mixes.codes, codes)
    codes[0, 0] = 4.0  # 16 / 12 is not
    found = guided(starting_at(codes), decode, nothing, steps=3, lr=0.05).mixes.codes
    torch.testing.assert_close(found[0, 0], torch.tensor(3.85), rtol=0, atol=0.01)
    assert torch.equal(found[0, 1:], codes[0, 1:])


@pytest.mark.parametrize(
    ("steps", "frames", "shown"),
    [(10, 4, [0, 3, 7, 10]), (10, 2, [0, 10]), (3, 9, [0, 1, 2, 3]), (80, 9, list(range(0, 81, 10))), (0, 9, [0])],
)
def test_frames_are_the_images_of_their_steps(steps: int, frames: int, shown: list[int]) -> None:
    start = starting_at(normal(2, LATENTS))
    way: list[Tensor] = []

    def score(mixes: Mixes) -> dict[str, Tensor]:
        way.append(mixes.images.detach().clone())
        return brightness(mixes)

    ascent = guided(start, decode, score, steps=steps, frames=frames)
    assert ascent.steps == shown
    assert len(way) == steps + 1
    assert len(ascent.trace) == steps + 1
    assert torch.equal(ascent.frames, torch.stack([way[step] for step in shown]))
    assert torch.equal(ascent.frames[0], start.images)
    assert steps == 0 or not torch.equal(ascent.frames[0], ascent.frames[-1])


@pytest.mark.parametrize(("recorded", "shown"), [(1, 1), (3, 3), (5, 5), (64, 5)])
def test_frames_are_kept_of_the_first_candidates(recorded: int, shown: int) -> None:
    start = starting_at(normal(5, LATENTS))
    ascent = guided(start, decode, brightness, steps=4, frames=3, recorded=recorded)
    assert ascent.frames.shape == (3, shown, *SHAPE)
    assert torch.equal(ascent.frames[0], start.images[:shown])
    assert torch.equal(ascent.frames[-1], ascent.mixes.images[:shown])  # brighter with every step
    assert ascent.trace.shape == (5, 5)
    assert len(ascent.mixes.codes) == len(ascent.objective) == 5


def test_by_default_frames_of_64_are_kept() -> None:
    assert guided(starting_at(normal(70, LATENTS)), decode, brightness, steps=1).frames.shape == (2, 64, *SHAPE)


def test_a_candidate_without_an_objective_stays_where_it_was() -> None:
    start = starting_at(normal(3, LATENTS))

    def score(mixes: Mixes) -> dict[str, Tensor]:
        return {"root": torch.tensor([1.0, -1.0, 1.0]).sqrt() * mixes.images.sum((1, 2, 3))}

    ascent = guided(start, decode, score, steps=5)
    assert torch.equal(ascent.mixes.codes[1], start.codes[1])
    assert torch.equal(ascent.mixes.images[1], start.images[1])
    rest = torch.tensor([0, 2])
    wanted = guided(start.take(rest), decode, brightness, steps=5)
    torch.testing.assert_close(ascent.mixes.codes[rest], wanted.mixes.codes)


def test_an_objective_lost_on_the_way_leaves_the_best_before() -> None:
    def score(mixes: Mixes) -> dict[str, Tensor]:
        level = mixes.images.mean((1, 2, 3))
        return {"edge": torch.where(level > 0.25, torch.nan, level)}

    ascent = guided(starting_at(torch.zeros(1, LATENTS)), decode, score, steps=6, lr=0.1, start_weight=0)
    torch.testing.assert_close(ascent.mixes.codes, torch.full((1, LATENTS), 0.2))
    assert ascent.trace[3:].isnan().all()
    assert ascent.objective.tolist() == pytest.approx([0.2])
