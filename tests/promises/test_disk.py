"""Promises 2 and 3: checkpoints after kills, full disks and damage."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pegasus_lightning.runs.checkpoints import latest_checkpoint, read_checkpoint

# Defines `save`: weights that all equal `number`.
SAVER = """
import sys
from pathlib import Path
import torch
from pegasus_lightning.runs.checkpoints import AtomicCheckpointIO

def save(run, number, size):
    content = {"state_dict": {"weights": torch.full((size,), float(number))}, "hyper_parameters": {}}
    AtomicCheckpointIO().save_checkpoint(content | {"batches_done": number}, Path(run) / "checkpoints" / "last.ckpt")
"""

KILL_LOOP = f"""{SAVER}
import os, signal
run, number = sys.argv[1], 0
for line in sys.stdin:  # each line starts a child, which saves until it is killed
    number = int(line)
    child = os.fork()
    if child == 0:
        while True:
            number += 1
            save(run, number, 500_000)
    print(child, flush=True)
    os.waitpid(child, 0)
    print("dead", flush=True)
"""


def number_in(path: Path) -> int:
    """The number of the save, which all weights equal."""
    content = read_checkpoint(path)
    assert content["state_dict"]["weights"].eq(content["batches_done"]).all()
    return content["batches_done"]


def run_python(script: str, *arguments: object, before: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [*before, sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def other_file_system(tmp_path: Path) -> Any:
    """An empty folder on another file system than `tmp_path`."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK) or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second file system to write to: /dev/shm is not there, or the tests lie on it")
    folder = memory / f"pegasus-test-{os.getpid()}"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


