"""Tests of `panel score`: shares, intervals, agreement, files of ratings."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pegasus_lightning.panel.letters import LETTERS
from pegasus_lightning.panel.score import Answers, agreement, mean_interval, score, share_interval, votes_grid
from pegasus_lightning.panel.settings import SCORE, validate_score
from pegasus_lightning.runs.scorecards import PEGASI, Scorecard, with_panel
from pegasus_lightning.utils.errors import UserError


def write(path: Path, panel: str, answers: dict[int, tuple[str, str]]) -> Path:
    rows = [f"{panel},{number},{letter},{real}" for number, (letter, real) in answers.items()]
    path.write_text("\n".join(["panel,number,letter,realism", *rows]) + "\n")
    return path


def run(panel: Path, *files: Path) -> dict[str, Any]:
    config = SCORE.compose([f"key='{panel / 'key.json'}'", f"ratings=[{','.join(repr(str(file)) for file in files)}]"])
    validate_score(config)
    return score(config)


@pytest.fixture
def copy(panel: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(panel, tmp_path / "panel"))


def test_shares_are_means_over_pictures_and_raters(copy: Path, key: dict[str, Any], tmp_path: Path) -> None:
    numbers = {s: [p["number"] for p in key["pictures"] if p["source"] == s] for s in key["sources"]}
    first, second = {}, {}
    for source, own in numbers.items():
        for place, number in enumerate(own):
            first[number] = ("W" if source == "compositions" and place < 3 else "H", "4")
            second[number] = ("w" if source == "compositions" and place < 2 else "B", "2" if place else "")
    files = [write(tmp_path / "ann.csv", key["panel"], first), write(tmp_path / "ben.csv", key["panel"], second)]
    result = run(copy, *files)
    row = result["rows"]["compositions"]
    assert row["W"]["value"] == 5 / 8 and row["H"]["value"] == 1 / 8 and row["B"]["value"] == 2 / 8
    assert row["realism"]["value"] == (4 + 3 * 3) / 4  # the first picture has one rating alone
    assert row["pictures"] == 4 and row["ratings"] == 8
    assert result["rows"]["real bird"]["W"]["value"] == 0 < result["rows"]["real bird"]["W"]["high"]
    assert result["raters"] == ["ann", "ben"]
    winged = [p for p in result["pictures"] if p["letters"] == "WW"]
    assert len(winged) == 2 and all(p["source"] == "compositions" for p in winged)
    assert {path.name for path in copy.iterdir()} >= {"score.json", "score.txt", "votes.png"}
    assert "Cohen's kappa over 28 pictures" in (copy / "score.txt").read_text()


def test_pictures_that_a_rater_left_out_count_for_the_others(copy: Path, key: dict[str, Any], tmp_path: Path) -> None:
    numbers = [p["number"] for p in key["pictures"] if p["source"] == "real horse"]
    one = write(tmp_path / "one.csv", key["panel"], dict.fromkeys(numbers, ("H", "5")))
    few = write(tmp_path / "few.csv", key["panel"], {n: ("N", "1") if n == numbers[0] else ("", "") for n in numbers})
    rows = run(copy, one, few)["rows"]
    assert list(rows) == ["real horse"]
    assert rows["real horse"]["H"]["value"] == (0.5 + 3) / 4


def test_kappa_by_hand() -> None:
    h, w, n = (LETTERS.index(letter) for letter in "HWN")
    two = np.array([[h, h, w, w, n, n, h, -1], [h, w, w, w, n, h, h, h]])
    # 5 of 7 agree; by chance 3/7 * 3/7 + 2/7 * 3/7 + 2/7 * 1/7 = 17/49
    found = agreement(two)
    assert found["pictures"] == 7
    assert found["kappa"] == pytest.approx((5 / 7 - 17 / 49) / (1 - 17 / 49))
    # W or not: 6 of 7 agree; by chance 2/7 * 3/7 + 5/7 * 4/7 = 26/49
    assert found["winged"] == pytest.approx((6 / 7 - 26 / 49) / (1 - 26 / 49))
    three = np.array([[h, w], [h, w], [h, h]])
    # Fleiss: a picture agrees by 1 and 1/3; by chance (4/6)^2 + (2/6)^2 = 5/9
    assert agreement(three)["kappa"] == pytest.approx((2 / 3 - 5 / 9) / (1 - 5 / 9), abs=1e-4)
    assert agreement(two[:1])["kappa"] is None
    assert agreement(np.array([[h, h], [h, h]]))["kappa"] is None  # undefined


@pytest.mark.parametrize("share", [0.03, 0.1, 0.3, 0.5, 0.8])
def test_intervals_of_shares_cover_the_truth(share: float) -> None:
    """Two raters who agree in part: of 400 panels of 30 pictures, some 95 % must have the truth in their interval."""
    source = np.random.default_rng(1)
    hits = 0
    for trial in range(400):
        # how likely a rater is to vote for a picture differs between pictures; its mean is the share
        each = source.beta(2 * share, 2 * (1 - share), 30)
        votes = (source.random((2, 30)) < each).mean(0)
        found = share_interval(votes, trial)
        hits += found.low <= share <= found.high
    assert 0.92 <= hits / 400 <= 0.995


def test_intervals_of_means_are_the_bootstraps() -> None:
    values = np.random.default_rng(0).normal(3, 1, 400)
    found = mean_interval(values)
    half = 1.96 * values.std() / 20
    assert found.low == pytest.approx(values.mean() - half, abs=0.01)
    assert found.high == pytest.approx(values.mean() + half, abs=0.01)


REFUSALS = [
    ("panel,number,letter,realism\nabc,1,H,3\n", "is of panel abc, and the key of"),
    ("panel,number,letter,realism\n{p},99,H,3\n", "no picture '99', only 1 to 28"),
    ("panel,number,letter,realism\n{p},1,H,3\n{p},1,W,3\n", "line 3: picture 1 is rated twice"),
    ("panel,number,letter,realism\n{p},1,X,3\n", "there is no letter 'X'. Letters: H, R, W, B, O, N"),
    ("panel,number,letter,realism\n{p},1,H,6\n", "realism is a number from 1 to 5, not '6'"),
    ("panel,number,letter,realism\n{p},1,,\n", "rates no picture"),
    ("number,letter\n1,H\n", "has no column panel, realism"),
    ("", "has no column panel, number, letter, realism"),
]


@pytest.mark.parametrize(("content", "message"), REFUSALS)
def test_wrong_ratings_are_refused_in_a_sentence(
    content: str, message: str, copy: Path, key: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "wrong.csv"
    file.write_text(content.replace("{p}", key["panel"]))
    with pytest.raises(UserError, match=message.replace("(", r"\(").replace(".", r"\.")):
        run(copy, file)
    assert not (copy / "score.json").exists()


def test_files_that_are_missing_or_named_twice_and_keys_that_are_none(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be opened"):
        run(copy, tmp_path / "nowhere.csv")
    with pytest.raises(UserError, match="named twice"):
        run(copy, tmp_path / "a.csv", tmp_path / "a.csv")
    with pytest.raises(UserError, match="Whose ratings"):
        run(copy)
    whole = json.loads((copy / "key.json").read_text())
    for broken in ({"panel": "x", "pictures": []}, whole | {"classes": ["horse"]}, whole | {"sources": ["real bird"]}):
        (copy / "key.json").write_text(json.dumps(broken))
        with pytest.raises(UserError, match="is not the key of a panel"):
            run(copy, tmp_path / "a.csv")


def test_pictures_that_are_broken_or_of_another_panel_are_refused_before_anything_is_written(
    copy: Path, key: dict[str, Any], tmp_path: Path
) -> None:
    file = write(tmp_path / "a.csv", key["panel"], {1: ("H", "3")})
    whole = (copy / "images.npz").read_bytes()
    for content, message in ((whole[:100], "no array `images`"), (b"", "no array `images`")):
        (copy / "images.npz").write_bytes(content)
        with pytest.raises(UserError, match=message):
            run(copy, file)
    np.savez(copy / "images.npz", images=np.zeros((3, 3, 32, 32), np.uint8))
    with pytest.raises(UserError, match="is of another panel than"):
        run(copy, file)
    assert not (copy / "score.json").exists()


def test_pictures_that_nobody_rated_are_in_no_row_of_the_votes() -> None:
    letters = np.array([[LETTERS.index("W"), LETTERS.index("H"), -1, LETTERS.index("W")]] * 2)
    letters[1, 3] = LETTERS.index("B")
    realism = np.array([[1.0, 2, np.nan, 5]] * 2)
    greys = (torch.arange(4) * 60).byte()[:, None, None, None].expand(4, 3, 32, 32)
    grid = votes_grid(Answers(["a", "b"], letters, realism), greys)
    found = set(np.unique(grid[:, :, 0]).tolist())
    assert {0, 60, 180} <= found  # the third, 120, was not rated
    rows = [np.flatnonzero((grid == shade).all((1, 2)) | (grid == shade).all(2).any(1)) for shade in (0, 180, 60)]
    assert rows[0].mean() < rows[1].mean() < rows[2].mean()  # two votes, one, none


@pytest.mark.parametrize("named", ["beside", "home", "absolute"])
def test_a_runs_folder_keeps_what_is_said_of_its_pegasi(
    copy: Path, key: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    run_folder = tmp_path / "run"
    (run_folder / "checkpoints").mkdir(parents=True)
    settings = {"pegasus": {"pairs": "colour"}, "search": {"method": "none"}}
    place = {"beside": os.path.relpath(run_folder, copy), "home": "~/run", "absolute": str(run_folder)}[named]
    about = {"run": place, "batches": 7, "ask": "search=none", "settings": settings, "parents": {}}
    own, other = key["sources"] | {"compositions": about}, about | {"settings": settings | {"search": {"method": "x"}}}
    (copy / "key.json").write_text(json.dumps(key | {"sources": own | {"real bird": other}}))
    winged = {p["number"]: "W" if p["source"] == "compositions" else "B" for p in key["pictures"]}
    run(copy, write(tmp_path / "a.csv", key["panel"], {number: (letter, "3") for number, letter in winged.items()}))
    assert len(list((run_folder / "panel").iterdir())) == 2
    card = Scorecard(
        "r", "r", "r", 0, 7, ["horse", "bird"], "k", settings, {}, {}, {PEGASI: {}}, {PEGASI: 64}, {}
    )  # of the same weights, asked in the same way
    found = with_panel(card, run_folder).rows[PEGASI]
    assert found["panel_winged"].value == 1 and found["panel_second"].value == 0
    asked_otherwise = dataclasses.replace(card, settings=settings | {"search": {"method": "x"}})
    assert with_panel(asked_otherwise, run_folder).rows[PEGASI]["panel_second"].value == 1
