"""Images per second of the real command, a student's loop, a bare loop and Lightning's GAN example.

    python experiments/speed/benchmark.py --json experiments/speed/results.json

All contenders (contenders.py) train in one process, in turn. README.md in this folder lists what the time includes.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import math
import os
import platform
import statistics
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytorch_lightning as pl
import torch
from contenders import SEED, Result, Setting, bare, lightning, real, student

from pegasus_lightning.train.settings import TRAIN
from pegasus_lightning.utils import devices
from pegasus_lightning.utils.compose import plain

TARGETS = {"student": 2.0, "bare": 0.95, "lightning": 2.4}
Contender = Callable[[Setting], Result]


def measure(contenders: dict[str, Contender], setting: Setting, rounds: int) -> list[dict[str, Result]]:
    """Run every contender once in each round; the first contender shifts by one each round."""
    names, results = list(contenders), []
    for index in range(rounds):
        shift = index % len(names)
        results.append({})
        for name in names[shift:] + names[:shift]:
            gc.collect()
            with patch.dict(os.environ):  # hide_gpus() must not affect the next contender
                results[-1][name] = contenders[name](setting)
            print(f"round {index + 1}: {name:<10} {results[-1][name]['images_per_second']:9.1f} images/s", flush=True)
    return results


def spread(values: list[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f} | {min(values):.{digits}f} to {max(values):.{digits}f}"


def tables(results: list[dict[str, Result]], batch_size: int) -> str:
    """Return Markdown tables: the contenders, then the ratios of each round."""
    lines = ["| contender | images/s, median | min to max | ms/step |", "| --- | --- | --- | --- |"]
    for name in results[0]:
        speeds = [one[name]["images_per_second"] for one in results]
        lines.append(f"| {name} | {spread(speeds, 1)} | {1000 * batch_size / statistics.median(speeds):.2f} |")
    lines += ["", "| ratio, round by round | median | min to max | to reach |", "| --- | --- | --- | --- |"]
    for name in [name for name in results[0] if name != "real"]:
        ratios = [one["real"]["images_per_second"] / one[name]["images_per_second"] for one in results]
        lines.append(f"| real / {name} | {spread(ratios, 3)} | {TARGETS.get(name, '')} |")
    for key, what in (
        ("logged_images_per_second", "`speed/images_per_second` in the run's own log: {} images/s"),
        ("epoch_end_seconds", "End of the epoch (validation, pictures, checkpoint), outside the above: {} s"),
    ):
        lines += ["", what.format(spread([one["real"][key] for one in results], 2).replace("|", "median,")) + "."]
    return "\n".join(lines)


def machine(device: str) -> dict[str, Any]:
    """Return the hardware, versions and load that the figures were measured with."""
    cpu_info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    models = [line.partition(":")[2].strip() for line in cpu_info.splitlines() if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor(),
        "cpu_flags": devices.machine("cpu", 1, "")["cpu_flags"],  # the kind of CPU: PyTorch's kernels, fast bf16
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "has_fast_bf16": devices.has_fast_bf16(device),
        "torch": torch.__version__,
        "pytorch_lightning": pl.__version__,
        "load_average_at_start": os.getloadavg()[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, default=64, help="channels of the first convolution")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=200, help="timed steps of each contender in each round")
    parser.add_argument("--warmup", type=int, default=50, help="untimed steps before them")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--compiled", action="store_true", help="also measure real with trainer.compile=true")
    parser.add_argument("--json", type=Path, help="file to write all figures to")
    parser.add_argument("overrides", nargs="*", help="further settings, such as model.networks.conv_layers=4")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    facts = machine(arguments.device)
    print(json.dumps(facts, indent=2), flush=True)

    overrides = ["model=adversarial_vae", "data=silhouettes", f"model.networks.channels={arguments.channels}"]
    overrides += [f"data.batch_size={arguments.batch_size}", f"trainer.gpus={int(arguments.device == 'cuda')}"]
    overrides += ["trainer.max_epochs=1", "trainer.evaluate_test=false", f"seed={SEED}", *arguments.overrides]
    fraction = plain(TRAIN.compose(overrides))["data"]["validation_fraction"]
    trained = (arguments.warmup + arguments.steps) * arguments.batch_size
    count = max(math.ceil((trained + 1) / (1 - fraction)), trained + 16)  # room for the validation split
    images = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8)
    sizes = (arguments.batch_size, arguments.warmup, arguments.steps)
    setting = Setting(overrides, images, *sizes, arguments.device)
    contenders: dict[str, Contender] = {"real": real, "student": student, "bare": bare, "lightning": lightning}
    if facts["has_fast_bf16"]:  # `real` then uses bf16, by precision=auto
        contenders["real_fp32"] = lambda setting: real(setting, "trainer.precision=32")
    if arguments.compiled:
        contenders["real_compiled"] = lambda setting: real(setting, "trainer.compile=true")
    results = measure(contenders, setting, arguments.rounds)
    print("\n" + tables(results, arguments.batch_size))
    if arguments.json:
        what = {key: str(value) if key == "json" else value for key, value in vars(arguments).items()}
        arguments.json.write_text(json.dumps({"arguments": what, "machine": facts, "rounds": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
