"""`python -m pegasus_lightning.runs`: list, show and compare runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path

from pegasus_lightning import __version__
from pegasus_lightning.runs import catalogue
from pegasus_lightning.runs.state import printable
from pegasus_lightning.utils.errors import UserError, exit_code_of, listing
from pegasus_lightning.utils.files import write_text
from pegasus_lightning.utils.surroundings import steady_streams

COMMAND = "python -m pegasus_lightning.runs"
LONGEST = 20_000  # characters of a message
PIPED = 10_000  # characters of a line where no terminal shows it
EXAMPLES = f"""
examples
  {COMMAND} list
  {COMMAND} list --status failed --model acai
  {COMMAND} list runs/single --where seed=1 --sort kid
  RUN=$({COMMAND} best --by final/psnr | tail -1)
  {COMMAND} show "$RUN"
  {COMMAND} compare "$RUN" runs/first_run
  {COMMAND} csv 'runs/*/vae*' --out runs.csv
"""
DEFAULT = "runs"  # place
STATE, PRESET = attrgetter("state"), attrgetter("preset")
PLACE = "a run's folder, a folder of runs, or a pattern in quotes"


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog=COMMAND,
        description="List, show and compare runs.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"pegasus_lightning {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    states = [state.replace(" ", "-") for state in catalogue.STATES]
    for name, text in (
        ("list", "a row a run"),
        ("best", "the best run by a figure; the last line is its folder"),
        ("csv", "a row a run, with the settings in which they differ and all figures"),
    ):
        several = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        several.add_argument("places", nargs="*", metavar="PLACE", help=f"{PLACE} (default: {DEFAULT})")
        several.add_argument("--status", action="append", default=[], choices=states, help="only runs of this status")
        several.add_argument("--model", action="append", default=[], metavar="NAME", help="only runs of this preset")
        several.add_argument(
            "--where", action="append", default=[], metavar="KEY=VALUE", help="only runs with this setting, as seed=1"
        )
    commands.choices["list"].add_argument(
        "--sort", metavar="TAG", default="", help="by a figure such as validation/psnr or recognised, name or status"
    )
    best = commands.choices["best"]
    best.add_argument("--by", metavar="TAG", default="validation/psnr", help="the figure (default: %(default)s)")
    ends = best.add_mutually_exclusive_group()
    ends.add_argument("--lowest", action="store_true", default=None, help="less is better")
    ends.add_argument("--highest", action="store_false", dest="lowest", default=None, help="more is better")
    commands.choices["csv"].add_argument("--out", metavar="FILE.csv", help="default: stdout")
    show = commands.add_parser("show", help="all of one run", description="all of one run", allow_abbrev=False)
    show.add_argument("places", nargs=1, metavar="RUN", help="a run's folder")
    text = "settings that differ, and figures, side by side"
    compare = commands.add_parser("compare", help=text, description=text, allow_abbrev=False)
    compare.add_argument("places", nargs="+", metavar="RUN", help=PLACE)
    return parser


def work(options: argparse.Namespace) -> None:
    """Answer a command line. Raise UserError."""
    from rich.console import Console  # slow to import
    from rich.text import Text

    from pegasus_lightning.runs import one_run, tables

    console = Console(highlight=False, emoji=False, markup=False)
    if not console.is_terminal:
        console = Console(highlight=False, emoji=False, markup=False, width=PIPED)
    out = _csv_file(options.out) if options.command == "csv" and options.out else None
    if not options.places and not Path(DEFAULT).exists():
        raise UserError(f"There is no folder {DEFAULT} here: name the folder of your runs.")
    entries = catalogue.read_catalogue(options.places or [DEFAULT])
    if options.command == "show":
        if len(entries) != 1:
            shown = listing([str(entry.folder) for entry in entries])
            raise UserError(f"{options.places[0]} holds {len(entries)} runs: name one of {shown}.")
        console.print(Text(one_run.about_run(entries[0])), soft_wrap=True)
        return
    if options.command == "compare":
        if len(entries) < 2:
            raise UserError(f"There is nothing to compare {entries[0].folder} with: name another run too.")
        tables.print_comparison(console, entries)
        return
    states = [state.replace("-", " ") for state in options.status]
    kept = catalogue.chosen(entries, states, options.model, options.where)
    if not kept:
        there = (", ".join(sorted({said(entry) for entry in entries})) for said in (STATE, PRESET))
        raise UserError("None of {} runs is such a run. Statuses: {}. Models: {}.".format(len(entries), *there))
    if options.command == "best":
        tables.print_best(console, kept, options.by, options.lowest)
    elif options.command == "csv" and out:
        write_text(out, tables.as_csv(kept))
        print(out)
    elif options.command == "csv":
        print(tables.as_csv(kept), end="")
    else:
        kept = catalogue.ordered(kept, options.sort) if options.sort else kept
        tables.print_runs(console, kept, options.sort, catalogue.shared_parts([entry.folder for entry in entries]))


def _csv_file(out: str) -> Path:
    path = Path(out).expanduser()
    if path.suffix != ".csv":
        raise UserError(f"--out {out} must end in .csv. Did you mean --out {path}.csv?")
    if path.is_dir() or not path.parent.is_dir():
        what = f"{path} is a folder" if path.is_dir() else f"there is no folder {path.parent}"
        raise UserError(f"--out {out} cannot be written: {what}. Name a file in a folder that is there.")
    return path


@steady_streams()
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code. A user error is reported as one message on stderr."""
    options = parser().parse_args(arguments)
    return exit_code_of(lambda: work(options), lambda text: printable(text, LONGEST))


if __name__ == "__main__":
    sys.exit(main())
