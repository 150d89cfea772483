"""Runs of one setting that differ in their seed alone are not called different."""

from __future__ import annotations

import functools
import itertools
from pathlib import Path

import pytest

from pegasus_lightning.evaluate import pipeline
from pegasus_lightning.evaluate.pipeline import evaluate
from pegasus_lightning.evaluate.settings import EVALUATE
from pegasus_lightning.recognisers.training import RecogniserConfig
from pegasus_lightning.runs.scorecards import PEGASI, Figure, differs, over_seeds
from pegasus_lightning.train.settings import TRAIN
from pegasus_lightning.train.trainer import train

SEEDS = 8
SETTING = [
    *("model=adversarial_vae", "model.networks.channels=8", "model.networks.latent_dim=16"),
    *("data=silhouettes", "data.train_per_class=300", "data.test_per_class=100", "data.batch_size=32"),
    *("trainer.gpus=0", "trainer.max_epochs=5", "callbacks=quiet", "callbacks.health=false"),
]


def called_different(figures: list[Figure], count: int) -> list[bool]:
    """The verdict on every pair of disjoint groups of `count` of these seeds."""
    verdicts = []
    for one in itertools.combinations(range(len(figures)), count):
        for other in itertools.combinations(sorted({*range(len(figures))} - {*one}), count):
            if one < other:
                groups = ([figures[seed] for seed in members] for members in (one, other))
                verdicts.append(differs(*(over_seeds(members) for members in groups)))
    return verdicts


@pytest.mark.slow
def test_at_most_one_cell_in_twenty_differs_between_seeds_of_one_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    small = functools.partial(RecogniserConfig, epochs=5, least=0)
    monkeypatch.setattr(pipeline, "standard_recipe", small)
    runs = [train(TRAIN.compose([*SETTING, f"seed={seed}"]), "tiny") for seed in range(SEEDS)]
    named = [f"run={[str(run) for run in runs]}".replace(" ", ""), "recognisers=recognisers", "count=200", "gpus=0"]
    cards = evaluate(EVALUATE.compose([*named, "pegasus.pairs=random", "originals=false"]), [])
    measures = [(PEGASI, name) for name in cards[0].rows[PEGASI]] + [("", name) for name in cards[0].model]
    cells = {}
    for row, name in measures:
        figures = [(card.rows[row] if row else card.model)[name] for card in cards]
        if len({figure.value for figure in figures}) > 1:  # not the yardsticks, which no seed changes
            cells[name] = figures
    assert len(cells) >= 20
    for count in (1, 2):  # seed noise alone
        assert not any(any(called_different(figures, count)) for figures in cells.values())
    verdicts = [verdict for figures in cells.values() for verdict in called_different(figures, 3)]
    assert len(verdicts) == 280 * len(cells)
    share = sum(verdicts) / len(verdicts)
    print(f"{share:.3f} of {len(verdicts)} cells are called different")
    assert share <= 0.05
