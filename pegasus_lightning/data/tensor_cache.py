"""A cache of uint8 arrays on disk, as safetensors files that are checked when read and written atomically.

A file's metadata hold the key that it was built for and the SHA-256 of the pixels. A cache may be lost at any time:
a missing or broken file costs a rebuild, never a run.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from pegasus_lightning.utils.errors import UserError
from pegasus_lightning.utils.files import whole_file
from pegasus_lightning.utils.foreign import check_safetensors

logger = logging.getLogger(__name__)


def default_folder() -> Path:
    """Return `pegasus_lightning` in the user's cache folder: XDG_CACHE_HOME, or else ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification: a relative path in the variable is to be ignored.
    return (Path(base) if Path(base).is_absolute() else Path("~/.cache")) / "pegasus_lightning"


def load_or_build(path: Path, key: bytes, shape: tuple[int, ...], build: Callable[[], np.ndarray]) -> np.ndarray:
    """Return the uint8 array of `shape` that is cached at `path` for `key`, or else `build()`, which is then cached."""
    try:
        path = path.expanduser()
    except RuntimeError:  # a container's user without a home
        logger.warning("There is no home folder to cache images in: set XDG_CACHE_HOME to a folder.")
        return build()
    cached = _read(path, key, shape)
    if cached is not None:
        return cached
    array = np.ascontiguousarray(build())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as file:
            save_file({"images": array}, file.name, metadata={"key": key.hex(), "sha256": _sha256(array)})
    except OSError as error:
        logger.warning("The images cannot be cached (%s): the next run decodes them again.", error)
    return array


def _sha256(array: np.ndarray) -> str:
    return hashlib.sha256(array.data.cast("B")).hexdigest()


def _read(path: Path, key: bytes, shape: tuple[int, ...]) -> np.ndarray | None:
    """Return the cached array; None if there is none, one for another key, or a broken one, which is logged."""
    if not path.exists():
        return None
    try:
        check_safetensors(path)
        with safe_open(path, "np") as file:
            metadata = file.metadata() or {}
            if metadata.get("key") != key.hex():
                logger.info("The images have changed since they were cached: decoding them again.")
                return None
            if file.get_slice("images").get_shape() != [*shape]:
                raise ValueError("images of another shape")
            array: np.ndarray = file.get_tensor("images")
    except (OSError, SafetensorError, UserError, ValueError, TypeError) as error:
        logger.warning("The image cache %s cannot be read (%s): decoding the images again.", path, error)
        return None
    if array.dtype != np.uint8 or array.shape != shape or _sha256(array) != metadata.get("sha256"):
        logger.warning("The image cache %s is corrupt: decoding the images again.", path)
        return None
    return array
