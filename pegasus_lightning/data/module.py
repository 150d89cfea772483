"""The DataModule of all sources; each source is loaded as uint8 tensors in memory."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from pegasus_lightning.data.batches import EvaluationBatches, ImageSet, TrainBatches
from pegasus_lightning.utils.errors import UserError
from pegasus_lightning.utils.randomness import Stream, generator

EVALUATION_BATCH = 256
ROOM_FACTOR = 4  # the images must take less than a quarter of the device's free memory


def load_split(config: Any, split: str) -> ImageSet:
    """Return the whole split, "train" or "test", of the configured source (a `DataConfig`), on the CPU.

    Raise UserError if the data is missing or corrupt, or lacks one of the classes.
    """
    classes = list(config.classes)
    # Imported on use: torchvision's data sets alone take more than a second.
    if config.source == "cifar10":
        from pegasus_lightning.data import cifar10

        images, labels = cifar10.load(Path(config.root), classes, split, download=config.download)
    elif config.source == "image_folder":
        from pegasus_lightning.data import image_folder

        cache = Path(config.cache) if config.cache else None
        images, labels = image_folder.load(Path(config.root), classes, split, cache_dir=cache)
    elif config.source in ("silhouettes", "lines"):
        from pegasus_lightning.data import lines, silhouettes

        load = silhouettes.load if config.source == "silhouettes" else lines.load
        count = config.train_per_class if split == "train" else config.test_per_class
        images, labels = load(classes, split, count, config.drawing_seed)
    else:
        raise UserError(f"data.source={config.source} is not a source.")
    return ImageSet(images, labels, tuple(classes))


def image_contents(config: Any, split: str) -> np.ndarray | None:
    """Return the SHA-256 and then the label of each image, uint8 (N, 33).

    None for a source whose images the configuration decides.
    """
    if config.source != "image_folder":
        return None
    from pegasus_lightning.data import image_folder

    cache = Path(config.cache) if config.cache else None
    hashes, labels = image_folder.contents(Path(config.root), list(config.classes), split, cache_dir=cache)
    return np.concatenate([hashes, labels.numpy().astype(np.uint8)[:, None]], axis=1)


def images_record(contents: np.ndarray) -> dict[str, Any]:
    """Return what a run keeps of its training images: how many there are, and a SHA-256 of the labelled set."""
    rows = sorted(row.tobytes() for row in contents)
    return {"count": len(rows), "sha256": hashlib.sha256(b"".join(rows)).hexdigest()}


def split_validation(data: ImageSet, fraction: float, contents: np.ndarray | None = None) -> tuple[ImageSet, ImageSet]:
    """Return (train, validation); the validation images do not depend on the run's seed.

    With `contents` (`image_contents`) an image's place follows from its content alone: others that are added, removed
    or renamed hardly change it. Without, it follows from the image's position.
    """
    if contents is None:
        order = torch.randperm(len(data), generator=generator(0, Stream.SPLIT))
    else:
        order = torch.tensor(sorted(range(len(data)), key=lambda index: contents[index].tobytes()))
    count = max(2, round(fraction * len(data)))
    return data.take(order[count:]), data.take(order[:count])


def in_mixed_order(data: ImageSet) -> ImageSet:
    """Return the images in a fixed random order: sources sort by class, and BatchNorm needs both in a batch."""
    return data.take(torch.randperm(len(data), generator=generator(0, Stream.SPLIT)))


def _fits(data: ImageSet, device: torch.device) -> bool:
    if device.type != "cuda":
        return device.type == "cpu"
    return data.images.numel() * ROOM_FACTOR < torch.cuda.mem_get_info(device)[0]


class ImageDataModule(pl.LightningDataModule):
    """Train, validation (held out of train) and test batches of one source, in memory.

    Args:
        config: a `DataConfig` (dataclass or DictConfig).
        seed: seed of the batch order and flips.
        with_test: load the test split too, so that errors in it appear before training.
        by_position: hold out images of a folder by their position, as runs of version 0.1.0 did.

    `record` is `images_record` of the training images with "validation", content or position; None if the
    configuration decides the images.
    """

    def __init__(self, config: Any, seed: int, *, with_test: bool = True, by_position: bool = False) -> None:
        super().__init__()
        self.config, self.seed = config, seed
        self.test = in_mixed_order(load_split(config, "test")) if with_test else None
        whole = load_split(config, "train")
        contents, self.record = image_contents(config, "train"), None
        if contents is not None:
            self.record = images_record(contents) | {"validation": "position" if by_position else "content"}
        self.train, self.validation = split_validation(
            whole, config.validation_fraction, None if by_position else contents
        )
        if len(self.train) < config.batch_size:
            raise UserError(
                f"data.batch_size={config.batch_size} is larger than the train split of {len(self.train)} images."
            )

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of the data: `record`, under the name of this class."""
        return {} if self.record is None else {"images": self.record}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Do nothing: `runs.images` has compared the record before the images were loaded."""

    @property
    def train_batches_per_epoch(self) -> int:
        return len(self.train) // self.config.batch_size

    def _placed(self, data: ImageSet) -> ImageSet:
        """Return `data` on the training device if configured and if it fits; Lightning moves the batches otherwise."""
        assert self.trainer is not None
        device, wanted = self.trainer.strategy.root_device, str(self.config.on_device).lower()
        here = wanted == "true" or (wanted == "auto" and _fits(data, device))
        return data.to(device if here else "cpu")

    def train_dataloader(self) -> TrainBatches:
        assert self.trainer is not None
        model: Any = self.trainer.lightning_module
        return TrainBatches(
            self._placed(self.train),
            self.config.batch_size,
            seed=self.seed,
            flip=self.config.flip,
            batches_done=lambda: model.batches_done,
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
        )

    def val_dataloader(self) -> EvaluationBatches:
        return EvaluationBatches(self._placed(self.validation), EVALUATION_BATCH)

    def test_dataloader(self) -> EvaluationBatches:
        assert self.test is not None
        return EvaluationBatches(self._placed(self.test), EVALUATION_BATCH)
