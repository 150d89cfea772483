"""Differentiable image augmentation for critics and recognisers.

DiffAugment (Zhao et al. 2020, arXiv 2006.10738) augments real and fake images before they reach the critic, and
gradients pass through. Each operation is a pure function of the images and of `uniforms`, random numbers in [0, 1), so
equal numbers alter two batches in the same way. kornia keeps its own random state and torchvision draws once a batch:
with neither can training resume bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

SHIFT = 4  # largest translation in pixels: 1/8 of the image side, as in the paper
HOLE = 16  # side of the cutout square: half of the image side, as in the paper
CUT_SHARE = 0.5  # share of the images with a cutout
GREY = 0.5  # fills the cutout and the border that a translation leaves


def _resampled(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return rows @ image @ columns^T for `rows` (B, H, H) and `columns` (B, W, W), grey outside the image.

    Two matrix products an image avoid a gather, whose backward pass accumulates pixel by pixel.
    """
    moved = rows[:, None] @ (images - GREY) @ columns[:, None].transpose(2, 3)
    return moved + GREY


def _selection(size: int, moves: Tensor) -> Tensor:
    """Return translation matrices (B, size, size) for `moves` (B,) pixels: ones at [i, i + move], zeros elsewhere."""
    line = torch.arange(size, device=moves.device)
    return ((line[:, None] + moves[:, None, None]) == line).float()


def translation(images: Tensor, uniforms: Tensor) -> Tensor:
    """Translate by an integer drawn uniformly from -SHIFT to SHIFT pixels; uniforms (B, 2): up and left."""
    moves = (uniforms * (2 * SHIFT + 1)).floor() - SHIFT
    height, width = images.shape[2:]
    return _resampled(images, _selection(height, moves[:, 0]), _selection(width, moves[:, 1]))


def cutout(images: Tensor, uniforms: Tensor) -> Tensor:
    """Paint a grey square of HOLE x HOLE pixels at a random place in CUT_SHARE of the images.

    The uniforms (B, 3) give the square's centre (row, column) and whether the image has a square.
    """
    inside = []
    for axis, size in ((0, images.shape[2]), (1, images.shape[3])):
        start = (uniforms[:, axis] * (size + 1 - HOLE % 2)).floor() - HOLE // 2
        line = torch.arange(size, device=images.device)
        inside.append((line >= start[:, None]) & (line < start[:, None] + HOLE))
    hole = inside[0][:, :, None] & inside[1][:, None, :] & (uniforms[:, 2] < CUT_SHARE)[:, None, None]
    return torch.where(hole[:, None], torch.full_like(images, GREY), images)


def brightness(images: Tensor, uniforms: Tensor) -> Tensor:
    """Return image + (u - 0.5) / 2, the paper's range for pixels in [0, 1]; uniforms (B, 1)."""
    return images + (uniforms[:, :, None, None] - 0.5) / 2


def saturation(images: Tensor, uniforms: Tensor) -> Tensor:
    """Multiply each pixel's distance from its grey value by 2 u; uniforms (B, 1)."""
    grey = images.mean(1, keepdim=True)
    return grey + (images - grey) * (2 * uniforms[:, :, None, None])


def contrast(images: Tensor, uniforms: Tensor) -> Tensor:
    """Multiply each pixel's distance from the image mean by u + 0.5; uniforms (B, 1)."""
    mean = images.mean((1, 2, 3), keepdim=True)
    return mean + (images - mean) * (uniforms[:, :, None, None] + 0.5)


# Each operation owns its columns of the uniforms, so the policy does not change the draws of the other operations.
OPERATIONS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], slice]] = {
    "brightness": (brightness, slice(0, 1)),
    "saturation": (saturation, slice(1, 2)),
    "contrast": (contrast, slice(2, 3)),
    "translation": (translation, slice(3, 5)),
    "cutout": (cutout, slice(5, 8)),
}
NUMBERS = 8  # uniforms per image


def augment(images: Tensor, uniforms: Tensor, policy: Sequence[str]) -> Tensor:
    """Apply the operations of `policy` to `images` in the order of OPERATIONS; gradients pass through.

    Args:
        images: (B, 3, H, W) in [0, 1]. The result may leave that range, as in the paper.
        uniforms: (B, NUMBERS) in [0, 1).
        policy: names of OPERATIONS; an empty policy returns the images unchanged.
    """
    for name, (operation, columns) in OPERATIONS.items():
        if name in policy:
            images = operation(images, uniforms[:, columns])
    return images
