"""Draws as functions of (seed, stream, counter)."""

import itertools

import torch

from pegasus_lightning.utils.randomness import Stream, derived_seed, generator


def test_a_draw_does_not_depend_on_what_came_before() -> None:
    first = torch.randn(5, generator=generator(3, Stream.NOISE, 7))
    torch.randn(100)
    torch.randn(9, generator=generator(3, Stream.NOISE, 6))
    assert torch.equal(torch.randn(5, generator=generator(3, Stream.NOISE, 7)), first)


def test_seeds_streams_and_counters_are_all_told_apart() -> None:
    keys = list(itertools.product(range(10), Stream, range(50)))
    assert len({derived_seed(*key) for key in keys}) == len(keys)
    # Neighbouring counters are unrelated, not shifted copies of one sequence.
    one, next_one = (torch.randn(20000, generator=generator(0, Stream.NOISE, n)) for n in (0, 1))
    correlation = torch.corrcoef(torch.stack([one, next_one]))[0, 1].item()
    assert abs(correlation) < 5 / 20000**0.5


def test_seeds_are_those_of_the_first_release() -> None:
    # These numbers must not change, so that old runs can resume.
    names = "WEIGHTS SPLIT ORDER FLIPS NOISE MIXING PRIOR PICTURES PAIRS RATIOS CODES BOOTSTRAP AUGMENTATION"
    names += " LESSONS MOVES PENALTY"  # added since
    assert {stream.name: stream.value for stream in Stream} == {name: n for n, name in enumerate(names.split())}
    assert derived_seed(0, Stream.WEIGHTS) == 15793235383387715774
    assert derived_seed(42, Stream.FLIPS, 1000) == 7155858923877063520
    assert 0 <= derived_seed(2**63 - 1, Stream.PICTURES, 2**40) < 2**64


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    torch.rand(3, generator=generator(0, Stream.ORDER))
    assert torch.equal(torch.get_rng_state(), before)
