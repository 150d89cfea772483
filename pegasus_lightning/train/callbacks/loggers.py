"""The loggers of other tools behind the run's own: what each of them is sent.

They get the scalars of metrics.jsonl and the pictures, at the same batches. `loggers.json` in the run's folder keeps
the identity of the run there and what was sent. So a run that goes on does so there too, and sends only what is new:
what is trained again after a kill has the same figures. A logger that is new to the run gets the earlier figures first.
"""

from __future__ import annotations

import json
import logging
import os
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from pegasus_lightning.runs.folder import say
from pegasus_lightning.train.callbacks.remotes import REMOTES, Remote
from pegasus_lightning.utils.files import write_json
from pegasus_lightning.utils.foreign import MAX_INTEGER, MEGABYTE, Unreadable, read_json

FILE = "loggers.json"
BUFFER = 200  # entries; a tool with a buffer has stored what was sent before the last so many (W&B: before 32 KiB)

log = logging.getLogger(__name__)


class Remotes:
    """The chosen loggers of other tools. One that fails is left out with one sentence, and the training goes on.

    A tool with a buffer gets entries again that a kill may have lost: the same figures at the same batches.
    """

    def __init__(self, run: Path, kinds: Sequence[str]) -> None:
        self.run, self.kinds = run, kinds
        self._open: dict[str, Remote] = {}
        self._state: dict[str, dict[str, Any]] = {}  # of loggers.json; `sent`: the last batch that is stored, by tag
        self._sent: dict[str, dict[str, int]] = {}  # by kind
        self._earlier: dict[str, tuple[int, dict[str, int]]] = {}  # entries since, and what was sent before them

    def open(self, logged: Mapping[str, int]) -> None:
        """Begin, or go on, in each tool. `logged`: the last batch of each tag in the log that the last session left."""
        path = self.run / FILE
        self._state = _read(path) if os.path.lexists(path) else {}
        for kind, state in self._state.items():
            if state["live"] and not REMOTES[kind].buffered:
                state["sent"] |= {tag: max(batch, state["sent"].get(tag, 0)) for tag, batch in logged.items()}
            state["live"] = False
        for kind in self.kinds:
            state = self._state.setdefault(kind, {"id": "" if kind == "mlflow" else uuid.uuid4().hex[:8], "sent": {}})
            state["live"] = True
        if self._state:
            self._write()
        for kind in self.kinds:
            self._open[kind] = REMOTES[kind](self.run, self._state[kind]["id"])
            self._try(kind, self._begin, kind, self._open[kind])

    def _begin(self, kind: str, remote: Remote) -> None:
        remote.open()
        state = self._state[kind]
        if not remote.kept:
            state["sent"] = {}
        state["id"] = remote.identity
        self._sent[kind] = {**state["sent"]} if remote.buffered else state["sent"]
        self._earlier[kind] = 0, state["sent"]
        self._write()
        path = self.run / "metrics.jsonl"
        if path.exists():
            with open(path, encoding="utf-8") as file:
                for line in file:
                    metrics = json.loads(line)
                    self._send(kind, metrics, metrics.pop("batch"))

    def _send(self, kind: str, metrics: Mapping[str, float], batch: int) -> None:
        remote, sent = self._open[kind], self._sent[kind]
        new = {tag: value for tag, value in metrics.items() if batch > sent.get(tag, -1)}
        if not new:
            return
        remote.scalars(new, batch)
        sent.update(dict.fromkeys(new, batch))
        if remote.buffered:
            since, earlier = self._earlier[kind]
            self._earlier[kind] = since + 1, earlier
            if since + 1 == BUFFER:
                self._state[kind]["sent"], self._earlier[kind] = earlier, (0, {**sent})
                self._write()

    def _picture(self, kind: str, tag: str, picture: np.ndarray, batch: int) -> None:
        remote, sent = self._open[kind], self._sent[kind]
        if batch > sent.get(tag, -1):
            remote.picture(tag, picture, batch)
            sent[tag] = batch
            if not remote.buffered:
                self._write()  # metrics.jsonl does not tell of pictures

    def scalars(self, metrics: Mapping[str, float], batch: int) -> None:
        """Log scalars in all of them."""
        for kind in [*self._open]:
            self._try(kind, self._send, kind, metrics, batch)

    def picture(self, tag: str, picture: np.ndarray, batch: int) -> None:
        """Log a picture in all of them."""
        for kind in [*self._open]:
            self._try(kind, self._picture, kind, tag, picture, batch)

    def values(self, values: Mapping[str, Any]) -> None:
        """Log the settings in all of them."""
        for kind, remote in [*self._open.items()]:
            self._try(kind, remote.values, values)

    def close(self, *, done: bool) -> None:
        """End the session in all of them."""
        for kind, remote in [*self._open.items()]:
            self._try(kind, self._close, kind, remote, done)
        self._open = {}

    def _close(self, kind: str, remote: Remote, done: bool) -> None:
        remote.close(done=done)
        self._state[kind]["sent"] = self._sent[kind]
        self._write()

    def _try(self, kind: str, action: Callable[..., None], *arguments: Any) -> None:
        try:
            action(*arguments)
        except Exception as error:
            self._open.pop(kind, None)
            log.info("logger=%s:", kind, exc_info=True)
            first = (str(error).strip().splitlines() or [""])[0]
            say(
                f"logger={kind} failed ({type(error).__name__}: {first:.200}). The training goes on without it; when "
                "the run is continued, the figures that it lacks are sent there."
            )
            self._state[kind]["live"] = False
            with suppress(OSError):
                self._write()

    def _write(self) -> None:
        write_json(self.run / FILE, self._state)


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """Return what loggers.json says, without what it should not hold."""
    try:
        found = read_json(path, limit=MEGABYTE)
    except Unreadable as error:
        say(f"{error} The other loggers begin new runs.")
        return {}
    return {
        kind: {
            "id": state["id"],
            "sent": {
                str(tag): batch
                for tag, batch in state["sent"].items()
                if type(batch) is int and 0 <= batch < MAX_INTEGER
            },
            "live": state.get("live") is True,
        }
        for kind, state in found.items()
        if kind in REMOTES
        and isinstance(state, dict)
        and isinstance(state.get("id"), str)
        and re.fullmatch(r"[\w-]{0,64}", state["id"])
        and isinstance(state.get("sent"), dict)
    }
