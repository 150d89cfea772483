"""Where the time of a training step goes, by torch.profiler, beside the machine's measured peaks.

    python experiments/speed/breakdown.py --json experiments/speed/breakdown.json adversarial_vae pegasus

The real command trains on drawn images at full width (contenders.py); the profiler records `--steps` steps after
`--warmup` others. Each operation counts once: for mixing, penalties, augmentation, optimizers or data if it, or the
forward operation that it differentiates, was called there, and otherwise by its kind.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import logging
import math
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import contenders
import pytorch_lightning as pl
import torch
from benchmark import machine
from contenders import SEED, Setting, StopwatchCallback
from torch import Tensor
from torch.autograd.profiler import record_function
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from pegasus_lightning.data import silhouettes
from pegasus_lightning.data.batches import TrainBatches
from pegasus_lightning.models import pegasus, two_player
from pegasus_lightning.models.mixing_network import MixNetwork
from pegasus_lightning.models.two_player import TwoPlayerModel

PLACES = ("mixing", "penalties", "augmentation", "optimizers and averages", "data")
FORWARD, PRODUCTS = "convolutions, forward", "matrix products"
GRADIENTS = {"convolutions, input gradients": 0, "convolutions, weight gradients": 1}
BACKWARD = "convolutions, backward"
COUNTED = 8  # steps whose FLOPs are counted: two of penalties
KINDS = {  # substrings of the names of operations, by kind; the first that fits
    BACKWARD: ("convolution_backward",),
    FORWARD: ("mkldnn_convolution", "aten::convolution", "aten::_convolution"),
    PRODUCTS: ("aten::mm", "aten::addmm", "aten::bmm"),
    "BatchNorm": ("batch_norm",),
    "activations": ("leaky_relu", "sigmoid", "tanh"),
    "copies and casts": ("aten::copy_", "aten::_to_copy", "aten::clone", "aten::cat", "aten::contiguous"),
}
OTHER = "other operations and Python in the step"


def fastest(action: Callable[[], Any]) -> float:
    """Return the seconds of the fastest of seven calls, after one untimed."""
    action()
    times = []
    for _ in range(7):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return min(times)


def peaks() -> dict[str, float]:
    """Return GFLOP/s of matrix products (the best of three sizes), and GB/s of a copy of 256 MB, read and written."""
    found = {}
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        speeds = []
        for size in (1024, 2048, 4096):
            left, right = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
            speeds.append(2 * size**3 / fastest(lambda left=left, right=right: left @ right) / 1e9)  # type: ignore[misc]
        found[f"{name}_gflops"] = max(speeds)
    source, target = torch.randn(2**26), torch.empty(2**26)
    found["copy_gb_per_second"] = 2 * 4 * 2**26 / fastest(lambda: target.copy_(source)) / 1e9
    return found


@contextlib.contextmanager
def named_places() -> Iterator[None]:
    """Mark the calls of PLACES in the profile."""

    def marked(owner: Any, name: str, place: str) -> Any:
        original = getattr(owner, name)

        def call(*arguments: Any, **keywords: Any) -> Any:
            with record_function(place):
                return original(*arguments, **keywords)

        return patch.object(owner, name, call)

    batches = TrainBatches.__iter__

    def iterate(self: TrainBatches) -> Iterator[tuple[Tensor, Tensor]]:
        source = batches(self)
        while True:
            with record_function("data"):
                batch = next(source, None)
            if batch is None:
                return
            yield batch

    with contextlib.ExitStack() as stack:
        for owner, name, place in (
            (MixNetwork, "forward", "mixing"),
            (TwoPlayerModel, "gradient_penalty", "penalties"),
            (two_player, "augment", "augmentation"),
            (pegasus, "augment", "augmentation"),
            (TwoPlayerModel, "_step_player", "optimizers and averages"),
            (TwoPlayerModel, "update_average", "optimizers and averages"),
            (TwoPlayerModel, "training_step", "step"),
        ):
            stack.enter_context(marked(owner, name, place))
        stack.enter_context(patch.object(TrainBatches, "__iter__", iterate))
        yield


class Calls(TorchDispatchMode):
    """Counts FLOPs by kind, and keeps the shapes of every convolution's backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.flops: collections.Counter[str] = collections.Counter()
        self.backward: collections.Counter[Any] = collections.Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        count = flop_registry.get(function.overloadpacket)
        if function.overloadpacket == torch.ops.aten.convolution_backward:
            tensors = tuple((tuple(x.shape), x.stride(), x.dtype) for x in args[:3])
            for kind, index in GRADIENTS.items():
                mask = [place == index for place in range(3)]
                if args[10][index]:
                    only = tuple(x if wanted else None for x, wanted in zip(result, mask, strict=True))
                    self.flops[kind] += count(*args[:10], mask, out_val=only)
                    self.backward[kind, tensors, str(args[4:10])] += 1
                    self.examples[kind, tensors, str(args[4:10])] = args[4:10]
        elif count is not None:
            self.flops[FORWARD if "conv" in str(function) else PRODUCTS] += count(
                *args, **(kwargs or {}), out_val=result
            )
        return result

    examples: ClassVar[dict[Any, Any]] = {}


