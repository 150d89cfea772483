"""Tables of experiments/silhouettes: distance of mixes from true pegasi, on drawings, where the truth is known.

    python experiments/silhouettes/truth.py runs/silhouettes

Horses, birds and true pegasi are drawn with new seeds, so no run was trained on them; pegasus i is horse i with wings.
Every run mixes the same pairs at the same ratios. A mix is compared with the nearest of 4,000 other true pegasi:

pixels  root mean squared error, images in [0, 1]. Softness helps: a blurred image is near everything.
shape   Euclidean distance of histograms of oriented gradients (Dalal and Triggs 2005), each block normalised to
        length 1, so that softness does not help; 0 to sqrt(2).
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from pegasus_lightning.data.silhouettes import draw
from pegasus_lightning.evaluate.metrics.intervals import mean_figure
from pegasus_lightning.generate.mixing import recipes
from pegasus_lightning.generate.pairs import Parents, pairs_for
from pegasus_lightning.generate.sampler import Sampler
from pegasus_lightning.generate.settings import GENERATE, GenerateConfig
from pegasus_lightning.runs.trained import find_trained, open_run
from pegasus_lightning.utils.compose import typed
from pegasus_lightning.utils.tensors import to_float

COUNT, BANK = 1000, 4000
SEED, BANK_SEED = 7, 8
RATIOS = (0.4, 0.6)
BLUR = 1.5  # pixels


def pixels(images: Tensor) -> Tensor:
    """Return images as rows (N, 3072), scaled so that Euclidean distances are root mean squared errors."""
    return images.flatten(1) / images[0].numel() ** 0.5


def shape(images: Tensor, cell: int = 4, bins: int = 8) -> Tensor:
    """Return histograms of oriented gradients of the grey images, (N, features) of length 1.

    Cells of 4 x 4 pixels, 8 unsigned orientations, blocks of 2 x 2 cells. Votes are split between neighbouring
    orientations; blocks are normalised, clipped at .2 and normalised again (the paper's "L2-Hys").
    """
    grey = images.mean(1)
    across = F.pad(grey[:, 1:-1, 2:] - grey[:, 1:-1, :-2], (1, 1, 1, 1))
    down = F.pad(grey[:, 2:, 1:-1] - grey[:, :-2, 1:-1], (1, 1, 1, 1))
    strength = torch.hypot(across, down)
    position = (torch.atan2(down, across) % torch.pi) / torch.pi * bins
    lower = position.floor()
    share = position - lower
    votes = torch.zeros(len(grey), bins, *grey.shape[1:])
    votes.scatter_add_(1, (lower.long() % bins)[:, None], (strength * (1 - share))[:, None])
    votes.scatter_add_(1, ((lower.long() + 1) % bins)[:, None], (strength * share)[:, None])
    cells = F.avg_pool2d(votes, cell) * cell**2
    blocks = F.unfold(cells, 2).transpose(1, 2)  # (N, blocks, 4 bins)
    for limit in (0.2, None):
        blocks = blocks / (blocks.square().sum(2, keepdim=True) + 0.01**2).sqrt()
        blocks = blocks if limit is None else blocks.clamp(max=limit)
    return blocks.flatten(1) / blocks.shape[1] ** 0.5


MEASURES: dict[str, Callable[[Tensor], Tensor]] = {"pixels": pixels, "shape": shape}


def interval(values: Tensor) -> str:
    """Return the mean and the half width of its 95 % interval."""
    figure = mean_figure(values)
    return f"{figure.value:.4f} ± {figure.half:.4f}"


def main(places: list[str]) -> None:
    horses, birds, truths = (draw(kind, COUNT, SEED) for kind in ("horse", "bird", "pegasus"))
    parents = Parents(horses, birds, ("horse", "bird"))
    bank = {name: measure(to_float(draw("pegasus", BANK, BANK_SEED))) for name, measure in MEASURES.items()}
    runs = [open_run(path) for path in find_trained(places)]

    def nearest(images: Tensor) -> dict[str, Tensor]:
        return {name: torch.cdist(measure(images), bank[name]).min(1).values for name, measure in MEASURES.items()}

    for method in ("random", "matched"):
        settings = typed(GENERATE.compose([f"pegasus.pairs={method}"]), GenerateConfig)
        pairs = pairs_for(parents, settings.pegasus, COUNT, 0)
        chosen = recipes(pairs, RATIOS)
        first, second = to_float(horses[pairs.first]), to_float(birds[pairs.second])
        average = torch.lerp(first, second, chosen.ratios[:, None, None, None])
        size = 2 * round(3 * BLUR) + 1
        rows = {
            "true pegasi": to_float(truths[pairs.first]),
            "horses": first,
            "birds": second,
            "pixel average": average,
            f"pixel average, blurred by {BLUR} pixels": gaussian_blur(average, [size, size], [BLUR] * 2),
        }
        for run in runs:
            with run.model.inference():
                sampler = Sampler(run.model, parents, pairs, settings)
                mixes = sampler.make(recipes(sampler.pairs, RATIOS))
            rows[f"`{run.name}`: mixes"] = mixes.images
            rows[f"`{run.name}`: average of reconstructions"] = mixes.pixel_blend()
        blend = nearest(average)
        print(f"\n{method} pairs: {pairs.sentence()}\n")
        print("| what | pixels | nearer than the pixel average by | shape | nearer than the pixel average by |")
        print("| --- | --- | --- | --- | --- |")
        for name, images in rows.items():
            found = nearest(images)
            cells = [cell for key in MEASURES for cell in (interval(found[key]), interval(blend[key] - found[key]))]
            print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
