"""Errors that end a command, checks of settings, and hints for mistyped words."""

from __future__ import annotations

import difflib
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

USAGE_ERROR = 2  # exit code
MAX_NAMES_SHOWN = 20
# Signals at which runs and sweeps save and end: SIGHUP too, when a terminal closes, but not under nohup.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


class UserError(Exception):
    """A mistake of the user: the command prints its message, without a traceback, and exits with code 2."""


class UnreadSetting(UserError):
    """Settings that nothing reads. A sweep leaves such a combination out.

    `reason` is the mistake without values, and `settings` are those among the overrides that are at fault.
    """

    def __init__(self, message: str, reason: str = "", settings: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.reason, self.settings = reason, list(settings)


def complain(message: str) -> int:
    """Print an error message on stderr and return the exit code of a user error."""
    print(f"pegasus_lightning: {message}", file=sys.stderr)
    return USAGE_ERROR


def exit_code_of(work: Callable[[], object], shown: Callable[[str], str] = str) -> int:
    """Call the work of a command and return its exit code. An error is one message, which `shown` makes printable."""
    try:
        work()
    except UserError as error:
        return complain(shown(str(error)))
    except OSError as error:  # such as a full disk
        print(f"pegasus_lightning: {error}. Nothing was left half-written.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 130
    return 0


def nearest(word: str, choices: Iterable[str], cutoff: float = 0.5) -> str | None:
    """Return the choice most similar to `word`, or None. A cutoff of 1 asks for equality, of 0 for nothing."""
    matches = difflib.get_close_matches(str(word), [str(choice) for choice in choices], n=1, cutoff=cutoff)
    return matches[0] if matches else None


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Return ` Did you mean 'x'?`, with a leading space, or an empty string if no choice is similar."""
    match = nearest(word, choices)
    return f" Did you mean '{match}'?" if match else ""


def listing(names: Sequence[str]) -> str:
    """Return `a, b, c`, cut off after MAX_NAMES_SHOWN names; `none` for no names."""
    shown = ", ".join(names[:MAX_NAMES_SHOWN]) or "none"
    left_out = len(names) - MAX_NAMES_SHOWN
    return f"{shown} and {left_out} more" if left_out > 0 else shown


def heeded_signals() -> list[signal.Signals]:
    """Return SIGNALS without a SIGHUP that this process was started to ignore."""
    nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [number for number in SIGNALS if number is not signal.SIGHUP or not nohup]


class Interrupted(Exception):
    """A signal stopped the run after everything was saved."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number, self.exit_code = number, 128 + number

    def __reduce__(self) -> tuple[type[Interrupted], tuple[int]]:
        return Interrupted, (self.number,)  # a launcher on a cluster pickles it


class NonFiniteLoss(Exception):
    """Loss terms became NaN or infinite in a batch, counted from 1."""

    def __init__(self, names: Sequence[str], batch: int) -> None:
        super().__init__(f"{', '.join(names)} became NaN or infinite at batch {batch}.")
        self.names, self.batch = list(names), batch

    def __reduce__(self) -> tuple[type[NonFiniteLoss], tuple[list[str], int]]:
        return NonFiniteLoss, (self.names, self.batch)


class SweepEnded(Exception):
    """A sweep ended with an exit code other than 0, after everything about it was printed."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(f"the sweep ended with exit code {exit_code}")
        self.exit_code = exit_code


def check_choice(key: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise UserError, with the nearest choice, unless the value is one of the choices."""
    if value not in choices:
        hint = did_you_mean(value, choices)
        raise UserError(f"{key}={value} is not a choice.{hint} Choose from: {', '.join(choices)}.")


def check_at_least(key: str, value: float | None, low: float) -> None:
    """Raise UserError unless the value is null or at least `low`."""
    if value is not None and not value >= low:
        raise UserError(f"{key}={value} is out of range: it must be at least {low}.")


def check_at_most(key: str, value: float | None, high: float) -> None:
    """Raise UserError unless the value is null or at most `high`."""
    if value is not None and not value <= high:
        raise UserError(f"{key}={value} is out of range: it must be at most {high}.")


def check_above(key: str, value: float | None, low: float) -> None:
    """Raise UserError unless the value is null, or finite and above `low`."""
    if value is not None and not low < value < float("inf"):
        raise UserError(f"{key}={value} is out of range: it must be finite and greater than {low}.")


def check_fraction(key: str, value: float, *, low_open: bool = False) -> None:
    """Raise UserError unless the value lies in [0, 1), or in (0, 1) with `low_open`."""
    if not 0 <= value < 1 or (low_open and value == 0):
        raise UserError(f"{key}={value} is out of range: it must lie in {'(' if low_open else '['}0, 1).")


def check_not_negative(key: str, value: float) -> None:
    """Raise UserError unless the value is finite and at least 0."""
    if not 0 <= value < float("inf"):
        raise UserError(f"{key}={value} is out of range: it must be at least 0, and finite.")


def check_seed(seed: int) -> None:
    """Raise UserError unless the seed is from 0 to 2^63 - 1."""
    if not 0 <= seed < 2**63:
        raise UserError(f"seed={seed} is out of range: it must be a whole number from 0 up.")


def check_fixed(node: Any, group: str, field: str) -> None:
    """Raise UserError if the field that names a node's schema was changed: the group's preset sets it."""
    from omegaconf import OmegaConf  # slow to import

    schema = OmegaConf.get_type(node)
    right = getattr(schema, field, node[field])
    if node[field] != right:
        raise UserError(
            f"{group}.{field}={node[field]} does not fit. Choose with {group}=..., not with {group}.{field}."
        )
