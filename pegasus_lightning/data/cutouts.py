"""Objects on a plain ground: silhouettes by colour distance from the border, and limbs cut out with soft edges."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from pegasus_lightning.utils.bars import bar
from pegasus_lightning.utils.tensors import IMAGE_SIZE

KEPT = 0.85  # share of the border's pixels that count as ground: an object may touch the border
PLAIN = 42.0  # largest spread of a plain border's colours, of 255
OTSU_SHARE, MIN_THRESHOLD = 0.8, 18.0  # of the distance (of 255) beyond which a pixel belongs to the object
TRUNK_RADIUS = 3  # of the disk whose opening leaves the trunk of an animal
MIN_LIMB = 12  # pixels
ROOT_FEATHER, BAND_FEATHER = 2.0, 1.0  # pixels over which a limb fades in at its root, and out at its sides
AT_A_TIME = 256


@dataclass(frozen=True)
class Silhouettes:
    """The largest object of each image, with holes filled."""

    masks: Tensor  # bool (N, 32, 32)
    distances: Tensor  # float32 (N, 32, 32): colour distance from the ground, in multiples of the threshold
    spreads: Tensor  # float32 (N,): root mean squared distance of the border's colours from their mean, of 255

    @property
    def areas(self) -> Tensor:
        """The number of pixels of each object, (N,)."""
        return self.masks.sum((1, 2))

    @property
    def widths(self) -> Tensor:
        """The number of columns from an object's first to its last, (N,); 0 without an object."""
        columns = self.masks.any(1)
        place = torch.arange(1, columns.shape[1] + 1)
        last = (columns * place).amax(1)
        first = (columns * place.flip(0)).amax(1)
        return (last + first - columns.shape[1]) * columns.any(1)


def silhouettes(images: Tensor) -> Silhouettes:
    """Return the silhouettes of images uint8 (N, 3, 32, 32).

    A pixel's distance is that to the nearest colour of the border, whose colours farthest from their median are left
    out. A pixel belongs to the object if its distance exceeds `OTSU_SHARE` of Otsu's threshold (1979, eq. 14: the
    largest variance between classes) of the image. A progress bar appears on a terminal after two seconds.
    """
    parts = [_distances(part.float()) for part in images.split(AT_A_TIME)]
    if not parts:
        empty = torch.zeros(0, IMAGE_SIZE, IMAGE_SIZE)
        return Silhouettes(empty.bool(), empty, torch.zeros(0))
    distances, spreads = (torch.cat(values) for values in zip(*parts, strict=True))
    relative = distances / _thresholds(distances.flatten(1))[:, None, None]
    images = bar(relative.numpy(), desc="silhouettes", unit="img")
    masks = torch.from_numpy(np.stack([_largest_object(image > 1) for image in images]))
    return Silhouettes(masks, relative, spreads)


