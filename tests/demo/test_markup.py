"""Tests of the page's HTML: names of classes and files are text in it, whatever they hold."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
import torch
from PIL import Image

from pegasus_lightning.demo import markup
from pegasus_lightning.demo.session import Choice, Parent

EVIL = "<script>alert(1)</script>\"'${1}{{2}}"


def parent(**origin: object) -> Parent:
    return Parent(torch.zeros(3, 32, 32, dtype=torch.uint8), dict(origin))


def test_names_are_text() -> None:
    image = torch.zeros(3, 32, 32)
    choice = Choice(parent(file=EVIL), parent(index=1), 0.5)
    made = markup.parents(EVIL, choice.first, [choice.second])
    made += markup.large(image, choice, (EVIL, EVIL), {"classes": [EVIL]}, by_parts=False, smooth=False)
    made += markup.favourites([(markup.Path(f"{EVIL[:8]}.png"), image, {"ratio": 0.5})], EVIL)
    assert "<script" not in made
    assert "${" not in made
    assert "{{" not in made
    for tag in re.findall(r"<(?:img|a) [^>]*>", made):  # quotes in names do not end an attribute
        assert re.fullmatch(r'<(?:img|a)( [a-z]+="[^"]*")+>', tag)


def test_the_row_marks_the_nearest_ratio_and_holds_the_pictures() -> None:
    images = torch.linspace(0, 1, 3)[:, None, None, None].expand(3, 3, 32, 32)
    made = markup.row(images, [0.0, 0.5, 1.0], Choice(parent(index=0), parent(index=0), 0.74))
    assert re.findall(r'data-pick="([\d.]+)" aria-pressed="(\w+)"', made) == [
        ("0.0", "false"),
        ("0.5", "true"),
        ("1.0", "false"),
    ]
    shown = [Image.open(io.BytesIO(base64.b64decode(data))) for data in re.findall(r"base64,([^\"]+)", made)]
    assert [np.asarray(picture)[0, 0, 0] for picture in shown] == [0, 128, 255]


@pytest.mark.parametrize(
    ("ratio", "by_parts", "said"),
    [
        (0.25, False, "75% cat, 25% ship"),
        (0.0, True, "100% cat, 0% ship"),
        (0.1, True, "the cat makes room"),
        (0.3, True, "parts of the ship appear"),
        (0.4, True, "the chimera"),
        (0.6, True, "the chimera"),
        (0.61, True, "on to the ship"),
    ],
)
def test_what_a_ratio_means(ratio: float, by_parts: bool, said: str) -> None:
    assert markup.phase(ratio, ("cat", "ship"), by_parts) == said
