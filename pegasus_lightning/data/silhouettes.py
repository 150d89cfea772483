"""Horses, birds and pegasi drawn from a seed: a data source without download.

A figure is a list of `Shape`s (filled outlines, painted in order) in its own units: x forward, y down, body length
about 1. `_fit` places it on a canvas of 192 x 192, which is averaged down to 32 x 32. All kinds share scenes, palettes
and camera, so only the shape distinguishes them. A pegasus is the horse of the same seed and number with a pair of
wings: outside them the two images are equal pixel for pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pegasus_lightning.data.outlines import Array, curve, ellipse, limb, mix, turned, unit
from pegasus_lightning.utils.errors import UserError, did_you_mean
from pegasus_lightning.utils.tensors import IMAGE_SIZE

CLASSES: tuple[str, ...] = ("horse", "bird", "pegasus")
SCENE = "scene"  # a picture without an animal; not a class to train on
SPLITS: tuple[str, ...] = ("train", "test")
CANVAS = 192  # 6 x 6 samples per pixel

Random = np.random.Generator


class Shape(NamedTuple):
    """One filled outline: points (n, 2) and an RGB colour (3,) in 0..255."""

    points: Array
    colour: Array
    counts: bool = True  # whether it is part of the bounding box, which sets place and size


class Palette(NamedTuple):
    """Colours of one animal, each RGB (3,)."""

    main: Array
    dark: Array
    light: Array
    wing: Array
    shadow: Array


# main, dark (mane, tail, wing tips), light (belly, breast): each is both a coat and a plumage
PALETTES = (
    ((126, 72, 38), (38, 26, 22), (176, 118, 74)),  # bay, thrush
    ((158, 78, 36), (110, 48, 22), (206, 132, 78)),  # chestnut, robin
    ((44, 40, 44), (20, 18, 22), (84, 80, 88)),  # black, crow
    ((134, 136, 144), (66, 68, 78), (192, 194, 200)),  # grey, pigeon
    ((222, 218, 210), (150, 142, 132), (242, 240, 236)),  # white, gull
    ((206, 156, 84), (236, 216, 170), (232, 196, 138)),  # palomino, bunting
    ((86, 56, 40), (44, 28, 22), (140, 98, 70)),  # dark bay, starling
    ((88, 100, 124), (42, 46, 62), (156, 168, 188)),  # blue roan, jay
)
# top of the sky, sky at the horizon, ground at the horizon, foreground
SCENES = (
    ((92, 152, 216), (196, 222, 240), (128, 166, 84), (86, 132, 52)),  # meadow under a clear sky
    ((158, 186, 206), (222, 228, 228), (150, 172, 104), (104, 136, 70)),  # meadow under haze
    ((112, 168, 220), (224, 228, 222), (226, 202, 152), (202, 170, 116)),  # sand
    ((92, 90, 146), (246, 178, 124), (138, 112, 92), (92, 84, 70)),  # dusk
    ((218, 166, 132), (252, 222, 170), (188, 160, 92), (150, 122, 66)),  # evening over stubble
    ((140, 176, 214), (222, 230, 238), (228, 234, 242), (190, 202, 218)),  # snow
)
GAITS = {  # phase of each leg (fraction of a turn), swing and bend (radians)
    "stand": ((0.0, 0.5, 0.5, 0.0), 0.12, 0.0),
    "walk": ((0.0, 0.5, 0.25, 0.75), 0.38, 0.5),
    "trot": ((0.0, 0.5, 0.5, 0.0), 0.50, 1.0),
    "gallop": ((0.0, 0.1, 0.5, 0.62), 0.80, 0.8),
}


# fmt: off
# Wing coordinates: along the arm, then across it toward the tail; the span is 1.
WING = curve([(0.0, -0.04), (0.3, -0.08), (0.6, -0.06), (0.85, 0.02), (1.0, 0.17), (0.86, 0.17), (0.82, 0.26),
               (0.68, 0.24), (0.6, 0.33), (0.46, 0.29), (0.36, 0.37), (0.22, 0.31), (0.08, 0.33), (-0.04, 0.14)])
COVERTS = curve([(0.0, -0.02), (0.3, -0.07), (0.6, -0.05), (0.78, 0.02), (0.6, 0.1), (0.3, 0.15), (0.05, 0.17),
                  (-0.04, 0.08)])
QUILLS = [limb(line, [0.012, 0.022]) for line in ([(0.66, 0.09), (0.93, 0.16)], [(0.52, 0.12), (0.7, 0.23)],
                                                   [(0.34, 0.14), (0.46, 0.28)], [(0.15, 0.16), (0.2, 0.3)])]
HORSE = curve([(0.50, 0.0), (0.42, -0.22), (0.24, -0.27), (0.0, -0.22), (-0.3, -0.27), (-0.5, -0.14), (-0.53, 0.06),
                (-0.36, 0.2), (-0.05, 0.21), (0.25, 0.26), (0.44, 0.18)])
BIRD = curve([(0.42, -0.02), (0.3, -0.2), (0.0, -0.25), (-0.35, -0.12), (-0.52, 0.0), (-0.3, 0.14), (0.0, 0.25),
               (0.3, 0.19)])
BREAST = curve([(0.4, 0.02), (0.25, 0.02), (0.0, 0.1), (-0.25, 0.1), (0.0, 0.24), (0.28, 0.19)])
FOLDED_WING = curve([(0.2, -0.1), (0.0, -0.18), (-0.35, -0.1), (-0.68, 0.04), (-0.25, 0.1), (0.1, 0.08)])
WING_TIPS = curve([(-0.2, -0.06), (-0.45, -0.04), (-0.68, 0.04), (-0.3, 0.07)])
# fmt: on


def _wing(root: Array, angle: float, span: float, palette: Palette, shade: float, counts: bool = True) -> list[Shape]:
    """Return a spread wing whose arm leaves `root` at `angle` (negative: raised), feathers toward the tail."""
    tail = -1.0 if np.sin(angle) < 0 else 1.0
    arm = np.array([unit(angle), unit(angle + tail * np.pi / 2)]) * span
    feathers = mix(palette.wing, palette.dark, 0.35)
    outlines = [(WING, feathers), (COVERTS, palette.wing)]
    outlines += [(quill, mix(feathers, palette.dark, 0.5)) for quill in QUILLS]
    return [Shape(root + points @ arm, colour * shade, counts) for points, colour in outlines]


def _leg(hip: Array, upper: float, lower: float, palette: Palette, shade: float, hind: bool) -> list[Shape]:
    """Return a horse's leg; `upper` and `lower` are the angles (radians, forward positive) of its two bones."""
    knee = hip + 0.40 * unit(np.pi / 2 - upper)
    fetlock = knee + 0.34 * unit(np.pi / 2 - lower)
    hoof = fetlock + 0.07 * unit(np.pi / 2 - lower - 0.5)
    thigh = 0.17 if hind else 0.13
    return [
        Shape(limb([hip, knee, fetlock], [thigh, 0.062, 0.05]), palette.main * shade),
        Shape(limb([fetlock, hoof], [0.055, 0.065]), palette.dark * shade * 0.8),
    ]


