"""The one door for files that others may have made: a run's folder, an export, a scorecard, a picture.

Nothing in such a file is believed. It must be a regular file (a FIFO would wait for ever) of a stated size, and its
content is checked before anything works with it. Whatever is wrong raises `Unreadable`, one sentence that names it.
"""

from __future__ import annotations

import json
import math
import os
import stat
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from pegasus_lightning.utils.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

MEGABYTE = 1 << 20
MAX_BYTES = 32 * MEGABYTE  # of a JSON file
MAX_YAML_BYTES = MEGABYTE  # a configuration has a few thousand bytes
MAX_DEPTH = 40  # of lists and mappings in each other
MAX_ENTRIES = 2_000_000  # YAML's aliases can make very many of a few bytes
MAX_INTEGER = 2**63  # a larger one cannot be turned into a float or a tensor
MAX_PIXELS, MAX_PICTURE_BYTES = 50_000_000, 256 * MEGABYTE
MAX_ARRAY_BYTES = 320 * MEGABYTE  # 100,000 pictures
MAX_HEADER_BYTES = 8 * MEGABYTE  # of a safetensors file: about 50,000 tensors


class Unreadable(UserError):
    """A file that cannot be used. `reason` is the part of the message that follows the file's name."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path} {reason}.")
        self.path, self.reason = path, reason


def open_regular(path: Path, limit: float = math.inf) -> BinaryIO:
    """Open a regular file of at most `limit` bytes for reading. Raise Unreadable for anything else.

    Unlike `open`, it never waits for a writer.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise Unreadable(path, f"cannot be opened ({getattr(error, 'strerror', None) or error})") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise Unreadable(path, "is not a regular file")
        if status.st_size > limit:
            raise Unreadable(path, f"is too large: more than {limit / MEGABYTE:g} MB")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_bytes(path: Path, limit: int = MAX_BYTES) -> bytes:
    """Return the content of a regular file of at most `limit` bytes. Raise Unreadable."""
    with open_regular(path, limit) as file:
        try:
            return file.read(limit + 1)
        except OSError as error:
            raise Unreadable(path, f"cannot be read ({error.strerror})") from error


def read_text(path: Path, limit: int = MAX_BYTES) -> str:
    """Return the content of a text file in UTF-8. Raise Unreadable."""
    try:
        return read_bytes(path, limit).decode()
    except UnicodeDecodeError as error:
        raise Unreadable(path, "is not text in UTF-8") from error


def read_json(path: Path, kind: type[Any] = dict, limit: int = MAX_BYTES) -> Any:
    """Return the content of a JSON file, a `kind` on top. Raise Unreadable."""
    return check_plain(path, _load_json(path, read_text(path, limit)), kind)


def parse_json(path: Path, text: str, kind: type[Any] = dict) -> Any:
    """Return the value of a JSON text that comes from the file `path`, such as a line of it. Raise Unreadable."""
    return check_plain(path, _load_json(path, text), kind)


def read_yaml(path: Path, kind: type[Any] = dict, limit: int = MAX_YAML_BYTES, entries: int = MAX_ENTRIES) -> Any:
    """Return the content of a YAML file without interpolation: `${oc.env:HOME}` is refused. Raise Unreadable.

    Numbers are YAML 1.1's: 1.0e-3 is one, and 1e-3 is text. `entries` is the most keys and values.
    """
    import yaml  # type: ignore[import-untyped]  # slow to import

    text = read_text(path, limit)
    if "<<" in text or "!!merge" in text:  # some releases of PyYAML merge without an end
        raise Unreadable(path, "holds a merge key (<<), which the file of a run never does")
    try:
        content = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(text).get_single_data()
    except Exception as error:  # a tag that does not fit, such as !!bool x, may raise any exception
        raise Unreadable(path, f"is not YAML ({type(error).__name__})") from error
    return check_plain(path, content, kind, interpolation=False, most=entries)


