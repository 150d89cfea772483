"""The images that a run was trained on. Another set of them is never mixed in.

Only images in folders can change under a run: checkpoints and the status keep their number and a SHA-256. The other
sources are decided by the configuration, or checked by hash.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pegasus_lightning.data.module import ImageDataModule, image_contents, images_record
from pegasus_lightning.runs.checkpoints import read_checkpoint
from pegasus_lightning.runs.folder import read_status
from pegasus_lightning.utils.errors import UserError


def recorded_images(folder: Path, checkpoint: Path | None) -> dict[str, Any] | None:
    """Return the record of a run's training images, see `ImageDataModule.record`; None if it has none.

    It comes from the checkpoint that the run is continued from, or else from its status.
    """
    kept = {} if checkpoint is None else read_checkpoint(checkpoint).get(ImageDataModule.__name__, {})
    record = kept.get("images") or (read_status(folder) or {}).get("images")
    return record if isinstance(record, dict) else None


def images_now(data: Any) -> dict[str, Any] | None:
    """Return the record of the training images that `data` (a `DataConfig`) names now; None if it decides them.

    It is None too if images are missing or cannot be read: whoever loads them reports that.
    """
    try:
        contents = image_contents(data, "train")
    except UserError:
        return None
    return None if contents is None else images_record(contents)


def check_images(folder: Path, data: Any, record: dict[str, Any] | None, now: dict[str, Any] | None) -> None:
    """Raise UserError if a run's record of its images is another than that of the images of `data` now."""
    if record is not None and now is not None and now != {key: record.get(key) for key in now}:
        raise UserError(
            f"{folder} was trained on {record.get('count')} images, and {data.root} now holds another set of "
            f"{now['count']}. Put the former images back, or train a new run: add run_name=NAME."
        )
