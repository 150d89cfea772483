"""Progress where there is no terminal."""

from __future__ import annotations

import pytest
from tqdm import tqdm

from pegasus_lightning.utils import bars


def test_away_from_a_terminal_there_is_a_line_now_and_then_with_the_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    now = [100.0]
    monkeypatch.setattr(tqdm, "_time", lambda: now[0], raising=False)
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    for seconds in (10.0, 1.0):  # 40 seconds, and too few for a line
        for _ in bars.bar(range(4), desc="recogniser"):
            now[0] += seconds
    # A line is due when half a minute is over, 10 seconds before the end.
    assert capsys.readouterr().err.splitlines() == ["recogniser: 75%, 00:10 left"]
