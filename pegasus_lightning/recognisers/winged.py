"""Pictures that teach a recogniser to see wings where wings belong: compositions, beside pictures that only resemble
them. For any two classes: an animal of the first class that carries a limb of the second."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pegasus_lightning.data.batches import ImageSet
from pegasus_lightning.data.compositions import EDGES, compose
from pegasus_lightning.data.controls import cutmix, pixel_average
from pegasus_lightning.data.cutouts import Limbs
from pegasus_lightning.data.kinds import Kinds
from pegasus_lightning.data.parts import Bodies, Parts, find_parts, largest
from pegasus_lightning.utils.errors import UserError
from pegasus_lightning.utils.randomness import Stream, derived_seed, generator
from pegasus_lightning.utils.tensors import IMAGE_SIZE, as_float, in_batches, to_float

# Photographs (by their index in the class) and edges are split three ways, so that no judge knows the photographs that
# another one learned from.
GUIDES, SELECTS, REPORTS = 0, 1, 2
EDGES_OF = {GUIDES: ("soft", "thin"), SELECTS: ("blurred", "sharp"), REPORTS: ("hard", "diffuse")}
# A picture counts as winged beyond this probability. At .5 judges take a tenth of the patches with seams for wings.
THRESHOLD = 0.95
HELD_OUT = 5  # every fifth photograph of a third is kept for the calibration
RANKS = (32, 64, 128, 256)  # numbers of principal components that reconstruct
SOFTENED = 1 / 3  # share of all pictures that are made smaller and larger again, so that blur gives nothing away

Reconstruct = Callable[[Tensor], Tensor]  # images (B, 3, 32, 32) in [0, 1] to the same


def chimera_name(classes: Sequence[str]) -> str:
    """Return what the second output of a winged judge is called."""
    return f"{classes[0]} with parts of {classes[1]}"


def winged_kinds(
    data: ImageSet,
    *,
    third: int | None = None,
    held_out: bool = False,
    size: int = 4000,
    seed: int = 0,
    edges: Sequence[str] | None = None,
    others: Tensor | None = None,
    reconstruct: Sequence[Reconstruct] = (),
) -> Kinds:
    """Return pictures with and without wings where they belong, by kind.

    Both outputs are of the picture: an animal of the first class; one that carries a limb of the second. The kinds,
    with their share of `size`:

        the first class    3/4  half of them composed without a limb
        chimera            1
        laden photographs  1/8  with a rider or load, by the list
        drawn rider        1/4
        patch on the back  3/4  of another photograph, in the limb's place, with its edges
        limb elsewhere     3/8  in front of the head, under the belly or behind the tail
        the second class   3/8
        pixel average      1/5
        CutMix             1/5
        other classes      3/8
        reconstructions    3/4  of all but chimeras

    Args:
        data: photographs of the two classes.
        third: GUIDES, SELECTS or REPORTS: use this third of bodies, donors and photographs; None: all of them.
        held_out: with a third, the part of it that calibrates; otherwise the rest.
        edges: of `compositions.EDGES`; None: those of the third, or all.
        others: uint8 (N, 3, 32, 32), photographs of other classes, if there are any.
        reconstruct: models, beside principal components.

    Raises:
        UserError: too few photographs to compose.
    """
    parts = find_parts(data)
    first, second = (data.images[data.of_class(label)] for label in (0, 1))
    laden = first[_own(parts.laden, third, held_out)]
    if third is not None:
        donors = parts.limbs.donors
        limbs = parts.limbs.take(torch.nonzero(torch.isin(donors, _own(donors, third, held_out))).flatten())
        bodies = torch.nonzero(torch.isin(parts.bodies.owners, _own(parts.bodies.owners, third, held_out))).flatten()
        parts = Parts(parts.bodies.take(bodies), limbs, largest(limbs), parts.laden)
        first, second = (images[_own(torch.arange(len(images)), third, held_out)] for images in (first, second))
        others = None if others is None else others[_own(torch.arange(len(others)), third, held_out)]
    _check(parts, data.classes)
    edges = tuple(edges or (EDGES if third is None else EDGES_OF[third]))
    names = data.classes[:2]

    made: dict[str, tuple[Tensor, tuple[float, float]]] = {}
    composed = _composed(parts.bodies, parts.limbs, size, seed, edges)
    half = 3 * size // 8
    made[names[0]] = (torch.cat([_some(composed[1], half, seed), _some(first, half, seed)]), (1, 0))
    made[chimera_name(names)] = (composed[0], (1, 1))
    if len(laden):
        made["laden photographs"] = (_some(laden, size // 8, seed), (1, 0))
    loads = _loads(size // 4, seed)
    made["drawn rider"] = (_composed(parts.bodies, loads, size // 4, seed + 1, edges, "top")[0], (1, 0))
    foreign = torch.cat([first, others] if others is not None else [first])
    patches = _patches(_some(foreign, 3 * size // 4, seed + 2), seed)
    made["patch on the back"] = (_composed(parts.bodies, patches, 3 * size // 4, seed + 2, edges, "top")[0], (1, 0))
    made["limb elsewhere"] = (_composed(parts.bodies, parts.limbs, 3 * size // 8, seed + 3, edges, "beside")[0], (1, 0))
    made[names[1]] = (_some(second, 3 * size // 8, seed), (0, 0))
    made["pixel average"], made["CutMix"] = (
        (images, (0.5, 0))
        for images in _blends(_some(first, size // 5, seed + 4), _some(second, size // 5, seed + 4), seed)
    )
    if others is not None:
        made["other classes"] = (_some(others, 3 * size // 8, seed), (0, 0))
    images, kinds, targets = _gathered(made)
    alike = torch.nonzero(kinds != 1).flatten()
    chosen = alike[_order(len(alike), seed)][: 3 * size // 4]
    ways = [*_components(torch.cat([first, second])), *reconstruct]
    rebuilt = torch.cat([_bytes(in_batches(way, images[chosen[i :: len(ways)]])) for i, way in enumerate(ways)])
    kept = torch.cat([targets[chosen[i :: len(ways)]] for i in range(len(ways))])
    images = _softened(torch.cat([images, rebuilt]), seed)
    kinds = torch.cat([kinds, torch.full((len(rebuilt),), len(made))])
    return Kinds(images, kinds, (*made, "reconstructions"), torch.cat([targets, kept]))


def _own(photographs: Tensor, third: int | None, held_out: bool) -> Tensor:
    """Return those of a class's photographs, named by their index, that belong to a third, or to what it holds out."""
    if third is None:
        return photographs
    kept_back = photographs // 3 % HELD_OUT == HELD_OUT - 1
    return photographs[(photographs % 3 == third) & (kept_back if held_out else ~kept_back)]


