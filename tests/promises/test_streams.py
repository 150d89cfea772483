"""A run goes on without its reader, its terminal, its stderr; a command ends as it would have."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.promise(20), pytest.mark.slow]
SETTINGS = [
    "model=vae",
    "data=silhouettes",
    "data.train_per_class=20",
    "data.test_per_class=10",
    "data.batch_size=12",
    "data.validation_fraction=0.1",
    "model.networks.channels=4",
    "trainer.gpus=0",
]


@pytest.mark.parametrize("stdout", ["pipe", "/dev/full"])
def test_ctrl_c_is_answered_as_usual_when_the_reader_is_gone(tmp_path: Path, stdout: str) -> None:
    reading, writing = os.pipe()
    output = writing if stdout == "pipe" else os.open(stdout, os.O_WRONLY)
    process = subprocess.Popen(
        [sys.executable, "-m", "pegasus_lightning", *SETTINGS, "trainer.max_epochs=100000"],
        cwd=tmp_path,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        stdout=output,
        stderr=output,
    )
    os.close(reading)
    deadline = time.monotonic() + 100
    while not list(tmp_path.glob("runs/single/*/checkpoints/last.ckpt")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    (path,) = tmp_path.glob("runs/single/*/status.json")
    status = json.loads(path.read_text())
    assert (status["status"], status["reason"]) == ("interrupted", "stopped by SIGINT")


COMMANDS = ([], ["generate"], ["report"], ["export"])  # evaluate and panel begin as generate does


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words) or "train")
def test_a_mistake_has_its_exit_code_when_nothing_can_be_printed(tmp_path: Path, words: list[str]) -> None:
    mistake = "run=nowhere" if words else "seed=-1"
    closed = f"exec {sys.executable} -m pegasus_lightning {' '.join(words)} {mistake} >/dev/full 2>&-"
    assert subprocess.run(["sh", "-c", closed], cwd=tmp_path, check=False, timeout=100).returncode == 2


def test_a_file_does_not_take_the_place_of_a_closed_stream(tmp_path: Path) -> None:
    code = """if True:
        import os, sys
        from pegasus_lightning.utils.surroundings import steady_streams
        with steady_streams():
            file = open("own.txt", "w")
            print("to nobody", file=sys.stderr)
            os.write(2, b"from a library")
            print("x" * 100_000)
            file.write(str(file.fileno()))
        print("after")
    """
    (tmp_path / "code.py").write_text(code)
    closed = f"exec {sys.executable} code.py 2>&-"
    ended = subprocess.run(["sh", "-c", closed], cwd=tmp_path, stdout=subprocess.PIPE, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (0, "x" * 100_000 + "\nafter\n")
    assert int((tmp_path / "own.txt").read_text()) > 2