def open_picture(
    path: Path, formats: Sequence[str], pixels: int = MAX_PIXELS, limit: float = MAX_PICTURE_BYTES
) -> Image.Image:
    """Return an open picture, not yet decoded, of one of Pillow's `formats` and at most so many pixels and bytes.

    Raise Unreadable. Other formats are not tried: Pillow calls another program for some.
    """
    from PIL import Image  # slow to import

    file = open_regular(path, limit)
    try:
        picture = Image.open(file, formats=tuple(formats))
        if picture.width * picture.height > pixels:
            raise Unreadable(path, f"is too large, above {pixels // 1_000_000} megapixels")
    except Unreadable:
        file.close()
        raise
    except Exception as error:  # Pillow may raise any exception for a broken file
        file.close()
        raise Unreadable(path, f"is not a picture that can be read ({', '.join(formats)})") from error
    return picture


def inside(path: Path, folder: Path) -> Path:
    """Return `path`. Raise Unreadable if a link leads out of `folder`."""
    if not is_inside(path, folder):
        raise Unreadable(path, "is a link that leads out of the folder")
    return path


def read_npz(path: Path, name: str, limit: int = MAX_ARRAY_BYTES) -> np.ndarray:
    """Return one array of an .npz file, without objects and of at most `limit` bytes. Raise Unreadable."""
    import numpy as np  # slow to import

    with open_regular(path) as file:
        try:
            with zipfile.ZipFile(file) as archive, archive.open(f"{name}.npy") as stored:
                if np.lib.format.read_magic(stored) != (1, 0):
                    raise ValueError("a long header")
                shape, fortran, dtype = np.lib.format.read_array_header_1_0(stored)
                count = math.prod(shape)
                if dtype.hasobject or count * dtype.itemsize > limit or min((0, *shape)) < 0:
                    raise ValueError(f"{dtype} {shape}")
                data = stored.read(count * dtype.itemsize)
                return np.frombuffer(bytearray(data), dtype).reshape(shape, order="F" if fortran else "C")
        except Exception as error:  # NumPy and zipfile may raise any for a broken file
            reason = f"has no array `{name}` that can be read, of at most {limit // MEGABYTE} MB"
            raise Unreadable(path, f"{reason} ({type(error).__name__})") from error


def check_safetensors(path: Path) -> None:
    """Raise Unreadable unless a file is a regular one with a header of a reasonable size.

    The library that reads it checks that the tensors fill the file.
    """
    with open_regular(path) as file:
        length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= MAX_HEADER_BYTES:
        raise Unreadable(path, f"cannot be read as safetensors (a header of {length} bytes)")


def is_inside(path: Path, folder: Path) -> bool:
    """Return whether `path`, after links are followed, lies in `folder`, after links are followed too."""
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # a loop of links
        return False


def _load_json(path: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Unreadable(path, "is not JSON" if isinstance(error, ValueError) else "is nested too deeply") from error


def check_plain(
    path: Path,
    content: Any,
    kind: type[Any] = dict,
    *,
    interpolation: bool = True,
    leaves: tuple[type[Any], ...] = (),
    most: int = MAX_ENTRIES,
) -> Any:
    """Return the content of a file if it is a `kind` of plain values, neither deep nor absurdly large.

    `leaves` are types that are allowed beside plain ones; tuples among them are looked into. `most` is the most keys
    and values. Raise Unreadable.
    """
    if not isinstance(content, kind):
        raise Unreadable(path, f"holds a {type(content).__name__}, not a {kind.__name__}")
    level, entries = [content], 0
    for _ in range(MAX_DEPTH):
        entries += len(level)
        if entries > most:
            raise Unreadable(path, f"holds more than {most} values")
        below: list[Any] = []
        for value in level:
            if value is None or type(value) is float or (interpolation and type(value) is str):
                continue
            if isinstance(value, dict):
                below += value.keys()
                below += value.values()
            elif isinstance(value, list) or (isinstance(value, tuple) and tuple in leaves):
                below += value
            elif isinstance(value, int) and abs(value) >= MAX_INTEGER:
                raise Unreadable(path, "holds a number of too many digits")
            elif isinstance(value, str) and "${" in value and not interpolation:
                raise Unreadable(path, "holds an interpolation (${...}), which the file of a run never does")
            elif value is not None and not isinstance(value, (str, int, float, *leaves)):
                raise Unreadable(path, f"holds a {type(value).__name__}")
            if len(below) > most:
                raise Unreadable(path, f"holds more than {most} values")
        if not below:
            return content
        level = below
    raise Unreadable(path, "is nested too deeply")
