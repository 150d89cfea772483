"""Progress of work that may take longer than a few seconds: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

FIRST, EVERY = 5.0, 30.0  # seconds before the first line, and between two lines, where there is no terminal


def bar(iterable: Iterable[Any] | None = None, *, desc: str, unit: str = "it", total: int | None = None) -> tqdm:
    """Return tqdm's bar on stderr, with the time left. Short work shows none."""
    if sys.stderr.isatty():
        return tqdm(iterable, desc=desc, unit=unit, total=total, delay=2.0, leave=False)
    return tqdm(
        iterable,
        desc=desc,
        total=total,
        delay=FIRST,
        mininterval=FIRST,
        miniters=1,
        leave=False,
        bar_format="{desc}: {percentage:.0f}%, {remaining} left",
        file=_Lines(),
    )


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Write one line, "<what> ...", to stderr if the work inside takes longer than `FIRST` seconds.

    For work of which no part can be counted, such as imports.
    """
    timer = threading.Timer(FIRST, lambda: print(f"{what} ...", file=sys.stderr, flush=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class _Lines:
    """stderr, to which tqdm's updates are written as lines of their own, at least EVERY seconds apart."""

    def __init__(self) -> None:
        self.due = 0.0

    def write(self, text: str) -> None:
        if (line := text.strip()) and time.monotonic() >= self.due:
            self.due = time.monotonic() + EVERY
            sys.stderr.write(f"{line}\n")

    def flush(self) -> None:
        sys.stderr.flush()
