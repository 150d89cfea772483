"""Logger of a run: `metrics.jsonl`, TensorBoard and others, all indexed by batches done."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from pegasus_lightning.runs.folder import EVENT_FILES, events_folder, say
from pegasus_lightning.train.callbacks.loggers import FILE, Remotes
from pegasus_lightning.train.callbacks.tensorboard import CLOSING, Layout, TensorBoard
from pegasus_lightning.utils.files import whole_file
from pegasus_lightning.utils.foreign import MAX_INTEGER, MEGABYTE, Unreadable, open_regular

MAX_LINE = MEGABYTE  # of metrics.jsonl


def clear(run: Path) -> None:
    """Remove what an attempt logged that ended before its first checkpoint."""
    for path in (run / "metrics.jsonl", run / FILE, *run.glob(EVENT_FILES)):
        path.unlink(missing_ok=True)
    shutil.rmtree(run / "tensorboard", ignore_errors=True)


class RunLogger(Logger):
    """Write scalars, pictures and texts of one run into its folder, and hand them to the loggers `kinds`.

    `metrics.jsonl` is always written. The final metrics are collected between `begin_closing` and `close_hparams` and
    written together, as one event file and one line of metrics.jsonl. Both are removed if the run is continued.

    `resumed_at`: batches done at the checkpoint from which the run continues; None for a new run. Later log entries
    belong to the lost part of the run and are removed. `logged_at`: batches done at the last entry before it, if known.
    """

    def __init__(
        self,
        folder: Path,
        resumed_at: int | None = None,
        logged_at: int | None = None,
        kinds: Sequence[str] = ("tensorboard",),
    ) -> None:
        super().__init__()
        self.folder, self.resumed_at, self.logged_at = folder, resumed_at, logged_at
        self._board: TensorBoard | None = None
        self._with_board = "tensorboard" in kinds
        self._others = Remotes(folder, [kind for kind in kinds if kind != "tensorboard"])
        self._closing: dict[str, float] | None = None
        self._opened = self._done = False

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def version(self) -> str:
        return ""

    @property
    def metrics_path(self) -> Path:
        """File with one JSON object a line: {"batch": batches done, "<tag>": value, ...}."""
        return self.folder / "metrics.jsonl"

    def _open(self) -> None:
        """Open the loggers at first use; take back what the lost part of a continued run logged."""
        if self._opened:
            return
        self._opened = True
        first = 0 if self.resumed_at is None else self.resumed_at + 1
        logged = {} if self.resumed_at is None else self._take_back(first)
        if self._with_board:
            self._board = TensorBoard(self.folder, first)
        self._others.open(logged)

    def _take_back(self, first: int) -> dict[str, int]:
        """Remove entries of `first` batches and later, and final metrics. Say what is damaged or lost, and go on.

        Return the last batch of each tag before.
        """
        damaged, reached = 0, 0
        logged: dict[str, int] = {}
        if os.path.lexists(self.metrics_path):
            try:
                with open_regular(self.metrics_path) as old, whole_file(self.metrics_path) as new:
                    for line in iter(lambda: old.readline(MAX_LINE), b""):
                        entry = _entry(line)
                        damaged += entry is None and line.endswith(b"\n")  # a kill may leave half a line at the end
                        if entry is None:
                            continue
                        batch = int(entry["batch"])
                        logged |= {tag: max(batch, logged.get(tag, 0)) for tag in entry}
                        if batch < first and b'"final/' not in line:
                            new.write(line)
                            reached = max(reached, batch)
            except Unreadable as error:
                say(f"{error} It is left out, and begun anew.")
                self.metrics_path.unlink()
        if damaged:
            lines = "line" if damaged == 1 else "lines"
            say(f"{damaged} damaged {lines} of {self.metrics_path} {'was' if damaged == 1 else 'were'} left out.")
        if reached < (self.logged_at or 0):
            say(f"{self.metrics_path} lacks the figures of batches {reached + 1} to {self.logged_at}: they are lost.")
        events = events_folder(self.folder)
        if self._with_board and self.logged_at and not any(events.glob(EVENT_FILES)):
            say(f"The curves of TensorBoard in {events} up to batch {self.logged_at} are lost.")
        for closing in events.glob(f"{EVENT_FILES}{CLOSING}"):
            closing.unlink()
        return logged

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Log scalars at `step` batches done, without the `epoch` that Lightning adds."""
        metrics = {name: value for name, value in metrics.items() if name != "epoch"}
        if not metrics:
            return
        if self._closing is not None:
            self._closing |= metrics
            return
        self._open()
        if self._board is not None:
            self._board.scalars(metrics, step)
        self._append(metrics, step)

    def _append(self, metrics: dict[str, float], step: int | None) -> None:
        with open(self.metrics_path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"batch": step} | metrics) + "\n")
        self._others.scalars(metrics, step or 0)

    @rank_zero_only
    def log_picture(self, tag: str, picture: np.ndarray, step: int) -> None:
        """Log a picture, uint8 (H, W, 3)."""
        self._open()
        if self._board is not None:
            self._board.picture(tag, picture, step)
        self._others.picture(tag, picture, step)

    @rank_zero_only
    def log_text(self, tag: str, markdown: str, step: int) -> None:
        """Log a text in TensorBoard only."""
        self._open()
        if self._board is not None:
            self._board.text(tag, markdown, step)

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Ignore Lightning's call, which precedes the metrics; see `open_hparams`."""

    @rank_zero_only
    def open_hparams(
        self, values: dict[str, Any], metrics: list[str], first: Collection[str] = (), layout: Layout | None = None
    ) -> None:
        """Log the settings. TensorBoard gets them as a row of HParams, with the names of the final metrics.

        `first`: the columns to show first; `layout`: the charts of Custom Scalars.
        """
        self._open()
        if self._board is not None:
            self._board.begin(values, first, metrics, layout or {})
        self._others.values(values)

    @rank_zero_only
    def begin_closing(self) -> None:
        """Hold back scalars until `close_hparams`."""
        self._closing = {}

    @rank_zero_only
    def close_hparams(self, metrics: dict[str, float], step: int) -> None:
        """Write the scalars held back and the metrics of the HParams row, and mark the run as done."""
        held_back, self._closing = self._closing or {}, None
        self._open()
        if self._board is not None:
            self._board.end(held_back | metrics, step)
        self._append(held_back | metrics, step)
        self._done = True

    @rank_zero_only
    def save(self) -> None:
        if self._board is not None:
            self._board.writer.flush()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self.save()

    @rank_zero_only
    def close(self) -> None:
        """Close the loggers."""
        if self._board is not None:
            self._board.writer.close()
        self._others.close(done=self._done)


def _entry(line: bytes) -> dict[str, float] | None:
    """Return a line of metrics.jsonl; None for one that is damaged."""
    try:
        found = json.loads(line)
        batch, values = found["batch"], found.values()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    whole = line.endswith(b"\n") and type(batch) is int and 0 <= batch < MAX_INTEGER
    return found if whole and all(type(value) in (int, float) for value in values) else None
