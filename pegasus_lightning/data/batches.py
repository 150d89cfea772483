"""Batches cut out of images in memory by vectorised indexing: no worker processes, no per-image Python."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pegasus_lightning.utils.randomness import Stream, generator
from pegasus_lightning.utils.tensors import to_float


@dataclass(frozen=True)
class ImageSet:
    """Images uint8 (N, 3, 32, 32), labels int64 (N,) into `classes`."""

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)

    def take(self, indices: Tensor | Sequence[int]) -> ImageSet:
        """The images at `indices`, in that order."""
        chosen = torch.as_tensor(indices)
        return ImageSet(self.images[chosen], self.labels[chosen], self.classes)

    def of_class(self, label: int) -> Tensor:
        """Indices of the images of one class, (n,)."""
        return torch.nonzero(self.labels == label).flatten()

    def to(self, device: torch.device | str) -> ImageSet:
        """The same on `device`, laid out so that batches come out channels_last without a copy."""
        images = self.images.to(device, memory_format=torch.channels_last)
        return ImageSet(images, self.labels.to(device), self.classes)


class TrainBatches:
    """Shuffled batches for training: an iterable of (images float (B, 3, 32, 32), labels (B,)).

    The order and the flips are functions of (seed, epoch, batch), so an iteration
    can begin in the middle of a run, as after a resume. The last images of an epoch's order that do
    not fill a batch are dropped: others each epoch, less than one batch. With several processes each
    takes its share of every global batch, so the batches do not depend on the number of processes.

    Args:
        data: the images, on the device that batches shall come from.
        batch_size: of the global batch, over all processes.
        batches_done: says how many global batches the run has done; read when an iteration begins.
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
        """Nothing to save (that there is such a method tells Lightning that a resume in mid-epoch is exact)."""
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Nothing to load: `batches_done` says it all."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        device = self.data.images.device
        epoch, first = divmod(self.batches_done(), len(self))
        # Drawn on the CPU, so that they are the same whatever the batches are cut on; moved once an epoch.
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
    """All images once, in order, the last batch as small as it comes out."""

    def __init__(self, data: ImageSet, batch_size: int) -> None:
        self.data, self.batch_size = data, batch_size

    def __len__(self) -> int:
        return -(-len(self.data) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(self.data), self.batch_size):
            cut = slice(start, start + self.batch_size)
            yield to_float(self.data.images[cut]), self.data.labels[cut]
