"""The work of `panel score`: what the raters of a panel say, with intervals and their agreement."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from pegasus_lightning.panel.letters import COLUMNS, LETTERS, MAX_ALL, REALISM, WINGED
from pegasus_lightning.panel.pictures import PICTURES, read_pictures
from pegasus_lightning.panel.settings import PanelScoreConfig
from pegasus_lightning.runs.places import digest, path_told
from pegasus_lightning.runs.scorecards import CONFIDENCE, PANEL_FOLDER, Figure
from pegasus_lightning.utils.compose import typed
from pegasus_lightning.utils.errors import UserError, listing
from pegasus_lightning.utils.files import write_json, write_text
from pegasus_lightning.utils.foreign import read_json, read_text
from pegasus_lightning.utils.image_grid import image_grid, save_png
from pegasus_lightning.utils.randomness import Stream, derived_seed

RESAMPLES = 4000
SHOWN = 16  # pictures in a row of the picture that sorts them by votes


@dataclass(frozen=True)
class Answers:
    """What all raters say of the pictures that one of them rated."""

    raters: list[str]
    letters: np.ndarray  # int (R, N): indices into LETTERS, -1 for none
    realism: np.ndarray  # float (R, N), NaN for none


def score(config: DictConfig) -> dict[str, Any]:
    """Score a panel for a validated `PanelScoreConfig`. Return what `score.json` holds.

    Raise UserError, before anything is written, if the key or a file of ratings cannot be used.
    """
    settings = typed(config, PanelScoreConfig)
    place = Path(str(settings.key)).expanduser()
    key = _read_key(place)
    files = [Path(name).expanduser() for name in settings.ratings]
    answers = _join([_read_ratings(file, key) for file in files], files, len(key["pictures"]))
    sources = np.array([picture["source"] for picture in key["pictures"]])
    images = _images_of(place, len(sources))
    rows = {name: _row(answers, sources == name, settings.seed) for name in key["sources"]}
    rows = {name: row for name, row in rows.items() if row}
    result = {
        "panel": key["panel"],
        "classes": key["classes"],
        "raters": answers.raters,
        "agreement": agreement(answers.letters),
        "rows": rows,
        "pictures": [
            picture | {"letters": "".join(LETTERS[i] if i >= 0 else "-" for i in answers.letters[:, n])}
            for n, picture in enumerate(key["pictures"])
        ],
    }
    text = table(result)
    print(text)
    write_json(place.with_name("score.json"), result)
    write_text(place.with_name("score.txt"), text + "\n")
    if images is not None:
        save_png(votes_grid(answers, images), place.with_name("votes.png"))
    for name, about in key["sources"].items():
        if name in rows and (run := _run_of(about.get("run"), place.parent)) is not None:
            record = about | {
                "run": path_told(run),
                "panel": key["panel"],
                "raters": len(answers.raters),
                "rows": rows,
                "pegasi": name,
            }
            folder = run / PANEL_FOLDER
            folder.mkdir(exist_ok=True)
            write_json(folder / f"{key['panel']}-{digest(name)}.json", record)
    print(f"  {place.with_name('score.json')}", flush=True)
    return result


def _run_of(named: object, above: Path) -> Path | None:
    """Return the run that a key in the folder `above` names; None if it is no run: nothing is written elsewhere.

    A relative path is looked for from the working folder, from the key's and from those above it.
    """
    if not isinstance(named, str) or "\0" in named:
        return None
    place = above.resolve()
    runs = [start / os.path.expanduser(named) for start in (Path.cwd(), place, *place.parents)]
    return next((run for run in runs if (run / "checkpoints").is_dir()), None)


def _read_key(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise UserError(f"There is no key {path}: `panel make` wrote it beside raters/, as key.json.")
    key: dict[str, Any] = read_json(path)
    try:
        pictures, sources, classes = key["pictures"], key["sources"], key["classes"]
        named = [*classes, *sources]
        # The panel's number becomes part of a file's name, and names are printed.
        right = re.fullmatch("[0-9a-f]{1,64}", key["panel"]) and all(each.isprintable() for each in named)
        right = right and len(classes) == 2 and all(isinstance(about, dict) for about in sources.values())
        right = right and 0 < len(pictures) <= MAX_ALL and {picture["source"] for picture in pictures} <= sources.keys()
        if not right or [picture["number"] for picture in pictures] != list(range(1, len(pictures) + 1)):
            raise ValueError("incomplete")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not the key of a panel ({type(error).__name__}).") from error
    return key


def _read_ratings(path: Path, key: dict[str, Any]) -> dict[int, tuple[int, float]]:
    """Return letter and realism by number. Raise UserError for a file that is not one of this panel's."""
    text = read_text(path).removeprefix("\ufeff")
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""))
        rows, columns = list(reader), reader.fieldnames or ()
    except csv.Error as error:
        raise UserError(f"{path} cannot be read as a table ({error}).") from error
    if missing := [name for name in COLUMNS if name not in columns]:
        raise UserError(f"{path} has no column {listing(missing)}: its first line must be {','.join(COLUMNS)}.")
    found: dict[int, tuple[int, float]] = {}
    for line, row in enumerate(rows, 2):
        where = f"{path}, line {line}"
        values = {name: (row[name] or "").strip() for name in COLUMNS}
        if values["panel"] != key["panel"]:
            raise UserError(f"{where} is of panel {values['panel'] or '(none)'}, and the key of {key['panel']}.")
        if not re.fullmatch("[0-9]{1,9}", values["number"]) or not 1 <= int(values["number"]) <= len(key["pictures"]):
            raise UserError(
                f"{where}: the panel has no picture '{values['number']}', only 1 to {len(key['pictures'])}."
            )
        number = int(values["number"])
        if not values["letter"] and not values["realism"]:
            continue  # not rated
        if number in found:
            raise UserError(f"{where}: picture {number} is rated twice. Keep one of the lines.")
        if values["letter"].upper() not in LETTERS:
            raise UserError(f"{where}: there is no letter '{values['letter']}'. Letters: {', '.join(LETTERS)}.")
        if values["realism"] and values["realism"] not in map(str, REALISM):
            raise UserError(f"{where}: realism is a number from 1 to 5, not '{values['realism']}'.")
        realism = float(values["realism"]) if values["realism"] else np.nan
        found[number] = LETTERS.index(values["letter"].upper()), realism
    if not found:
        raise UserError(f"{path} rates no picture: fill in letter and realism.")
    return found


