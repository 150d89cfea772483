"""Atomic writes of files and folders, hashes, and deterministic safetensors headers."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Open `path` for an atomic write.

    The bytes go to a temporary file in the same folder (a rename across file systems is not atomic), are flushed to
    disk, and the file is then renamed. A kill at any moment leaves the old or the new file. An error, such as a full
    disk, leaves the old file and no temporary file.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write `path` atomically: `write` receives the open binary file."""
    with whole_file(path) as file:
        write(file)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that replaces `path` once it is complete and flushed to disk.

    The temporary folder lies beside `path`, and an error leaves `path` unchanged. An existing folder is replaced by two
    renames; a kill between them leaves the old folder as `.<name>.<token>.old`. Raise FileExistsError if `path` is
    something other than a folder.
    """
    if path.is_symlink() or path.is_file():
        raise FileExistsError(f"{path} is not a folder")
    token = secrets.token_hex(4)
    staged, old = path.with_name(f".{path.name}.{token}.tmp"), path.with_name(f".{path.name}.{token}.old")
    staged.mkdir(parents=True)
    try:
        yield staged
        for entry in staged.rglob("*"):
            sync_folder(entry) if entry.is_dir() else _sync(entry)
        sync_folder(staged)
        if path.exists():
            os.rename(path, old)
        os.rename(staged, path)
    finally:
        if old.exists() and not path.exists():  # the second rename failed
            os.rename(old, path)
        for leftover in (staged, old):
            shutil.rmtree(leftover, ignore_errors=True)
    sync_folder(path.parent)


def clear_leftovers(folder: Path) -> None:
    """Remove temporary files of killed writers directly in `folder`, to which no process may be writing."""
    for leftover in folder.glob(".*.tmp"):
        if leftover.is_file():
            leftover.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk, so that a rename survives a power cut.

    Some network and user-space file systems cannot flush folders; there it is left out.
    """
    try:
        _sync(folder)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF):
            raise


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write `text` (UTF-8) atomically."""
    write_atomically(path, lambda file: file.write(text.encode()))


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON, atomically."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a regular file. Raise OSError for anything else, such as a FIFO."""
    digest = hashlib.sha256()
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def sorted_header(data: bytes) -> bytes:
    """Return the safetensors file `data` with sorted metadata; the library's own order varies from call to call.

    Format: 8 bytes little-endian length, a JSON header padded with spaces to a multiple of 8, the tensors.
    """
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[end:]
