"""Tests of two image files as parents: how many mixes are tried and kept, and what the package's judges say of them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pegasus_lightning.generate.pairs import Parents
from pegasus_lightning.generate.settings import GenerateConfig, SearchConfig
from pegasus_lightning.generate.two_files import notes, of_two_files
from pegasus_lightning.recognisers.store import RecogniserStore


@pytest.mark.parametrize(
    ("count", "search", "kept", "tried"),
    [
        (None, SearchConfig(), 8, ("best_of", 64, 1)),
        (3, SearchConfig(), 3, ("best_of", 64, 1)),
        (100, SearchConfig(), 100, ("best_of", 100, 1)),
        (None, SearchConfig(method="guided", pairs=50, ratios=2), 8, ("guided", 50, 2)),
    ],
)
def test_the_best_of_many_mixes_are_kept(
    count: int | None, search: SearchConfig, kept: int, tried: tuple[str, int, int]
) -> None:
    settings = of_two_files(GenerateConfig(count=count, search=search))
    assert (settings.count, settings.search.method, settings.search.pairs, settings.search.ratios) == (kept, *tried)


class Red(nn.Module):
    """Judges for whom what is red is a horse."""

    def forward(self, images: Tensor) -> Tensor:
        return 20 * (images[:, :1].mean((2, 3)) - 0.5).repeat(1, 2)


@pytest.mark.parametrize(
    ("first", "second", "told"),
    [
        (1, 0, []),
        (0, 0, ["the first picture does not look like an ibex"]),
        (1, 1, ["the second picture looks like an ibex, not like a bird"]),
    ],
)
def test_the_packages_judges_know_the_first_class(first: int, second: int, told: list[str]) -> None:
    images = torch.zeros(2, 1, 3, 32, 32, dtype=torch.uint8)
    images[0, :, 0], images[1, :, 0] = 255 * first, 255 * second
    model: Any = SimpleNamespace(committee=Red())
    store = RecogniserStore(Path("nowhere"), torch.device("cpu"))
    assert notes(Parents(images[0], images[1], ("ibex", "bird")), [], store, model) == told
