"""Tests of tab completion: what bash offers for a line that is not finished."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from pegasus_lightning.completion import script

# Call the function as bash does, and print what it offers, a line each.
CALL = """
COMP_LINE="$1" COMP_POINT=${#1}
read -ra COMP_WORDS <<<"$1"
COMP_CWORD=$(( ${#COMP_WORDS[@]} - 1 ))
_pegasus_lightning
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def bash(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "bash"
    path.write_text(script("bash") + CALL)
    return path


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("gen", ["generate"]),
        ("model=acai_", ["acai_document", "acai_paper"]),  # bash replaces what follows the last `=`
        ("-m model=vae,acai_p", ["vae,acai_paper"]),
        ("train trainer.max_", ["trainer.max_epochs=", "trainer.max_time="]),
        ("model.weights.ble", ["model.weights.blend="]),  # a field of acai alone
        ("generate search.pai", ["search.pairs="]),
        ("evaluate originals=", ["false", "true"]),
        ("generate run=runs/va", ["runs/vae,a"]),
        ("report runs/va", ["runs/vae,a"]),
        ("runs comp", ["compare"]),
    ],
)
def test_what_bash_offers(bash: Path, tmp_path: Path, line: str, offered: list[str]) -> None:
    (tmp_path / "runs" / "vae,a").mkdir(parents=True)
    words = ["bash", str(bash), f"pegasus-lightning {line}"]
    said = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
    assert said.stdout.split() == offered


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_zsh_can_read_its_script() -> None:
    subprocess.run(["zsh", "-n"], input=script("zsh"), text=True, timeout=60, check=True)
