"""Progress of work that may take longer than a few seconds: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

EVERY = 10.0  # seconds before the first line and between two lines, where there is no terminal


def bar(iterable: Iterable[Any] | None = None, *, desc: str, unit: str = "it", total: int | None = None) -> tqdm:
    """Return tqdm's bar on stderr, with the time left. Short work shows none."""
    if sys.stderr.isatty():
        return tqdm(iterable, desc=desc, unit=unit, total=total, delay=2.0, leave=False)
    return tqdm(
        iterable,
        desc=desc,
        total=total,
        delay=EVERY / 2,
        mininterval=EVERY,
        miniters=1,
        leave=False,
        bar_format="{desc}: {percentage:.0f}%, {remaining} left",
        file=_Lines(),
    )


class _Lines:
    """stderr, to which tqdm's updates are written as lines of their own."""

    def write(self, text: str) -> None:
        if line := text.strip():
            sys.stderr.write(f"{line}\n")

    def flush(self) -> None:
        sys.stderr.flush()
