"""Ladder from the source document's baseline to `model=pegasus`: one ingredient more on each rung, on one budget.

    python experiments/pegasus/ladder.py --data cifar10-images --epochs 5 --seeds 0 1
    python -m pegasus_lightning.evaluate run=runs/pegasus_ladder reporter=independent winged=true
    python experiments/pegasus/table.py runs/pegasus_ladder

(The source document is a student project on adversarial VAEs: see experiments/README.md.) The training command trains
the rungs one after another and skips finished runs, so the same command continues after a stop. `--list` prints the
commands.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

NETWORKS = ["latent_dim=512", "latent=spatial", "channels=48", "conv_layers=2", "residual_blocks=1", "batch_norm=false"]
ADAM = ["lr=1e-3", "beta1=0.9", "beta2=0.99", "warmup=200", "decay_after=1000"]
CODE = [*(f"model.networks.{item}" for item in NETWORKS), *(f"model.autoencoder_optimizer.{item}" for item in ADAM)]
CODE += ["model.reconstruction=mse", "model.weights.kl=1e-4", "model.ema_decay=0.999"]
# (name, preset, its settings).
RUNGS: list[tuple[str, str, list[str]]] = [
    ("baseline", "adversarial_vae", ["model.networks.channels=48"]),
    ("code", "vae", CODE),
    ("critic", "pegasus", ["model.learned_mixing=false"]),
    ("learned_mixing", "pegasus", []),  # control: critic
    ("and_moves", "pegasus", ["model.weights.moves=0.1"]),  # control: learned_mixing
]


def commands(data: str, epochs: int, seeds: list[int]) -> list[tuple[str, list[str]]]:
    """Return (run's name, arguments) of every rung at every seed, grouped by seed."""
    return [
        (
            name,
            [
                *(f"model={preset}", *settings, "data=image_folder", f"data.root={data}", f"seed={seed}"),
                *("experiment_name=pegasus_ladder", f"run_name={name}"),
                *(f"trainer.max_epochs={epochs}", f"callbacks.images_every_n_epochs={epochs}"),
            ],
        )
        for seed in seeds
        for name, preset, settings in RUNGS
    ]


def main() -> None:
    """Run or list the commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of photographs: FOLDER/{train,test}/{horse,bird}/*.jpg")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--only", nargs="+", help="only these rungs")
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args()
    for name, arguments in commands(options.data, options.epochs, options.seeds):
        if options.only and name not in options.only:
            continue
        command = [sys.executable, "-m", "pegasus_lightning", *arguments, "callbacks.progress_bar=false"]
        print("python " + " ".join(command[1:]), flush=True)
        if not options.list:
            subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
