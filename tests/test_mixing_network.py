"""The learned mixing: lerp at first, the parents at the ends, gate by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pegasus_lightning.config import NetworksConfig
from pegasus_lightning.latent import lerp
from pegasus_lightning.mixing_network import MixNetwork

LAYOUTS = ["flat", "spatial"]


def network(layout: str, seed: int = 0, **fields: Any) -> MixNetwork:
    torch.manual_seed(seed)
    return MixNetwork(NetworksConfig(**{"latent": layout, "latent_dim": 32, "channels": 4} | fields))


def said(model: MixNetwork, lean: float) -> MixNetwork:
    """Its last layer says the same everywhere."""
    last = model.layers[-1]
    assert isinstance(last, nn.Conv2d)
    with torch.no_grad():
        last.weight.zero_()
        last.bias.fill_(lean)
    return model


def learned(model: MixNetwork) -> MixNetwork:
    """With weights that say something else at every place."""
    with torch.no_grad():
        for parameter in model.layers[-1].parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    return model


def codes(count: int = 5, seed: int = 1) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(seed)
    return torch.randn(count, 32, generator=source), torch.randn(count, 32, generator=source)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_begins_as_the_straight_line(layout: str) -> None:
    first, second = codes()
    ratios = torch.tensor([0.0, 0.2, 0.5, 0.7, 1.0])
    model = network(layout)
    torch.testing.assert_close(model(first, second, ratios), lerp(first, second, ratios[:, None]), rtol=0, atol=2e-6)
    # And yet it can learn at once.
    model(first, second, ratios).square().sum().backward()
    gradient = model.layers[-1].weight.grad.abs().sum((1, 2, 3))
    assert (gradient > 0).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_ends_are_the_parents_whatever_was_learned(layout: str) -> None:
    first, second = codes()
    model = learned(network(layout))
    half = torch.full((5,), 0.5)
    assert (model(first, second, half) - lerp(first, second, 0.5)).abs().mean() > 0.1
    torch.testing.assert_close(model(first, second, torch.zeros(5)), first)
    torch.testing.assert_close(model(first, second, torch.ones(5)), second, rtol=1e-3, atol=1e-3)


ROUNDED = pytest.mark.xfail(strict=True, reason="w + 1 - r loses w's digits: write w + (1 - r)")


@pytest.mark.parametrize(
    "lean", [pytest.param(-20.0, marks=ROUNDED), pytest.param(-10.0, marks=ROUNDED), 0.0, 10.0, 30.0]
)
def test_the_ends_are_exact_however_much_it_leans(lean: float) -> None:
    first, second = codes()
    model = said(network("spatial"), lean)
    torch.testing.assert_close(model(first, second, torch.zeros(5)), first)
    torch.testing.assert_close(model(first, second, torch.ones(5)), second)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("lean", [-1.0, 0.4, 2.0])
def test_the_gate_by_hand(layout: str, lean: float) -> None:
    first, second = codes()
    ratios = torch.tensor([0.0, 0.2, 0.5, 0.9, 1.0])
    found = said(network(layout), lean)(first, second, ratios)
    for row, ratio in enumerate(ratios.tolist()):
        odds = ratio / (1 - ratio) * math.exp(lean) if ratio < 1 else math.inf  # the lean is a step of the log-odds
        gate = odds / (1 + odds) if ratio < 1 else 1.0
        torch.testing.assert_close(found[row], first[row] * (1 - gate) + second[row] * gate, rtol=1e-4, atol=1e-5)


def test_the_lean_is_held_within_ten() -> None:
    first, second = codes(1)
    half = torch.tensor([0.5])
    for lean, gate in ((500.0, 1 / (1 + math.exp(-10))), (-500.0, 1 / (1 + math.exp(10)))):
        found = said(network("flat"), lean)(first, second, half)
        torch.testing.assert_close(found, lerp(first, second, gate), rtol=0, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nothing_is_added_to_what_the_parents_have(layout: str) -> None:
    first, second = codes(6)
    low, high = torch.minimum(first, second), torch.maximum(first, second)
    mixed = learned(network(layout))(first, second, torch.linspace(0.1, 0.9, 6))
    assert ((mixed >= low - 1e-5) & (mixed <= high + 1e-5)).all()
    share = (mixed - first) / (second - first)
    assert share.std() > 0.1  # each latent has its own


def test_beyond_the_ends_are_the_parents() -> None:
    first, second = codes(2)
    found = learned(network("flat"))(first, second, torch.tensor([-1.0, 0.0]))
    torch.testing.assert_close(found, first)


def test_a_spatial_mask_looks_at_its_neighbourhood_alone() -> None:
    """Three convolutions of 3 x 3 reach three places away: on 8 x 8 places a corner hears nothing of the far side."""
    model = learned(network("spatial", conv_layers=2, latent_dim=128))
    assert model.side == 8
    source = torch.Generator().manual_seed(2)
    first, second = torch.randn(1, 2, 8, 8, generator=source), torch.randn(1, 2, 8, 8, generator=source)
    half = torch.tensor([0.5])
    before = model(first.flatten(1), second.flatten(1), half).view(2, 8, 8)
    second[0, :, 0, 0] += 1
    after = model(first.flatten(1), second.flatten(1), half).view(2, 8, 8)
    changed = ((after - before).abs() > 1e-6).any(0)
    assert changed[:4, :4].all()
    assert not changed[4:].any()
    assert not changed[:, 4:].any()


def test_the_ratio_and_both_codes_are_heard() -> None:
    model = learned(network("flat"))
    first, second = (half.requires_grad_() for half in codes(1))
    ratio = torch.tensor([0.4], requires_grad=True)
    with torch.no_grad():
        start = model(first, second, ratio)
    for values in (first, second, ratio):
        (gradient,) = torch.autograd.grad(model(first, second, ratio).sum(), values)
        assert (gradient != 0).all()
    assert start.shape == (1, 32)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_pair_is_mixed_on_its_own_and_keeps_its_codes(layout: str) -> None:
    model = learned(network(layout))
    first, second = codes()
    kept = first.clone(), second.clone()
    ratios = torch.linspace(0.1, 0.9, 5)
    together = model(first, second, ratios)
    assert torch.equal(first, kept[0])
    assert torch.equal(second, kept[1])
    alone = torch.cat([model(first[n : n + 1], second[n : n + 1], ratios[n : n + 1]) for n in range(5)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
