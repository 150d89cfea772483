"""Tests of `panel make`: sources, shuffling, and what raters can see."""

from __future__ import annotations

import itertools
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pegasus_lightning.panel.__main__ import main
from pegasus_lightning.panel.letters import meanings
from pegasus_lightning.panel.make import _told, make
from pegasus_lightning.panel.score import _run_of
from pegasus_lightning.panel.settings import MAKE, validate_make
from pegasus_lightning.utils.errors import UserError

CONTROLS = ["real horse", "real bird", "compositions", "compositions without a limb", "pixel average", "CutMix"]


def test_all_sources_are_there_and_the_key_says_where_each_picture_is_from(panel: Path, key: dict[str, Any]) -> None:
    assert list(key["sources"]) == ["verysecretsource", *CONTROLS]
    counts = Counter(picture["source"] for picture in key["pictures"])
    assert counts == dict.fromkeys(["verysecretsource", *CONTROLS], 4)
    images = np.load(panel / "images.npz")["images"]
    greys = {p["index"]: images[p["number"] - 1] for p in key["pictures"] if p["source"] == "verysecretsource"}
    assert [int(greys[i].mean()) for i in range(4)] == [100, 101, 102, 103]
    sources = [picture["source"] for picture in key["pictures"]]
    assert sum(a != b for a, b in itertools.pairwise(sources)) > 15  # shuffled


def test_raters_see_nothing_of_the_sources(panel: Path, key: dict[str, Any]) -> None:
    files = sorted(path.name for path in (panel / "raters").iterdir())
    assert files == ["panel.html", "ratings.csv", "sheet-01.png"]
    for name in ("panel.html", "ratings.csv"):
        text = (panel / "raters" / name).read_text()
        assert key["panel"] in text
        for source in key["sources"]:
            assert source not in text
        assert "://" not in text
    with Image.open(panel / "raters" / "sheet-01.png") as sheet:
        assert not sheet.info
    rows = (panel / "raters" / "ratings.csv").read_text().splitlines()
    assert rows[0] == "panel,number,letter,realism"
    assert rows[1:] == [f"{key['panel']},{number},," for number in range(1, 29)]


def test_the_hash_is_of_pictures_and_order(
    panel: Path, key: dict[str, Any], photographs: Path, own: Path, tmp_path: Path
) -> None:
    data = ["data=image_folder", f"data.root={photographs}", f"data.cache={tmp_path / 'cache'}"]
    found = []
    for seed in (0, 1):
        folder = tmp_path / str(seed)
        make(MAKE.compose([f"images=['{own}']", "count=4", f"seed={seed}", f"out='{folder}'"]), data)
        found.append(json.loads((folder / "key.json").read_text())["panel"])
    assert found[0] == key["panel"] != found[1]


def test_ways_of_asking_a_model_reconstructions_and_a_folder_of_pictures(photographs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(4):
        Image.fromarray(np.full((32, 32, 3), 10 * i, np.uint8)).save(folder / f"{i}.png")
    ask = '["search=none","search=best_of search.pairs=4 search.ratios=2 pegasus.pairs=random score.judge=critic"]'
    overrides = ["pretrained=pegasus", f"images=['{folder}']", "count=4", f"ask={ask}", "gpus=0"]
    data = ["data=image_folder", f"data.root={photographs}", f"data.cache={tmp_path / 'cache'}"]
    made = make(MAKE.compose([*overrides, f"out='{tmp_path / 'out'}'"]), data)
    key = json.loads((made / "key.json").read_text())
    best = "pegasus search=best_of search.pairs=4 search.ratios=2 pegasus.pairs=random score.judge=critic"
    expected = ["pictures", "pegasus search=none", best, *CONTROLS[:4], "reconstructions of horse"]
    assert list(key["sources"]) == [*expected, "reconstructions of bird", *CONTROLS[4:]]
    assert key["sources"][best]["settings"]["search"]["pairs"] == 4
    images = np.load(made / "images.npz")["images"]
    of = {(p["source"], p["index"]): images[p["number"] - 1] for p in key["pictures"]}
    assert not any(
        np.array_equal(of["pegasus search=none", i], of[best, k]) for i in range(4) for k in range(4)
    )  # another seed


def test_the_key_names_a_run_from_the_working_folder_or_the_users_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "project").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path / "project")
    for run, named in (("project/runs/first", "runs/first"), ("runs/first", "~/runs/first")):
        assert _told({"run": str(tmp_path / run), "seed": 1}) == {"run": named, "seed": 1}
    assert _told({"run": "/data/runs/first"}) == {"run": "/data/runs/first"}  # it could not be found otherwise
    assert _told({"run": None}) == {"run": None}


def test_a_run_is_found_again_when_the_panel_was_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "project" / "runs" / "first" / "checkpoints").mkdir(parents=True)
    moved = tmp_path / "project" / "studies" / "2026" / "1f2e"
    moved.mkdir(parents=True)
    linked = tmp_path / "panels"
    linked.symlink_to(moved)
    for folder, working in ((moved, tmp_path / "project"), (moved, tmp_path), (linked, tmp_path)):
        monkeypatch.chdir(working)
        found = _run_of("runs/first", folder)
        assert found is not None and found.samefile(tmp_path / "project" / "runs" / "first")
    assert _run_of("runs/second", moved) is None


