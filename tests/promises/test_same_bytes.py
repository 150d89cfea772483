"""Promise 14: the same seed gives the same files, byte for byte, in another process too."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.mark.slow
@pytest.mark.promise(14)
def test_two_processes_make_the_same_pegasi(left: Callable[[Path], Any], begun: Path, tmp_path: Path) -> None:
    made: list[dict[str, bytes]] = []
    for hash_seed in ("1", "2"):  # so that the order of sets differs
        out = tmp_path / f"out-{hash_seed}"
        environment = os.environ | {"PYTHONHASHSEED": hash_seed, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        arguments = [f"run={left(begun).run}", f"out={out}", "count=4", "seed=3", "pegasus.threshold=1", "gpus=0"]
        arguments += ["search=best_of", "search.pairs=16"]
        command = [sys.executable, "-m", "pegasus_lightning.generate", *arguments]
        ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
        made.append({path.name: path.read_bytes() for path in out.iterdir() if path.is_file()})
    assert sum(name.endswith(".png") for name in made[0]) >= 3
    assert made[0] == made[1]
