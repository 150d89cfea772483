"""Rendering of the runs to one self-contained HTML page."""

from __future__ import annotations

import base64
import hashlib
import math
import os
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pegasus_lightning.report import lead, plots
from pegasus_lightning.report.cells import trained_gallery
from pegasus_lightning.report.comparison import MAX_COMPARISONS, Comparison, choose_baseline, compare
from pegasus_lightning.report.galleries import (
    PairSet,
    PegasusGallery,
    by_turns,
    pair_sets,
    pegasus_gallery,
    pictures_of,
)
from pegasus_lightning.report.read import PHOTOGRAPHS, Run, config_difference, printable, read_runs
from pegasus_lightning.report.realism import realism_plot
from pegasus_lightning.report.sprites import MARKUP, Grids, Sheet, Sheets, encode_grids
from pegasus_lightning.runs.folder import find_runs
from pegasus_lightning.runs.scorecards import MEASURES, VERDICT_SEEDS
from pegasus_lightning.utils.errors import UserError, did_you_mean, listing
from pegasus_lightning.utils.files import PATH_MISTAKES, write_text

HERE = Path(__file__).parent
PAGE_BYTES = 14_500_000  # most bytes of a page, whatever the number of runs
# Most of what the tables and texts take of it, then shares of the rest: of interpolations, of pegasi. Saved grids get
# what is left.
TEXT_SHARE, PAIRS_SHARE, PEGASI_SHARE = 0.6, 0.45, 0.2
LARGEST_SHARE = 1 / 12  # most of the page for a single sprite
MAX_CHECKS, MAX_CLASSES = 24, 4  # most health checks and pairs of classes that a page names
MAX_VERDICTS, MAX_SETTINGS = 50, 60  # most verdicts and settings of a run
GOOD, BAD = ("ok", "good", "healthy", "fine", "pass", "passed"), ("bad", "fail", "failed", "unhealthy", "alarm")


@dataclass(frozen=True)
class Verdict:
    """Outcome of a health check; `look` is good, bad or doubtful."""

    name: str
    verdict: str
    sentence: str
    look: str


@dataclass(frozen=True)
class Section:
    """Section of the page about one run."""

    run: Run
    health: list[Verdict]
    pegasi: PegasusGallery | None
    grids: Grids
    difference: list[tuple[str, str, str]]
    baseline: Run
    notes: list[str]  # sentences on what was left out

    @property
    def recorded(self) -> dict[str, Verdict]:
        """Verdicts by the name of the check."""
        return {verdict.name: verdict for verdict in self.health}


def write_report(
    places: Sequence[str], out: str | None = None, baseline: str | None = None, originals: bool = True
) -> tuple[Path, list[Run]]:
    """Find the runs in `places`, write their page, and return its path and the runs.

    Raise UserError if there is no run in a place, the baseline is unknown, or the path cannot be written.
    """
    folders = find_runs(places, "status.json")
    path = _out(folders, out)
    runs = read_runs(folders)
    page = render(runs, baseline, originals)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, page)
    except OSError as error:
        if error.errno not in PATH_MISTAKES:
            raise
        reason = error.strerror or type(error).__name__
        raise UserError(f"{path} cannot be written: {reason}. Name another file with --out.") from error
    return path, runs


def _out(folders: Sequence[Path], out: str | None) -> Path:
    if out is None:
        common = Path(os.path.commonpath([folder.absolute() for folder in folders]))
        if common == Path(common.anchor):
            raise UserError("These runs have no common folder. Name the file of the page, such as --out report.html.")
        near = common.is_relative_to(Path.cwd())
        return (common.relative_to(Path.cwd()) if near else common) / "report.html"
    path = Path(out).expanduser()
    if path.is_dir():
        raise UserError(f"--out {out} is a folder. Name a file in it, such as --out {path / 'report.html'}.")
    if path.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--out {out} must end in .html. Did you mean --out {path}.html?")
    return path


@dataclass
class Parts:
    """What stands on a page."""

    runs: list[Run]
    comparisons: list[Comparison]
    figures: list[Markup]  # of each comparison
    overlays: list[Markup]  # curves of all runs
    models: list[lead.Model]  # the best first
    sections: list[Section]
    originals: bool
    notes: list[str]  # sentences on what was left out
    shared: list[str] = field(default_factory=list)  # settings that are left out of all names
    several: tuple[bool, bool] = (False, False)  # whether the page is about several runs; about several groups
    sheets: list[Sheet] = field(default_factory=list)
    pair_sets: list[PairSet] = field(default_factory=list)


