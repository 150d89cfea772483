"""Learned mixing: lerp at initialisation, the parents at the ends, gate and change by hand and within bounds."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pegasus_lightning.models.latent import lerp
from pegasus_lightning.models.mixing_network import MixNetwork
from pegasus_lightning.models.settings import NetworksConfig

LAYOUTS = ["flat", "spatial"]


def network(layout: str, seed: int = 0, **fields: Any) -> MixNetwork:
    torch.manual_seed(seed)
    return MixNetwork(NetworksConfig(**{"latent": layout, "latent_dim": 32, "channels": 4} | fields))


def said(model: MixNetwork, lean: float, change: float = 0.0) -> MixNetwork:
    """Set the last layer to a constant lean and a constant change."""
    last = model.layers[-1]
    assert isinstance(last, nn.Conv2d)
    with torch.no_grad():
        last.weight.zero_()
        for half, value in zip(last.bias.chunk(2), (lean, change), strict=True):
            half.fill_(value)
    return model


def learned(model: MixNetwork, size: float = 0.3) -> MixNetwork:
    """Set random weights in the last layer, so that outputs differ between positions."""
    with torch.no_grad():
        for parameter in model.layers[-1].parameters():
            parameter.copy_(size * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    return model


def gate_of(ratio: float, lean: float) -> float:
    """Return the ratio with 2 tanh(lean) added to its log-odds."""
    if ratio in (0, 1):
        return ratio
    return 1 / (1 + math.exp(-(math.log(ratio / (1 - ratio)) + 2 * math.tanh(lean))))


def codes(count: int = 5, seed: int = 1) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(seed)
    return torch.randn(count, 32, generator=source), torch.randn(count, 32, generator=source)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_begins_as_the_straight_line(layout: str) -> None:
    first, second = codes()
    ratios = torch.tensor([0.0, 0.2, 0.5, 0.7, 1.0])
    model = network(layout)
    torch.testing.assert_close(model(first, second, ratios), lerp(first, second, ratios[:, None]), rtol=0, atol=2e-6)
    # It receives gradients from the start.
    model(first, second, ratios).square().sum().backward()
    gradient = model.layers[-1].weight.grad.abs().sum((1, 2, 3))
    assert (gradient > 0).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_ends_are_the_parents_whatever_was_learned(layout: str) -> None:
    first, second = codes()
    model = learned(network(layout))
    half = torch.full((5,), 0.5)
    assert (model(first, second, half) - lerp(first, second, 0.5)).abs().mean() > 0.1
    assert torch.equal(model(first, second, torch.zeros(5)), first)
    torch.testing.assert_close(model(first, second, torch.ones(5)), second, rtol=0, atol=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("lean", [-100.0, -1.0, 0.0, 30.0])
@pytest.mark.parametrize("change", [-50.0, 0.7])
def test_the_ends_are_exact_however_much_it_leans_and_changes(layout: str, lean: float, change: float) -> None:
    first, second = codes()
    model = said(network(layout), lean, change)
    assert torch.equal(model(first, second, torch.zeros(5)), first)
    torch.testing.assert_close(model(first, second, torch.ones(5)), second, rtol=0, atol=1e-6)


RATIOS = [0.0, 0.2, 0.5, 0.9, 1.0]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("lean", [-1.0, 0.4, 2.0])
def test_the_gate_by_hand(layout: str, lean: float) -> None:
    first, second = codes()
    found = said(network(layout), lean)(first, second, torch.tensor(RATIOS))
    for row, ratio in enumerate(RATIOS):
        gate = gate_of(ratio, lean)
        torch.testing.assert_close(found[row], first[row] * (1 - gate) + second[row] * gate, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("lean", "change"), [(0.0, 0.3), (0.0, -2.0), (-0.8, 0.5)])
def test_the_change_by_hand(layout: str, lean: float, change: float) -> None:
    first, second = codes()
    found = said(network(layout), lean, change)(first, second, torch.tensor(RATIOS))
    for row, height in enumerate((0.0, 0.64, 1.0, 0.36, 0.0)):  # 4 r (1 - r)
        gate = gate_of(RATIOS[row], lean)
        wanted = first[row] * (1 - gate) + second[row] * gate + height * math.tanh(change)
        torch.testing.assert_close(found[row], wanted, rtol=1e-4, atol=1e-5)


def test_each_channel_of_the_code_has_its_own_gate_and_its_own_change() -> None:
    model = said(network("spatial"), 0.0)  # two channels of 4 x 4 positions: leans 0 and 1, changes 2 and 3
    with torch.no_grad():
        model.layers[-1].bias[1] = 0.4
        model.layers[-1].bias[2] = -0.6
    first, second = codes(1)
    found = model(first, second, torch.tensor([0.5]))
    gate = gate_of(0.5, 0.4)
    wanted = torch.cat(
        [(first + second)[:, :16] / 2 + math.tanh(-0.6), first[:, 16:] * (1 - gate) + second[:, 16:] * gate], 1
    )
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gate_and_change_are_bounded(layout: str) -> None:
    first, second = codes(1)
    half = torch.tensor([0.5])
    for lean, gate in ((500.0, 1 / (1 + math.exp(-2))), (-500.0, 1 / (1 + math.exp(2)))):
        found = said(network(layout), lean)(first, second, half)
        torch.testing.assert_close(found, lerp(first, second, gate), rtol=0, atol=1e-5)
        assert 0.119 < gate < 0.881
    for change in (500.0, -500.0):
        found = said(network(layout), 0.0, change)(first, second, half)
        torch.testing.assert_close(found, (first + second) / 2 + math.copysign(1, change), rtol=0, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_whatever_was_learned_no_latent_leaves_its_bounds(layout: str) -> None:
    first, second = codes(6)
    model = learned(network(layout), size=30.0)
    ratios = torch.linspace(0.1, 0.9, 6)
    mixed = model(first, second, ratios)
    for row, ratio in enumerate(ratios.tolist()):
        gates = [gate_of(ratio, lean) for lean in (-100.0, 100.0)]
        ends = torch.stack([lerp(first[row], second[row], gate) for gate in gates])
        reach = 4 * ratio * (1 - ratio)
        assert (mixed[row] >= ends.amin(0) - reach - 1e-5).all()
        assert (mixed[row] <= ends.amax(0) + reach + 1e-5).all()
    beside = (mixed < torch.minimum(first, second)) | (mixed > torch.maximum(first, second))
    assert beside.any()  # what neither parent has
    with torch.no_grad():  # without the change each latent lies between the parents, at its own ratio
        for parameter in model.layers[-1].parameters():
            parameter.chunk(2)[1].zero_()
    share = (model(first, second, ratios) - first) / (second - first)
    assert ((share > 0) & (share < 1)).all()
    assert share.std() > 0.1


def test_beyond_the_ends_are_the_parents() -> None:
    first, second = codes(2)
    found = learned(network("flat"))(first, second, torch.tensor([-1.0, 2.0]))
    torch.testing.assert_close(found, torch.stack([first[0], second[1]]))


def test_a_spatial_mask_looks_at_its_neighbourhood_alone() -> None:
    """Three 3 x 3 convolutions reach three positions: on an 8 x 8 map a corner does not depend on the far side."""
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