def _horse(random: Random, palette: Palette, wings: Random | None = None) -> list[Shape]:
    """Return a horse facing right; the generator `wings`, if any, adds wings outside the bounding box."""
    gait = str(random.choice(list(GAITS), p=(0.3, 0.25, 0.25, 0.2)))
    phases, swing, bend = GAITS[gait]
    start = random.uniform(0.6, 0.9) if gait == "gallop" else random.uniform(0, 1)  # the stretched phase of a gallop
    legs: list[list[Shape]] = []
    hips = ((-0.36, 0.02), (-0.32, 0.04), (0.33, 0.06), (0.37, 0.06))  # near hind, far hind, near fore, far fore
    for number, (phase, hip) in enumerate(zip(phases, hips, strict=True)):
        hind, near = number < 2, number % 2 == 0
        turn = 2 * np.pi * (start + phase)
        upper = swing * np.sin(turn) + (-0.12 if hind else 0.03) + random.uniform(-0.06, 0.06)
        lift = bend * max(0.0, float(np.cos(turn)))
        lower = upper + (0.22 + 0.3 * lift if hind else -0.06 - lift) - 0.3 * swing * max(0.0, -float(np.sin(turn)))
        legs.append(_leg(np.array(hip), upper, lower, palette, 1.0 if near else 0.72, hind))

    grazing = gait == "stand" and random.uniform() < 0.35
    neck = random.uniform(0.75, 0.95) if grazing else random.uniform(-1.1, -0.65) + (0.25 if gait == "gallop" else 0.0)
    nose = random.uniform(1.1, 1.35) if grazing else random.uniform(0.55, 0.95) - (0.2 if gait == "gallop" else 0.0)
    withers, poll = np.array([0.34, -0.08]), np.array([0.36, -0.08]) + 0.64 * unit(neck)
    muzzle = poll + 0.36 * unit(nose)
    crest = unit(neck - np.pi / 2)
    flow = random.uniform(0.0, 0.12) + (0.25 if gait in ("trot", "gallop") else 0.0)

    tail = limb([(-0.48, -0.16), (-0.64 - flow, -0.08), (-0.70 - 1.2 * flow, 0.46 - flow)], [0.05, 0.09, 0.04])
    middle = (withers + poll) / 2
    mane = [poll + 0.10 * crest + 0.05 * unit(neck), middle + 0.2 * crest, withers + (-0.12, -0.2),
            withers + 0.06 * crest, middle + 0.04 * crest, poll]  # fmt: skip
    ear = poll + 0.06 * unit(nose - np.pi / 2)
    shapes = [
        *legs[1], *legs[3], Shape(tail, palette.dark),
        *legs[0], *legs[2],
        Shape(HORSE, palette.main),
        Shape(limb([withers, middle - 0.02 * crest, poll], [0.22, 0.145, 0.1]), palette.main),
        Shape(ellipse((-0.02, 0.14), 0.3, 0.06), mix(palette.main, palette.light, 0.7)),
        Shape(ellipse((-0.3, -0.15), 0.16, 0.07), mix(palette.main, palette.light, 0.45)),
        Shape(curve(mane), palette.dark),
        Shape(limb([poll, (poll + muzzle) / 2, muzzle], [0.12, 0.1, 0.07]), palette.main),
        Shape(limb([muzzle - 0.03 * unit(nose), muzzle], [0.07, 0.07]), mix(palette.main, palette.dark, 0.6)),
        Shape(limb([ear, ear + 0.13 * unit(nose - np.pi / 2 - 0.35)], [0.05, 0.015]), palette.main * 0.85),
        Shape(ellipse(poll + 0.1 * unit(nose - 0.4), 0.032, 0.032), palette.dark * 0.4),
    ]  # fmt: skip
    if wings is not None:
        angle, span = wings.uniform(-2.45, -2.15), wings.uniform(0.86, 0.98)
        root = np.array([0.2, -0.12])
        palette = palette._replace(wing=mix(palette.light, (255, 255, 255), wings.uniform(0.3, 0.7)))
        far = _wing(root + (0.1, -0.04), angle + wings.uniform(0.35, 0.5), 0.9 * span, palette, 0.8, counts=False)
        shapes = far + shapes + _wing(root, angle, span, palette, 1.0, counts=False)
    low = max(leg[-1].points[:, 1].max() for leg in legs)
    return [Shape(ellipse((0.0, low), 0.52, 0.05), palette.shadow, counts=False), *shapes]


