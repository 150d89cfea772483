"""The command line of `generate`, `evaluate` and `panel`, and helpers of every command."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pegasus_lightning import __version__
from pegasus_lightning.utils.compose import Program
from pegasus_lightning.utils.errors import UserError, complain
from pegasus_lightning.utils.surroundings import steady_streams

PATHS = (
    "run",
    "export",
    "images",
    "ratings",
    "key",
    "out",
    "first",
    "second",
    "recognisers",
    "data.root",
    "data.cache",
)
REPEATED = ("run", "images", "ratings")


def quote_paths(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with paths, as in `run=runs/a,b=c`, quoted for Hydra, which would parse commas and `=`.

    A path on its own counts as `run=PATH`. Several `run=` become one list, and so do several `images=` and `ratings=`.
    """
    quoted: list[str] = []
    repeated: dict[str, list[str]] = {}
    for before, argument in pairwise(["", *arguments]):
        if names_run(argument) and before not in ("--cfg", "-c"):
            argument = f"run={argument}"
        key, equals, value = argument.partition("=")
        if key in REPEATED and equals and value in ("", "null"):
            continue
        if key not in PATHS or not equals or value.startswith(("[", '"', "'")) or value in ("", "null"):
            quoted.append(argument)
            continue
        text = '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
        if key in REPEATED:
            repeated.setdefault(key, []).append(text)
        else:
            quoted.append(f"{key}={text}")
    return [*quoted, *(f"{key}=[{','.join(texts)}]" for key, texts in repeated.items())]


def names_run(argument: str) -> bool:
    """Return whether an argument is a path on its own, which may hold `=`, and no option, setting or part of a list."""
    key = argument.partition("=")[0]
    if argument.startswith(("-", "+", "~", "hydra/")) or argument.endswith("]"):
        return False
    try:
        return "/" in key or Path(argument).exists()
    except OSError:  # longer than a name may be
        return False


@steady_streams()
def answered(arguments: Sequence[str], help_text: Callable[[], str]) -> bool:
    """Answer `--help` and `--version`, which need none of the slow imports. Return whether one was there."""
    if "--help" in arguments or "-h" in arguments:
        print(help_text())
    elif "--version" in arguments:
        print(f"pegasus_lightning {__version__}")
    else:
        return False
    return True


@steady_streams()
def run_program(program: Program, arguments: Sequence[str], work: Callable[[DictConfig, list[str]], object]) -> int:
    """Compose the configuration of a command, run its work, and return the exit code.

    `work` is called with the configuration and the overrides that begin with `data=` or `data.`.
    """
    quieten()
    overrides: list[str] = []
    try:
        parsed = program.parse_arguments(quote_paths(arguments))
        options = [name for name, value in vars(parsed).items() if value and name not in ("overrides", "cfg")]
        if options:
            raise UserError(f"{program.command} has no -m and no option --{options[0]}: `--help` lists its options.")
        for text in parsed.overrides:
            if text.lstrip("+~").startswith(("hydra.", "hydra/")):
                raise UserError(f"'{text}' means nothing here: {program.command} has none of Hydra's own settings.")
        data = [text for text in parsed.overrides if text.startswith(("data=", "data."))]
        overrides = [text for text in parsed.overrides if text not in data]
        program.check_overrides(overrides)
        config = program.compose(overrides)
        if parsed.cfg:
            print(OmegaConf.to_yaml(config), end="")
            return 0
        chosen = [text for text in overrides if text.partition("=")[0] in program.groups]
        program.check_read(config, chosen, overrides, data)
        work(config, data)
    except UserError as error:
        return complain(str(error))
    except (HydraException, OmegaConfBaseException) as error:
        return complain(program.explain(error, [*overrides, *arguments]))
    except OSError as error:  # such as a full disk
        print(f"pegasus_lightning: {error}. Nothing was left half-written.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped; nothing was left half-written.", file=sys.stderr)
        return 130
    return 0


def quieten() -> None:
    """Silence advice that does not apply: batches come from memory without workers, the validation set is small."""
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*The number of training batches.*log_every_n_steps.*")
    logging.getLogger("pegasus_lightning").setLevel(logging.INFO)
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
