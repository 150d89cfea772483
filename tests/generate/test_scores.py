"""Tests of the scores by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pegasus_lightning.generate.mixing import Mixes
from pegasus_lightning.generate.scores import (
    CriticAndOverlap,
    CriticScore,
    RecognisedAndReal,
    distance_from_blend,
    overlap,
    total,
)
from pegasus_lightning.utils.tensors import BATCH

SHAPE = (3, 2, 2)


def greys(*levels: float) -> Tensor:
    """One image of each level all over, (n, 3, 2, 2)."""
    return torch.tensor(levels, dtype=torch.float32).reshape(-1, 1, 1, 1).repeat(1, *SHAPE)


def mixes_of(images: Tensor, first: Tensor, second: Tensor, *ratios: float) -> Mixes:
    return Mixes(torch.zeros(len(images), 4), images, first, second, torch.tensor(ratios))


def level(images: Tensor) -> Tensor:
    """A critic: the mean over an image."""
    return images.mean((1, 2, 3))


def log_sigmoid(x: float) -> float:
    return -math.log(1 + math.exp(-x))


def test_distance_from_blend_by_hand() -> None:
    # Blends .25 and .45: off by .5 and .15, whatever lies between the parents.
    mixes = mixes_of(greys(0.75, 0.6), greys(0, 0.2), greys(1, 0.7), 0.25, 0.5)
    assert distance_from_blend(mixes).tolist() == pytest.approx([0.5, 0.15])


def test_distance_from_blend_takes_root_mean_squares_over_all_pixels() -> None:
    images, second = greys(0.5), greys(1)
    images[0, 2, 0, 1] = 0.9  # one of 12 values is off
    assert distance_from_blend(mixes_of(images, greys(0), second, 0.5)).tolist() == pytest.approx([0.4 / math.sqrt(12)])
    second = greys(0)
    second[0, 0, 0, 0] = 1  # parents that differ in one value, which is off by .5, 11 others by .25
    wanted = math.sqrt((0.5**2 + 11 * 0.25**2) / 12)
    images = greys(0.25)
    images[0, 0, 0, 0] = 1
    assert distance_from_blend(mixes_of(images, greys(0), second, 0.5)).tolist() == pytest.approx([wanted])


def test_two_overlaid_images_have_no_distance_from_the_blend_and_a_gradient_that_is_finite() -> None:
    first, second = greys(0, 0.2), greys(1, 0.6)
    images = greys(0.25, 0.4).requires_grad_()
    found = distance_from_blend(mixes_of(images, first, second, 0.25, 0.5))
    assert found.tolist() == pytest.approx([0, 0], abs=1e-5)
    (gradient,) = torch.autograd.grad(found.sum(), images)
    assert gradient.isfinite().all()
    # A little off, it pulls away from the blend: d|off| / d image is 1 / pixels.
    off = greys(0.26, 0.39).requires_grad_()
    (gradient,) = torch.autograd.grad(distance_from_blend(mixes_of(off, first, second, 0.25, 0.5)).sum(), off)
    torch.testing.assert_close(gradient, greys(1 / 12, -1 / 12), rtol=1e-3, atol=0)


def test_like_parents_win_nothing_by_being_alike() -> None:
    mixes = mixes_of(greys(0.5, 0.6), greys(0.5, 0.5), greys(0.5, 0.5), 0.5, 0.5)
    assert distance_from_blend(mixes).tolist() == pytest.approx([0, 0.1], abs=1e-5)


def test_the_critics_score_by_hand() -> None:
    score = CriticScore(level, greys(1, 3, 5))  # mean 3, deviation 2
    assert score(greys(3, 5, -1)).tolist() == pytest.approx([math.log(0.5), log_sigmoid(1), log_sigmoid(-2)])
    assert score(greys(1e6)).item() == 0  # saturates


def test_critics_of_other_units_weigh_alike() -> None:
    reference, images = greys(0.1, 0.5, 0.4), greys(0.2, 0.9)
    wanted = CriticScore(level, reference)(images)
    for scale, shift in ((1000, -70), (1e-3, 5)):
        rescaled = CriticScore(lambda x, a=scale, b=shift: a * level(x) + b, reference)(images)
        torch.testing.assert_close(rescaled, wanted, rtol=1e-2, atol=1e-3)


def test_the_reference_goes_through_the_critic_in_batches() -> None:
    sizes = []

    def watched(images: Tensor) -> Tensor:
        sizes.append(len(images))
        return level(images)

    levels = torch.linspace(0, 1, 2 * BATCH + 7).square()
    score = CriticScore(watched, greys(*levels.tolist()))
    assert sizes == [BATCH, BATCH, 7]
    assert score.mean.item() == pytest.approx(levels.mean().item())
    assert score.deviation.item() == pytest.approx(levels.std().item())


def test_a_constant_critic_divides_by_nothing() -> None:
    score = CriticScore(lambda images: torch.full((len(images),), 7.0), greys(0, 1))
    assert score(greys(0.3)).item() == pytest.approx(math.log(0.5))


def test_the_reference_keeps_no_gradients_and_images_have_theirs() -> None:
    scale = torch.tensor(2.0, requires_grad=True)
    score = CriticScore(lambda images: scale * level(images), greys(0, 1, 2))  # mean 2, deviation 2
    assert not score.mean.requires_grad
    assert not score.deviation.requires_grad
    images = greys(1, 2).requires_grad_()
    (gradient,) = torch.autograd.grad(score(images).sum(), images)
    # d log sigmoid(u) = sigmoid(-u) du, u = 0 and 1; du / d pixel = 2 / 2 / 12.
    torch.testing.assert_close(gradient, greys(0.5 / 12, 1 / (1 + math.e) / 12))


def test_the_terms_of_critic_and_overlap_by_hand() -> None:
    mixes = mixes_of(greys(0.75, 0.6), greys(0, 0.2), greys(1, 0.7), 0.25, 0.5)  # distances .5 and .15
    terms = CriticAndOverlap(level, critic_weight=3, overlap_weight=5, margin=0.1)(mixes)
    assert terms.keys() == {"critic", "overlap"}
    assert terms["critic"].tolist() == pytest.approx([3 * 0.75, 3 * 0.6])
    assert terms["overlap"].tolist() == pytest.approx([-5 * math.exp(-5), -5 * math.exp(-1.5)])
    default = CriticAndOverlap(level)(mixes)
    assert default["critic"].tolist() == pytest.approx([0.75, 0.6])
    assert default["overlap"].tolist() == pytest.approx([-2 * math.exp(-25), -2 * math.exp(-7.5)], rel=1e-4)


def test_without_a_critic_there_is_the_overlap_alone() -> None:
    mixes = mixes_of(greys(0.25), greys(0), greys(1), 0.25)
    terms = CriticAndOverlap(None, critic_weight=3)(mixes)
    assert terms.keys() == {"overlap"}
    assert terms["overlap"].tolist() == pytest.approx([-2], abs=1e-3)  # two overlaid images: all of the penalty


def test_the_score_is_the_sum_of_its_terms() -> None:
    one, other = torch.tensor([1.0, 2.0]), torch.tensor([10.0, -20.0])
    assert total({"one": one}).tolist() == [1, 2]
    assert total({"one": one, "other": other, "again": one}).tolist() == [12, -16]


def test_a_deviation_needs_two() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        CriticScore(level, greys(1))


def two_levels(images: Tensor) -> Tensor:
    """Logits of a recogniser: one rises, the other falls with the level."""
    return torch.stack([4 * level(images), 1 - 2 * level(images)], 1)


def recognise(images: Tensor) -> tuple[Tensor, Tensor]:
    """The darker, the more real."""
    return two_levels(images), -level(images)


def test_the_terms_of_recognised_and_real_by_hand() -> None:
    mixes = mixes_of(greys(0.75, 0.5), greys(0, 0.2), greys(1, 0.6), 0.25, 0.5)  # distances .5 and .1
    score = RecognisedAndReal(
        recognise, lambda x: 1e6 * level(x), recognised_weight=3, realism_weight=5, overlap_weight=7, margin=0.1
    )
    terms = score(mixes)
    assert [*terms] == ["recognised", "realism", "overlap"]
    both = [log_sigmoid(3) + log_sigmoid(-0.5), log_sigmoid(2) + log_sigmoid(0)]  # two sigmoids, no softmax
    assert terms["recognised"].tolist() == pytest.approx([3 * value for value in both])
    assert terms["realism"].tolist() == pytest.approx([-5 * 0.75, -5 * 0.5])
    assert terms["overlap"].tolist() == pytest.approx([-7 * math.exp(-5), -7 * math.exp(-1)])
    default = RecognisedAndReal(recognise)(mixes)
    assert default["recognised"].tolist() == pytest.approx(both)
    assert default["realism"].tolist() == pytest.approx([-0.75, -0.5])
    assert default["overlap"].tolist() == pytest.approx([-2 * math.exp(-25), -2 * math.exp(-5)], rel=1e-4)
    assert overlap(mixes, 7, 0.1)["overlap"].tolist() == terms["overlap"].tolist()


def test_realism_comes_from_elsewhere_if_the_recogniser_gives_none() -> None:
    mixes = mixes_of(greys(0.75), greys(0), greys(1), 0.25)
    said = RecognisedAndReal(lambda x: (two_levels(x), None), lambda x: 3 * level(x), realism_weight=5)(mixes)
    assert said["realism"].tolist() == pytest.approx([5 * 3 * 0.75])
    assert RecognisedAndReal(lambda x: (two_levels(x), None))(mixes)["realism"].tolist() == [0]


def test_both_classes_must_be_recognised() -> None:
    """One class for certain and the other not at all is worse than both half and half."""
    logits = torch.tensor([[9.0, -9.0], [0.0, 0.0], [2.0, 2.0]])
    mixes = mixes_of(greys(0.5, 0.5, 0.5), greys(0, 0, 0), greys(1, 1, 1), 0.5, 0.5, 0.5)
    found = RecognisedAndReal(lambda x: (logits, level(x)))(mixes)["recognised"]
    assert found.argsort().tolist() == [0, 1, 2]


def test_a_gradient_climbs_to_where_both_are_recognised() -> None:
    images = greys(0.3).requires_grad_()
    score = RecognisedAndReal(lambda x: (two_levels(x), None), overlap_weight=0)
    (gradient,) = torch.autograd.grad(total(score(mixes_of(images, greys(0), greys(1), 0.5))).sum(), images)
    # d/dl: 4 sigmoid(-4 l) - 2 sigmoid(2 l - 1), over 12 pixels.
    wanted = (4 / (1 + math.exp(1.2)) - 2 / (1 + math.exp(0.4))) / 12
    torch.testing.assert_close(gradient, greys(wanted))
