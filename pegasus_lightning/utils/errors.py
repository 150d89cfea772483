"""The one error a user's mistake ends in, with the nearest right word to offer; and how runs and sweeps end early."""

from __future__ import annotations

import difflib
import signal
from collections.abc import Iterable, Sequence
from typing import Any

from omegaconf import OmegaConf

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # at which runs and sweeps save and end


class UserError(Exception):
    """A mistake the user can mend: shown as its message alone (no traceback), exit code 2."""


def nearest(word: str, choices: Iterable[str]) -> str | None:
    """The choice most like `word`, or None where nothing is near."""
    matches = difflib.get_close_matches(str(word), [str(choice) for choice in choices], n=1, cutoff=0.5)
    return matches[0] if matches else None


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """` Did you mean 'x'?` (with a leading space), or an empty string where nothing is near."""
    match = nearest(word, choices)
    return f" Did you mean '{match}'?" if match else ""


class Interrupted(Exception):
    """A signal asked the run to stop; everything is saved."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number, self.exit_code = number, 128 + number

    def __reduce__(self) -> tuple[type[Interrupted], tuple[int]]:
        return Interrupted, (self.number,)  # a launcher on a cluster sends it home


class NonFiniteLoss(Exception):
    """Terms of a loss became NaN or infinite in a batch (counted from 1)."""

    def __init__(self, names: Sequence[str], batch: int) -> None:
        super().__init__(f"{', '.join(names)} became NaN or infinite at batch {batch}.")
        self.names, self.batch = list(names), batch

    def __reduce__(self) -> tuple[type[NonFiniteLoss], tuple[list[str], int]]:
        return NonFiniteLoss, (self.names, self.batch)


class SweepEnded(Exception):
    """A sweep is over, all that there is to say about it was said, and its exit code is not 0."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(f"the sweep ended with exit code {exit_code}")
        self.exit_code = exit_code


def check_choice(key: str, value: str, choices: tuple[str, ...]) -> None:
    """The value is one of the choices; else a UserError with the nearest."""
    if value not in choices:
        hint = did_you_mean(value, choices)
        raise UserError(f"{key}={value} is not a choice.{hint} Choose from: {', '.join(choices)}.")


def check_at_least(key: str, value: float | None, low: float) -> None:
    """The value is null or at least `low`; else a UserError."""
    if value is not None and not value >= low:
        raise UserError(f"{key}={value} is out of range: it must be at least {low}.")


def check_at_most(key: str, value: float, high: float) -> None:
    """The value is at most `high`; else a UserError."""
    if not value <= high:
        raise UserError(f"{key}={value} is out of range: it must be at most {high}.")


def check_above(key: str, value: float | None, low: float) -> None:
    """The value is null or finite and above `low`; else a UserError."""
    if value is not None and not low < value < float("inf"):
        raise UserError(f"{key}={value} is out of range: it must be finite and greater than {low}.")


def check_fraction(key: str, value: float, *, low_open: bool = False) -> None:
    """The value lies in [0, 1), or (0, 1); else a UserError."""
    if not 0 <= value < 1 or (low_open and value == 0):
        raise UserError(f"{key}={value} is out of range: it must lie in {'(' if low_open else '['}0, 1).")


def check_not_negative(key: str, value: float) -> None:
    """The value is finite and at least 0; else a UserError."""
    if not 0 <= value < float("inf"):
        raise UserError(f"{key}={value} is out of range: it must be at least 0, and finite.")


def check_fixed(node: Any, group: str, field: str) -> None:
    """The field that says which schema a node has is not a setting: the group's preset chooses it."""
    schema = OmegaConf.get_type(node)
    right = getattr(schema, field, node[field])
    if node[field] != right:
        raise UserError(
            f"{group}.{field}={node[field]} does not fit. Choose with {group}=..., not with {group}.{field}."
        )
