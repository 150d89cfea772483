"""Table of experiments/judges: the winged judges on horses, donors and edges that none of them has seen.

    python experiments/judges/winged.py data=image_folder data.root=FOLDER [recognisers=FOLDER] [pictures=FOLDER]

Test photographs; of the edges those that the judge did not learn. Columns: the kinds of pictures. Rows: the judges,
with the area under the curve of compositions against all negatives, and the share of each kind that they call winged at
a probability of .95. "decoded compositions" went through the code of `pretrained=pegasus`.
"whole bird elsewhere" is a bird beside, under or at the head of a horse, which no judge learned. With pictures=FOLDER
the worst mistakes are drawn there: they hold photographs, so they stay out of the repository.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

from pegasus_lightning.data.batches import ImageSet
from pegasus_lightning.data.compositions import compose
from pegasus_lightning.data.cutouts import PLAIN, Silhouettes, cut_limbs, silhouettes, whole_axes
from pegasus_lightning.data.module import load_split
from pegasus_lightning.data.parts import find_parts
from pegasus_lightning.data.settings import data_settings, validate_data
from pegasus_lightning.generate.judge import winged_store
from pegasus_lightning.generate.pretrained import open_pretrained
from pegasus_lightning.recognisers import winged
from pegasus_lightning.recognisers.network import COMMITTEE, REPORTS, SELECTS, predict
from pegasus_lightning.recognisers.store import RecogniserStore
from pegasus_lightning.recognisers.training import winged_recipe
from pegasus_lightning.utils.image_grid import image_grid, save_png
from pegasus_lightning.utils.tensors import in_batches, to_float

JUDGES = [*((name, winged.GUIDES, "guides") for name in COMMITTEE), (SELECTS, winged.SELECTS, "selects")]
JUDGES += [(REPORTS, winged.REPORTS, "reports")]
SHOWN, BESIDE = 24, 1000


def decoded(images: Tensor) -> Tensor:
    """Return images uint8 as `pretrained=pegasus` reconstructs them."""
    model = open_pretrained("pegasus").run.model
    with torch.no_grad(), model.inference():
        return in_batches(lambda part: model.reconstruct(to_float(part)), images)


def whole_birds_beside(data: ImageSet) -> Tensor:
    """Return horses with a whole bird in front of the head, under the belly or behind the tail."""
    birds = data.images[data.of_class(1)]
    shapes = silhouettes(birds)
    alone = torch.nonzero((shapes.spreads < PLAIN) & (shapes.areas >= 50) & (shapes.areas <= 300)).flatten()
    own = Silhouettes(shapes.masks[alone], shapes.distances[alone], shapes.spreads[alone])
    axes, found = whole_axes(own)
    return compose(find_parts(data).bodies, cut_limbs(birds[alone], own, axes, found), BESIDE, 0, place="beside").images


def main(arguments: list[str]) -> None:
    own = dict(text.split("=", 1) for text in arguments if text.startswith(("recognisers=", "pictures=")))
    config = data_settings(None, [text for text in arguments if not text.startswith(("recognisers=", "pictures="))])
    assert config is not None
    validate_data(config)
    beside = whole_birds_beside(load_split(config, "test"))
    plain = RecogniserStore(Path(own["recognisers"]) if "recognisers" in own else None)
    store = winged_store(plain, config.classes)
    for number, (architecture, third, part) in enumerate(JUDGES):
        recipe = winged_recipe(architecture, third)
        judge = store.get(config, recipe).recogniser
        test = store.test_images(config, recipe)
        found = predict(judge.probabilities, test.images)[:, 1]
        truth = test.targets[:, 1] > 0
        kinds = list(test.names)
        if number == 0:
            head = [
                "judge",
                "area",
                "compositions",
                "decoded compositions",
                *kinds[:1],
                *kinds[2:],
                "whole bird elsewhere",
            ]
            print("| " + " | ".join(head) + " |")
            print("| --- " * len(head) + "|")
        through = predict(judge.probabilities, decoded(test.images[truth]))[:, 1]
        shares = [(found[test.kinds == kind] > winged.THRESHOLD).float().mean().item() for kind in range(len(kinds))]
        cells = [f"{binary_auroc(found, truth.long()).item():.3f}", f"{shares[1]:.1%}"]
        cells += [f"{(through > winged.THRESHOLD).float().mean().item():.1%}"]
        cells += [f"{share:.1%}" for kind, share in enumerate(shares) if kind != 1]
        cells += [f"{(predict(judge.probabilities, beside)[:, 1] > winged.THRESHOLD).float().mean().item():.1%}"]
        print(f"| {architecture}, {part} | " + " | ".join(cells) + " |", flush=True)
        if "pictures" in own:
            missed = torch.nonzero(truth).flatten()
            missed = missed[found[missed].argsort()][:SHOWN]
            wrong = torch.nonzero(~truth).flatten()
            wrong = wrong[found[wrong].argsort(descending=True)][:SHOWN]
            rows = torch.cat([missed, wrong])
            captions = ["missed", "", "taken for winged", ""]
            picture = image_grid(test.images[rows], columns=SHOWN // 2, scale=4, row_captions=captions)
            save_png(picture, Path(own["pictures"]) / f"{architecture}-{part}.png")


if __name__ == "__main__":
    main(sys.argv[1:])
