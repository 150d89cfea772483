"""Settings of `generate`: dataclass schemas for Hydra, and their checks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig

from pegasus_lightning.models.latent import MIXINGS
from pegasus_lightning.runs.scorecards import PEGASUS_RATIOS
from pegasus_lightning.runs.trained import CHECKPOINTS
from pegasus_lightning.utils.compose import Program
from pegasus_lightning.utils.errors import (
    UserError,
    check_above,
    check_at_least,
    check_at_most,
    check_choice,
    check_not_negative,
    check_seed,
    did_you_mean,
)

METHODS = ("random", "colour", "matched", "winged")
COLOUR_DISTANCES = ("rgb", "lab")
CODES = ("sampled", "mean")
JUDGES = ("auto", "recogniser", "committee", "winged", "critic")
SEARCHES = ("none", "best_of", "guided")
GUIDANCE = ("steps", "lr", "critic_weight", "prior_weight", "start_weight")  # fields of `SearchConfig`
SPLITS = ("test", "train")
MAX_PEGASI, MAX_CANDIDATES = 10_000, 10_000_000
FIGURES = ("pegasi", "best", "gallery", "repeats", "compare", "pipeline", "diagram", "filmstrip", "interpolation")


@dataclass
class PegasusConfig:
    """The choice of parents, and the mixing of their codes."""

    # random; colour (similar centre pixels); matched (similar background, colour and layout); winged (horses from the
    # side, birds with spread wings; in other classes what a silhouette shows)
    pairs: str = "colour"
    colour_distance: str = "rgb"  # for colour: rgb (Euclidean, RGB in 0 to 1) or lab (CIE76 delta E)
    threshold: float | None = None  # largest distance of a pair, in the method's unit; null: its default
    # lerp, slerp, direction (first parent + ratio * difference of the class means), learned (by the model);
    mixing: str = "auto"  # auto: learned if the model has learned it, else lerp
    # Ratios are drawn from this range: 0 is the first class, 1 the second.
    ratio: list[float] = field(default_factory=lambda: [*PEGASUS_RATIOS])
    codes: str = "sampled"  # of the parents: sampled from the posterior, or its mean


@dataclass
class ScoreConfig:
    """The score that ranks mixes, and the weights of its terms; see `generate/scores.py`."""

    # recogniser: recognisability and realism; committee: two recognisers for guided searches, with the model's
    # critic for realism; winged: judges of limbs where they belong (those that guide for search=guided, else one that
    # selects), with the critic; critic: the model's critic alone;
    # auto: the recogniser if it is trained, else the critic
    judge: str = "auto"
    recognised: float = 1.0
    realism: float = 1.0
    critic: float = 1.0
    overlap: float = 2.0
    overlap_margin: float = 0.02  # root mean squared error of pixels in 0 to 1


@dataclass
class SearchConfig:
    """The search for good mixes."""

    # none: one mix a pair; best_of: the best of many; guided: the best, improved by gradient ascent
    method: str = "none"
    pairs: int = 1000  # best_of, guided: number of pairs,
    ratios: int = 4  # each at this number of ratios
    most_per_parent: int | None = 2  # largest number of kept mixes with one parent; null: no limit
    batch_size: int = 256
    steps: int = 80  # guided: steps of Adam on the codes,
    lr: float = 0.06  # and its learning rate
    critic_weight: float = 0.3  # the critic's output, in addition to its part of the score
    start_weight: float = 0.5  # pull towards the code that the ascent began with
    prior_weight: float = 10.0  # pull towards codes that are likely under the prior


@dataclass
class GenerateConfig:
    """The whole configuration of `python -m pegasus_lightning.generate`."""

    run: list[str] = field(default_factory=list)  # run folders, folders of runs, or checkpoint files
    checkpoint: str = "last"  # of a run: last, or best (that of its best validation, see trainer.monitor)
    pretrained: str | None = None  # instead of run: the name of a model that comes with the package
    out: str | None = None  # folder for the results; null: inside the run's folder, or pegasi/ for pretrained
    count: int | None = None  # number of pegasi; null: 64, and the best 8 of two image files
    seed: int = 0
    split: str = "test"  # split that the parents come from
    first: str | None = None  # two image files to mix, instead of pairs from the data
    second: str | None = None
    figures: list[str] | None = None  # null: all that apply
    originals: bool = True  # show the parents' photographs beside their reconstructions
    image_scale: int = 3
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
    validate_common(config)
    for key, most in (("count", MAX_PEGASI), ("image_scale", 16)):
        check_at_least(key, config[key], 1)
        check_at_most(key, config[key], most)
    for name in config.figures or ():
        if name not in FIGURES:
            raise UserError(f"figures has no '{name}'.{did_you_mean(name, FIGURES)} Choose from: {', '.join(FIGURES)}.")
    if (config.first is None) != (config.second is None):
        raise UserError("first= and second= go together: name two image files, or neither.")
    named = config.figures or ()
    if config.first is not None and config.pegasus.threshold is not None:
        raise UserError("pegasus.threshold chooses pairs out of the data: leave it out with first= and second=.")
    if config.first is not None and config.pegasus.mixing == "direction":
        raise UserError("pegasus.mixing=direction needs the images of a data source, not first= and second=.")
    if "filmstrip" in named and config.search.method != "guided":
        raise UserError("figures=[filmstrip] shows a guided search: say search=guided too.")
    if "interpolation" in named and (config.first is None or not config.originals):
        raise UserError("figures=[interpolation] shows two image files: say first=, second=, not originals=false.")
    for name in ("pegasi", "gallery"):
        if name in named and config.count == 1:
            raise UserError(f"figures=[{name}] shows several: it needs count=2 or more.")


def validate_common(config: Any, *, needs_model: bool = True) -> None:
    """Check the fields that a `GenerateConfig` and an `EvaluateConfig` share. Raise UserError as `validate` does."""
    if needs_model and not config.run and config.pretrained is None:
        raise UserError(
            "Which model? Say run=FOLDER, a run's folder (or a checkpoint file), such as run=runs/single/..., or "
            "pretrained=pegasus, which comes along."
        )
    if config.run and config.pretrained is not None:
        raise UserError("run= and pretrained= both name a model: leave one of them out.")
    check_choice("checkpoint", config.checkpoint, CHECKPOINTS)
    check_seed(config.seed)
    check_choice("split", config.split, SPLITS)
    if config.gpus is not None and (type(config.gpus) is not int or config.gpus not in (0, 1)):
        raise UserError(f"gpus={config.gpus} is not understood. Write gpus=0 for the CPU, gpus=1 for a GPU.")
    _validate_pegasus(config.pegasus)
    _validate_search(config.search)
    score = config.score
    check_choice("score.judge", score.judge, JUDGES)
    for key in ("recognised", "realism", "critic", "overlap"):
        check_not_negative(f"score.{key}", score[key])
    check_above("score.overlap_margin", score.overlap_margin, 0)


def _validate_pegasus(pegasus: Any) -> None:
    check_choice("pegasus.pairs", pegasus.pairs, METHODS)
    check_choice("pegasus.colour_distance", pegasus.colour_distance, COLOUR_DISTANCES)
    check_above("pegasus.threshold", pegasus.threshold, 0)
    if pegasus.threshold is not None and pegasus.pairs in ("random", "winged"):
        raise UserError(f"pegasus.threshold means nothing with pegasus.pairs={pegasus.pairs}: leave it out.")
    check_choice("pegasus.mixing", pegasus.mixing, ("auto", *MIXINGS))
    check_choice("pegasus.codes", pegasus.codes, CODES)
    ratio = list(pegasus.ratio)
    if len(ratio) != 2 or not -10 <= ratio[0] <= ratio[1] <= 10:
        raise UserError(f"pegasus.ratio={ratio} is not a range: write two numbers, as in pegasus.ratio=[0.4,0.6].")


def _validate_search(search: Any) -> None:
    check_choice("search.method", search.method, SEARCHES)
    for key in ("pairs", "ratios", "most_per_parent", "batch_size", "steps"):
        check_at_least(f"search.{key}", search[key], 1)
    check_at_most("search.pairs times search.ratios", search.pairs * search.ratios, MAX_CANDIDATES)
    check_above("search.lr", search.lr, 0)
    for key in ("critic_weight", "prior_weight", "start_weight"):
        check_not_negative(f"search.{key}", search[key])
    if search.method == "none":
        for key, value in vars(SearchConfig()).items():
            if search[key] != value and key != "batch_size":
                raise UserError(f"search.{key} needs a search: say search=best_of or search=guided too.")


def unread_common(config: Any) -> dict[str, str]:
    """Return the settings that do not affect a result, of those that `GenerateConfig` and `EvaluateConfig` share.

    Each has its reason, which ends the sentence "... means nothing with ...".
    """
    pegasus, score, search = config.pegasus, config.score, config.search
    rules: list[tuple[bool, str, Sequence[str]]] = [
        (pegasus.pairs != "colour", f"pegasus.pairs={pegasus.pairs}", ["pegasus.colour_distance"]),
        (search.method == "best_of", "search=best_of", [f"search.{name}" for name in GUIDANCE]),
        (score.judge == "critic", "score.judge=critic", ["score.recognised", "score.realism"]),
        (score.judge in ("recogniser", "committee", "winged"), f"score.judge={score.judge}", ["score.critic"]),
        (
            config.pretrained is not None and score.judge == "auto",
            f"pretrained={config.pretrained}, whose committee scores",
            ["score.critic"],
        ),
        (config.pretrained is not None, f"pretrained={config.pretrained}, which is one checkpoint", ["checkpoint"]),
        (score.overlap == 0, "score.overlap=0", ["score.overlap_margin"]),
    ]
    return {name: reason for applies, reason, names in rules if applies for name in names}


def unread_settings(config: DictConfig, data: Sequence[str]) -> dict[str, str]:
    """Return the settings of a `GenerateConfig` that do not affect a result, with their reasons (`unread_common`)."""
    unread = unread_common(config)
    if config.first is not None and config.second is not None:
        names = ["pegasus.pairs", "pegasus.colour_distance", "split", "search.most_per_parent"]
        unread |= dict.fromkeys(names, "first= and second=, which are the only pair")
        if config.pretrained is None and config.score.judge == "auto":
            unread |= dict.fromkeys(["score.recognised", "score.realism"], "first= and second=, scored by the critic")
    elif config.pretrained is not None and not data:
        unread["split"] = f"pretrained={config.pretrained} without data=, whose parents are drawn"
    return unread


GENERATE = Program(
    "python -m pegasus_lightning.generate",
    "generate",
    ("search",),
    lambda: {"schema/generate": GenerateConfig},
    unread_settings,
)
