"""Tests of mixes by hand, with a decoder that is a matrix."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pegasus_lightning.generate.mixing import Mixer, Mixes, Recipes, code_noise, recipes
from pegasus_lightning.generate.pairs import Pairs
from pegasus_lightning.models.latent import Posterior
from pegasus_lightning.utils.randomness import Stream, generator
from pegasus_lightning.utils.tensors import BATCH, in_batches

LATENTS, SHAPE = 4, (3, 2, 2)
MATRIX = torch.randn(LATENTS, math.prod(SHAPE), generator=generator(0, Stream.WEIGHTS))


def decode(codes: Tensor) -> Tensor:
    return (codes @ MATRIX).unflatten(1, SHAPE)


def normal(*shape: int, key: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(key, Stream.NOISE))


def some_pairs(first: list[int], second: list[int]) -> Pairs:
    return Pairs(torch.tensor(first), torch.tensor(second), None, len(first), len(first))


FIRST = Posterior(normal(5, LATENTS, key=1), normal(5, LATENTS, key=2))
SECOND = Posterior(normal(3, LATENTS, key=3), normal(3, LATENTS, key=4))
CHOSEN = Recipes(
    torch.tensor([4, 0, 4]), torch.tensor([1, 1, 2]), torch.tensor([0.25, 0.5, 0.8]), torch.tensor([7, 0, 31])
)


def test_batches_are_computed_one_after_another() -> None:
    sizes = []

    def double(part: Tensor) -> Tensor:
        sizes.append(len(part))
        return 2 * part

    inputs = torch.arange(14).reshape(7, 2)
    assert torch.equal(in_batches(double, inputs, 3), 2 * inputs)
    assert sizes == [3, 3, 1]


def test_recipes_go_pair_after_pair() -> None:
    made = recipes(some_pairs([3, 1], [0, 2]), (0.4, 0.6), ratios=3)
    assert len(made) == 6
    assert made.first.tolist() == [3, 3, 3, 1, 1, 1]
    assert made.second.tolist() == [0, 0, 0, 2, 2, 2]
    assert made.draws.tolist() == [0, 1, 2, 3, 4, 5]
    assert made.ratios.shape == (6,)
    assert len(set(made.ratios.tolist())) == 6
    assert len(recipes(some_pairs([3, 1], [0, 2]), (0.4, 0.6))) == 2


def test_ratios_are_uniform_over_their_range() -> None:
    count, bins = 20000, 10
    ratios = recipes(some_pairs([0], [0]), (0.2, 0.7), ratios=count).ratios
    assert ratios.min() >= 0.2
    assert ratios.max() <= 0.7
    found = torch.histc(ratios, bins, 0.2, 0.7)
    assert found.sum() == count
    assert (found - count / bins).abs().max() < 4.5 * math.sqrt(count * 0.1 * 0.9)
    assert recipes(some_pairs([0, 0], [0, 0]), (0.5, 0.5)).ratios.tolist() == [0.5, 0.5]


def test_a_seed_decides_the_ratios() -> None:
    before = torch.get_rng_state()
    pairs = some_pairs([0] * 20, [0] * 20)
    ratios = [recipes(pairs, (0, 1), seed=seed).ratios for seed in (3, 3, 4)]
    assert torch.equal(ratios[0], ratios[1])
    assert not torch.equal(ratios[0], ratios[2])
    assert torch.equal(torch.get_rng_state(), before)


def test_recipes_at_indices() -> None:
    taken = CHOSEN.take(torch.tensor([2, 0]))
    assert taken.first.tolist() == [4, 4]
    assert taken.second.tolist() == [2, 1]
    assert taken.ratios.tolist() == pytest.approx([0.8, 0.25])
    assert taken.draws.tolist() == [31, 7]


def test_noise_is_a_function_of_seed_and_draw_alone() -> None:
    before = torch.get_rng_state()
    noise = code_noise(3, torch.tensor([5, 2, 9]), 6)
    assert noise.shape == (3, 2, 6)
    assert torch.equal(code_noise(3, torch.tensor([9]), 6)[0], noise[2])  # whatever its company,
    assert torch.equal(code_noise(3, torch.tensor([2, 9, 5]), 6), noise[[1, 2, 0]])  # whatever its place
    assert len({tuple(row.tolist()) for row in noise.flatten(0, 1)}) == 6  # no draw and no parent alike
    assert not torch.equal(code_noise(4, torch.tensor([5]), 6)[0], noise[0])
    assert torch.equal(torch.get_rng_state(), before)


def test_noise_is_standard_normal_and_the_parents_are_independent() -> None:
    noise = code_noise(0, torch.arange(400), 64)
    spread = 4.5 / math.sqrt(noise[:, 0].numel())
    for parent in (0, 1):
        assert abs(noise[:, parent].mean()) < spread
        assert noise[:, parent].var().item() == pytest.approx(1, abs=math.sqrt(2) * spread)
    assert abs((noise[:, 0] * noise[:, 1]).mean()) < spread
    assert abs((noise[1:] * noise[:-1]).mean()) < spread


def codes_by_hand(seed: int) -> Tensor:
    """Of CHOSEN: (1 - ratio) * (mean + deviation * noise) + ratio * the same of the other parent."""
    rows = []
    for first, second, ratio, draw in ((4, 1, 0.25, 7), (0, 1, 0.5, 0), (4, 2, 0.8, 31)):
        noise = torch.randn(2, LATENTS, generator=generator(seed, Stream.CODES, draw))
        start = FIRST.mean[first] + FIRST.log_variance[first].exp().sqrt() * noise[0]
        end = SECOND.mean[second] + SECOND.log_variance[second].exp().sqrt() * noise[1]
        rows.append((1 - ratio) * start + ratio * end)
    return torch.stack(rows)


def test_mixes_by_hand() -> None:
    mixes = Mixer(decode, FIRST, SECOND, seed=3)(CHOSEN)
    codes = codes_by_hand(3)
    torch.testing.assert_close(mixes.codes, codes)
    torch.testing.assert_close(mixes.images, (codes @ MATRIX).reshape(3, *SHAPE))
    # The parents are shown as their means decode, not as the codes that were mixed.
    torch.testing.assert_close(mixes.first, (FIRST.mean[[4, 0, 4]] @ MATRIX).reshape(3, *SHAPE))
    torch.testing.assert_close(mixes.second, (SECOND.mean[[1, 1, 2]] @ MATRIX).reshape(3, *SHAPE))
    assert torch.equal(mixes.ratios, CHOSEN.ratios)
    torch.testing.assert_close(Mixer(decode, FIRST, SECOND)(CHOSEN).codes, codes_by_hand(0))


def test_codes_of_both_parents() -> None:
    start, end = Mixer(decode, FIRST, SECOND, seed=3).parent_codes(CHOSEN)
    noise = code_noise(3, CHOSEN.draws, LATENTS)
    torch.testing.assert_close(start[0], FIRST.mean[4] + torch.exp(FIRST.log_variance[4] / 2) * noise[0, 0])
    torch.testing.assert_close(end[2], SECOND.mean[2] + torch.exp(SECOND.log_variance[2] / 2) * noise[2, 1])


def mean_codes() -> Tensor:
    ratios = CHOSEN.ratios[:, None]
    return (1 - ratios) * FIRST.mean[[4, 0, 4]] + ratios * SECOND.mean[[1, 1, 2]]


def test_mixes_of_the_means() -> None:
    torch.testing.assert_close(Mixer(decode, FIRST, SECOND, sampled=False, seed=3)(CHOSEN).codes, mean_codes())
    plain = [Posterior(posterior.mean, posterior.log_variance, deterministic=True) for posterior in (FIRST, SECOND)]
    torch.testing.assert_close(Mixer(decode, *plain, seed=3)(CHOSEN).codes, mean_codes())


def test_mixes_of_the_other_kinds() -> None:
    direction = torch.tensor([1.0, -2.0, 0.0, 3.0])
    along = Mixer(decode, FIRST, SECOND, how="direction", sampled=False, direction=direction)(CHOSEN)
    torch.testing.assert_close(along.codes, FIRST.mean[[4, 0, 4]] + CHOSEN.ratios[:, None] * direction)
    first, second = (Posterior(mean, torch.zeros(1, 4)) for mean in (torch.eye(4)[:1], 2 * torch.eye(4)[1:2]))
    at_third = Recipes(torch.tensor([0]), torch.tensor([0]), torch.tensor([1 / 3]), torch.tensor([0]))
    curved = Mixer(decode, first, second, how="slerp", sampled=False)(at_third)
    torch.testing.assert_close(curved.codes, torch.tensor([[math.sqrt(3) / 2, 1, 0, 0]]))


def test_a_mix_does_not_depend_on_what_else_is_made() -> None:
    mixer = Mixer(decode, FIRST, SECOND, seed=3)
    together = mixer(CHOSEN)
    for order in ([1], [2, 0], [0, 1, 2, 1]):
        again = mixer(CHOSEN.take(torch.tensor(order)))
        for name in ("codes", "images", "first", "second", "ratios"):
            torch.testing.assert_close(getattr(again, name), getattr(together, name)[order], msg=name)


def test_parents_are_decoded_once_in_batches() -> None:
    sizes = []

    def watched(codes: Tensor) -> Tensor:
        sizes.append(len(codes))
        return decode(codes)

    many = Posterior(normal(BATCH + 5, LATENTS), torch.zeros(BATCH + 5, LATENTS))
    mixer = Mixer(watched, many, SECOND)
    assert sizes == [BATCH, 5, 3]
    last = Recipes(torch.tensor([BATCH + 4]), torch.tensor([2]), torch.tensor([0.5]), torch.tensor([0]))
    torch.testing.assert_close(mixer(last).first, decode(many.mean[-1:]))
    assert sizes[3:] == [1]


def counted(numbers: list[float]) -> Mixes:
    """Mixes told apart by a number, in every field another multiple of it."""
    n = torch.tensor(numbers)
    images = n[:, None, None, None].expand(-1, *SHAPE)
    return Mixes(n[:, None].expand(-1, LATENTS), 10 * images, 100 * images, 1000 * images, n / 10)


def assert_same(found: Mixes, wanted: Mixes) -> None:
    for name in ("codes", "images", "first", "second", "ratios"):
        assert torch.equal(getattr(found, name), getattr(wanted, name)), name


def test_mixes_taken_split_and_put_together() -> None:
    mixes = counted([0, 1, 2, 3, 4])
    assert_same(mixes.take(torch.tensor([3, 0, 3])), counted([3, 0, 3]))
    parts = mixes.split(2)
    assert len(parts) == 3
    for part, numbers in zip(parts, ([0, 1], [2, 3], [4]), strict=True):
        assert_same(part, counted(numbers))
    assert_same(Mixes.cat([parts[2], parts[0]]), counted([4, 0, 1]))


def test_the_pixel_blend_by_hand() -> None:
    first, second = torch.zeros(2, *SHAPE), torch.ones(2, *SHAPE)
    first[0, 1, 0, 1] = 0.8
    blend = Mixes(torch.zeros(2, 4), first, first, second, torch.tensor([0.25, 0.6])).pixel_blend()
    assert blend[0, 1, 0, 1].item() == pytest.approx(0.75 * 0.8 + 0.25)
    assert blend[0, 0].flatten().tolist() == pytest.approx([0.25] * 4)
    assert blend[1].flatten().tolist() == pytest.approx([0.6] * 12)
