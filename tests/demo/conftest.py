"""Sessions of tiny models: one that mixes by parts, with random parents, and one that mixes linearly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pegasus_lightning.demo.parents import OfImages
from pegasus_lightning.demo.session import DemoSession
from pegasus_lightning.generate.pairs import Parents
from pegasus_lightning.models import model_class
from pegasus_lightning.models.two_player import TwoPlayerModel
from pegasus_lightning.recognisers.store import RecogniserStore

NETWORKS = {"channels": 4, "latent_dim": 128, "latent": "spatial", "decoder": "residual"}
CLASSES = ("cat", "ship")


def random_parents(count: int = 20) -> Parents:
    random = torch.Generator().manual_seed(3)
    first, second = (torch.randint(0, 256, (count, 3, 32, 32), generator=random).to(torch.uint8) for _ in range(2))
    return Parents(first, second, CLASSES)


def session_of(model: TwoPlayerModel, parents: Parents, folder: Path) -> DemoSession:
    origin = {"split": "test", "source": "noise"}
    offer = OfImages(parents, origin, "noise", 0, fit=False)
    model = model.requires_grad_(False).eval()
    return DemoSession(model, "tiny", folder / "run", CLASSES, offer, RecogniserStore(folder / "recognisers"))


@pytest.fixture
def by_parts(tmp_path: Path) -> DemoSession:
    """Random weights, with a limb that is red and half open everywhere, and depends on its root."""
    config = {"networks": NETWORKS, "learned_mixing": True, "ema_decay": None}
    model = model_class("pegasus")(config, seed=5, classes=[*CLASSES])
    with torch.no_grad():
        model.mixer.grow.weight.mul_(100)
        model.mixer.last.bias[:] = torch.tensor([3.0, -3.0, 0.0, 1.0])
    return session_of(model, random_parents(), tmp_path)


@pytest.fixture
def linear(tmp_path: Path, tiny: Callable[..., TwoPlayerModel]) -> DemoSession:
    return session_of(tiny("adversarial_vae"), random_parents(), tmp_path)
