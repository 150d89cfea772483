"""Tests of the command: folders of exports, output, exit codes, messages."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pegasus_lightning.export import __main__ as export
from pegasus_lightning.export.model_files import load_export
from pegasus_lightning.models.two_player import TwoPlayerModel
from pegasus_lightning.runs.checkpoints import save_atomically


@pytest.fixture
def runs(tmp_path: Path, tiny: Callable[..., TwoPlayerModel], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with runs/a/vae-s0, runs/b/acai-s1, lone.ckpt, and runs/waiting without a checkpoint."""
    for number, (name, path) in enumerate([("vae", "a/vae-s0"), ("acai", "b/acai-s1")]):
        model = tiny(name, seed=number)
        content = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)}
        save_atomically(content | {"batches_done": 1000 + number}, tmp_path / "runs" / path / "checkpoints/last.ckpt")
    (tmp_path / "runs" / "waiting" / "checkpoints").mkdir(parents=True)
    (tmp_path / "lone.ckpt").write_bytes((tmp_path / "runs/a/vae-s0/checkpoints/last.ckpt").read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def places(folder: Path) -> list[str]:
    """The folders of exports under a folder."""
    return sorted(str(path.parent.relative_to(folder)) for path in folder.rglob("SHA256SUMS"))


def test_a_run_is_exported_into_its_folder_and_the_files_are_told(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export.main(["runs/b/acai-s1"]) == 0
    folder = runs / "runs/b/acai-s1/export"
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == "runs/b/acai-s1/export: batch 1,001"
    told = dict(line.split(maxsplit=1) for line in lines)
    assert told == {path.name: f"{path.stat().st_size / 1000:.1f} kB" for path in folder.iterdir()}
    assert sorted(told) == ["SHA256SUMS", "config.json", "decoder.safetensors", "encoder.safetensors"]
    assert load_export(folder).about["checkpoint_sha256"] in (
        (runs / "runs/b/acai-s1/checkpoints/last.ckpt.sha256").read_text()
    )
    before = files(runs)
    assert export.main(["runs/b/acai-s1"]) == 0
    said = capsys.readouterr()
    assert said.out == "runs/b/acai-s1/export: already there, and the checkpoint has not changed since\n"
    assert said.err == ""
    assert files(runs) == before


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        (["runs"], ["runs/a/vae-s0/export", "runs/b/acai-s1/export"]),
        (["runs/*/*s1"], ["runs/b/acai-s1/export"]),
        (["runs/a/vae-s0", "lone.ckpt"], ["lone-export", "runs/a/vae-s0/export"]),
        (["runs/a/vae-s0/checkpoints"], ["runs/a/vae-s0/export"]),
        (["runs/a/vae-s0/checkpoints/last.ckpt"], ["runs/a/vae-s0/last-export"]),  # never inside `checkpoints`
        (["runs/a/vae-s0", "--out", "new/folder"], ["new/folder"]),
        (["lone.ckpt", "--out", "new"], ["new"]),
        (["runs", "--out", "new"], ["new/acai-s1", "new/vae-s0"]),
        (["runs/a/vae-s0", "runs/a/vae-s0/checkpoints/last.ckpt", "--out", "o"], ["o/vae-s0", "o/vae-s0-last"]),
    ],
)
def test_where_exports_go(runs: Path, arguments: list[str], where: list[str]) -> None:
    assert export.main(arguments) == 0
    assert places(runs) == where
    for folder in where:
        name = "acai" if "acai" in folder or arguments[0] == "runs/*/*s1" else "vae"
        assert load_export(folder).config.name == name


