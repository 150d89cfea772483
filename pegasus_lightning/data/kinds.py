"""Images of every kind that a source offers, for training recognisers.

A run is trained on two classes. The kinds are these two and every other class that the source has or can draw.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from torch import Tensor

from pegasus_lightning.data import tensor_cache
from pegasus_lightning.data.common import index_classes
from pegasus_lightning.data.module import load_split
from pegasus_lightning.utils.errors import UserError
from pegasus_lightning.utils.tensors import IMAGE_SIZE

WORTH_KEEPING = 1000  # images; drawing them takes 2.5 seconds


@dataclass(frozen=True)
class Kinds:
    """Images of every kind, and which of the two classes each one shows."""

    images: Tensor  # uint8 (N, 3, 32, 32)
    kinds: Tensor  # int64 (N,), each an index into `names`
    names: tuple[str, ...]  # the two classes first, then the other kinds
    targets: Tensor  # float32 (N, 2); 1 where the image shows the first or the second class

    def __len__(self) -> int:
        return len(self.images)

    def take(self, indices: Tensor) -> Kinds:
        """Return the images at `indices`, in that order."""
        return Kinds(self.images[indices], self.kinds[indices], self.names, self.targets[indices])

    @property
    def classes(self) -> tuple[str, str]:
        return self.names[0], self.names[1]


def load_kinds(config: Any, split: str) -> Kinds:
    """Return all kinds of a split, "train" or "test", of the configured source (a `DataConfig`), on the CPU.

    `cifar10`: its ten classes. `image_folder`: every class with images in that split. `silhouettes`: horse, bird,
    pegasus (which shows all three) and the empty scene. `lines`: its two classes. Raise UserError if the data is
    missing or corrupt, or lacks one of the classes.
    """
    classes = list(config.classes)
    if config.source == "cifar10":
        from pegasus_lightning.data import cifar10

        names = _first(classes, cifar10.CLASSES)
        images, kinds = cifar10.load(Path(config.root), names, split, download=config.download)
    elif config.source == "image_folder":
        from pegasus_lightning.data import image_folder

        root = Path(config.root).expanduser()
        image_folder.class_folders(root, classes, split)  # raises if one of the two is missing
        names = _first(classes, _folders_with_images(root / split))
        cache = Path(config.cache) if config.cache else None
        images, kinds = image_folder.load(root, names, split, cache_dir=cache)
    elif config.source == "silhouettes":
        from pegasus_lightning.data import silhouettes

        count = config.train_per_class if split == "train" else config.test_per_class
        names = [*_first(classes, silhouettes.CLASSES), silhouettes.SCENE]
        images, kinds = _drawn(names, split, count, config.drawing_seed)
    elif config.source == "lines":
        whole = load_split(config, split)
        names, images, kinds = classes, whole.images, whole.labels
    else:
        raise UserError(f"data.source={config.source} is not a source.")
    also = {"pegasus": ("horse", "bird")} if config.source == "silhouettes" else {}
    shows = torch.tensor([[float(kind == name or name in also.get(kind, ())) for name in classes] for kind in names])
    return Kinds(images, kinds, tuple(names), shows[kinds])


def _first(classes: Sequence[str], available: Sequence[str]) -> list[str]:
    """Return `classes`, then the others of `available`."""
    return [*classes, *(name for name in available if name not in classes)]


def _folders_with_images(folder: Path) -> list[str]:
    """Return the sorted names of the folders in `folder` that hold an image; a class may lack images in one split."""
    from pegasus_lightning.data.image_folder import SUFFIXES

    def holds_images(entry: os.DirEntry[str]) -> bool:
        return any(not name.startswith(".") and name.lower().endswith(SUFFIXES) for name in os.listdir(entry))

    entries = [entry for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith(".")]
    return sorted(entry.name for entry in entries if holds_images(entry))


def _drawn(names: Sequence[str], split: str, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return `count` silhouettes of each name, the last being the scene; WORTH_KEEPING or more are cached on disk."""
    from pegasus_lightning.data import outlines, silhouettes

    def draw() -> np.ndarray:
        animals, _ = silhouettes.load(names[:-1], split, count, seed)
        return torch.cat([animals, silhouettes.load_scenes(split, count, seed)]).numpy()

    index_classes(names[:-1], silhouettes.CLASSES, "silhouettes")
    kinds = torch.arange(len(names)).repeat_interleave(count)
    if len(kinds) < WORTH_KEEPING:
        return torch.from_numpy(draw()), kinds
    what = json.dumps([list(names), split, count, seed, PIL.__version__, np.__version__]).encode()
    code = b"".join(Path(str(module.__file__)).read_bytes() for module in (outlines, silhouettes))
    path = tensor_cache.default_folder() / f"silhouettes-{hashlib.sha256(what).hexdigest()[:16]}.safetensors"
    shape = (len(kinds), 3, IMAGE_SIZE, IMAGE_SIZE)
    return torch.from_numpy(tensor_cache.load_or_build(path, hashlib.sha256(what + code).digest(), shape, draw)), kinds
