"""The reporting recogniser, which has no part in a search, on the output of `generate`.

    python experiments/pegasus/reported.py --data cifar10-images FOLDER [FOLDER ...]

FOLDER holds `pegasi.npz`. Prints for each folder the share of pegasi in which B, the reporting recogniser, sees both
classes (with the 95 % interval), the same for each guiding recogniser (A), and their mean pairwise distance in pixels.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from omegaconf import OmegaConf

from pegasus_lightning.data.settings import ImageFolderConfig
from pegasus_lightning.evaluate.metrics.intervals import share_figure
from pegasus_lightning.recognisers.network import COMMITTEE, REPORTS, predict
from pegasus_lightning.recognisers.store import RecogniserStore
from pegasus_lightning.recognisers.training import independent_recipe
from pegasus_lightning.utils.tensors import to_float


def main() -> None:
    """Print the result of each folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="the folder of photographs, as in data.root=")
    parser.add_argument("folders", type=Path, nargs="+")
    options = parser.parse_args()
    data = OmegaConf.structured(ImageFolderConfig(root=options.data))
    store = RecogniserStore()
    reports = store.get(data, independent_recipe(REPORTS)).recogniser
    guides = store.committee(data, COMMITTEE).recogniser.members
    for folder in options.folders:
        images = to_float(torch.tensor(np.load(folder / "pegasi.npz")["images"]))
        both = [(predict(one, images) > 0).all(1) for one in (reports, *guides)]
        share = share_figure(both[0])
        by_guides = ", ".join(
            f"{name} {seen.float().mean():.1%}" for name, seen in zip(COMMITTEE, both[1:], strict=True)
        )
        apart = torch.pdist(images.flatten(1)).mean().item() / images[0].numel() ** 0.5
        print(
            f"{folder}: {len(images)} pegasi, B {share.value:.1%} ({share.low:.1%} to {share.high:.1%}), A: {by_guides}"
        )
        print(f"  {apart:.3f} from one another")


if __name__ == "__main__":
    main()