def _join(ratings: Sequence[dict[int, tuple[int, float]]], files: Sequence[Path], count: int) -> Answers:
    letters = np.full((len(ratings), count), -1)
    realism = np.full((len(ratings), count), np.nan)
    for rater, found in enumerate(ratings):
        for number, (letter, real) in found.items():
            letters[rater, number - 1], realism[rater, number - 1] = letter, real
    names = [file.stem for file in files]
    names = [str(file) if names.count(file.stem) > 1 else file.stem for file in files]
    return Answers(names, letters, realism)


def _row(answers: Answers, own: np.ndarray, seed: int) -> dict[str, Any]:
    """Return the figures of one source: the share of each letter and realism, means over pictures of the raters' mean.

    Empty if nobody rated a picture of it.
    """
    letters, realism = answers.letters[:, own], answers.realism[:, own]
    rated = (letters >= 0).sum(0)
    if not rated.any():
        return {}
    kept = rated > 0
    row: dict[str, Any] = {"pictures": int(kept.sum()), "ratings": int(rated.sum())}
    for index, letter in enumerate(LETTERS):
        votes = (letters == index).sum(0)[kept] / rated[kept]
        row[letter] = share_interval(votes, seed)._asdict()
    each = [np.nanmean(column) for column in realism.T if not np.isnan(column).all()]
    row["realism"] = (mean_interval(np.array(each), seed) if each else Figure(np.nan, np.nan, np.nan))._asdict()
    return row


def share_interval(votes: np.ndarray, seed: int = 0) -> Figure:
    """Return the mean of the pictures' votes (N,), each a share of the raters, and its 95 % interval.

    A percentile bootstrap over the pictures, to which one with no vote and one with all votes are added, so that a
    share of 0 has an interval too. (Agresti & Coull 1998 add two of each to a binomial share.) The raters are taken as
    they are: other raters differ by more.
    """
    low, high = _bootstrap(np.concatenate([votes, [0.0, 1.0]]), seed)
    mean = float(votes.mean())
    return Figure(mean, min(low, mean), max(high, mean))


def mean_interval(values: np.ndarray, seed: int = 0) -> Figure:
    """Return the mean of the pictures' values (N,) and its 95 % interval, a percentile bootstrap over the pictures."""
    low, high = _bootstrap(values, seed)
    return Figure(float(values.mean()), low, high)


