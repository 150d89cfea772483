"""Atomic writes: files and folders after errors and kills."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import BinaryIO

import pytest

from pegasus_lightning.utils import files
from pegasus_lightning.utils.files import sha256, whole_folder, write_atomically, write_json, write_text


def test_text_and_json_arrive_as_utf8(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "Pégase\n")
    assert (tmp_path / "a.txt").read_bytes() == b"P\xc3\xa9gase\n"
    write_json(tmp_path / "a.json", {"wings": 2, "name": None})
    assert json.loads((tmp_path / "a.json").read_text()) == {"wings": 2, "name": None}
    assert sorted(os.listdir(tmp_path)) == ["a.json", "a.txt"]


@pytest.mark.promise(2)
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


@pytest.mark.promise(2)
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
from pegasus_lightning.utils.files import write_text
for number in range(10**9):
    write_text(Path(sys.argv[1]), f"{number} " * 20000)
"""


@pytest.mark.promise(2)
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
    assert len(seen) > 1  # the kills happened at different times


def files_in(folder: Path) -> dict[str, str]:
    """Return the content of every file under a folder, hidden files included."""
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_appears_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "pegasi" / "of" / "a run"
    with whole_folder(path) as staged:
        (staged / "best.txt").write_text("best")
        (staged / "more").mkdir()
        (staged / "more" / "second.txt").write_text("second")
        assert staged.parent == path.parent  # same file system, so a rename suffices
        assert not path.exists()
    assert files_in(tmp_path / "pegasi") == {"of/a run/best.txt": "best", "of/a run/more/second.txt": "second"}
    assert os.listdir(path.parent) == ["a run"]


def test_a_folder_takes_the_place_of_the_whole_old_one(tmp_path: Path) -> None:
    path = tmp_path / "pegasi"
    path.mkdir()
    (path / "old only").write_text("old")
    (path / "both").write_text("old")
    with whole_folder(path) as staged:
        (staged / "both").write_text("new")
        assert files_in(path) == {"old only": "old", "both": "old"}  # unchanged until the end
    assert files_in(path) == {"both": "new"}
    assert os.listdir(tmp_path) == ["pegasi"]


@pytest.mark.parametrize("there_before", [True, False])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_error_while_filling_a_folder_changes_nothing(
    tmp_path: Path, error: type[BaseException], there_before: bool
) -> None:
    path = tmp_path / "pegasi"
    if there_before:
        path.mkdir()
        (path / "kept").write_text("old")
    with pytest.raises(error), whole_folder(path) as staged:
        (staged / "kept").write_text("new")
        raise error
    assert os.listdir(tmp_path) == (["pegasi"] if there_before else [])
    assert files_in(tmp_path) == ({"pegasi/kept": "old"} if there_before else {})


@pytest.mark.parametrize("failing", [1, 2])
def test_an_error_at_either_move_leaves_the_old_folder_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    path = tmp_path / "pegasi"
    path.mkdir()
    (path / "kept").write_text("old")
    rename, moves = os.rename, []

    def refuse_one(source: Path, target: Path) -> None:
        moves.append(target)
        if len(moves) == failing:
            raise PermissionError("no")
        rename(source, target)

    monkeypatch.setattr(files.os, "rename", refuse_one)
    with pytest.raises(PermissionError), whole_folder(path) as staged:
        (staged / "kept").write_text("new")
    assert files_in(path) == {"kept": "old"}
    assert os.listdir(tmp_path) == ["pegasi"]


def test_two_at_once_each_fill_their_own_folder(tmp_path: Path) -> None:
    path = tmp_path / "pegasi"
    with whole_folder(path) as one:
        (one / "one").write_text("1")
        with whole_folder(path) as two:
            (two / "two").write_text("2")
        assert files_in(path) == {"two": "2"}
    assert files_in(path) == {"one": "1"}
    assert os.listdir(tmp_path) == ["pegasi"]


