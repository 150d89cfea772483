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
