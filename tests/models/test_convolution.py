"""Convolutions whose weight gradient is a matrix product, beside PyTorch's."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pegasus_lightning.models import convolution
from pegasus_lightning.models.convolution import Convolution, TransposedConvolution, weight_gradient

GEOMETRIES = [(4, 2, 1, 8), (4, 2, 1, 4), (4, 1, 0, 4)]  # kernel, stride, padding, side


def test_the_weight_gradient_by_hand() -> None:
    """One image, one channel: each weight meets the pixels that it multiplied."""
    large = torch.arange(16.0).reshape(1, 1, 4, 4)
    small = torch.tensor([[[[1.0, 0.0], [0.0, 10.0]]]])
    # Stride 2, padding 1, kernel 4: position (0, 0) begins at pixel (-1, -1), position (1, 1) at pixel (1, 1).
    first = functional.pad(large, (1, 0, 1, 0))[0, 0, :4, :4]
    last = functional.pad(large, (0, 1, 0, 1))[0, 0, 1:, 1:]
    assert first[1, 1] == 0 and first[3, 3] == 10 and last[0, 0] == 5 and last[2, 2] == 15 and last[3, 3] == 0
    assert torch.equal(weight_gradient(small, large, 4, 2, 1)[0, 0], first + 10 * last)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_the_weight_gradient_is_that_of_autograd(geometry) -> None:
    kernel, stride, padding, side = geometry
    images = torch.randn(5, 3, side, side, dtype=torch.double)
    weight = torch.randn(7, 3, kernel, kernel, dtype=torch.double, requires_grad=True)
    maps = functional.conv2d(images, weight, None, stride, padding)
    gradient = torch.randn_like(maps)
    (wanted,) = torch.autograd.grad(maps, weight, gradient)
    torch.testing.assert_close(weight_gradient(gradient, images, kernel, stride, padding), wanted)


@pytest.mark.parametrize("transposed", [False, True])
def test_first_and_second_derivatives(transposed) -> None:
    images = torch.randn(2, 3, 4, 4, dtype=torch.double, requires_grad=True)
    weight = torch.randn(3, 3, 4, 4, dtype=torch.double, requires_grad=True)

    def convolve(images: Tensor, weight: Tensor) -> Tensor:
        return convolution._Convolution.apply(images, weight * 1, 2, 1, transposed)

    assert torch.autograd.gradcheck(convolve, (images, weight))
    assert torch.autograd.gradgradcheck(convolve, (images, weight))


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of the weight gradients that were computed as products."""
    seen: list[tuple[int, ...]] = []

    def watched(*arguments) -> Tensor:  # type: ignore[no-untyped-def]
        found = weight_gradient(*arguments)
        seen.append(tuple(found.shape))
        return found

    monkeypatch.setattr(convolution, "weight_gradient", watched)
    return seen


LAYERS = {
    "convolution": (lambda: Convolution(8, 16, 4, stride=2, padding=1), nn.Conv2d, (4, 8, 8, 8)),
    "last": (lambda: Convolution(8, 1, 4), nn.Conv2d, (4, 8, 4, 4)),
    "transposed": (
        lambda: TransposedConvolution(8, 16, 4, stride=2, padding=1, bias=False),
        nn.ConvTranspose2d,
        (4, 8, 4, 4),
    ),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_in_bf16_a_layer_has_the_gradients_of_pytorchs(kind, products) -> None:
    make, plain, shape = LAYERS[kind]
    layer, images = make(), torch.randn(shape)
    found = {}
    for name, forward in (("own", layer.forward), ("plain", plain.forward.__get__(layer))):
        if name == "plain":  # nn.Conv2d.forward calls the layer's own _conv_forward
            forward = functional_of(layer)
        layer.zero_grad()
        given = images.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            maps = forward(given)
        assert maps.dtype == torch.bfloat16
        maps.float().square().sum().backward()
        found[name] = [maps.float().detach(), given.grad, *(p.grad.clone() for p in layer.parameters())]
    assert products == [tuple(layer.weight.shape)]
    for own, other in zip(found["own"], found["plain"], strict=True):
        torch.testing.assert_close(own, other, rtol=0.02, atol=0.02 * other.abs().max().item())


def functional_of(layer: nn.Module):  # type: ignore[no-untyped-def]
    """PyTorch's function of a layer."""
    function = functional.conv_transpose2d if isinstance(layer, nn.ConvTranspose2d) else functional.conv2d
    return lambda images: function(images, layer.weight, layer.bias, layer.stride, layer.padding)


def test_a_backward_pass_that_leaves_out_the_weights_computes_no_product(products) -> None:
    layer, images = Convolution(8, 16, 4, stride=2, padding=1), torch.randn(4, 8, 8, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        loss = layer(images).float().square().sum()
    loss.backward(inputs=[images], retain_graph=True)
    assert products == [] and images.grad is not None
    loss.backward(inputs=[layer.weight])
    assert products == [(16, 8, 4, 4)]


@pytest.mark.parametrize("case", ["fp32", "large map", "frozen"])
def test_elsewhere_the_layer_is_pytorchs(case, products) -> None:
    layer = Convolution(8, 16, 4, stride=2, padding=1).requires_grad_(case != "frozen")
    images = torch.randn(4, 8, *((16, 16) if case == "large map" else (8, 8)), requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=case != "fp32"):
        maps = layer(images)
        assert torch.equal(maps, functional_of(layer)(images))
    maps.float().sum().backward()
    assert products == []
