"""Progress where there is no terminal."""

from __future__ import annotations

import time

import pytest
from tqdm import tqdm

from pegasus_lightning.utils import bars


def test_away_from_a_terminal_there_is_a_line_now_and_then_with_the_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    now = [100.0]
    monkeypatch.setattr(tqdm, "_time", lambda: now[0], raising=False)
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    for seconds in (10.0, 0.9):  # 50 seconds, and too few for a line
        for _ in bars.bar(range(5), desc="recogniser"):
            now[0] += seconds
    # The first line is due after five seconds, the next half a minute after it, 10 seconds before the end.
    first, second = capsys.readouterr().err.splitlines()
    assert first == "recogniser: 20%, 00:40 left"
    assert second in ("recogniser: 80%, 00:10 left", "recogniser: 80%, 00:09 left")  # rounded down


def test_long_work_without_parts_says_what_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(bars, "FIRST", 0.2)
    with bars.waiting("short"):
        pass
    with bars.waiting("loading"):
        time.sleep(0.5)
    assert capsys.readouterr().err == "loading ...\n"
