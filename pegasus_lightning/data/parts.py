"""What compositions are made of: animals that can carry a limb, and limbs, cut out of photographs.

Horses that stand side on and birds with spread wings were chosen by eye; `winged.csv` finds these photographs by
content, in any encoding of CIFAR-10. Other images and classes work without the list, by silhouettes alone.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pegasus_lightning.data.batches import ImageSet
from pegasus_lightning.data.cutouts import PLAIN, Limbs, Silhouettes, cut_limbs, fingerprints, limb_axes, silhouettes
from pegasus_lightning.utils.errors import UserError

LIST = Path(__file__).with_name("winged.csv")
SAME = 2.0  # largest mean difference of the fingerprints of one photograph in two encodings, of 255
MIN_LISTED_BODIES, MIN_LISTED_LIMBS = 15, 5  # with fewer, silhouettes give more variety
LIMBS = ("limb", "stock")  # roles of donors: stock marks clear shapes, which any chimera can have
STOCK = 4  # number of such limbs without the list
BODY_AREAS, DONOR_AREAS = (150, 480), (50, 520)  # pixels of a silhouette that can be used
MIN_BODY_WIDTH = 20


@dataclass(frozen=True)
class Bodies:
    """Photographs of animals from the side, which can carry a limb."""

    images: Tensor  # uint8 (N, 3, 32, 32)
    masks: Tensor  # bool (N, 32, 32)
    facing: Tensor  # float32 (N,): 1 where the head is on the right, -1 where it is on the left
    owners: Tensor  # int64 (N,): index of each photograph among those it was looked for in

    def __len__(self) -> int:
        return len(self.images)

    def take(self, indices: Tensor) -> Bodies:
        """Return the bodies at `indices`, in that order."""
        return Bodies(self.images[indices], self.masks[indices], self.facing[indices], self.owners[indices])


@dataclass(frozen=True)
class Parts:
    """What compositions of two classes are made of."""

    bodies: Bodies
    limbs: Limbs
    stock: Tensor  # int64 (n,): limbs that any chimera can have
    laden: Tensor  # int64 (n,): photographs of the first class with a rider or load, by the list; empty without it


def find_parts(data: ImageSet) -> Parts:
    """Return the bodies of the first class and the limbs of the second. Raise UserError if there are none.

    Photographs on the list are used if there are enough of both classes; otherwise, all with a usable silhouette.
    """
    images = [data.images[data.of_class(label)] for label in (0, 1)]
    marks = _read_list()
    bodies_found, bodies_marks = _find(images[0], [mark for mark in marks if mark["role"] in ("body", "laden")])
    donors_found, donors_marks = _find(images[1], [mark for mark in marks if mark["role"] in LIMBS])
    usable = [i for i, mark in enumerate(bodies_marks) if mark["role"] == "body"]
    laden = bodies_found[[i for i, mark in enumerate(bodies_marks) if mark["role"] == "laden"]]
    if len(usable) >= MIN_LISTED_BODIES and len(donors_marks) >= MIN_LISTED_LIMBS:
        own = bodies_found[torch.tensor(usable)]
        shapes = silhouettes(images[0][own])
        facing = torch.tensor([1.0 if bodies_marks[i]["facing"] == "right" else -1.0 for i in usable])
        bodies = Bodies(images[0][own], shapes.masks, facing, own)
        kinds = ("root_x", "root_y", "tip_x", "tip_y", "half_width")
        axes = torch.tensor([[float(mark[kind]) for kind in kinds] for mark in donors_marks], dtype=torch.float64)
        donors, place = donors_found.unique(return_inverse=True)
        cut = cut_limbs(images[1][donors], silhouettes(images[1][donors]), axes, place)
        stock = torch.tensor([i for i, mark in enumerate(donors_marks) if mark["role"] == "stock"], dtype=torch.int64)
        limbs = Limbs(cut.pixels, cut.roots, cut.tips, donors_found)
        return Parts(bodies, limbs, stock if len(stock) else largest(limbs), laden)
    first, second = data.classes[:2]
    bodies = find_bodies(images[0])
    limbs = find_limbs(images[1])
    for name, parts in ((first, bodies), (second, limbs)):
        if len(parts) == 0:
            raise UserError(
                f"No {name} can be cut out: compositions need photographs of {name} alone on a plain ground."
            )
    return Parts(bodies, limbs, largest(limbs), laden)


def largest(limbs: Limbs) -> Tensor:
    """Return the indices (n,) of the STOCK limbs with the most pixels, or of all limbs."""
    return limbs.pixels[:, 3].sum((1, 2)).argsort(descending=True, stable=True)[:STOCK]


def fit_to_mix(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Return the indices (n,) of images uint8 (N, 3, 32, 32) of each class that make good chimeras.

    They are the bodies and limbs on the list, and the donors that it marks as spread; without enough of them, those
    with a usable silhouette.
    """
    marks = _read_list()
    bodies, _ = _find(first, [mark for mark in marks if mark["role"] == "body"])
    donors, _ = _find(second, [mark for mark in marks if mark["role"] in (*LIMBS, "spread")])
    if len(bodies) < MIN_LISTED_BODIES or len(donors) < MIN_LISTED_LIMBS:
        bodies, donors = find_bodies(first).owners, find_limbs(second).donors
    return bodies.unique(), donors.unique()


