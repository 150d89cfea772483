"""Codes that can be moved: scaling, shift and mirroring of images and of spatial codes alike.

A decoder that is trained for it draws the moved picture from the moved code (EQ-VAE: Kouzelis et al. 2025, arXiv
2502.09509): a part of one code can then be put elsewhere.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SCALES = (0.65, 1.2)  # range of the random scaling,
SHIFT = 0.2  # and largest shift, as a share of the image's side
NUMBERS = 4  # uniform draws that a random move takes


def affine(scale: Tensor, right: Tensor, down: Tensor, flip: Tensor) -> Tensor:
    """Return matrices (B, 2, 3) for `move`, each argument (B,).

    A picture is scaled by `scale` with the middle of its lower edge fixed, mirrored where `flip` is -1 (else 1), and
    then moved by `right` and `down`, as shares of its side.
    """
    zero = torch.zeros_like(scale)
    across = torch.stack([flip / scale, zero, -2 * right * flip / scale], 1)
    along = torch.stack([zero, 1 / scale, 1 - 1 / scale - 2 * down / scale], 1)
    return torch.stack([across, along], 1)


def random_affine(uniforms: Tensor, mirror: bool) -> Tensor:
    """Return random matrices (B, 2, 3) for `move` from uniform draws (B, NUMBERS); half mirror if `mirror` is true."""
    low, high = SCALES
    right, down = (SHIFT * (2 * uniforms[:, column] - 1) for column in (1, 2))
    flip = torch.where((uniforms[:, 3] < 0.5) & mirror, -1.0, 1.0)
    return affine(low + (high - low) * uniforms[:, 0], right, down, flip)


def move(maps: Tensor, matrices: Tensor) -> Tensor:
    """Return images or spatial codes (B, C, H, W), moved; what comes in from outside repeats the border."""
    grid = F.affine_grid(matrices, [len(maps), 1, *maps.shape[2:]], align_corners=False)
    return F.grid_sample(maps, grid.to(maps.dtype), padding_mode="border", align_corners=False)


def came_from_inside(matrices: Tensor, side: int) -> Tensor:
    """Return 1 for the pixels of moved pictures that came from inside, 0 for the others, (B, 1, side, side)."""
    grid = F.affine_grid(matrices, [len(matrices), 1, side, side], align_corners=False)
    return (grid.abs() <= 1).all(3)[:, None].float()