def _identity(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


def _stirs(folder: Path, since: int, save_begun: bool) -> bool:
    """Whether a save has begun, or without `save_begun`, whether `last.ckpt` has changed since `since`."""
    if save_begun:
        return any(name.startswith(".last.ckpt.") for name in os.listdir(folder))
    return _identity(folder / "last.ckpt") != since


@pytest.mark.slow
@pytest.mark.promise(2)
def test_killed_at_any_moment_of_its_saves_an_intact_checkpoint_is_there_and_no_older_one(
    tmp_path: Path, other_file_system: Path
) -> None:
    environment = os.environ | {"TMPDIR": str(other_file_system), "OMP_NUM_THREADS": "1"}
    server = subprocess.Popen(
        [sys.executable, "-c", KILL_LOOP, str(tmp_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    assert server.stdin is not None
    assert server.stdout is not None
    moments, folder = random.Random(0), tmp_path / "checkpoints"
    folder.mkdir()
    reached, mid_save = 0, 0
    for turn in range(60):
        since = _identity(folder / "last.ckpt")
        print(reached, file=server.stdin, flush=True)
        child = int(server.stdout.readline())
        deadline = time.monotonic() + 60
        while not _stirs(folder, since=since, save_begun=turn % 2 == 0) and time.monotonic() < deadline:
            time.sleep(0.0002)
        time.sleep(moments.uniform(0, 0.02))
        os.kill(child, signal.SIGKILL)
        assert server.stdout.readline() == "dead\n"
        mid_save += any(path.name.startswith(".") for path in folder.iterdir())
        found = latest_checkpoint(tmp_path)
        assert found is not None or reached == 0
        if found is not None:
            assert number_in(found) >= reached
            assert found.name == "last.ckpt"  # `last` itself is never torn, so `previous` is not needed
            reached = number_in(found)
    server.stdin.close()
    server.wait(30)
    assert reached > 20  # saves were completed between the kills
    assert mid_save > 20  # and others were killed midway
    assert list(other_file_system.iterdir()) == []  # the default folder of temporary files
    leftovers = [path for path in folder.iterdir() if path.name.startswith(".")]
    assert len(leftovers) <= 3  # of the last save only: each save removes older leftovers


FILL = f"""{SAVER}
import os
from pegasus_lightning.runs.checkpoints import latest_checkpoint, read_checkpoint, is_intact
run = Path(sys.argv[1])
size, page = 100_000, os.statvfs(run).f_bsize
save(run, 1, size)
save(run, 2, size)
folder = run / "checkpoints"
number, refused, saved = 2, 0, 0
room_for_all = 2 * (folder / "last.ckpt").stat().st_size // page + 8
for room in [*range(0, 6), *range(6, room_for_all, 7), *range(room_for_all - 12, room_for_all)]:
    free = os.statvfs(run).f_bavail
    with open(run / "filler", "wb") as file:
        file.write(bytes(max(free - room, 0) * page))
    assert os.statvfs(run).f_bavail <= room + 1, "the disk is not full"
    kept = {{name: read_checkpoint(folder / name)["batches_done"] for name in ("last.ckpt", "previous.ckpt")}}
    try:
        save(run, number + 1, size)
        saved += 1
    except OSError:
        refused += 1
        now = latest_checkpoint(run)
        assert now == folder / "last.ckpt", room
        there = read_checkpoint(now)
        assert there["batches_done"] in (number, number + 1), room
        assert there["state_dict"]["weights"].eq(there["batches_done"]).all()
        assert is_intact(folder / "previous.ckpt"), room
        big = [path.name for path in folder.iterdir() if path.name.startswith(".") and path.stat().st_nlink == 1]
        assert big == [], (room, big)  # no half-written file takes up room
    (run / "filler").unlink()
    number = read_checkpoint(folder / "last.ckpt")["batches_done"]
save(run, number + 1, size)  # with room again, the next save succeeds
assert read_checkpoint(folder / "last.ckpt")["batches_done"] == number + 1
print(refused, saved)
"""


@pytest.mark.slow
@pytest.mark.promise(2)
def test_a_full_file_system_keeps_the_old_checkpoint_however_little_room_there_is(tmp_path: Path) -> None:
    mounted = tmp_path / "small"
    mounted.mkdir()
    mount = f"mount -t tmpfs -o size=4m none {mounted}"
    if (
        shutil.which("unshare") is None
        or subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True, check=False).returncode
    ):
        pytest.skip("no small file system can be mounted here (unshare -rm is not permitted)")
    inside = run_python(FILL, mounted, before=("unshare", "-rm", "sh", "-c", f'{mount} && exec "$@"', "sh"))
    assert inside.returncode == 0, inside.stderr
    refused, saved = map(int, inside.stdout.split())
    assert refused > 10
    assert saved > 1


LIMITED = f"""{SAVER}
import resource
from pegasus_lightning.runs.checkpoints import latest_checkpoint, read_checkpoint
run = Path(sys.argv[1])
for number in (1, 2):
    save(run, number, 100_000)
names = sorted(path.name for path in (run / "checkpoints").iterdir())
for limit in (0, 1, 4096, 200_000, 400_000):  # bytes; the file has more
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        save(run, 3, 100_000)
    except OSError:
        pass
    else:
        raise SystemExit(f"saved in {{limit}} bytes")
    assert latest_checkpoint(run) == run / "checkpoints" / "last.ckpt"
    assert read_checkpoint(run / "checkpoints" / "last.ckpt")["batches_done"] == 2
    assert read_checkpoint(run / "checkpoints" / "previous.ckpt")["batches_done"] == 1
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == names
"""


@pytest.mark.slow
@pytest.mark.promise(2)
def test_a_file_that_may_not_grow_keeps_the_old_checkpoint(tmp_path: Path) -> None:
    ended = run_python(LIMITED, tmp_path)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.promise(2)
def test_a_run_that_gets_worse_saves_its_last_epoch(command: Any, left: Callable[[Path], Any], tmp_path: Path) -> None:
    worse = ["model.autoencoder_optimizer.lr=0.03", "callbacks.images=false"]
    ended = command(tmp_path, *worse)
    assert ended.code == 0, ended.err
    run = left(tmp_path)
    psnr = [value for _, tag, value in run.metrics if tag == "validation/psnr"]
    assert len(psnr) == 3
    assert psnr[2] < psnr[1] < psnr[0]  # the run did get worse
    assert run.content["batches_done"] == 12
    before = read_checkpoint(run.checkpoints / "previous.ckpt")
    assert before["batches_done"] == 8


# Promise 3, with the command.


@pytest.mark.slow
@pytest.mark.promise(3)
@pytest.mark.parametrize("how", ["truncate", "empty", "flip"])
def test_the_command_names_a_corrupt_last_and_goes_on_from_the_previous(
    command: Any, left: Callable[[Path], Any], spoil: Any, tmp_path: Path, how: str, unbroken: Any
) -> None:
    assert command(tmp_path, strike="TwoPlayerModel.training_step before 11").code == -signal.SIGKILL
    last = left(tmp_path).checkpoints / "last.ckpt"
    spoil(how, last)
    again = command(tmp_path)
    assert again.code == 0, again.err
    assert "Continuing from previous.ckpt: 1 epochs done" in again.out
    run = left(tmp_path)
    assert f"{last.relative_to(tmp_path)} is corrupt" in again.err
    assert (run.digest, run.metrics, run.steps) == (unbroken.digest, unbroken.metrics, unbroken.steps)


@pytest.mark.promise(3)
def test_the_command_ends_with_2_if_every_checkpoint_is_corrupt(
    command: Any, left: Callable[[Path], Any], spoil: Any, begun: Path
) -> None:
    run = left(begun)
    spoil("empty", run.checkpoints / "last.ckpt")
    spoil("flip", run.checkpoints / "previous.ckpt")
    before = {path: path.read_bytes() for path in run.run.rglob("*") if path.is_file()}
    ended = command(begun, "trainer.max_epochs=4")
    assert ended.code == 2
    message = ended.err.strip().splitlines()[-1]
    assert message.startswith("pegasus_lightning: Every checkpoint in ")
    assert all(part in message for part in ("last.ckpt", "previous.ckpt", "Delete the folder"))
    assert "Traceback" not in ended.err
    assert {path: path.read_bytes() for path in run.run.rglob("*") if path.is_file()} == before


@pytest.mark.promise(3)
@pytest.mark.parametrize("how", ["truncate", "empty", "flip"])
def test_a_damaged_hash_is_as_good_as_a_damaged_checkpoint(
    command: Any, left: Callable[[Path], Any], spoil: Any, begun: Path, how: str
) -> None:
    spoil(how, left(begun).checkpoints / "last.ckpt.sha256")
    ended = command(begun, "trainer.max_epochs=4")
    assert ended.code == 0, ended.err
    assert "last.ckpt is corrupt" in ended.err
    assert "Continuing from previous.ckpt: 2 epochs done" in ended.out
    assert left(begun).content["batches_done"] == 16


@pytest.mark.promise(3)
def test_the_command_of_a_finished_run_names_a_corrupt_last_and_makes_it_again(
    command: Any, left: Callable[[Path], Any], spoil: Any, begun: Path, unbroken: Any
) -> None:
    spoil("flip", left(begun).checkpoints / "last.ckpt")
    ended = command(begun)
    assert ended.code == 0, ended.err
    assert "last.ckpt is corrupt" in ended.err
    assert left(begun).digest == unbroken.digest
