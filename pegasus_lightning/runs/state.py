"""What a run's status.json says, as people read it: its state, its command, its figures. Nothing in it is believed."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

TIME_LIMIT = "trainer.max_time="  # start of the reason of a run that its time limit ended
PRUNED = "pruned at epoch "  # start of the reason of an interrupted run that a search ended early
LAST = 2.0**32  # a time after 2106 is none


def state_of(status: Mapping[str, Any], locked: bool) -> str:
    """Return running, finished, interrupted, failed, died (no process is left), out of time, pruned, or unknown.

    `locked` is whether a process trains the run, see `runs.folder.is_locked`.
    """
    said = str(status.get("status") or "unknown")
    if said == "running" and not locked:
        return "died"
    reason = str(status.get("reason") or "")
    if said == "interrupted" and reason.startswith(PRUNED):
        return "pruned"
    return "out of time" if said == "finished" and reason.startswith(TIME_LIMIT) else said


def words_of(status: Mapping[str, Any]) -> list[str]:
    """Return the words of the run's command, the program first; empty if unknown."""
    words = status.get("command")
    return [str(word) for word in words] if isinstance(words, list) else []


def command_of(status: Mapping[str, Any]) -> str:
    """Return the command of the run, quoted for a shell; empty if unknown."""
    words = words_of(status)
    if not words:
        return ""
    program = "python -m pegasus_lightning" if words[0] == "__main__.py" else shlex.quote(words[0])
    return " ".join([program, *map(shlex.quote, words[1:])])


def figures_of(status: Mapping[str, Any]) -> dict[str, float]:
    """Return the finite numbers among the metrics, by tag."""
    found = status.get("metrics")
    pairs = found.items() if isinstance(found, dict) else ()
    numbers = {tag: value for tag, value in pairs if isinstance(value, (int, float)) and not isinstance(value, bool)}
    return {str(tag): float(value) for tag, value in numbers.items() if abs(value) <= sys.float_info.max}


def moment(status: Mapping[str, Any], field: str) -> float | None:
    """Return a time of the status, `started` or `updated`, in seconds since 1970; None if unknown."""
    try:
        found = datetime.fromisoformat(str(status.get(field)))
    except ValueError:
        return None
    seconds = (found if found.tzinfo else found.replace(tzinfo=timezone.utc)).timestamp()
    return seconds if 0 < seconds < LAST else None


def printable(text: str, longest: int = 5000) -> str:
    """Return a text of a foreign file to be shown: cut, and with what has no form, such as \\x1b, spelled out."""
    text = text if len(text) <= longest else text[: longest - 1] + "\u2026"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)
