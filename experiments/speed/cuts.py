"""What each acceleration of the training step brings: steps with all of them beside steps without one, in turn.

    python experiments/speed/cuts.py --json experiments/speed/cuts.json adversarial_vae pegasus

One process trains one model of each kind on random images; each round runs `--steps` steps with every setting.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import torch
from benchmark import machine, spread
from torch import Tensor, nn

from pegasus_lightning.data.lessons import Lessons
from pegasus_lightning.models import convolution, two_player
from pegasus_lightning.models.networks import frozen
from pegasus_lightning.train.fit import build_model
from pegasus_lightning.train.settings import TRAIN
from pegasus_lightning.utils.compose import plain
from pegasus_lightning.utils.devices import has_fast_bf16


class TwoPasses:
    """`OnePass` as it was before: each player runs the critic."""

    def __init__(self, critic: nn.Module, fakes: dict[str, Tensor], critic_loss: Any) -> None:
        sizes = [len(images) for images in fakes.values()]
        with frozen(critic):
            outputs = critic(torch.cat(list(fakes.values()))).split(sizes)
            self.for_autoencoder = dict(zip(fakes, outputs, strict=True))
        outputs = critic(torch.cat([images.detach() for images in fakes.values()])).split(sizes)
        self.for_critic = dict(zip(fakes, outputs, strict=True))

    def add_gradients(self) -> None:
        pass


WITHOUT: dict[str, Callable[[], contextlib.AbstractContextManager[Any]]] = {
    "nothing": contextlib.nullcontext,
    "one pass of the critic over fakes": lambda: patch.object(two_player, "OnePass", TwoPasses),
    "weight gradients as matrix products": lambda: patch.object(convolution, "MOST_POSITIONS", 0),
}


class Alone:
    """What a model asks of its Trainer."""

    log_every_n_steps: ClassVar[int] = 50
    is_last_batch: ClassVar[bool] = False
    world_size: ClassVar[int] = 1
    global_rank: ClassVar[int] = 0


def prepared(name: str) -> Callable[[int], None]:
    """Return a function that trains `name` for some steps on one batch of random images, without Lightning."""
    values = plain(TRAIN.compose([f"model={name}", "data=silhouettes"]))
    model: Any = build_model(values).train()
    if name == "pegasus":
        noise = [torch.randint(256, (64, depth, 32, 32), dtype=torch.uint8) for depth in (3, 3, 3, 1)]
        object.__setattr__(model, "lessons", Lessons(*noise, torch.randint(32, (64, 2))))
    optimizers = model.configure_optimizers()
    model.optimizers, model._trainer, model.publish = lambda: optimizers, Alone(), lambda metrics: None
    model.manual_backward = lambda loss, **keywords: loss.backward(**keywords)
    images = torch.rand(64, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    batch = images, torch.arange(64) % 2

    def train(steps: int) -> None:
        for step in range(steps):
            with torch.autocast("cpu", torch.bfloat16, enabled=has_fast_bf16("cpu")):
                model.training_step(batch, step)

    return train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=8, help="a multiple of 4, as R1 is taken every fourth step")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="file to write all figures to")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    results: dict[str, Any] = {"machine": machine("cpu")}
    for name in arguments.models:
        train = prepared(name)
        times: dict[str, list[float]] = {setting: [] for setting in WITHOUT}
        for index in range(arguments.rounds + 1):
            settings = list(WITHOUT)
            for setting in settings[index % len(settings) :] + settings[: index % len(settings)]:
                with WITHOUT[setting]():
                    start = time.perf_counter()
                    train(arguments.steps)
                    times[setting].append((time.perf_counter() - start) / arguments.steps)
        times = {setting: values[1:] for setting, values in times.items()}  # the first round warms up
        results[name] = times
        print(f"\n{name}: {1000 * statistics.median(times['nothing']):.0f} ms a step\n")
        print("| without | time to that with all, median | min to max |\n| --- | --- | --- |")
        for setting, values in times.items():
            if setting != "nothing":
                print(f"| {setting} | {spread([a / b for a, b in zip(values, times['nothing'], strict=True)], 2)} |")
        if arguments.json:
            arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
