"""What `generate` can be told: dataclass schemas for Hydra, and one `validate` for them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig

from pegasus_lightning.generate.pairs import COLOUR_DISTANCES, METHODS
from pegasus_lightning.models.latent import MIXINGS
from pegasus_lightning.utils.compose import Program
from pegasus_lightning.utils.errors import (
    UserError,
    check_above,
    check_at_least,
    check_at_most,
    check_choice,
    check_not_negative,
    did_you_mean,
)

CODES = ("sampled", "mean")
JUDGES = ("auto", "recogniser", "committee", "critic")
SEARCHES = ("none", "best_of", "guided")
SPLITS = ("test", "train")
MAX_PEGASI, MAX_CANDIDATES = 10_000, 10_000_000
FIGURES = ("pegasi", "best", "gallery", "repeats", "compare", "diagram", "filmstrip", "interpolation")


@dataclass
class PegasusConfig:
    """Which parents, and how their codes are mixed."""

    pairs: str = "colour"  # random, colour (centre pixels alike) or matched (background, colour and layout alike)
    colour_distance: str = "rgb"  # for colour: rgb (Euclidean, RGB in 0 to 1) or lab (CIE76 delta E)
    threshold: float | None = None  # the largest distance of a pair, in that unit; null: the method's own
    # lerp, slerp, direction (first parent + ratio * way from class to class), learned (by the model);
    mixing: str = "auto"  # auto: learned where a model has learned it, else lerp
    # Drawn from this range, any range: 0 is the first class, 1 the second.
    ratio: list[float] = field(default_factory=lambda: [0.4, 0.6])
    codes: str = "sampled"  # of the parents: sampled (as in the source document) or mean


@dataclass
class ScoreConfig:
    """The score that picks the best, and the weights of its terms: see `pegasus/scores.py`."""

    # recogniser: recognisability and realism; committee: those that guide model=pegasus, and the model's critic for
    # realism; critic: the model's critic alone; auto: the recogniser if it is trained
    judge: str = "auto"
    recognised: float = 1.0
    realism: float = 1.0
    critic: float = 1.0
    overlap: float = 2.0
    overlap_margin: float = 0.02  # root mean squared error, pixels in 0 to 1


@dataclass
class SearchConfig:
    """How the pegasi are found."""

    method: str = "none"  # none: a mix a pair; best_of: the best of many; guided: those, improved by gradient ascent
    pairs: int = 1000  # best_of, guided: how many pairs are tried,
    ratios: int = 4  # each at so many ratios
    most_per_parent: int | None = 2  # in how many of the kept ones a parent may be; null: any
    batch_size: int = 256
    steps: int = 80  # guided: of Adam on the codes,
    lr: float = 0.06
    critic_weight: float = 0.3  # the critic's opinion, beside what the score holds of it already
    start_weight: float = 0.5  # the pull back to the mix that a search began with
    prior_weight: float = 10.0  # how firmly codes are held where the prior has them


@dataclass
class GenerateConfig:
    """The whole configuration of `python -m pegasus_lightning.generate`."""

    run: list[str] = field(default_factory=list)  # run folders, folders of runs, or checkpoint files
    pretrained: str | None = None  # in place of run: a model that comes with the package (`shipped.PRETRAINED`)
    out: str | None = None  # folder for the results; null: inside the run's folder; pegasi/ for pretrained
    count: int = 64  # pegasi to make
    seed: int = 0
    split: str = "test"  # where the parents come from
    first: str | None = None  # two image files to mix, instead of pairs from the data
    second: str | None = None
    figures: list[str] | None = None  # null: all that there is something to draw for
    originals: bool = True  # show the parents' photographs beside their reconstructions
    image_scale: int = 3
    gpus: Any = None  # null: a GPU if there is one, else the CPU; 0: the CPU
    recognisers: str | None = None  # folder of trained recognisers; null: in the user's cache folder
    pegasus: PegasusConfig = field(default_factory=PegasusConfig)
    score: ScoreConfig = field(default_factory=ScoreConfig)
    search: SearchConfig = field(default_factory=SearchConfig)


def validate(config: DictConfig) -> None:
    """Check ranges and combinations; touches nothing on disk.

    Raises:
        UserError: what is wrong, what was meant, what to type.
    """
    validate_model_named(config)
    for key, most in (("count", MAX_PEGASI), ("image_scale", 16)):
        check_at_least(key, config[key], 1)
        check_at_most(key, config[key], most)
    if not 0 <= config.seed < 2**63:
        raise UserError(f"seed={config.seed} is out of range: it must be a whole number from 0 up.")
    check_choice("split", config.split, SPLITS)
    for name in config.figures or ():
        if name not in FIGURES:
            raise UserError(f"figures has no '{name}'.{did_you_mean(name, FIGURES)} Choose from: {', '.join(FIGURES)}.")
    if (config.first is None) != (config.second is None):
        raise UserError("first= and second= go together: name two image files, or neither.")
    validate_gpus(config.gpus)
    named = config.figures or ()
    if config.first is not None and config.pegasus.threshold is not None:
        raise UserError("pegasus.threshold chooses pairs out of the data: leave it out with first= and second=.")
    if config.first is not None and config.pegasus.mixing == "direction":
        raise UserError("pegasus.mixing=direction needs the images of a data source, not first= and second=.")
    if "filmstrip" in named and config.search.method != "guided":
        raise UserError("figures=[filmstrip] shows a guided search: say search=guided too.")
    if "interpolation" in named and (config.first is None or not config.originals):
        raise UserError("figures=[interpolation] shows two image files: say first=, second=, not originals=false.")
    single = config.first is not None or config.count == 1
    for name in ("pegasi", "gallery"):
        if name in named and single:
            raise UserError(f"figures=[{name}] shows several: it needs count=2 or more, and no first= and second=.")
    validate_pegasus(config.pegasus)
    validate_search(config.search)
    validate_score(config.score)


def validate_model_named(config: Any) -> None:
    """Raise UserError unless either `run` or `pretrained` names a model."""
    if not config.run and config.pretrained is None:
        raise UserError(
            "Which model? Say run=FOLDER, a run's folder (or a checkpoint file), such as run=runs/single/..., or "
            "pretrained=pegasus, which comes along."
        )
    if config.run and config.pretrained is not None:
        raise UserError("run= and pretrained= both name a model: leave one of them out.")


def validate_gpus(gpus: Any) -> None:
    """null, 0 or 1: these commands use one device."""
    if gpus is not None and (type(gpus) is not int or gpus not in (0, 1)):
        raise UserError(f"gpus={gpus} is not understood. Write gpus=0 for the CPU, gpus=1 for a GPU.")


def validate_score(score: Any) -> None:
    """Raise UserError for what a `ScoreConfig` must not be."""
    check_choice("score.judge", score.judge, JUDGES)
    for key in ("recognised", "realism", "critic", "overlap"):
        check_not_negative(f"score.{key}", score[key])
    check_above("score.overlap_margin", score.overlap_margin, 0)


def validate_pegasus(pegasus: Any) -> None:
    """Raise UserError for what a `PegasusConfig` must not be."""
    check_choice("pegasus.pairs", pegasus.pairs, METHODS)
    check_choice("pegasus.colour_distance", pegasus.colour_distance, COLOUR_DISTANCES)
    check_above("pegasus.threshold", pegasus.threshold, 0)
    if pegasus.threshold is not None and pegasus.pairs == "random":
        raise UserError("pegasus.threshold means nothing with pegasus.pairs=random: leave it out.")
    check_choice("pegasus.mixing", pegasus.mixing, ("auto", *MIXINGS))
    check_choice("pegasus.codes", pegasus.codes, CODES)
    ratio = list(pegasus.ratio)
    if len(ratio) != 2 or not -10 <= ratio[0] <= ratio[1] <= 10:
        raise UserError(f"pegasus.ratio={ratio} is not a range: write two numbers, as in pegasus.ratio=[0.4,0.6].")


def validate_search(search: Any) -> None:
    """Raise UserError for what a `SearchConfig` must not be."""
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


GENERATE = Program(
    "python -m pegasus_lightning.generate", "generate", ("search",), lambda: {"schema/generate": GenerateConfig}
)
