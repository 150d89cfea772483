"""Adversarial autoencoders on one backbone, and the images that their mixed codes decode to: horse + bird = pegasus.

>>> import torch
>>> from pegasus_lightning import load, make_pegasi, read_images
>>> model = load("pegasus")                                      # or a run, a checkpoint, an export; eval mode, CPU
>>> images = read_images(["horse.jpg", "bird.png"])              # any sizes: float (2, 3, 32, 32) in [0, 1]
>>> codes = model.encode_images(["horse.jpg", "bird.png"]).mean  # (2, latent_dim)
>>> mixed = model.mix(codes[:1], codes[1:], torch.tensor([0.5])) # (1, latent_dim); ratio 0 is the horse, 1 the bird
>>> model.decode(mixed).shape
torch.Size([1, 3, 32, 32])
>>> make_pegasi(model, "horse.jpg", "bird.png", ratio=[0.4, 0.5, 0.6]).shape
torch.Size([3, 3, 32, 32])

`load_images("data=silhouettes")` returns images with their labels, and `judge(images, "data=silhouettes")` what a
recogniser sees in images. `train("model=acai", "data=silhouettes", "trainer.max_epochs=20")` trains as the command line
does, and returns the run's `.folder` and its `.model`. Mistakes raise `UserError`, with one sentence.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pegasus_lightning.utils.surroundings import open_streams, usable_backend

if TYPE_CHECKING:
    from pegasus_lightning.api import (
        LabelledImages,
        TrainedModel,
        judge,
        load,
        load_export,
        load_images,
        load_model,
        make_pegasi,
        read_images,
        train,
    )
    from pegasus_lightning.utils.errors import UserError

usable_backend()
open_streams()
__version__ = "0.1.0"

# Imported at first use: importing the package stays cheap, and no room below imports a room above.
PUBLIC = {
    "LabelledImages": "pegasus_lightning.api",
    "TrainedModel": "pegasus_lightning.api",
    "UserError": "pegasus_lightning.utils.errors",
    "judge": "pegasus_lightning.api",
    "load": "pegasus_lightning.api",
    "load_export": "pegasus_lightning.export.model_files",
    "load_images": "pegasus_lightning.api",
    "load_model": "pegasus_lightning.runs.checkpoints",
    "make_pegasi": "pegasus_lightning.api",
    "read_images": "pegasus_lightning.data.own_images",
    "train": "pegasus_lightning.api",
}
__all__ = ["LabelledImages", "TrainedModel", "UserError", "judge", "load", "load_export", "load_images", "load_model"]
__all__ += ["make_pegasi", "read_images", "train"]


def __getattr__(name: str) -> Any:
    if name in PUBLIC:
        return getattr(import_module(PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *PUBLIC})
