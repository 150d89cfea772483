"""Fixtures: the training command in new processes, forked from one that has imported everything."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from running import digest
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer

# 76 images in batches of 16 are 4 batches an epoch; 3 epochs log losses at batches 3 4 | 6 8 | 9 12.
SETTINGS = [
    "data=silhouettes",
    "data.train_per_class=40",
    "data.test_per_class=10",
    "data.batch_size=16",
    "model.networks.channels=4",
    "model.networks.latent_dim=8",
    "trainer.gpus=0",
    "trainer.threads=1",
    "trainer.precision=32",
    "trainer.max_epochs=3",
    "trainer.log_every_n_steps=3",
    "callbacks.image_columns=2",
    "callbacks.image_scale=1",
    "callbacks.progress_bar=false",
]

# Reads one request a line from stdin. Prints the child's process ID, then its return code as in subprocess.Popen.
SERVER = """
import json, os, signal, sys
from pegasus_lightning import __main__
from pegasus_lightning.runs import checkpoints
from pegasus_lightning.train.callbacks.images import ImageGrids
from pegasus_lightning.train.callbacks.run_logger import RunLogger
from pegasus_lightning.models.two_player import TwoPlayerModel
from pegasus_lightning.runs.folder import Status

OWNERS = {"checkpoints": checkpoints, "torch": checkpoints.torch, "ImageGrids": ImageGrids, "RunLogger": RunLogger,
          "TwoPlayerModel": TwoPlayerModel, "Status": Status}


def strike(owner, name, moment, call, number):
    real, calls = getattr(OWNERS[owner], name), []

    def struck(*arguments, **keywords):
        calls.append(1)
        if moment == "before" and len(calls) == call:
            os.kill(os.getpid(), number)
        result = real(*arguments, **keywords)
        if moment == "after" and len(calls) == call:
            os.kill(os.getpid(), number)
        return result

    setattr(OWNERS[owner], name, struck)


for line in sys.stdin:
    asked = json.loads(line)
    child = os.fork()
    if child == 0:
        os.chdir(asked["folder"])
        for stream, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(asked[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
        if asked["strike"]:
            strike(*asked["strike"])
        sys.argv = ["pegasus_lightning", *asked["arguments"]]
        code = 1
        try:
            __main__.main()
        except SystemExit as end:
            code = end.code
        except BaseException:
            import traceback

            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Ended(NamedTuple):
    code: int
    out: str
    err: str


class Command:
    """`python -m pegasus_lightning SETTINGS ...` in a new process."""

    def __init__(self, notes: Path) -> None:
        self.notes = notes
        environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        self.server = subprocess.Popen(
            [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def start(self, folder: Path, *overrides: str, strike: str = "", signal: int = 9) -> int:
        """Start the command in `folder`. Return the process ID. Call `end` next.

        `strike`, as in "TwoPlayerModel.training_step before 7", sends `signal` to the process at that call, from 1.
        """
        blow = None
        if strike:
            place, moment, call = strike.split()
            blow = [*place.split("."), moment, int(call), signal]
        request = {"folder": str(folder), "arguments": [*SETTINGS, *overrides], "strike": blow}
        request |= {name: str(self.notes / name) for name in ("out", "err")}
        assert self.server.stdin is not None
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()
        return self._number()

    def end(self) -> Ended:
        """Wait for the process that `start` started."""
        return Ended(self._number(), (self.notes / "out").read_text(), (self.notes / "err").read_text())

    def __call__(self, folder: Path, *overrides: str, strike: str = "", signal: int = 9) -> Ended:
        self.start(folder, *overrides, strike=strike, signal=signal)
        return self.end()

    def _number(self) -> int:
        assert self.server.stdout is not None
        return int(self.server.stdout.readline())


@pytest.fixture(scope="session")
def command(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    """command(folder, *overrides, strike="", signal=9) trains a tiny run in `folder`."""
    command = Command(tmp_path_factory.mktemp("notes"))
    yield command
    assert command.server.stdin is not None
    command.server.stdin.close()
    command.server.wait(30)


class Left:
    """The files of a run, in comparable form.

    Args:
        run: its folder.
    """

    def __init__(self, run: Path) -> None:
        self.run = run
        self.checkpoints = run / "checkpoints"
        self.status: dict[str, Any] = json.loads((run / "status.json").read_text())

    @property
    def content(self) -> dict[str, Any]:
        """The content of `last.ckpt`."""
        return torch.load(self.checkpoints / "last.ckpt", weights_only=True)

    @property
    def digest(self) -> str:
        """The digest of `last.ckpt`."""
        return digest(self.run)

    def digest_of(self, checkpoint: str) -> str:
        """The digest of another checkpoint."""
        return digest(self.run, checkpoint)

    @property
    def metrics(self) -> list[tuple[int, str, float]]:
        """(batch, tag, value) of metrics.jsonl in order, without the speed, which differs between runs."""
        lines = map(json.loads, (self.run / "metrics.jsonl").read_text().splitlines())
        entries = [(line["batch"], tag, value) for line in lines for tag, value in line.items()]
        return [entry for entry in entries if entry[1] != "batch" and not entry[1].startswith("speed/")]

    @property
    def steps(self) -> dict[str, list[int]]:
        """{tag: steps} of all scalars and pictures in the only TensorBoard run."""
        every = {"scalars": 0, "images": 0, "tensors": 0}
        board = EventMultiplexer(size_guidance=every).AddRunsFromDirectory(str(self.run)).Reload()
        assert list(board.Runs()) == ["."]
        steps: dict[str, list[int]] = defaultdict(list)
        one = board.GetAccumulator(".")
        for kind, read in (("scalars", one.Scalars), ("images", one.Images)):
            for tag in one.Tags()[kind]:
                steps[tag] = [event.step for event in read(tag)]
        return dict(steps)

    @property
    def pictures(self) -> dict[str, bytes]:
        """The bytes of the PNG files by name."""
        return {path.name: path.read_bytes() for path in (self.run / "images").iterdir()}


@pytest.fixture(scope="session")
def left() -> Callable[[Path], Left]:
    """left(folder): the files of the only run in `folder`."""

    def find(folder: Path) -> Left:
        (run,) = (folder / "runs" / "single").iterdir()
        return Left(run)

    return find


@pytest.fixture(scope="session")
def unbroken(command: Command, left: Callable[[Path], Left], tmp_path_factory: pytest.TempPathFactory) -> Left:
    """A run of three epochs without interruption."""
    folder = tmp_path_factory.mktemp("unbroken")
    ended = command(folder)
    assert ended.code == 0, ended.err
    return left(folder)


@pytest.fixture
def spoil() -> Callable[[str, Path], None]:
    """spoil("truncate" | "empty" | "flip", path) damages a file."""

    def apply(how: str, path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 0x80
        path.write_bytes({"truncate": data[: len(data) // 2], "empty": b"", "flip": data}[how])

    return apply


@pytest.fixture
def begun(unbroken: Left, tmp_path: Path) -> Path:
    """A folder with a copy of the unbroken run."""
    shutil.copytree(unbroken.run.parent.parent, tmp_path / "runs")
    return tmp_path
