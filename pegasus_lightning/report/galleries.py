"""Galleries of the page: interpolations of the same pairs by every model, and the pegasi of each run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pegasus_lightning.report.read import Run
from pegasus_lightning.report.sprites import Sheets
from pegasus_lightning.runs.scorecards import PEGASUS_RATIOS


@dataclass(frozen=True)
class Strip:
    """A row of pictures: `sheet` is the index of a sprite, `row` the row in it; None: selected by the slider."""

    name: str
    sheet: int
    row: int | None


@dataclass(frozen=True)
class PairSet:
    """Models that mixed the same pairs."""

    classes: list[str]
    ratios: list[float]  # of the frames
    start: int  # index of the frame nearest to ratio 0.5
    band: tuple[float, float]  # positions of PEGASUS_RATIOS along the slider, in [0, 1]
    pairs: int  # number of pairs
    above: list[Strip]  # of the parents
    models: list[Strip]  # of each run
    below: list[Strip]  # of the parents combined without a model


def by_turns(runs: Sequence[Run]) -> list[Run]:
    """Return the runs with the first ones of all groups before the second ones, and so on."""
    seen: Counter[str] = Counter()
    turns = []
    for run in runs:
        turns.append(seen[run.group])
        seen[run.group] += 1
    return [runs[i] for i in sorted(range(len(runs)), key=lambda i: (turns[i], i))]


def pair_sets(runs: Sequence[Run], sheets: Sheets) -> list[PairSet]:
    """Return one set per group of runs with equal pairs and evaluation settings; add their sprites to `sheets`."""
    found: dict[tuple[object, ...], list[Run]] = {}
    for run in runs:
        if run.card is not None and run.gallery is not None:
            gallery = run.gallery
            key = (run.card.key, gallery.pair_indices.tobytes(), gallery.ratios.tobytes(), gallery.frames.shape)
            found.setdefault(key, []).append(run)
    sets = [_pair_set(members, sheets) for members in sorted(found.values(), key=len, reverse=True)]
    return [one for one in sets if one.models]


def _pair_set(runs: Sequence[Run], sheets: Sheets) -> PairSet:
    # The parents are the same for all runs: take them from any gallery that has them.
    galleries = [run.gallery for run in runs if run.gallery is not None]
    first, second = runs[0].classes if len(runs[0].classes) == 2 else ("first", "second")
    named = (
        ("first", f"{first}, original"),
        ("second", f"{second}, original"),
        ("blend", "pixel average (no model)"),
        ("cutmix", "CutMix (no model)"),
    )
    kept = [(field, name, next((g for g in galleries if getattr(g, field) is not None), None)) for field, name in named]
    shown = [(field, name, getattr(gallery, field)) for field, name, gallery in kept if gallery is not None]
    pairs = len(galleries[0].frames)
    strips: dict[str, Strip] = {}
    if shown:
        sheet = sheets.add(np.stack([images for _, _, images in shown]), len(shown) * pairs)
        if sheet is not None:
            strips = {field: Strip(name, sheet, row) for row, (field, name, _) in enumerate(shown)}
    places: dict[int, Strip] = {}
    for run in by_turns(runs):
        assert run.gallery is not None
        sheet = sheets.add(run.gallery.frames.swapaxes(0, 1), pairs)
        if sheet is not None:
            places[id(run)] = Strip(run.name, sheet, None)
    models = [places[id(run)] for run in runs if id(run) in places]
    ratios = galleries[0].ratios.astype(float)
    low, high = np.interp(PEGASUS_RATIOS, ratios, np.linspace(0, 1, len(ratios)))
    return PairSet(
        [first, second],
        ratios.tolist(),
        start=int(np.abs(ratios - 0.5).argmin()),
        band=(float(low), float(high)),
        pairs=pairs,
        above=[strips[field] for field in ("first", "second") if field in strips],
        models=models,
        below=[strips[field] for field in ("blend", "cutmix") if field in strips],
    )


@dataclass(frozen=True)
class Pegasus:
    """One pegasus of a run; `column` is its column in the sprite."""

    column: int
    ratio: float
    probabilities: tuple[float, float]
    distance: float
    too_near: bool


@dataclass(frozen=True)
class PegasusGallery:
    """Pegasi of a run, drawn at random and selected; the second row of the sprite has the nearest training images."""

    sheet: int
    has_neighbours: bool
    limit: float
    drawn: list[Pegasus]
    selected: list[Pegasus]


def pegasus_gallery(run: Run, sheets: Sheets) -> PegasusGallery | None:
    """Return the gallery of a run and add its sprite to `sheets`; None if the run has no pegasi, or no room is left."""
    gallery = run.gallery
    if gallery is None or not len(gallery.pegasi):
        return None
    rows = [gallery.pegasi] if gallery.neighbours is None else [gallery.pegasi, gallery.neighbours]
    sheet = sheets.add(np.stack(rows), len(rows) * len(gallery.pegasi))
    if sheet is None:
        return None
    pegasi = [
        Pegasus(
            column,
            float(gallery.pegasi_ratios[column]),
            (float(gallery.probabilities[column, 0]), float(gallery.probabilities[column, 1])),
            float(gallery.distances[column]),
            bool(gallery.distances[column] < gallery.neighbour_limit),
        )
        for column in range(len(gallery.pegasi))
    ]
    return PegasusGallery(
        sheet,
        len(rows) == 2,
        gallery.neighbour_limit,
        drawn=[pegasus for pegasus in pegasi if not gallery.selected[pegasus.column]],
        selected=[pegasus for pegasus in pegasi if gallery.selected[pegasus.column]],
    )
