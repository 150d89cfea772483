"""Tests of the command: exit codes, messages, path of the page, runs without scorecards."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pegasus_lightning.report import __main__ as report


def make_run(folder: Path, checkpoint: bool = True) -> Path:
    """Write a minimal run."""
    (folder / "checkpoints").mkdir(parents=True)
    if checkpoint:
        (folder / "checkpoints" / "last.ckpt").write_bytes(b"weights")
    (folder / "status.json").write_text(json.dumps({"status": "finished"}))
    return folder


def test_the_page_lies_beside_the_runs_or_in_the_only_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one = make_run(tmp_path / "runs" / "a" / "vae-s0", checkpoint=False)
    make_run(tmp_path / "runs" / "b" / "vae,channels=64-s0")
    monkeypatch.chdir(tmp_path)
    assert report.main(["runs/a/vae-s0"]) == 0
    assert capsys.readouterr().out == "runs/a/vae-s0/report.html\n"
    assert report.main(["runs"]) == 0
    assert capsys.readouterr().out == (
        "1 run has no scorecard yet: python -m pegasus_lightning.evaluate run=runs/b/vae,channels=64-s0\n"
        "runs/report.html\n"
    )
    assert report.main([str(one), "--out", "new/folder/page.html"]) == 0
    assert capsys.readouterr().out == "new/folder/page.html\n"
    for path in (one / "report.html", tmp_path / "runs" / "report.html", tmp_path / "new" / "folder" / "page.html"):
        assert path.read_text().startswith("<!doctype html>") and path.read_text().endswith("</html>\n")


def test_the_command_for_what_is_missing_can_be_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a b", "c"):
        make_run(tmp_path / "runs" / name)
    assert report.main(["runs"]) == 0
    command = "python -m pegasus_lightning.evaluate 'run=runs/a b' run=runs/c"
    assert capsys.readouterr().out.splitlines()[0] == f"2 runs have no scorecard yet: {command}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rnus"], "There is no run folder rnus. Did you mean 'runs'?"),
        (["empty"], "empty holds no run: no folder in it has status.json."),
        (["runs", "--baseline", "acai"], "There is no variant 'acai' among these runs. There are: vae."),
        (["runs", "--out", "empty"], "--out empty is a folder."),
        (["runs", "--out", "page.txt"], "--out page.txt must end in .html."),
        (["runs", "--out", "taken/page.html"], "taken/page.html cannot be written: "),
    ],
)
def test_a_mistake_ends_in_one_message_and_exit_code_2_and_leaves_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "runs" / "vae-s0")
    (tmp_path / "empty").mkdir()
    (tmp_path / "taken").write_text("")
    before = sorted(tmp_path.rglob("*"))
    assert report.main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"pegasus_lightning: {message}") and said.err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("arguments", [[], ["runs", "--basline", "vae"]])
def test_a_command_line_that_is_not_understood_ends_in_exit_code_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        report.main(arguments)
    assert ended.value.code == 2
    assert "usage: python -m pegasus_lightning.report" in capsys.readouterr().err


def test_the_page_needs_neither_torch_nor_a_data_set(tmp_path: Path) -> None:
    make_run(tmp_path / "vae-s0")
    script = (
        "import sys; from pegasus_lightning.report.__main__ import main; code = main(sys.argv[1:]);"
        " sys.exit(code or 10 * ('torch' in sys.modules))"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    assert subprocess.run(command, capture_output=True, timeout=120).returncode == 0
