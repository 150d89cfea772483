"""Batches of images in memory by vectorised indexing, without worker processes or per-image Python."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pegasus_lightning.utils.randomness import Stream, generator
from pegasus_lightning.utils.tensors import to_float


@dataclass(frozen=True)
class ImageSet:
    """Images uint8 (N, 3, 32, 32), and labels int64 (N,) that index `classes`."""

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)

    def take(self, indices: Tensor | Sequence[int]) -> ImageSet:
        """Return the images at `indices`, in that order."""
        chosen = torch.as_tensor(indices)
        return ImageSet(self.images[chosen], self.labels[chosen], self.classes)

    def of_class(self, label: int) -> Tensor:
        """Return the indices (n,) of the images of one class."""
        return torch.nonzero(self.labels == label).flatten()

    def to(self, device: torch.device | str) -> ImageSet:
        """Return the set on `device`, in a layout whose batches are channels_last without a copy."""
        images = self.images.to(device, memory_format=torch.channels_last)
        return ImageSet(images, self.labels.to(device), self.classes)


class TrainBatches:
    """Shuffled training batches: an iterable of (images float (B, 3, 32, 32), labels (B,)).

    The order and the flips are functions of (seed, epoch, batch), so a resumed run can begin anywhere. The images at
    the end of an epoch that do not fill a batch are dropped; they differ between epochs. Each process takes its share
    of every global batch, so the batches do not depend on the number of processes.

    Args:
        data: the images, on the device of the batches.
        batch_size: size of the global batch, of all processes together.
        batches_done: returns the number of global batches done; called when an iteration begins.
    """

    def __init__(
        self,
        data: ImageSet,
        batch_size: int,
        *,
        seed: int,
        flip: bool,
        batches_done: Callable[[], int],
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.data, self.batch_size, self.seed, self.flip = data, batch_size, seed, flip
        self.batches_done, self.rank, self.world_size = batches_done, rank, world_size

    def __len__(self) -> int:
        return len(self.data) // self.batch_size

    def state_dict(self) -> dict[str, int]:
        """Return no state. The method tells Lightning that a resume within an epoch is exact."""
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Load nothing: `batches_done` determines the batches."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        device = self.data.images.device
        epoch, first = divmod(self.batches_done(), len(self))
        # Drawn on the CPU, so that they are the same on every device, and moved once an epoch.
        order = torch.randperm(len(self.data), generator=generator(self.seed, Stream.ORDER, epoch))
        coins = torch.rand(len(self), self.batch_size, generator=generator(self.seed, Stream.FLIPS, epoch)) < 0.5
        order, coins = order.to(device), coins.to(device)
        share = self.batch_size // self.world_size
        mine = slice(self.rank * share, (self.rank + 1) * share)
        for batch in range(first, len(self)):
            chosen = order[batch * self.batch_size : (batch + 1) * self.batch_size][mine]
            images = to_float(self.data.images[chosen])
            if self.flip:
                images = torch.where(coins[batch, mine, None, None, None], images.flip(3), images)
            yield images, self.data.labels[chosen]


class EvaluationBatches:
    """All images once, in order. The last batch may be smaller."""

    def __init__(self, data: ImageSet, batch_size: int) -> None:
        self.data, self.batch_size = data, batch_size

    def __len__(self) -> int:
        return -(-len(self.data) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(self.data), self.batch_size):
            cut = slice(start, start + self.batch_size)
            yield to_float(self.data.images[cut]), self.data.labels[cut]