def render(runs: Sequence[Run], baseline: str | None = None, originals: bool = True) -> str:
    """Return the page as text, of at most PAGE_BYTES bytes; equal files give an equal page.

    `baseline` is the group to compare with, by default the adversarial VAE; `originals` shows photographs of the data
    set. What has no room is left out, and the page says so.
    """
    groups = list(dict.fromkeys(run.group for run in runs))
    if baseline is not None and baseline not in groups:
        hint = did_you_mean(baseline, groups)
        raise UserError(f"There is no variant '{baseline}' among these runs.{hint} There are: {listing(groups)}.")
    runs, renamed, shared = lead.shorter(runs)
    groups, baseline = list(renamed.values()), baseline and renamed[baseline]
    runs = [run if run.gallery else replace(run, drawn=trained_gallery(run)) for run in runs]
    if not originals:
        runs = [_without_photographs(run) for run in runs]
    overlays = [Markup(plot) for plot in plots.overlays(runs, groups[: plots.MAX_OVERLAID])]
    shown = list(runs)
    while True:
        parts = _texts(shown, len(runs), baseline, originals, overlays)
        parts.shared, parts.several = shared, (len(runs) > 1, len(groups) > 1)
        size = _size(parts)
        if size <= TEXT_SHARE * PAGE_BYTES or len(shown) == 1:
            break
        shown = _some(runs, int(len(shown) * 0.9 * TEXT_SHARE * PAGE_BYTES / size), baseline)
    _add_sprites(parts, max(0, PAGE_BYTES - size))
    room = PAGE_BYTES - _size(parts)
    left = sum(1 for run in shown if run.grids)
    for i, section in enumerate(parts.sections):
        if section.run.grids:
            grids = encode_grids(section.run.grids, max(0, room) // left, section.run.folder)
            room -= sum(len(grid.address) + MARKUP for grid in grids.pictures.values())
            left -= 1
            parts.sections[i] = replace(section, grids=grids)
    return _fill(parts)


def _some(runs: Sequence[Run], count: int, baseline: str | None) -> list[Run]:
    """Return `count` runs in their order, at least one: of every group as many as of the others, if it has them."""
    standing = choose_baseline(list(dict.fromkeys(run.group for run in runs)), baseline)
    order = by_turns(sorted(runs, key=lambda run: run.group != standing))
    kept = {id(run) for run in order[: max(1, count)]}
    return [run for run in runs if id(run) in kept]


def _texts(runs: list[Run], of: int, baseline: str | None, originals: bool, overlays: list[Markup]) -> Parts:
    """Return the tables and texts of a page about these of `of` runs."""
    notes = []
    if len(runs) < of:
        notes.append(f"{len(runs)} of {of} runs are shown, so that the page stays small.")
    cards = [card for run in runs for _, card in run.cards.values()]
    ways = len({card.key for card in cards})
    if ways > MAX_COMPARISONS:
        notes.append(f"{MAX_COMPARISONS} of {ways} ways of evaluation are shown, so that the page stays small.")
    groups = list(dict.fromkeys(run.group for run in runs))
    sections = _sections(runs, choose_baseline(groups, baseline))
    compared = compare(cards, baseline)
    figures = [Markup(realism_plot(one.points, f"realism-{i}", groups)) for i, one in enumerate(compared)]
    return Parts(runs, compared, figures, overlays, lead.models(runs, compared), sections, originals, notes)


def _add_sprites(parts: Parts, room: float) -> None:
    """Add the sprites of a page, in `room` bytes."""
    sheets = Sheets(PAIRS_SHARE * room, LARGEST_SHARE * PAGE_BYTES)
    leaders = [model.shown.folder for model in parts.models[: lead.MAX_LEAD]]
    parts.pair_sets = pair_sets(parts.runs, sheets, leaders)
    sheets.room += PEGASI_SHARE * room
    pegasi = {run.folder: pegasus_gallery(run, sheets) for run in by_turns(parts.runs)}
    parts.sheets = sheets.all
    shown = sum(len(pairs.models) for pairs in parts.pair_sets)
    whole = sum(1 for run in parts.runs if pictures_of(run) is not None)
    if shown < whole:
        parts.notes.append(f"The same pairs are shown for {shown} of {whole} runs, so that the page stays small.")
    for i, section in enumerate(parts.sections):
        run, notes = section.run, list(section.notes)
        if pegasi[run.folder] is None and run.gallery is not None and len(run.gallery.pegasi):
            notes.append("The pegasi are left out, so that the page stays small.")
        parts.sections[i] = replace(section, pegasi=pegasi[run.folder], notes=notes)


def _size(parts: Parts) -> int:
    return len(_fill(parts).encode())


def _fill(parts: Parts) -> str:
    runs, groups = parts.runs, list(dict.fromkeys(run.group for run in parts.runs))
    classes = list(dict.fromkeys(" + ".join(run.classes) for run in runs if run.classes))
    checks = Counter(name for section in parts.sections for name in section.recorded)
    frequent = {name for name, _ in checks.most_common(MAX_CHECKS)}
    style, script = (HERE / "style.css").read_text("utf-8"), (HERE / "script.js").read_text("utf-8")
    return (
        _environment()
        .get_template("page.html.jinja")
        .render(
            runs=runs,
            groups=groups,
            models=parts.models,
            headline=lead.headline(runs, parts.comparisons, parts.models),
            average=lead.control_sentence(parts.comparisons),
            shared=parts.shared,
            several=parts.several[0],
            several_groups=parts.several[1],
            most_leading=lead.MAX_LEAD,
            measures=MEASURES,
            overlays=parts.overlays,
            legend={name: (colour, dashes) for name, colour, dashes in plots.legend(groups[: plots.MAX_OVERLAID])},
            evaluate=_evaluate([run.folder for run in runs if run.card is None and run.has_checkpoint]),
            ordered=sorted(enumerate(parts.sections), key=lambda pair: _order(pair[1].run)),
            classes=classes[:MAX_CLASSES],
            dates=sorted(run.date for run in runs if run.date),
            comparisons=parts.comparisons,
            figures=parts.figures,
            checks=[name for name in checks if name in frequent],
            sections=parts.sections,
            pair_sets=parts.pair_sets,
            unfinished=[run for run in runs if not run.complete],
            originals=parts.originals,
            notes=parts.notes,
            verdict_seeds=VERDICT_SEEDS,
            sheets=parts.sheets,
            style=Markup(style),
            script=Markup(script),
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        )
    )


def _evaluate(waiting: Sequence[Path]) -> str:
    """Return the command that evaluates these runs; empty without any."""
    try:
        place = os.path.commonpath(waiting) or "."
    except ValueError:  # none, or both absolute and relative paths
        return ""
    return f"python -m pegasus_lightning.evaluate {shlex.quote(f'run={place}')}"


def _order(run: Run) -> float:
    psnr = run.last(lead.PSNR)
    return math.inf if math.isnan(psnr) else -psnr


def _shown(value: Any) -> Any:
    """Return a value of the template as it is written: texts of a run are cut and made printable."""
    return value if isinstance(value, Markup) else printable(str(value))


def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,  # names, reasons and log lines are text, never markup
        finalize=_shown,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _without_photographs(run: Run) -> Run:
    grids = {kind: files for kind, files in run.grids.items() if kind not in PHOTOGRAPHS}
    gallery, drawn = (found and found.without_photographs() for found in (run.gallery, run.drawn))
    return replace(run, grids=grids, gallery=gallery, drawn=drawn)


def _sections(runs: Sequence[Run], baseline: str) -> list[Section]:
    """Return the texts of the sections; the other parts are empty."""
    standing = [run for run in runs if run.group == baseline]
    sections = []
    for run in runs:
        against = next((other for other in standing if other.seed == run.seed), standing[0])
        difference = config_difference(run, against)
        notes = [f"{len(difference) - MAX_SETTINGS} more settings differ."] if difference[MAX_SETTINGS:] else []
        nothing = Grids([], [], {}, [])
        sections.append(Section(run, verdicts(run), None, nothing, difference[:MAX_SETTINGS], against, notes))
    return sections


def verdicts(run: Run) -> list[Verdict]:
    """Return the health verdicts in the run's `status.json`, if any."""
    recorded = run.status.get("health")
    found = []
    for entry in recorded[:MAX_VERDICTS] if isinstance(recorded, list) else []:
        if isinstance(entry, dict) and "name" in entry:
            word = printable(str(entry.get("verdict", "unknown")), 60)
            look = "good" if word.lower() in GOOD else "bad" if word.lower() in BAD else "doubtful"
            name, sentence = printable(str(entry["name"]), 60), printable(str(entry.get("sentence") or ""), 500)
            found.append(Verdict(name, word, sentence, look))
    return found
