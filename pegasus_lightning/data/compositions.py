"""Compositions: photographs of the first class that carry a limb of the second, such as horses with a bird's wings."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from pegasus_lightning.data.cutouts import Limbs
from pegasus_lightning.data.parts import Bodies
from pegasus_lightning.data.room import ROOM, mask_with_room, place_with_room, with_room
from pegasus_lightning.utils.bars import bar
from pegasus_lightning.utils.randomness import Stream, generator
from pegasus_lightning.utils.tensors import IMAGE_SIZE, to_float

EDGES = ("soft", "diffuse", "blurred", "sharp", "hard", "thin")
PLACES = ("back", "top", "beside")
OVERSAMPLING = 3  # positions a pixel and axis at which the parts are resampled
AT_A_TIME = 128
# Drawn uniformly for each composition, as judged by eye:
ALONG = (0.5, 0.6)  # place on the back, from the tail, over the silhouette's width
SIZE = (0.55, 0.75)  # length of the limb over the silhouette's width
ANGLE = (40.0, 75.0)  # of the limb above the horizontal, towards the tail, degrees
UPRIGHT = (70.0, 110.0)  # the same of what stands on the back, such as a rider
TINT = (0.0, 0.6)  # share of the way from the limb's mean colour to the body's
FAR_SHARE = 0.6  # of compositions with a second limb, behind the body;
FAR_ANGLE, FAR_SHADE = (15.0, 30.0), 0.75  # by how many degrees it is turned up, and its brightness
GROUND_BLUR = 7  # side of the box filter, in pixels, of the ground that continues a photograph
MAX_GROWTH = 1.35  # a small limb is enlarged no further: it would be blurred
# With room:
GRID = 4.0  # roots lie in the middle of squares of so many pixels
LENGTHS = (13.0, 10.0, 7.0)  # a limb has the first of these lengths that fits above its root; the last one always does,
UPWARDS, MARGIN = 0.85, 1.0  # with this height over its length, and so many pixels that may leave the image
CONTRAST = 0.3  # least difference in brightness, in [0, 1], of a limb and what is behind it
MIN_SCALE = 0.6  # the body is made smaller where its limb would leave the image


@dataclass(frozen=True)
class Compositions:
    """Bodies with limbs, and what they are made of."""

    images: Tensor  # uint8 (N, 3, 32, 32)
    bodies: Tensor  # uint8 (N, 3, 32, 32): the same pictures without the limb
    masks: Tensor  # bool (N, 32, 32): the body
    moved: Tensor  # uint8 (N, 4, 32, 32): the limb as RGB times alpha, and alpha
    first: Tensor  # int64 (N,): index of the body
    second: Tensor  # int64 (N,): index of the limb

    def __len__(self) -> int:
        return len(self.images)


def compose(
    bodies: Bodies, limbs: Limbs, count: int, seed: int, *, edge: str = "soft", place: str = "back"
) -> Compositions:
    """Return `count` compositions, a function of the parts and the seed. Bodies and limbs are used equally often.

    The limb's root lies a little inside the body, its tip points up and towards the tail. Often a second, darker one
    stands behind the body. A body whose limb would leave the image is made smaller; its own ground, blurred and with
    the animal taken out, is continued around it. Half of the pictures are mirrored. A terminal shows a progress bar
    after two seconds.

    Args:
        edge: of the limb. soft: as it was cut out; blurred, diffuse: blurred over 3 and 5 pixels; sharp: a steeper
            alpha; hard: alpha is 0 or 1; thin: half as wide.
        place: back, as above; top: upright on the back, and alone; beside: in front of the head, under the belly or
            behind the tail, as it was photographed.

    Raises:
        ValueError: another edge or place.
    """
    if edge not in EDGES or place not in PLACES:
        raise ValueError(f"edge is one of {EDGES} and place of {PLACES}, not {edge} and {place}")
    first, second = _in_turn(len(bodies), count, seed, 0), _in_turn(len(limbs), count, seed, 1)
    draws = torch.rand(count, 12, generator=generator(seed, Stream.PAIRS, 2))
    grounds = grounds_of(bodies)
    made = []
    parts = torch.arange(count).split(AT_A_TIME)
    for part in bar(parts, desc="composing", unit="batch"):
        own, other = bodies.take(first[part]), _edged(limbs.take(second[part]), edge)
        made.append(put_together(own, grounds[first[part]], other, _drawn(own, draws[part], place), place))
    images, without, masks, moved, _ = (torch.cat(values) for values in zip(*made, strict=True))
    return Compositions(images, without, masks, moved, first, second)


def _in_turn(length: int, count: int, seed: int, which: int) -> Tensor:
    """Return `count` indices below `length` in shuffled rounds."""
    source = generator(seed, Stream.ORDER, which)
    rounds = [torch.randperm(length, generator=source) for _ in range(-(-count // length))]
    return torch.cat(rounds)[:count]


def grounds_of(bodies: Bodies) -> Tensor:
    """Return the photographs' grounds, blurred and with the animals taken out, uint8 (N, 3, 32, 32)."""
    return torch.from_numpy(np.stack([_ground(i, m) for i, m in zip(bodies.images, bodies.masks, strict=True)]))


