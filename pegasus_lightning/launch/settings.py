"""Settings of the launcher `pool` and the sweeper `optuna`, in a module that every command can import fast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


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


@dataclass
class SearchSettings:
    """The section `hydra.sweeper` of the sweeper `optuna`."""

    n_trials: int = 20  # trials in all, with those of earlier commands
    seed: int = 0  # of the draws of settings
    random_trials: int = 10  # trials whose settings are drawn at random before the others follow the results
    prune: bool = True  # whether to end trials early that are worse than the median at the same epoch
    prune_after_epochs: int = 3  # no trial is ended before this many epochs,
    prune_after_trials: int = 5  # nor before this many trials have finished
    params: dict[str, Any] | None = None  # what a preset searches over: values by setting, as on the command line
