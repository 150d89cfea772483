"""Curves of experiments/long_run: validation figures of a run against its epochs.

    python experiments/long_run/curves.py RUN

writes curves.png next to this file and prints the values at a few epochs as a Markdown table.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

AT = (1, 5, 15, 50, 100, 200, 400, 700, 1000)  # epochs of the table
PANELS = {
    "PSNR, dB": {"validation/psnr": "reconstructions"},
    "KL, nats": {"validation/kl": "posterior and prior"},
    "probability of 'real'": {"validation/critic_real": "C(real)", "validation/critic_fake": "C(fake)"},
}


def validations(run: Path) -> dict[int, dict[str, float]]:
    """Return the validation figures by epoch."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    measured = [line for line in lines if "validation/psnr" in line]
    return {line["batch"] // measured[0]["batch"]: line for line in measured}


def main(run: Path) -> None:
    epochs = validations(run)
    print("| epoch | PSNR dB | excess BCE nats | KL nats | active dims | C(real) | C(fake) |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for at in (at for at in AT if at in epochs):
        one = {key.removeprefix("validation/"): value for key, value in epochs[at].items()}
        print(
            f"| {at} | {one['psnr']:.2f} | {one['excess_bce']:.1f} | {one['kl']:.1f} | {one['active_dimensions']:.0f} "
            f"| {one['critic_real']:.3f} | {one['critic_fake']:.3f} |"
        )
    figure, axes = pyplot.subplots(1, len(PANELS), figsize=(4 * len(PANELS), 3), layout="constrained")
    for axis, (title, tags) in zip(axes, PANELS.items(), strict=True):
        for tag, label in tags.items():
            axis.plot(list(epochs), [epoch[tag] for epoch in epochs.values()], label=label, linewidth=0.8)
        axis.set(title=title, xlabel="epochs", xscale="log")
        axis.legend(frameon=False, fontsize=8)
        axis.grid(alpha=0.3)
    figure.savefig(Path(__file__).with_name("curves.png"), dpi=110)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
