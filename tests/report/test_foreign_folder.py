"""Nothing in a run's folder is believed: each kind of bad file is said on the page, and the run beside it stands."""

from __future__ import annotations

import io
import json
import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from pegasus_lightning.report import page
from pegasus_lightning.report.__main__ import main, parser
from pegasus_lightning.report.page import render, write_report
from pegasus_lightning.report.read import printable, read_runs
from pegasus_lightning.runs.folder import is_locked, read_status
from pegasus_lightning.runs.gallery import MAX_SIDE, read_gallery
from pegasus_lightning.runs.scorecards import FILE, GALLERY, read_scorecard
from pegasus_lightning.utils.foreign import Unreadable

MakeRun = Callable[..., Path]
CARD = f"evaluation/plain/{FILE}"
pytestmark = pytest.mark.promise(18)


def shown(text: str) -> str:
    """The words of a page."""
    return " ".join(re.sub(r"<(style|script).*?</\1>|<[^>]*>", " ", text, flags=re.DOTALL).split())


NAMES = ("status.json", "config.yaml", "metrics.jsonl", "train.log", CARD, "panel/a.json")


@pytest.mark.parametrize("what", ["a FIFO", "a link out", "not UTF-8"])
def test_a_file_that_is_none_is_said_beside_its_run(tmp_path: Path, make_run: MakeRun, what: str) -> None:
    make_run(tmp_path, "healthy")
    (tmp_path / "secret").write_text('{"status": "SECRET"}')
    for i, name in enumerate(NAMES):
        path = make_run(tmp_path, f"bad_{i}", epochs=()) / name
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
        if what == "a FIFO":
            os.mkfifo(path)
        elif what == "a link out":
            path.symlink_to(tmp_path / "secret")
        else:
            path.write_bytes(b"\xff\xfe\n")
    text = shown(write_report([str(tmp_path)], None, "healthy")[0].read_text())
    reasons = {"a FIFO": "is not a regular file", "a link out": "is a link that leads out of the folder"}
    reason = reasons.get(what, "is not text in UTF-8")
    said = {name: f"{name} could not be read: it {reason}." for name in NAMES}
    if what != "a link out":
        said[CARD] = f"{CARD} could not be read: it is not a scorecard (it {reason}): evaluate the run again."
    if what == "not UTF-8":  # of these the lines count
        said |= {"metrics.jsonl": "metrics.jsonl: 1 of 1 lines cannot be read and are left out.", "train.log": ""}
    assert [sentence for sentence in said.values() if sentence not in text] == []
    assert "SECRET" not in text and "healthy-s0 \u2013 finished" in text and "healthy baseline" in text


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"seed": "x"}, "TypeError"),
        ({"batches": -1}, "ValueError"),
        ({"classes": "horse"}, "TypeError"),
        ({"counts": {"pegasi": "many"}}, "TypeError"),
        ({"name": "x" * 600}, "ValueError"),
        ({"model": {"psnr": {"value": 1e200, "low": None, "high": None}}}, "ValueError"),
        ({"model": {"psnr": {"value": float("inf"), "low": None, "high": None}}}, "ValueError"),
        ({"model": {str(i): {"value": 1, "low": 1, "high": 1} for i in range(200)}}, "ValueError"),
        ({"batches": 10**400}, "too many digits"),
    ],
)
def test_a_scorecard_of_other_types_is_refused(tmp_path: Path, make_run: MakeRun, change: dict, reason: str) -> None:
    path = make_run(tmp_path) / CARD
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(Unreadable, match=rf"is not a scorecard \(.*{reason}\)"):
        read_scorecard(path)


@pytest.mark.parametrize(
    "change", [{"epochs": "many"}, {"status": ["finished"]}, {"batches": -3}, {"limits": []}, {"pid": 1e300}]
)
def test_a_status_of_other_types_counts_as_none(tmp_path: Path, make_run: MakeRun, change: dict) -> None:
    run = make_run(tmp_path, status=change)
    assert read_status(run) is None
    assert f"as {next(iter(change))}." in read_runs([run])[0].problems[0]