def _bird(random: Random, palette: Palette) -> tuple[list[Shape], bool]:
    """Return a bird facing right (on ground, flying, or on a branch outside the bounding box) and whether it flies."""
    flying = random.uniform() < 0.4
    wader = random.uniform() < 0.25
    tilt = random.uniform(*((-0.35, 0.05) if flying else (-0.4, -0.1) if wader else (-0.75, -0.2)))
    reach = random.uniform(0.02, 0.12) + 0.2 * wader  # length of the neck
    chest = turned([(0.26, -0.05)], tilt)[0]
    head = chest + (0.14 + (2.0 if flying else 0.3) * reach, -0.16 - (0.1 if flying else 1.4) * reach)
    beak = random.uniform(0.14, 0.26)
    bill = np.array((226.0, 146.0, 48.0)) if random.uniform() < 0.6 else palette.dark * 0.8
    length = random.uniform(0.3, 0.5)
    tail = turned([(-0.36, -0.04), (-0.48 - length, -0.07), (-0.46 - length, 0.09), (-0.36, 0.08)], tilt)
    torso = [
        Shape(tail, palette.dark),
        Shape(turned(BIRD, tilt), palette.main),
        Shape(limb([chest, (chest + head) / 2, head], [0.18, 0.11 if wader else 0.15, 0.12]), palette.main),
        Shape(turned(BREAST, tilt), palette.light),
        Shape(np.array([head + (0.1, -0.08), head + (0.17 + beak, 0.04), head + (0.1, 0.09)]), bill),
        Shape(ellipse(head, 0.175, 0.165), mix(palette.main, palette.dark, 0.25)),
        Shape(ellipse(head + (0.07, -0.03), 0.04, 0.04), palette.dark * 0.3),
    ]
    if flying:
        raised, span = random.uniform(-2.5, -1.9), random.uniform(1.0, 1.3)
        if random.uniform() < 0.65:  # both wings up
            far = _wing(chest + (-0.12, -0.06), raised + random.uniform(0.35, 0.6), 0.9 * span, palette, 0.75)
            angle = raised
        else:  # banking: one up, one down
            far = _wing(chest + (-0.16, -0.06), raised, 0.9 * span, palette, 0.75)
            angle = random.uniform(1.8, 2.2)
        return far + torso + _wing(chest + (-0.18, -0.02), angle, span, palette, 1.0), True

    foot = random.uniform(0.36, 0.46) + 0.28 * wader
    shapes = []
    if not wader and random.uniform() < 0.5:  # a branch that crosses the whole picture
        bend = random.uniform(-0.15, 0.15)
        bark = np.array((104.0, 80.0, 62.0)) * random.uniform(0.8, 1.1)
        branch = limb([(-4, foot + 0.1 - 3 * bend), (0, foot + 0.07), (4, foot + 0.1 + 3 * bend)], [0.09, 0.07, 0.05])
        shapes.append(Shape(branch, bark, counts=False))
    else:
        shapes.append(Shape(ellipse((0.05, foot), 0.4, 0.04), palette.shadow, counts=False))
    for hip, shade in ((0.1, 0.75), (-0.04, 1.0)):
        shapes.append(Shape(limb([(hip, 0.12), (hip + 0.02, foot), (hip + 0.12, foot + 0.02)], [0.05, 0.035, 0.03]),
                            mix(bill, palette.dark, 0.35) * shade))  # fmt: skip
    wing = [Shape(turned(FOLDED_WING, tilt), palette.wing), Shape(turned(WING_TIPS, tilt), palette.dark)]
    return shapes + torso + wing, False


