"""Table and pictures of experiments/first_light, out of the run folders.

    python experiments/first_light/table.py runs/first_light

prints the table as Markdown and copies each run's last grids of decoded images (interpolations, mixes and prior
samples, which hold model outputs only) beside this file.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import yaml

COLUMNS = {
    "test PSNR dB": ("psnr", ".2f"),
    "excess BCE nats": ("excess_bce", ".1f"),
    "KL nats": ("kl", ".1f"),
    "active dims": ("active_dimensions", ".0f"),
    "critic on real": ("critic_real", ".3f"),
    "critic on fake": ("critic_fake", ".3f"),
}
GRIDS = ("interpolations", "mixes", "prior")
ORDER = ["vae", "adversarial_vae", "two_fc_layers", "four_conv_layers", "spectral_norm"]
ORDER += ["vae_gan", "acai", "acai_paper"]


def preset_of(run: Path) -> str:
    """The preset's name, which the folder's name begins with."""
    return run.name.partition(",")[0]


def main(root: Path) -> None:
    here = Path(__file__).parent
    runs = [path.parent for path in root.glob("*/status.json")]
    runs.sort(key=lambda run: (ORDER.index(preset_of(run)), run.name))
    print("| preset | seed | epochs | " + " | ".join(COLUMNS) + " |")
    print("| --- |" + " --- |" * (len(COLUMNS) + 2))
    for run in runs:
        status = json.loads((run / "status.json").read_text())
        seed = yaml.safe_load((run / "config.yaml").read_text())["seed"]
        figures = status.get("metrics", {})
        cells = [
            format(figures[f"final/{name}"], form) if f"final/{name}" in figures else "-"
            for name, form in COLUMNS.values()
        ]
        print(f"| `{preset_of(run)}` | {seed} | {status.get('epochs')} | " + " | ".join(cells) + " |")
        for grid in GRIDS:
            newest = max((run / "images").glob(f"{grid}-epoch-*.png"), default=None)
            if newest is not None:
                shutil.copyfile(newest, here / f"{preset_of(run)}-s{seed}-{grid}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
