"""Tables of experiments/judges: the recognisers and metrics on sets of images whose content is known.

    python experiments/judges/table.py data=image_folder data.root=FOLDER
    python experiments/judges/table.py data=silhouettes

One table for each of the two recognisers. Rows: real test images, training images passed off as samples (every second
one mirrored), noise, one grey, blurred real test images, and the two controls made of test photographs without a model.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from pegasus_lightning.data.batches import ImageSet
from pegasus_lightning.data.controls import cutmix, pixel_average
from pegasus_lightning.data.kinds import load_kinds
from pegasus_lightning.data.module import in_mixed_order, load_split
from pegasus_lightning.data.settings import data_settings, validate_data
from pegasus_lightning.evaluate.image_sets import ImageSetMetrics
from pegasus_lightning.generate.mixing import recipes
from pegasus_lightning.generate.pairs import choose_pairs
from pegasus_lightning.recognisers.network import REPORTS, SELECTS
from pegasus_lightning.recognisers.store import RecogniserStore
from pegasus_lightning.recognisers.training import standard_recipe
from pegasus_lightning.runs.scorecards import MEASURES, format_figure
from pegasus_lightning.utils.devices import one_device
from pegasus_lightning.utils.tensors import to_float

COUNT = 2000
COLUMNS = ("recognised", "chimera", "kid", "density", "coverage", "precision", "recall")
COLUMNS += ("nearest_pixels", "nearest_features", "memorised", "variety")


def sets(train: Tensor, test: ImageSet, both: Tensor) -> dict[str, Tensor]:
    """Return the sets of images, (N, 3, 32, 32) in [0, 1] each, by name."""
    noise = torch.Generator().manual_seed(0)
    real = to_float(test.images[:COUNT])
    copies = to_float(train[:COUNT])
    copies[::2] = copies[::2].flip(3)
    first, second = (test.images[test.of_class(label)] for label in (0, 1))
    pairs = choose_pairs(first, second, COUNT, method="colour", seed=0)
    chosen = recipes(pairs, (0.4, 0.6))
    parents = to_float(first[pairs.first]), to_float(second[pairs.second])
    rows = {
        f"real {test.classes[0]}": to_float(first[:COUNT]),
        f"real {test.classes[1]}": to_float(second[:COUNT]),
        "real, both classes": real,
        "training images as samples": copies,
        "pixel average": pixel_average(*parents, chosen.ratios),
        "CutMix": cutmix(*parents, chosen.ratios),
        "real, blurred by 1.5 pixels": gaussian_blur(real, [11, 11], [1.5, 1.5]),
        "noise": torch.rand(COUNT, 3, 32, 32, generator=noise),
        "one grey": torch.full((COUNT, 3, 32, 32), 0.5),
    }
    return rows | ({"true pegasi": to_float(both)} if len(both) else {})


def main(arguments: list[str]) -> None:
    config = data_settings(None, arguments)
    assert config is not None
    validate_data(config)
    device = one_device(None)
    train, test = (in_mixed_order(load_split(config, split)) for split in ("train", "test"))
    kinds = load_kinds(config, "test")
    rows = sets(train.images, test, kinds.images[kinds.targets.all(1)])
    for architecture in (REPORTS, SELECTS):
        stored = RecogniserStore(device=device).get(config, standard_recipe(architecture))
        quality = stored.quality
        found = ", ".join(
            f"{name} {value:.1%}" for name, value in zip(test.classes, quality["balanced_accuracy"], strict=True)
        )
        print(f"\n## {architecture}: balanced accuracy on test: {found}; {quality['cpu_seconds']:.0f} CPU seconds\n")
        metrics = ImageSetMetrics(stored.recogniser, train, test)
        print("| what | images | " + " | ".join(MEASURES[name].title for name in COLUMNS) + " |")
        print("| --- " * (len(COLUMNS) + 2) + "|")
        for name, images in rows.items():
            figures = metrics.measure(images).figures
            cells = []
            for column in COLUMNS:
                figure = figures[column]
                measure = MEASURES[column]
                cells.append(f"{format_figure(measure, figure.value)} ± {format_figure(measure, figure.half)}")
            print(f"| {name} | {len(images):,} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