def _bootstrap(values: np.ndarray, seed: int) -> tuple[float, float]:
    draws = np.random.default_rng(derived_seed(seed, Stream.BOOTSTRAP))
    means = values[draws.integers(0, len(values), (RESAMPLES, len(values)))].mean(1)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def agreement(letters: np.ndarray) -> dict[str, Any]:
    """Return how far raters agree on the pictures that all of them rated, letters (R, N), -1 for none.

    Cohen's kappa (1960) of two raters, Fleiss' kappa (1971) of more; 1 is full agreement, 0 that of chance. `winged`
    is the kappa of "winged or not". None for a single rater, or where it is undefined: all say the same of all.
    """
    common = letters[:, (letters >= 0).all(0)]
    result: dict[str, Any] = {"raters": len(letters), "pictures": common.shape[1], "kappa": None, "winged": None}
    if len(letters) < 2 or common.shape[1] == 0:
        return result
    winged = (common == LETTERS.index(WINGED)).astype(int)
    return result | {"kappa": _kappa(common, len(LETTERS)), "winged": _kappa(winged, 2)}


def _kappa(answers: np.ndarray, kinds: int) -> float | None:
    from torchmetrics.functional.classification import multiclass_cohen_kappa  # slow to import
    from torchmetrics.functional.nominal import fleiss_kappa

    if (answers == answers[0, 0]).all():
        return None
    given = torch.from_numpy(answers)
    if len(given) == 2:
        return float(multiclass_cohen_kappa(given[0], given[1], num_classes=kinds))
    counts: Tensor = torch.nn.functional.one_hot(given, kinds).sum(0)
    return float(fleiss_kappa(counts, mode="counts"))


def table(result: dict[str, Any]) -> str:
    """Return a score as text: a row a source, with the shares of all letters and realism."""
    head = ["", "pictures", *LETTERS, "realism"]
    rows = [head]
    for name, row in result["rows"].items():
        cells = [_cell(row[letter], ".0%") for letter in LETTERS]
        rows.append([name, str(row["pictures"]), *cells, _cell(row["realism"], ".1f")])
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    found = result["agreement"]
    kappas = [
        f"{name} {found[key]:.2f}"
        for key, name in (("kappa", "all letters"), ("winged", "W or not"))
        if found[key] is not None
    ]
    which = "Cohen's" if found["raters"] == 2 else "Fleiss'"
    agreed = f"{which} kappa over {found['pictures']} pictures: {', '.join(kappas)}." if kappas else "No kappa."
    return "\n".join([*lines, "", f"{found['raters']} raters; 95 % intervals over the pictures, in brackets. {agreed}"])


def _cell(figure: dict[str, float], style: str) -> str:
    if np.isnan(figure["value"]):
        return "-"
    low, high = (format(figure[end], style).removesuffix("%") for end in ("low", "high"))
    return f"{format(figure['value'], style)} ({low}-{high})"


def _images_of(key: Path, count: int) -> Tensor | None:
    """Return the pictures beside the key; None if they are not there."""
    place = key.with_name(PICTURES)
    if not place.is_file():
        return None
    images = read_pictures(place)
    if len(images) != count:
        raise UserError(f"{place} is of another panel than {key}.")
    return images


def votes_grid(answers: Answers, images: Tensor) -> np.ndarray:
    """Return the rated pictures by the number of raters who call them winged, the most realistic first."""
    rated = (answers.letters >= 0).any(0)
    votes = (answers.letters == LETTERS.index(WINGED)).sum(0)
    given = ~np.isnan(answers.realism)
    realism = np.nan_to_num(answers.realism).sum(0) / np.maximum(given.sum(0), 1)
    rows, captions = [], []
    for count in sorted(set(votes[rated].tolist()), reverse=True):
        own = np.flatnonzero(rated & (votes == count))
        order = own[np.argsort(-realism[own], kind="stable")][:SHOWN]
        row = torch.full((SHOWN, *images.shape[1:]), 250, dtype=torch.uint8)
        row[: len(order)] = images[order.copy()]
        rows.append(row)
        captions.append(f"W by {count} of {len(answers.raters)}: {len(own)} pictures")
    return image_grid(torch.stack(rows), row_captions=captions, footer="Of each number the most realistic ones.")
