"""Settings of `demo`: the dataclass schema for Hydra, and its checks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from omegaconf import DictConfig

from pegasus_lightning.generate.settings import SPLITS
from pegasus_lightning.utils.compose import Program
from pegasus_lightning.utils.errors import UserError, check_at_least, check_at_most, check_choice, check_seed

DEFAULT_MODEL = "pegasus"  # of those that come with the package
PACKAGE = "gradio"


@dataclass
class DemoConfig:
    """The whole configuration of `python -m pegasus_lightning.demo`."""

    run: list[str] = field(default_factory=list)  # a run's folder or a checkpoint file
    export: str | None = None  # instead of run: a folder that `export` wrote
    pretrained: str | None = None  # instead of run: a model that comes with the package; the default without both
    host: str = "127.0.0.1"  # address that the page is served at; 0.0.0.0: to every machine that reaches this one
    port: int = 7860
    open: bool = False  # open the page in the browser of this machine
    seed: int = 0  # of the parents that are offered
    split: str = "test"  # split that the parents come from
    out: str | None = None  # folder of favourites; null: pegasi/favourites in the run's folder, or in this one
    gpus: Any = None  # null: a GPU if there is one, else the CPU; 0: the CPU
    recognisers: str | None = None  # folder of trained recognisers; null: in the user's cache folder


def validate(config: DictConfig) -> None:
    """Check ranges, combinations and that Gradio is installed. Touch nothing on disk.

    Raises:
        UserError: with what is wrong and what to type instead.
    """
    named = [f"{key}=" for key in ("run", "export", "pretrained") if config[key]]
    if len(named) > 1:
        raise UserError(f"{' and '.join(named)} each name a model: leave all but one of them out.")
    check_at_least("port", config.port, 1)
    check_at_most("port", config.port, 65535)
    if not config.host.strip():
        raise UserError("host= is empty: leave it out, or say host=0.0.0.0 to serve other machines too.")
    check_seed(config.seed)
    check_choice("split", config.split, SPLITS)
    if config.gpus is not None and (type(config.gpus) is not int or config.gpus not in (0, 1)):
        raise UserError(f"gpus={config.gpus} is not understood. Write gpus=0 for the CPU, gpus=1 for a GPU.")
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:  # a folder of that name has no origin
        raise UserError("The demo needs a package that is not installed. In a checkout: pip install -e '.[demo]'.")


def unread_settings(config: DictConfig, data: Sequence[str]) -> dict[str, str]:
    """Return the settings that do not affect the page, with their reasons."""
    if config.run or data:
        return {}
    if config.export is not None:
        return {"split": "export= without data=, whose parents are drawn from the prior"}
    return {"split": "a pretrained model without data=, whose parents are decoded from its own codes"}


DEMO = Program("python -m pegasus_lightning.demo", "demo", (), lambda: {"schema/demo": DemoConfig}, unread_settings)
