"""One pass of the critic over fakes, beside a pass for each player."""

import gc
import weakref

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.parametrizations import _SpectralNorm

from pegasus_lightning.models.networks import Critic
from pegasus_lightning.models.one_pass import OnePass
from pegasus_lightning.models.settings import NetworksConfig

WEIGHTS = {"first": 3.0, "second": 0.5}


def critic_of(batch_norm: bool) -> Critic:
    torch.manual_seed(0)
    return Critic(NetworksConfig(channels=4, critic_batch_norm=batch_norm))


def fakes_of(sizes: tuple[int, int]) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(1)
    return {
        name: torch.rand(size, 3, 32, 32, generator=draw, requires_grad=True)
        for name, size in zip(WEIGHTS, sizes, strict=True)
    }


def with_zeros(critic: Critic) -> None:
    """Give all parameters gradients."""
    for parameter in critic.parameters():
        parameter.grad = torch.zeros_like(parameter)


def bce(outputs: dict[str, Tensor]) -> Tensor:
    return sum(weight * functional.softplus(outputs[name]).mean() for name, weight in WEIGHTS.items())


def hinge(outputs: dict[str, Tensor]) -> Tensor:
    """Its slope is 0 for the outputs below -1."""
    return sum(weight * (1 + outputs[name]).clamp(min=0).mean() for name, weight in WEIGHTS.items())


@pytest.mark.parametrize("output", [0.0, -40.0])  # at -40 the slope of the critic's loss is 4e-18
@pytest.mark.parametrize("spectral", [False, True])
def test_in_bf16_the_gradients_are_those_of_passes_of_their_own(spectral, output) -> None:
    torch.manual_seed(0)
    config = NetworksConfig(channels=8, critic_batch_norm=False, spectral_norm="critic" if spectral else "none")
    critic, fakes = Critic(config), fakes_of((5, 3))
    critic(torch.cat(list(fakes.values())))  # spectral norm's vectors
    for module in critic.modules():
        if isinstance(module, _SpectralNorm):
            module.eval()
    with torch.no_grad():
        critic.last.bias.fill_(output)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = critic(torch.cat(list(fakes.values())))
        parts = dict(zip(fakes, outputs.split([5, 3]), strict=True))
        of_images = torch.autograd.grad(functional.softplus(-parts["first"]).mean(), fakes["first"], retain_graph=True)
        of_critic = torch.autograd.grad(bce(parts), list(critic.parameters()))
        with_zeros(critic)
        one = OnePass(critic, fakes, bce)
        found = torch.autograd.grad(functional.softplus(-one.for_autoencoder["first"]).mean(), fakes["first"])
        one.add_gradients()
    pairs = [(found[0], of_images[0]), *zip((p.grad for p in critic.parameters()), of_critic, strict=True)]
    for mine, wanted in pairs:
        assert wanted.abs().max() > 0
        assert (mine - wanted).norm() < 0.02 * wanted.norm()


@pytest.mark.parametrize("loss", [bce, hinge])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_both_players_have_the_gradients_of_passes_of_their_own(batch_norm, loss) -> None:
    critic, fakes = critic_of(batch_norm), fakes_of((5, 3))
    if loss is hinge:  # some outputs on either side of the bend
        with torch.no_grad():
            critic.last.bias -= 1 + critic(torch.cat(list(fakes.values()))).median()
    outputs = critic(torch.cat(list(fakes.values())))
    parts = dict(zip(fakes, outputs.split([5, 3]), strict=True))
    of_images = torch.autograd.grad(-parts["first"].square().mean(), list(fakes.values()), retain_graph=True)
    of_critic = torch.autograd.grad(loss(parts), list(critic.parameters()))

    one = OnePass(critic, fakes, None if batch_norm else loss)
    for name in fakes:
        torch.testing.assert_close(one.for_autoencoder[name], parts[name])
    found = torch.autograd.grad(-one.for_autoencoder["first"].square().mean(), list(fakes.values()))
    for mine, wanted in zip(found, of_images, strict=True):  # those of the second are 0 without BatchNorm
        torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-8)
    total = loss(one.for_critic) + 0 * sum(parameter.sum() for parameter in critic.parameters())
    total.backward(inputs=list(critic.parameters()))
    one.add_gradients()
    for parameter, gradient in zip(critic.parameters(), of_critic, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)
    assert all(images.grad is None for images in fakes.values())  # the critic's loss reaches no fake


def test_a_critic_that_is_sure_gives_finite_gradients() -> None:
    """At an output of -200 the slope of the critic's loss, 1.4e-87, is 0 in float32."""
    critic, fakes = critic_of(False), fakes_of((2, 2))
    with torch.no_grad():
        critic.last.bias.fill_(-200)
    one = OnePass(critic, fakes, bce)
    (found,) = torch.autograd.grad(functional.softplus(-one.for_autoencoder["first"]).sum(), fakes["first"])
    (wanted,) = torch.autograd.grad(-critic(fakes["first"]).sum(), fakes["first"])  # softplus is linear there
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-8)
    with_zeros(critic)
    one.add_gradients()
    assert all(parameter.grad.abs().max() < 1e-15 for parameter in critic.parameters())


def test_the_network_runs_once(monkeypatch) -> None:
    critic, fakes = critic_of(False), fakes_of((2, 2))
    calls = []
    critic.register_forward_hook(lambda *_: calls.append(1))
    one = OnePass(critic, fakes, bce)
    for name in fakes:
        one.for_autoencoder[name].sum().backward()
    with_zeros(critic)
    one.add_gradients()
    assert calls == [1]


@pytest.mark.parametrize("loss", [None, bce])
def test_its_memory_is_freed_at_once(loss) -> None:
    """Without waiting for the collector of cycles, which would keep the tensors of many batches."""
    critic, fakes = critic_of(loss is None), fakes_of((2, 2))
    gc.disable()
    try:
        one = OnePass(critic, fakes, loss)
        (one.for_autoencoder["first"].sum() + one.for_autoencoder["second"].sum()).backward()
        with_zeros(critic)
        one.add_gradients()
        shared = weakref.ref(one._pass)
        del one
        assert shared() is None
    finally:
        gc.enable()


def test_gradients_of_another_layout_reach_the_right_weights() -> None:
    critic, fakes = critic_of(False), fakes_of((2, 2))
    of_plain = torch.autograd.grad(bce({name: critic(fakes[name]) for name in fakes}), list(critic.parameters()))
    critic = critic.to(memory_format=torch.channels_last)
    with_zeros(critic)
    one = OnePass(critic, fakes, bce)
    one._pass.backward()
    one._pass.gradients = of_plain
    one.add_gradients()
    for parameter, gradient in zip(critic.parameters(), of_plain, strict=True):
        assert parameter.grad.stride() == parameter.stride()
        assert torch.equal(parameter.grad, gradient)
