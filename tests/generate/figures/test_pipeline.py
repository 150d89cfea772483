"""Tests of the picture of the pipeline: pictures, codes, words and arrows in their places."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pegasus_lightning.generate.figures import cards, mixes, pipeline
from pegasus_lightning.generate.figures.pipeline import pipeline_figure
from pegasus_lightning.utils.image_grid import BACKGROUND, INK, MARGIN

COLOURS = ((7, 255, 0), (8, 254, 0), (9, 253, 0))  # of the mix and its parents, all over
CLASSES = ("cat", "ship")


def draw(*, latent_dim: int = 128, ascended: tuple[Tensor, int] | None = None, **settings: Any) -> np.ndarray:
    mix, first, second = (torch.tensor(c, dtype=torch.uint8)[:, None, None].expand(3, 32, 32) for c in COLOURS)
    codes = tuple(torch.randn(3, latent_dim, generator=torch.Generator().manual_seed(0)))
    defaults = {"classes": CLASSES, "ratio": 0.45, "mixing": "lerp", "sampled": True, "originals": True}
    return pipeline_figure(mix, (first, second), codes, ascended=ascended, **(defaults | settings))  # type: ignore[arg-type]


def box(figure: np.ndarray, i: int, side: int) -> tuple[int, int]:
    """(top, left) of the one square of colour i, which must be `side` pixels wide and high."""
    found = np.argwhere((figure == COLOURS[i]).all(axis=-1))
    assert len(found) == side * side
    top, left = found.min(axis=0).tolist()
    assert found.max(axis=0).tolist() == [top + side - 1, left + side - 1]
    return top, left


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Fills with the texts written, each once."""
    written: list[str] = []
    write = pipeline.render_text

    def watched(text: str, *rest: Any) -> np.ndarray:
        if text not in written:
            written.append(text)
        return write(text, *rest)

    for module in (pipeline, cards, mixes):
        monkeypatch.setattr(module, "render_text", watched)
    return written


def test_the_parents_are_on_the_left_and_the_mix_twice_as_large_on_the_right() -> None:
    figure = draw()
    (top, left), (upper, first), (lower, second) = box(figure, 0, 256), box(figure, 1, 128), box(figure, 2, 128)
    assert first == second == MARGIN
    assert left + 256 + MARGIN == figure.shape[1]
    assert abs((upper + lower + 128) - (2 * top + 256)) <= 2  # the mix is halfway between them
    # From each parent an arrow to the encoder: a line of two pixels to the card's edge.
    for row in (upper + 64, lower + 64):
        after = figure[row, MARGIN + 128 :]
        length = int(np.flatnonzero((after == cards.EDGE).all(axis=-1))[0])
        assert length == pipeline.GAP
        dark = (after[:length] == INK).all(axis=-1)
        assert dark[: length - 4].all()
    assert (figure[-1] == BACKGROUND).all()


def test_each_cell_of_a_code_has_the_colour_of_its_number() -> None:
    picture = pipeline._code(np.array([-2.0, 0.0, 1.0]), 2.0)  # two columns; 16 pixels a cell, one of border
    assert picture.shape == (34, 34, 3)
    centres = [picture[row, column].tolist() for row in (8, 24) for column in (8, 24)]
    assert centres == [[24, 98, 160], [255, 255, 255], [226, 166, 128], list(BACKGROUND)]  # 226 = (255 + 196) / 2
    assert pipeline._code(np.zeros(512), 0.0).shape == (32 * 4 + 2, 16 * 4 + 2, 3)
    assert (pipeline._code(np.zeros(2), 0.0)[1:-1, 1:-1] == 255).all()


