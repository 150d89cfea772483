"""Training of one run: settings, trainer and callbacks."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    """This package, which can be called as the function that has its name in `pegasus_lightning`."""

    def __call__(self, *settings: str, **more: Any) -> Any:
        """Call `pegasus_lightning.api.train`."""
        return import_module("pegasus_lightning.api").train(*settings, **more)


sys.modules[__name__].__class__ = _Callable
