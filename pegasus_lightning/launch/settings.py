"""Settings of the launcher `pool`, in a module of their own because every command imports them at its start."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class PoolSettings:
    """The section `hydra.launcher` of the launcher `pool`.

    Args:
        slots: parallel jobs on the CPU; None: one for each thread, if the memory suffices.
        jobs_per_gpu: parallel jobs on each GPU.
        rank_by: metric that the final table is sorted by.
        report: whether to write the HTML report at the end.
        stop_timeout: seconds that jobs get to save when the sweep is stopped.
    """

    slots: int | None = None
    jobs_per_gpu: int = 1
    rank_by: str = "final/psnr"
    report: bool = True
    stop_timeout: float = 120.0
