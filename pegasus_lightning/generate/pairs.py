"""Selection of the pairs to mix: an image of each of two classes, drawn from all pairs of similar images.

All pairs are compared, in blocks of rows, so memory does not grow with the number of pairs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pegasus_lightning.data.batches import ImageSet
from pegasus_lightning.data.parts import fit_to_mix
from pegasus_lightning.generate.settings import COLOUR_DISTANCES, METHODS, PegasusConfig
from pegasus_lightning.utils.bars import bar
from pegasus_lightning.utils.errors import UserError, did_you_mean
from pegasus_lightning.utils.randomness import Stream, derived_seed
from pegasus_lightning.utils.tensors import to_float

BLOCK = 2**20  # distances computed at a time: 4 MiB
IMAGES_AT_A_TIME = 1024  # converted to float at a time for their descriptors

# Shares of the 25 million horse-bird pairs of CIFAR-10's training set within these: 6.1, 4.7 and 0.36 %.
RGB_THRESHOLD, LAB_THRESHOLD, MATCHED_THRESHOLD = 0.1, 10.0, 0.068

# Tuned by eye on horses and birds: equal weights let layouts differ, a smaller background weight its hues.
BACKGROUND_WEIGHT, MEAN_WEIGHT, FOREGROUND_WEIGHT, LUMA_WEIGHT = 0.3, 0.1, 0.4, 0.2
LAYOUT_CELLS = 4  # per side
LUMA = (0.2126, 0.7152, 0.0722)  # ITU-R BT.709-6, item 3.2

# IEC 61966-2-1:1999, linear sRGB to CIE XYZ; white is (1, 1, 1), so the sums of the rows are the XYZ of D65.
SRGB_TO_XYZ = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))


@dataclass(frozen=True)
class Pairs:
    """Pair k is image `first[k]` of the first class and image `second[k]` of the second."""

    first: Tensor  # int64 (n,), indices into the images of the first class
    second: Tensor  # int64 (n,), indices into those of the second
    distances: Tensor | None  # float32 (n,), in the unit of the method; None if it has none
    candidates: int  # number of pairs within the threshold, or of those that fit
    possible: int  # number of all pairs

    def __len__(self) -> int:
        return len(self.first)

    def sentence(self) -> str:
        """Return a sentence with the numbers of pairs and, if candidates are reused, how often."""
        pairs = f"{len(self):,} {'pair' if len(self) == 1 else 'pairs'}"
        candidates = f"{self.candidates:,} {'candidate' if self.candidates == 1 else 'candidates'}"
        sentence = f"{pairs} out of {candidates} (of {self.possible:,} possible)"
        if self.candidates < len(self):
            times, more = divmod(len(self), self.candidates)
            sentence += f": each candidate is used {times:,}{f' or {times + 1:,}' if more else ''} times"
        return sentence


def choose_pairs(
    first: Tensor, second: Tensor, count: int, *, method: str = "colour", seed: int = 0,
    colour_distance: str = "rgb", threshold: float | None = None,
) -> Pairs:  # fmt: skip
    """Return `count` pairs drawn uniformly, without replacement, from those within `threshold` (the candidates).

    With fewer candidates than `count`, all are used equally often, to within one, in shuffled rounds. The choice
    depends on the images, `seed` and the options only.

    Args:
        first, second: images of each class, uint8 (N, 3, H, W) and (M, 3, H, W), on the CPU.
        count: number of pairs, at least 1.
        method: `random`: every pair is a candidate. `colour`: pairs with similar colours at the centre, as in the
            source document (`centre_colours`). `matched`: pairs with similar background, mean colour and coarse
            layout (`layout_descriptors`). `winged`: images that show what makes a good chimera, every pair of them
            (`data.parts.fit_to_mix`).
        colour_distance: `rgb` or `lab`, for `colour`.
        threshold: largest distance of a candidate; None: `default_threshold`.

    Raises:
        UserError: invalid options, or no pair is a candidate (the message names the smallest distance).
    """
    default = default_threshold(method, colour_distance)
    if count < 1:
        raise UserError(f"The number of pairs must be at least 1, not {count}.")
    for name, images in (("first", first), ("second", second)):
        if len(images) == 0:
            raise UserError(f"There are no images of the {name} class to make pairs of.")
    generator = np.random.default_rng(derived_seed(seed, Stream.PAIRS))
    possible = len(first) * len(second)
    if default is None:
        if threshold is not None:
            raise UserError(
                f"pegasus.threshold={threshold} means nothing with pegasus.pairs={method}, which measures no distance."
                " Leave it out, or choose pegasus.pairs=colour or pegasus.pairs=matched."
            )
        chosen = fit_to_mix(first, second) if method == "winged" else [torch.arange(len(s)) for s in (first, second)]
        rows, columns = chosen
        if not (len(rows) and len(columns)):
            raise UserError("No pair of images fits pegasus.pairs=winged: say pegasus.pairs=colour or random.")
        candidates = len(rows) * len(columns)
        drawn = torch.from_numpy(_draw(candidates, count, generator))
        return Pairs(rows[drawn // len(columns)], columns[drawn % len(columns)], None, candidates, possible)

    threshold = default if threshold is None else threshold
    if not (math.isfinite(threshold) and threshold > 0):
        raise UserError(f"pegasus.threshold must be a positive number, not {threshold}.")
    if method == "colour":
        features, others = centre_colours(first, colour_distance), centre_colours(second, colour_distance)
    else:
        features, others = layout_descriptors(first), layout_descriptors(second)

    # Candidates are numbered row by row. They may be most of all pairs, so they are counted, not stored.
    in_row, nearest = _count_in_rows(features, others, threshold)
    candidates = int(in_row.sum())
    if candidates == 0:
        raise UserError(_none_near(method, threshold, nearest))
    numbers = torch.from_numpy(_draw(candidates, count, generator))
    rows, columns, distances = _find(features, others, threshold, in_row, numbers)
    return Pairs(rows, columns, distances, candidates, possible)


def default_threshold(method: str, colour_distance: str = "rgb") -> float | None:
    """Return the default largest distance of a candidate; None if the method measures none.

    Raise UserError for an unknown method or colour distance.
    """
    for field, value, choices in (
        ("pegasus.pairs", method, METHODS),
        ("pegasus.colour_distance", colour_distance, COLOUR_DISTANCES),
    ):
        if value not in choices:
            raise UserError(f"{field}={value} is none of {', '.join(choices)}.{did_you_mean(value, choices)}")
    if method == "colour":
        return LAB_THRESHOLD if colour_distance == "lab" else RGB_THRESHOLD
    return MATCHED_THRESHOLD if method == "matched" else None


def centre_colours(images: Tensor, distance: str = "rgb") -> Tensor:
    """Return the colour of the centre, float32 (N, 3): mean over the two middle rows and columns (one if odd).

    Euclidean distances between these colours are, for `rgb`, distances in RGB in [0, 1], at most sqrt(3); for `lab`,
    CIE76 colour differences (delta E*ab; about 2.3 is just noticeable, black and white differ by 100). The images are
    uint8 (N, 3, H, W), in sRGB.
    """
    height, width = images.shape[2:]
    centre = images[:, :, (height - 1) // 2 : height // 2 + 1, (width - 1) // 2 : width // 2 + 1]
    colours = to_float(centre).mean((2, 3))
    return _lab(colours) if distance == "lab" else colours


def layout_descriptors(images: Tensor) -> Tensor:
    """Return background, mean colour and coarse layout, float32 (N, 38); their Euclidean distances lie in [0, 1].

    The squared distance is the weighted mean of four mean squared differences of values in [0, 1]:

        weight  group       values
        0.3     background  3: mean RGB of the outermost ring of pixels, 1/16 of the shorter side wide (32: 2 pixels)
        0.1     mean        3: mean RGB of the image
        0.4     foreground  16: position of the object: distance of each pixel from the background colour (root mean
                            square over RGB), averaged in 4 x 4 cells
        0.2     luma        16: 0.2126 R + 0.7152 G + 0.0722 B, averaged in 4 x 4 cells

    A group of d values with weight w is therefore multiplied by sqrt(w / d). The images are uint8 (N, 3, H, W). The
    descriptor is not from a paper.
    """
    return torch.cat([_layout_descriptors(to_float(some)) for some in images.split(IMAGES_AT_A_TIME)])


def _layout_descriptors(images: Tensor) -> Tensor:
    """Return `layout_descriptors` of float images in [0, 1]."""
    height, width = images.shape[2:]
    ring = max(1, min(height, width) // 16)
    on_ring = torch.ones(height, width, dtype=torch.bool)
    on_ring[ring : height - ring, ring : width - ring] = False
    background = images[:, :, on_ring].mean(2)
    foreground = (images - background[:, :, None, None]).square().mean(1).sqrt()
    luma = torch.einsum("nchw,c->nhw", images, torch.tensor(LUMA))
    groups = (
        (BACKGROUND_WEIGHT, background),
        (MEAN_WEIGHT, images.mean((2, 3))),
        (FOREGROUND_WEIGHT, F.adaptive_avg_pool2d(foreground, LAYOUT_CELLS).flatten(1)),
        (LUMA_WEIGHT, F.adaptive_avg_pool2d(luma, LAYOUT_CELLS).flatten(1)),
    )
    return torch.cat([values * math.sqrt(weight / values.shape[1]) for weight, values in groups], 1)


def _lab(colours: Tensor) -> Tensor:
    """Convert sRGB in [0, 1] to CIELAB under D65, both float32 (N, 3).

    IEC 61966-2-1:1999 to linear light and XYZ, then CIE 15:2004, section 8.2.1.1: L* = 116 f(Y/Yn) - 16,
    a* = 500 (f(X/Xn) - f(Y/Yn)), b* = 200 (f(Y/Yn) - f(Z/Zn)); f is the cube root, linear near black.
    """
    colours = colours.double()
    linear = torch.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    matrix = torch.tensor(SRGB_TO_XYZ, dtype=torch.float64)
    relative = linear @ (matrix / matrix.sum(1, keepdim=True)).T
    f = torch.where(relative > (6 / 29) ** 3, relative ** (1 / 3), relative * (29 / 6) ** 2 / 3 + 4 / 29)
    x, y, z = f.unbind(1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1).float()


def _draw(total: int, count: int, generator: np.random.Generator) -> np.ndarray:
    """Draw `count` of the numbers 0 to total - 1, int64: full permutations, then a rest without repetition."""
    rounds, rest = divmod(count, total)
    full = [generator.permutation(total) for _ in range(rounds)]
    return np.concatenate([*full, generator.choice(total, rest, replace=False)]).astype(np.int64)


def _blocks(rows: Tensor, others: Tensor) -> Iterator[Tensor]:
    """Yield Euclidean distances, float32 (r, M), of successive blocks of rows (R, D) to all others (M, D)."""
    for block in bar(rows.split(max(1, BLOCK // len(others))), desc="comparing all pairs", unit="block"):
        # The faster matrix product has rounding errors larger than the smallest distances.
        yield torch.cdist(block, others, compute_mode="donot_use_mm_for_euclid_dist")


def _count_in_rows(features: Tensor, others: Tensor, threshold: float) -> tuple[Tensor, float]:
    """Return the number of others within the threshold of each row, int64 (N,), and the smallest distance."""
    counts, nearest = [], math.inf
    for distances in _blocks(features, others):
        counts.append((distances <= threshold).sum(1))
        nearest = min(nearest, distances.min().item())
    return torch.cat(counts), nearest


def _find(
    features: Tensor, others: Tensor, threshold: float, in_row: Tensor, numbers: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return row, column and distance of the candidates with these numbers, each (n,), in their order."""
    ends = in_row.cumsum(0)
    rows = torch.searchsorted(ends, numbers, right=True)
    needed, place = rows.unique(return_inverse=True)  # sorted; rows = needed[place]
    columns, distances = torch.empty_like(rows), torch.empty(len(rows))
    start = 0  # of the block, in `needed`
    for block in _blocks(features[needed], others):
        some = torch.nonzero((place >= start) & (place < start + len(block))).flatten()
        found = torch.nonzero(block <= threshold)[:, 1]  # columns, row by row
        here = needed[start : start + len(block)]
        starts = in_row[here].cumsum(0) - in_row[here]  # of each row, in `found`
        rank = numbers[some] - (ends - in_row)[rows[some]]  # among the candidates of its row
        columns[some] = found[starts[place[some] - start] + rank]
        distances[some] = block[place[some] - start, columns[some]]
        start += len(block)
    return rows, columns, distances


