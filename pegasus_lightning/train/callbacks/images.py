"""Image grids of a model in training, for fixed images and fixed noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from pegasus_lightning.data.batches import ImageSet
from pegasus_lightning.models.two_player import TwoPlayerModel
from pegasus_lightning.runs.folder import say
from pegasus_lightning.runs.scorecards import PEGASUS_RATIOS
from pegasus_lightning.utils.image_grid import image_grid, save_png
from pegasus_lightning.utils.randomness import Stream, generator
from pegasus_lightning.utils.tensors import to_float

INTERPOLATION_STEPS, INTERPOLATION_ROWS, PRIOR_ROWS = 11, 6, 4


def fixed_pairs(data: ImageSet, count: int) -> tuple[Tensor, Tensor]:
    """Return the first images of each class, float (n, 3, 32, 32), n equal for both classes and at most `count`."""
    first, second = (to_float(data.images[data.of_class(label)[:count]]) for label in (0, 1))
    common = min(len(first), len(second))
    return first[:common], second[:common]


def reconstruction_grid(model: TwoPlayerModel, pairs: tuple[Tensor, Tensor], **look: Any) -> np.ndarray:
    """Draw inputs and, below each row, their reconstructions, for both classes."""
    rows = torch.stack([row for images in pairs for row in (images, model.reconstruct(images))])
    captions = [f"{name}\n{what}" for name in model.hparams["classes"] for what in ("input", "reconstruction")]
    return image_grid(rows, row_captions=captions, title="Reconstructions", **look)


def prior_grid(model: TwoPlayerModel, columns: int, **look: Any) -> np.ndarray:
    """Draw samples from the prior, always for the same noise."""
    noise = generator(0, Stream.PICTURES, 0, model.device)
    images = model.sample_prior(PRIOR_ROWS * columns, noise)
    return image_grid(images, columns=columns, title="Prior samples, z ~ N(0, I)", **look)


def interpolation_grid(model: TwoPlayerModel, pairs: tuple[Tensor, Tensor], **look: Any) -> np.ndarray:
    """Draw one row a pair: interpolations between posterior means; ratios 0.4 to 0.6 are framed."""
    start, end = (model.encode(images[:INTERPOLATION_ROWS]).mean for images in pairs)
    ratios = torch.linspace(0, 1, INTERPOLATION_STEPS)
    first, second = model.hparams["classes"]
    low, high = PEGASUS_RATIOS
    return image_grid(
        model.interpolate(start, end, ratios),
        title=f"Interpolations, {first} (0) to {second} (1)",
        column_captions=[f"{ratio:.1f}" for ratio in ratios.tolist()],
        highlight_columns=[i for i, ratio in enumerate(ratios.tolist()) if low - 1e-6 <= ratio <= high + 1e-6],
        **look,
    )


def pegasus_grid(model: TwoPlayerModel, pairs: tuple[Tensor, Tensor], **look: Any) -> np.ndarray:
    """Draw mixes of sampled codes at random ratios in [0.4, 0.6], between their decoded parents."""
    noise = generator(0, Stream.PICTURES, 1, model.device)
    start, end = (model.encode(images).sample(noise) for images in pairs)
    low, high = PEGASUS_RATIOS
    ratios = low + (high - low) * torch.rand(len(start), generator=noise, device=model.device)
    rows = torch.stack([model.decode(start), model.decode(model.mix(start, end, ratios)), model.decode(end)])
    first, second = model.hparams["classes"]
    return image_grid(
        rows,
        title="Mixes of sampled codes",
        row_captions=[f"{first}\ndecoded", "mix", f"{second}\ndecoded"],
        column_captions=[f"{ratio:.2f}" for ratio in ratios.tolist()],
        **look,
    )


class ImageGrids(pl.Callback):
    """Draw the four grids every `every_n_epochs` epochs and after the first and last, as PNG and in TensorBoard.

    `folder`, of the PNG files, lies inside the run folder, whose name is in the footer of every grid. `data` are the
    images to draw (the validation split).
    """

    def __init__(self, folder: Path, data: ImageSet, *, every_n_epochs: int, columns: int, scale: int) -> None:
        self.folder, self.every_n_epochs, self.columns, self.scale = folder, every_n_epochs, columns, scale
        self.pairs = fixed_pairs(data, columns)
        self._drawn_at = -1

    def draw(self, trainer: pl.Trainer, model: TwoPlayerModel, epochs: int) -> None:
        """Draw the grids of the state after `epochs` epochs, unless already drawn at this batch."""
        if not trainer.is_global_zero or self._drawn_at == model.batches_done:
            return
        self._drawn_at = model.batches_done
        pairs = (self.pairs[0].to(model.device), self.pairs[1].to(model.device))
        footer = f"{self.folder.parent.name}, epoch {epochs}, batch {model.batches_done}"
        look: dict[str, Any] = {"scale": self.scale, "footer": footer}
        with model.inference():
            pictures = {"prior": prior_grid(model, self.columns, **look)}
            if len(pairs[0]):  # a small validation split may lack a class
                pictures["reconstructions"] = reconstruction_grid(model, pairs, **look)
                pictures["interpolations"] = interpolation_grid(model, pairs, **look)
                pictures["mixes"] = pegasus_grid(model, pairs, **look)
        for name, picture in pictures.items():
            save_png(picture, self.folder / f"{name}-epoch-{epochs:04d}.png")
            if trainer.logger is not None:
                trainer.logger.log_picture(f"images/{name}", picture, model.batches_done)  # type: ignore[attr-defined]

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if trainer.is_global_zero and trainer.current_epoch and not any(self.folder.glob("*-epoch-0001.png")):
            say(f"{self.folder} has no pictures of the first epoch: the run goes on without what is missing there.")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        epochs = trainer.current_epoch + 1
        # The last epoch is drawn here, not at the end of training, to precede the last checkpoint.
        last = trainer.should_stop or epochs == trainer.max_epochs
        if epochs % self.every_n_epochs == 0 or epochs == 1 or last:
            self.draw(trainer, pl_module, epochs)
