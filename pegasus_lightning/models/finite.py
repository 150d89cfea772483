"""A check that loss terms are finite, batch by batch, without blocking the device."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from pegasus_lightning.utils.errors import NonFiniteLoss


class _Look(NamedTuple):
    batch: int
    names: list[str]
    values: Tensor  # on the host
    arrived: torch.Event | None  # None: the values are on the host already


class FiniteWatch:
    """Watcher that stops training when a loss term becomes NaN or infinite.

    On the CPU, terms are checked at once, before the optimizer step. An accelerator copies them to the host in the
    background, and they are checked on arrival, usually during the next batch. `check(wait=True)` before each save
    waits for them, so no checkpoint holds weights updated from a NaN.
    """

    def __init__(self) -> None:
        self._pending: deque[_Look] = deque()

    def look(self, terms: Mapping[str, Tensor], batch: int) -> None:
        """Check the scalar terms of one batch, now or on arrival.

        Args:
            terms: 0-dimensional tensors on one device. In data-parallel training every process checks their sum over
                the processes, so that all stop at the same batch.
            batch: the batch's number, counted from 1, for the error.

        Raises:
            NonFiniteLoss: one of these terms, or of the terms that arrived since the last check, is not finite.
        """
        values = torch.stack([value.detach().float() for value in terms.values()])
        together = torch.distributed.is_available() and torch.distributed.is_initialized()
        if together:
            self.check(wait=True)  # arrival times differ between processes, so all of them wait
            torch.distributed.all_reduce(values)
        arrived = None
        if values.device.type != "cpu":
            host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            values, arrived = host.copy_(values, non_blocking=True), torch.Event(values.device)
            arrived.record()
        self._pending.append(_Look(batch, list(terms), values, arrived))
        if not together or arrived is None:
            self.check()

    def check(self, *, wait: bool = False) -> None:
        """Check the terms that have arrived; with `wait`, wait for all pending terms.

        Raise NonFiniteLoss, with the names and the batch, if any of them is not finite.
        """
        while self._pending:
            oldest = self._pending[0]
            if oldest.arrived is not None:
                if wait:
                    oldest.arrived.synchronize()
                elif not oldest.arrived.query():
                    return
            self._pending.popleft()
            values = dict(zip(oldest.names, oldest.values.tolist(), strict=True))
            bad = [name for name, value in values.items() if not math.isfinite(value)]
            if bad:
                raise NonFiniteLoss(bad, oldest.batch)
