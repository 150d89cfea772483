"""Tests of the wheel: its presets, and a console script that works outside the checkout."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_the_wheel_works_without_the_checkout(tmp_path):
    pip = [sys.executable, "-m", "pip", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)], check=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    inside = set(zipfile.ZipFile(wheel).namelist())
    presets = {f"pegasus_lightning/conf/{path.relative_to(ROOT / 'conf')}" for path in (ROOT / "conf").rglob("*.yaml")}
    assert presets
    assert presets <= inside
    files = ["pretrained/pegasus.safetensors", "pretrained/pegasus.md", "data/winged.csv", "panel/page.html.jinja"]
    files += [f"demo/{name}" for name in ("style.css", "paint.js", "pick.js", "mark.js")]
    assert {f"pegasus_lightning/{name}" for name in files} <= inside

    site = tmp_path / "site"
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(wheel)], check=True, timeout=300)
    script = site / "bin" / "pegasus-lightning"
    environment = os.environ | {"PYTHONPATH": str(site)}
    away = tmp_path / "away"
    away.mkdir()
    arguments = ["model=acai", "data=silhouettes", "--cfg", "job"]
    command = [sys.executable, str(script), *arguments]
    shown = subprocess.run(command, cwd=away, env=environment, capture_output=True, text=True, timeout=300)
    assert shown.returncode == 0, shown.stderr
    assert "name: acai" in shown.stdout
    where = [sys.executable, "-c", "import pegasus_lightning; print(pegasus_lightning.__file__)"]
    imported = subprocess.run(where, cwd=away, env=environment, capture_output=True, text=True, check=True)
    assert imported.stdout.startswith(str(site))
