"""The sweeper `optuna`: a search over settings, whose trials are runs in the pool."""
# No `from __future__ import annotations`: Hydra loads plugins outside sys.modules, where names cannot be looked up.

from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from pegasus_lightning.launch.settings import PoolSettings, SearchSettings


@dataclass
class SearchConfig(SearchSettings):
    """The section `hydra.sweeper`."""

    _target_: str = "hydra_plugins.pegasus_optuna.sweeper.OptunaSweeper"


ConfigStore.instance().store(group="hydra/sweeper", name="optuna", node=SearchConfig, provider="pegasus_lightning")


class OptunaSweeper(Sweeper):
    """Searches with Optuna (`pegasus_lightning/launch/search.py`)."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings
        self.config: DictConfig | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config = config

    def sweep(self, arguments: list[str]) -> None:
        """Search among the values that preset and `arguments` give. Raise SweepEnded unless every trial ends well."""
        # Imported here, so that Hydra's search for plugins stays fast.
        from pegasus_lightning.launch.search import run_search
        from pegasus_lightning.utils.errors import SweepEnded

        assert self.config is not None
        # The folders of further presets, which are no settings of a run.
        shared = [text for text in self.config.hydra.overrides.hydra if text.startswith("hydra.searchpath=")]
        launcher: Any = OmegaConf.to_container(self.config.hydra.launcher)
        pool = PoolSettings(**{key: value for key, value in launcher.items() if key != "_target_"})
        code = run_search([*shared, *arguments], SearchSettings(**self.settings), pool)
        if code:
            raise SweepEnded(code)
