"""Drawn animals on plain grounds: bodies from the side, and birds with one raised wing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

GROUND, COAT, FEATHERS = (90, 160, 90), (120, 60, 30), (240, 240, 240)


def body(facing: int = 1, top: int = 14, coat: tuple[int, int, int] = COAT) -> np.ndarray:
    """A trunk of 20 x 8 pixels from column 6 and row `top`, four rows of legs, and a head above its right end.

    uint8 (3, 32, 32); mirrored for facing=-1.
    """
    image = np.full((32, 32, 3), GROUND, np.uint8)
    image[top : top + 8, 6:26] = coat
    image[top + 8 : top + 12, 7:10] = image[top + 8 : top + 12, 22:25] = coat
    image[top - 6 : top, 22:26] = coat
    return (image if facing > 0 else image[:, ::-1]).transpose(2, 0, 1).copy()


def bird(feathers: tuple[int, int, int] = FEATHERS) -> np.ndarray:
    """A trunk of 10 x 8 pixels at columns 11 to 20, rows 18 to 25, and a wing of 4 x 13 above columns 14 to 17."""
    image = np.full((32, 32, 3), GROUND, np.uint8)
    image[18:26, 11:21] = feathers
    image[5:18, 14:18] = feathers
    return image.transpose(2, 0, 1).copy()


def write_photographs(root: Path, each: dict[str, int]) -> Path:
    """Write `each` split's number of drawn horses and birds, all different, as PNG files of an image folder."""
    for split, count in each.items():
        for name in ("horse", "bird"):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                shade = (30 + 7 * (i % 20), 40 + 5 * (i % 23), 20 + 3 * (i % 31) + 100 * (split == "test"))
                image = body(1 if i % 2 else -1, 12 + i % 4, shade) if name == "horse" else bird(shade)
                Image.fromarray(image.transpose(1, 2, 0)).save(root / split / name / f"{i:03d}.png")
    return root
