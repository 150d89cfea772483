"""Scorecards: the figures of an evaluated run, their JSON files, and statistics over several runs.

`evaluate` writes them and `report` reads them. MEASURES and MODEL_MEASURES name the figures.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from pegasus_lightning.runs.places import same_origin
from pegasus_lightning.utils.errors import UserError
from pegasus_lightning.utils.files import write_json
from pegasus_lightning.utils.foreign import MEGABYTE, Unreadable, inside, read_json

VERSION = 2
PEGASUS_RATIOS = (0.4, 0.6)  # ratios at which a mix is called a pegasus, as in the source document
FILE, GALLERY = "scorecard.json", "gallery.npz"
PANEL_FOLDER = "panel"  # in a run's folder: what panels say of its pegasi
PEGASI, PIXEL_AVERAGE, CUTMIX = "pegasi", "pixel average", "CutMix"
RECONSTRUCTIONS, PRIOR, TRUE_PEGASI = "reconstructions", "prior samples", "true pegasi"
CONFIDENCE = 0.95  # of all intervals
AGREEMENT = 1e-5  # relative difference of figures that are equal up to the rounding of different machines
MAX_BYTES = 4 * MEGABYTE  # of a scorecard or a panel's record
MAX_ENTRIES, MAX_TEXT = 100, 500  # most rows, figures of a row, classes and alarms; characters of a name
LARGEST = 1e30  # of a figure; the square of a larger one may overflow
VERDICT_SEEDS = 3  # on each side of a difference; fewer show a difference, and no verdict


class Measure(NamedTuple):
    """Description of a figure."""

    title: str  # column header
    better: str  # "higher", "lower", or "" if neither is
    style: str  # format specification
    meaning: str  # one sentence


# Figures of a set of images, which is a row of the scorecard.
MEASURES = {
    "recognised": Measure("both seen", "higher", ".1%", "Share in which the recogniser sees both classes."),
    "recognised_selecting": Measure("by selector", "", ".1%", "The same by the recogniser that selects, or guides."),
    "winged": Measure(
        "winged", "higher", ".1%", "Share in which the winged judge sees limbs of the second class on the first."
    ),
    "panel_winged": Measure(
        "panel: W", "higher", ".0%", "Share that a blind panel calls winged; intervals over pictures."
    ),
    "panel_first": Measure("panel: first", "", ".0%", "Share that it calls the first class, laden or not."),
    "panel_second": Measure("panel: second", "", ".0%", "Share that it calls the second class."),
    "panel_nothing": Measure("panel: nothing", "lower", ".0%", "Share in which it recognises nothing."),
    "panel_realism": Measure("panel: realism", "higher", ".1f", "Realism, 1 (not at all) to 5 (a photograph)."),
    "chimera": Measure("2 min p", "higher", ".3f", "Twice the smaller of both probabilities, 0 to 2, on average."),
    "p_first": Measure("p first", "", ".2f", "Mean probability of the first class."),
    "p_second": Measure("p second", "", ".2f", "Mean probability of the second class."),
    "kid": Measure("KID*", "lower", ".3f", "Kernel distance to real images over the recogniser's features."),
    "density": Measure("density", "higher", ".2f", "How many real images' neighbourhoods an image lies in; 1 is real."),
    "coverage": Measure("coverage", "higher", ".2f", "Share of real images with one of these in their neighbourhood."),
    "precision": Measure("precision", "higher", ".2f", "Share that lies among the real images."),
    "recall": Measure("recall", "higher", ".2f", "Share of the real images that lies among these."),
    "nearest_pixels": Measure("nearest", "", ".3f", "Distance to the nearest training image or its mirror, RMSE."),
    "nearest_features": Measure("nearest*", "", ".3f", "The same in the recogniser's features, RMSE."),
    "memorised": Measure("too near", "lower", ".1%", "Share nearer to training than all but 1 % of test images."),
    "variety": Measure("variety", "higher", ".3f", "Mean distance of two images of the set, RMSE over pixels."),
    "variety_features": Measure("variety*", "higher", ".3f", "The same in the recogniser's features."),
    "parent_distance": Measure("from parent", "", ".3f", "Distance to the nearer parent's photograph, RMSE."),
    "inception_fid": Measure("FID", "lower", ".1f", "Frechet distance over Inception's features, at this many images."),
    "inception_kid": Measure("KID", "lower", ".4f", "Kernel distance over Inception's features."),
    "linearity": Measure("not overlaid", "higher", ".3f", "Distance from the decoded parents' pixel blend, RMSE."),
}
# Figures of the model itself.
MODEL_MEASURES = {
    "psnr": Measure("PSNR", "higher", ".2f", "Peak signal-to-noise ratio of test reconstructions, dB."),
    "ssim": Measure("SSIM", "higher", ".3f", "Structural similarity of test reconstructions."),
    "excess_bce": Measure("excess BCE", "lower", ".1f", "Cross-entropy above its floor, nats an image."),
    "pca_psnr": Measure("PCA PSNR", "", ".2f", "The same of PCA with as many components as latents, dB."),
    "pca_ssim": Measure("PCA SSIM", "", ".3f", "Likewise."),
    "pca_excess_bce": Measure("PCA excess BCE", "", ".1f", "Likewise."),
    "path_length": Measure("path length", "", ".3f", "Of an interpolation: the sum of its steps, RMSE."),
    "largest_step": Measure("largest step", "lower", ".2f", "Of an interpolation: over the mean step; 1 is even."),
    "midpoint": Measure("midpoint", "higher", ".3f", "Distance of the decoded midpoint from the ends' average, RMSE."),
    "relative_midpoint": Measure("relative midpoint", "higher", ".3f", "The same over the distance of the ends."),
    "line_distance": Measure("line distance", "lower", ".5f", "Cosine distance of interpolations to real lines."),
    "line_smoothness": Measure(
        "line smoothness", "lower", ".3f", "Largest turn of an interpolation, less an even one."
    ),
}
# Figures of the pegasi that TensorBoard shows as `evaluation/<name>`.
HPARAMS = ("recognised", "chimera", "kid", "density", "coverage", "memorised", "variety", "linearity")


class Figure(NamedTuple):
    """A value and its 95 % interval; NaN if undefined."""

    value: float
    low: float
    high: float

    @property
    def half(self) -> float:
        """The larger side of the interval, which is not symmetric for a share."""
        return max(self.high - self.value, self.value - self.low)


@dataclass(frozen=True)
class Scorecard:
    """The figures of one run."""

    run: str  # path of the run's folder, as typed
    name: str  # name of the run in captions, with its seed
    group: str  # the name without the seed
    seed: int | None  # of the training; None if unknown
    batches: int  # number of training batches
    classes: list[str]
    key: str  # equal for comparable scorecards: those with the same settings, data and recogniser
    settings: dict[str, Any]  # an `EvaluateConfig` as a plain dict
    parents: dict[str, Any]  # source of the parents
    recognisers: dict[str, Any]  # architecture, file, quality of "reports" and "selects" (None: no selection)
    rows: dict[str, dict[str, Figure]]  # figures by set of images and measure; PEGASI first, then controls
    counts: dict[str, int]  # number of images of each row
    model: dict[str, Figure]  # figures of the model itself, by MODEL_MEASURES
    alarms: list[str] = field(default_factory=list)  # warnings, one sentence each
    variant: str = ""  # hash of the run's configuration without the seed; empty if unknown
    machines: list[dict[str, Any]] = field(default_factory=list)  # that trained it; see `utils.devices.machine`
    judged_on: dict[str, Any] = field(default_factory=dict)  # the machine of the evaluation


def write_scorecard(path: Path, card: Scorecard) -> None:
    """Write a scorecard as JSON, atomically. A value that is not finite becomes null."""
    content = asdict(card) | {
        "version": VERSION,
        "rows": {row: {name: _plain(figure) for name, figure in figures.items()} for row, figures in card.rows.items()},
        "model": {name: _plain(figure) for name, figure in card.model.items()},
    }
    write_json(path, content)


def read_scorecard(path: Path) -> Scorecard:
    """Return the scorecard in a file.

    Figures of version 1 are returned without their intervals, which were too narrow. Raise Unreadable if the file is no
    scorecard, or one of a later version.
    """
    try:
        content = read_json(path, limit=MAX_BYTES)
        version = content.pop("version")
        if version not in (1, VERSION):
            raise UserError(f"{path} was written by another version: evaluate the run again.")
        content["model"] = _figures(content["model"], version)
        content["rows"] = {row: _figures(figures, version) for row, figures in content["rows"].items()}
        card = Scorecard(**content)
        _check(card)
        return card
    except Unreadable as error:
        raise Unreadable(path, f"is not a scorecard (it {error.reason}): evaluate the run again") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Unreadable(path, f"is not a scorecard ({type(error).__name__}): evaluate the run again") from error


def _figures(plain: dict[str, Any], version: int) -> dict[str, Figure]:
    if len(plain) > MAX_ENTRIES:
        raise ValueError(f"{len(plain)} figures")
    found = {name: _figure(figure) for name, figure in plain.items()}
    return found if version > 1 else {name: Figure(f.value, math.nan, math.nan) for name, f in found.items()}


def _check(card: Scorecard) -> None:
    """Raise TypeError or ValueError if a field is of another type than it should be, or absurdly long."""
    for value, kind in (
        *((text, str) for text in (card.run, card.name, card.group, card.key, card.variant)),
        *((mapping, dict) for mapping in (card.settings, card.parents, card.recognisers, card.counts, card.judged_on)),
        *((listed, list) for listed in (card.classes, card.alarms, card.machines)),
        *((text, str) for text in (*card.classes, *card.alarms)),
        *((number, int) for number in (card.seed or 0, card.batches, *card.counts.values())),
    ):
        if not isinstance(value, kind) or isinstance(value, bool):
            raise TypeError(f"{value!r:.50} is not of type {kind.__name__}")
        if isinstance(value, int) and value < 0:
            raise ValueError(f"{value} is negative")
    if max(map(len, (card.rows, card.classes, card.alarms))) > MAX_ENTRIES:
        raise ValueError("too many entries")
    if max(map(len, (card.name, card.group, card.key, card.variant, *card.classes, *card.rows))) > MAX_TEXT:
        raise ValueError("a name is too long")


# The letters of a panel (`panel.letters`) whose shares make each figure.
PANEL_FIGURES = {"panel_winged": "W", "panel_second": "B", "panel_nothing": "N", "panel_realism": "realism"}


def with_panel(card: Scorecard, run: Path, problems: list[Unreadable] | None = None) -> Scorecard:
    """Return a scorecard with what the newest panel in a run's folder says of such pegasi; itself without one.

    A panel counts if it asked the same weights in the same way, with the same parents; after a search also for as many
    pegasi. The newest is the one scored last. A record that cannot be read is passed over, and added to `problems`.
    """
    if PEGASI not in card.rows:
        return card
    for path in newest_first((run / PANEL_FOLDER).glob("*.json")):
        try:
            record = read_json(inside(path, run), limit=MAX_BYTES)
            asked, row = record["settings"], record["rows"][record["pegasi"]]
            figures = {name: _figure(row[letter]) for name, letter in PANEL_FIGURES.items()}
            first = _figure(row["H"]).value + _figure(row["R"]).value
            same = record["batches"] == card.batches and same_origin(record["parents"], card.parents)
            same &= all(card.settings.get(part) == asked[part] for part in [*asked])
        except (Unreadable, KeyError, TypeError, ValueError, AttributeError) as error:
            reason = f"is not what a panel says ({type(error).__name__})"
            if problems is not None:
                problems.append(error if isinstance(error, Unreadable) else Unreadable(path, reason))
            continue
        if same:
            figures["panel_first"] = Figure(first, math.nan, math.nan)
            return replace(card, rows=card.rows | {PEGASI: card.rows[PEGASI] | figures})
    return card


def is_outdated(path: Path) -> bool:
    """Return whether a file is a scorecard of version 1, whose intervals are left out."""
    try:
        return bool(read_json(path, limit=MAX_BYTES)["version"] == 1)
    except (Unreadable, KeyError):
        return False


def _plain(figure: Figure) -> dict[str, float | None]:
    return {key: value if math.isfinite(value) else None for key, value in figure._asdict().items()}


def _figure(plain: dict[str, float | None]) -> Figure:
    """Return a figure of a file. Raise KeyError, TypeError or ValueError if it is none."""
    ends = [math.nan if plain[key] is None else plain[key] for key in Figure._fields]
    for value in ends:
        if not isinstance(value, (int, float)) or isinstance(value, bool) or abs(value) > LARGEST:
            raise ValueError(f"{value!r:.50} is not a figure")
    return Figure(*map(float, ends))  # type: ignore[arg-type]


def newest_first(paths: Iterable[Path]) -> list[Path]:
    """Return at most MAX_ENTRIES existing files, the newest first."""
    found = []
    for path in paths:
        with suppress(OSError):  # a link to nothing
            found.append((path.stat().st_mtime_ns, path))
    return [path for _, path in sorted(found, reverse=True)[:MAX_ENTRIES]]


def scorecards(run: Path) -> list[Path]:
    """Return the scorecards in a run's folder, the newest first."""
    # Folders whose names begin with a dot are left over from interrupted writes.
    return newest_first(path for path in run.glob(f"evaluation/*/{FILE}") if not path.parent.name.startswith("."))


