"""Headless Chromium for tests of pages: key presses, pixels, requests."""

from __future__ import annotations

import base64
import io
import json
import os
import select
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
CHROMIUM = next((path for path in map(shutil.which, NAMES) if path), None)
MISSING = f"no browser on the PATH: none of {', '.join(NAMES)}"
KEYS = {"ArrowRight": 39, "ArrowLeft": 37, "Home": 36, "End": 35, "Enter": 13, " ": 32, "Tab": 9, "Backspace": 8}


class Browser:
    """Headless Chromium, with no host but 127.0.0.1, over its DevTools pipe: null-ended JSON on descriptors 3 and 4."""

    def __init__(self, profile: Path) -> None:
        (read_commands, self._write), (self._read, write_answers) = os.pipe(), os.pipe()
        start = "import os, sys; os.dup2(int(sys.argv[1]), 13); os.dup2(int(sys.argv[2]), 14)"
        start += "; os.dup2(13, 3); os.dup2(14, 4); os.execv(sys.argv[3], sys.argv[3:])"
        switches = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]
        switches += ["--remote-debugging-pipe", f"--user-data-dir={profile}"]
        switches += ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
        self._process = subprocess.Popen(
            [sys.executable, "-c", start, str(read_commands), str(write_answers), str(CHROMIUM), *switches],
            pass_fds=(read_commands, write_answers),
            stderr=subprocess.DEVNULL,
        )
        os.close(read_commands)
        os.close(write_answers)
        self._buffer, self._number, self._session = b"", 0, ""
        self.requests: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime"):
            self.call(f"{domain}.enable")

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            if not select.select([self._read], [], [], 60)[0]:
                raise TimeoutError("the browser says nothing")
            part = os.read(self._read, 1 << 20)
            if not part:
                raise EOFError("the browser has ended")
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        content = json.loads(message)
        if content.get("method") == "Network.requestWillBeSent":
            self.requests.append(content["params"]["request"]["url"])
        return content

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._message()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def open(self, path: Path, width: int = 1100) -> None:
        self.visit(path.as_uri(), width)

    def visit(self, url: str, width: int = 1100) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self.call("Page.navigate", url=url)
        while self._message().get("method") != "Page.loadEventFired":
            pass

    def reload(self) -> None:
        self.call("Page.reload")
        while self._message().get("method") != "Page.loadEventFired":
            pass

    def run(self, script: str) -> Any:
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press(self, key: str, element: str | None = None) -> None:
        """Press a key on the focused element, or on the first that matches a selector."""
        if element is not None:
            self.run(f"document.querySelector({json.dumps(element)}).focus()")
        code = KEYS.get(key, ord(key[0].upper()))
        what = {"key": key, "windowsVirtualKeyCode": code, "text": {"Enter": "\r", " ": " "}.get(key, "")}
        self.call("Input.dispatchKeyEvent", type="keyDown", **what)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    def colour(self, element: str, index: int = 0) -> list[int]:
        """Return the screen colour at the centre of the index-th element that matches a selector."""
        place = f"document.querySelectorAll({json.dumps(element)})[{index}]"
        self.run(f"{place}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
        x, y = self.run(
            f"(() => {{ const r = {place}.getBoundingClientRect();"
            " return [r.x + r.width / 2 + scrollX, r.y + r.height / 2 + scrollY]; })()"
        )
        clip = {"x": x - 2, "y": y - 2, "width": 4, "height": 4, "scale": 1}
        shot = self.call("Page.captureScreenshot", format="png", clip=clip)["data"]
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(shot))).convert("RGB"))[1, 1].tolist()

    def close(self) -> None:
        os.close(self._write)  # ends the process
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._read)