class Recorder(StopwatchCallback):
    """Stopwatch that profiles the steps which it times, and counts the FLOPs of the COUNTED steps after them."""

    latest: ClassVar[Recorder]

    def __init__(self, watch: contenders.Stopwatch) -> None:
        super().__init__(watch)
        self.profile = profile(activities=[ProfilerActivity.CPU])
        self.calls = Calls()
        Recorder.latest = self

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.watch.warmup + self.watch.steps:
            self.calls.__enter__()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        done, last = batch_idx + 1, self.watch.warmup + self.watch.steps
        if done == self.watch.warmup:
            self.profile.start()
        self.watch.step_done(done)
        if done == last:
            self.profile.stop()
        elif done == last + COUNTED:
            self.calls.__exit__(None, None, None)


def alone(calls: Calls) -> dict[str, float]:
    """Return milliseconds a step of all weight gradients, and of all input gradients, each timed by itself."""
    found: collections.Counter[str] = collections.Counter()
    for (kind, tensors, text), times in calls.backward.items():
        inputs = [torch.empty_strided(size, stride, dtype=dtype).normal_() for size, stride, dtype in tensors]
        steps = calls.examples[kind, tensors, text]
        mask = [place == GRADIENTS[kind] for place in range(3)]
        seconds = fastest(lambda i=inputs, s=steps, m=mask: torch.ops.aten.convolution_backward(*i, None, *s, m))
        found[kind] += 1000 * seconds * times / COUNTED
    return found


def breakdown(recorder: Recorder, steps: int) -> dict[str, float]:
    """Return milliseconds a step by PLACES and KINDS, and outside of `training_step`."""
    events = list(recorder.profile.events())
    place_of_node: dict[int, str | None] = {}

    def place_and_node(event: Any) -> tuple[str | None, int | None]:
        """Return the innermost place around an operation, and the number of the node that it differentiates."""
        node = None
        while event is not None:
            if event.name in PLACES:
                return event.name, node
            if node is None and event.name.startswith("autograd::engine::evaluate_function"):
                node = event.sequence_nr
            event = event.cpu_parent
        return None, node

    located = [(event, *place_and_node(event)) for event in events]
    for event, place, _ in located:
        if event.sequence_nr >= 0 and not event.name.startswith("autograd::engine"):
            place_of_node.setdefault(event.sequence_nr, place)
    found: collections.Counter[str] = collections.Counter()
    for event, place, node in located:
        if place is None and node is not None:
            place = place_of_node.get(node)
        kind = next((kind for kind, parts in KINDS.items() if any(part in event.name for part in parts)), OTHER)
        found[place or kind] += event.self_cpu_time_total / 1000 / steps
    apart = alone(recorder.calls)
    both = found.pop(BACKWARD)
    for kind in GRADIENTS:
        found[kind] = both * apart[kind] / sum(apart.values())
    total = 1000 * (recorder.watch.end - recorder.watch.start) / steps
    found["Lightning, logging and the rest"] = total - sum(found.values())
    return dict(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--warmup", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="file to write all figures to")
    parser.add_argument("--set", nargs="*", default=[], help="further settings, such as data.root=FOLDER")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    results: dict[str, Any] = {"machine": machine("cpu"), "peaks": peaks()}
    print(json.dumps(results, indent=2), flush=True)
    for model in arguments.models:
        overrides = [f"model={model}", "data=silhouettes", "trainer.gpus=0", "trainer.max_epochs=1", f"seed={SEED}"]
        count = math.ceil((arguments.warmup + arguments.steps + COUNTED + 1) * 64 / 0.9)
        images = silhouettes.load(["horse", "bird"], "train", -(-count // 2), 0)[0]  # compositions need objects
        more = ["trainer.evaluate_test=false", "data.batch_size=64", *arguments.set]
        setting = Setting([*overrides, *more], images, 64, arguments.warmup, arguments.steps, "cpu")
        with patch.object(contenders, "StopwatchCallback", Recorder), named_places():
            speed = contenders.real(setting)
        recorder = Recorder.latest
        times = breakdown(recorder, arguments.steps)
        flops = {kind: value / COUNTED / 1e9 for kind, value in recorder.calls.flops.items()}
        speeds = {"epoch_end_seconds": speed["epoch_end_seconds"]}
        results[model] = {"milliseconds": times, "gflop": flops, "epoch": speeds}
        total = sum(times.values())
        print(f"\n{model}: {total:.0f} ms a step with the profiler\n")
        print("| part | ms | share | GFLOP |\n| --- | --- | --- | --- |")
        for part, value in sorted(times.items(), key=lambda item: -item[1]):
            print(f"| {part} | {value:.1f} | {value / total:.0%} | {f'{flops[part]:.2f}' if part in flops else ''} |")
        print(f"| all | {total:.1f} | 100% | {sum(flops.values()):.1f} |", flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