def _none_near(method: str, threshold: float, nearest: float) -> str:
    # Rounded up to four digits, so that the number shown is a sufficient threshold.
    unit = 10.0 ** (math.floor(math.log10(nearest)) - 3)
    enough = f"{math.ceil(nearest / unit) * unit:.4g}"
    what = {"colour": "centre colours", "matched": "matched images"}[method]
    return (
        f"No pair of {what} lies within pegasus.threshold={threshold}: the nearest are {enough} apart."
        f" Raise pegasus.threshold to {enough} or more."
    )


@dataclass(frozen=True)
class Parents:
    """Candidate parents: uint8 images (N, 3, 32, 32) of the first class and (M, 3, 32, 32) of the second."""

    first: Tensor
    second: Tensor
    classes: tuple[str, str]
    stored: bool = False  # decoded from codes that come with the model, each near that of a training image

    @classmethod
    def of(cls, data: ImageSet) -> Parents:
        """Return the images of the two classes of a split, each in the order of the split."""
        first, second = (data.images[data.of_class(label)] for label in (0, 1))
        return cls(first, second, (data.classes[0], data.classes[1]))


def pairs_for(parents: Parents, settings: PegasusConfig, count: int, seed: int) -> Pairs:
    """Return `choose_pairs` with the options of a `PegasusConfig`. Raise UserError if no pair is near enough."""
    return choose_pairs(
        parents.first,
        parents.second,
        count,
        method=settings.pairs,
        seed=seed,
        colour_distance=settings.colour_distance,
        threshold=settings.threshold,
    )


def wanted_pairs(parents: Parents, settings: Any) -> Pairs:
    """Return the pairs that a `GenerateConfig` or `EvaluateConfig` mixes or searches among; see `pairs_for`."""
    tried = settings.count if settings.search.method == "none" else settings.search.pairs
    return pairs_for(parents, settings.pegasus, tried, settings.seed)
