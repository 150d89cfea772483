"""Tests of the raters' page in a browser without network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from headless import Browser

from pegasus_lightning.panel.page import render
from pegasus_lightning.panel.score import score
from pegasus_lightning.panel.settings import SCORE


def answers(browser: Browser) -> list[list[Any]]:
    found: list[list[Any]] = browser.run("state.answers")
    return found


@pytest.fixture
def page(browser: Browser, panel: Path) -> Path:
    path = panel / "raters" / "panel.html"
    browser.open(path)
    browser.run("state = fresh(); keep(); show()")  # another test may have left answers in this browser
    return path


def test_thirty_keys_undo_reload_and_the_downloaded_answers_are_scored(
    browser: Browser, page: Path, panel: Path, key: dict[str, Any], tmp_path: Path
) -> None:
    browser.requests.clear()
    browser.reload()
    letters, numbers = "HRWBON", "12345"
    for i in range(15):  # thirty keys
        browser.press(letters[i % 6].lower() if i % 2 else letters[i % 6])
        browser.press(numbers[i % 5])
    order = browser.run("state.order")
    assert sorted(order) == list(range(1, 29)) and order != sorted(order)
    assert answers(browser) == [[order[i], letters[i % 6], int(numbers[i % 5])] for i in range(15)]
    assert browser.run("document.getElementById('place').textContent") == "15 of 28"

    browser.press("u")
    browser.press("W")
    browser.press("Backspace")  # takes the letter back
    browser.press("3")  # no letter: nothing to say
    assert len(answers(browser)) == 14
    browser.press("B")
    browser.press("2")

    kept = answers(browser)
    browser.reload()
    assert answers(browser) == kept and browser.run("state.order") == order
    for _ in range(13):
        browser.press("N")
        browser.press("1")
    browser.press("H")
    browser.press("5")  # after the last picture: nothing to rate
    assert len(answers(browser)) == 28
    assert "All done" in browser.run("document.getElementById('done').textContent")

    file = tmp_path / "rater.csv"
    file.write_text(browser.run("csv()"))
    config = SCORE.compose([f"key='{panel / 'key.json'}'", f"ratings=['{file}']"])
    result = score(config)
    given = {number: letter for number, letter, _ in answers(browser)}
    assert {p["number"]: p["letters"] for p in result["pictures"]} == given
    for name in ("score.json", "score.txt", "votes.png"):
        (panel / name).unlink()
    assert {url.partition(":")[0] for url in browser.requests} <= {"file", "data"}


def test_a_click_does_what_a_key_does(browser: Browser, page: Path) -> None:
    browser.run("document.querySelector('[data-letter=W]').click()")
    assert browser.run("document.querySelector('[data-letter=W]').getAttribute('aria-pressed')") == "true"
    browser.run("document.querySelector('[data-realism=\"4\"]').click()")
    assert answers(browser)[0][1:] == ["W", 4]
    browser.run("document.getElementById('undo').click()")
    assert answers(browser) == []


def test_another_rater_starts_anew(browser: Browser, page: Path) -> None:
    browser.press("H")
    browser.press("3")
    browser.run("confirm = () => false")
    browser.run("document.getElementById('anew').click()")
    assert len(answers(browser)) == 1  # it asks first
    browser.run("confirm = () => true")
    browser.run("document.getElementById('anew').click()")
    assert answers(browser) == []
    browser.reload()
    assert answers(browser) == []


def test_the_download_is_the_answers(browser: Browser, page: Path) -> None:
    browser.press("B")
    browser.press("2")
    browser.run(
        "window.saved = []; HTMLAnchorElement.prototype.click = function () {"
        " saved.push([this.download, fetch ? this.href.slice(0, 5) : '']); };"
        " window.blobs = []; const make = URL.createObjectURL; URL.createObjectURL = (blob) => { blobs.push(blob);"
        " return make.call(URL, blob); };"
    )
    browser.run("document.getElementById('download').click()")
    assert browser.run("saved[0][1]") == "blob:"
    assert browser.run("saved[0][0]") == browser.run("`ratings-${panel.panel}.csv`")
    assert browser.run("blobs[0].text()") == browser.run("csv()")


def test_the_picture_that_is_shown_is_the_one_that_is_rated(browser: Browser, tmp_path: Path) -> None:
    greys = (torch.arange(40) * 6).byte()[:, None, None, None].expand(40, 3, 32, 32)
    path = tmp_path / "panel.html"
    path.write_text(render(greys, "abc", ("horse", "bird")))
    browser.open(path)
    for _ in range(5):
        number = browser.run("state.order[state.answers.length]")
        red, green, blue = browser.run(
            "[...document.getElementById('picture').getContext('2d').getImageData(160, 160, 1, 1).data].slice(0, 3)"
        )
        assert red == green == blue == 6 * (number - 1)
        browser.press("O")
        browser.press("3")


def test_names_of_classes_are_text_and_nothing_else(browser: Browser, tmp_path: Path) -> None:
    evil = "<img src=x onerror=\"document.title='owned'\">"
    path = tmp_path / "panel.html"
    path.write_text(render(torch.zeros(4, 3, 32, 32, dtype=torch.uint8), "abc", (evil, "bird")))
    browser.open(path)
    assert browser.run("document.title") == "Panel abc"
    assert evil in browser.run("document.querySelector('[data-letter=H]').textContent")
    assert json.loads(browser.run("JSON.stringify(panel.letters)")) == list("HRWBON")