def _ground(image: Tensor, mask: Tensor) -> np.ndarray:
    """Return a blurred image (3, H, W) with the colour of the nearest ground pixel in place of the object."""
    object_ = ndimage.binary_dilation(mask.numpy(), iterations=2)
    pixels = image.numpy()
    if not object_.all():
        nearest = ndimage.distance_transform_edt(object_, return_distances=False, return_indices=True)
        pixels = pixels[:, nearest[0], nearest[1]]
    blurred: np.ndarray = ndimage.uniform_filter(pixels, (0, GROUND_BLUR, GROUND_BLUR), mode="nearest")
    return blurred


def _edged(limbs: Limbs, edge: str) -> Limbs:
    """Return limbs with another edge treatment, see `compose`."""
    pixels = limbs.pixels
    if edge in ("blurred", "diffuse"):
        size = 3 if edge == "blurred" else 5
        pixels = F.avg_pool2d(pixels, size, stride=1, padding=size // 2)
    elif edge != "soft":
        alpha = pixels[:, 3:]
        changed = {"hard": (alpha > 0.5).float(), "sharp": (2 * alpha - 0.5).clamp(0, 1), "thin": 2 * alpha - 1}[edge]
        pixels = torch.cat([pixels[:, :3] / alpha.clamp_min(1e-3), torch.ones_like(alpha)], 1) * changed.clamp_min(0)
    return Limbs(pixels, limbs.roots, limbs.tips, limbs.donors)


@dataclass(frozen=True)
class Layout:
    """How B compositions are put together. The fields are (B,), angles in radians."""

    along: Tensor  # place on the back, from the tail, over the silhouette's width
    size: Tensor  # length of the limb over the silhouette's width
    angle: Tensor  # of the limb above the horizontal, towards the tail
    flipped: Tensor  # -1: the limb's mirror image, 1: as it was cut out
    far: Tensor  # bool: a second limb behind the body,
    far_angle: Tensor  # turned up by this angle
    colours: Tensor  # (B, 3) in [0, 1]: the limb's mean colour moves towards this one,
    tint: Tensor  # by this share of the way
    mirrored: Tensor  # bool: the whole picture
    beside: Tensor  # int64: the place beside the body, of three


def _drawn(bodies: Bodies, draws: Tensor, place: str) -> Layout:
    """Return a layout from uniform draws (B, 12); see `compose`."""

    def drawn(column: int, limits: tuple[float, float]) -> Tensor:
        return limits[0] + (limits[1] - limits[0]) * draws[:, column]

    return Layout(
        along=drawn(0, ALONG),
        size=drawn(1, SIZE),
        angle=drawn(2, ANGLE if place == "back" else UPRIGHT).deg2rad(),
        flipped=torch.where(draws[:, 4] < 0.5, -1.0, 1.0),
        far=draws[:, 5] < (FAR_SHARE if place == "back" else 0),
        far_angle=drawn(6, FAR_ANGLE).deg2rad(),
        colours=mean_colours(to_float(bodies.images), bodies.masks),
        tint=drawn(3, TINT),
        mirrored=draws[:, 8] < 0.5,
        beside=(draws[:, 7] * 3).long(),
    )


def mean_colours(images: Tensor, masks: Tensor) -> Tensor:
    """Return the mean colours (N, 3) of images (N, 3, H, W) inside masks (N, H, W)."""
    return (images * masks[:, None]).sum((2, 3)) / masks.sum((1, 2)).clamp_min(1)[:, None]


def limb_colours(limbs: Limbs) -> Tensor:
    """Return the mean colours of limbs, (N, 3) in [0, 1]."""
    return limbs.pixels[:, :3].sum((2, 3)) / limbs.pixels[:, 3:].sum((2, 3)).clamp_min(1e-6)


def put_together(
    bodies: Bodies, grounds: Tensor | None, limbs: Limbs, layout: Layout, place: str = "back"
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return images, bodies (uint8), masks (bool), moved parts (uint8) and roots (float, x and y) of B compositions.

    A body is scaled where its limb would leave the image; its ground goes on around it.

    Without grounds every photograph gets the same room instead (`with_room`). The layout's `size` does not count: roots
    of limbs lie on a grid and their lengths are few, so that a network has few cases to learn. Limbs are made brighter
    or darker where they would not stand out (`_contrasted`).
    """
    side = float(IMAGE_SIZE)
    columns = bodies.masks.any(1)
    numbers = torch.arange(IMAGE_SIZE)
    left = columns.float().argmax(1).float()
    right = (columns * (numbers + 1)).amax(1).float()
    width = (right - left).clamp_min(1)
    root_x = torch.where(bodies.facing > 0, left + layout.along * width, right - layout.along * width)
    tops = torch.where(columns, bodies.masks.float().argmax(1), IMAGE_SIZE).float()
    around = (root_x.long()[:, None] + torch.arange(-1, 2)).clamp(0, IMAGE_SIZE - 1)
    root_y = tops.gather(1, around).median(1).values
    angle, length = layout.angle, layout.size * width
    centre = (left + right) / 2
    photographs, shapes = to_float(bodies.images), bodies.masks[:, None].float()
    if grounds is None:
        scale = torch.full_like(width, ROOM)
        without, masks = with_room(photographs), mask_with_room(shapes)
        shifted, _ = place_with_room(centre, root_y)
        spot_x, spot_y = (GRID * (spot / GRID).floor() + GRID / 2 for spot in place_with_room(root_x, root_y))
        fitting = UPWARDS * torch.tensor(LENGTHS) <= spot_y[:, None] + MARGIN
        fitting[:, -1] = True
        length = torch.tensor(LENGTHS)[fitting.int().argmax(1)] / scale
    else:
        scale = ((side - 1) / (side - root_y + 0.9 * length)).clamp(MIN_SCALE, 1)
        shifted = side / 2 + 0.6 * scale * (centre - side / 2)
        spot_x, spot_y = shifted + scale * (root_x - centre), side - scale * (side - root_y)
        columns_out, rows_out = _positions()
        x = centre[:, None, None] + (columns_out - shifted[:, None, None]) / scale[:, None, None]
        y = side - (side - rows_out) / scale[:, None, None]
        inside = ((x >= 0) & (x <= side) & (y >= 0))[:, None]
        around_it = _sample(to_float(grounds), x, y, "border")
        without = _pooled(torch.where(inside, _sample(photographs, x, y, "border"), around_it)).clamp(0, 1)
        masks = _pooled(_sample(shapes, x, y, "zeros", "bilinear"))
    tint = (layout.tint[:, None] * (layout.colours - limb_colours(limbs)))[:, :, None, None]

    def placed(x: Tensor, y: Tensor, angle: Tensor, shade: float) -> Tensor:
        """Return the limbs with their roots at (x, y), pointing up at `angle` towards the tail, (B, 4, 32, 32)."""
        axis = limbs.tips - limbs.roots
        shrink = (axis.norm(dim=1) / (length * scale)).clamp_min(1 / MAX_GROWTH)
        towards = torch.stack([-bodies.facing * angle.cos(), -angle.sin()], 1)
        moved = _turned(limbs, towards, torch.stack([x, y], 1), shrink, layout.flipped)
        colour = torch.minimum((moved[:, :3] + tint * moved[:, 3:]).clamp_min(0), moved[:, 3:]) * shade
        return torch.cat([colour, moved[:, 3:]], 1)

    if place != "beside":
        near = placed(spot_x, spot_y + 2.2 * scale, angle, 1.0)
        far = placed(spot_x + 1.2 * bodies.facing, spot_y + 1.5, angle + layout.far_angle, FAR_SHADE)
        far = far * (layout.far[:, None, None, None] * (1 - masks))
        moved = far * (1 - near[:, 3:]) + near
    else:
        spots = torch.tensor([[0.55, -0.3], [0.0, 0.45], [-0.55, 0.0]])[layout.beside]
        axis = F.normalize(limbs.tips - limbs.roots, dim=1)
        middle = torch.stack([shifted, (spot_y + side) / 2], 1)
        offset = torch.stack([bodies.facing * spots[:, 0], spots[:, 1]], 1) * (width * scale)[:, None]
        span = (limbs.tips - limbs.roots).norm(dim=1).clamp_min(1e-6)
        start = (middle + offset).clamp(4, side - 4) - axis * (0.25 * width * scale)[:, None]
        moved = _turned(limbs, axis, start, span / (0.5 * width * scale), torch.ones_like(width))
    if grounds is None:
        moved = _contrasted(moved, without)
    images = without * (1 - moved[:, 3:]) + moved[:, :3]
    whole = torch.cat([images, without, masks, moved], 1).clamp(0, 1)
    whole = torch.where(layout.mirrored[:, None, None, None], whole.flip(3), whole)
    pixels = (whole * 255).round().to(torch.uint8)
    roots = torch.stack([torch.where(layout.mirrored, side - spot_x, spot_x), spot_y], 1)
    return pixels[:, :3], pixels[:, 3:6], whole[:, 6] > 0.5, pixels[:, 7:], roots


def _contrasted(limbs: Tensor, pictures: Tensor) -> Tensor:
    """Return limbs (B, 4, 32, 32) that stand out from the pictures (B, 3, 32, 32) behind them.

    In front of what is dark (a mean brightness below 1/2) a limb's mean brightness is higher by at least CONTRAST, in
    front of what is bright lower, as far as colours within [0, 1] allow. What is behind alone decides which: a network
    that learns it need not tell two similar brightnesses apart.
    """
    alpha = limbs[:, 3:]
    area = alpha.sum((1, 2, 3)).clamp_min(1e-6)
    own, behind = (some.mean(1).sum((1, 2)) / area for some in (limbs[:, :3], alpha * pictures))
    wanted = torch.where(behind < 0.5, torch.maximum(own, behind + CONTRAST), torch.minimum(own, behind - CONTRAST))
    colours = limbs[:, :3] + (wanted - own)[:, None, None, None] * alpha
    return torch.cat([torch.minimum(colours.clamp_min(0), alpha), alpha], 1)


def _turned(limbs: Limbs, towards: Tensor, spots: Tensor, shrink: Tensor, flipped: Tensor) -> Tensor:
    """Return limbs (B, 4, 32, 32) with roots at `spots` and axes along the unit vectors `towards`, each (B, 2).

    `shrink` (B,) is how many pixels of the limb make one of the result; `flipped` (B,) is -1 for its mirror image.
    """
    own = F.normalize(limbs.tips - limbs.roots, dim=1)
    columns, rows = _positions()
    x, y = columns - spots[:, 0, None, None], rows - spots[:, 1, None, None]
    ahead = (x * towards[:, 0, None, None] + y * towards[:, 1, None, None]) * shrink[:, None, None]
    aside = (y * towards[:, 0, None, None] - x * towards[:, 1, None, None]) * (shrink * flipped)[:, None, None]
    from_x = limbs.roots[:, 0, None, None] + ahead * own[:, 0, None, None] - aside * own[:, 1, None, None]
    from_y = limbs.roots[:, 1, None, None] + ahead * own[:, 1, None, None] + aside * own[:, 0, None, None]
    return _pooled(_sample(limbs.pixels, from_x, from_y, "zeros", "bilinear"))


def _positions() -> tuple[Tensor, Tensor]:
    """Return x and y of the oversampled positions, in pixels from the upper left corner, each (S, S)."""
    line = (torch.arange(IMAGE_SIZE * OVERSAMPLING) + 0.5) / OVERSAMPLING
    rows, columns = torch.meshgrid(line, line, indexing="ij")
    return columns, rows


def _sample(images: Tensor, x: Tensor, y: Tensor, padding: str, mode: str = "bicubic") -> Tensor:
    """Return images (B, C, H, W) at x and y (B, S, S), in pixels from the upper left corner."""
    grid = torch.stack([x, y], 3) * (2 / IMAGE_SIZE) - 1
    return F.grid_sample(images, grid, mode=mode, padding_mode=padding, align_corners=False)


def _pooled(images: Tensor) -> Tensor:
    """Return the means over the oversampled positions of each pixel."""
    return F.avg_pool2d(images, OVERSAMPLING)
