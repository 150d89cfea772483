"""Tests of the settings of `generate` and their validation."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from pegasus_lightning.generate.settings import GENERATE, validate
from pegasus_lightning.utils.errors import UserError
from pegasus_lightning.utils.program import run_program


@pytest.fixture(scope="module")
def composed() -> DictConfig:
    return GENERATE.compose(["run=[x]"])


@pytest.fixture
def config(composed: DictConfig) -> DictConfig:
    """The defaults, as the command composes them."""
    return copy.deepcopy(composed)


def changed(config: DictConfig, settings: dict[str, Any]) -> DictConfig:
    for key, value in settings.items():
        OmegaConf.update(config, key, value)
    return config


GOOD: list[dict[str, Any]] = [
    {},
    {"search.method": "best_of", "search.most_per_parent": None},
    {"search.method": "guided", "search.critic_weight": 0, "search.prior_weight": 0, "search.steps": 1},
    {"pegasus.pairs": "random"},
    {"pegasus.pairs": "matched", "pegasus.threshold": 0.05},
    {"pegasus.colour_distance": "lab", "pegasus.mixing": "slerp", "pegasus.codes": "mean"},
    {"pegasus.mixing": "direction", "pegasus.ratio": [0.5, 0.5]},
    {"score.critic": 0, "score.overlap": 0},
    {"first": "horse.png", "second": "bird.png"},
    {"figures": []},
    {"figures": ["pegasi", "best", "gallery", "repeats", "compare", "diagram"]},
    {"figures": ["pegasi", "filmstrip"], "search.method": "guided"},
    {"figures": ["best", "interpolation"], "first": "horse.png", "second": "bird.png"},
    {"originals": False, "first": "horse.png", "second": "bird.png"},
    {"figures": ["best", "diagram"], "count": 1},
    {"figures": ["pegasi", "gallery"], "count": 2},
    {"gpus": 0, "count": 1, "image_scale": 1, "split": "train"},
    {"count": 10_000, "image_scale": 16, "pegasus.ratio": [-10, 10]},
    {"search.method": "best_of", "search.pairs": 2_500_000},
    {"search.batch_size": 3},
    {"gpus": 1, "seed": 2**63 - 1},
]


@pytest.mark.parametrize("settings", GOOD, ids=str)
def test_what_makes_sense_passes(config: DictConfig, settings: dict[str, Any]) -> None:
    before = changed(config, settings).copy()
    validate(config)
    assert config == before  # and stays as it is


@pytest.mark.parametrize("preset", ["none", "best_of", "guided"])
def test_every_preset_passes(preset: str) -> None:
    config = GENERATE.compose(["run=[x]", f"search={preset}"])
    validate(config)
    assert config.search.method == preset


NAN, INF = float("nan"), float("inf")

BAD: list[tuple[str, Any, str]] = [
    ("run", [], "Which model? Say run=FOLDER"),
    ("count", 0, "count=0 is out of range: it must be at least 1."),
    ("count", 10_001, "count=10001 is out of range: it must be at most 10000."),
    ("image_scale", 17, "image_scale=17 is out of range: it must be at most 16."),
    ("image_scale", 0, "image_scale=0 is out of range: it must be at least 1."),
    ("seed", -1, "seed=-1 is out of range"),
    ("seed", 2**63, f"seed={2**63} is out of range"),
    ("split", "tests", "split=tests is not a choice. Did you mean 'test'? Choose from: test, train."),
    ("figures", ["best", "gallry"], "figures has no 'gallry'. Did you mean 'gallery'? Choose from: pegasi, best,"),
    ("first", "horse.png", "first= and second= go together"),
    ("second", "bird.png", "first= and second= go together"),
    ("gpus", 2, "gpus=2 is not understood"),
    ("gpus", -1, "gpus=-1 is not understood"),
    ("gpus", True, "gpus=True is not understood"),
    ("gpus", [0], "gpus=[0] is not understood"),
    ("gpus", "all", "gpus=all is not understood"),
    ("pegasus.pairs", "color", "pegasus.pairs=color is not a choice. Did you mean 'colour'?"),
    ("pegasus.colour_distance", "labs", "pegasus.colour_distance=labs is not a choice. Did you mean 'lab'?"),
    ("pegasus.threshold", 0, "pegasus.threshold=0.0 is out of range"),
    ("pegasus.threshold", -0.1, "pegasus.threshold=-0.1 is out of range"),
    ("pegasus.threshold", NAN, "pegasus.threshold=nan is out of range"),
    ("pegasus.threshold", INF, "pegasus.threshold=inf is out of range"),
    ("pegasus.mixing", "slurp", "pegasus.mixing=slurp is not a choice. Did you mean 'slerp'?"),
    ("pegasus.codes", "means", "pegasus.codes=means is not a choice. Did you mean 'mean'?"),
    ("pegasus.ratio", [0.5], "pegasus.ratio=[0.5] is not a range"),
    ("pegasus.ratio", [0.1, 0.2, 0.3], "pegasus.ratio=[0.1, 0.2, 0.3] is not a range"),
    ("pegasus.ratio", [0.6, 0.4], "pegasus.ratio=[0.6, 0.4] is not a range"),
    ("pegasus.ratio", [NAN, 0.4], "pegasus.ratio=[nan, 0.4] is not a range"),
    ("pegasus.ratio", [0.4, INF], "pegasus.ratio=[0.4, inf] is not a range"),
    ("pegasus.ratio", [-10.5, 0.4], "pegasus.ratio=[-10.5, 0.4] is not a range"),
    ("pegasus.ratio", [0.4, 10.5], "pegasus.ratio=[0.4, 10.5] is not a range"),
    ("search.method", "best-of", "search.method=best-of is not a choice. Did you mean 'best_of'?"),
    ("search.pairs", 0, "search.pairs=0 is out of range"),
    ("search.ratios", 0, "search.ratios=0 is out of range"),
    (
        "search.pairs",
        2_500_001,
        "search.pairs times search.ratios=10000004 is out of range: it must be at most 10000000.",
    ),
    ("search.most_per_parent", 0, "search.most_per_parent=0 is out of range"),
    ("search.batch_size", 0, "search.batch_size=0 is out of range"),
    ("search.steps", 0, "search.steps=0 is out of range"),
    ("search.lr", 0, "search.lr=0.0 is out of range"),
    ("search.lr", INF, "search.lr=inf is out of range"),
    ("search.critic_weight", -1, "search.critic_weight=-1.0 is out of range"),
    ("search.prior_weight", NAN, "search.prior_weight=nan is out of range"),
    ("search.prior_weight", INF, "search.prior_weight=inf is out of range"),
    ("search.start_weight", -1, "search.start_weight=-1.0 is out of range"),
    ("search.start_weight", INF, "search.start_weight=inf is out of range"),
    ("score.critic", -1, "score.critic=-1.0 is out of range"),
    ("score.overlap", INF, "score.overlap=inf is out of range"),
    ("score.overlap_margin", 0, "score.overlap_margin=0.0 is out of range"),
]


@pytest.mark.parametrize(("key", "value", "message"), BAD, ids=[f"{key}={value}" for key, value, _ in BAD])
def test_a_bad_value_is_refused_by_name(config: DictConfig, key: str, value: object, message: str) -> None:
    with pytest.raises(UserError) as error:
        validate(changed(config, {key: value}))
    assert message in str(error.value)


FILES = {"first": "horse.png", "second": "bird.png"}
SEVERAL = "shows several: it needs count=2 or more."

TOGETHER: list[tuple[dict[str, Any], str]] = [
    (FILES | {"pegasus.threshold": 0.1}, "pegasus.threshold chooses pairs out of the data"),
    (FILES | {"pegasus.mixing": "direction"}, "pegasus.mixing=direction needs the images of a data source"),
    ({"figures": ["best", "filmstrip"]}, "figures=[filmstrip] shows a guided search: say search=guided too."),
    ({"figures": ["filmstrip"], "search.method": "best_of"}, "figures=[filmstrip] shows a guided search"),
    ({"figures": ["interpolation"]}, "figures=[interpolation] shows two image files: say first=, second="),
    (FILES | {"figures": ["interpolation"], "originals": False}, "not originals=false."),
    (FILES | {"figures": ["best", "pegasi"], "count": 1}, f"figures=[pegasi] {SEVERAL}"),
    ({"figures": ["pegasi"], "count": 1}, f"figures=[pegasi] {SEVERAL}"),
    ({"figures": ["gallery"], "count": 1}, f"figures=[gallery] {SEVERAL}"),
    (
        {"pegasus.threshold": 0.1, "pegasus.pairs": "random"},
        "pegasus.threshold means nothing with pegasus.pairs=random",
    ),
]


@pytest.mark.parametrize(("settings", "message"), TOGETHER, ids=[str(settings) for settings, _ in TOGETHER])
def test_what_does_not_go_together_is_refused(config: DictConfig, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        validate(changed(config, settings))
    assert message in str(error.value)


SEARCHED: dict[str, Any] = {
    "pairs": 999,
    "ratios": 5,
    "most_per_parent": None,
    "steps": 81,
    "lr": 0.07,
    "critic_weight": 0.0,
    "start_weight": 0.0,
    "prior_weight": 1.0,
}


@pytest.mark.parametrize(("key", "value"), SEARCHED.items())
def test_settings_of_a_search_need_one(config: DictConfig, key: str, value: object) -> None:
    with pytest.raises(UserError) as error:
        validate(changed(config, {f"search.{key}": value}))
    assert str(error.value) == f"search.{key} needs a search: say search=best_of or search=guided too."
    validate(changed(config, {"search.method": "guided"}))


# Settings that nothing reads, as they are typed.

TWO = ["first=horse.png", "second=bird.png"]
UNREAD: list[tuple[list[str], str]] = [
    (
        ["pegasus.pairs=random", "pegasus.colour_distance=lab"],
        "pegasus.colour_distance=lab means nothing with pegasus.p",
    ),
    (["search=winged", "pegasus.colour_distance=lab"], "nothing with pegasus.pairs=winged: leave it out."),
    (
        ["search=best_of", "search.steps=9", "search.lr=1"],
        "search.steps=9 and search.lr=1 mean nothing with search=best_of",
    ),
    (["search=winged", "search.start_weight=1"], "search.start_weight=1 means nothing with search=best_of: leave it"),
    (["score.judge=critic", "score.realism=0"], "score.realism=0 means nothing with score.judge=critic: leave it out."),
    (["score.judge=recogniser", "score.critic=2"], "score.critic=2 means nothing with score.judge=recogniser"),
    (["search=winged", "score.critic=2"], "score.critic=2 means nothing with score.judge=winged"),
    (["score.overlap=0", "score.overlap_margin=0.1"], "score.overlap_margin=0.1 means nothing with score.overlap=0"),
    ([*TWO, "pegasus.pairs=random", "split=train"], "mean nothing with first= and second=, which are the only pair"),
    ([*TWO, "search=best_of", "search.most_per_parent=9"], "search.most_per_parent=9 means nothing with first="),
    ([*TWO, "score.realism=0"], "score.realism=0 means nothing with first= and second=, scored by the critic"),
]


def passed_on(*arguments: str) -> int:
    """The exit code of a command that composes, checks what is read, validates, and does no work."""
    return run_program(GENERATE, arguments, lambda config, data: validate(config))


@pytest.mark.parametrize(("typed", "message"), UNREAD, ids=[" ".join(typed) for typed, _ in UNREAD])
def test_a_setting_that_nothing_reads_is_refused(
    capsys: pytest.CaptureFixture[str], typed: list[str], message: str
) -> None:
    assert passed_on("run=x", *typed) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("typed", "unread"),
    [
        (["score.critic=2"], "score.critic=2"),
        (["split=train"], "split=train"),
        (["split=train", "data=silhouettes"], ""),
    ],
)
def test_the_pretrained_models_committee_scores_and_its_parents_are_drawn(
    capsys: pytest.CaptureFixture[str], typed: list[str], unread: str
) -> None:
    assert passed_on("pretrained=pegasus", *typed) == (2 if unread else 0)
    assert capsys.readouterr().err.startswith(f"pegasus_lightning: {unread} means nothing with pret" if unread else "")


@pytest.mark.parametrize(
    "typed",
    [
        ["search=winged"],
        ["search=guided_winged"],
        ["search=winged", "score.judge=critic"],  # the preset's score.realism is then unread
        ["search=winged", *TWO],
        ["search=guided", "search.steps=9", "score.overlap=0"],
        ["score.realism=0", "score.overlap_margin=0.1", "score.critic=3"],  # the best of what is drawn has a score
        ["pegasus.colour_distance=lab"],
        [*TWO, "count=9", "seed=3", "search=best_of", "search.pairs=9"],
    ],
)
def test_what_is_read_or_as_in_the_preset_is_accepted(typed: list[str]) -> None:
    assert passed_on("run=x", *typed) == 0
