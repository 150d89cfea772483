"""The launcher `pool`: runs of a sweep in parallel on this machine's GPUs, or on shares of its CPU."""
# No `from __future__ import annotations`: Hydra loads plugins outside sys.modules, where names cannot be looked up.

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from pegasus_lightning.launch.settings import PoolSettings


@dataclass
class PoolConfig(PoolSettings):
    """The section `hydra.launcher`."""

    _target_: str = "hydra_plugins.pegasus_pool.launcher.PoolLauncher"


ConfigStore.instance().store(group="hydra/launcher", name="pool", node=PoolConfig, provider="pegasus_lightning")


class PoolLauncher(Launcher):
    """Runs each job as `python -m pegasus_lightning` in a process of its own (`pegasus_lightning/launch/pool.py`)."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings
        self.config: DictConfig | None = None
        self.hydra_context: HydraContext | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config, self.hydra_context = config, hydra_context

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs, without those that `plan_sweep` leaves out. Raise SweepEnded unless every run finishes."""
        # Imported here, so that Hydra's search for plugins stays fast.
        from pegasus_lightning.launch.planning import plan_sweep
        from pegasus_lightning.launch.sweep import run_sweep
        from pegasus_lightning.utils.errors import SweepEnded

        assert self.config is not None and self.hydra_context is not None
        loader = self.hydra_context.config_loader
        # The folders of further presets, which are no settings of a run.
        shared = [text for text in self.config.hydra.overrides.hydra if text.startswith("hydra.searchpath=")]
        runs, _ = plan_sweep(
            (loader.load_sweep_config(self.config, list(overrides)), [*shared, *overrides])
            for overrides in job_overrides
        )
        if not runs:
            return []  # Hydra can split a sweep into batches
        code = run_sweep(runs, PoolSettings(**self.settings))
        if code:
            raise SweepEnded(code)
        return [
            JobReturn(overrides=list(run.overrides), _return_value=str(run.folder), status=JobStatus.COMPLETED)
            for run in runs
        ]
