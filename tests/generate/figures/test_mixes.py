"""Tests of the figures of mixes: every image in its place, every caption, the same bytes each time."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from torch import Tensor

from pegasus_lightning.generate.figures import mixes
from pegasus_lightning.generate.figures.mixes import (
    best_figure,
    compare_figure,
    filmstrip_figure,
    gallery_figure,
    interpolation_figure,
    pegasi_figure,
    repeats_figure,
)
from pegasus_lightning.utils.image_grid import BACKGROUND, MARGIN, image_grid, save_png

CLASSES = ("cat", "ship")
BLUE, ORANGE = (31, 119, 180), (255, 127, 14)  # the first two of matplotlib's default lines
LONG = "adversarial_vae channels=64 s0"


def colour(i: int) -> tuple[int, int, int]:
    """A colour of its own for each i in 0..99, none of them in the captions or the curves."""
    return (7 + i, 255 - i, 0)


def flat(*numbers: int, side: int = 8) -> Tensor:
    """(N, 3, side, side) uint8: image k has colour numbers[k] all over."""
    return torch.tensor([colour(i) for i in numbers], dtype=torch.uint8)[:, :, None, None].repeat(1, 1, side, side)


def flat_rows(rows: int, columns: int, side: int = 8) -> Tensor:
    """(R, C, 3, side, side): colours counted row by row."""
    return flat(*range(rows * columns), side=side).unflatten(0, (rows, columns))


def box(figure: np.ndarray, i: int, side: int) -> tuple[int, int]:
    """(top, left) of the one square of colour i, which must be `side` pixels wide and high."""
    found = np.argwhere((figure == colour(i)).all(axis=-1))
    assert len(found) == side * side
    top, left = found.min(axis=0).tolist()
    assert found.max(axis=0).tolist() == [top + side - 1, left + side - 1]
    return top, left


def assert_border_is_background(figure: np.ndarray) -> None:
    for edge in (figure[0], figure[-1], figure[:, 0], figure[:, -1]):
        assert (edge == BACKGROUND).all()


@pytest.fixture
def grids(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Fills with what is handed to `image_grid`."""
    handed: list[dict[str, Any]] = []

    def watched(images: Tensor, **look: Any) -> np.ndarray:
        handed.append({"images": images, **look})
        return image_grid(images, **look)

    monkeypatch.setattr(mixes, "image_grid", watched)
    return handed


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Fills with the texts written outside of grids."""
    written: list[str] = []
    write = mixes.render_text

    def watched(text: str, *rest: Any) -> np.ndarray:
        written.append(text)
        return write(text, *rest)

    monkeypatch.setattr(mixes, "render_text", watched)
    return written


def test_pegasi_lie_row_by_row_under_their_number(grids: list[dict[str, Any]]) -> None:
    figure = pegasi_figure(flat(*range(11)), classes=CLASSES, columns=4, scale=2, footer="run a")
    top, left = box(figure, 0, 16)
    for i in range(11):
        assert box(figure, i, 16) == (top + i // 4 * 18, left + i % 4 * 18)
    assert left == MARGIN
    assert grids[0]["title"] == "11 mixes of cat and ship"
    assert grids[0]["footer"] == "run a"
    pegasi_figure(flat(0), classes=CLASSES)
    assert grids[1]["title"] == "1 mix of cat and ship"
    assert grids[1]["columns"] == 1  # no room for mixes that are not there


def test_the_best_stands_between_its_parents_and_their_originals(texts: list[str], grids: list[dict[str, Any]]) -> None:
    mix, first, second, *originals = flat(0, 1, 2, 3, 4, side=32)
    as_float = first.double() / 255  # one figure takes both kinds
    look = {"classes": CLASSES, "ratio": 0.466, "footer": "run a"}
    figure = best_figure(mix, as_float, second, originals=tuple(originals), scores={"cat": 0.5, "ship": 0.25}, **look)
    top, left = box(figure, 0, 384)
    assert left == MARGIN + 192 + 2 * MARGIN
    right = left + 384 + 2 * MARGIN
    assert box(figure, 3, 192) == (top, MARGIN)
    assert box(figure, 4, 192) == (top, right)
    (lower, x), (lower_too, x_too) = box(figure, 1, 192), box(figure, 2, 192)
    assert (x, x_too) == (MARGIN, right)
    assert lower == lower_too
    assert lower > top + 192 + MARGIN
    assert texts == ["ratio 0.47 (0 cat, 1 ship)", "score 0.75 (cat 0.50, ship 0.25)", *texts[2:]]
    assert sorted(texts[2:]) == ["The best mix of cat and ship", "run a"]
    captions = [grid["column_captions"][0].strip() for grid in grids]
    sides = [f"{name}\n{what}" for name in CLASSES for what in ("original", "reconstruction")]
    assert captions == [*sides, "cat x ship"]
    assert_border_is_background(figure)

    bare = best_figure(mix, first, second, scores={"score": 1.0}, **look)
    (top, _), (beside, _), (beside_too, _) = box(bare, 0, 384), box(bare, 1, 192), box(bare, 2, 192)
    assert beside == beside_too
    assert top < beside < top + 192


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        ({"score": 1.234, "cat": 0.5}, "score 1.23 (cat 0.50)"),  # given: not summed
        ({"cat": 0.5, "realism": -0.25, "prior": 0.0123}, "score 0.26 (cat 0.50, realism -0.25, prior 0.012)"),
        ({"cat": 0.5}, "cat 0.50"),
        ({"score": 0.0}, "score 0.00"),
        ({}, ""),
    ],
)
def test_the_score_is_shown_with_its_parts(texts: list[str], scores: dict[str, float], said: str) -> None:
    best_figure(*flat(0, 1, 2), classes=CLASSES, ratio=0.5, scores=scores)
    assert texts[1] == said


def test_the_gallery_has_blocks_of_parent_mix_parent(grids: list[dict[str, Any]]) -> None:
    figure = gallery_figure(
        flat(*range(0, 5), side=32),
        flat(*range(10, 15), side=32),
        flat(*range(20, 25), side=32),
        classes=CLASSES,
        ratios=torch.tensor([0.4, 0.45, 0.5, 0.555, 0.6]),
        scores=[1.0, 0.05, 1.5, 2.0, -1.0],
        columns=2,
        footer="run a",
    )
    top, left = box(figure, 10, 96)
    block = box(figure, 12, 96)[0] - top
    assert block > 3 * 98
    for i in range(5):
        for row, parent in enumerate((10, 0, 20)):
            assert box(figure, parent + i, 96) == (top + i // 2 * block + row * 98, left + i % 2 * 98)
    empty = figure[top + 2 * block : top + 2 * block + 292, left + 98 : left + 194]
    assert (empty == BACKGROUND).all()
    assert [grid["column_captions"] for grid in grids] == [
        ["ratio 0.40\nscore 1.00", "ratio 0.45\nscore 0.05"],
        ["ratio 0.50\nscore 1.50", "ratio 0.56\nscore 2.00"],
        ["ratio 0.60\nscore -1.00"],
    ]
    assert [grid["images"].shape[1] for grid in grids] == [2, 2, 2]
    assert all(grid["row_captions"] == ["cat\ndecoded", "cat x ship", "ship\ndecoded"] for grid in grids)
    assert [grid["title"] for grid in grids] == ["5 mixes of cat and ship, between the decoded parents", "", ""]
    legend = "Over each column: the ratio of its mix (0 cat, 1 ship) and its score."
    assert [grid["footer"] for grid in grids] == ["", "", f"{legend}\nrun a"]
    assert_border_is_background(figure)


def test_repeats_frame_what_lies_within_the_range(grids: list[dict[str, Any]]) -> None:
    rows, ratios = flat_rows(2, 11), torch.linspace(0, 1, 11)
    figure = repeats_figure(rows, classes=CLASSES, ratios=ratios, footer="run a", note="All alike.", scale=4)
    top, left = box(figure, 0, 32)
    for r, c in np.ndindex(2, 11):
        y, x = box(figure, r * 11 + c, 32)
        assert y == top + r * 34
        assert x == left + c * 34 + 4 * (c >= 4) + 4 * (c >= 7)  # the frame's room
    (given,) = grids
    assert torch.equal(given["images"], rows)
    assert given["highlight_columns"] == [4, 5, 6]  # float32's 0.4 and 0.6 lie outside by a rounding error
    assert given["row_captions"] == ["draw 1", "draw 2"]
    assert given["column_captions"][:5] == ["0.00", "0.10", "0.20", "0.30", "0.40"]
    assert given["title"] == "One cat and one ship, interpolated 2 times"  # not drawn anew: the note says so
    legend = "Over each column: the ratio of its mix, 0 is cat, 1 is ship"
    assert given["footer"] == f"All alike.\n{legend}; framed: 0.4 to 0.6.\nrun a"

    repeats_figure(rows, classes=CLASSES, ratios=ratios, pegasus_range=(0.15, 0.3))
    assert grids[1]["highlight_columns"] == [2, 3]
    repeats_figure(rows, classes=CLASSES, ratios=ratios, pegasus_range=(2, 3))
    assert grids[2]["highlight_columns"] == []
    assert grids[2]["title"] == "One cat and one ship, interpolated 2 times; z is drawn anew for each row"
    assert grids[2]["footer"] == f"{legend}."


def test_models_are_compared_under_parents_and_controls(grids: list[dict[str, Any]]) -> None:
    figure = compare_figure(
        [("vae", flat(6, 7, side=32)), (LONG, flat(8, 9, side=32).float() / 255)],
        flat(0, 1, side=32),
        flat(2, 3, side=32),
        classes=CLASSES,
        ratios=[0.4, 0.6],
        parents_caption="original",
        controls=[("pixel average", flat(4, 5, side=32))],
        footer="run a",
    )
    top, left = box(figure, 0, 96)
    for i in range(10):
        assert box(figure, i, 96) == (top + i // 2 * 98, left + i % 2 * 98)
    (given,) = grids
    assert given["row_captions"] == ["cat\noriginal", "ship\noriginal", "pixel average\n(control)", "vae", LONG]
    assert given["column_captions"] == ["ratio 0.40", "ratio 0.60"]
    assert given["title"] == "The same 2 pairs of cat and ship, mixed by 2 models"
    assert given["footer"] == "Over each column: the ratio of its mix, 0 is cat, 1 is ship.\nrun a"
    assert_border_is_background(figure)
    beside = figure[top + 4 * 98 : top + 4 * 98 + 96, : left - 1]  # the long name fits beside its own cells
    assert (beside != BACKGROUND).any()
    assert (figure[top + 4 * 98 + 96 : top + 4 * 98 + 98] == BACKGROUND).all()


def test_an_interpolation_begins_and_ends_with_the_originals(grids: list[dict[str, Any]]) -> None:
    originals = flat(50)[0], flat(51)[0].float() / 255
    steps, ratios = flat(0, 1, 2), torch.tensor([0.0, 0.5, 1.0])
    figure = interpolation_figure(steps, classes=CLASSES, ratios=ratios, parents=originals, footer="run a", scale=4)
    places = [box(figure, i, 32) for i in (50, 0, 1, 2, 51)]
    assert len({top for top, _ in places}) == 1
    assert [left - places[0][1] for _, left in places] == sorted(left - places[0][1] for _, left in places)
    (given,) = grids
    assert given["highlight_columns"] == [2]
    assert given["column_captions"] == ["cat\noriginal", "0.00\ndecoded", "0.50", "1.00\ndecoded", "ship\noriginal"]
    assert given["title"] == "From cat to ship"
    assert given["footer"].endswith("0 is cat, 1 is ship; framed: 0.4 to 0.6.\nrun a")
    interpolation_figure(steps, classes=CLASSES, ratios=ratios, parents=originals, title="Mine")
    assert grids[1]["title"] == "Mine"


def test_a_filmstrip_has_a_row_a_candidate_over_the_curves(grids: list[dict[str, Any]], texts: list[str]) -> None:
    frames = flat_rows(3, 2, side=32)  # steps by candidates
    trace = torch.stack([torch.linspace(0, 1, 21), torch.full((21,), 0.5)], dim=1)
    figure = filmstrip_figure(frames, classes=CLASSES, steps=[0, 5, 20], trace=trace, footer="run a")
    top, left = box(figure, 0, 96)
    for step, candidate in np.ndindex(3, 2):
        assert box(figure, step * 2 + candidate, 96) == (top + candidate * 98, left + step * 98)
    (given,) = grids
    assert given["row_captions"] == ["candidate 1", "candidate 2"]
    assert given["column_captions"] == ["step 0", "step 5", "step 20"]
    assert given["title"] == "cat x ship: gradient ascent on the codes, 20 steps"
    assert texts == ["run a"]
    assert figure.shape[1] == image_grid(**given).shape[1]
    assert_border_is_background(figure)

    under = top + 98 + 96 + 50  # below the legend
    rising, level = ((np.abs(figure[under:].astype(int) - line).sum(axis=-1) < 12) for line in (BLUE, ORANGE))
    ys, xs = np.nonzero(rising)
    assert np.corrcoef(xs, ys)[0, 1] < -0.99  # up is a smaller y
    assert np.ptp(np.nonzero(level)[0]) <= 2
    assert abs(np.nonzero(level)[0].mean() - (ys.min() + ys.max()) / 2) < 3  # at half the height
    assert np.ptp(xs) > 0.7 * figure.shape[1]


def test_curves_depend_on_no_matplotlib_settings_and_change_none() -> None:
    frames, trace = flat_rows(2, 12), np.random.default_rng(0).normal(size=(8, 12))
    plain = filmstrip_figure(frames, classes=CLASSES, steps=[0, 7], trace=trace)
    with matplotlib.rc_context({"lines.linewidth": 9, "font.size": 20, "axes.grid": True}):
        before = dict(matplotlib.rcParams)
        assert (filmstrip_figure(frames, classes=CLASSES, steps=[0, 7], trace=trace) == plain).all()
        assert dict(matplotlib.rcParams) == before


def test_one_point_of_a_trace_is_visible() -> None:
    figure = filmstrip_figure(flat_rows(1, 1), classes=CLASSES, steps=[0], trace=torch.ones(1, 1))
    assert (np.abs(figure[-250:].astype(int) - BLUE).sum(axis=-1) < 12).sum() > 20


R = [0.4, 0.6]
EVERY: dict[str, Callable[[], np.ndarray]] = {
    "pegasi": lambda: pegasi_figure(flat(0, 1), classes=CLASSES),
    "best": lambda: best_figure(*flat(0, 1, 2), classes=CLASSES, ratio=0.5, scores={"a": 1}),
    "gallery": lambda: gallery_figure(flat(0, 1), flat(2, 3), flat(4, 5), classes=CLASSES, ratios=R, scores=R),
    "repeats": lambda: repeats_figure(flat_rows(2, 2), classes=CLASSES, ratios=R),
    "compare": lambda: compare_figure([(LONG, flat(0, 1))], flat(2, 3), flat(4, 5), classes=CLASSES, ratios=R),
    "interpolation": lambda: interpolation_figure(
        flat(0, 1), classes=CLASSES, ratios=R, parents=(flat(2)[0], flat(3)[0])
    ),
    "filmstrip": lambda: filmstrip_figure(flat_rows(2, 2), classes=CLASSES, steps=[0, 1], trace=torch.eye(2)),
}


@pytest.mark.parametrize("name", EVERY)
def test_every_figure_is_the_same_file_each_time(name: str, tmp_path: Path) -> None:
    for file in ("a.png", "b.png"):
        figure = EVERY[name]()
        assert figure.dtype == np.uint8
        assert_border_is_background(figure)
        save_png(figure, tmp_path / file)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


TWO, THREE = flat(0, 1), flat(0, 1, 2)


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: pegasi_figure(flat(0)[0], classes=CLASSES), "mixes must be images of 4"),
        (lambda: pegasi_figure(TWO[:, :2], classes=CLASSES), "3, H, W"),
        (lambda: pegasi_figure(TWO[:0], classes=CLASSES), "not empty"),
        (lambda: pegasi_figure(TWO, classes="ab"), "classes must be two"),
        (lambda: pegasi_figure(TWO, classes=("a", "b", "c")), "classes must be two"),
        (lambda: best_figure(*THREE[:2], THREE[2, :, 1:], classes=CLASSES, ratio=0.5, scores={}), "reconstruction"),
        (lambda: best_figure(*THREE, classes=CLASSES, ratio=0.5, scores={}, originals=(TWO[0], TWO)), "original must"),
        (lambda: gallery_figure(TWO, THREE, TWO, classes=CLASSES, ratios=R, scores=R), "first must be"),
        (lambda: gallery_figure(TWO, TWO, THREE, classes=CLASSES, ratios=R, scores=R), "second must be"),
        (lambda: gallery_figure(TWO, TWO, TWO, classes=CLASSES, ratios=[0.5], scores=R), r"ratios must be \(2,\)"),
        (lambda: gallery_figure(TWO, TWO, TWO, classes=CLASSES, ratios=R, scores=[1.0]), r"scores must be \(2,\)"),
        (lambda: gallery_figure(TWO, TWO, TWO, classes=CLASSES, ratios=R, scores=R, columns=0), "columns"),
        (lambda: repeats_figure(TWO, classes=CLASSES, ratios=R), "rows must be images of 5"),
        (lambda: repeats_figure(flat_rows(2, 3), classes=CLASSES, ratios=R), r"ratios must be \(3,\)"),
        (lambda: compare_figure([], TWO, TWO, classes=CLASSES, ratios=R), "at least one"),
        (lambda: compare_figure([("m", THREE)], TWO, TWO, classes=CLASSES, ratios=R), "m must be"),
        (lambda: compare_figure([("m", TWO)], TWO, THREE, classes=CLASSES, ratios=R), "second must be"),
        (lambda: compare_figure([("m", TWO)], TWO, TWO, classes=CLASSES, ratios=0.5), "ratios"),
        (lambda: interpolation_figure(TWO, classes=CLASSES, ratios=R, parents=(TWO, TWO)), "parents must be"),
        (lambda: interpolation_figure(TWO, classes=CLASSES, ratios=[1.0], parents=(TWO[0], TWO[1])), "ratios"),
        (lambda: filmstrip_figure(TWO, classes=CLASSES, steps=[0], trace=torch.ones(1, 1)), "frames"),
        (lambda: filmstrip_figure(flat_rows(2, 3), classes=CLASSES, steps=[0, 1], trace=torch.eye(2)), "trace"),
        (lambda: filmstrip_figure(flat_rows(2, 2), classes=CLASSES, steps=[0, 2], trace=torch.eye(2)), "steps"),
        (lambda: filmstrip_figure(flat_rows(2, 2), classes=CLASSES, steps=[1], trace=torch.eye(2)), "steps"),
    ],
)
def test_what_does_not_agree_is_refused(draw: Callable[[], np.ndarray], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw()


@pytest.mark.slow
def test_matplotlib_is_imported_for_curves_only_and_pyplot_never() -> None:
    script = """
import sys, torch
import pegasus_lightning.utils.image_grid, pegasus_lightning.generate.figures.networks
from pegasus_lightning.generate.figures.mixes import filmstrip_figure
assert not [name for name in sys.modules if name.startswith("matplotlib")]
filmstrip_figure(torch.zeros(1, 1, 3, 8, 8), classes=("a", "b"), steps=[0], trace=torch.ones(1, 1))
assert "matplotlib" in sys.modules and "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