def test_a_run_without_a_checkpoint_is_named_and_left_out(runs: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert export.main(["runs"]) == 0
    (record,) = caplog.records
    assert record.getMessage() == "runs/waiting has no checkpoint yet: left out."


def test_a_corrupt_last_checkpoint_is_passed_over(runs: Path, caplog: pytest.LogCaptureFixture) -> None:
    last = runs / "runs/a/vae-s0/checkpoints/last.ckpt"
    save_atomically({"state_dict": {}, "hyper_parameters": {}, "batches_done": 2000}, last)
    last.write_bytes(last.read_bytes()[:-10])
    assert export.main(["runs/a/vae-s0"]) == 0
    assert "last.ckpt is corrupt" in caplog.text
    assert load_export("runs/a/vae-s0/export").about["batches_done"] == 1000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["runs/a/vea-s0"], "There is no run folder or checkpoint runs/a/vea-s0. Did you mean 'vae-s0'?"),
        (["empty"], "empty holds no run: no folder in it has checkpoints."),
        (["runs/waiting", "runs/a/vae-s0"], "runs/waiting holds no checkpoint"),
        (["runs/wait*"], "No run in runs/wait* has a checkpoint yet."),
        (["new_runs"], "No run in new_runs has a checkpoint yet."),
        (["taken.txt"], "taken.txt cannot be read as a checkpoint"),
        (["runs", "--out", "taken.txt"], "taken.txt/vae-s0 cannot be made: "),
        (["lone.ckpt", "--out", "taken.txt"], "taken.txt is not a folder"),
        (["lone.ckpt", "--out", "taken.txt/new"], "taken.txt/new cannot be made: "),
        (
            ["lone.ckpt", "--out", "runs"],
            "runs holds something else than earlier results: name another folder with --out FOLDER.",
        ),
        (["lone.ckpt", "--out", "."], ". is the current folder: name another one with --out FOLDER."),
        (["lone.ckpt", "--out", "link"], "link is not a folder"),
        (["runs/a/vae-s0", "copy/vae-s0", "--out", "new"], "Two exports would be written to new/vae-s0"),
    ],
)
def test_a_mistake_ends_in_one_message_and_exit_code_2_and_leaves_nothing(
    runs: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    (runs / "empty").mkdir()
    (runs / "taken.txt").write_text("")
    (runs / "link").symlink_to("empty")
    (runs / "new_runs/one/checkpoints").mkdir(parents=True)
    (runs / "copy").symlink_to("runs/a")
    before = files(runs)
    assert export.main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"pegasus_lightning: {message}") and said.err.count("\n") == 1
    assert files(runs) == before


def test_a_run_that_cannot_be_written_to_is_exported_elsewhere_or_not(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = runs / "runs/a/vae-s0"
    run.chmod(0o500)
    try:
        if os.access(run, os.W_OK):
            pytest.skip("root may write everywhere")
        assert export.main(["runs/a/vae-s0"]) == 2
        assert "runs/a/vae-s0/export cannot be made" in capsys.readouterr().err
        assert export.main(["runs/a/vae-s0", "--out", "new"]) == 0
    finally:
        run.chmod(0o700)


def test_without_its_packages_onnx_ends_in_what_to_type(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(runs)
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert export.main(["runs", "--onnx"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert said.err.endswith("pip install -e '.[onnx]'\n")
    assert files(runs) == before
    assert export.main(["runs"]) == 0  # nothing else needs it


@pytest.mark.slow
def test_with_onnx_the_console_stays_clean(
    runs: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    assert export.main(["runs/a/vae-s0", "--onnx"]) == 0
    said = capfd.readouterr()
    assert said.err == ""
    assert re.fullmatch(
        r"runs/a/vae-s0/export: batch 1,000\n"
        r"(  [\w.]+ +[\d.]+ kB\n){5}"
        r"  decoder\.onnx: pixels differ from PyTorch's by at most \de-\d\d \(of 1\)\n",
        said.out,
    )
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert not recwarn.list


@pytest.mark.parametrize("arguments", [[], ["runs", "--onxn"]])
def test_a_command_line_that_is_not_understood_ends_in_exit_code_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        export.main(arguments)
    assert ended.value.code == 2
    assert "usage: python -m pegasus_lightning.export" in capsys.readouterr().err
