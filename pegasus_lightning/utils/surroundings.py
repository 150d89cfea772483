"""What a process finds in its environment, and has to put right before anything else is imported."""

from __future__ import annotations

import importlib.util
import os

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