def _distances(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distances (N, H, W) of pixels from the border's colours, and the spreads (N,) of these."""
    count, _, height, width = images.shape
    on_border = torch.ones(height, width, dtype=torch.bool)
    on_border[1:-1, 1:-1] = False
    border = images[:, :, on_border].transpose(1, 2)
    away = (border - border.median(1, keepdim=True).values).norm(dim=2)
    nearest = away.argsort(1)[:, : round(KEPT * border.shape[1])]
    ground = border.gather(1, nearest[:, :, None].expand(-1, -1, 3))
    spread = (ground - ground.mean(1, keepdim=True)).square().sum(2).mean(1).sqrt()
    distances = torch.cdist(images.flatten(2).transpose(1, 2), ground).amin(2)
    return distances.view(count, height, width), spread


def _thresholds(values: Tensor) -> Tensor:
    """Return the object's threshold for each row of distances (N, P), (N,)."""
    ordered = values.sort(1).values.double()
    total, count = ordered.sum(1, keepdim=True), ordered.shape[1]
    below = ordered.cumsum(1)[:, :-1]
    number = torch.arange(1, count, dtype=torch.float64)
    between = (total * number / count - below).square() / (number * (count - number))
    otsu = ordered.gather(1, between.argmax(1, keepdim=True))[:, 0]
    return (OTSU_SHARE * otsu).clamp_min(MIN_THRESHOLD).float()


def _largest_object(beyond: np.ndarray) -> np.ndarray:
    """Return the largest connected part of a mask (H, W) without specks, its holes filled."""
    opened = ndimage.binary_opening(beyond)
    solid = opened | (beyond & ndimage.binary_dilation(opened, iterations=2))
    parts, count = ndimage.label(solid)
    if count == 0:
        return np.zeros_like(beyond)
    sizes = ndimage.sum_labels(solid, parts, range(1, count + 1))
    filled: np.ndarray = ndimage.binary_fill_holes(parts == 1 + int(np.argmax(sizes)))
    return filled


@dataclass(frozen=True)
class Limbs:
    """Parts cut out of photographs, such as wings: RGB times alpha, and alpha, on an axis from root to tip."""

    pixels: Tensor  # float32 (N, 4, 32, 32), in [0, 1]
    roots: Tensor  # float32 (N, 2): x and y where the limb leaves the body, in pixels from the upper left corner
    tips: Tensor  # float32 (N, 2): x and y of its far end
    donors: Tensor  # int64 (N,): index of the photograph that each is cut out of

    def __len__(self) -> int:
        return len(self.pixels)

    def take(self, indices: Tensor) -> Limbs:
        """Return the limbs at `indices`, in that order."""
        return Limbs(self.pixels[indices], self.roots[indices], self.tips[indices], self.donors[indices])


def cut_limbs(images: Tensor, shapes: Silhouettes, axes: Tensor, donors: Tensor) -> Limbs:
    """Cut a limb out of each of M photographs.

    Alpha rises from 0 to 1 between .35 and 1.15 of the silhouette's threshold, inside a band around the axis; the
    limb's colour at an edge is that of its nearest opaque pixel, so nothing of the ground comes along.

    Args:
        images: uint8 (N, 3, 32, 32).
        shapes: their silhouettes.
        axes: float (M, 5): x and y of root and tip, and the half width of the band, in pixels.
        donors: int64 (M,): which image each axis belongs to.
    """
    pixels = [
        _cut(images[donor].permute(1, 2, 0).numpy() / 255.0, shapes.distances[donor].numpy(), axis.numpy())
        for donor, axis in zip(donors.tolist(), axes.double(), strict=True)
    ]
    stacked = np.stack(pixels) if pixels else np.zeros((0, 4, IMAGE_SIZE, IMAGE_SIZE))
    return Limbs(torch.from_numpy(stacked).float(), axes[:, :2].float(), axes[:, 2:4].float(), donors)


def _cut(image: np.ndarray, distance: np.ndarray, axis: np.ndarray) -> np.ndarray:
    """Return the limb (4, H, W) of an image (H, W, 3) on an axis (5,); all 0 if nothing stands out there."""
    root, tip, half = axis[:2], axis[2:4], axis[4]
    rows, columns = np.mgrid[: image.shape[0], : image.shape[1]] + 0.5
    length = float(np.hypot(*(tip - root)))
    along_x, along_y = (tip - root) / max(length, 1e-6)
    along = (columns - root[0]) * along_x + (rows - root[1]) * along_y
    aside = np.abs((rows - root[1]) * along_x - (columns - root[0]) * along_y)
    band = np.clip((half + BAND_FEATHER - aside) / BAND_FEATHER, 0, 1)
    band *= np.clip(along / ROOT_FEATHER + 0.5, 0, 1) * np.clip(length + 2.5 - along, 0, 1)
    parts, count = ndimage.label((distance > 1) & (band > 0))
    if count == 0:
        return np.zeros((4, *distance.shape))
    weights = ndimage.sum_labels(band, parts, range(1, count + 1))
    solid = ndimage.binary_fill_holes(parts == 1 + int(np.argmax(weights)))
    inner = ndimage.binary_erosion(solid)
    soft = np.where(inner, 1, np.clip((distance - 0.35) / 0.8, 0, 1))
    alpha = soft * band * ndimage.binary_dilation(solid, np.ones((3, 3)))
    opaque = inner if inner.sum() >= 6 else alpha > 0.5 * alpha.max()
    nearest = ndimage.distance_transform_edt(~opaque, return_distances=False, return_indices=True)
    return np.concatenate([image[nearest[0], nearest[1]].transpose(2, 0, 1) * alpha, alpha[None]])


def limb_axes(shapes: Silhouettes) -> tuple[Tensor, Tensor]:
    """Return axes (M, 5) of the limbs of plain silhouettes and the silhouette (M,) of each, for `cut_limbs`.

    What an opening by a disk takes away beside the trunk is a limb: its largest part, from where it meets the trunk to
    its farthest pixel. A silhouette without one is moved whole: its axis runs from the middle of its lowest row to the
    middle of its highest.
    """
    axes, found = [], []
    for index, mask in enumerate(shapes.masks.numpy()):
        if mask.any():
            axes.append(_limb_axis(mask))
            found.append(index)
    return torch.tensor(axes, dtype=torch.float64).reshape(-1, 5), torch.tensor(found, dtype=torch.int64)


def _limb_axis(mask: np.ndarray) -> list[float]:
    rows, columns = np.mgrid[-TRUNK_RADIUS : TRUNK_RADIUS + 1, -TRUNK_RADIUS : TRUNK_RADIUS + 1]
    disk = rows**2 + columns**2 <= TRUNK_RADIUS**2
    trunk = ndimage.binary_opening(np.pad(mask, TRUNK_RADIUS), disk)[
        TRUNK_RADIUS:-TRUNK_RADIUS, TRUNK_RADIUS:-TRUNK_RADIUS
    ]
    parts, count = ndimage.label(mask & ~trunk)
    sizes = ndimage.sum_labels(mask, parts, range(1, count + 1))
    meeting = ndimage.binary_dilation(trunk, np.ones((3, 3)))
    for part in np.argsort(-sizes, kind="stable") if count else ():
        limb = parts == part + 1
        contact = np.argwhere(limb & meeting) + 0.5
        if limb.sum() >= MIN_LIMB and len(contact):
            return _axis(contact.mean(0), np.argwhere(limb) + 0.5)
    return _whole_axis(mask)


def whole_axes(shapes: Silhouettes) -> tuple[Tensor, Tensor]:
    """Return axes (M, 5) of whole silhouettes and the silhouette (M,) of each, for `cut_limbs`."""
    found = [index for index, mask in enumerate(shapes.masks) if mask.any()]
    axes = [_whole_axis(shapes.masks[index].numpy()) for index in found]
    return torch.tensor(axes, dtype=torch.float64).reshape(-1, 5), torch.tensor(found, dtype=torch.int64)


def _whole_axis(mask: np.ndarray) -> list[float]:
    pixels = np.argwhere(mask) + 0.5
    lowest, highest = (pixels[pixels[:, 0] == end(pixels[:, 0])].mean(0) for end in (np.max, np.min))
    return _axis(lowest, pixels, tip=highest)


def _axis(root: np.ndarray, pixels: np.ndarray, tip: np.ndarray | None = None) -> list[float]:
    """Return [root x, root y, tip x, tip y, half width] of pixels (P, 2), rows first; the tip is the farthest."""
    away = pixels - root
    tip = pixels[np.hypot(*away.T).argmax()] if tip is None else tip
    length = max(float(np.hypot(*(tip - root))), 1e-6)
    aside = np.abs(away[:, 0] * (tip - root)[1] - away[:, 1] * (tip - root)[0]) / length
    return [float(root[1]), float(root[0]), float(tip[1]), float(tip[0]), float(aside.max()) + 0.5]


def fingerprints(images: Tensor) -> Tensor:
    """Return the mean colours of 4 x 4 cells of images uint8 (N, 3, 32, 32), rounded: uint8 (N, 48).

    JPEG changes them by a level or two, so they find a photograph of CIFAR-10 in another encoding.
    """
    return F.adaptive_avg_pool2d(images.float(), 4).round().to(torch.uint8).flatten(1)
