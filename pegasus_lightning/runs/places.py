"""Where the results of a command go, and whether they can be written there."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Collection
from pathlib import Path, PurePath
from typing import Any

from pegasus_lightning.utils.errors import UserError

LATEST = "latest"  # a link to the newest of several folders of results


def digest(content: Any) -> str:
    """Return the first 8 hex digits of the SHA-256 of `content` as JSON, with sorted keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]


def title(settings: Any, content: list[Any]) -> str:
    """Return `<pairs>-<mixing>-<search>-s<seed>-<8 hex of the content>`, the name of a folder of results.

    `settings` is a `GenerateConfig` or an `EvaluateConfig`.
    """
    pegasus, method = settings.pegasus, settings.search.method
    return f"{pegasus.pairs}-{pegasus.mixing}-{method}-s{settings.seed}-{digest(content)}"


def path_told(path: Path | str) -> str:
    """Return a path as results tell it, without the home folder and the folders above this machine's data.

    A path below the working folder is told from there, another one below the user's home as ~/..., and any other one
    as .../ and its last part.
    """
    place = Path(os.path.abspath(os.path.expanduser(path)))
    for above, start in ((Path.cwd(), ""), (Path(os.path.expanduser("~")), "~/")):
        if place != above and above != Path("/") and place.is_relative_to(above):
            return start + place.relative_to(above).as_posix()
    return f".../{place.name}"


def path_shown(path: Path) -> str:
    """Return a path as a command prints it for its user: from the working folder if it lies below that, else whole."""
    place = path.absolute()
    return str(place.relative_to(Path.cwd())) if place.is_relative_to(Path.cwd()) else str(place)


def link_latest(folder: Path) -> None:
    """Make the link `latest` beside a folder of results, atomically. Where no link can be made there is none."""
    link, staged = folder.with_name(LATEST), folder.with_name(f".{LATEST}.{secrets.token_hex(4)}.tmp")
    if link.exists() and not link.is_symlink():
        return  # a folder of somebody's
    with contextlib.suppress(OSError, NotImplementedError):
        os.symlink(folder.name, staged, target_is_directory=True)
        os.replace(staged, link)
    with contextlib.suppress(OSError):
        staged.unlink(missing_ok=True)


def origin_told(origin: dict[str, Any]) -> dict[str, Any]:
    """Return where parents come from (`Session.origin`) with its paths as `path_told` tells them."""
    told = dict(origin)
    if isinstance(root := told.get("root"), str):
        told["root"] = path_told(root)
    if isinstance(files := told.get("files"), list):
        told["files"] = [path_told(file) for file in files]
    return told


def same_origin(one: Any, other: Any) -> bool:
    """Return whether two records name the same parents.

    Folders of images are the same if the end of one path is the other, as it is told from another folder.
    """
    if not isinstance(one, dict) or not isinstance(other, dict):
        return bool(one == other)
    ends = [_end(origin.get("root")) for origin in (one, other)]
    short, long = sorted(ends, key=len)
    same = long[len(long) - len(short) :] == short and bool(short) == bool(long)
    return same and bool(one | {"root": None} == other | {"root": None})


def _end(root: Any) -> tuple[str, ...]:
    """Return the parts of a folder's path as it is told, without its start."""
    if not isinstance(root, str):
        return ()
    parts = PurePath(path_told(root) if os.path.isabs(root) else root).parts
    return parts[1:] if parts[:1] in (("~",), ("...",)) else parts


def check_writable(
    folder: Path, option: str, *, ours: Collection[str] | None = None, needed: Collection[str] = ()
) -> Path:
    """Return `folder` if results can be written there: it is new, or with `ours` it holds only earlier results.

    Args:
        option: how the user names another folder, such as "out=FOLDER".
        ours: names of results that replace the whole folder; None: results go into the folder, beside what it holds.
        needed: names that all earlier results have.

    Raises:
        UserError: results cannot be written there.
    """
    place, replaced = folder.absolute(), ours is not None
    if replaced and place == Path.cwd():
        raise UserError(f"{folder} is the current folder: name another one with {option}.")
    if (replaced and place.is_symlink()) or (place.exists() and not place.is_dir()):
        raise UserError(f"{folder} is not a folder: name another one with {option}.")
    names = {entry.name for entry in place.iterdir()} if place.is_dir() and replaced else set()
    if names and (names - set(ours or ()) or not set(needed) <= names):
        raise UserError(f"{folder} holds something else than earlier results: name another folder with {option}.")
    # A folder is replaced by renames in the folder above it.
    above = next(path for path in ([] if replaced else [place]) + [*place.parents] if path.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise UserError(f"{folder} cannot be made: {above} is not a folder that can be written to. Say {option}.")
    return folder
