"""A uint8 array kept on disk between runs: checked when read, whole when written, never unpickled.

The file is a mark, the key it was built for, the SHA-256 of the pixels, and the pixels. A cache may be
lost at any time: whatever is wrong with it costs a rebuild, never a run.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable
from math import prod
from pathlib import Path

import numpy as np

from pegasus_lightning.utils.files import whole_file

MARK = b"PGSCACH1"
KEY_BYTES = 32
HEADER_BYTES = len(MARK) + 2 * KEY_BYTES

logger = logging.getLogger(__name__)


def default_folder() -> Path:
    """`pegasus_lightning` in the user's cache folder: XDG_CACHE_HOME, or else ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification: a relative path in the variable is to be ignored.
    return (Path(base) if Path(base).is_absolute() else Path("~/.cache")) / "pegasus_lightning"


def load_or_build(path: Path, key: bytes, shape: tuple[int, ...], build: Callable[[], np.ndarray]) -> np.ndarray:
    """The uint8 array of `shape` kept at `path` for `key` (32 bytes), or else `build()`, which is then kept."""
    try:
        path = path.expanduser()
    except RuntimeError:  # a container's user without a home
        logger.warning("There is no home folder to cache images in: set XDG_CACHE_HOME to a folder.")
        return build()
    try:
        kept = _read(path, key, shape)
    except OSError as error:
        logger.warning("The image cache %s cannot be read (%s).", path, error)
        kept = None
    if kept is not None:
        return kept
    array = build()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.ascontiguousarray(array).data.cast("B")
        with whole_file(path) as file:
            file.write(MARK + key + hashlib.sha256(pixels).digest())
            file.write(pixels)
    except OSError as error:
        logger.warning("The images cannot be cached (%s): the next run decodes them again.", error)
    return array


def _read(path: Path, key: bytes, shape: tuple[int, ...]) -> np.ndarray | None:
    """What is kept, or None where there is nothing, something older, or something broken (which is said)."""
    if not path.exists():
        return None
    pixels = bytearray(prod(shape))
    with open(path, "rb") as file:
        header = file.read(HEADER_BYTES)
        mark, kept_key, digest = header[: len(MARK)], header[len(MARK) : -KEY_BYTES], header[-KEY_BYTES:]
        if mark == MARK and len(header) == HEADER_BYTES and kept_key != key:
            logger.info("The images have changed since they were cached: decoding them again.")
            return None
        whole = file.readinto(pixels) == len(pixels) and not file.read(1)
    if mark != MARK or not whole or hashlib.sha256(pixels).digest() != digest:
        logger.warning("The image cache %s is corrupt: decoding the images again.", path)
        return None
    return np.frombuffer(pixels, dtype=np.uint8).reshape(shape)
