"""Promise 16: the supported versions of Python and of the dependencies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no tomllib")
requirements = pytest.importorskip("packaging.requirements")
specifiers = pytest.importorskip("packaging.specifiers")

pytestmark = pytest.mark.promise(16)
PROJECT: dict[str, Any] = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize(
    ("python", "allowed"),
    [("3.9.25", False), ("3.10.0", True), ("3.11.7", True), ("3.12.9", True), ("3.13.5", True), ("3.14.0", False)],
)
def test_the_pythons(python: str, allowed: bool) -> None:
    assert specifiers.SpecifierSet(PROJECT["requires-python"]).contains(python) == allowed


@pytest.mark.parametrize(
    ("package", "refused", "allowed"),
    [
        ("pytorch-lightning", ["2.5.6", "2.6.5", "2.7.0", "3.0"], ["2.6.6", "2.6.9"]),
        ("torch", ["2.9.1"], ["2.10.0", "2.15.0"]),
        ("hydra-core", ["1.3.7", "1.4.0"], ["1.3.8"]),
        ("omegaconf", ["2.2.3", "2.4.0"], ["2.3.1"]),
        ("numpy", ["1.26.4"], ["2.0.0"]),
        ("pillow", ["11.0.0", "11.1.0"], ["11.2.1"]),
    ],
)
def test_known_bad_versions_are_excluded(package: str, refused: list[str], allowed: list[str]) -> None:
    (bounds,) = [r.specifier for r in map(requirements.Requirement, PROJECT["dependencies"]) if r.name == package]
    assert not any(bounds.contains(version) for version in refused)
    assert all(bounds.contains(version) for version in allowed)