@pytest.mark.parametrize(
    ("mixing", "ratio", "said"),
    [
        ("lerp", 0.45, "at ratio 0.45\n0.55 z1 + 0.45 z2"),
        ("lerp", -0.5, "at ratio -0.50\n1.50 z1 - 0.50 z2"),
        ("slerp", 0.45, "at ratio 0.45\nalong the arc\nfrom z1 to z2"),
        ("direction", 0.45, "at ratio 0.45\nz1 + 0.45 d"),
        ("learned", 0.45, "at ratio 0.45\nmixing network\nof z1 and z2"),
    ],
)
def test_the_mixing_is_the_one_that_was_used(texts: list[str], mixing: str, ratio: float, said: str) -> None:
    draw(mixing=mixing, ratio=ratio)
    assert {f"{mixing} mix", said} <= set(texts)
    with pytest.raises(ValueError, match="mixing must be one of"):
        draw(mixing="sum")


def test_a_direction_has_no_second_parent(texts: list[str]) -> None:
    figure = draw(mixing="direction")
    box(figure, 1, 128)
    assert not (figure == COLOURS[2]).all(axis=-1).any()
    assert "ship\noriginal" not in texts
    assert "direction d\nmean ship code minus\nmean cat code" in texts


def test_the_steps_are_named_with_their_sizes(texts: list[str]) -> None:
    draw(latent_dim=512)
    for text in (
        "cat\noriginal",
        "ship\noriginal",
        "3 x 32 x 32\nto mean and\nlog-variance,\n512 numbers each",
        "code z1, sampled\n512 numbers",
        "code z2, sampled\n512 numbers",
        "mixed code\n512 numbers",
        "512 numbers\nto 3 x 32 x 32",
        "cat x ship",
    ):
        assert text in texts
    assert not any("reconstruction" in text or "ascent" in text for text in texts)
    texts.clear()
    draw(latent_dim=1, originals=False, sampled=False, log_variance=False)
    for text in ("cat\nreconstruction", "3 x 32 x 32\nto mean,\n1 number", "code z1, the mean\n1 number"):
        assert text in texts
    assert not any("original" in text for text in texts)
    assert any("the encoder reads the parents themselves" in text for text in texts)


def test_a_guided_mix_has_its_ascent_between_the_mixed_code_and_the_decoder(texts: list[str]) -> None:
    plain, guided = draw(), draw(ascended=(torch.full((128,), 9.0), 80))
    assert box(guided, 0, 256)[1] > box(plain, 0, 256)[1] + pipeline.WORDS
    assert {"gradient ascent", "on the code,\n80 steps", "improved code\n128 numbers"} <= set(texts)
    assert any("blue -9.00, white 0, orange 9.00" in text for text in texts)
    full = (guided == pipeline.POSITIVE).all(axis=-1)  # 128 cells of 8 x 8 pixels, beside the text of a card
    assert full.sum() >= 64 * 128
    assert (plain == pipeline.POSITIVE).all(axis=-1).sum() < 64 * 16


@pytest.mark.parametrize("classes", [("airplane", "automobile"), ("a_class_with_a_name_of_forty_characters_", "ship")])
@pytest.mark.parametrize("mixing", ["lerp", "direction", "learned"])
def test_nothing_lies_over_a_text(monkeypatch: pytest.MonkeyPatch, classes: tuple[str, str], mixing: str) -> None:
    painted: list[tuple[np.ndarray, np.ndarray]] = []  # a text's place on the canvas, and how it was left

    def watched(canvas: np.ndarray, ink: np.ndarray, top: int, left: int, colour: tuple[int, int, int]) -> None:
        place = canvas[top : top + ink.shape[0], left : left + ink.shape[1]]
        assert place.shape[:2] == ink.shape
        assert (place == BACKGROUND).all()
        paint(canvas, ink, top, left, colour)
        painted.append((place, place.copy()))

    paint = pipeline.paint
    monkeypatch.setattr(pipeline, "paint", watched)
    draw(classes=classes, mixing=mixing, latent_dim=512, originals=False, ascended=(torch.zeros(512), 1000))
    assert len([place for place, _ in painted if place.size]) == (6 if mixing == "direction" else 7)
    for place, left in painted:
        assert (place == left).all()


def test_codes_that_do_not_agree_are_refused() -> None:
    with pytest.raises(ValueError, match="all alike"):
        draw(ascended=(torch.zeros(127), 3))
