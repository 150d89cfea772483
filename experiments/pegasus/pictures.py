"""The picture of the ladder: the same unselected mixes by every rung (see `ladder.py`), a row for each rung and seed.

    python experiments/pegasus/pictures.py runs/pegasus_ladder --data cifar10-images --out ladder.png

Colour pairs of test photographs at ratio 1/2. Above them, the first parents as the last run decodes them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from ladder import RUNGS

from pegasus_lightning.data.module import load_split
from pegasus_lightning.data.settings import data_settings
from pegasus_lightning.generate.pairs import choose_pairs
from pegasus_lightning.runs.trained import open_run
from pegasus_lightning.utils.image_grid import image_grid, save_png
from pegasus_lightning.utils.tensors import to_float

COLUMNS, SCALE = 16, 2


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="folder of the runs")
    parser.add_argument("--data", required=True, help="folder of photographs: FOLDER/{train,test}/{horse,bird}/*.jpg")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    data = load_split(data_settings(None, ["data=image_folder", f"data.root={options.data}"]), "test")
    parents = [data.images[data.of_class(label)] for label in (0, 1)]
    pairs = choose_pairs(*parents, COLUMNS, method="colour", seed=0)
    first, second = (to_float(some[of]) for some, of in zip(parents, (pairs.first, pairs.second), strict=True))
    rows, captions = [], []
    for name, _, _ in RUNGS:
        for folder in sorted(options.runs.glob(f"{name}-s*")):
            model = open_run(folder).model
            with torch.no_grad(), model.inference():
                one, two = (model.encode(images).mean for images in (first, second))
                rows.append(model.decode(model.mix(one, two, torch.full((COLUMNS,), 0.5))))
                horses = model.decode(one)
            captions.append(folder.name.rpartition("-")[0])
    picture = image_grid(torch.cat([horses, *rows]), columns=COLUMNS, scale=SCALE, row_captions=["horse", *captions])
    save_png(picture, options.out)


if __name__ == "__main__":
    main()
