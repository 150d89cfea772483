"""The plot of realism: share recognised against KID, of models and controls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pegasus_lightning.report.comparison import Point, plain
from pegasus_lightning.report.plots import INK, SERIES, STYLE, to_svg, words
from pegasus_lightning.runs.scorecards import MEASURES

Box = tuple[float, float, float, float]  # left, bottom, right, top, in typographic points
Mark = tuple[tuple[float, float], str, str, bool]  # place in data, name, colour, whether it is a control
MARKERS = "osD^vPX*"
FAR = 2.5  # a control so many ranges of the models away from them lies beyond the axes
LEAST_SHARE, LEAST_KID = 0.06, 0.5  # least range of the models: of the share, and of KID as a part of its mean
MAX_POINTS = 60
LINE: dict[str, Any] = {"arrowstyle": "-", "linewidth": 0.5, "shrinkA": 1, "shrinkB": 4}  # from a name to its point
TOO_MUCH = 20  # square points of other names and marks that a name may not cover


def realism_plot(points: Sequence[Point], prefix: str, names: Sequence[str] = ()) -> str:
    """Return an SVG plot of recognised share against KID with 95 % intervals, controls hollow; empty if no points.

    The axes are the models'. A control far from them is an arrow at the edge, with its values. Controls come last in
    `points`; of the models so many are shown that there are at most MAX_POINTS points. `names` orders the colours.
    """
    if not points:
        return ""
    controls = [point for point in points if point.control][: MAX_POINTS // 2]
    models = [point for point in points if not point.control][: MAX_POINTS - len(controls)]
    points = models + controls
    x_range = _range([p.recognised.mean for p in models], [p.recognised.mean for p in controls], LEAST_SHARE)
    y_range = _range([p.kid.mean for p in models], [p.kid.mean for p in controls])
    with matplotlib.rc_context(STYLE | {"font.size": 10.5}):
        figure = Figure(figsize=(5.8, 4.2))
        axes = figure.add_axes((0.14, 0.13, 0.83, 0.83))
        axes.margins(0.12)
        marks: list[Mark] = []
        far: list[Point] = []
        for i, point in enumerate(points):
            x, y = point.recognised, point.kid
            if not (x_range[0] <= x.mean <= x_range[1] and y_range[0] <= y.mean <= y_range[1]):
                far.append(point)
                continue
            place = names.index(point.name) if point.name in names else i
            colour = INK if point.control else SERIES[place % len(SERIES)]
            axes.errorbar(
                100 * x.mean,
                y.mean,
                xerr=[[100 * max(0.0, x.mean - x.low)], [100 * max(0.0, x.high - x.mean)]],
                yerr=[[max(0.0, y.mean - y.low)], [max(0.0, y.high - y.mean)]],
                color=colour,
                marker="o" if point.control else MARKERS[place % len(MARKERS)],
                markersize=6,
                markerfacecolor="none" if point.control else colour,
                elinewidth=0.9,
                linestyle="none",
            )
            marks.append(((100 * x.mean, y.mean), words(point.name), colour, point.control))
        axes.autoscale_view()
        limits = axes.get_xlim(), axes.get_ylim()
        axes.set(xlim=limits[0], ylim=limits[1])
        for point in far:
            marks.append(_arrow(axes, point, limits))
        axes.set_xlabel("both classes seen, %  (more is better \u2192)")
        axes.set_ylabel("KID*  (\u2190 less is better)")
        _name_points(axes, marks, figure.dpi / 72)
        said = "; ".join(f"{p.name}: {p.recognised.mean:.1%} recognised, KID {p.kid.mean:.3f}" for p in points)
        return to_svg(figure, prefix, f"Recognised against realism. {said}.")


def _range(models: Sequence[float], controls: Sequence[float], least: float | None = None) -> tuple[float, float]:
    """Return the values of an axis that are drawn: those of the models, and of controls that are not far from them."""
    known = models or controls
    least = LEAST_KID * abs(sum(known) / len(known)) if least is None else least
    reach = FAR * max(max(known) - min(known), least)
    return min(known) - reach, max(known) + reach


def _arrow(axes: Axes, point: Point, limits: Sequence[tuple[float, float]]) -> Mark:
    """Draw an arrow at the edge in the direction of a control that lies beyond it; return its mark, with its values."""
    values = 100 * point.recognised.mean, point.kid.mean
    (left, bottom), (right, top) = zip(*limits, strict=True)
    x, y = min(max(values[0], left), right), min(max(values[1], bottom), top)
    arrow = ">" if x < values[0] else "<" if x > values[0] else "^" if y < values[1] else "v"
    shown = plain(MEASURES["recognised"], point.recognised.mean), plain(MEASURES["kid"], point.kid.mean)
    axes.plot(x, y, arrow, markersize=8, color=INK, markerfacecolor="none", clip_on=False)
    return (x, y), f"{words(point.name)} ({shown[0]}, KID {shown[1]})", INK, True


def _name_points(axes: Axes, marks: Sequence[Mark], scale: float) -> None:
    """Write each point's name beside it where it covers nothing, with a line to the point if it is not near.

    A name that has room nowhere is left out: it stands in the table. scale: pixels per typographic point.
    """
    places = axes.transData.transform([place for place, _, _, _ in marks]) / scale
    taken: list[Box] = [(x - 5, y - 5, x + 5, y + 5) for x, y in places]
    frame: Box = tuple(value / scale for value in axes.bbox.extents)  # type: ignore[assignment]
    offsets = [(dx, dy) for dx in (8, 24, 52) for dy in (4, -15, 17, -28, 30, -41, 43, -54, 56, -67, 69)]
    for (place, written, colour, control), (x, y) in zip(marks, places, strict=True):
        width, height = 5.4 * len(written), 11.0
        boxes: list[Box] = [(x + dx, y + dy, x + dx + width, y + dy + height) for dx, dy in offsets]
        boxes += [(x - dx - width, y + dy, x - dx, y + dy + height) for dx, dy in offsets]
        covered = [sum(_overlap(box, other) for other in taken) + _outside(box, frame) for box in boxes]
        cost = [much + abs(box[1] + 4 - y) + abs(_gap(box, x) - 8) for much, box in zip(covered, boxes, strict=True)]
        best = cost.index(min(cost))
        if covered[best] > TOO_MUCH:
            continue
        box = boxes[best]
        taken.append(box)
        near = cost[best] - covered[best] < 14
        axes.annotate(
            written,
            place,
            ((box[0] if box[0] > x else box[2]) - x, box[1] - y + 1),
            textcoords="offset points",
            ha="left" if box[0] > x else "right",
            color=colour,
            fontsize=9.5,
            fontstyle="italic" if control else "normal",
            arrowprops=None if near else LINE | {"color": colour, "relpos": (float(box[0] < x), 0.5)},
            annotation_clip=False,
            parse_math=False,
        )


def _gap(box: Box, x: float) -> float:
    return max(box[0] - x, x - box[2])


def _overlap(a: Box, b: Box) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _outside(box: Box, frame: Box) -> float:
    beyond = (frame[0] - box[0], frame[1] - box[1], box[2] - frame[2], box[3] - frame[3])
    return 1e4 * sum(max(0.0, side) for side in beyond)