def test_meanings_name_the_classes() -> None:
    assert meanings(("horse", "bird"))["W"] == "winged horse: it has wings where they would grow"
    assert meanings(("cat", "ship"))["W"] == "cat with parts of a ship: it has parts of a ship where they would grow"
    assert list(meanings(("cat", "ship"))) == ["H", "R", "W", "B", "O", "N"]


REFUSALS = [
    (["count=4"], "A panel of what"),
    (["images=['{own}']", "count=3"], "count=3 is out of range: it must be at least 4"),
    (["images=['{own}']", "count=7"], "has 6 pictures: a panel of count=7"),
    (["images=['{own}']", "count=4", "split=tests"], "Did you mean 'test'"),
    (["images=['{own}','{own}']", "count=4"], "Two sources are called 'verysecretsource'"),
    (["images=['nowhere.npz']", "count=4"], "neither a folder of pictures nor an .npz file"),
    (["pretrained=pegasus", "count=4", "ask=['seed=3']"], "a way of asking is made of"),
    (["pretrained=pegasus", "count=4", "ask=['search=none','search=none']"], "one way twice"),
    (["pretrained=pegasus", "run=['x']", "count=4"], "leave one of them out"),
]


@pytest.mark.parametrize(("overrides", "message"), REFUSALS)
def test_wrong_input_is_refused_in_a_sentence_and_nothing_is_written(
    overrides: list[str], message: str, photographs: Path, own: Path, tmp_path: Path
) -> None:
    texts = [text.replace("{own}", str(own)) for text in overrides]
    data = ["data=image_folder", f"data.root={photographs}", f"data.cache={tmp_path / 'cache'}"]
    config = MAKE.compose([*texts, f"out='{tmp_path / 'out'}'"])
    with pytest.raises(UserError, match=message):
        validate_make(config)
        make(config, data)
    assert not (tmp_path / "out").exists()


def test_controls_need_photographs(own: Path, tmp_path: Path) -> None:
    for overrides in (["pretrained=pegasus"], [f"images=['{own}']"]):
        with pytest.raises(UserError, match="needs photographs as controls: add for example data=image_folder"):
            make(MAKE.compose([*overrides, "count=4", "gpus=0", f"out='{tmp_path / 'out'}'"]), [])


def test_a_panel_replaces_nothing(panel: Path, photographs: Path, own: Path, tmp_path: Path) -> None:
    data = ["data=image_folder", f"data.root={photographs}", f"data.cache={tmp_path / 'cache'}"]
    before = {path: path.read_bytes() for path in panel.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="holds something already: remove it, or name another folder"):
        make(MAKE.compose([f"images=['{own}']", "count=4", "seed=7", f"out='{panel}'"]), data)
    assert {path: path.read_bytes() for path in panel.rglob("*") if path.is_file()} == before


def test_an_array_that_is_no_pictures_is_refused(tmp_path: Path, own: Path) -> None:
    for name, content in (("cut", own.read_bytes()[:99]), ("empty", b""), ("text", b"pictures")):
        (tmp_path / f"{name}.npz").write_bytes(content)
        with pytest.raises(UserError, match="no array `images`"):
            make(MAKE.compose([f"images=['{tmp_path / name}.npz']", "count=4"]), [])
    for name, content in (("floats", {"images": np.zeros((9, 3, 32, 32))}), ("other", {"pictures": np.zeros(3)})):
        np.savez(tmp_path / f"{name}.npz", **content)
        with pytest.raises(UserError, match=r"uint8 \(N, 3, 32, 32\)|no array `images`"):
            make(MAKE.compose([f"images=['{tmp_path / name}.npz']", "count=4"]), [])


def test_the_command_line_says_what_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["panel", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.err or said.out

    for arguments, text in (
        ((), "make or score?"),
        (("mkae",), "Did you mean 'make'?"),
        (("make",), "A panel of what?"),
        (("make", "pretrained=pegasus", "cuont=3"), "Did you mean 'count'?"),
        (("score", "key=nowhere/key.json", "ratings=a.csv"), "There is no key"),
        (("score", "key=a", "ratings=a", "data=silhouettes"), "leave data out"),
        (("make", "images=a.npz", 'ask=["search=guided"]'), "means nothing with images= alone"),
        (("make", "pretrained=pegasus", 'ask=["pegasus.piars=random"]'), "Did you mean 'pegasus.pairs'"),
    ):
        code, said = run(*arguments)
        assert code == 2 and text in said and "Traceback" not in said
    assert run("make", "--help")[0] == 0 and run("--help")[0] == 0
    assert "count: 30" in run("--cfg", "job", "make", "pretrained=pegasus")[1]
    assert not list(tmp_path.iterdir())