def newest_scorecard(run: Path) -> Path | None:
    """Return the newest scorecard in a run's folder; None if the run was never evaluated."""
    return next(iter(scorecards(run)), None)


class Spread(NamedTuple):
    """A figure over seeds: the mean, and its 95 % interval from `low` to `high`."""

    mean: float
    low: float
    high: float
    spread: float  # standard deviation over seeds; NaN for a single seed
    values: tuple[float, ...]  # one for each seed

    @property
    def half(self) -> float:
        """The larger side of the interval."""
        return max(self.high - self.mean, self.mean - self.low)


def shown_ends(measure: Measure, low: float, high: float) -> tuple[float, float]:
    """Return the ends of an interval; a share's lie in [0, 1], which Student's t over seeds does not know."""
    return (max(0.0, low), min(1.0, high)) if measure.style.endswith("%") else (low, high)


def over_seeds(figures: Sequence[Figure]) -> Spread:
    """Return the mean of one figure over one or more runs that differ only in their seed, with its interval.

    A single run has the interval of its images. Two and more have that of their seeds, by Student's t: what the same
    training with other seeds would give on the same images. Runs that agree up to rounding (such as shares of 0) say
    nothing of other seeds, and have the interval of their images.
    """
    values = tuple(figure.value for figure in figures)
    count, mean = len(values), sum(values) / len(values)
    if count == 1:
        return Spread(mean, figures[0].low, figures[0].high, math.nan, values)
    if math.isnan(mean):
        return Spread(mean, math.nan, math.nan, math.nan, values)
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1))
    if all(math.isclose(value, mean, rel_tol=AGREEMENT) for value in values):
        low, high = (sum(getattr(figure, end) for figure in figures) / count for end in ("low", "high"))
        return Spread(mean, low, high, 0.0, values)
    half = _t_quantile(count - 1) * spread / math.sqrt(count)
    return Spread(mean, mean - half, mean + half, spread, values)


