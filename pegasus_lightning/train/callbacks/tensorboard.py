"""TensorBoard's files of a run: scalars, pictures and texts, its row in HParams, and the charts of Custom Scalars."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams as hparams_summaries

from pegasus_lightning.runs.folder import EVENT_FILES, events_folder

CLOSING = ".final"  # suffix of the event file with the final metrics
# TensorBoard sorts groups and tags by name, digits and capitals first: these are on its first screen.
MAIN = "1-main"
FIRST = {
    "loss/kl": "KL",
    "loss/feature": "Loss_feature",
    "loss/reconstruction": "Loss_reconstruction",
    "validation/psnr": "PSNR",
}
# The columns of HParams are sorted by name, capitals first.
COLUMNS = {"model.name": "Model", "seed": "Seed"}
Layout = dict[str, dict[str, list[Any]]]


def shown(tag: str) -> str:
    """Return a tag as TensorBoard shows it: the main figures are in the group `1-main`."""
    group, _, name = tag.partition("/")
    first = FIRST.get(tag) or (f"critic_{name}" if group == "critic" else None)
    return f"{MAIN}/{first}" if first else tag


def charts(*, critic: bool, posterior: bool) -> Layout:
    """Return the charts of Custom Scalars for a model with or without a critic and a posterior.

    Lines are chosen by regular expressions of tags as shown. The charts of all variants have the same names, so that
    TensorBoard shows several runs in one.
    """
    first = {"PSNR of the validation images": [f"{MAIN}/PSNR"], "Loss terms": [f"{MAIN}/Loss_", f"{MAIN}/KL", "loss/"]}
    second: dict[str, list[str]] = {}
    if posterior:
        first["KL in training and validation"] = [f"{MAIN}/KL", "validation/kl"]
        second["Active dimensions"] = ["validation/active_dimensions"]
    if critic:
        first["C(real), C(fake) and other outputs of the critic"] = [f"{MAIN}/critic_"]
        first["Loss terms of the critic"] = ["critic_loss/", "critic_penalty/"]
        second["C(real) and C(fake), validation images"] = ["validation/critic_"]
        second["Critic skill"] = ["health/critic_skill"]
    second["Variety"] = ["health/variety"]
    second["Gradient norms"] = ["gradient_norm/"]
    return {
        title: {chart: ["Multiline", tags] for chart, tags in section.items()}
        for title, section in {"Training": first, "Health": second}.items()
    }


class TensorBoard:
    """The event files of one run.

    They lie in the run's folder, so that TensorBoard gives the run its folder's name. A run of 0.1 has them in a folder
    `tensorboard`, under the tags of metrics.jsonl, and keeps both.

    `first`: the first batch that may be logged; what earlier sessions logged at it and later is taken back.
    """

    def __init__(self, run: Path, first: int) -> None:
        self.folder = events_folder(run)
        self._grouped = self.folder == run
        self._is_new = not any(self.folder.glob(EVENT_FILES))
        for closing in self.folder.glob(f"{EVENT_FILES}{CLOSING}"):
            closing.unlink()
        # TensorBoard purges at the second and later start events only, so the first start is marked too.
        self.writer = SummaryWriter(str(self.folder), purge_step=first)

    def tag(self, tag: str) -> str:
        """Return a tag as this run's files have it."""
        return shown(tag) if self._grouped else tag

    def scalars(self, metrics: Mapping[str, float], step: int | None) -> None:
        """Log scalars at `step` batches done."""
        for name, value in metrics.items():
            self.writer.add_scalar(self.tag(name), value, step)

    def picture(self, tag: str, picture: np.ndarray, step: int) -> None:
        """Log a picture, uint8 (H, W, 3)."""
        self.writer.add_image(tag, picture, step, dataformats="HWC")

    def text(self, tag: str, markdown: str, step: int) -> None:
        """Log a text."""
        self.writer.add_text(tag, markdown, step)

    def begin(self, values: Mapping[str, Any], first: Collection[str], metrics: list[str], layout: Layout) -> None:
        """Write the run's row in HParams and its charts, unless an earlier session did.

        TensorBoard shows the columns in `first` before the others.
        """
        if not self._is_new:
            return
        plain = {
            COLUMNS.get(key, key): value if isinstance(value, (int, float)) and key != "seed" else str(value)
            for key, value in values.items()
        }
        experiment, session_start, _ = hparams_summaries(plain, dict.fromkeys(metrics, 0.0))
        plugin = experiment.value[0].metadata.plugin_data
        content = HParamsPluginData.FromString(plugin.content)
        for column in content.experiment.hparam_infos:
            column.differs = column.name in {COLUMNS.get(key, key) for key in first}
        plugin.content = content.SerializeToString()
        file_writer: Any = self.writer.file_writer
        file_writer.add_summary(experiment)
        file_writer.add_summary(session_start)
        self.writer.add_custom_scalars(layout)
        self.writer.flush()

    def end(self, metrics: Mapping[str, float], step: int) -> None:
        """Write the last scalars into a file of their own, and mark the run as done."""
        self.writer.flush()
        with SummaryWriter(str(self.folder), filename_suffix=CLOSING) as closing:
            for name, value in metrics.items():
                closing.add_scalar(self.tag(name), value, step)
            file_writer: Any = closing.file_writer
            file_writer.add_summary(hparams_summaries({}, {})[2])
