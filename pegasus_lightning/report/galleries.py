"""Galleries of the page: interpolations of the same pairs by every model, and the pegasi of each run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pegasus_lightning.report.read import Run
from pegasus_lightning.report.sprites import Sheets
from pegasus_lightning.runs.gallery import Gallery
from pegasus_lightning.runs.scorecards import PEGASUS_RATIOS

LEAD = 8  # most pegasi of a strip at the start of the page


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
    trained: bool  # whether training saved the pictures, for no evaluation did
    lead: dict[str, Strip]  # by group, of its run that leads: mixes of the first pairs, `leading` of them
    leading: int

    @property
    def control(self) -> Strip | None:
        """The pixel averages of the parents, as long as in `lead`; None if photographs are left out."""
        return next((strip for strip in self.below if strip.name.startswith("pixel average")), None)


def pictures_of(run: Run) -> Gallery | None:
    """Return the pictures of the evaluation of a run, or else of its training."""
    return run.drawn if run.gallery is None else run.gallery


def by_turns(runs: Sequence[Run]) -> list[Run]:
    """Return the runs with the first ones of all groups before the second ones, and so on."""
    seen: Counter[str] = Counter()
    turns = []
    for run in runs:
        turns.append(seen[run.group])
        seen[run.group] += 1
    return [runs[i] for i in sorted(range(len(runs)), key=lambda i: (turns[i], i))]


def pair_sets(runs: Sequence[Run], sheets: Sheets, leaders: Collection[Path] = ()) -> list[PairSet]:
    """Return one set per group of runs with equal pairs and evaluation settings; add their sprites to `sheets`.

    `leaders` are the folders of the runs whose pegasi the page begins with.
    """
    found: dict[tuple[object, ...], list[Run]] = {}
    for run in runs:
        if (gallery := pictures_of(run)) is not None:
            asked = run.card.key if run.card is not None and run.gallery is not None else gallery.pegasi.shape
            key = (asked, gallery.pair_indices.tobytes(), gallery.ratios.tobytes(), gallery.frames.shape)
            found.setdefault(key, []).append(run)
    sets = [_pair_set(members, sheets, leaders) for members in sorted(found.values(), key=len, reverse=True)]
    return [one for one in sets if one.models]


def _pair_set(runs: Sequence[Run], sheets: Sheets, leaders: Collection[Path]) -> PairSet:
    # The parents are the same for all runs: take them from any gallery that has them.
    galleries = [gallery for run in runs if (gallery := pictures_of(run)) is not None]
    trained = runs[0].gallery is None
    first, second = runs[0].classes if len(runs[0].classes) == 2 else ("first", "second")
    named = (
        ("first", f"{first}, original"),
        ("second", f"{second}, original"),
        ("blend", "pixel average (no model)"),
        ("cutmix", "CutMix (no model)"),
    )
    kept = [(field, name, next((g for g in galleries if getattr(g, field) is not None), None)) for field, name in named]
    shown = [(field, name, getattr(gallery, field)) for field, name, gallery in kept if gallery is not None]
    pairs, ratios = len(galleries[0].frames), galleries[0].ratios.astype(float)
    start = int(np.abs(ratios - 0.5).argmin())
    leading = min(LEAD, len(galleries[0].pegasi) if trained else pairs)
    strips: dict[str, Strip] = {}
    if shown:
        sheet = sheets.add(np.stack([images for _, _, images in shown]), len(shown) * pairs + leading)
        if sheet is not None:
            strips = {field: Strip(name, sheet, row) for row, (field, name, _) in enumerate(shown)}
    places: dict[int, Strip] = {}
    lead: dict[str, Strip] = {}
    for run in by_turns(runs):
        gallery, leads = pictures_of(run), run.folder in leaders
        assert gallery is not None
        sheet = sheets.add(gallery.frames.swapaxes(0, 1), pairs + leads * leading)
        if sheet is None:
            continue
        places[id(run)] = Strip(run.name, sheet, None)
        row = start
        if leads and trained:
            sheet, row = sheets.add(gallery.pegasi[None, :leading], leading), 0
        if leads and sheet is not None:
            lead[run.group] = Strip(run.group, sheet, row)
    models = [places[id(run)] for run in runs if id(run) in places]
    low, high = np.interp(PEGASUS_RATIOS, ratios, np.linspace(0, 1, len(ratios)))
    return PairSet(
        [first, second],
        ratios.tolist(),
        start=start,
        band=(float(low), float(high)),
        pairs=pairs,
        above=[strips[field] for field in ("first", "second") if field in strips],
        models=models,
        below=[strips[field] for field in ("blend", "cutmix") if field in strips],
        trained=trained,
        lead=lead,
        leading=leading,
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
