"""Settings of `evaluate`: a dataclass schema for Hydra, and its checks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig

from pegasus_lightning.generate.settings import (
    MAX_PEGASI,
    PegasusConfig,
    ScoreConfig,
    SearchConfig,
    unread_common,
    validate_common,
)
from pegasus_lightning.utils.compose import Program
from pegasus_lightning.utils.errors import (
    UserError,
    check_at_least,
    check_at_most,
    check_choice,
    check_fraction,
)

MIN_PEGASI = 64
REPORTERS = ("standard", "independent")
MIN_FOR_FID = 2000


@dataclass
class EvaluateConfig:
    """The whole configuration of `python -m pegasus_lightning.evaluate`."""

    run: list[str] = field(default_factory=list)  # run folders, folders of runs, or checkpoint files
    checkpoint: str = "last"  # of a run: last, or best (that of its best validation)
    pretrained: str | None = None  # instead of run: the name of a model that comes with the package
    out: str | None = None  # folder for the results; null: inside the run's folder
    count: int = 2000  # number of pegasi
    seed: int = 0
    split: str = "test"  # split that the parents come from
    threshold: float = 0.5  # a pegasus is recognised if both probabilities exceed it
    # reporting recogniser. standard: trained on all photographs; independent: on the half unknown to any committee
    reporter: str = "standard"
    # share that a winged judge calls winged. true: the judge is trained now if need be; null: if it is trained already
    winged: bool | None = None
    inception: bool = False  # FID and KID over Inception's features too (needs the extra [inception])
    prepare: bool = False  # train the recognisers that an evaluation of these images (data=...) needs, and end
    again: bool = False  # evaluate a run even if it was evaluated with these settings before
    verbose: bool = False  # print every figure of the scorecards as tables
    originals: bool = True  # keep photographs (parents, nearest training images) for the report
    gpus: Any = None  # null: a GPU if there is one, else the CPU; 0: the CPU
    recognisers: str | None = None  # folder of trained recognisers; null: in the user's cache folder
    pegasus: PegasusConfig = field(default_factory=PegasusConfig)
    score: ScoreConfig = field(default_factory=ScoreConfig)
    search: SearchConfig = field(default_factory=SearchConfig)


def validate(config: DictConfig) -> None:
    """Check ranges and combinations. Touch nothing on disk.

    Raises:
        UserError: with what is wrong and what to type instead.
    """
    if config.prepare and (config.run or config.pretrained is not None):
        raise UserError("prepare=true trains recognisers, and evaluates no model: leave run= and pretrained= out.")
    validate_common(config, needs_model=not config.prepare)
    check_at_least("count", config.count, MIN_PEGASI)
    check_at_most("count", config.count, MAX_PEGASI)
    if config.inception and config.count < MIN_FOR_FID:
        raise UserError(
            f"inception=true takes count={MIN_FOR_FID} or more: a FID of fewer images measures their number."
        )
    check_choice("reporter", config.reporter, REPORTERS)
    check_fraction("threshold", config.threshold, low_open=True)
    search = config.search
    if search.method != "none" and search.pairs * search.ratios < config.count:
        raise UserError(
            f"count={config.count} pegasi cannot be found among {search.pairs * search.ratios} candidates: raise "
            "search.pairs, or lower count."
        )


def unread_settings(config: DictConfig, data: Sequence[str]) -> dict[str, str]:
    """Return the settings that do not affect a result, with their reasons (`unread_common`)."""
    unread = unread_common(config)
    if config.search.method == "none":  # the judge still says which pegasi the gallery shows
        unread |= {f"score.{name}": "search=none, which scores no mix" for name in config.score if name != "judge"}
    return unread


EVALUATE = Program(
    "python -m pegasus_lightning.evaluate",
    "evaluate",
    ("search",),
    lambda: {"schema/evaluate": EvaluateConfig},
    unread_settings,
)
