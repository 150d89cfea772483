"""Figures of experiments/figures, from trained runs such as those of experiments/ablation.

    python experiments/figures/make.py runs/ablation [data.root=FOLDER]

calls `python -m pegasus_lightning.generate` three times on every preset's run at seed 0 and half width (no search, the
best of 10,000, guided), then once on all runs. Parents are shown as reconstructions, never as photographs. The PNGs
keep six bits of each colour channel, for size.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

PRESETS = ["vae", "adversarial_vae", "two_fc_layers", "four_conv_layers", "spectral_norm", "vae_gan", "acai"]
PRESETS += ["acai_document", "acai_paper", "critic_without_batch_norm"]
HERE = Path(__file__).parent
# Name of the search -> options of the command, and figures to keep with their new names.
WAYS = {
    "drawn": (
        ["figures=[pegasi,repeats,pipeline,diagram]"],
        {"pegasi": "pegasi", "repeats": "repeats", "pipeline": "pipeline", "diagram": "diagram"},
    ),
    "best": (["search=best_of", "search.pairs=2500", "figures=[best,gallery]"], {"best": "best", "gallery": "gallery"}),
    "guided": (
        ["search=guided", "search.pairs=2500", "figures=[pegasi,filmstrip]"],
        {"pegasi": "guided", "filmstrip": "filmstrip"},
    ),
}


def generate(*arguments: str) -> None:
    """Run the generate command once."""
    common = ["originals=false", "image_scale=2", "gpus=0"]
    subprocess.run([sys.executable, "-m", "pegasus_lightning.generate", *arguments, *common], check=True)


def keep(picture: Path, place: Path) -> None:
    """Copy a PNG with 64 levels in each colour channel."""
    place.parent.mkdir(parents=True, exist_ok=True)
    shades = Image.open(picture).convert("RGB").point(lambda value: round(value / 255 * 63) * 255 // 63)
    shades.save(place, optimize=True)


def main(root: Path, data: list[str]) -> None:
    runs = {preset: next(root.glob(f"{preset},image_folder-s0-*")) for preset in PRESETS}
    with tempfile.TemporaryDirectory() as temporary:
        for preset, run in runs.items():
            for way, (options, kept) in WAYS.items():
                out = Path(temporary) / preset / way
                generate(f"run={run}", f"out={out}", *options, *data)
                for name, called in kept.items():
                    keep(out / f"{name}.png", HERE / preset / f"{called}.png")
                made = json.loads((out / "pegasi.json").read_text())["pegasi"]
                means = {key: sum(p["scores"][key] for p in made) / len(made) for key in made[0]["scores"]}
                print(f"| `{preset}` | {way} | " + " | ".join(f"{key} {value:.3f}" for key, value in means.items()))
        out = Path(temporary) / "all"
        generate(*(f"run={run}" for run in runs.values()), f"out={out}", "count=2", "figures=[compare]", *data)
        keep(out / "compare" / "compare.png", HERE / "compare.png")
        shutil.rmtree(out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
