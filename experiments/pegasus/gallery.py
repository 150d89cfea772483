"""The picture at the head of README: 32 unselected pegasi of colour pairs, and the best 16 of 4,000 winged pairs.

    python -m pegasus_lightning.generate pretrained=pegasus data=image_folder data.root=cifar10-images \
        search=winged count=16 out=best
    python experiments/pegasus/gallery.py --data cifar10-images --best best --out experiments/pegasus/gallery.png

Each is shown below its parents, test photographs as the model decodes them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from pegasus_lightning.data.module import load_split
from pegasus_lightning.data.settings import data_settings
from pegasus_lightning.generate.pairs import choose_pairs
from pegasus_lightning.generate.pretrained import open_pretrained
from pegasus_lightning.utils.tensors import to_float

UNSELECTED, BEST, COLUMNS, SCALE = 32, 16, 16, 2


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of photographs: FOLDER/{train,test}/{horse,bird}/*.jpg")
    parser.add_argument("--best", type=Path, required=True, help="folder of the selected pegasi")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    data = load_split(data_settings(None, ["data=image_folder", f"data.root={options.data}"]), "test")
    parents = [data.images[data.of_class(label)] for label in (0, 1)]
    model = open_pretrained("pegasus").run.model
    pairs = choose_pairs(*parents, UNSELECTED, method="colour", seed=0)
    chosen = json.loads((options.best / "pegasi.json").read_text())["pegasi"][:BEST]
    with np.load(options.best / "pegasi.npz") as file:
        selected = to_float(torch.from_numpy(file["images"][:BEST]))

    with model.inference():

        def codes_of(first: Tensor, second: Tensor) -> list[Tensor]:
            chosen = (some[of] for some, of in zip(parents, (first, second), strict=True))
            return [model.encode(to_float(images)).mean for images in chosen]

        one, two = codes_of(pairs.first, pairs.second)
        mixes = model.decode(model.mix(one, two, torch.full((UNSELECTED,), 0.5)))
        of_best = codes_of(*(torch.tensor([p[which]["index"] for p in chosen]) for which in ("first", "second")))
        shown = [(model.decode(one), model.decode(two), mixes), (*map(model.decode, of_best), selected)]
    blocks = []
    for rows_of in shown:
        for part in torch.arange(len(rows_of[0])).split(COLUMNS):
            rows = torch.cat([images[part] for images in rows_of])
            blocks.append(make_grid(rows, nrow=COLUMNS, padding=1, pad_value=1.0))
            blocks.append(torch.ones(3, 5, blocks[0].shape[2]))
    picture = (torch.cat(blocks[:-1], 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    image = Image.fromarray(picture)
    image.resize((image.width * SCALE, image.height * SCALE), Image.Resampling.BICUBIC).save(options.out)


if __name__ == "__main__":
    main()