def difference(figure: Spread, baseline: Spread) -> Figure:
    """Return `figure` minus `baseline`, with its interval over the seeds by Welch 1947.

    A side whose seeds agree has the standard error of its images. The interval is NaN with a single seed on one side.
    """
    value = figure.mean - baseline.mean
    variances = []
    for side in (figure, baseline):
        of_images = (side.half / _t_quantile(math.inf)) ** 2
        variances.append(of_images if side.spread == 0 else side.spread**2 / len(side.values))
    variance = sum(variances)
    if not variance > 0 or min(len(figure.values), len(baseline.values)) < 2:
        return Figure(value, math.nan, math.nan)
    own = [math.inf if side.spread == 0 else len(side.values) - 1 for side in (figure, baseline)]
    inverse = sum((part / variance) ** 2 / degrees for part, degrees in zip(variances, own, strict=True))
    degrees = 1 / inverse if inverse else math.inf
    half = _t_quantile(degrees) * math.sqrt(variance)
    return Figure(value, value - half, value + half)


def differs(figure: Spread, baseline: Spread) -> bool:
    """Return whether two figures are called different: VERDICT_SEEDS on both sides, an interval that leaves out 0."""
    apart = difference(figure, baseline)
    seeds = min(len(figure.values), len(baseline.values))
    return seeds >= VERDICT_SEEDS and (apart.low > 0 or apart.high < 0)