def test_a_folders_name_is_on_the_disk_before_the_return(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[tuple[str, list[str]]] = []
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        folder = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        events.append((str(folder), os.listdir(folder) if folder.is_dir() else []))
        fsync(descriptor)

    monkeypatch.setattr(files.os, "fsync", watched)
    with whole_folder(tmp_path / "pegasi"):
        pass
    assert (str(tmp_path), ["pegasi"]) in events


@pytest.mark.parametrize("size", [0, 1, (1 << 20) + 3])
def test_sha256(tmp_path: Path, size: int) -> None:
    content = bytes(range(256)) * (size // 256 + 1)
    (tmp_path / "a").write_bytes(content[:size])
    assert sha256(tmp_path / "a") == hashlib.sha256(content[:size]).hexdigest()


def test_leftovers_of_killed_writers_are_cleared_here_and_not_deeper(tmp_path: Path) -> None:
    (tmp_path / "deeper").mkdir()
    (tmp_path / ".staged.0a1b.tmp").mkdir()
    for name in (".status.json.0a1b2c3d.tmp", "status.json", ".lock", "deeper/.status.json.0a1b2c3d.tmp"):
        (tmp_path / name).touch()
    files.clear_leftovers(tmp_path)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert left == {"status.json", ".lock", "deeper", "deeper/.status.json.0a1b2c3d.tmp", ".staged.0a1b.tmp"}


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize(("number", "passed_over"), [(errno.EINVAL, True), (errno.ENOTSUP, True), (errno.EIO, False)])
def test_a_file_system_that_cannot_flush_folders_is_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, passed_over: bool, kind: str
) -> None:
    """Flushing a file must work on any; a broken disk is said."""
    fsync = os.fsync

    def failing(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    def write() -> None:
        if kind == "file":
            write_text(tmp_path / "a", "new")
            return
        with whole_folder(tmp_path / "a") as staged:
            (staged / "inner").mkdir()
            (staged / "inner" / "b").write_text("new")

    monkeypatch.setattr(files.os, "fsync", failing)
    if passed_over:
        write()
        assert (tmp_path / "a").exists()
    else:
        with pytest.raises(OSError, match=os.strerror(number)):
            write()
    monkeypatch.setattr(files.os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(errno.EINVAL, "file")))
    with pytest.raises(OSError, match="file"):
        write_text(tmp_path / "c", "new")


@pytest.mark.promise(18)
def test_what_killed_writers_of_a_folder_left_is_removed_and_not_what_one_still_writes(tmp_path: Path) -> None:
    path = tmp_path / "export"
    killed = tmp_path / "killed.py"
    killed.write_text(
        "import os, sys\nfrom pathlib import Path\nfrom pegasus_lightning.utils.files import whole_folder\n"
        "with whole_folder(Path(sys.argv[1])) as staged:\n"
        "    (staged / 'half').write_text('x')\n    os.kill(os.getpid(), 9)\n"
    )
    assert subprocess.run([sys.executable, killed, path], check=False).returncode == -9
    (leftover,) = tmp_path.glob(".export.*.tmp")
    assert (leftover / "half").exists()
    own = [tmp_path / name for name in (".export.mine.tmp", ".exports.01234567.tmp")]
    for folder in [*own, tmp_path / ".export.89abcdef.old"]:
        folder.mkdir()
    with whole_folder(path) as one:
        assert not leftover.exists()
        with whole_folder(path):  # another writer, who must leave the first alone
            assert one.is_dir()
        (one / "a").touch()
        assert (tmp_path / ".export.89abcdef.old").is_dir()  # the only copy, until there was another
    with whole_folder(path) as two:
        (two / "b").touch()
    assert {entry.name for entry in tmp_path.iterdir()} == {"export", "killed.py", *(folder.name for folder in own)}
    assert [entry.name for entry in path.iterdir()] == ["b"]


def test_names_that_could_not_be_decoded_are_written_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    write_text(path, os.fsdecode("马 ".encode()) + b"\xff".decode(errors="surrogateescape"))
    assert path.read_bytes() == "马 ".encode() + b"\xff"
    write_text(path, "half a character: \ud800")
    assert path.read_bytes() == b"half a character: ?"
