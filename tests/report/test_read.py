"""Tests of reading run folders, including broken ones."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pegasus_lightning.report.read import config_difference, read_runs
from pegasus_lightning.runs.scorecards import FILE, GALLERY, PEGASI, Figure

MakeRun = Callable[..., Path]


def test_a_run_is_read(tmp_path: Path, make_run: MakeRun) -> None:
    (run,) = read_runs([make_run(tmp_path, "acai", 3)])
    assert (run.name, run.group, run.seed, run.state, run.complete) == ("acai-s3", "acai", 3, "finished", True)
    assert run.command == "python -m pegasus_lightning model=acai seed=3 'data.classes=[horse,bird]'"
    assert run.curves["loss/kl"] == [(10, 4.0), (20, 5.0), (30, 6.0), (40, 7.0), (50, 8.0)]
    assert {kind: list(files) for kind, files in run.grids.items()} == {
        "interpolations": [1, 5],
        "reconstructions": [1, 5],
    }
    assert run.log == ["one line", "the last line"]
    assert run.problems == []
    assert run.gallery is not None and run.gallery.distances.tolist() == [0.123, 0.021, 0.2, 0.3]


def test_what_a_panel_says_stands_in_the_runs_card(tmp_path: Path, make_run: MakeRun) -> None:
    folder = make_run(tmp_path)
    (before,) = read_runs([folder])
    assert before.card is not None
    row = {letter: {"value": 0.5, "low": 0.4, "high": 0.6} for letter in ("H", "R", "W", "B", "N", "realism")}
    record = {"batches": before.card.batches, "parents": before.card.parents, "settings": {}}
    (folder / "panel").mkdir()
    (folder / "panel" / "a.json").write_text(json.dumps(record | {"pegasi": "p", "rows": {"p": row}}))
    (after,) = read_runs([folder])
    assert after.card is not None and after.card.rows[PEGASI]["panel_winged"] == Figure(0.5, 0.4, 0.6)
    assert "panel_winged" not in before.card.rows[PEGASI]


def test_names_come_from_the_folder_before_a_scorecard_gives_one(tmp_path: Path, make_run: MakeRun) -> None:
    first = make_run(tmp_path / "a", "vae", evaluated=False)
    second = make_run(tmp_path / "b", "vae", 1, evaluated=False)
    assert [(run.name, run.group) for run in read_runs([first, second])] == [("vae-s0", "vae"), ("vae-s1", "vae")]
    same = make_run(tmp_path / "c", "vae", evaluated=False)
    assert [run.name for run in read_runs([first, same])] == [str(first), str(same)]


def test_broken_files_are_said_and_the_rest_is_read(tmp_path: Path, make_run: MakeRun) -> None:
    folder = make_run(tmp_path)
    lines = (folder / "metrics.jsonl").read_text()
    (folder / "metrics.jsonl").write_text('[1, 2]\n{"batch": 5, "loss/kl": NaN}\n' + lines + '{"batch": 60, "loss/k')
    (folder / "config.yaml").write_text("model: [unclosed")
    (folder / "status.json").write_text('{"status": "fini')
    (folder / "evaluation" / "plain" / GALLERY).write_bytes(b"PK torn")
    (run,) = read_runs([folder])
    assert run.curves["loss/kl"][1:] == [(10, 4.0), (20, 5.0), (30, 6.0), (40, 7.0), (50, 8.0)]
    assert (run.state, run.complete, run.config, run.gallery) == ("unknown", False, {}, None)
    said = "\n".join(run.problems)
    for sentence in (
        "metrics.jsonl: 2 of 8 lines cannot be read",
        "Not finite from batch 5 on: loss/kl.",
        "config.yaml could not be read: it is not YAML (ParserError).",
        "status.json could not be read: it is not JSON.",
        "evaluation/plain/gallery.npz could not be read: it is not a gallery (BadZipFile)",
    ):
        assert sentence in said
    assert run.card is not None


@pytest.mark.parametrize("change", [{"frames": None}, {"ratios": [0.0, 1.0]}, {"neighbour_distances": [1.0]}])
def test_a_gallery_that_does_not_fit_together_is_refused(
    tmp_path: Path, make_run: MakeRun, evaluated: Callable, card: Callable, pictures: Callable, change: dict
) -> None:
    folder = make_run(tmp_path, evaluated=False)
    evaluated(folder, card("vae"), pictures=pictures(**change))
    (run,) = read_runs([folder])
    assert run.gallery is None
    assert "is not a gallery" in run.problems[0]


def test_a_foreign_scorecard_is_said(tmp_path: Path, make_run: MakeRun) -> None:
    folder = make_run(tmp_path)
    (folder / "evaluation" / "plain" / FILE).write_text('{"version": 1}')
    (run,) = read_runs([folder])
    assert (run.card, run.gallery) == (None, None)
    assert "scorecard.json could not be read: it is not a scorecard (KeyError)" in run.problems[0]


def test_the_evaluation_that_most_runs_share_is_shown_and_of_it_the_newest(
    tmp_path: Path, make_run: MakeRun, evaluated: Callable, card: Callable
) -> None:
    first, second = make_run(tmp_path, "vae", evaluated=False), make_run(tmp_path, "acai", evaluated=False)
    times = {"old": 1, "new": 2, "guided": 3}
    for title in times:
        folder = evaluated(first, card("vae", key="g" if title == "guided" else "k", batches=times[title]), title)
        os.utime(folder / FILE, ns=(times[title], times[title]))
    evaluated(second, card("acai", key="k"))
    run, _ = read_runs([first, second])
    assert run.card is not None and (run.card.key, run.card.batches) == ("k", 2)
    assert {key: found.batches for key, (_, found) in run.cards.items()} == {"g": 3, "k": 2}
    (alone,) = read_runs([first])  # no shared evaluation: the newest
    assert alone.card is not None and alone.card.key == "g"


def test_config_differences_leave_out_where_it_ran_but_not_how_long(tmp_path: Path, make_run: MakeRun) -> None:
    change = {
        "model": {"weights": {"kl": 0.5, "blend": None}},
        "trainer": {"gpus": 1, "max_epochs": 9},
        "runs_dir": "x",
    }
    runs = read_runs([make_run(tmp_path, "acai", config=change), make_run(tmp_path, "vae", 1, config={"ema": True})])
    assert config_difference(*runs) == [
        ("model.name", "acai", "vae"),
        ("model.weights.kl", "0.5", "1.0"),
        ("trainer.max_epochs", "9", "5"),
        ("seed", "0", "1"),
        ("ema", "\u2013", "true"),
        ("model.weights.blend", "null", "\u2013"),
    ]


def test_of_a_long_log_the_end_is_kept(tmp_path: Path, make_run: MakeRun) -> None:
    folder = make_run(tmp_path)
    (folder / "train.log").write_bytes(b"".join(b"line %d \xff\n\n" % i for i in range(20_000)) + b"x" * 1000)
    (run,) = read_runs([folder])
    assert len(run.log) == 15
    assert run.log[0] == "line 19986 \ufffd"
    assert run.log[-1] == "x" * 300
