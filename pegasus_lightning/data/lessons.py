"""Lessons in mixing: an image of each class, and the composition that their mix should look like."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pegasus_lightning.data.batches import ImageSet
from pegasus_lightning.data.compositions import AT_A_TIME, Layout, limb_colours, mean_colours, put_together
from pegasus_lightning.data.cutouts import PLAIN, Limbs, silhouettes
from pegasus_lightning.data.parts import DONOR_AREAS, Bodies, find_parts
from pegasus_lightning.utils.bars import bar
from pegasus_lightning.utils.randomness import Stream, generator
from pegasus_lightning.utils.tensors import IMAGE_SIZE, blurred, to_float

# The same two images always have the same target: a network that learns from several would learn their average.
ALONG, ANGLE, FAR_ANGLE = 0.55, math.radians(57), math.radians(22)
OWN_SHARE = 0.4  # of lessons whose second image has the limb itself
BUSY_SHARE = 0.5  # of lessons whose first animal stands in front of another photograph
SHIFT = 3  # pixels by which both images are shifted at most
SHADE, CAST = 0.3, 0.1  # share by which second images are made brighter or darker at most, and each colour by itself
TINT = 0.8  # in lessons with another limb: share of the way from the limb's colour to that of the second image


@dataclass(frozen=True)
class Lessons:
    """N lessons. The images are uint8 (N, 3, 32, 32)."""

    first: Tensor
    second: Tensor
    targets: Tensor
    moved: Tensor  # uint8 (N, 1, 32, 32): alpha of the limb in the target
    roots: Tensor  # int64 (N, 2): x and y of the pixel of the target where the limb grows

    def __len__(self) -> int:
        return len(self.first)

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.first, self.second, self.targets, self.moved, self.roots))

    def to(self, device: torch.device | str) -> Lessons:
        """Return the lessons on a device."""
        return Lessons(*(kind.to(device) for kind in self))


def make_lessons(data: ImageSet, count: int, seed: int = 0) -> Lessons:
    """Return `count` lessons, a function of the images and the seed. A progress bar appears after two seconds.

    In two fifths of them the second image is the one that the limb was cut out of: a network learns to find the limb
    there. In the others it is any other image of the second class, and the limb is the one of the nearest mean colour
    among a few (`Parts.stock`), tinted towards that image: the network learns to give a limb of that colour.

    Both images are shifted by a few pixels, and second ones made brighter or darker, so that there are more of them.
    Animals that can be cut out stand on a plain ground, so half of them are put in front of an image of the second
    class: the network learns to find them on any ground. The limb's mirror image is taken where that points its tip to
    the tail. So mirroring the second image does not change a lesson, and mirroring the first mirrors the target.

    Raises:
        UserError: there is nothing to cut out; see `find_parts`.
    """
    parts = find_parts(data)
    bodies, limbs = parts.bodies, parts.limbs
    second = data.images[data.of_class(1)]
    colours, own_colours = _colours(second), limb_colours(limbs)

    source = generator(seed, Stream.PAIRS, 4)
    own_limbs = _first_of_each(limbs.donors)
    no_donors = torch.ones(len(second), dtype=torch.bool).index_fill(0, limbs.donors, False).nonzero().flatten()
    no_donors = no_donors if len(no_donors) else torch.arange(len(second))
    several = (bodies, own_limbs, no_donors, second)
    body, limb, other, behind = (torch.randint(len(some), (count,), generator=source) for some in several)
    limb, other = own_limbs[limb], no_donors[other]
    busy = torch.rand(count, generator=source) < BUSY_SHARE
    own = torch.arange(count) < round(OWN_SHARE * count)
    shades = 1 + SHADE * (2 * torch.rand(count, 1, generator=source) - 1)
    shades = shades * (1 + CAST * (2 * torch.rand(count, 3, generator=source) - 1))
    wanted = (shades * torch.where(own[:, None], own_colours[limb], colours[other])).clamp(max=1)
    nearest = parts.stock[torch.cdist(wanted, own_colours[parts.stock]).argmin(1)]
    limb = torch.where(own, limb, nearest)
    shown = torch.where(own, limbs.donors[limb], other)
    tint = torch.where(own, 0.0, TINT)
    shifts = torch.randint(-SHIFT, SHIFT + 1, (4, count), generator=source)

    made: list[tuple[Tensor, ...]] = []
    for part in bar(torch.arange(count).split(AT_A_TIME), desc="lessons", unit="batch"):
        ones, taken = bodies.take(body[part]), limbs.take(limb[part])
        right, down, right_of_other, down_of_other = shifts[:, part]
        images, masks = (_shifted(some, right, down) for some in (ones.images, ones.masks[:, None]))
        images = _in_front(images, masks, second[behind[part]], busy[part])
        animals = Bodies(images, masks[:, 0], ones.facing, ones.owners)
        others = _shaded(_shifted(second[shown[part]], right_of_other, down_of_other), shades[part])
        taken = _shaded_limbs(taken, torch.where(own[part, None], shades[part], 1.0))
        whole = torch.ones(len(part))
        towards_tip = (taken.tips - taken.roots)[:, 0] * -animals.facing
        layout = Layout(
            along=ALONG * whole,
            size=whole,
            angle=ANGLE * whole,
            flipped=torch.where(towards_tip >= 0, 1.0, -1.0),
            far=whole.bool(),
            far_angle=FAR_ANGLE * whole,
            colours=wanted[part],
            tint=tint[part],
            mirrored=~whole.bool(),
            beside=torch.zeros(len(part), dtype=torch.int64),
        )
        targets, _, _, pixels, roots = put_together(animals, None, taken, layout)
        made.append((animals.images, others, targets, pixels[:, 3:], roots.long().clamp(0, IMAGE_SIZE - 1)))
    return Lessons(*map(torch.cat, zip(*made, strict=True)))


def _first_of_each(values: Tensor) -> Tensor:
    """Return the index of the first place of each value (N,), in the order of the values."""
    return torch.tensor([int((values == value).nonzero()[0]) for value in values.unique()], dtype=torch.int64)


def _colours(images: Tensor) -> Tensor:
    """Return the mean colours (N, 3) of what images uint8 (N, 3, H, W) show: of the silhouette on a plain ground, else
    of the middle."""
    shapes = silhouettes(images)
    plain = (shapes.spreads < PLAIN) & (shapes.areas >= DONOR_AREAS[0]) & (shapes.areas <= DONOR_AREAS[1])
    middle = torch.zeros_like(shapes.masks)
    middle[:, 10:22, 10:22] = True
    return mean_colours(to_float(images), torch.where(plain[:, None, None], shapes.masks, middle))


def _in_front(images: Tensor, masks: Tensor, others: Tensor, chosen: Tensor) -> Tensor:
    """Return images; where `chosen` (B,) is true, what the mask covers is in front of another image.

    Images and others are uint8 (B, 3, H, W), masks bool (B, 1, H, W).
    """
    alpha = torch.where(chosen[:, None, None, None], blurred(masks.float(), 3), 1.0)
    return (alpha * images + (1 - alpha) * others).round().to(torch.uint8)


def _shaded(images: Tensor, shades: Tensor) -> Tensor:
    """Return images uint8 (B, 3, H, W) with their colours multiplied by `shades` (B, 3)."""
    return (images * shades[:, :, None, None]).round().clamp(0, 255).to(torch.uint8)


def _shaded_limbs(limbs: Limbs, shades: Tensor) -> Limbs:
    """Return limbs with their colours multiplied by `shades` (B, 3)."""
    alpha = limbs.pixels[:, 3:]
    colours = torch.minimum(limbs.pixels[:, :3] * shades[:, :, None, None], alpha)
    return Limbs(torch.cat([colours, alpha], 1), limbs.roots, limbs.tips, limbs.donors)


def _shifted(images: Tensor, right: Tensor, down: Tensor) -> Tensor:
    """Return images (B, C, H, W), shifted by so many pixels, (B,) each; the border is repeated."""
    height, width = images.shape[2:]
    rows = (torch.arange(height) - down[:, None]).clamp(0, height - 1)[:, None, :, None].expand(images.shape)
    columns = (torch.arange(width) - right[:, None]).clamp(0, width - 1)[:, None, None].expand(images.shape)
    return images.gather(2, rows).gather(3, columns)
