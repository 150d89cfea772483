"""Fixtures: run folders as written by training and `evaluate`, with known pixels."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from pegasus_lightning.runs.scorecards import FILE, GALLERY, PEGASI, Figure, Scorecard, write_scorecard

MakeRun = Callable[..., Path]
PAIRS, FRAMES, PEGASI_SHOWN = 4, 21, 4


def plain(*shape: int) -> np.ndarray:
    """Constant images of different colours, (*shape, 3, 32, 32)."""
    count = int(np.prod(shape))
    colours = np.stack([np.arange(count) % 251, np.arange(count) // 251 * 40, np.full(count, 90)], axis=1)
    return np.broadcast_to(colours.reshape(*shape, 3, 1, 1), (*shape, 3, 32, 32)).astype(np.uint8)


def gallery(**changes: Any) -> dict[str, Any]:
    """Arrays of a gallery as saved by `evaluate`."""
    contents = {
        "first": plain(PAIRS),
        "second": plain(PAIRS) + 50,
        "first_reconstructed": plain(PAIRS),
        "second_reconstructed": plain(PAIRS),
        "frames": plain(PAIRS, FRAMES),
        "blend": plain(PAIRS) + 25,
        "cutmix": plain(PAIRS) + 75,
        "ratios": np.linspace(0, 1, FRAMES, dtype=np.float32),
        "pair_indices": np.arange(2 * PAIRS).reshape(PAIRS, 2),
        "pegasi": plain(PEGASI_SHOWN) + 100,
        "pegasi_ratios": np.array([0.4, 0.45, 0.5, 0.6]),
        "pegasi_probabilities": np.array([[0.81, 0.34], [0.1, 0.2], [0.3, 0.4], [0.5, 0.6]]),
        "pegasi_selected": np.array([False, False, True, True]),
        "neighbours": plain(PEGASI_SHOWN) + 150,
        "neighbour_distances": np.array([0.123, 0.021, 0.2, 0.3]),
        "neighbour_limit": np.array(0.05),
    }
    return {name: value for name, value in (contents | changes).items() if value is not None}


def scorecard(group: str, seed: int | None = 0, key: str = "k", **changes: Any) -> Scorecard:
    """A small scorecard; `changes` replace its fields."""
    rows = {
        PEGASI: {"recognised": Figure(0.30, 0.26, 0.34), "kid": Figure(0.8, 0.7, 0.9)},
        "pixel average": {"recognised": Figure(0.41, 0.40, 0.42), "kid": Figure(0.5, 0.4, 0.6)},
        "reconstructions": {"recognised": Figure(0.05, 0.04, 0.06), "kid": Figure(0.6, 0.5, 0.7)},
    }
    name = group if seed is None else f"{group}-s{seed}"
    contents: dict[str, Any] = {
        "run": name, "name": name, "group": group, "seed": seed, "batches": 100, "key": key,
        "classes": ["horse", "bird"], "settings": {"count": 2000}, "parents": {"split": "test"}, "recognisers": {},
        "rows": rows, "counts": {PEGASI: 2000}, "model": {"psnr": Figure(20.0, 19.0, 21.0)},
    }  # fmt: skip
    return Scorecard(**(contents | changes))


def evaluate(run: Path, card: Scorecard, title: str = "plain", pictures: dict[str, Any] | None = None) -> Path:
    """Write a scorecard and a gallery into a run folder; return their folder."""
    folder = run / "evaluation" / title
    folder.mkdir(parents=True, exist_ok=True)
    write_scorecard(folder / FILE, card)
    np.savez(folder / GALLERY, **(gallery() if pictures is None else pictures))
    return folder


@pytest.fixture(scope="session")
def make_run() -> MakeRun:
    """make_run(folder, group, seed, ...) writes a run as training does."""

    def make(
        home: Path,
        group: str = "vae",
        seed: int = 0,
        *,
        status: dict[str, Any] | None = None,
        config: dict[str, Any] | None = None,
        epochs: tuple[int, ...] = (1, 5),
        kinds: tuple[str, ...] = ("interpolations", "reconstructions"),
        checkpoint: bool = True,
        evaluated: bool = True,
    ) -> Path:
        run = home / f"{group},silhouettes-s{seed}-0123abcd"
        (run / "images").mkdir(parents=True)
        (run / "checkpoints").mkdir()
        if checkpoint:
            (run / "checkpoints" / "last.ckpt").write_bytes(b"weights")
        settings = {
            "model": {"name": group, "weights": {"kl": 1.0}},
            "data": {"source": "silhouettes", "classes": ["horse", "bird"], "cache": None},
            "trainer": {"gpus": 0, "max_epochs": 5},
            "seed": seed,
            "runs_dir": "runs",
        }
        OmegaConf.save(OmegaConf.merge(settings, config or {}), run / "config.yaml")
        words = ["__main__.py", f"model={group}", f"seed={seed}", "data.classes=[horse,bird]"]
        content = {"status": "finished", "exit_code": 0, "reason": None, "command": words, "epochs": 5, "batches": 100}
        content |= {"versions": {"torch": "2.10.0"}, "updated": "2026-02-03T04:05:06+00:00"} | (status or {})
        (run / "status.json").write_text(json.dumps(content))
        lines = [{"batch": 10 * i, "loss/kl": 3.0 + i} for i in range(1, 6)]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (run / "train.log").write_text("one line\nthe last line\n")
        for number, (kind, epoch) in enumerate((kind, epoch) for kind in kinds for epoch in epochs):
            colour = (40 * number + 20, 200 - 30 * number, 120)
            Image.new("RGB", (60, 40), colour).save(run / "images" / f"{kind}-epoch-{epoch:04d}.png")
        if evaluated:
            evaluate(run, scorecard(group, seed))
        return run

    return make


@pytest.fixture(scope="session")
def evaluated() -> Callable[..., Path]:
    """The function `evaluate`."""
    return evaluate


@pytest.fixture(scope="session")
def card() -> Callable[..., Scorecard]:
    """The function `scorecard`."""
    return scorecard


@pytest.fixture(scope="session")
def pictures() -> Callable[..., dict[str, Any]]:
    """The function `gallery`."""
    return gallery
