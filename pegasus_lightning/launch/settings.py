"""What can be set of the pool. Apart from the rest, because every command's start imports it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class PoolSettings:
    """`hydra.launcher` of the launcher `pool`.

    Args:
        slots: jobs at a time on the CPU; None: one a thread, as far as memory goes.
        jobs_per_gpu: jobs at a time on each GPU.
        rank_by: the metric that orders the table at the end.
        report: whether to write the page at the end.
        stop_timeout: seconds that jobs get to save when the sweep is stopped.
    """

    slots: int | None = None
    jobs_per_gpu: int = 1
    rank_by: str = "final/psnr"
    report: bool = True
    stop_timeout: float = 120.0