def _scene(random: Random) -> tuple[Image.Image, Array, Array]:
    """Return a slightly blurred scene (sky, hills, ground) and the mean colours of its sky and ground."""
    top, low, far, near = np.array(SCENES[random.integers(len(SCENES))], dtype=float) + random.normal(0, 6, (4, 3))
    horizon = random.uniform(0.5, 0.78)
    y = (np.arange(64) + 0.5)[:, None] / 64
    sky = top + (low - top) * np.clip(y / horizon, 0, 1)
    ground = far + (near - far) * np.clip((y - horizon) / (1 - horizon), 0, 1)
    rows = np.where(y < horizon, sky, ground).clip(0, 255).astype(np.uint8)
    small = Image.fromarray(rows[:, None].repeat(64, axis=1))
    brush = ImageDraw.Draw(small)
    for _ in range(random.integers(0, 4)):  # clouds
        centre, width = random.uniform((0, 3), (64, 64 * horizon - 14)), random.uniform(6, 14)
        _fill(brush, ellipse(centre, width, 0.28 * width), mix(low, (255, 255, 255), 0.4))
    hills = np.linspace(-4, 68, 6)
    ridge = curve(np.column_stack([hills, 64 * horizon - random.uniform(0, 6, 6)]), closed=False)
    slope = np.concatenate([ridge, [(68, 64 * horizon), (-4, 64 * horizon)]])
    _fill(brush, slope, mix(mix(far, top, 0.35), low, 0.2))
    for x, depth in random.uniform((0, 0), (64, 1), (8, 2)):  # tufts, furrows, ripples
        _fill(brush, ellipse((x, 64 * (horizon + 0.03 + depth * (1 - horizon))), 2 + 5 * depth, 0.7), near * 0.92)
    canvas = small.resize((CANVAS, CANVAS), Image.Resampling.BILINEAR)
    return canvas, mix(top, low, 0.5), mix(far, near, 0.5)


