"""Tests of what happens on the page, without a browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from pegasus_lightning.demo.recipes import read_recipe
from pegasus_lightning.demo.session import DemoSession

pytest.importorskip("gradio")
from pegasus_lightning.demo import page
from pegasus_lightning.demo.page import PIXELS, Handlers, improved


def test_what_is_done_while_a_mix_improves_stays(linear: DemoSession, tmp_path: Path) -> None:
    own = Handlers(linear, tmp_path)
    shown = own.first_look()
    climb = own.improve(shown, None, PIXELS)
    for _ in range(4):  # the judge, the start and two steps
        climbed, large, _ = next(climb)
    shown, _ = own.others(shown, 0)
    kept, _ = own.keep(shown, climbed, ())
    (path,) = tmp_path.glob("*.json")
    first = read_recipe(linear, path)
    torch.testing.assert_close(first.code, climbed.code)  # what is kept is the step that is shown
    *_, (climbed, large, _) = climb
    assert not torch.equal(climbed.code, first.code)
    assert "improved" in large and large == own.large(improved(shown, climbed), PIXELS)
    kept, listed = own.keep(shown, climbed, kept)
    assert [content["code"] for *_, content in kept] == [first.code.tolist(), climbed.code.tolist()]
    assert listed.count("<figure") == 2

    # The third of the parents that are offered now is the one that is taken, and ends the improvement.
    wanted = linear.offered(0, 1)[2]
    shown, *_ = own.pick(shown, PIXELS, 0, 2)
    assert shown.choice.first.origin == wanted.origin
    assert improved(shown, climbed).code is None


def test_a_dropped_file_is_removed_once_it_is_read(
    linear: DemoSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[Any] = []
    monkeypatch.setattr(page.gr, "Warning", said.append)
    own = Handlers(linear, tmp_path / "favourites")
    Image.new("RGB", (40, 40), (0, 0, 255)).save(tmp_path / "mine.png")
    (tmp_path / "none.png").write_text("no picture")
    shown = own.first_look()
    shown, *_ = own.drop(shown, PIXELS, 1, str(tmp_path / "mine.png"))
    assert shown.choice.second.origin == {"file": "mine.png"}
    own.drop(shown, PIXELS, 1, str(tmp_path / "none.png"))
    own.keep(shown, None, ())
    (kept,) = (tmp_path / "favourites").glob("*.json")
    again, *_ = own.open(own.first_look(), PIXELS, str(kept.rename(tmp_path / "recipe.json")))
    assert again.choice.second.origin == {"file": "mine.png"}
    assert [path.name for path in tmp_path.iterdir()] == ["favourites"]
    assert len(said) == 1
