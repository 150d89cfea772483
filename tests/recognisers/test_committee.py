"""Tests of several recognisers as one: mean logits, features side by side, turns, and distances by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pegasus_lightning.recognisers.committee import Committee
from pegasus_lightning.recognisers.network import Recogniser

NAMES = ("averaging", "plain", "residual")


def member(architecture: str, seed: int, images: Tensor) -> Recogniser:
    """With statistics, temperature and offset that are none of the usual ones."""
    model = Recogniser(architecture, ("horse", "bird"), seed=seed)
    with torch.no_grad():
        model.fit_input(images)
        model.features(images)  # running statistics of its norms
    model.temperature.copy_(torch.tensor([2.0, 0.5]) + seed)
    model.offset.copy_(torch.tensor([0.3, -0.7]) * (seed + 1))
    return model


@pytest.fixture
def committee(images: Tensor) -> Committee:
    return Committee([member(name, seed, images) for seed, name in enumerate(NAMES)])


def test_a_committee_needs_a_member() -> None:
    with pytest.raises(ValueError, match="needs a member"):
        Committee([])


def test_its_members_are_frozen_for_good(images: Tensor) -> None:
    models = [member(name, 0, images) for name in NAMES]
    assert all(model.training for model in models)
    committee = Committee(models).train()
    assert not any(module.training for model in committee.members for module in model.modules())
    assert not any(parameter.requires_grad for parameter in committee.parameters())
    logits = committee(images)
    assert torch.equal(committee(images), logits)


def test_its_logits_are_the_mean_of_its_members(committee: Committee, images: Tensor) -> None:
    one, two, three = (model(images) for model in committee.members)
    assert not torch.allclose(one, two, atol=1e-2)
    torch.testing.assert_close(committee(images), (one + two + three) / 3, rtol=1e-4, atol=1e-5)
    alone = Committee([committee.members[1]])
    torch.testing.assert_close(alone(images), two)


def test_its_features_are_those_of_its_members_side_by_side(committee: Committee, images: Tensor) -> None:
    features = committee.features(images)
    assert features.shape == (4, 128 + 128 + 192)
    parts = features.split([128, 128, 192], 1)
    for part, model in zip(parts, committee.members, strict=True):
        torch.testing.assert_close(part, model.features(images))
    changed = features.clone()
    changed[:, 128:256] = 0  # the second's: of three logits one becomes that of nothing
    zero = committee.members[1].classify(torch.zeros(4, 128)) - committee.members[1](images)
    torch.testing.assert_close(committee.classify(changed) - committee(images), zero / 3, rtol=1e-3, atol=1e-4)


def test_each_takes_its_turn_with_one_pass(committee: Committee, images: Tensor) -> None:
    for turn in range(7):
        model = committee.members[turn % 3]
        assert committee.member(turn) is model
        raw = model.body((images - model.mean) / model.deviation) @ model.head.weight.T + model.head.bias
        wanted = raw / model.temperature + model.offset
        torch.testing.assert_close(committee.logits(images, turn), wanted, rtol=1e-4, atol=1e-4)
    passes = []
    committee.members[0].body[0].register_forward_hook(lambda *_: passes.append(1))
    committee.logits(images, 3)
    assert len(passes) == 1  # none of the mirror image


# Which of its modules are the blocks whose maps are compared, in order.
BLOCKS = {"averaging": [0, 2, 3, 5, 6], "plain": [2, 3, 4, 5, 6, 7], "residual": [3, 4, 5, 6]}


@pytest.mark.parametrize("turn", [0, 1, 2])
def test_the_distance_by_hand(turn: int, committee: Committee, images: Tensor) -> None:
    """|a - b|^2 of two unit vectors is 2 - 2 cos, at every place of every block, and of the penultimate layer."""
    model, others = committee.members[turn], images.flip(0) ** 2
    maps: list[Tensor] = []
    hooks = [
        model.body[block].register_forward_hook(lambda _, __, out: maps.append(out))
        for block in [*BLOCKS[NAMES[turn]], len(model.body) - 1]
    ]
    for batch in (images, others):
        model.body((batch - model.mean) / model.deviation)
    for hook in hooks:
        hook.remove()
    half = len(maps) // 2
    wanted = torch.zeros(4)
    for one, other in zip(maps[:half], maps[half:], strict=True):
        cosine = torch.nn.functional.cosine_similarity(one, other, dim=1, eps=1e-6)
        dead = (one.norm(dim=1) == 0) | (other.norm(dim=1) == 0)  # of a unit vector and none: 1, of none and none: 0
        apart = torch.where(dead, ((one.norm(dim=1) > 0) | (other.norm(dim=1) > 0)).float(), 2 - 2 * cosine)
        wanted += apart.reshape(4, -1).mean(1)
    found = committee.distance(images, others, turn)
    assert found.shape == (4,)
    assert found.min() > 0.05
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(committee.distance(images, others, turn + 3), found)


@pytest.mark.parametrize("turn", [0, 1, 2])
def test_an_image_is_at_no_distance_from_itself_and_nearer_to_what_is_like_it(
    turn: int, committee: Committee, images: Tensor
) -> None:
    torch.testing.assert_close(committee.distance(images, images, turn), torch.zeros(4), rtol=0, atol=1e-5)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    near, far = (committee.distance(images, images + size * noise, turn) for size in (0.02, 0.2))
    assert (near > 0).all()
    assert (far > 5 * near).all()


def test_gradients_reach_the_others_alone(committee: Committee, images: Tensor) -> None:
    for turn in range(3):
        one, other = images.clone().requires_grad_(), images.flip(3).contiguous().requires_grad_()
        committee.distance(one, other, turn).sum().backward()
        assert one.grad is None
        assert other.grad is not None
        assert other.grad.isfinite().all()
        assert (other.grad.flatten(1).abs().sum(1) > 0).all()
        asked = images.clone().requires_grad_()
        (slope,) = torch.autograd.grad(committee.logits(asked, turn).sum(), asked)
        assert (slope.flatten(1).abs().sum(1) > 0).all()
    assert all(parameter.grad is None for parameter in committee.parameters())


def test_a_black_or_white_picture_does_no_harm(committee: Committee, images: Tensor) -> None:
    for turn in range(3):
        other = torch.stack([torch.zeros(3, 32, 32), torch.ones(3, 32, 32)]).requires_grad_()
        distance = committee.distance(images[:2], other, turn)
        distance.sum().backward()
        assert distance.isfinite().all()
        assert other.grad is not None
        assert other.grad.isfinite().all()
