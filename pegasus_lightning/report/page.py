"""Rendering of the runs to one self-contained HTML page."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pegasus_lightning.report import plots
from pegasus_lightning.report.comparison import choose_baseline, compare
from pegasus_lightning.report.galleries import PegasusGallery, Sheet, pair_sets, pegasus_gallery
from pegasus_lightning.report.read import PHOTOGRAPHS, Run, config_difference, read_runs
from pegasus_lightning.report.sprites import Grids, encode_grids
from pegasus_lightning.runs.folder import find_runs
from pegasus_lightning.runs.scorecards import VERDICT_SEEDS
from pegasus_lightning.utils.errors import UserError, did_you_mean
from pegasus_lightning.utils.files import write_text

HERE = Path(__file__).parent
# Size limits of a page, and of the text and curves of a run in it. Sprites are not limited; saved grids get the rest.
PAGE_BYTES, TEXT_BYTES = 14_500_000, 80_000
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
    plots: list[Markup]
    grids: Grids
    difference: list[tuple[str, str, str]]
    baseline: Run

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


def render(runs: Sequence[Run], baseline: str | None = None, originals: bool = True) -> str:
    """Return the page as text; equal files give an equal page.

    `baseline` is the group to compare with, by default the adversarial VAE; `originals` shows photographs of the data
    set.
    """
    groups = list(dict.fromkeys(run.group for run in runs))
    if baseline is not None and baseline not in groups:
        hint = did_you_mean(baseline, groups)
        raise UserError(f"There is no variant '{baseline}' among these runs.{hint} There are: {', '.join(groups)}.")
    if not originals:
        runs = [_without_photographs(run) for run in runs]
    comparisons = compare([card for run in runs for _, card in run.cards.values()], baseline)
    sheets: list[Sheet] = []
    pairs, pegasi = pair_sets(runs, sheets), [pegasus_gallery(run, sheets) for run in runs]
    room = PAGE_BYTES - sum(len(sheet.address) for sheet in sheets) - TEXT_BYTES * len(runs)
    shares = max(room, PAGE_BYTES // 4) // max(1, sum(1 for run in runs if run.grids))
    sections = _sections(runs, choose_baseline(groups, baseline), pegasi, shares)
    classes = list(dict.fromkeys(" + ".join(run.classes) for run in runs if run.classes))
    style, script = (HERE / "style.css").read_text("utf-8"), (HERE / "script.js").read_text("utf-8")
    return (
        _environment()
        .get_template("page.html.jinja")
        .render(
            runs=runs,
            groups=groups,
            classes=classes,
            dates=sorted(run.said("updated")[:10] for run in runs if run.said("updated")),
            comparisons=comparisons,
            figures=[Markup(plots.realism_plot(one.points, f"realism-{i}")) for i, one in enumerate(comparisons)],
            checks=list(dict.fromkeys(verdict.name for section in sections for verdict in section.health)),
            sections=sections,
            pair_sets=pairs,
            unfinished=[run for run in runs if not run.complete],
            originals=originals,
            verdict_seeds=VERDICT_SEEDS,
            sheets=sheets,
            style=Markup(style),
            script=Markup(script),
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        )
    )


def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,  # names, reasons and log lines are text, never markup
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _without_photographs(run: Run) -> Run:
    grids = {kind: files for kind, files in run.grids.items() if kind not in PHOTOGRAPHS}
    return replace(run, grids=grids, gallery=run.gallery and run.gallery.without_photographs())


def _sections(runs: Sequence[Run], baseline: str, pegasi: Sequence[PegasusGallery | None], share: int) -> list[Section]:
    colours = plots.colours_of_tags(runs)
    standing = [run for run in runs if run.group == baseline]
    sections = []
    for i, run in enumerate(runs):
        against = next((other for other in standing if other.seed == run.seed), standing[0])
        sections.append(
            Section(
                run,
                health=verdicts(run),
                pegasi=pegasi[i],
                plots=[
                    Markup(plot)
                    for plot in plots.curves_plots(run.curves, colours, f"curves-{i}", run.name, run.weights)
                ],
                grids=encode_grids(run.grids, share),
                difference=config_difference(run, against),
                baseline=against,
            )
        )
    return sections


def verdicts(run: Run) -> list[Verdict]:
    """Return the health verdicts in the run's `status.json`, if any."""
    recorded = run.status.get("health")
    found = []
    for entry in recorded if isinstance(recorded, list) else []:
        if isinstance(entry, dict) and "name" in entry:
            word = str(entry.get("verdict", "unknown"))
            look = "good" if word.lower() in GOOD else "bad" if word.lower() in BAD else "doubtful"
            found.append(Verdict(str(entry["name"]), word, str(entry.get("sentence") or ""), look))
    return found
