"""`python -m pegasus_lightning`: train one run, or with -m a sweep of them. A first word names another command."""

from __future__ import annotations

import sys
from importlib import import_module

from pegasus_lightning.launch.help import COMMANDS, help_text


def main() -> None:
    """Run the console script `pegasus-lightning`. Its first word is a command; `train` may be left out."""
    word = sys.argv[1] if len(sys.argv) > 1 else ""
    if word in COMMANDS:
        del sys.argv[1]
    if word == "completion":
        sys.exit(import_module("pegasus_lightning.completion").main())
    if word in COMMANDS and word != "train":
        sys.exit(import_module(f"pegasus_lightning.{word}.__main__").main())
    from pegasus_lightning.utils.program import answered  # Hydra is slow to import

    if answered(sys.argv[1:], help_text):
        return
    from pegasus_lightning.launch.command import run_command  # PyTorch is slow to import

    sys.exit(run_command(sys.argv[1:]))


if __name__ == "__main__":
    main()
