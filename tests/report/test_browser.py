"""Tests of the page in a browser without network: key presses, pixels, requests."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from headless import Browser

from pegasus_lightning.report.page import write_report
from pegasus_lightning.runs.scorecards import PEGASI, Figure

EVIL = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
MORE = ("kid", "density", "coverage", "memorised", "variety", "linearity")


@pytest.fixture(scope="module")
def report(
    tmp_path_factory: pytest.TempPathFactory,
    make_run: Callable[..., Path],
    evaluated: Callable[..., Path],
    card: Callable[..., Any],
    pictures: Callable[..., dict[str, Any]],
) -> Path:
    """A report of two models with seven columns of figures; pictures of the second are brighter by 1 in blue."""
    home = tmp_path_factory.mktemp("runs")
    for step, (name, seen) in enumerate((("vae", 0.2), ("acai", 0.4))):
        run = make_run(home, name, status={"reason": EVIL, "command": [EVIL]}, evaluated=False)
        rows = {PEGASI: {"recognised": Figure(seen, seen - 0.01, seen + 0.01)}}
        rows[PEGASI] |= dict.fromkeys(MORE, Figure(1 - seen, 0.1, 0.9))
        frames = pictures()["frames"].copy()
        frames[:, :, 2] += step
        evaluated(run, card(name, rows=rows, alarms=[EVIL]), pictures=pictures(frames=frames))
    return write_report([str(home)])[0]


def frame_colour(pair: int, frame: int, model: int) -> list[int]:
    """Colour of a frame, from `plain` of conftest and the change in `report`."""
    number = 21 * pair + frame
    return [number % 251, number // 251 * 40, 90 + model]


@pytest.mark.promise(15)
def test_the_slider_moves_every_models_pictures(browser: Browser, report: Path) -> None:
    browser.open(report)
    slider = ".pairs .ratio"

    def shown() -> list[Any]:
        colours = [browser.colour(".moving .cell", index) for index in (0, 3, 4, 7)]
        return [browser.run(f"document.querySelector('{slider}').getAttribute('aria-valuetext')"), *colours]

    def wanted(text: str, frame: int) -> list[Any]:  # strips: acai, vae, ordered by folder name
        return [text, *(frame_colour(pair, frame, model) for model in (1, 0) for pair in (0, 3))]

    assert shown() == wanted("0.50, where a pegasus is looked for", 10)
    browser.press("ArrowRight", slider)
    assert shown() == wanted("0.55, where a pegasus is looked for", 11)
    browser.press("ArrowRight")
    browser.press("ArrowRight")
    assert shown() == wanted("0.65", 13)
    browser.press("End")
    assert shown() == wanted("1.00", 20)
    browser.press("Home")
    assert shown() == wanted("0.00", 0)
    # The parents stay: photographs above, the pixel average and CutMix below.
    assert [browser.colour(".given .cell", index)[2] for index in (0, 4, 8, 12)] == [90, 140, 115, 165]


def test_the_band_stands_where_the_thumb_is_at_04_and_06(browser: Browser, report: Path) -> None:
    browser.open(report)
    left, right, start, width = browser.run(
        "(() => { const b = document.querySelector('.band').getBoundingClientRect(),"
        " s = document.querySelector('.ratio').getBoundingClientRect(); return [b.left, b.right, s.left, s.width]; })()"
    )
    assert left == pytest.approx(start + 8 + 0.4 * (width - 16), abs=1)
    assert right == pytest.approx(start + 8 + 0.6 * (width - 16), abs=1)


def test_play_moves_the_slider_by_itself_until_it_is_stopped(browser: Browser, report: Path) -> None:
    browser.open(report)
    browser.press("Enter", ".play")
    deadline = time.monotonic() + 20
    while browser.run("document.querySelector('.ratio').value") == "10" and time.monotonic() < deadline:
        time.sleep(0.05)
    browser.press("Enter", ".play")
    stopped = browser.run("document.querySelector('.ratio').value")
    assert stopped != "10"
    time.sleep(0.4)
    assert browser.run("document.querySelector('.ratio').value") == stopped


@pytest.mark.promise(15)
def test_the_training_time_slider_and_the_kinds_change_the_grid(browser: Browser, report: Path) -> None:
    browser.open(report)
    seen = "[...document.querySelector('.time').querySelectorAll('img')].filter((i) => !i.hidden).map((i) => i.alt)"
    assert browser.run(seen) == ["acai-s0: interpolations after epoch 5"]
    last = browser.colour(".time img:not([hidden])")
    browser.press("ArrowLeft", ".epoch")
    assert browser.run(seen) == ["acai-s0: interpolations after epoch 1"]
    first = browser.colour(".time img:not([hidden])")
    assert np.abs(np.subtract([first, last], [(20, 200, 120), (60, 170, 120)])).max() <= 3
    browser.press("ArrowRight", ".time input[type=radio]")
    assert browser.run(seen) == ["acai-s0: reconstructions after epoch 1"]


@pytest.mark.promise(15)
def test_tables_sort_by_key_and_show_all_columns_when_asked(browser: Browser, report: Path) -> None:
    browser.open(report)
    names = "[...document.querySelectorAll('#pegasi-0 tbody th')].map((h) => h.firstChild.textContent.trim())"
    state = "document.querySelector('#pegasi-0 thead [aria-sort]').getAttribute('aria-sort')"
    assert browser.run(names) == ["acai", "vae"]
    browser.press("Enter", "#pegasi-0 thead th:nth-child(2) button")
    assert (browser.run(names), browser.run(state)) == (["acai", "vae"], "descending")
    browser.press("Enter")
    assert (browser.run(names), browser.run(state)) == (["vae", "acai"], "ascending")
    browser.press("Enter", "#pegasi-0 thead th:nth-child(3) button")
    assert (browser.run(names), browser.run(state)) == (["vae", "acai"], "descending")


def test_light_and_dark(browser: Browser, report: Path) -> None:
    browser.open(report)
    paper = "getComputedStyle(document.body).backgroundColor"
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    dark = browser.run(paper)
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "light"}])
    light = browser.run(paper)
    assert (light, dark) == ("rgb(251, 250, 247)", "rgb(23, 24, 26)")
    found = []
    for _ in range(3):
        browser.press("Enter", "#theme")
        found.append((browser.run("document.querySelector('#theme').textContent"), browser.run(paper)))
    assert found == [("Theme: light", light), ("Theme: dark", dark), ("Theme: auto", light)]


@pytest.mark.parametrize("width", [390, 1600])
def test_the_page_is_never_wider_than_the_window(browser: Browser, report: Path, width: int) -> None:
    browser.open(report, width)
    assert browser.run("document.documentElement.scrollWidth") <= width


@pytest.mark.promise(15)
def test_no_request_leaves_the_page_and_nothing_of_a_run_is_executed(browser: Browser, report: Path) -> None:
    browser.requests.clear()
    browser.open(report)
    for key in ("ArrowRight", "End"):
        browser.press(key, ".ratio")
        browser.press(key, ".epoch")
    browser.run("new Promise((done) => setTimeout(done, 300))")
    assert {url for url in browser.requests if not url.startswith("data:")} == {report.as_uri()}
    entries = browser.run("performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert [name for name in entries if not name.startswith(("data:", "blob:"))] == []
    assert browser.run("document.title") == "horse + bird: 2 variants"
    # Requests are blocked, too.
    assert browser.run("fetch('https://example.org').then(() => 'left', () => 'kept')") == "kept"
    refused = "document.addEventListener('securitypolicyviolation', (event) => done(event.violatedDirective))"
    asked = "new Image().src = 'https://example.org/x.png'"
    assert browser.run(f"new Promise((done) => {{ {refused}; {asked}; }})") == "img-src"
