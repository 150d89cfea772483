"""Running means of named scalars, kept on the device and read back once per interval, and means over processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def average_over_processes(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor in place by its mean over all processes, in one transfer.

    Shapes and order must be equal in all processes, and the process group must be initialised.
    """
    if not tensors:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    torch.distributed.all_reduce(flat)
    pieces = (flat / torch.distributed.get_world_size()).split([tensor.numel() for tensor in tensors])
    for tensor, piece in zip(tensors, pieces, strict=True):
        tensor.copy_(piece.view(tensor.shape))


class Averages:
    """Means of named scalar tensors since the last `flush`.

    `add` does not synchronise: values stay on their device until `flush` reads all of them in one transfer.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, values: dict[str, Tensor]) -> None:
        """Add the scalars of one batch (0-dimensional tensors, detached here)."""
        for name, value in values.items():
            value = value.detach().float()
            self._sums[name] = self._sums[name].to(value.device).add_(value) if name in self._sums else value.clone()
            self._counts[name] = self._counts.get(name, 0) + 1

    def state(self) -> dict[str, Any]:
        """Return the values added since the last flush, for `restore`."""
        return {"sums": {name: value.clone() for name, value in self._sums.items()}, "counts": dict(self._counts)}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a saved `state`."""
        self._sums, self._counts = dict(state["sums"]), dict(state["counts"])

    def flush(self) -> dict[str, float]:
        """Return the mean of each name since the last flush, over all processes, and reset the accumulator."""
        if not self._sums:
            return {}
        names = sorted(self._sums)
        means = torch.stack([self._sums[name] / self._counts[name] for name in names])
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            average_over_processes([means])
        self._sums, self._counts = {}, {}
        return dict(zip(names, means.tolist(), strict=True))