def _t_quantile(degrees: float) -> float:
    """Return the half width of an interval of CONFIDENCE in standard errors, for these degrees of freedom."""
    from scipy.special import stdtrit  # slow to import, and every command reads this module

    return float(stdtrit(degrees, (1 + CONFIDENCE) / 2))


def groups(cards: Sequence[Scorecard]) -> dict[str, list[Scorecard]]:
    """Return comparable scorecards of runs that differ only in their seed, by group and in order of the seed.

    Runs of one name that differ in configuration, evaluation or number of batches are separate groups, whose names end
    in the difference, as in `vae (batch 1200)`.
    """
    found: dict[tuple[str, str, str, int], list[Scorecard]] = {}
    for card in cards:
        found.setdefault((card.group, card.variant, card.key, card.batches), []).append(card)
    named = {}
    for group, variant, key, batches in found:
        alike = [other for other in found if other[0] == group]
        marks = ((variant[:8], 1), (key, 2), (f"batch {batches}", 3))
        telling = [mark for mark, place in marks if len({other[place] for other in alike}) > 1]
        members = found[group, variant, key, batches]
        name = f"{group} ({', '.join(telling)})" if telling else group
        while name in named:  # a group that is called so
            name += "'"
        named[name] = sorted(members, key=lambda card: card.seed or 0)
    return named


def format_figure(measure: Measure, value: float) -> str:
    """Return `value` as text: a dash for NaN, and no minus before a zero."""
    if math.isnan(value):
        return "-"
    text = format(value, measure.style)
    return text.removeprefix("-") if not text.strip("-0.%") else text
