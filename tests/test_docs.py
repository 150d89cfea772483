"""The worked examples of docs/add-a-variant.md: both are added to a copy of the project and trained together."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def replaced(path: Path, old: str, new: str) -> None:
    """Replace the only occurrence of `old` in a file."""
    text = path.read_text()
    assert text.count(old) == 1, (path, old)
    path.write_text(text.replace(old, new))


@pytest.mark.slow
def test_the_worked_examples_of_a_variant_and_a_data_source_train(tmp_path):
    text = (ROOT / "docs" / "add-a-variant.md").read_text()
    blocks = [re.findall(rf"^{fence}\w+\n(.*?)^{fence}", text, re.DOTALL | re.MULTILINE) for fence in ("```", "~~~")]
    for folder in ("pegasus_lightning", "conf"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    package, conf = tmp_path / "pegasus_lightning", tmp_path / "conf"

    variant, preset, import_line, registry_line = blocks[0]
    (package / "models/least_squares_vae.py").write_text(variant)
    (conf / "model/least_squares_vae.yaml").write_text(preset)
    replaced(package / "models/__init__.py", '    "vae": VAE,\n', f'    "vae": VAE,\n{registry_line}')
    replaced(package / "models/__init__.py", "\nMODELS", f"\n{import_line}\nMODELS")

    source, schema, load_branch, kinds_branch, preset = blocks[1]
    (package / "data/stripes.py").write_text(source)
    (conf / "data/stripes.yaml").write_text(preset)
    settings = package / "data/settings.py"
    schemas = re.search(r"^DATA_SCHEMAS.*?^}\n", settings.read_text(), re.DOTALL | re.MULTILINE)
    replaced(settings, schemas[0], schema)
    no_source = '    else:\n        raise UserError(f"data.source={config.source} is not a source.")\n'
    replaced(package / "data/module.py", no_source, load_branch + no_source)
    replaced(package / "data/kinds.py", '    elif config.source == "lines":\n', kinds_branch)

    environment = os.environ | {"PYTHONPATH": str(tmp_path)}

    def run(*arguments: str) -> str:
        command = [sys.executable, *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout

    small = ["data.train_per_class=40", "data.test_per_class=10", "data.batch_size=16", "model.networks.channels=4"]
    limits = ["trainer.gpus=0", "trainer.max_epochs=1", "trainer.log_every_n_steps=1"]
    said = run("-m", "pegasus_lightning", "model=least_squares_vae", "data=stripes", *small, *limits)
    assert "Training least_squares_vae on 76 images" in said
    (metrics,) = tmp_path.glob("runs/single/least_squares_vae*/metrics.jsonl")
    assert '"critic_loss/fake"' in metrics.read_text()  # from the example's own critic
    assert '"critic/fake"' in metrics.read_text()
    unread = [sys.executable, "-m", "pegasus_lightning", "model=least_squares_vae", "model.adversarial_loss=hinge"]
    refused = subprocess.run(unread, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert refused.returncode == 2 and "whose critic tells 1 from 0" in refused.stderr
    kinds = "from pegasus_lightning.data import kinds, settings\n"
    kinds += "print(kinds.load_kinds(settings.data_settings(None, ['data=stripes']), 'test').names)"
    assert run("-c", kinds) == "('level', 'upright')\n"
