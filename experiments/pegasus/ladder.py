"""Ladder from the source document's baseline to `model=pegasus`: one ingredient more on each rung, on one budget.

    python experiments/pegasus/ladder.py --data cifar10-images --epochs 4 --channels 32 --seeds 0 1
    python -m pegasus_lightning.evaluate run=runs/pegasus_ladder reporter=independent score.judge=committee
    python experiments/pegasus/table.py runs/pegasus_ladder

(The source document is a student project on adversarial VAEs: see experiments/README.md.) The training command trains
the rungs one after another and skips finished runs, so the same command continues after a stop. `--list` prints the
commands. The last rung is the preset except for the adversarial weight, 3 here, 2 there. From `mixes` on the critic's
Adam has a beta2 of .99, before of .999.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

CRITIC = [f"model.networks.{field}" for field in ("critic_batch_norm=false", "critic_stem=true", "critic_start=he")]
CRITIC = [*CRITIC, "model.r1=0.05"]
ADAM = [f"model.autoencoder_optimizer.{field}" for field in ("lr=4e-4", "beta1=0.5", "beta2=0.99")]
MIXING = [
    "model.learned_mixing=true",
    "model.weights.guidance=0.4",
    "model.weights.layout=2",
    "model.weights.stay=0.01",
]
# (name, what it adds to the rung before). model=adversarial_vae before `mixes`, model=pegasus from there on.
RUNGS: list[tuple[str, list[str]]] = [
    ("baseline", []),
    ("residual_decoder", ["model.networks.decoder=residual"]),
    ("spatial_latent", ["model.networks.latent=spatial"]),
    ("weak_pixels", ["model.weights.reconstruction=0.2", "model.weights.kl=0.03"]),
    ("r1_critic", [*CRITIC, "model.critic_optimizer.lr=4e-4", "model.weights.adversarial=3"]),
    ("augmentation", ["model.critic_augmentation=[translation,cutout,brightness]"]),
    ("averages", ["model.ema_decay=0.999", *ADAM]),
    ("mixes", ["model.weights.fake_sample=0", "model.mix_pairs=alike"]),
    ("perceptual", ["model.weights.perceptual=15"]),
    ("learned_mixing", MIXING),
]
FIRST_OF_OURS = "mixes"
# Settings of the preset model=pegasus that later rungs add, switched off.
BARE = [
    "model.weights.perceptual=0",
    "model.weights.guidance=0",
    "model.weights.layout=0",
    "model.learned_mixing=false",
]
# Each is the whole ladder with these settings replaced.
ALTERNATIVES: list[tuple[str, list[str]]] = [
    ("and_guided_decoder", ["model.learned_mixing=false"]),
    ("and_prior_samples", ["model.weights.fake_sample=0.25"]),
    ("and_adaptive_weight", ["model.adaptive_adversarial=true", "model.weights.adversarial=2"]),  # the preset's
    (
        "and_hinge_spectral",
        [
            "model.adversarial_loss=hinge",
            "model.networks.spectral_norm=critic",
            "model.r1=0",
            "model.weights.adversarial=30",
        ],
    ),
    (
        "and_batch_norm_critic",  # the critic of the first rungs
        [
            "model.networks.critic_batch_norm=true",
            "model.networks.critic_stem=false",
            "model.networks.critic_start=default",
            "model.r1=0",
            "model.weights.adversarial=1",
            "model.ema_decay=0.995",
        ],
    ),
    ("and_critic_features", ["model.weights.perceptual=0", "model.weights.feature=0.1"]),
]


def commands(data: str, epochs: int, seeds: list[int], channels: int) -> list[tuple[str, list[str]]]:
    """Return (run's name, arguments) of every rung at every seed, grouped by seed."""
    found = []
    for seed in seeds:
        added: list[str] = []
        model = "adversarial_vae"
        for name, more in RUNGS:
            model = "pegasus" if name == FIRST_OF_OURS else model
            added = [*added, *more]
            found.append((name, _arguments(name, model, added, data, epochs, seed, channels)))
        for name, more in ALTERNATIVES:
            found.append((name, _arguments(name, model, [*added, *more], data, epochs, seed, channels)))
    return found


def _arguments(name: str, model: str, added: list[str], data: str, epochs: int, seed: int, channels: int) -> list[str]:
    place = ["data=image_folder", f"data.root={data}", "experiment_name=pegasus_ladder", f"run_name={name}"]
    length = [f"trainer.max_epochs={epochs}", f"callbacks.images_every_n_epochs={epochs}", f"seed={seed}"]
    if model == "pegasus":
        added = [*BARE, *added]
    kept = {item.partition("=")[0]: item for item in added}  # the last value of each field counts
    return [f"model={model}", f"model.networks.channels={channels}", *kept.values(), *place, *length]


def main() -> None:
    """Run or list the commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of photographs: FOLDER/{train,test}/{horse,bird}/*.jpg")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--only", nargs="+", help="only these rungs")
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args()
    for name, arguments in commands(options.data, options.epochs, options.seeds, options.channels):
        if options.only and name not in options.only:
            continue
        command = [sys.executable, "-m", "pegasus_lightning", *arguments, "callbacks.progress_bar=false"]
        print("python " + " ".join(command[1:]), flush=True)
        if not options.list:
            subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