def find_bodies(images: Tensor) -> Bodies:
    """Return the images uint8 (N, 3, 32, 32) with a usable silhouette; the head is where the outline is higher."""
    shapes = silhouettes(images)
    usable = (shapes.spreads < PLAIN) & _between(shapes.areas, BODY_AREAS) & (shapes.widths >= MIN_BODY_WIDTH)
    own = torch.nonzero(usable).flatten()
    masks = shapes.masks[own]
    facing = torch.tensor([_facing(mark) for mark in masks.numpy()])
    return Bodies(images[own], masks, facing, own)


def find_limbs(images: Tensor) -> Limbs:
    """Return what sticks out of usable silhouettes of images uint8 (N, 3, 32, 32), or all of those without a limb."""
    shapes = silhouettes(images)
    own = torch.nonzero((shapes.spreads < PLAIN) & _between(shapes.areas, DONOR_AREAS)).flatten()
    usable = Silhouettes(shapes.masks[own], shapes.distances[own], shapes.spreads[own])
    axes, found = limb_axes(usable)
    limbs = cut_limbs(images[own], usable, axes, found)
    return Limbs(limbs.pixels, limbs.roots, limbs.tips, own[found])


def _between(values: Tensor, limits: tuple[int, int]) -> Tensor:
    return (values >= limits[0]) & (values <= limits[1])


def _facing(mask: np.ndarray) -> float:
    columns = np.flatnonzero(mask.any(0))
    end = max(1, len(columns) // 4)
    left, right = (mask[:, part].any(1).argmax() for part in (columns[:end], columns[-end:]))
    return 1.0 if right < left else -1.0


def _read_list() -> list[dict[str, str]]:
    with open(LIST, newline="") as file:
        return list(csv.DictReader(file))


def _find(images: Tensor, marks: list[dict[str, str]]) -> tuple[Tensor, list[dict[str, str]]]:
    """Return the indices (n,) of the images that the marks are of, in the marks' order, and these marks."""
    if not marks or not len(images):
        return torch.zeros(0, dtype=torch.int64), []
    wanted = torch.tensor([list(bytes.fromhex(mark["fingerprint"])) for mark in marks]).float()
    distances = torch.cdist(wanted, fingerprints(images).float(), p=1) / wanted.shape[1]
    nearest, found = distances.min(1)
    there = torch.nonzero(nearest <= SAME).flatten()
    return found[there], [marks[i] for i in there.tolist()]
