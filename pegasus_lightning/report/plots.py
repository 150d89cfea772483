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
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pegasus_lightning.report.comparison import Point
from pegasus_lightning.report.read import Curve, Run, printable, shorten

Box = tuple[float, float, float, float]  # left, bottom, right, top, in points
# Placeholder colours, replaced by the colours of the page.
INK, FAINT = "#010203", "#010204"
SERIES = tuple(f"#0a0b{number:02x}" for number in range(1, 9))
VARIABLES = {INK: "currentColor", FAINT: "var(--rule)"}
VARIABLES |= {colour: f"var(--series-{number})" for number, colour in enumerate(SERIES, start=1)}
MARKERS = "osD^vPX*"
MAX_POINTS = 60  # most points of the plot of realism
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
    return _words(tag.partition("/")[2])


def _words(text: str) -> str:
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


def realism_plot(points: Sequence[Point], prefix: str) -> str:
    """Return an SVG plot of recognised share against KID with 95 % intervals, controls hollow; empty if no points.

    Controls come last in `points`; of the models so many are shown that there are at most MAX_POINTS points.
    """
    if not points:
        return ""
    controls = [point for point in points if point.control][: MAX_POINTS // 2]
    points = [point for point in points if not point.control][: MAX_POINTS - len(controls)] + controls
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.0, 4.4))
        axes = figure.add_axes((0.1, 0.12, 0.87, 0.85))
        models = [point for point in points if not point.control]
        colours = [INK if point.control else SERIES[models.index(point) % len(SERIES)] for point in points]
        for point, colour in zip(points, colours, strict=True):
            x, y = point.recognised, point.kid
            axes.errorbar(
                100 * x.mean,
                y.mean,
                xerr=[[100 * max(0.0, x.mean - x.low)], [100 * max(0.0, x.high - x.mean)]],
                yerr=[[max(0.0, y.mean - y.low)], [max(0.0, y.high - y.mean)]],
                color=colour,
                marker="o" if point.control else MARKERS[models.index(point) % len(MARKERS)],
                markersize=6,
                markerfacecolor="none" if point.control else colour,
                elinewidth=0.9,
                linestyle="none",
            )
        axes.set_xlabel("both classes seen, %  (more is better \u2192)")
        axes.set_ylabel("KID*  (\u2190 less is better)")
        axes.margins(0.1)
        _name_points(axes, points, colours, figure.dpi / 72)
        said = "; ".join(f"{p.name}: {p.recognised.mean:.1%} recognised, KID {p.kid.mean:.3f}" for p in points)
        return to_svg(figure, prefix, f"Recognised against realism. {said}.")


def _name_points(axes: Axes, points: Sequence[Point], colours: Sequence[str], scale: float) -> None:
    """Write each point's name beside it, where it overlaps least with the points and the earlier names.

    scale: pixels per typographic point.
    """
    axes.autoscale_view()  # makes the transform final
    places = axes.transData.transform([(100 * point.recognised.mean, point.kid.mean) for point in points])
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in places / scale]
    frame = axes.bbox.bounds[0] / scale, axes.bbox.bounds[0] / scale + axes.bbox.width / scale
    for point, colour, (x, y) in zip(points, colours, places / scale, strict=True):
        written = _words(point.name)
        width, height = 5.2 * len(written), 10.0
        boxes = []
        for dy in (4, -14, 15, -25, 26, -36, 37, -47):
            boxes += [(x + 7, y + dy, x + 7 + width, y + dy + height), (x - 7 - width, y + dy, x - 7, y + dy + height)]
        cost = [sum(_overlap(box, other) for other in taken) + _outside(box, frame) for box in boxes]
        best = boxes[cost.index(min(cost))]
        taken.append(best)
        axes.annotate(
            written,
            (100 * point.recognised.mean, point.kid.mean),
            (7, best[1] - y + 1) if best[0] > x else (-7, best[1] - y + 1),
            textcoords="offset points",
            ha="left" if best[0] > x else "right",
            color=colour,
            fontsize=8,
            fontstyle="italic" if point.control else "normal",
            parse_math=False,
        )


def _overlap(a: Box, b: Box) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _outside(box: Box, frame: tuple[float, float]) -> float:
    return 1e4 * (max(0.0, frame[0] - box[0]) + max(0.0, box[2] - frame[1]))
