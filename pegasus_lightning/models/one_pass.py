"""One forward pass of the critic over a batch's fakes, for both players."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

SMALLEST = 1e-20  # slope of the critic's loss for which gradients neither underflow nor matter


Loss = Callable[[dict[str, Tensor]], Tensor]


class OnePass:
    """The critic's outputs for the fakes of a batch, computed once.

    The autoencoder's gradient reaches the fakes alone, the critic's its parameters alone, as if each player had run the
    critic itself on the same images.

    A critic without BatchNorm treats each image by itself. Then one backward pass serves both players, too: backwards
    from the critic's loss, whose slope for image i is c_i, it gives the critic's gradients and c_i times the gradient
    of output i with respect to image i. What the autoencoder asks for is another multiple of the latter.

    Args:
        critic: a network of images (B, 3, H, W) with outputs (B,). Its parameters must require gradients.
        fakes: images (B, 3, H, W) of each kind, with the autoencoder's graph.
        critic_loss: the critic's weighted loss for the outputs by kind, a scalar that never falls as an output rises;
            given for a critic without BatchNorm.
    """

    def __init__(self, critic: nn.Module, fakes: dict[str, Tensor], critic_loss: Loss | None = None) -> None:
        self._pass = _Pass(critic, fakes, critic_loss)
        outputs = _Outputs.apply(torch.cat(list(fakes.values())), self._pass)
        self.for_autoencoder: dict[str, Tensor] = self._pass.split(outputs)  # (B,) by kind

    @property
    def for_critic(self) -> dict[str, Tensor]:
        """The outputs (B,) by kind for the critic's loss: without a graph if `add_gradients` adds their gradients."""
        outputs = self._pass.outputs
        return self._pass.split(outputs if self._pass.loss is None else outputs.detach())

    def add_gradients(self) -> None:
        """Add the gradients of the fakes to those that the critic's parameters have, if autograd has not."""
        if self._pass.loss is not None:
            self._pass.backward()
            # An addition respects the layouts of both, which may differ; the fused optimizer would not.
            for parameter, gradient in zip(self._pass.parameters, self._pass.gradients, strict=True):
                assert parameter.grad is not None, "the critic's other terms must reach all of its parameters"
                parameter.grad.add_(gradient)


class _Pass:
    """What both players share. It does not hold what the autoencoder gets: a cycle would keep each batch's memory."""

    def __init__(self, critic: nn.Module, fakes: dict[str, Tensor], loss: Loss | None) -> None:
        self.parameters, self.loss = list(critic.parameters()), loss
        self.sizes = {name: len(images) for name, images in fakes.items()}
        self.images = torch.cat([images.detach() for images in fakes.values()]).requires_grad_()
        self.outputs = critic(self.images)
        self.slopes: Tensor | None = None
        self.gradients: tuple[Tensor, ...] = ()

    def split(self, values: Tensor) -> dict[str, Tensor]:
        return dict(zip(self.sizes, values.split(list(self.sizes.values())), strict=True))

    def gradient_of_images(self, gradient: Tensor) -> Tensor:
        """Return the gradient (B, 3, H, W) of all images for a gradient (B,) of their outputs."""
        if self.loss is None:
            return torch.autograd.grad(self.outputs, self.images, gradient, retain_graph=True)[0]
        return self.backward() * gradient[:, None, None, None]

    def backward(self) -> Tensor:
        """Return the gradients (B, 3, H, W) of the outputs; keep those of the critic's loss."""
        if self.slopes is None:
            assert self.loss is not None
            with torch.enable_grad():
                outputs = self.outputs.detach().requires_grad_()
                (slopes,) = torch.autograd.grad(self.loss(self.split(outputs)), outputs)
            slopes = slopes.clamp_min(SMALLEST)
            scaled, *gradients = torch.autograd.grad(self.outputs, [self.images, *self.parameters], slopes)
            self.slopes, self.gradients = scaled / slopes[:, None, None, None], tuple(gradients)
        return self.slopes


class _Outputs(torch.autograd.Function):
    """The outputs of a pass, as a function of the fakes."""

    @staticmethod
    def forward(ctx: Any, fakes: Tensor, shared: _Pass) -> Tensor:
        ctx.shared = shared
        return shared.outputs.detach().clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.shared.gradient_of_images(gradients[0]), None
