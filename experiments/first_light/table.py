"""Table and pictures of experiments/first_light, from the trained runs.

    python experiments/first_light/table.py runs/first_light

measures the last checkpoint of every finished run on its test split, prints the table as Markdown, and writes each
run's grids of decoded images (interpolations, mixes and prior samples: model outputs only) next to this file.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

import torch
from omegaconf import OmegaConf

from pegasus_lightning.data.batches import EvaluationBatches
from pegasus_lightning.data.module import in_mixed_order, load_split, split_validation
from pegasus_lightning.models.losses import active_dimensions
from pegasus_lightning.runs.checkpoints import load_model
from pegasus_lightning.train.callbacks.images import fixed_pairs, interpolation_grid, pegasus_grid, prior_grid
from pegasus_lightning.utils.image_grid import save_png

ORDER = ["vae", "adversarial_vae", "two_fc_layers", "four_conv_layers", "spectral_norm"]
ORDER += ["vae_gan", "acai", "acai_paper"]
HEAD = ["preset", "channels", "seed", "epochs", "test PSNR dB", "excess BCE nats", "KL nats", "active dims"]
HEAD += ["C(real)", "C(fake)", "images/s in training"]


def preset_of(run: Path) -> str:
    """Return the preset's name, the first part of the folder's name."""
    return run.name.partition(",")[0]


def figures_of(run: Path) -> list[str]:
    """Return the table's cells for one run, and write its pictures."""
    config = OmegaConf.load(run / "config.yaml")
    status = json.loads((run / "status.json").read_text())
    model = load_model(run)
    batches = EvaluationBatches(in_mixed_order(load_split(config.data, "test")), 256)
    with model.inference():
        parts = [model.evaluate_batch(images) for images, _ in batches]
    columns = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    active = active_dimensions(columns.pop("means")).item()
    mean = {name: values.mean().item() for name, values in columns.items()}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    speed = statistics.median(line["speed/images_per_second"] for line in lines if "speed/images_per_second" in line)

    channels = config.model.networks.channels
    stem = f"{preset_of(run)}-c{channels}-s{config.seed}"
    look = {
        "scale": 3,
        "footer": f"{preset_of(run)}, {channels} channels, seed {config.seed}, epoch {status['epochs']}",
    }
    pairs = fixed_pairs(split_validation(load_split(config.data, "train"), config.data.validation_fraction)[1], 8)
    here = Path(__file__).parent
    with model.inference():
        save_png(interpolation_grid(model, pairs, **look), here / f"{stem}-interpolations.png")
        save_png(pegasus_grid(model, pairs, **look), here / f"{stem}-mixes.png")
        save_png(prior_grid(model, 8, **look), here / f"{stem}-prior.png")

    sampled = config.model.sample_codes
    cells = [f"`{preset_of(run)}`", str(channels), str(config.seed), str(status["epochs"])]
    cells += [f"{mean['psnr']:.2f}", f"{mean['excess_bce']:.1f}"]
    cells += [f"{mean['kl']:.1f}", str(active)] if sampled else ["-", "-"]
    cells += [f"{mean[name]:.3f}" if name in mean else "-" for name in ("critic_real", "critic_fake")]
    return [*cells, f"{speed:.0f}"]


def main(root: Path) -> None:
    runs = [path.parent for path in root.glob("*/status.json") if '"finished"' in path.read_text()]
    runs.sort(key=lambda run: (ORDER.index(preset_of(run)), run.name))
    print("| " + " | ".join(HEAD) + " |")
    print("| --- |" + " --- |" * (len(HEAD) - 1))
    for run in runs:
        print("| " + " | ".join(figures_of(run)) + " |", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
