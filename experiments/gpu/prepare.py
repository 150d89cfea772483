"""Gather what a machine with a GPU but without network lacks: packages as wheels, and photographs as one uint8 file.

    python experiments/gpu/prepare.py FOLDER --root cifar10-images      # FOLDER must not be in version control

FOLDER then holds `wheels/` and `photographs.safetensors` (37 MB for horses and birds), and `run.sh` finds them there.
Without `--root` the photographs are left out, and drawings take their place.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from safetensors.torch import save_file

from pegasus_lightning.data.module import load_split
from pegasus_lightning.train.settings import TRAIN, Config
from pegasus_lightning.utils.compose import typed

# Pure Python, or one wheel for every version: what images with PyTorch and Lightning often lack. As installed here.
PACKAGES = ["hydra-core", "omegaconf", "antlr4-python3-runtime", "torchinfo", "safetensors", "filelock", "jinja2"]
PACKAGES += ["pytest", "pluggy", "iniconfig", "pytest-timeout"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--root", type=Path, help="folder with train/<class> and test/<class>")
    parser.add_argument("--no-wheels", action="store_true")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    if not arguments.no_wheels:
        wheels = ["wheel", "--quiet", "--no-deps", "--wheel-dir", str(arguments.folder / "wheels")]
        wheels += [f"{name}=={version(name)}" for name in PACKAGES]
        subprocess.run([sys.executable, "-m", "pip", *wheels], check=True)
    if arguments.root is not None:
        config = typed(TRAIN.compose(["data=image_folder", f"data.root={arguments.root}"]), Config).data
        tensors = {}
        for split in ("train", "test"):
            data = load_split(config, split)
            tensors[f"{split}_images"], tensors[f"{split}_labels"] = data.images.contiguous(), data.labels
        save_file(tensors, arguments.folder / "photographs.safetensors", {"classes": ",".join(config.classes)})
    for path in sorted(arguments.folder.rglob("*.*")):
        print(f"{path.relative_to(arguments.folder)}: {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
