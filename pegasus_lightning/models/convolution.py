"""Convolutions whose weight gradient on the CPU is one matrix product.

oneDNN computes the weight gradient of a bfloat16 convolution with few output positions at 60 to 70% of the speed of a
matrix product (on AVX512-BF16, experiments/speed). The choice depends on shapes and types alone, never on a timing, so
that a resumed run repeats a run bit for bit.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MOST_POSITIONS = 16  # positions of the smaller map up to which the matrix product is faster: 4 x 4


def weight_gradient(small: Tensor, large: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    """Return sum over images n and positions (i, j) of small[n, o, i, j] * large[n, c, s i + k - p, s j + l - p].

    It is the gradient of the weight (o, c, k, l) of a convolution from `large` to the map whose gradient is `small`, or
    of a transposed convolution from `small` to the map whose gradient is `large`.

    Args:
        small: (B, O, H, W).
        large: (B, C, H', W') with H' + 2 padding = stride (H - 1) + kernel, and the same for W'.
    """
    (batch, outputs, height, width), inputs = small.shape, large.shape[1]
    padded = F.pad(large, (padding,) * 4).permute(0, 2, 3, 1).contiguous()
    image, row, column, channel = padded.stride()
    sizes = (batch, height, width, kernel, kernel, inputs)
    patches = padded.as_strided(sizes, (image, stride * row, stride * column, row, column, channel))
    product = small.permute(0, 2, 3, 1).reshape(-1, outputs).t() @ patches.reshape(batch * height * width, -1)
    return product.view(outputs, kernel, kernel, inputs).permute(0, 3, 1, 2)


def _by_product(images: Tensor, weight: Tensor, positions: int) -> bool:
    """Return whether the weight gradient is computed as a matrix product."""
    return (
        positions <= MOST_POSITIONS
        and images.device.type == "cpu"
        and weight.requires_grad
        and weight.dtype == torch.float32
        and torch.is_grad_enabled()
        and torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") == torch.bfloat16
        and not torch.compiler.is_compiling()
    )


class _Convolution(torch.autograd.Function):
    """conv2d or conv_transpose2d without bias; only the weight's gradient differs from PyTorch's, in its rounding."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, stride: int, padding: int, transposed: bool) -> Tensor:
        ctx.save_for_backward(images, weight)
        ctx.geometry = stride, padding, transposed
        convolve = F.conv_transpose2d if transposed else F.conv2d
        return convolve(images, weight, None, stride, padding)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (images, weight) = gradients, ctx.saved_tensors
        stride, padding, transposed = ctx.geometry
        kernel = weight.shape[2]
        wanted = of_weight = None
        if ctx.needs_input_grad[0]:
            steps = [stride, stride], [padding, padding], [1, 1], transposed, [0, 0], 1
            mask = [True, False, False]
            wanted, *_ = torch.ops.aten.convolution_backward(gradient, images, weight, None, *steps, mask)
        # `needs_input_grad` does not know of a backward pass that leaves out the weights. The engine does, and can be
        # asked because the weight is no leaf: it was cast.
        if ctx.needs_input_grad[1] and torch._C._will_engine_execute_node(ctx.next_functions[1][0]):
            small, large = (images, gradient) if transposed else (gradient, images)
            of_weight = weight_gradient(small, large, kernel, stride, padding)
        return wanted, of_weight, None, None, None


class Convolution(nn.Conv2d):
    """`nn.Conv2d` for square kernels, without groups and dilation, that trains faster on the CPU."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        stride, padding, kernel = self.stride[0], int(self.padding[0]), self.kernel_size[0]
        positions = ((input.shape[2] + 2 * padding - kernel) // stride + 1) ** 2
        if (stride == 1 and positions > 1) or not _by_product(input, weight, positions):
            return super()._conv_forward(input, weight, bias)
        maps = _Convolution.apply(input.bfloat16(), weight.bfloat16(), stride, padding, False)
        return maps if bias is None else maps + bias.to(maps.dtype)[:, None, None]


class TransposedConvolution(nn.ConvTranspose2d):
    """`nn.ConvTranspose2d` for square kernels, without groups and dilation, that trains faster on the CPU."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        if self.bias is not None or not _by_product(input, self.weight, input.shape[2] ** 2):
            return super().forward(input, output_size)
        stride, padding = self.stride[0], int(self.padding[0])
        return _Convolution.apply(input.bfloat16(), self.weight.bfloat16(), stride, padding, True)
