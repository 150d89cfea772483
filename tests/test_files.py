"""Files that are whole or absent: what is left after an error and after kills."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import BinaryIO

import pytest

from pegasus_lightning import files
from pegasus_lightning.files import sha256, write_atomically, write_json, write_text


def test_text_and_json_arrive_as_utf8(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "Pégase\n")
    assert (tmp_path / "a.txt").read_bytes() == b"P\xc3\xa9gase\n"
    write_json(tmp_path / "a.json", {"wings": 2, "name": None})
    assert json.loads((tmp_path / "a.json").read_text()) == {"wings": 2, "name": None}
    assert sorted(os.listdir(tmp_path)) == ["a.json", "a.txt"]


def test_an_error_while_writing_leaves_the_old_content_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    path.write_text("old")

    def half(file: BinaryIO) -> None:
        file.write(b"half of the new")
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, half)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["kept"]


def test_an_error_at_the_move_leaves_the_old_content_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "kept"
    path.write_text("old")

    def refuse(*_: object) -> None:
        raise PermissionError("no")

    monkeypatch.setattr(files.os, "replace", refuse)
    with pytest.raises(PermissionError):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["kept"]


def test_the_bytes_are_on_the_disk_before_the_name_and_the_name_before_the_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[tuple[str, str]] = []
    fsync, replace = os.fsync, os.replace

    def watched_fsync(descriptor: int) -> None:
        target = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        whole = target.is_dir() or target.read_text() == "new"
        events.append(("sync folder" if target.is_dir() else f"sync file {whole}", str(target.parent)))
        fsync(descriptor)

    def watched_replace(source: Path, target: Path) -> None:
        events.append(("move", str(Path(source).parent)))
        replace(source, target)

    monkeypatch.setattr(files.os, "fsync", watched_fsync)
    monkeypatch.setattr(files.os, "replace", watched_replace)
    write_text(tmp_path / "a", "new")
    inside, above = str(tmp_path), str(tmp_path.parent)
    assert events == [("sync file True", inside), ("move", inside), ("sync folder", above)]


WRITER = """
import sys
from pathlib import Path
from pegasus_lightning.files import write_text
for number in range(10**9):
    write_text(Path(sys.argv[1]), f"{number} " * 20000)
"""


def test_kill_9_while_writing_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "numbers"
    seen = set()
    for attempt in range(6):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)])
        deadline = time.monotonic() + 30
        path.unlink(missing_ok=True)
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.013 * attempt)
        writer.send_signal(signal.SIGKILL)
        assert writer.wait() == -signal.SIGKILL
        numbers = path.read_text().split()
        assert len(numbers) == 20000
        assert len(set(numbers)) == 1
        seen.add(numbers[0])
    assert len(seen) > 1  # the kills came at different moments


@pytest.mark.parametrize("size", [0, 1, (1 << 20) + 3])
def test_sha256(tmp_path: Path, size: int) -> None:
    content = bytes(range(256)) * (size // 256 + 1)
    (tmp_path / "a").write_bytes(content[:size])
    assert sha256(tmp_path / "a") == hashlib.sha256(content[:size]).hexdigest()
