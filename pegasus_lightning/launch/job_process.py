"""The process of a job in the pool: the training command, which saves and ends if the pool dies.

python -m pegasus_lightning.launch.job_process OVERRIDE...        standard input: a pipe that the pool holds open
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path


def follow(descriptor: int) -> None:
    """Block until the other end of a pipe is closed, then send this process a SIGTERM."""
    while os.read(descriptor, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    """Run the training command while the pool lives."""
    threading.Thread(target=follow, args=(sys.stdin.fileno(),), daemon=True).start()
    from pegasus_lightning.launch.command import run_command  # slow: the pool may die meanwhile

    os.environ["PEGASUS_LIGHTNING_JOB"] = str(os.getpid())  # a run that hangs ends itself: train/callbacks/stall.py
    sys.argv[0] = str(Path(__file__).parents[1] / "__main__.py")  # the program that status.json records
    sys.exit(run_command(sys.argv[1:]))


if __name__ == "__main__":
    main()
