"""Whether the terms of a loss are finite, batch by batch, without making the device wait."""

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
    arrived: torch.Event | None  # None: they are there


class FiniteWatch:
    """Stops training at the batch in which a term of the loss becomes NaN or infinite.

    On the CPU terms are judged at once, before anything is learnt from them. An accelerator copies them to the host
    in the background and they are judged when they have arrived, usually during the next batch; before anything is
    saved, `check(wait=True)` waits for them, so that no checkpoint holds what was learnt from a NaN.
    """

    def __init__(self) -> None:
        self._pending: deque[_Look] = deque()

    def look(self, terms: Mapping[str, Tensor], batch: int) -> None:
        """Judge scalar terms of one batch, now or when they have arrived.

        Args:
            terms: 0-dimensional tensors on one device; in data-parallel training every process judges their sum over
                the processes, so that all stop at the same batch.
            batch: counted from 1; named in the error.

        Raises:
            NonFiniteLoss: one of these terms, or of those of an earlier batch that have arrived since, is not finite.
        """
        values = torch.stack([value.detach().float() for value in terms.values()])
        together = torch.distributed.is_available() and torch.distributed.is_initialized()
        if together:
            self.check(wait=True)  # when something arrives differs between processes: all judge the last look now
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
        """Judge what has arrived; with `wait` everything that was looked at.

        Raises:
            NonFiniteLoss: naming the terms and the batch.
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
