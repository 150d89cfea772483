"""Plots as inline SVG with the colours of the page, for its light and dark themes."""

from __future__ import annotations

import html
import io
import math
import re
import warnings
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from pegasus_lightning.report.read import LONGEST, Curve, Run, printable, shorten

# Placeholder colours, replaced by the colours of the page.
INK, FAINT = "#010203", "#010204"
SERIES = tuple(f"#0a0b{number:02x}" for number in range(1, 9))
VARIABLES = {INK: "currentColor", FAINT: "var(--rule)"}
VARIABLES |= {colour: f"var(--series-{number})" for number, colour in enumerate(SERIES, start=1)}
DASHES: tuple[tuple[int, ...], ...] = ((), (4, 2), (1, 1), (6, 2, 1, 2))
# Plots of all runs: the title, and the tags of the curve, or of a difference; of several ways the first that is there.
OVERLAYS = (
    ("PSNR of validation images, dB", ("validation/psnr",)),
    ("KL, nats an image", ("validation/kl",), ("loss/kl",)),
    (
        "Critic: P(real), images less reconstructions",
        ("validation/critic_real", "validation/critic_fake"),
        ("critic/real", "critic/fake"),
    ),
)
MAX_OVERLAID = len(SERIES) * len(DASHES)  # groups that can be told apart
MAX_PLOTS = 24
MAX_NAMED = 60  # lines that the description of such a plot names
OVERLAY_POINTS = 4000  # of one such plot
WIDE_RANGE = 100  # ratio of largest to smallest positive value above which the axis is logarithmic
STYLE: Any = {
    "svg.hashsalt": "pegasus",
    "svg.fonttype": "none",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.unicode_minus": True,
    "axes.grid": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "savefig.transparent": True,
}


def to_svg(figure: Figure, prefix: str, label: str) -> str:
    """Return the figure as an <svg> element without URLs, with ids under `prefix` and `label` as aria-label."""
    with io.StringIO() as buffer, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of characters that the font lacks: the browser has others
        figure.savefig(buffer, format="svg")
        text = buffer.getvalue()
    text = text[text.index("<svg") :].strip()
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)  # time of drawing and URLs
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href")
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
    text = re.sub(r' id="([^"]*)"', lambda match: f' id="{prefix}-{match[1]}"' if match[1] in used else "", text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}-", text)
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)  # it would apply to the whole page
    text = re.sub(r" font-family: [^;\"]*;?", "", text)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, variable)
    text = re.sub(r' (width|height)="[\d.]+pt"', "", text, count=2)  # fill the available width
    return text.replace("<svg", f'<svg role="img" aria-label="{html.escape(printable(label))}"', 1)


def words(text: str) -> str:
    """Return a name for a plot: one short line. It is never read as a formula (`parse_math=False`)."""
    return printable(" ".join(text.split()), 60)


def overlays(runs: Sequence[Run], names: Sequence[str]) -> list[str]:
    """Return the curves of all runs as SVG: those of OVERLAYS, then losses and outputs of the critic, one line a run.

    Colours and dashes are those of the groups, by their place in `names`, see `legend`. At most MAX_PLOTS are drawn.
    """
    tags = sorted({tag for run in runs for tag in run.curves if tag.startswith(("loss/", "critic/"))})
    panels: list[tuple[Any, ...]] = [*OVERLAYS, *((_title(tag, runs), (tag,)) for tag in tags)]
    plots: list[str] = []
    drawn: set[str] = set()
    for title, *ways in panels:
        way = next((way for way in ways if way[0] not in drawn and _lines(runs, names, way)), None)
        if way is None or len(plots) == MAX_PLOTS:
            continue
        drawn |= {way[0]} if len(way) == 1 else set()
        lines = _lines(runs, names, way)
        said = "; ".join(f"{names[place]} {curve[-1][1]:.4g}" for place, curve in lines[:MAX_NAMED])
        with matplotlib.rc_context(STYLE):
            plots.append(to_svg(_draw(title, lines), f"overlay-{len(plots)}", f"{title}, at the end: {said}."))
    return plots


def _title(tag: str, runs: Sequence[Run]) -> str:
    """Return the title of a loss or output, with the weight of a loss if it is not 1 and all runs have the same."""
    weights = {run.weights.get(tag) for run in runs if tag in run.curves}
    weight = weights.pop() if len(weights) == 1 else None
    kind, _, name = tag.partition("/")
    return f"{kind.capitalize()}: {words(name)}" + (f", weight {weight:.4g}" if weight not in (None, 1) else "")


def _draw(title: str, lines: Sequence[tuple[int, Curve]]) -> Figure:
    """Draw one line for each (place of the group, curve); the axis is logarithmic for a loss of a wide range."""
    most = max(8, min(LONGEST, OVERLAY_POINTS // len(lines)))
    values = [value for _, curve in lines for _, value in curve]
    figure = Figure(figsize=(4.0, 2.7))
    axes = figure.add_axes((0.12, 0.16, 0.82, 0.74))
    for place, curve in lines:
        style: dict[str, Any] = {"marker": "o", "markersize": 3} if len(curve) < 4 else {}
        colour, dash = SERIES[place % len(SERIES)], DASHES[place // len(SERIES) % len(DASHES)]
        axes.plot(*zip(*shorten(curve, most), strict=True), color=colour, dashes=dash, linewidth=1.3, **style)
    if title.startswith("Loss") and min(values) > 0 and max(values) > WIDE_RANGE * min(values):
        axes.set_yscale("log")
        title += " (logarithmic)"
    axes.set_title(title, parse_math=False)
    axes.set_xlabel("batches")
    axes.margins(x=0.02)
    axes.locator_params(axis="x", nbins=5)
    return figure


def _lines(runs: Sequence[Run], names: Sequence[str], tags: Sequence[str]) -> list[tuple[int, Curve]]:
    """Return the place of the group and the finite points of the first tag, less the second tag if there are two."""
    lines = []
    for run in runs:
        less = dict(run.curves.get(tags[1], [])) if len(tags) > 1 else {}
        curve = [(b, v - less.get(b, 0.0)) for b, v in run.curves.get(tags[0], []) if len(tags) == 1 or b in less]
        curve = [(batch, value) for batch, value in curve if math.isfinite(value)]
        if curve and run.group in names:
            lines.append((names.index(run.group), curve))
    return lines


def legend(names: Sequence[str]) -> list[tuple[str, int, str]]:
    """Return each group's name, number of its colour from 1 on, and dashes of its line in `overlays`."""
    dashes = [" ".join(str(2 * length) for length in dash) for dash in DASHES]
    return [(name, i % len(SERIES) + 1, dashes[i // len(SERIES) % len(DASHES)]) for i, name in enumerate(names)]
