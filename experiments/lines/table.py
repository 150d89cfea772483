"""Table and picture of experiments/lines: the ACAI paper's test of interpolations.

    python experiments/lines/table.py runs/lines

1,000 pairs of test lines with any two angles, 16 frames each from posterior means (Berthelot et al. 2018, sec. 3.2).
Controls: the pixel interpolation of the same pairs, and lines that turn evenly the shorter way (the upper bound).
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import torch
from torch import Tensor

from pegasus_lightning.data import lines
from pegasus_lightning.evaluate.metrics.interpolation import line_statistics
from pegasus_lightning.evaluate.metrics.intervals import mean_figure
from pegasus_lightning.generate.mixing import recipes
from pegasus_lightning.generate.pairs import Parents, pairs_for
from pegasus_lightning.generate.sampler import Sampler
from pegasus_lightning.generate.settings import GENERATE, GenerateConfig
from pegasus_lightning.runs.trained import find_trained, open_runs
from pegasus_lightning.utils.compose import typed
from pegasus_lightning.utils.image_grid import image_grid, save_png
from pegasus_lightning.utils.tensors import to_float

COUNT, FRAMES, SHOWN = 1000, 16, 6


def turning(count: int) -> Tensor:
    """Return lines that turn evenly by up to half a circle, (count, FRAMES, 3, 32, 32)."""
    noise = torch.rand(2, count, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    angles = 2 * math.pi * noise[0] + math.pi * (2 * noise[1] - 1) * torch.linspace(0, 1, FRAMES)
    return lines.line_images(angles.flatten())[:, None].expand(-1, 3, -1, -1).unflatten(0, angles.shape)


def row(name: str, frames: Tensor) -> None:
    found = line_statistics(frames)
    cells = []
    for values, scale in ((found.distance, 1000), (found.smoothness, 1)):
        value, low, high = (scale * number for number in mean_figure(values))
        cells.append(f"{value:.2f} ({low:.2f} to {high:.2f})")
    print(f"| {name} | {cells[0]} | {cells[1]} |", flush=True)


def main(place: str) -> None:
    images = lines.load(["up", "down"], "test", 1000, 0)[0]
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    parents = Parents(images[order[:1000]], images[order[1000:]], ("up", "down"))  # any two angles
    settings = typed(GENERATE.compose(["pegasus.pairs=random", "pegasus.codes=mean"]), GenerateConfig)
    pairs = pairs_for(parents, settings.pegasus, COUNT, 0)
    ratios = torch.linspace(0, 1, FRAMES)
    print("| | mean distance, thousandths | smoothness |\n| --- | --- | --- |")
    row("lines that turn evenly", turning(COUNT))
    ends = [to_float(side[index]) for side, index in ((parents.first, pairs.first), (parents.second, pairs.second))]
    row("pixel interpolation", torch.lerp(ends[0][:, None], ends[1][:, None], ratios[None, :, None, None, None]))
    pictures = []
    for run in open_runs(find_trained([place])):
        with run.model.inference():
            sampler = Sampler(run.model, parents, pairs, settings)
            frames = sampler.interpolations(recipes(sampler.pairs, (0.5, 0.5)), ratios)
        row(f"`{run.name}`", frames)
        if run.name.endswith("-s0"):
            pictures.append((run.name, frames[:SHOWN]))
    grid = image_grid(
        torch.cat([frames for _, frames in pictures]),
        title="Interpolations of lines",
        row_captions=[name for name, frames in pictures for _ in frames],
        footer="decoded mixes of posterior means, 16 frames",
        scale=2,
    )
    save_png(grid, Path(__file__).parent / "interpolations.png")


if __name__ == "__main__":
    main(sys.argv[1])
