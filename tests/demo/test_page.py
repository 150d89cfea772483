"""The page in headless Chromium: choose, slide, paint, improve, keep, download; no request leaves this machine."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from headless import Browser
from PIL import Image

from pegasus_lightning.data.room import with_room
from pegasus_lightning.generate.pretrained import open_pretrained
from pegasus_lightning.utils.tensors import to_float, to_uint8

pytest.importorskip("gradio")
pytestmark = pytest.mark.slow

LARGE = "document.querySelector('#large figure')"
WAIT = 60.0  # seconds


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command in a folder of its own, and its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "tmp").mkdir()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONUNBUFFERED": "1"}
    environment["TMPDIR"] = str(tmp_path / "tmp")
    command = [sys.executable, "-m", "pegasus_lightning.demo", f"port={port}", "gpus=0"]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert f"http://127.0.0.1:{port}" in process.stdout.readline()
    yield process, f"http://127.0.0.1:{port}/"
    if process.poll() is None:
        process.kill()
    process.wait()


def wait_for(browser: Browser, condition: str) -> None:
    deadline = time.monotonic() + WAIT
    while not browser.run(condition):
        assert time.monotonic() < deadline, condition
        time.sleep(0.02)


def picture(browser: Browser) -> np.ndarray:
    """The large picture, (32, 32, 3)."""
    data = base64.b64decode(browser.run(f"{LARGE}.querySelector('img').src").partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(data)))[::12, ::12]


def click(browser: Browser, selector: str, index: int = 0) -> None:
    """Click, and wait until the large figure has changed."""
    button = f"document.querySelectorAll({json.dumps(selector)})[{index}]"
    browser.run(f"window.before = {LARGE}.innerHTML; {button}.click()")
    wait_for(browser, f"{LARGE}.innerHTML !== window.before")


def hand_over(browser: Browser, selector: str, file: Path) -> None:
    """Give a file to an <input>."""
    browser.call("DOM.enable")
    root = browser.call("DOM.getDocument")["root"]["nodeId"]
    place = browser.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
    browser.call("DOM.setFileInputFiles", nodeId=place, files=[str(file)])


def test_a_visit(browser: Browser, server: tuple[subprocess.Popen[str], str], tmp_path: Path) -> None:
    process, address = server
    pretrained = open_pretrained("pegasus")
    model = pretrained.run.model
    begun = len(browser.requests)
    browser.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path / "downloads"))
    browser.visit(address)
    for part in ("#large figure", "#paint canvas", "#row button", "#ratio input[type=range]"):
        wait_for(browser, f"!!document.querySelector('{part}')")

    # Choose parents and a ratio: the picture is that of the model, of the parents that the page names.
    for label, index in ((0, 5), (1, 2)):
        click(browser, f"#parents-{label} button[data-pick]", index)
    click(browser, "#row button[data-pick]", 3)
    browser.press("ArrowRight", "#ratio input[type=range]")
    wait_for(browser, f"{LARGE}.innerText.includes('ratio 0.31')")
    numbers = [
        int(browser.run(f"document.querySelector('#parents-{label} figcaption').innerText").split()[1])
        for label in (0, 1)
    ]
    with torch.no_grad():
        drawn = [
            (model.decode(means[number][None]) * 255).round().to(torch.uint8)
            for (means, _), number in zip(pretrained.codes, numbers, strict=True)
        ]
        codes = [model.encode(to_float(image)).mean for image in drawn]
        made = to_uint8(model.decode(model.mix(*codes, torch.tensor([0.31])))[0])
        halved = torch.zeros(1, 1, 32, 32, dtype=torch.bool)
        halved[..., :16] = True
        left = to_uint8(model.decode(model.mix(*codes, torch.tensor([0.31]), halved))[0])
    whole = picture(browser)
    assert np.abs(whole.astype(int) - made).max() <= 1

    # Wings in the left half alone.
    click(browser, "#paint button[data-do=left]")
    assert np.abs(picture(browser).astype(int) - left).max() <= 1
    assert (picture(browser) != whole).any()

    # Improve, keep, download.
    click(browser, "#improve")
    wait_for(browser, "document.querySelector('#status').innerText.includes('Step 20 of 20')")
    wait_for(browser, f"{LARGE}.innerText.includes('improved')")
    browser.run("document.querySelector('#keep').click()")
    wait_for(browser, "!!document.querySelector('#favourites figure')")
    folder = tmp_path / "pegasi" / "pegasus" / "favourites"
    (kept,) = folder.glob("*.png")
    assert (np.asarray(Image.open(kept))[::12, ::12] == picture(browser)).all()
    for kind in ("png", "json"):
        browser.run(f"{LARGE}.querySelector('a.{kind}').click()")
    files = [tmp_path / "downloads" / f"horse-bird-0.31.{kind}" for kind in ("png", "json")]
    deadline = time.monotonic() + WAIT
    while not all(file.exists() for file in files):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert (np.asarray(Image.open(files[0]))[::12, ::12] == picture(browser)).all()
    assert files[1].read_text() == kept.with_suffix(".json").read_text()

    # A picture of one's own, cropped to its middle.
    mine = Image.new("RGB", (64, 32), (255, 0, 0))
    mine.paste((0, 0, 255), (16, 0, 48, 32))
    mine.save(tmp_path / "mine.png")
    hand_over(browser, "#drop-1 input[type=file]", tmp_path / "mine.png")
    wait_for(browser, "document.querySelector('#parents-1 figcaption').innerText === 'mine.png'")
    wait_for(browser, f"!{LARGE}.innerText.includes('improved')")
    assert len([*(tmp_path / "tmp").glob("pegasus-demo-*")]) == 1
    assert not [*(tmp_path / "tmp").rglob("mine.png")]
    blue = torch.tensor([0.0, 0.0, 1.0])[None, :, None, None].expand(1, 3, 32, 32)
    with torch.no_grad():
        wanted = model.decode(model.mix(codes[0], model.encode(blue).mean, torch.tensor([0.31]), halved))
    assert np.abs(picture(browser).astype(int) - to_uint8(wanted[0])).max() <= 1

    # The recipe brings the improved picture back.
    hand_over(browser, "input[accept='.json']", files[1])
    wait_for(browser, f"{LARGE}.innerText.includes('improved')")
    assert (picture(browser) == np.asarray(Image.open(kept))[::12, ::12]).all()
    assert browser.run("document.querySelector('#status').innerText").strip() == ""
    assert "base64" not in browser.run("document.querySelector('#paint').innerText")
    wait_for(browser, "document.querySelector('#paint canvas').getContext('2d').getImageData(0, 0, 1, 1).data[2] > 127")
    corners = [
        browser.run(f"[...document.querySelector('#paint canvas').getContext('2d').getImageData({x}, 0, 1, 1).data]")
        for x in (0, 31)
    ]
    with torch.no_grad():
        ground = to_uint8(with_room(model.decode(codes[0]))[0]).astype(float)
    assert corners[0][:3] == pytest.approx(0.5 * ground[0, 0] + [0, 70, 127.5], abs=1.1)  # painted
    assert corners[1][:3] == pytest.approx(0.55 * ground[0, 31], abs=1.1)

    foreign = [url for url in browser.requests[begun:] if not url.startswith((address, "data:", "blob:", "about:"))]
    assert foreign == []
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=WAIT)
    assert (process.returncode, "Traceback" in err) == (130, False)


def test_what_is_done_while_a_mix_improves_stays(
    browser: Browser, server: tuple[subprocess.Popen[str], str], tmp_path: Path
) -> None:
    process, address = server
    browser.visit(address)
    for part in ("#large figure", "#parents-0 button[data-pick]", "#improve"):
        wait_for(browser, f"!!document.querySelector('{part}')")
    step = "document.querySelector('#status').innerText"
    sources = "[...document.querySelectorAll('#parents-0 button[data-pick] img')].map(image => image.src)"
    before = browser.run(sources)
    browser.run("document.querySelector('#improve').click()")
    wait_for(browser, f"/Step [1-9] of 20/.test({step})")
    browser.run("document.querySelector('#others-0').click(); document.querySelector('#keep').click()")
    wait_for(browser, "document.querySelectorAll('#favourites figure').length === 1")
    wait_for(browser, f"{sources}[2] !== {json.dumps(before[2])}")
    assert "Step 20" not in browser.run(step), "the favourite was to be kept while the mix improves"
    drawn = browser.run(sources)
    wait_for(browser, f"{step}.includes('Step 20 of 20')")
    browser.run("document.querySelector('#keep').click()")
    wait_for(browser, "document.querySelectorAll('#favourites figure').length === 2")
    click(browser, "#parents-0 button[data-pick]", 2)
    wait_for(browser, f"document.querySelector('#parents-0 figure img').src === {json.dumps(drawn[2])}")
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=WAIT)
    assert process.returncode == 128 + signal.SIGHUP
    assert not [*(tmp_path / "tmp").glob("pegasus-demo-*")]
