"""Adversarial autoencoders on one backbone, and the images that their mixed codes decode to.

model = pegasus_lightning.load_model("runs/first_run/...")   # a trained model: encode, decode, mix, ...
model = pegasus_lightning.load_export("shared")              # the same from exported files
"""

from importlib import import_module
from typing import Any

from pegasus_lightning.utils.surroundings import open_streams, usable_backend

usable_backend()
open_streams()
__version__ = "0.1.0"

# Imported at first use: importing the package stays cheap, and no room below imports a room above.
PUBLIC = {"load_export": "pegasus_lightning.export.model_files", "load_model": "pegasus_lightning.runs.checkpoints"}


def __getattr__(name: str) -> Any:
    if name in PUBLIC:
        return getattr(import_module(PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *PUBLIC})
