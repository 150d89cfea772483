"""Figures of mixes of two classes: pure functions from images to one labelled (H, W, 3) uint8 picture.

Images are (..., 3, H, W), float in [0, 1] or uint8, on any device; one figure may combine both types. `classes` are the
two names; a ratio is 0 at the first and 1 at the second, and a mix is labelled "first x second". `footer` names the
source of the images (run, seed, batch). Shapes that do not match raise ValueError.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from pegasus_lightning.runs.scorecards import PEGASUS_RATIOS
from pegasus_lightning.utils.image_grid import (
    ACCENT,
    BACKGROUND,
    FAINT,
    INK,
    MARGIN,
    PAD,
    blank_canvas,
    image_grid,
    paint,
    render_text,
    side_by_side,
    stack,
)
from pegasus_lightning.utils.tensors import to_uint8

Numbers = Tensor | Sequence[float]
TITLE, BODY, SMALL = 21, 16, 14  # pixels, as in image_grid for cells of 96 pixels or more
STORED = "from a stored code"  # what parents are that come from the codes of a model in the package
CURVES, LEGEND = 260, 21  # pixels: heights of the curves under a filmstrip and of a line of their legend


def pegasi_figure(
    mixes: Tensor, *, classes: tuple[str, str], footer: str = "", columns: int = 8, scale: int = 3
) -> np.ndarray:
    """Draw mixes (N, 3, H, W) row by row (fig. 5 of the source document, with 64 mixes)."""
    first, second = two_names(classes)
    mixes = as_pixels("mixes", mixes, 4)
    title = f"{counted(len(mixes), 'mix', 'mixes')} of {first} and {second}"
    return image_grid(mixes, columns=min(columns, len(mixes)), title=title, footer=footer, scale=scale)


def best_figure(
    mix: Tensor, first: Tensor, second: Tensor, *, classes: tuple[str, str], ratio: float,
    scores: Mapping[str, float], originals: tuple[Tensor, Tensor] | None = None, shown_as: str = "reconstruction",
    footer: str = "", scale: int = 12,
) -> np.ndarray:  # fmt: skip
    """Draw one large mix (3, H, W) between its parents at half its scale (fig. 4).

    first, second: the parents (3, H, W) as `shown_as` says: "reconstruction", or STORED for parents that are
        decoded from the codes that come with a model. `originals`, if given, are drawn above them.
    scores: by name. "score" is the maximised score; if missing, the sum of the others is shown.
    """
    names = two_names(classes)
    mix = as_pixels("mix", mix, 3)
    shown = {"original": originals} if originals else {}
    shown[shown_as] = (first, second)
    sides = [
        stack(
            [
                image_grid(
                    as_pixels(what, parents[i], 3, like=mix)[None, None],
                    scale=max(scale // 2, 1),
                    column_captions=[parent_caption(name, what)],
                )
                for what, parents in shown.items()
            ]
        )
        for i, name in enumerate(names)
    ]
    centre = image_grid(mix[None, None], scale=scale, column_captions=["\n" + " x ".join(names)])
    width = centre.shape[1]
    said = _paragraph(f"ratio {ratio:.2f} (0 {names[0]}, 1 {names[1]})", width, align="center")
    centre = stack([centre, said, _paragraph(_score_text(scores), width, ACCENT, align="center")])
    lower = max(centre.shape[0] - sides[0].shape[0], 0) // 2
    if lower:
        sides = [stack([blank_canvas(lower, side.shape[1]), side]) for side in sides]
    body = side_by_side([sides[0], centre, sides[1]])
    return framed(body, f"The best mix of {names[0]} and {names[1]}", footer)


def gallery_figure(
    mixes: Tensor, first: Tensor, second: Tensor, *, classes: tuple[str, str], ratios: Numbers, scores: Numbers,
    shown_as: str = "decoded", columns: int = 8, footer: str = "", scale: int = 3,
) -> np.ndarray:  # fmt: skip
    """Draw mixes (N, 3, H, W), each between its parents, in blocks of three rows and `columns` (fig. 7).

    shown_as: what the parents are, "decoded" or STORED.
    ratios, scores: (N,), written over each mix.
    """
    names = two_names(classes)
    mixes = as_pixels("mixes", mixes, 4)
    rows = [as_pixels("first", first, 4, like=mixes), mixes, as_pixels("second", second, 4, like=mixes)]
    ratio_values, score_values = _numbers("ratios", ratios, len(mixes)), _numbers("scores", scores, len(mixes))
    if columns < 1:
        raise ValueError(f"columns must be at least 1, not {columns}")
    captions = [f"ratio {r:.2f}\nscore {_short(s)}" for r, s in zip(ratio_values, score_values, strict=True)]
    columns = min(columns, len(mixes))
    missing = torch.tensor(BACKGROUND, dtype=torch.uint8)[:, None, None].expand(-len(mixes) % columns, *mixes.shape[1:])
    cells = torch.stack([torch.cat([row, missing]) for row in rows])
    starts = range(0, cells.shape[1], columns)
    title = f"{counted(len(mixes), 'mix', 'mixes')} of {names[0]} and {names[1]}, between the decoded parents"
    legend = f"Over each column: the ratio of its mix (0 {names[0]}, 1 {names[1]}) and its score."
    return stack(
        [
            image_grid(
                cells[:, start : start + columns],
                title=title if start == 0 else "",
                row_captions=[
                    parent_caption(names[0], shown_as),
                    " x ".join(names),
                    parent_caption(names[1], shown_as),
                ],
                column_captions=captions[start : start + columns],
                footer=caption_lines(legend, footer) if start == starts[-1] else "",
                scale=scale,
            )
            for start in starts
        ]
    )


def repeats_figure(
    rows: Tensor, *, classes: tuple[str, str], ratios: Numbers, pegasus_range: tuple[float, float] = PEGASUS_RATIOS,
    footer: str = "", note: str = "", scale: int = 3,
) -> np.ndarray:  # fmt: skip
    """Draw one pair interpolated R times, with z sampled anew for each row (fig. 6).

    rows: (R, C, 3, H, W), at `ratios` (C,); columns within `pegasus_range` are framed.
    note: additional sentence, e.g. that all rows are equal because the model does not sample codes.
    """
    names = two_names(classes)
    rows = as_pixels("rows", rows, 5)
    values = _numbers("ratios", ratios, rows.shape[1])
    times = counted(len(rows), "time", "times") + ("" if note else "; z is drawn anew for each row")
    return image_grid(
        rows,
        title=f"One {names[0]} and one {names[1]}, interpolated {times}",
        row_captions=[f"draw {i + 1}" for i in range(len(rows))],
        column_captions=[f"{value:.2f}" for value in values],
        highlight_columns=_within(values, pegasus_range),
        footer=caption_lines(note, _legend(names, values, pegasus_range), footer),
        scale=scale,
    )


def compare_figure(
    models: Sequence[tuple[str, Tensor]], first: Tensor, second: Tensor, *, classes: tuple[str, str], ratios: Numbers,
    parents_caption: str = "", controls: Sequence[tuple[str, Tensor]] = (), footer: str = "", scale: int = 3,
) -> np.ndarray:  # fmt: skip
    """Draw the same P pairs mixed by several models, one row a model (fig. 2).

    models, controls: (name, mixes (P, 3, H, W)); controls (e.g. a pixel average) are drawn above the models.
    first, second: parents (P, 3, H, W), in the top two rows; `parents_caption` describes them ("original").
    ratios: (P,), of all mixes in a column.
    """
    names = two_names(classes)
    if not models:
        raise ValueError("models must contain at least one model")
    parents = [as_pixels("first", first, 4)]
    parents.append(as_pixels("second", second, 4, like=parents[0]))
    mixed = [as_pixels(name, images, 4, like=parents[0]) for name, images in (*controls, *models)]
    values = _numbers("ratios", ratios, len(parents[0]))
    pairs = counted(len(values), "pair", "pairs")
    return image_grid(
        torch.stack(parents + mixed),
        title=f"The same {pairs} of {names[0]} and {names[1]}, mixed by {counted(len(models), 'model', 'models')}",
        row_captions=[
            *(caption_lines(name, parents_caption) for name in names),
            *(f"{name}\n(control)" for name, _ in controls),
            *(name for name, _ in models),
        ],
        column_captions=[f"ratio {value:.2f}" for value in values],
        footer=caption_lines(_legend(names), footer),
        scale=scale,
    )


def interpolation_figure(
    steps: Tensor, *, classes: tuple[str, str], ratios: Numbers, parents: tuple[Tensor, Tensor],
    pegasus_range: tuple[float, float] = PEGASUS_RATIOS, footer: str = "", title: str = "", scale: int = 3,
) -> np.ndarray:  # fmt: skip
    """Draw an interpolation: originals (3, H, W) at the ends, decoded steps (C, 3, H, W) between them.

    ratios: (C,), of the steps; 0 and 1 are reconstructions, steps within `pegasus_range` are framed.
    """
    names = two_names(classes)
    steps = as_pixels("steps", steps, 4)
    values = _numbers("ratios", ratios, len(steps))
    start, end = (as_pixels("parents", parent, 3, like=steps[0])[None] for parent in parents)
    captions = [f"{value:.2f}\ndecoded" if value in (0.0, 1.0) else f"{value:.2f}" for value in values]
    return image_grid(
        torch.cat([start, steps, end])[None],
        title=title or f"From {names[0]} to {names[1]}",
        column_captions=[f"{names[0]}\noriginal", *captions, f"{names[1]}\noriginal"],
        highlight_columns=[i + 1 for i in _within(values, pegasus_range)],
        footer=caption_lines(_legend(names, values, pegasus_range), footer),
        scale=scale,
    )


def filmstrip_figure(
    frames: Tensor, *, classes: tuple[str, str], steps: Sequence[int], trace: np.ndarray | Tensor, footer: str = "",
    scale: int = 3,
) -> np.ndarray:  # fmt: skip
    """Draw a gradient ascent on codes: one row a candidate, one column a saved step, and the scores below.

    frames: (K, B, 3, H, W), at `steps` (K,); trace: scores (S + 1, B), before the first step and after each step.
    """
    names = two_names(classes)
    cells = as_pixels("frames", frames, 5).transpose(0, 1)
    scores = np.asarray(torch.as_tensor(trace).detach().double().cpu())
    if scores.ndim != 2 or scores.shape[1] != len(cells):
        raise ValueError(f"trace must be (steps + 1, {len(cells)}), not {scores.shape}")
    if len(steps) != cells.shape[1] or not all(0 <= step < len(scores) for step in steps):
        raise ValueError(f"steps must be {cells.shape[1]} of 0..{len(scores) - 1}, not {list(steps)}")
    captions = [f"candidate {i + 1}" for i in range(len(cells))]
    grid = image_grid(
        cells,
        title=f"{' x '.join(names)}: gradient ascent on the codes, {counted(len(scores) - 1, 'step', 'steps')}",
        row_captions=captions,
        column_captions=[f"step {step}" for step in steps],
        scale=scale,
    )
    return framed(stack([grid, _curves(scores, captions, steps, grid.shape[1])]), "", footer)


def _curves(scores: np.ndarray, labels: Sequence[str], marked: Sequence[int], width: int) -> np.ndarray:
    """Plot scores (S + 1, B) over the steps with lines at the `marked` steps, `width` pixels wide, as uint8."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    def shade(colour: tuple[int, int, int]) -> tuple[float, float, float]:
        return colour[0] / 255, colour[1] / 255, colour[2] / 255

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # so that no matplotlibrc changes the picture
        beside = min(max((width - 2 * MARGIN) // 135, 1), len(labels))  # legend entries per line
        height = CURVES + LEGEND * math.ceil(len(labels) / beside)
        figure = Figure(figsize=(width / 100, height / 100), dpi=100, facecolor=shade(BACKGROUND), layout="constrained")
        canvas = FigureCanvasAgg(figure)
        axes = figure.add_subplot(facecolor=shade(BACKGROUND))
        colours = matplotlib.colormaps["tab10" if len(labels) <= 10 else "turbo"]
        for i, label in enumerate(labels):
            colour = colours(i if len(labels) <= 10 else i / (len(labels) - 1))
            point = "o" if len(scores) == 1 else ""
            axes.plot(scores[:, i], label=label, color=colour, marker=point, linewidth=1.8)
        for step in marked:
            axes.axvline(step, color=shade(FAINT), linewidth=0.6, alpha=0.4, zorder=0)
        axes.set_xlabel("step", color=shade(INK))
        axes.set_ylabel("score", color=shade(INK))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.margins(x=0.01)
        axes.spines[["top", "right"]].set_visible(False)
        figure.legend(loc="outside upper center", frameon=False, ncols=beside)
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def two_names(classes: tuple[str, str]) -> tuple[str, str]:
    if isinstance(classes, str) or len(classes) != 2:
        raise ValueError(f"classes must be two names, not {classes!r}")
    return classes[0], classes[1]


def as_pixels(name: str, images: Tensor, dimensions: int, like: Tensor | None = None) -> Tensor:
    """Return images as uint8 on the CPU (float stacked with uint8 would turn white); check the shape."""
    if images.ndim != dimensions or images.numel() == 0 or (like is not None and images.shape != like.shape):
        wanted = f"{dimensions} dimensions, not empty" if like is None else str(tuple(like.shape))
        raise ValueError(f"{name} must be images of {wanted}, not {tuple(images.shape)}")
    return torch.from_numpy(to_uint8(images)).movedim(-1, -3)


def parent_caption(name: str, what: str) -> str:
    """Return the caption of a parent, on two lines: its class, and what is shown of it."""
    return f"{name}{',' if what == STORED else ''}\n{what}"


def _numbers(name: str, values: Numbers, count: int) -> list[float]:
    numbers = torch.as_tensor(values, dtype=torch.float64)
    if numbers.shape != (count,):
        raise ValueError(f"{name} must be ({count},), not {tuple(numbers.shape)}")
    return [float(number) for number in numbers]


def _within(ratios: Sequence[float], limits: tuple[float, float]) -> list[int]:
    low, high = limits
    return [i for i, ratio in enumerate(ratios) if low - 1e-6 <= ratio <= high + 1e-6]  # float32's 0.6 exceeds 0.6


def _legend(names: tuple[str, str], ratios: Sequence[float] = (), limits: tuple[float, float] = PEGASUS_RATIOS) -> str:
    framed = f"; framed: {limits[0]:g} to {limits[1]:g}" if _within(ratios, limits) else ""
    return f"Over each column: the ratio of its mix, 0 is {names[0]}, 1 is {names[1]}{framed}."


def _score_text(scores: Mapping[str, float]) -> str:
    """Return all scores by name, "score" first."""
    parts = {name: float(value) for name, value in scores.items() if name != "score"}
    said = ", ".join(f"{name} {_short(value)}" for name, value in parts.items())
    total = float(scores["score"]) if "score" in scores else sum(parts.values())
    if "score" not in scores and len(parts) < 2:
        return said
    return f"score {_short(total)}" + (f" ({said})" if said else "")


def _short(value: float) -> str:
    return f"{value:.2f}" if abs(value) >= 0.1 or value == 0 else f"{value:.2g}"


def counted(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def caption_lines(*texts: str) -> str:
    return "\n".join(text for text in texts if text)


def _paragraph(
    text: str, width: int, colour: tuple[int, int, int] = INK, *, size: int = BODY, align: str = "left"
) -> np.ndarray:
    """Draw text within the margins of `width` pixels, with PAD below; wider if a word is."""
    ink = render_text(text, size, width - 2 * MARGIN, align)
    canvas = blank_canvas(ink.shape[0] + PAD, max(width, ink.shape[1] + 2 * MARGIN))
    left = MARGIN if align == "left" else (canvas.shape[1] - ink.shape[1]) // 2
    paint(canvas, ink, 0, left, colour)
    return canvas


def framed(body: np.ndarray, title: str, footer: str) -> np.ndarray:
    """Return a figure with its title above and its footer below."""
    width = body.shape[1]
    parts = [blank_canvas(MARGIN, width), _paragraph(title, width, size=TITLE)] if title else []
    below = [blank_canvas(PAD, width), _paragraph(footer, width, FAINT, size=SMALL), blank_canvas(MARGIN - PAD, width)]
    return stack([*parts, body, *(below if footer else [])])
