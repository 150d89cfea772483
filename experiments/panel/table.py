"""Tables of experiments/panel: what recognisers say of the pictures that a blind panel rated.

    python experiments/panel/table.py FOLDER data=image_folder data.root=FOLDER [recognisers=FOLDER]

FOLDER is that of `panel make` after `panel score`. Rows: its sources. Columns: the panel's share of W, and the share in
which each recogniser sees both classes (probabilities above .5), or a winged judge sees wings (above .95). Below:
Spearman's rank correlation of each recogniser with the number of raters who say W, over all pictures, without real
images, and over some, with a bootstrap interval over the pictures.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from pegasus_lightning.data.settings import data_settings, validate_data
from pegasus_lightning.generate.judge import winged_store
from pegasus_lightning.generate.pretrained import open_pretrained
from pegasus_lightning.recognisers import winged
from pegasus_lightning.recognisers.network import COMMITTEE, REPORTS, SELECTS, predict
from pegasus_lightning.recognisers.store import RecogniserStore
from pegasus_lightning.recognisers.training import standard_recipe, winged_recipe

RESAMPLES = 2000


def both(recogniser: nn.Module, images: Tensor) -> Tensor:
    """Return the smaller probability of the two classes, (N,)."""
    return predict(lambda part: recogniser(part).sigmoid(), images).amin(1)


def carries(recogniser: nn.Module, images: Tensor) -> Tensor:
    """Return a winged judge's probability that the animal carries a limb, (N,)."""
    return predict(lambda part: recogniser(part).sigmoid(), images)[:, 1]


def interval(scores: np.ndarray, votes: np.ndarray) -> str:
    """Return Spearman's rho and its 95 % interval."""
    draws = np.random.default_rng(0).integers(0, len(votes), (RESAMPLES, len(votes)))
    found = [spearmanr(scores[draw], votes[draw]).statistic for draw in draws if np.ptp(votes[draw])]
    low, high = np.quantile(found, [0.025, 0.975])
    return f"{spearmanr(scores, votes).statistic:.2f} ({low:.2f} to {high:.2f})"


def main(place: str, arguments: list[str]) -> None:
    folder = next((text.partition("=")[2] for text in arguments if text.startswith("recognisers=")), None)
    config = data_settings(None, [text for text in arguments if not text.startswith("recognisers=")])
    assert config is not None
    validate_data(config)
    panel = Path(place)
    result = json.loads((panel / "score.json").read_text())
    images = torch.from_numpy(np.load(panel / "images.npz")["images"])
    sources = np.array([picture["source"] for picture in result["pictures"]])
    votes = np.array([picture["letters"].count("W") for picture in result["pictures"]])

    plain = RecogniserStore(Path(folder) if folder else None)
    store = winged_store(plain, config.classes)
    scores = {
        "A: both": both(open_pretrained("pegasus").committee, images),
        "B: both": both(plain.get(config, standard_recipe(REPORTS)).recogniser, images),
        "winged, guides": carries(store.winged_guides(config, COMMITTEE).recogniser, images),
        "winged, selects": carries(store.get(config, winged_recipe(SELECTS, winged.SELECTS)).recogniser, images),
        "winged, reports": carries(store.get(config, winged_recipe(REPORTS, winged.REPORTS)).recogniser, images),
    }
    found = {name: values.numpy() for name, values in scores.items()}
    print("| source | panel: W | " + " | ".join(found) + " |")
    print("| --- " * (len(found) + 2) + "|")
    for name, row in result["rows"].items():
        limits = [winged.THRESHOLD if judge.startswith("winged") else 0.5 for judge in found]
        cells = [f"{(v[sources == name] > limit).mean():.0%}" for v, limit in zip(found.values(), limits, strict=True)]
        share = row["W"]
        print(
            f"| {name} | {share['value']:.0%} ({share['low']:.0%} to {share['high']:.0%}) | " + " | ".join(cells) + " |"
        )
    print("\n| rank correlation with the number of W | " + " | ".join(found) + " |")
    print("| --- " * (len(found) + 1) + "|")
    made = np.array([not source.startswith("real ") for source in sources])
    models = np.array([source.startswith(("pegasus", "compositions")) for source in sources])
    for title, own in (
        (f"all {len(sources)} pictures", np.ones(len(sources), bool)),
        (f"without real images, {made.sum()}", made),
        (f"pegasi and compositions, with and without wings, {models.sum()}", models),
        ("compositions, 30", sources == "compositions"),
    ):
        print(f"| {title} | " + " | ".join(interval(values[own], votes[own]) for values in found.values()) + " |")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