def _palette(random: Random, sky: Array, ground: Array) -> Palette:
    """Return one of the palettes that contrast with sky and ground, with equal probability."""
    picks = np.array(PALETTES, dtype=float)
    apart = np.minimum(*(np.abs(picks[:, 0] - behind).mean(axis=1) for behind in (sky, ground)))
    main, dark, light = random.choice(picks[apart >= min(35.0, apart.max())]) * random.uniform(0.92, 1.08)
    wing = mix(light, main, random.uniform(0.0, 0.3)) if random.uniform() < 0.6 else mix(main, dark, 0.5)
    return Palette(main, dark, light, wing, 0.78 * ground)


def _fit(shapes: list[Shape], flying: bool, random: Random) -> list[Shape]:
    """Place a figure on the canvas, its bounding box up to 84 percent wide or high; half of the figures face left."""
    box = np.concatenate([shape.points for shape in shapes if shape.counts])
    low, high = box.min(axis=0), box.max(axis=0)
    scale = min(random.uniform(0.66, 0.84) / (high - low).max(), 0.45)
    flip = random.choice((-1.0, 1.0))
    highest = scale * (high - low)[1] + 0.06 if flying else 0.87
    foot = np.array([random.uniform(0.46, 0.54), random.uniform(highest, 0.94)])
    anchor = np.array([(low[0] + high[0]) / 2, high[1]])
    stretch = CANVAS * scale * np.array([flip, 1.0])
    return [shape._replace(points=(shape.points - anchor) * stretch + foot * CANVAS) for shape in shapes]


def _fill(brush: ImageDraw.ImageDraw, points: Array, colour: Array) -> None:
    red, green, blue = (min(max(int(value), 0), 255) for value in colour.tolist())
    brush.polygon(points.ravel().tolist(), fill=(red, green, blue))


def _picture(kind: str, seed: int, stream: int, number: int) -> NDArray[np.uint8]:
    """Return one image (32, 32, 3). Horse and pegasus share a random stream; the wings have their own."""
    random = np.random.default_rng((seed, stream, {"bird": 1, SCENE: 3}.get(kind, 0), number))
    canvas, sky, ground = _scene(random)
    palette = _palette(random, sky, ground)
    exposure = random.uniform(0.86, 1.1) * random.uniform(0.96, 1.04, 3)
    if kind != SCENE:
        wings = np.random.default_rng((seed, stream, 2, number)) if kind == "pegasus" else None
        shapes, flying = _bird(random, palette) if kind == "bird" else (_horse(random, palette, wings), False)
        brush = ImageDraw.Draw(canvas)
        for shape in _fit(shapes, flying, random):
            _fill(brush, shape.points, shape.colour)
    pixels = np.asarray(canvas.reduce(CANVAS // IMAGE_SIZE), dtype=float)
    return (pixels * exposure).clip(0, 255).astype(np.uint8)


def _check(word: str, choices: Sequence[str], what: str) -> None:
    if word not in choices:
        raise UserError(f"unknown {what} '{word}': silhouettes has {', '.join(choices)}.{did_you_mean(word, choices)}")


def _draw(kind: str, count: int, seed: int, stream: int) -> torch.Tensor:
    images = [_picture(kind, seed, stream, number) for number in range(count)]
    array = np.array(images, dtype=np.uint8).reshape(count, IMAGE_SIZE, IMAGE_SIZE, 3)
    return torch.from_numpy(array).permute(0, 3, 1, 2).contiguous()


def draw(kind: str, count: int, seed: int) -> torch.Tensor:
    """Return images uint8 (count, 3, 32, 32); image i depends only on (seed, kind, i).

    The random stream differs from those of the splits of `load`. Pegasus i is horse i with wings.
    """
    _check(kind, CLASSES, "class")
    return _draw(kind, count, seed, stream=len(SPLITS))


def load(classes: Sequence[str], split: str, count_per_class: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images uint8 (N, 3, 32, 32) and labels int64 (N,), indices into `classes`; N = classes x count.

    Images are ordered by class as given. The splits use independent random streams.
    """
    _check(split, SPLITS, "split")
    for kind in classes:
        _check(kind, CLASSES, "class")
    images = torch.cat([_draw(kind, count_per_class, seed, SPLITS.index(split)) for kind in classes])
    return images, torch.arange(len(classes)).repeat_interleave(count_per_class)


def load_scenes(split: str, count: int, seed: int) -> torch.Tensor:
    """Return scenes without an animal, uint8 (count, 3, 32, 32); none is the background of an image of `load`."""
    _check(split, SPLITS, "split")
    return _draw(SCENE, count, seed, SPLITS.index(split))
