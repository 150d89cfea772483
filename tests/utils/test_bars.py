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
    first, *others = capsys.readouterr().err.splitlines()
    assert first == "recogniser: 25%, 00:30 left"
    assert [line.partition(",")[0] for line in others] == [f"recogniser: {percent}%" for percent in (50, 75, 100)]
