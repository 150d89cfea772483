"""The README's worked example, executed: its variant is added to a copy of the project and trained."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def fenced(text: str) -> list[str]:
    return re.findall(r"^```\w+\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def test_the_worked_example_of_a_variant_trains(tmp_path):
    text = (ROOT / "README.md").read_text()
    variant, preset, import_line, registry_line = fenced(text[text.index("## Add a variant") :])
    for folder in ("pegasus_lightning", "conf"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "pegasus_lightning/models/least_squares_vae.py").write_text(variant)
    (tmp_path / "conf/model/least_squares_vae.yaml").write_text(preset)
    registry = tmp_path / "pegasus_lightning/models/__init__.py"
    code = registry.read_text().replace('    "vae": VAE,\n', f'    "vae": VAE,\n{registry_line}')
    registry.write_text(code.replace("\nMODELS", f"\n{import_line}\nMODELS"))

    command = [sys.executable, "-m", "pegasus_lightning", "model=least_squares_vae", "data=silhouettes"]
    small = ["data.train_per_class=40", "data.test_per_class=10", "data.batch_size=16", "model.networks.channels=4"]
    limits = ["trainer.gpus=0", "trainer.max_epochs=1", "trainer.log_every_n_steps=1"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [*command, *small, *limits], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )

    assert done.returncode == 0, done.stderr
    (metrics,) = tmp_path.glob("runs/single/least_squares_vae*/metrics.jsonl")
    assert '"critic_loss/fake"' in metrics.read_text()  # the example's own critic played
