"""Plots as inline SVG with the colours of the page, for its light and dark themes."""

from __future__ import annotations

import html
import io
import math
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
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
        "Critic: P(real) of images less that of reconstructions",
        ("validation/critic_real", "validation/critic_fake"),
        ("critic/real", "critic/fake"),
    ),
)
MAX_OVERLAID = len(SERIES) * len(DASHES)  # groups that can be told apart
MAX_NAMED = 60  # lines that the description of such a plot names
OVERLAY_POINTS = 6000  # of one such plot
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


def panels(curves: Iterable[str], weights: Mapping[str, float]) -> list[tuple[str, list[str]]]:
    """Return the panels as (title, tags). Losses differ in scale, so each has its own panel.

    Losses are unweighted; their titles name the weight, by tag, unless it is 1 or unknown.
    """
    tags = sorted(curves)
    shown = {tag: f", weight {weight:.4g}" for tag, weight in weights.items() if weight != 1}
    found = [(f"Loss: {_name(tag)}{shown.get(tag, '')}", [tag]) for tag in tags if tag.startswith("loss/")]
    found.append(("Outputs of the critic", [tag for tag in tags if tag.startswith("critic/")][: len(SERIES)]))
    found.append(("Validation PSNR, dB", [tag for tag in tags if tag == "validation/psnr"]))
    return [(title, together) for title, together in found if together]


def colours_of_tags(runs: Sequence[Run]) -> dict[str, str]:
    """Return a colour per tag, the same in the plots of all runs; tags of one section ("loss/") get different ones."""
    tags = sorted({tag for run in runs for tag in run.curves})
    sections: dict[str, list[str]] = {}
    for tag in tags:
        sections.setdefault(tag.partition("/")[0], []).append(tag)
    return {tag: SERIES[i % len(SERIES)] for together in sections.values() for i, tag in enumerate(together)}


def _name(tag: str) -> str:
    return words(tag.partition("/")[2])


def words(text: str) -> str:
    """Return a name for a plot: one short line. It is never read as a formula (`parse_math=False`)."""
    return printable(" ".join(text.split()), 60)


def finite_panels(curves: Mapping[str, Curve], weights: Mapping[str, float]) -> list[tuple[str, list[str]]]:
    """Return the panels with a finite value."""
    found = panels(curves, weights)
    return [(title, tags) for title, tags in found if any(math.isfinite(v) for tag in tags for _, v in curves[tag])]


def curves_plots(
    curves: Mapping[str, Curve],
    colours: Mapping[str, str],
    prefix: str,
    name: str,
    weights: Mapping[str, float] | None = None,
    most: int | None = None,
) -> list[str]:
    """Return the curves of one run as SVG, one plot a panel; panels without finite values are left out.

    Of more than `most` panels the last one, of the validation, and the first ones are drawn.
    """
    plots: list[str] = []
    chosen = finite_panels(curves, weights or {})
    if most is not None and len(chosen) > most:
        chosen = chosen[: max(0, most - 1)] + chosen[len(chosen) - min(1, most) :]
    for title, tags in chosen:
        drawn = {tag: shorten(curves[tag]) for tag in tags}
        finite = [value for curve in drawn.values() for _, value in curve if math.isfinite(value)]
        if not finite:
            continue
        ends = ", ".join(f"{_name(tag)} {c[0][1]:.4g} to {c[-1][1]:.4g}" for tag, c in drawn.items())
        with matplotlib.rc_context(STYLE):
            figure = Figure(figsize=(3.0, 2.1))
            axes = figure.add_axes((0.17, 0.27, 0.8, 0.6))
            for tag, curve in drawn.items():
                batches, values = zip(*curve, strict=True)
                style: dict[str, Any] = {"marker": "o", "markersize": 3} if len(curve) < 4 else {}
                axes.plot(batches, values, color=colours[tag], linewidth=1.4, label=_name(tag), **style)
            if min(finite) > 0 and max(finite) > WIDE_RANGE * min(finite):
                axes.set_yscale("log")
                title += " (logarithmic)"
            axes.set_title(title, parse_math=False)
            axes.margins(x=0.02)
            axes.locator_params(axis="x", nbins=4)
            if len(drawn) == 1:
                axes.set_xlabel("batches")
            else:
                legend = axes.legend(
                    loc="upper center", bbox_to_anchor=(0.45, -0.13), ncols=3, handlelength=1.2, columnspacing=1
                )
                for text in legend.get_texts():
                    text.set_parse_math(False)
            plots.append(to_svg(figure, f"{prefix}-{len(plots)}", f"{name}. {title}: {ends}."))
    return plots


def overlays(runs: Sequence[Run], names: Sequence[str]) -> list[str]:
    """Return the curves of all runs as SVG, one plot for each of OVERLAYS that a run has, one line a run.

    Colours and dashes are those of the groups, by their place in `names`, see `legend`.
    """
    plots: list[str] = []
    most = max(8, min(LONGEST, OVERLAY_POINTS // max(1, len(runs))))
    for title, *ways in OVERLAYS:
        lines = next((found for way in ways if (found := _lines(runs, names, way))), [])
        if not lines:
            continue
        with matplotlib.rc_context(STYLE):
            figure = Figure(figsize=(4.0, 2.7))
            axes = figure.add_axes((0.12, 0.16, 0.85, 0.74))
            for place, curve in lines:
                style: dict[str, Any] = {"marker": "o", "markersize": 3} if len(curve) < 4 else {}
                colour, dash = SERIES[place % len(SERIES)], DASHES[place // len(SERIES) % len(DASHES)]
                axes.plot(*zip(*shorten(curve, most), strict=True), color=colour, dashes=dash, linewidth=1.3, **style)
            axes.set_title(title)
            axes.set_xlabel("batches")
            axes.margins(x=0.02)
            axes.locator_params(axis="x", nbins=5)
            said = "; ".join(f"{names[place]} {curve[-1][1]:.4g}" for place, curve in lines[:MAX_NAMED])
            plots.append(to_svg(figure, f"overlay-{len(plots)}", f"{title}, at the end: {said}."))
    return plots


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
