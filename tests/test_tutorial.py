"""The tutorial's notebook: it runs as it is written, with a smaller model, and what is committed are its outputs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parent.parent / "docs" / "tutorial.ipynb"
SMALL = ["data=silhouettes", "data.train_per_class=64", "data.test_per_class=24", "model.networks.channels=4",
         "model.networks.latent_dim=8", "trainer.max_epochs=1", "trainer.gpus=0", "data.batch_size=16"]  # fmt: skip


# A recogniser that is shown a few images alone.
SHORT = """
import dataclasses, pegasus_lightning.api as api
recipe = dataclasses.replace(api.standard_recipe("residual"), epochs=1, least=32, most=32)
api.standard_recipe = lambda architecture: recipe
"""


def printed(cell: dict) -> str:
    """What a cell printed or returned as text."""
    parts = [output.get("text") or output.get("data", {}).get("text/plain", "") for output in cell["outputs"]]
    return "".join("".join(part) for part in parts)


@pytest.mark.slow
def test_the_tutorial_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(NOTEBOOK, 4)
    (settings,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    settings.source = f"SETTINGS = {SMALL}\n{SHORT}"
    for name, value in {"XDG_CACHE_HOME": str(tmp_path / "cache"), "CUDA_VISIBLE_DEVICES": ""}.items():
        monkeypatch.setenv(name, value)
    nbclient.NotebookClient(notebook, timeout=280, resources={"metadata": {"path": str(tmp_path)}}).execute()
    told = "".join(printed(cell) for cell in notebook.cells if cell.cell_type == "code")
    assert "('horse', 'bird') (10, 8) (10, 3, 32, 32)" in told
    assert "((4, 3, 32, 32), ['horse', 'bird'])" in told
    assert len([line for line in told.splitlines() if "±" in line]) == 4  # mixes, average, real horses, own method
    assert len(list(tmp_path.glob("runs/tutorial/*/checkpoints/last.ckpt"))) == 1


def test_the_committed_outputs_are_those_of_a_whole_run() -> None:
    notebook = json.loads(NOTEBOOK.read_text())
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert not any(output["output_type"] == "error" for cell in cells for output in cell["outputs"])
    pictures = [output for cell in cells for output in cell["outputs"] if "image/png" in output.get("data", {})]
    assert len(pictures) == 4
    assert NOTEBOOK.stat().st_size < 400_000
