"""What a process finds around it, and has to put right: its environment, its terminal, the readers of its output."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import sys
from collections.abc import Iterator
from typing import Any

MODULE = "module://"  # prefix of the name of a matplotlib backend that lies in a package of its own


def usable_backend() -> None:
    """Let matplotlib draw into files where MPLBACKEND names a backend that is not installed here.

    Notebooks export their own backend to the programs that they start. Without it no program that imports matplotlib
    starts.
    """
    name = os.environ.get("MPLBACKEND", "")
    if name.startswith(MODULE) and not _found(name.removeprefix(MODULE)):
        os.environ["MPLBACKEND"] = "agg"


def _found(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except Exception:  # the package that should hold it is missing or broken, or this is no module's name
        return False


def open_streams() -> None:
    """Give a process that was started with a closed stdout or stderr one that goes nowhere.

    Some packages ask for these streams when they are imported. A closed descriptor would also be given to the next file
    that is opened, and what is printed would end up in it.
    """
    with contextlib.suppress(OSError):
        while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
            pass
        os.close(descriptor)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - as long as the process lives


@contextlib.contextmanager
def steady_streams() -> Iterator[None]:
    """Let a command go on in silence, and end as it would have, when nobody reads what it prints.

    The reader of a pipe may be gone, the disk full, or the terminal closed. Characters that a stream's encoding lacks
    are printed as "?".
    """
    former = sys.stdout, sys.stderr
    for name, stream in zip(("stdout", "stderr"), former, strict=True):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
        setattr(sys, name, _Steady(stream))
    try:
        yield
    finally:
        for name, stream in zip(("stdout", "stderr"), former, strict=True):
            getattr(sys, name).flush()
            setattr(sys, name, stream)


class _Steady:
    """A stream whose writes never fail: after the first error the rest goes to os.devnull."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except (OSError, ValueError):  # ValueError: it was closed
            self._give_up()
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self._give_up()

    def _give_up(self) -> None:
        # What waits in the buffer, and what other libraries print, goes there too.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            descriptor = os.open(os.devnull, os.O_WRONLY)
            os.dup2(descriptor, self._stream.fileno())
            os.close(descriptor)
            self._stream.flush()