def test_a_config_reads_no_environment_and_is_no_bomb(tmp_path: Path, make_run: MakeRun) -> None:
    run = make_run(tmp_path)
    for text, reason in (
        ("data: {source: '${oc.env:HOME}'}", "it holds an interpolation"),
        ("a: &a [x, x]\nb: &b [" + "*a," * 200 + "]\nc: [" + "*b," * 200 + "]", "it holds more than 10000 values"),
        ("a: &a [*a]", "it is nested too deeply"),
    ):
        (run / "config.yaml").write_text(text)
        (found,) = read_runs([run])
        assert found.config == {} and found.problems[0].startswith(f"config.yaml could not be read: {reason}")


def test_of_metrics_what_no_training_writes_is_left_out(tmp_path: Path, make_run: MakeRun) -> None:
    run = make_run(tmp_path)
    lines = ['{"batch": 1, "loss/$\\\\frac{$": 2.0, "loss/b": 1, "loss/\\ud800": 5}', '{"batch": "2", "loss/b": 1}']
    lines += [
        '{"batch": 3, "loss/b": 1e300}',
        '{"batch": -4, "loss/b": 1}',
        '{"batch": 5, "loss/b": ' + "9" * 400 + "}",
    ]
    (run / "metrics.jsonl").write_text("\n".join([*lines, '{"batch": 6, "loss/b": 3}']))
    (found,) = read_runs([run])
    assert found.curves["loss/b"] == [(1, 1.0), (6, 3.0)]
    assert found.problems == ["metrics.jsonl: 4 of 6 lines cannot be read and are left out."]
    text = render([found])
    assert "Loss: $\\frac{$" in text and "Loss: \\ud800" in text and text.encode()


def bomb(shape: tuple[int, ...], kind: str = "|u1") -> bytes:
    """The start of an array file that promises so much."""
    with io.BytesIO() as file:
        np.lib.format.write_array_header_1_0(file, {"descr": kind, "fortran_order": False, "shape": shape})
        return file.getvalue()


@pytest.mark.parametrize("shape", [(10**9, 10**9, 3, 32, 32), (2, 600, 3, 32, 32), (4, 21, 3, 32, 10**6)])
def test_a_gallery_is_refused_by_its_headers(
    tmp_path: Path, pictures: Callable, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]
) -> None:
    np.savez(tmp_path / "whole.npz", **pictures())
    assert MAX_SIDE < 600 * 32
    with zipfile.ZipFile(tmp_path / "whole.npz") as whole, zipfile.ZipFile(tmp_path / GALLERY, "w") as changed:
        for name in whole.namelist():
            changed.writestr(name, bomb(shape) if name == "frames.npy" else whole.read(name))
    monkeypatch.setattr(np.lib.format, "read_array", None)  # no array is made
    with pytest.raises(Unreadable, match=r"is not a gallery \(ValueError\)"):
        read_gallery(tmp_path / GALLERY)


def test_a_gallery_has_no_more_pictures_than_one_can_hold(tmp_path: Path, pictures: Callable) -> None:
    """512 pegasi of 32 pixels are 16384 pixels wide; WebP holds 16383."""
    one = pictures()
    many = {name: np.repeat(one[name][:1], 512, 0) for name in one if len(one[name].shape) and len(one[name]) == 4}
    many = {name: array for name, array in many.items() if name.startswith(("peg", "neigh"))}
    for count, fits in ((511, True), (512, False)):
        np.savez(tmp_path / GALLERY, **pictures(**{name: array[:count] for name, array in many.items()}))
        if fits:
            assert len(read_gallery(tmp_path / GALLERY).pegasi) == 511
        else:
            with pytest.raises(Unreadable, match="is not a gallery"):
                read_gallery(tmp_path / GALLERY)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_a_gallery_with_a_number_that_is_none_is_refused(tmp_path: Path, pictures: Callable, value: float) -> None:
    np.savez(tmp_path / GALLERY, **pictures(neighbour_limit=np.array(value)))
    with pytest.raises(Unreadable, match="is not a gallery"):
        read_gallery(tmp_path / GALLERY)


