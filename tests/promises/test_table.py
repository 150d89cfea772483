"""The table of docs/promises.md and the tests that carry its numbers name the same files."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]


def test_the_table_names_just_the_files_whose_tests_prove_each_promise() -> None:
    table = (TESTS.parent / "docs" / "promises.md").read_text()
    rows = re.findall(r"^\| (\d+) \| [^|]+ \| ([^|]+) \|$", table, re.MULTILINE)
    said = {(int(number), name) for number, files in rows for name in re.findall(r"`([\w/]+\.py)`", files)}
    marked = {
        (int(number), str(path.relative_to(TESTS)))
        for path in TESTS.rglob("test_*.py")
        for number in re.findall(r"pytest\.mark\.promise\((\d+)\)", path.read_text())
    }
    assert said == marked
    assert {number for number, _ in said} == set(range(1, 22))
