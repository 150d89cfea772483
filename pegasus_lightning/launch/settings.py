"""Settings of the launcher `pool`, in a module of their own because every command imports them at its start."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class PoolSettings:
    """The section `hydra.launcher` of the launcher `pool`."""

    slots: int | None = None  # parallel jobs on the CPU; None: one for each thread, if the memory suffices
    jobs_per_gpu: int = 1  # parallel jobs on each GPU
    rank_by: str = "validation/psnr"  # metric that the final table is sorted by; final/: of the test split
    trial: bool = True  # whether to try each configuration of a long sweep for a few batches before it
    evaluate: bool = False  # whether to evaluate the runs, in the slots; the recognisers are trained first
    report: bool = True  # whether to write the HTML report at the end
    stop_timeout: float = 120.0  # seconds that jobs get to save when the sweep is stopped
    retries: int = 0  # how often a run that a signal killed, such as for want of memory, is started again
