"""Logger of a run: TensorBoard and `metrics.jsonl`, both indexed by batches done."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams as hparams_summaries

from pegasus_lightning.runs.folder import say
from pegasus_lightning.utils.files import whole_file
from pegasus_lightning.utils.foreign import MAX_INTEGER, MEGABYTE, Unreadable, open_regular

CLOSING = ".final"  # suffix of the event file with the final metrics
MAX_LINE = MEGABYTE  # of metrics.jsonl


class RunLogger(Logger):
    """Write scalars, pictures and texts of one run into its folder.

    The final metrics are collected between `begin_closing` and `close_hparams` and written together, as one event file
    and one line of metrics.jsonl. Both are removed if the run is continued.

    `resumed_at`: batches done at the checkpoint from which the run continues; None for a new run. Later log entries
    belong to the lost part of the run and are removed. `logged_at`: batches done at the last entry before it, if known.
    """

    def __init__(self, folder: Path, resumed_at: int | None = None, logged_at: int | None = None) -> None:
        super().__init__()
        self.folder, self.resumed_at, self.logged_at = folder, resumed_at, logged_at
        self._writer: SummaryWriter | None = None
        self._closing: dict[str, float] | None = None

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

    @property
    def writer(self) -> SummaryWriter:
        """TensorBoard writer, opened at first use."""
        if self._writer is None:
            # TensorBoard purges at the second and later start events only, so the first start is marked too.
            first = 0 if self.resumed_at is None else self.resumed_at + 1
            if self.resumed_at is not None:
                self._take_back(first)
            self._writer = SummaryWriter(str(self.folder / "tensorboard"), purge_step=first)
        return self._writer

    def _take_back(self, first: int) -> None:
        """Remove entries of `first` batches and later, and final metrics. Say what is damaged or lost, and go on."""
        damaged, reached = 0, 0
        if os.path.lexists(self.metrics_path):
            try:
                with open_regular(self.metrics_path) as old, whole_file(self.metrics_path) as new:
                    for line in iter(lambda: old.readline(MAX_LINE), b""):
                        batch = _batch_of(line)
                        damaged += batch is None and line.endswith(b"\n")  # a kill may leave half a line at the end
                        if batch is not None and batch < first and b'"final/' not in line:
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
        if self.logged_at and not any((self.folder / "tensorboard").glob("events.out.tfevents.*")):
            say(f"The curves in {self.folder / 'tensorboard'} up to batch {self.logged_at} are lost.")
        for closing in (self.folder / "tensorboard").glob(f"*{CLOSING}"):
            closing.unlink()

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Log scalars at `step` batches done, without the `epoch` that Lightning adds."""
        metrics = {name: value for name, value in metrics.items() if name != "epoch"}
        if not metrics:
            return
        if self._closing is not None:
            self._closing |= metrics
            return
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, step)
        self._append(metrics, step)

    def _append(self, metrics: dict[str, float], step: int | None) -> None:
        with open(self.metrics_path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"batch": step} | metrics) + "\n")

    @rank_zero_only
    def log_picture(self, tag: str, picture: np.ndarray, step: int) -> None:
        """Log a picture, uint8 (H, W, 3)."""
        self.writer.add_image(tag, picture, step, dataformats="HWC")

    @rank_zero_only
    def log_text(self, tag: str, markdown: str, step: int) -> None:
        """Log a text in TensorBoard only."""
        self.writer.add_text(tag, markdown, step)

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Ignore Lightning's call, which precedes the metrics; see `open_hparams`."""

    @rank_zero_only
    def open_hparams(self, values: dict[str, Any], metrics: list[str]) -> None:
        """Write the run's row in TensorBoard's HParams tab: `values`, and the names of the final metrics."""
        if self.resumed_at is not None:
            return  # the first start of the run wrote the row
        shown = {key: value if isinstance(value, (bool, int, float)) else str(value) for key, value in values.items()}
        experiment, session_start, _ = hparams_summaries(shown, dict.fromkeys(metrics, 0.0))
        file_writer: Any = self.writer.file_writer
        file_writer.add_summary(experiment)
        file_writer.add_summary(session_start)
        self.writer.flush()

    @rank_zero_only
    def begin_closing(self) -> None:
        """Hold back scalars until `close_hparams`."""
        self._closing = {}

    @rank_zero_only
    def close_hparams(self, metrics: dict[str, float], step: int) -> None:
        """Write the scalars held back and the metrics of the HParams row, and mark the run as done."""
        held_back, self._closing = self._closing or {}, None
        self.writer.flush()
        with SummaryWriter(str(self.folder / "tensorboard"), filename_suffix=CLOSING) as closing:
            for name, value in (held_back | metrics).items():
                closing.add_scalar(name, value, step)
            file_writer: Any = closing.file_writer
            file_writer.add_summary(hparams_summaries({}, {})[2])
        self._append(held_back | metrics, step)

    @rank_zero_only
    def save(self) -> None:
        if self._writer is not None:
            self._writer.flush()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self.save()

    @rank_zero_only
    def close(self) -> None:
        """Close the writer."""
        if self._writer is not None:
            self._writer.close()


def _batch_of(line: bytes) -> int | None:
    """Return the batch of a line of metrics.jsonl; None for a line that is damaged."""
    try:
        found = json.loads(line)
        batch, values = found["batch"], found.values()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    whole = line.endswith(b"\n") and type(batch) is int and 0 <= batch < MAX_INTEGER
    return batch if whole and all(type(value) in (int, float) for value in values) else None
