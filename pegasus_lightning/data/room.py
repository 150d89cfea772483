"""Room for a limb: a picture is made smaller, and goes on around it."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from pegasus_lightning.utils.tensors import IMAGE_SIZE, blurred

INNER = 28  # side of the smaller picture, in pixels
ROOM = INNER / IMAGE_SIZE  # its scale
BLUR = 5  # side of the box filter, in pixels, of what surrounds it,
FADE = 3  # and of the border between them


def with_room(images: Tensor) -> Tensor:
    """Return images (B, C, 32, 32) in [0, 1] at a scale of ROOM, with the middle of the lower edge fixed.

    Their mirror image, blurred, goes on around them. Scaling is bicubic with a low-pass filter.
    """
    aside = (IMAGE_SIZE - INNER) // 2
    edges = (aside, aside, IMAGE_SIZE - INNER, 0)
    wide = F.pad(_smaller(images), edges, mode="reflect")
    inside = blurred(F.pad(wide.new_ones(1, 1, INNER, INNER), edges), FADE)
    around = blurred(wide, BLUR)
    return around + inside * (wide - around)


def mask_with_room(masks: Tensor) -> Tensor:
    """Return masks (B, C, 32, 32) as `with_room` places them; 0 around them."""
    aside = (IMAGE_SIZE - INNER) // 2
    return F.pad(_smaller(masks), (aside, aside, IMAGE_SIZE - INNER, 0))


def place_with_room(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return where `with_room` puts points at x and y, in pixels from the upper left corner."""
    return IMAGE_SIZE / 2 + ROOM * (x - IMAGE_SIZE / 2), IMAGE_SIZE - ROOM * (IMAGE_SIZE - y)


def _smaller(images: Tensor) -> Tensor:
    return F.interpolate(images, INNER, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
