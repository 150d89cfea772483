"""Settings of `panel make` and `panel score`: dataclass schemas for Hydra, and their checks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig

from pegasus_lightning.generate.settings import SPLITS
from pegasus_lightning.utils.compose import Program
from pegasus_lightning.utils.errors import UserError, check_at_least, check_at_most, check_choice, check_seed

MAX_PICTURES, MIN_PICTURES = 500, 4  # of one source


@dataclass
class PanelMakeConfig:
    """The whole configuration of `python -m pegasus_lightning.panel make`."""

    run: list[str] = field(default_factory=list)  # run folders, folders of runs, or checkpoint files
    pretrained: str | None = None  # the name of a model that comes with the package
    images: list[str] = field(default_factory=list)  # folders of 32 x 32 pictures, and .npz files with `images`
    # How each model is asked for pegasi, as one would type it to `generate`: "search=guided pegasus.pairs=random"
    ask: list[str] = field(default_factory=lambda: ["search=none"])
    count: int = 30  # number of pictures of each source
    seed: int = 0
    split: str = "test"  # split that parents and controls come from
    out: str | None = None  # folder for the panel; null: panels/<hash>
    gpus: Any = None  # null: a GPU if there is one, else the CPU; 0: the CPU
    recognisers: str | None = None  # folder of trained recognisers; null: in the user's cache folder


@dataclass
class PanelScoreConfig:
    """The whole configuration of `python -m pegasus_lightning.panel score`."""

    key: str | None = None  # key.json of the panel
    ratings: list[str] = field(default_factory=list)  # CSV files, one of each rater
    seed: int = 0  # of the bootstrap


def validate_make(config: DictConfig) -> None:
    """Check ranges and combinations; touch nothing on disk. Raise UserError with what to type instead."""
    if not config.run and config.pretrained is None and not config.images:
        raise UserError(
            "A panel of what? Say run=FOLDER (of a run), pretrained=pegasus, or images=FOLDER (your own pictures)."
        )
    if config.run and config.pretrained is not None:
        raise UserError("run= and pretrained= both name a model: leave one of them out.")
    check_at_least("count", config.count, MIN_PICTURES)
    check_at_most("count", config.count, MAX_PICTURES)
    check_seed(config.seed)
    check_choice("split", config.split, SPLITS)
    if config.gpus is not None and (type(config.gpus) is not int or config.gpus not in (0, 1)):
        raise UserError(f"gpus={config.gpus} is not understood. Write gpus=0 for the CPU, gpus=1 for a GPU.")
    if len(set(config.ask)) < len(config.ask):
        raise UserError("ask= names one way twice: leave one of them out.")
    if not config.ask and (config.run or config.pretrained):
        raise UserError("ask=[] asks the model for nothing: leave it out, or write ask=['search=none'].")


def validate_score(config: DictConfig) -> None:
    """Check that a key and ratings are named; touch nothing on disk. Raise UserError with what to type instead."""
    if config.key is None:
        raise UserError("Which panel? Say key=FOLDER/key.json, which `panel make` wrote.")
    if not config.ratings:
        raise UserError("Whose ratings? Say ratings=FILE.csv, once for each rater.")
    if len(set(config.ratings)) < len(config.ratings):
        raise UserError("One file of ratings is named twice: each rater has a file of their own.")
    check_seed(config.seed)


def unread_make(config: DictConfig, data: Sequence[str]) -> dict[str, str]:
    """Return the settings of a `PanelMakeConfig` that do not affect a panel, with their reasons."""
    if config.run or config.pretrained is not None:
        return {}
    return dict.fromkeys(["ask", "gpus", "recognisers"], "images= alone, which no model makes")


MAKE = Program(
    "python -m pegasus_lightning.panel make",
    "panel_make",
    (),
    lambda: {"schema/panel_make": PanelMakeConfig},
    unread_make,
)
SCORE = Program(
    "python -m pegasus_lightning.panel score", "panel_score", (), lambda: {"schema/panel_score": PanelScoreConfig}
)
