"""Tests of the settings of `evaluate` and their validation."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from pegasus_lightning.evaluate.settings import EVALUATE, EvaluateConfig, validate
from pegasus_lightning.generate.settings import GenerateConfig
from pegasus_lightning.utils.errors import UserError
from pegasus_lightning.utils.program import run_program


@pytest.fixture(scope="module")
def composed() -> DictConfig:
    return EVALUATE.compose(["run=[x]"])


@pytest.fixture
def config(composed: DictConfig) -> DictConfig:
    """The defaults, as the command composes them."""
    return copy.deepcopy(composed)


def changed(config: DictConfig, settings: dict[str, Any]) -> DictConfig:
    for key, value in settings.items():
        OmegaConf.update(config, key, value)
    return config


def test_the_defaults_are_those_of_the_schema_and_pass(config: DictConfig) -> None:
    assert config == OmegaConf.structured(EvaluateConfig(run=["x"]))
    validate(config)


def test_pegasi_are_made_as_generate_makes_them_by_default() -> None:
    evaluated, generated = EvaluateConfig(), GenerateConfig()
    for name in ("pegasus", "score", "search", "seed", "split", "gpus", "recognisers", "originals"):
        assert getattr(evaluated, name) == getattr(generated, name), name


GOOD: list[dict[str, Any]] = [
    {"count": 64},
    {"count": 10_000, "seed": 2**63 - 1, "split": "train", "threshold": 0.999, "gpus": 0},
    {"out": "elsewhere", "recognisers": "there", "originals": False, "again": True, "gpus": 1},
    {"search.method": "best_of", "search.pairs": 500, "search.ratios": 4},  # just enough for 2000
    {"search.method": "guided", "score.judge": "critic", "score.critic": 2, "score.overlap": 0},
    {"pegasus.pairs": "random", "pegasus.mixing": "direction", "score.judge": "recogniser"},
    {"reporter": "independent", "score.judge": "committee"},
]


@pytest.mark.parametrize("settings", GOOD, ids=str)
def test_what_makes_sense_passes(config: DictConfig, settings: dict[str, Any]) -> None:
    before = changed(config, settings).copy()
    validate(config)
    assert config == before


BAD: list[tuple[dict[str, Any], list[str]]] = [
    ({"run": []}, ["run=FOLDER"]),
    ({"count": 63}, ["count=63", "at least 64"]),
    ({"count": 10_001}, ["count=10001", "at most 10000"]),
    ({"seed": -1}, ["seed=-1"]),
    ({"seed": 2**63}, [f"seed={2**63}"]),
    ({"split": "tests"}, ["split", "Did you mean 'test'?"]),
    ({"threshold": 0.0}, ["threshold=0", "(0, 1)"]),
    ({"threshold": 1.0}, ["threshold=1", "(0, 1)"]),
    ({"threshold": float("nan")}, ["threshold=nan"]),
    ({"gpus": 2}, ["gpus=2", "gpus=0"]),
    ({"gpus": True}, ["gpus=True"]),
    ({"gpus": "all"}, ["gpus=all"]),
    ({"pegasus.pairs": "color"}, ["pegasus.pairs", "Did you mean 'colour'?"]),
    ({"pegasus.ratio": [0.6, 0.4]}, ["pegasus.ratio=[0.6, 0.4]"]),
    ({"search.method": "best"}, ["search.method"]),
    ({"search.pairs": 5}, ["search.pairs", "search=best_of"]),
    ({"reporter": "independant"}, ["reporter=independant", "Did you mean 'independent'?", "standard"]),
    ({"score.judge": "recognizer"}, ["score.judge", "Did you mean 'recogniser'?"]),
    ({"score.recognised": -1.0}, ["score.recognised=-1"]),
    ({"score.realism": float("inf")}, ["score.realism=inf"]),
    ({"score.overlap_margin": 0.0}, ["score.overlap_margin=0"]),
    ({"search.method": "best_of", "search.pairs": 499}, ["count=2000", "1996 candidates", "search.pairs"]),
    ({"search.method": "guided", "search.pairs": 499}, ["count=2000", "1996 candidates", "lower count"]),
]


@pytest.mark.parametrize(("settings", "parts"), BAD, ids=str)
def test_a_bad_value_is_refused_by_name(config: DictConfig, settings: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(UserError) as error:
        validate(changed(config, settings))
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["score.realism=0"], "score.realism=0 means nothing with search=none, which scores no mix: leave it out."),
        (["score.overlap=0", "score.overlap_margin=1"], "mean nothing with search=none, which scores no mix"),
        (["search=guided", "score.judge=critic", "score.recognised=0"], "means nothing with score.judge=critic"),
        (["search=best_of", "search.steps=3"], "search.steps=3 means nothing with search=best_of"),
        (["search=best_of", "score.realism=0"], ""),
        (["score.judge=recogniser"], ""),  # which then says what the gallery shows
        (["search=winged"], ""),
    ],
)
def test_a_setting_that_nothing_reads_is_refused(
    capsys: pytest.CaptureFixture[str], typed: list[str], message: str
) -> None:
    code = run_program(EVALUATE, ["run=x", *typed], lambda config, data: validate(config))
    said = capsys.readouterr().err
    assert code == (2 if message else 0)
    assert message in said
