"""What `evaluate` does: trained runs in; of each a scorecard, a gallery and figures in TensorBoard out."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from pegasus_lightning.evaluate.benchmark import Benchmark
from pegasus_lightning.evaluate.inception import inception_network
from pegasus_lightning.evaluate.tables import comparison_table, console_table
from pegasus_lightning.generate.judge import selector, store
from pegasus_lightning.generate.mixing import mixing_of
from pegasus_lightning.generate.pairs import Parents, wanted_pairs
from pegasus_lightning.generate.pretrained import open_pretrained
from pegasus_lightning.generate.session import common_data, common_guide, images_of, load_common
from pegasus_lightning.recognisers.network import REPORTS
from pegasus_lightning.recognisers.store import recogniser_for
from pegasus_lightning.recognisers.training import independent_recipe
from pegasus_lightning.runs.folder import read_status
from pegasus_lightning.runs.places import title
from pegasus_lightning.runs.scorecards import (
    FILE,
    GALLERY,
    HPARAMS,
    PEGASI,
    Scorecard,
    read_scorecard,
    write_scorecard,
)
from pegasus_lightning.runs.trained import TrainedRun, find_runs, open_runs
from pegasus_lightning.utils.compose import plain
from pegasus_lightning.utils.devices import one_device
from pegasus_lightning.utils.errors import UserError
from pegasus_lightning.utils.files import sha256, whole_folder

# What changes nothing but where results go and what is kept beside the figures.
NOT_FIGURES = ("run", "pretrained", "out", "originals", "gpus", "again", "recognisers")
EVENTS = ".evaluation"  # ends the name of the event file that holds the figures


def evaluate(config: DictConfig, data_overrides: Sequence[str]) -> list[Scorecard]:
    """Judge runs as a validated `EvaluateConfig` wants it; returns their scorecards, in the runs' order.

    Raises:
        UserError: no such run, device, data or class, or no place for the results. Nothing was written then.
    """
    settings = plain(config)
    device = one_device(settings["gpus"])
    shipped = None if settings["pretrained"] is None else open_pretrained(settings["pretrained"], device)
    runs = open_runs(find_runs(settings["run"]), device) if shipped is None else [shipped.run]
    for run in runs:
        mixing_of(run.model, settings["pegasus"])  # or none of them is begun
    data = common_data(runs, data_overrides, "images from")
    split = load_common(runs, data, settings["split"], data_overrides)
    # What is wrong with these shows before a recogniser is trained.
    homes = [_home(run, settings, several=len(runs) > 1) for run in runs]
    pairs = wanted_pairs(Parents.of(split), settings)

    inception = inception_network() if settings["inception"] else None
    recipe = independent_recipe(REPORTS) if settings["reporter"] == "independent" else None
    reports = recogniser_for(data, REPORTS, device=device, folder=store(settings), recipe=recipe)
    selects = selector(settings, data, device, common_guide(runs), shipped)
    origin = {"split": settings["split"]} | images_of(data)
    identity = {key: value for key, value in settings.items() if key not in NOT_FIGURES}
    judge = selects.stored.path.name if selects else "critic"
    # Without a search nothing is selected but what the gallery shows.
    identity["score"] = identity["score"] | {"judge": "none" if settings["search"]["method"] == "none" else judge}
    key = _digest([identity, origin, reports.path.name])
    folders = [home / _title(run, settings, [key, judge]) for run, home in zip(runs, homes, strict=True)]

    bench: Benchmark | None = None
    cards = []
    for run, folder in zip(runs, folders, strict=True):
        if (folder / FILE).exists() and not settings["again"]:
            cards.append(read_scorecard(folder / FILE))
            print(f"Already judged: {run.name} (again=true judges it once more)", flush=True)
        else:
            bench = bench or Benchmark(settings, data, split, pairs, reports, selects, device, inception)
            card, gallery = bench.measure(run, key, identity, origin)
            with whole_folder(folder) as staged:
                write_scorecard(staged / FILE, card)
                with open(staged / GALLERY, "wb") as file:
                    np.savez_compressed(file, **gallery)  # type: ignore[arg-type]
            cards.append(card)
        if run.folder is not None and settings["out"] is None:
            _log(run.folder, cards[-1])
        print(console_table(cards[-1]))
        print(f"  {folder / FILE}\n", flush=True)
    if len(cards) > 1:
        print(comparison_table(cards), flush=True)
    return cards


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]


def _home(run: TrainedRun, settings: dict[str, Any], *, several: bool) -> Path:
    """The folder for the folders of one run's figures. Raises UserError where it cannot be written."""
    if settings["out"] is not None:
        home = Path(settings["out"]).expanduser() / (run.name if several else "")
    elif run.folder is not None:
        home = run.folder / "evaluation"
    elif settings["pretrained"] is not None:  # not into the installed package
        home = Path("pegasi") / run.name / "evaluation"
    else:
        home = run.checkpoint.with_name(f"{run.checkpoint.stem}-evaluation")
    place = home.absolute()
    above = next(folder for folder in (place, *place.parents) if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise UserError(f"{home} cannot be made: {above} is not a folder that can be written to. Say out=FOLDER.")
    return home


def _title(run: TrainedRun, settings: dict[str, Any], key: list[str]) -> str:
    """`title` of all that decides the figures, and what is kept beside them."""
    return title(settings, [key, sha256(run.checkpoint), settings["originals"]])


def _log(run: Path, card: Scorecard) -> None:
    """The pegasi's figures into the run's own TensorBoard run, in place of those of an earlier evaluation.

    The training declares them as metrics of the run's row in HParams.
    """
    from torch.utils.tensorboard import SummaryWriter

    folder = run / "tensorboard"
    status = read_status(run)
    if status is None or status.get("status") == "running":
        return  # a second writer would stop a TensorBoard that follows the training
    for old in folder.glob(f"events.out.tfevents.*{EVENTS}"):
        old.unlink()
    with SummaryWriter(str(folder), filename_suffix=EVENTS) as writer:
        for name in HPARAMS:
            writer.add_scalar(f"evaluation/{name}", card.rows[PEGASI][name].value, card.batches)
