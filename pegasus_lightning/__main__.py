"""`python -m pegasus_lightning`: train one run, or with -m a sweep of them."""

from __future__ import annotations

import sys

from pegasus_lightning.launch.command import run_command


def main() -> None:
    """Run the console script `pegasus-lightning`."""
    sys.exit(run_command(sys.argv[1:]))


if __name__ == "__main__":
    main()
