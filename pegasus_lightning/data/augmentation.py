"""Differentiable augmentation of images: what a critic is shown, and what a recogniser learns from.

DiffAugment (Zhao et al. 2020, arXiv 2006.10738): real and fake images are altered alike before the critic sees them,
and gradients pass through. An alteration is a pure function of the images and of `uniforms`, numbers in [0, 1) that
say what happens to each image; the same numbers alter two batches in the same way. (kornia's operations carry their
own random state, torchvision's alter a whole batch alike: neither can be resumed bit by bit.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

SHIFT = 4  # pixels by which an image is moved at most: 1/8 of the side, as in the paper
HOLE = 16  # side of the square that is cut out: half of the side, as in the paper
CUT_SHARE = 0.5  # of the images that lose a square
GREY = 0.5  # what is moved in from outside, and what fills the square


def _resampled(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """rows @ image @ columns^T, grey outside: every row out of `rows` (B, H, H) and column out of `columns` (B, W, W).

    Two matrix products an image: no gather, whose backward pass adds up pixel by pixel.
    """
    moved = rows[:, None] @ (images - GREY) @ columns[:, None].transpose(2, 3)
    return moved + GREY


def _selection(size: int, moves: Tensor) -> Tensor:
    """Matrices (B, size, size) that move by `moves` (B,) pixels: ones at [i, i + move], nothing from outside."""
    line = torch.arange(size, device=moves.device)
    return ((line[:, None] + moves[:, None, None]) == line).float()


def translation(images: Tensor, uniforms: Tensor) -> Tensor:
    """Move by a whole number of pixels from -SHIFT to SHIFT, each alike; uniforms (B, 2): up and left."""
    moves = (uniforms * (2 * SHIFT + 1)).floor() - SHIFT
    height, width = images.shape[2:]
    return _resampled(images, _selection(height, moves[:, 0]), _selection(width, moves[:, 1]))


def cutout(images: Tensor, uniforms: Tensor) -> Tensor:
    """Paint a square of HOLE pixels grey, its centre anywhere, in CUT_SHARE of the images; uniforms (B, 3).

    Its first two numbers are the centre (row, column), the third says whether there is a square.
    """
    inside = []
    for axis, size in ((0, images.shape[2]), (1, images.shape[3])):
        start = (uniforms[:, axis] * (size + 1 - HOLE % 2)).floor() - HOLE // 2
        line = torch.arange(size, device=images.device)
        inside.append((line >= start[:, None]) & (line < start[:, None] + HOLE))
    hole = inside[0][:, :, None] & inside[1][:, None, :] & (uniforms[:, 2] < CUT_SHARE)[:, None, None]
    return torch.where(hole[:, None], torch.full_like(images, GREY), images)


def brightness(images: Tensor, uniforms: Tensor) -> Tensor:
    """image + (u - 0.5) / 2: the paper's range, for pixels that run from 0 to 1; uniforms (B, 1)."""
    return images + (uniforms[:, :, None, None] - 0.5) / 2


def saturation(images: Tensor, uniforms: Tensor) -> Tensor:
    """Each pixel's distance from its grey times 2 u; uniforms (B, 1)."""
    grey = images.mean(1, keepdim=True)
    return grey + (images - grey) * (2 * uniforms[:, :, None, None])


def contrast(images: Tensor, uniforms: Tensor) -> Tensor:
    """Distance from the image's mean times u + 0.5; uniforms (B, 1)."""
    mean = images.mean((1, 2, 3), keepdim=True)
    return mean + (images - mean) * (uniforms[:, :, None, None] + 0.5)


# Each with the columns of the uniforms that are its own, so that one more or less leaves the others' draws alone.
OPERATIONS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], slice]] = {
    "brightness": (brightness, slice(0, 1)),
    "saturation": (saturation, slice(1, 2)),
    "contrast": (contrast, slice(2, 3)),
    "translation": (translation, slice(3, 5)),
    "cutout": (cutout, slice(5, 8)),
}
NUMBERS = 8  # uniforms an image


def augment(images: Tensor, uniforms: Tensor, policy: Sequence[str]) -> Tensor:
    """`images` altered by each operation of `policy`, in the order of OPERATIONS; gradients pass through.

    Args:
        images: (B, 3, H, W) in [0, 1]; what comes out may leave that range, as in the paper.
        uniforms: (B, NUMBERS) in [0, 1).
        policy: names out of OPERATIONS; none leaves the images as they are.
    """
    for name, (operation, columns) in OPERATIONS.items():
        if name in policy:
            images = operation(images, uniforms[:, columns])
    return images