def test_pictures_are_png_small_and_of_the_run(tmp_path: Path, make_run: MakeRun) -> None:
    """PostScript would start another program, and 13000 x 13000 pixels would take half a gigabyte."""
    run = make_run(tmp_path, kinds=("prior",), epochs=(1, 2, 3, 4))
    places = [run / "images" / f"prior-epoch-{epoch:04d}.png" for epoch in (1, 2, 3)]
    places[0].write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    Image.new("1", (13_000, 1_000)).save(places[1])
    Image.new("RGB", (20, 20)).save(tmp_path / "mine.png")
    places[2].unlink()
    places[2].symlink_to(tmp_path / "mine.png")
    text = write_report([str(run)])[0].read_text()
    assert f"Could not be read as a picture: {', '.join(path.name for path in places)}." in shown(text)
    assert text.count("<img") == 1


def test_running_is_believed_while_a_process_holds_the_lock(tmp_path: Path, make_run: MakeRun) -> None:
    run = make_run(tmp_path, status={"status": "running"})
    with FileLock(run / ".lock"):
        assert is_locked(run) and read_runs([run])[0].state == "running"
    assert not is_locked(run) and read_runs([run])[0].state == "died"
    (tmp_path / "kept").write_text("kept")
    (run / ".lock").unlink(missing_ok=True)
    (run / ".lock").symlink_to(tmp_path / "kept")
    assert not is_locked(run) and (tmp_path / "kept").read_text() == "kept"


def test_a_run_that_its_time_ended_is_not_green(tmp_path: Path, make_run: MakeRun) -> None:
    reason = "trainer.max_time=20m: 3 of 5 epochs"
    make_run(tmp_path, status={"reason": reason})
    text = write_report([str(tmp_path)])[0].read_text()
    assert "badge good" not in text
    assert f"vae-s0 out of time {reason}" in shown(text) and "again, with more time." in shown(text)


def test_a_command_is_called_foreign_and_what_has_no_form_is_spelled_out(tmp_path: Path, make_run: MakeRun) -> None:
    make_run(tmp_path, status={"command": ["rm", "\x1b[2J\u202e~"]})
    text = shown(write_report([str(tmp_path)])[0].read_text())
    assert "Copied from status.json: read it before you run it. rm &#39;\\x1b[2J\\u202e~&#39;" in text
    assert printable("a\nb\u200b" + "c" * 9, 8) == "a\nb\\u200bccc\u2026"


def test_a_folder_whose_name_is_no_text_is_reported(
    tmp_path: Path, make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "runs", evaluated=False)
    run.rename(run.with_name(os.fsdecode(b"vae\xff-s0")))
    assert main([str(tmp_path / "runs")]) == 0
    assert "vae\\udcff-s0" in capsys.readouterr().out


def test_a_page_of_many_runs_keeps_its_bound_and_the_baseline(
    tmp_path: Path, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(12):
        make_run(tmp_path, "vae", seed, epochs=())
    make_run(tmp_path, "zzz", epochs=())
    whole = len(write_report([str(tmp_path)], None, "zzz")[0].read_bytes())
    for bound in (whole * 3 // 4, whole // 2):
        monkeypatch.setattr(page, "PAGE_BYTES", bound)
        text = write_report([str(tmp_path)], None, "zzz")[0].read_text()
        assert len(text.encode()) <= bound
        assert "so that the page stays small." in text
        assert "zzz <small>baseline</small>" in text
    assert re.search(r"\b\d of 13 runs are shown, so that the page stays small", text)


def test_the_help_names_the_place_of_the_page(tmp_path: Path, make_run: MakeRun) -> None:
    said = " ".join(parser().format_help().split())
    assert "report.html in the run's folder, or for several in the innermost folder that holds them all" in said
    one = make_run(tmp_path / "a" / "b", epochs=())
    assert write_report([str(tmp_path)])[0].resolve() == (one / "report.html").resolve()
    make_run(tmp_path / "a" / "c", "acai", epochs=())
    assert write_report([str(tmp_path)])[0].resolve() == (tmp_path / "a" / "report.html").resolve()