def _check(parts: Parts, classes: Sequence[str]) -> None:
    for name, count in ((classes[0], len(parts.bodies)), (classes[1], len(parts.limbs))):
        if count == 0:
            raise UserError(
                f"There are too few photographs of {name} that can be cut out to learn from: a winged judge takes at "
                f"least {3 * HELD_OUT} of each class."
            )


def _composed(
    bodies: Bodies, limbs: Limbs, count: int, seed: int, edges: Sequence[str], place: str = "back"
) -> tuple[Tensor, Tensor]:
    """Return `count` compositions, and the same pictures without a limb, with each edge in turn."""
    made = [
        compose(
            bodies, limbs, len(range(i, count, len(edges))), derived_seed(seed, Stream.PAIRS, i), edge=edge, place=place
        )
        for i, edge in enumerate(edges)
    ]
    return torch.cat([some.images for some in made]), torch.cat([some.bodies for some in made])


def _some(images: Tensor, count: int, seed: int) -> Tensor:
    """Return `count` of the images in shuffled rounds."""
    order = torch.cat([_order(len(images), seed + turn) for turn in range(-(-count // max(1, len(images))))])
    return images[order[:count]]


def _order(length: int, seed: int) -> Tensor:
    return torch.randperm(length, generator=generator(seed, Stream.ORDER))


def _blends(first: Tensor, second: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Return pixel averages and CutMix pictures of pairs, at ratios from .3 to .7."""
    ratios = 0.3 + 0.4 * torch.rand(len(first), generator=generator(seed, Stream.RATIOS))
    pairs = to_float(first), to_float(second)
    return _bytes(pixel_average(*pairs, ratios)), _bytes(cutmix(*pairs, ratios, seed))


def _patches(images: Tensor, seed: int) -> Limbs:
    """Return ellipses and rectangles cut out of the middle of photographs, with edges as soft as a limb's."""
    count = len(images)
    draws = torch.rand(count, 4, generator=generator(seed, Stream.MIXING))
    half_width = 2.5 + 3 * draws[:, 0, None, None]
    half_height = half_width * (
        0.8 + 0.5 * draws[:, 1, None, None]
    )  # no longer than wide: a long one looks like a wing
    line = torch.arange(IMAGE_SIZE) + 0.5 - IMAGE_SIZE / 2
    x, y = line[None, None, :] / half_width, line[None, :, None] / half_height
    ellipse, rectangle = x.square() + y.square() < 1, (x.abs() < 1) & (y.abs() < 1)
    shape = torch.where(draws[:, 2, None, None] < 0.7, ellipse, rectangle).float()[:, None]
    alpha = F.avg_pool2d(shape, 3, stride=1, padding=1)
    middle = torch.full((count,), IMAGE_SIZE / 2)
    roots = torch.stack([middle, middle + half_height.flatten()], 1)
    tips = torch.stack([middle, middle - half_height.flatten()], 1)
    return Limbs(torch.cat([to_float(images) * alpha, alpha], 1), roots, tips, torch.arange(count))


def _loads(count: int, seed: int) -> Limbs:
    """Return drawn riders: a torso and a leg in the colours of clothes, and a head."""
    draws = torch.rand(count, 12, generator=generator(seed, Stream.PICTURES))
    line = torch.arange(IMAGE_SIZE) + 0.5
    x, y = line[None, None, :], line[None, :, None]

    def ellipse(middle_x: Tensor, middle_y: Tensor, half_x: Tensor, half_y: Tensor) -> Tensor:
        away = ((x - middle_x[:, None, None]) / half_x[:, None, None]).square()
        away = away + ((y - middle_y[:, None, None]) / half_y[:, None, None]).square()
        return (1.6 * (1.3 - away)).clamp(0, 1)[:, None]

    middle = torch.full((count,), IMAGE_SIZE / 2)
    half = 1.8 + 1.2 * draws[:, 0]
    torso = ellipse(middle, middle, half, 4 + draws[:, 1])
    head = ellipse(middle + 2 * draws[:, 2] - 1, middle - 6.3, 1.4 + 0.6 * draws[:, 3], 1.5 + 0.6 * draws[:, 3])
    leg = ellipse(middle + 3 * draws[:, 4] - 1.5, middle + 5, 1 + 0.5 * draws[:, 5], 4 + draws[:, 1])
    coat = draws[:, 6:9, None, None] * (0.3 + 0.7 * draws[:, 9, None, None, None])
    skin = torch.tensor([0.8, 0.6, 0.5])[:, None, None] * (0.2 + 0.8 * draws[:, 10, None, None, None])
    trousers = coat * draws[:, 11, None, None, None]
    pixels = torch.zeros(count, 4, IMAGE_SIZE, IMAGE_SIZE)
    for alpha, colour in ((leg, trousers), (torso, coat), (head, skin)):
        pixels = pixels * (1 - alpha) + torch.cat([colour * alpha, alpha], 1)
    roots = torch.stack([middle, middle + 4], 1)
    return Limbs(pixels, roots, torch.stack([middle, middle - 8], 1), torch.arange(count))


def _components(images: Tensor) -> list[Reconstruct]:
    """Return reconstructions from the first principal components of images, one for each of RANKS."""
    rows = to_float(images).flatten(1)
    mean = rows.mean(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        directions = torch.pca_lowrank(rows - mean, min(max(RANKS), len(rows) // 2), center=False)[2]

    def way(rank: int) -> Reconstruct:
        kept = directions[:, :rank]

        def reconstruct(some: Tensor) -> Tensor:
            flat = as_float(some).flatten(1) - mean
            return (mean + flat @ kept @ kept.T).view(some.shape).clamp(0, 1)

        return reconstruct

    return [way(rank) for rank in RANKS]


def _softened(images: Tensor, seed: int) -> Tensor:
    """Return images of which a share was made smaller, by a factor from .55 to .9, and larger again."""
    source = generator(seed, Stream.NOISE)
    chosen = torch.nonzero(torch.rand(len(images), generator=source) < SOFTENED).flatten()
    sizes = torch.randint(18, 29, (len(chosen),), generator=source)
    result = images.clone()
    for size in sizes.unique().tolist():
        own = chosen[sizes == size]
        small = F.interpolate(to_float(images[own]), size=(size, size), mode="bilinear", antialias=True)
        result[own] = _bytes(F.interpolate(small, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bicubic"))
    return result


def _gathered(made: dict[str, tuple[Tensor, tuple[float, float]]]) -> tuple[Tensor, Tensor, Tensor]:
    """Return images (N, 3, 32, 32), kinds (N,) and targets (N, 2) of all pictures."""
    counts = torch.tensor([len(images) for images, _ in made.values()])
    kinds = torch.repeat_interleave(torch.arange(len(made)), counts)
    targets = torch.tensor([target for _, target in made.values()])[kinds]
    return torch.cat([images for images, _ in made.values()]), kinds, targets


def _bytes(images: Tensor) -> Tensor:
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)
