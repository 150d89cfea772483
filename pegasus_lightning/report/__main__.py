"""`python -m pegasus_lightning.report PLACE...`: one HTML page about several runs."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence

from pegasus_lightning import __version__
from pegasus_lightning.utils.errors import exit_code_of
from pegasus_lightning.utils.surroundings import steady_streams

EVALUATE = "python -m pegasus_lightning.evaluate"
EXAMPLES = """
examples
  python -m pegasus_lightning.report runs/first_light            every run in the folder
  python -m pegasus_lightning.report 'runs/*/vae*' runs/single   patterns (in quotes), several places
  python -m pegasus_lightning.report runs/ablation --baseline vae --out ablation.html
"""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m pegasus_lightning.report",
        description="Compare runs on one self-contained HTML page: figures, pictures, curves, commands.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"pegasus_lightning {__version__}")
    parser.add_argument("places", nargs="+", metavar="PLACE", help="a run's folder, a folder of runs, or a pattern")
    parser.add_argument(
        "--out",
        metavar="FILE.html",
        help="default: report.html in the run's folder, or for several in the innermost folder that holds them all",
    )
    parser.add_argument("--baseline", metavar="NAME", help="the variant to compare with (default: adversarial_vae)")
    parser.add_argument(
        "--no-originals",
        action="store_true",
        help="leave out photographs of the data set, so that the page can be shared",
    )
    return parser


@steady_streams()
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code. A user error is reported as one message on stderr."""
    options = parser().parse_args(arguments)
    return exit_code_of(lambda: _work(options))


def _work(options: argparse.Namespace) -> None:
    from pegasus_lightning.report.page import write_report  # matplotlib is slow to import
    from pegasus_lightning.report.read import printable

    places = [place.removeprefix("run=") for place in options.places]  # as other commands spell it
    path, runs = write_report(places, options.out, options.baseline, not options.no_originals)
    waiting = [run.folder for run in runs if run.card is None and run.has_checkpoint]
    if waiting:
        count = f"{len(waiting)} run has" if len(waiting) == 1 else f"{len(waiting)} runs have"
        command = " ".join([EVALUATE, *(shlex.quote(f"run={folder}") for folder in waiting)])
        print(printable(f"{count} no scorecard yet: {command}", len(command) + 100))
    print(printable(str(path)))


if __name__ == "__main__":
    sys.exit(main())
