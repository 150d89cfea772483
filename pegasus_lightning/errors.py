"""The one error a user's mistake ends in, and the nearest right word to offer."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


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
