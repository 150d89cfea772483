"""CIFAR-10 (Krizhevsky, 2009) from the official archive, filtered to the requested classes.

The archive holds Python pickles, and unpickling can run any code. Each file is therefore read once, its bytes are
checked against the publisher's MD5, and the same bytes go to an unpickler restricted to NumPy arrays. MD5 is the only
published hash: collisions can be made, but not a second file for a given hash, and the unpickler is a second defence.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pegasus_lightning.data.cifar10_archive import OFFICIAL, Archive, ensure, md5_of
from pegasus_lightning.data.common import check_split, index_classes
from pegasus_lightning.utils.errors import UserError
from pegasus_lightning.utils.tensors import IMAGE_SIZE

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def load(
    root: Path, classes: Sequence[str], split: str, download: bool = True, archive: Archive = OFFICIAL
) -> tuple[Tensor, Tensor]:
    """Return images uint8 (N, 3, 32, 32) and labels int64 (N,), indices into `classes`.

    Images keep the archive's order: 5,000 a class in "train", 1,000 in "test". Missing files are unpacked from the
    archive in `root`, which is downloaded first if it is missing and `download` is set. Raise UserError for an unknown
    class or split, data that is not available, or an altered file.
    """
    positions = index_classes(classes, CLASSES, "CIFAR-10")
    check_split(split)
    root = Path(root).expanduser()
    files = archive.train_files if split == "train" else archive.test_files
    ensure(root, archive, files, download)
    batches = [_read_batch(root / archive.folder / name, md5) for name, md5 in files]
    images = torch.from_numpy(np.concatenate([pixels for pixels, _ in batches]))
    label_of = torch.full((len(CLASSES),), -1)
    label_of[positions] = torch.arange(len(positions))
    labels = label_of[torch.cat([batch_labels for _, batch_labels in batches])]
    kept = labels >= 0
    # A row holds the red, the green and the blue plane, each in row-major order.
    return images[kept].reshape(-1, 3, IMAGE_SIZE, IMAGE_SIZE), labels[kept]


def _read_batch(path: Path, md5: str) -> tuple[np.ndarray, Tensor]:
    """Return pixels uint8 (N, 3072) and CIFAR-10 labels int64 (N,) after checking the file against `md5`."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    if md5_of(io.BytesIO(data)) != md5:
        raise UserError(f"{path} is corrupt (its MD5 is not {md5}): delete it and run again. It was not loaded.")
    # NumPy arrays pickled by Python 2 must be read with latin1.
    batch = _ArrayUnpickler(io.BytesIO(data), encoding="latin1").load()
    return batch["data"], torch.tensor(batch["labels"])


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickler of dicts, lists, numbers, strings and NumPy arrays that refuses every other global."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in (("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct")):
            return np.empty(0).__reduce__()[0]  # the same function under this NumPy's name
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        raise UserError(f"A CIFAR-10 file refers to {module}.{name}, which is not allowed: it was not loaded.")
