"""Atomic writes of files and folders, hashes, and deterministic safetensors headers."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
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

from pegasus_lightning.utils.errors import UserError


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
    renames; a kill between them leaves the old folder as `.<name>.<token>.old`. What killed writers of `path` left is
    removed first. Raise FileExistsError if `path` is something other than a folder.
    """
    if path.is_symlink() or path.is_file():
        raise FileExistsError(f"{path} is not a folder")
    token = secrets.token_hex(4)
    staged, old = path.with_name(f".{path.name}.{token}.tmp"), path.with_name(f".{path.name}.{token}.old")
    clear_staged(path)
    lock = _make_locked(staged)
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
        os.close(lock)
    sync_folder(path.parent)


def clear_staged(path: Path) -> None:
    """Remove what killed writers of the folder `path` left beside it (see `whole_folder`).

    A writer holds a lock on its temporary folder, which the system takes back when the process ends. So whatever can be
    locked belongs to nobody, however old it is; where the file system knows no locks, everything stays.
    """
    pattern = f".{glob.escape(path.name)}.{'[0-9a-f]' * 8}"
    for leftover in path.parent.glob(f"{pattern}.tmp"):
        with contextlib.suppress(OSError), _opened(leftover) as descriptor:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(leftover, ignore_errors=True)
    for old in path.parent.glob(f"{pattern}.old"):
        if path.exists() and not old.with_suffix(".tmp").exists():  # otherwise its writer is between two renames
            shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _make_locked(folder: Path) -> int:
    """Make a folder and return a descriptor of it that holds its lock."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if folder.exists():
            return descriptor
        os.close(descriptor)  # taken for a leftover, and removed, before it was locked


PATH_MISTAKES = {
    errno.ENOTDIR: "a part of this path is a file",
    errno.EEXIST: "it is there already, and is not a folder",
    errno.EISDIR: "it is a folder",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EROFS: "the file system is read-only",
    errno.ENAMETOOLONG: "the name is too long",
}


def check_makeable(folder: Path) -> None:
    """Raise UserError if a folder that the user chose cannot be made because a part of its path is a file."""
    above = next((place for place in (folder, *folder.parents) if os.path.lexists(place)), folder)
    if os.path.lexists(above) and not above.is_dir():
        raise UserError(f"{folder} cannot be made: {above} is not a folder. Choose another runs_dir.")


def make_folder(folder: Path) -> None:
    """Make a folder that the user chose, and those above it. Raise UserError if its path is at fault."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno not in PATH_MISTAKES:
            raise
        raise UserError(f"{folder} cannot be made: {PATH_MISTAKES[error.errno]}. Choose another runs_dir.") from error


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
    """Write `text` (UTF-8) atomically. Bytes of file names that Python could not decode are written as they were."""
    try:
        content = text.encode(errors="surrogateescape")
    except UnicodeEncodeError:  # half a character, as JSON's escapes can name
        content = text.encode(errors="replace")
    write_atomically(path, lambda file: file.write(content))


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
