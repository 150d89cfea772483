"""A panel made from drawn photographs and pictures of one's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shapes import write_photographs

from pegasus_lightning.panel.make import make
from pegasus_lightning.panel.settings import MAKE


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photographs(tmp_path_factory.mktemp("photographs"), {"train": 8, "test": 8})


@pytest.fixture(scope="session")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An .npz file of six pictures, each of one grey."""
    path = tmp_path_factory.mktemp("own") / "verysecretsource.npz"
    np.savez(path, images=np.arange(100, 106, dtype=np.uint8)[:, None, None, None] * np.ones((1, 3, 32, 32), np.uint8))
    return path


@pytest.fixture(scope="session")
def panel(tmp_path_factory: pytest.TempPathFactory, photographs: Path, own: Path) -> Path:
    """A panel of four pictures a source."""
    folder = tmp_path_factory.mktemp("panels") / "one"
    overrides = [f"images=['{own}']", "count=4", f"out='{folder}'"]
    cache = tmp_path_factory.mktemp("cache")
    make(MAKE.compose(overrides), ["data=image_folder", f"data.root={photographs}", f"data.cache={cache}"])
    return folder


@pytest.fixture
def key(panel: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((panel / "key.json").read_text())
    return content
