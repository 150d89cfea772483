"""The images that a run was trained on: its status keeps their number and a SHA-256, and another set is never mixed in.

Only images in folders can change under a run; the other sources are decided by the configuration, or checked by hash.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pegasus_lightning.data.module import image_contents, images_record
from pegasus_lightning.runs.folder import read_status
from pegasus_lightning.utils.errors import UserError


def recorded_images(folder: Path) -> dict[str, Any] | None:
    """Return the record of a run's training images, see `ImageDataModule.record`; None if it has none."""
    record = (read_status(folder) or {}).get("images")
    return record if isinstance(record, dict) else None


def check_images(folder: Path, data: Any) -> None:
    """Raise UserError if the run in `folder` was trained on other images than `data` (a `DataConfig`) names now.

    Images that are missing or cannot be read count as unchanged here: whoever loads them reports that.
    """
    record = recorded_images(folder)
    if record is None:
        return
    try:
        contents = image_contents(data, "train")
    except UserError:
        return
    now = None if contents is None else images_record(contents)
    if now is not None and now != {key: record.get(key) for key in now}:
        raise UserError(
            f"{folder} was trained on {record.get('count')} images, and {data.root} now holds another set of "
            f"{now['count']}. Put the former images back, or train a new run: add run_name=NAME."
        )
