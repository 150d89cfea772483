"""Images per second of the real command, beside a student's loop, a bare loop and Lightning's GAN example.

    python experiments/speed/benchmark.py --json experiments/speed/results.json

All contenders train the adversarial VAE: the same networks with the same initial weights, on the same
images in memory, one process, taking turns. README.md beside this says what exactly each of them does.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import logging
import math
import os
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from pegasus_lightning import training
from pegasus_lightning.cli import compose_config
from pegasus_lightning.config import NetworksConfig, plain, validate
from pegasus_lightning.data import module as data_module
from pegasus_lightning.data.batches import ImageSet
from pegasus_lightning.devices import has_fast_bf16, hide_gpus
from pegasus_lightning.networks import Critic, Decoder, Encoder, frozen
from pegasus_lightning.randomness import Stream, derived_seed

SEED = 0
CLASSES = ("horse", "bird")
TARGETS = {"student": 2.0, "bare": 0.95, "lightning": 2.4}


class Stopwatch:
    """Times the steps after the warm-up: from the end of step `warmup` to the end of step `warmup + steps`."""

    def __init__(self, warmup: int, steps: int, device: str) -> None:
        self.warmup, self.steps, self.device = warmup, steps, device
        self.start = self.end = math.nan

    def step_done(self, count: int) -> None:
        """`count` steps are done now; what the accelerator still works on is waited for at both ends."""
        if count in (self.warmup, self.warmup + self.steps):
            if self.device == "cuda":
                torch.cuda.synchronize()
            now = time.perf_counter()
            self.start, self.end = (now, self.end) if count == self.warmup else (self.start, now)


class StopwatchCallback(pl.Callback):
    """The stopwatch in a Trainer: comes last, so that a step's other callbacks are inside the time."""

    def __init__(self, watch: Stopwatch) -> None:
        self.watch, self.seconds_after = watch, math.nan

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.watch.step_done(batch_idx + 1)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.seconds_after = time.perf_counter() - self.watch.end


class NullTerminal(io.StringIO):
    """Looks like a terminal, so progress bars are drawn, and forgets what is written."""

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        return len(text)


@contextlib.contextmanager
def unseen() -> Iterator[None]:
    """What is printed inside is not shown."""
    with contextlib.redirect_stdout(NullTerminal()), contextlib.redirect_stderr(NullTerminal()):
        yield


@dataclass
class Setting:
    """What all contenders share. `images` uint8 (N, 3, 32, 32) are cut into warmup + steps batches."""

    overrides: list[str]
    images: Tensor
    batch_size: int
    warmup: int
    steps: int
    device: str

    def __post_init__(self) -> None:
        self.settings = plain(compose_config(self.overrides))
        self.networks_config = NetworksConfig(**self.settings["model"]["networks"])

    def stopwatch(self) -> Stopwatch:
        return Stopwatch(self.warmup, self.steps, self.device)

    def networks(self) -> tuple[Encoder, Decoder, Critic]:
        """The networks with the very weights that the real command starts from."""
        torch.manual_seed(derived_seed(SEED, Stream.WEIGHTS))
        config = self.networks_config
        return Encoder(config), Decoder(config), Critic(config)

    def adam(self, player: str, parameters: list[nn.Parameter], **keywords: Any) -> torch.optim.Adam:
        config = self.settings["model"][f"{player}_optimizer"]
        return torch.optim.Adam(parameters, lr=config["lr"], betas=(config["beta1"], config["beta2"]), **keywords)

    def float_loader(self) -> DataLoader:
        """As most write it: float images in a TensorDataset, one __getitem__ an image, in this process."""
        images = self.images[: (self.warmup + self.steps) * self.batch_size].float() / 255
        return DataLoader(TensorDataset(images), batch_size=self.batch_size, shuffle=True, drop_last=True)


def reparameterise(mean: Tensor, log_variance: Tensor) -> Tensor:
    return mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)


def image_losses(logits: Tensor, images: Tensor, mean: Tensor, log_variance: Tensor) -> tuple[Tensor, Tensor]:
    """Summed cross-entropy and KL divergence, mean over the batch."""
    cross_entropy = F.binary_cross_entropy_with_logits(logits, images, reduction="sum") / len(images)
    return cross_entropy, 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum() / len(images)


def label_loss(critic_logits: Tensor, label: float) -> Tensor:
    return F.binary_cross_entropy_with_logits(critic_logits, torch.full_like(critic_logits, label))


# The contenders: each returns images/s, and what else it has to tell.

Result = dict[str, float]


def real(setting: Setting, *more_overrides: str) -> Result:
    """`pegasus_lightning.training.train`, which the command calls: everything on, into a temporary folder."""
    labels = torch.arange(len(setting.images)) % 2
    data = ImageSet(setting.images, labels, CLASSES)
    callback = StopwatchCallback(setting.stopwatch())
    build_trainer = training.build_trainer

    def with_stopwatch(settings: Any, devices: Any, *, callbacks: list[pl.Callback], **arguments: Any) -> pl.Trainer:
        return build_trainer(settings, devices, callbacks=[*callbacks, callback], **arguments)

    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        stack.enter_context(patch.object(data_module, "load_split", lambda config, split: data))
        stack.enter_context(patch.object(training, "build_trainer", with_stopwatch))
        stack.enter_context(patch.dict(os.environ))  # the command hides GPUs from a run on the CPU; for itself alone
        stack.enter_context(unseen())
        config = compose_config([*setting.overrides, *more_overrides, f"runs_dir={folder}"])
        validate(config)
        run = training.train(config, "speed")
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    speeds = [line["speed/images_per_second"] for line in lines if "speed/images_per_second" in line]
    own = statistics.median(speeds[1:] or speeds or [math.nan])
    return {
        **rate(callback.watch, setting),
        "logged_images_per_second": own,
        "epoch_end_seconds": callback.seconds_after,
    }


def student(setting: Setting) -> Result:
    """(a) A plain fp32 loop as a student writes it."""
    encoder, decoder, critic = (network.to(setting.device) for network in setting.networks())
    autoencoder_optimizer = setting.adam("autoencoder", [*encoder.parameters(), *decoder.parameters()])
    critic_optimizer = setting.adam("critic", list(critic.parameters()))
    sums = dict.fromkeys(("reconstruction", "kl", "adversarial", "fake", "real"), 0.0)
    loader, watch = setting.float_loader(), setting.stopwatch()
    for count, (images,) in enumerate(loader, 1):
        images = images.to(setting.device)
        mean, log_variance = encoder(images)
        logits = decoder(reparameterise(mean, log_variance))
        reconstructions = torch.sigmoid(logits)

        reconstruction, kl = image_losses(logits, images, mean, log_variance)
        adversarial = label_loss(critic(reconstructions), 1.0)
        autoencoder_optimizer.zero_grad()
        (reconstruction + kl + adversarial).backward()
        autoencoder_optimizer.step()

        fake = label_loss(critic(reconstructions.detach()), 0.0)
        real = label_loss(critic(images), 1.0)
        critic_optimizer.zero_grad()
        (fake + real).backward()
        critic_optimizer.step()

        for name, value in zip(sums, (reconstruction, kl, adversarial, fake, real), strict=True):
            sums[name] += value.item()
        watch.step_done(count)
    return rate(watch, setting)


def bare(setting: Setting) -> Result:
    """(b) The same training, as fast as eager PyTorch goes: nothing logged, nothing saved, no Lightning."""
    bf16 = has_fast_bf16(setting.device)
    layout = {"device": setting.device, "memory_format": torch.channels_last}
    encoder, decoder, critic = (network.to(**layout) for network in setting.networks())
    autoencoder_parameters = [*encoder.parameters(), *decoder.parameters()]
    critic_parameters = list(critic.parameters())
    autoencoder_optimizer = setting.adam("autoencoder", autoencoder_parameters, fused=True)
    critic_optimizer = setting.adam("critic", critic_parameters, fused=True)
    everything = setting.images.to(**layout)
    order = torch.randperm(len(everything), device=setting.device).split(setting.batch_size)
    watch = setting.stopwatch()
    for count in range(1, setting.warmup + setting.steps + 1):
        images = everything[order[count - 1]].float().div_(255)
        coins = torch.rand(len(images), 1, 1, 1, device=setting.device) < 0.5
        images = torch.where(coins, images.flip(3), images)
        with torch.autocast(setting.device, torch.bfloat16, enabled=bf16):
            mean, log_variance = encoder(images)
            logits = decoder(reparameterise(mean, log_variance)).float()
            reconstructions = torch.sigmoid(logits)
            reconstruction, kl = image_losses(logits, images, mean, log_variance)
            with frozen(critic):
                loss = reconstruction + kl + label_loss(critic(reconstructions), 1.0)
        autoencoder_optimizer.zero_grad()
        loss.backward()
        autoencoder_optimizer.step()

        with torch.autocast(setting.device, torch.bfloat16, enabled=bf16):
            critic_loss = label_loss(critic(reconstructions.detach()), 0.0) + label_loss(critic(images), 1.0)
        critic_optimizer.zero_grad()
        critic_loss.backward()
        critic_optimizer.step()
        watch.step_done(count)
    return rate(watch, setting)


class ExampleModule(pl.LightningModule):
    """Lightning's GAN example, step by step, with encoder and decoder as its generator and six scalars logged.

    As there: both optimizers toggled, the generator run once more for the discriminator, default Adam.
    """

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.setting = setting
        self.encoder, self.decoder, self.critic = setting.networks()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_variance = self.encoder(images)
        return self.decoder(reparameterise(mean, log_variance)), mean, log_variance

    def training_step(self, batch: tuple[Tensor]) -> None:
        (images,) = batch
        autoencoder_optimizer, critic_optimizer = self.optimizers()

        self.toggle_optimizer(autoencoder_optimizer)
        logits, mean, log_variance = self(images)
        reconstruction, kl = image_losses(logits, images, mean, log_variance)
        adversarial = label_loss(self.critic(torch.sigmoid(logits)), 1.0)
        loss = reconstruction + kl + adversarial
        autoencoder_optimizer.zero_grad()
        self.manual_backward(loss)
        autoencoder_optimizer.step()
        self.untoggle_optimizer(autoencoder_optimizer)

        self.toggle_optimizer(critic_optimizer)
        real = label_loss(self.critic(images), 1.0)
        fake = label_loss(self.critic(torch.sigmoid(self(images)[0]).detach()), 0.0)
        critic_loss = real + fake
        critic_optimizer.zero_grad()
        self.manual_backward(critic_loss)
        critic_optimizer.step()
        self.untoggle_optimizer(critic_optimizer)

        self.log("loss", loss, prog_bar=True)
        self.log("critic_loss", critic_loss, prog_bar=True)
        for name, value in (("reconstruction", reconstruction), ("kl", kl), ("real", real), ("fake", fake)):
            self.log(name, value)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        autoencoder_parameters = [*self.encoder.parameters(), *self.decoder.parameters()]
        critic_parameters = list(self.critic.parameters())
        return [
            self.setting.adam("autoencoder", autoencoder_parameters),
            self.setting.adam("critic", critic_parameters),
        ]


def lightning(setting: Setting) -> Result:
    """(c) Lightning's GAN example with the Trainer's defaults: its progress bar, TensorBoard, checkpoint."""
    callback = StopwatchCallback(setting.stopwatch())
    with tempfile.TemporaryDirectory() as folder, unseen():
        trainer = pl.Trainer(
            accelerator=setting.device, devices=1, max_epochs=1, default_root_dir=folder, callbacks=[callback]
        )
        trainer.fit(ExampleModule(setting), setting.float_loader())
    return {**rate(callback.watch, setting), "epoch_end_seconds": callback.seconds_after}


def rate(watch: Stopwatch, setting: Setting) -> Result:
    return {"images_per_second": setting.steps * setting.batch_size / (watch.end - watch.start)}


# Measuring and telling.


def measure(
    contenders: dict[str, Callable[[Setting], Result]], setting: Setting, rounds: int
) -> list[dict[str, Result]]:
    """Each round runs every contender once; which comes first moves on by one a round."""
    names, results = list(contenders), []
    for index in range(rounds):
        shift = index % len(names)
        results.append({})
        for name in names[shift:] + names[:shift]:
            gc.collect()
            results[-1][name] = contenders[name](setting)
            print(f"round {index + 1}: {name:<10} {results[-1][name]['images_per_second']:9.1f} images/s", flush=True)
    return results


def spread(values: list[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f} | {min(values):.{digits}f} to {max(values):.{digits}f}"


def tables(results: list[dict[str, Result]], batch_size: int) -> str:
    """Markdown: the contenders, then the per-round ratios."""
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
    """What the figures hold for."""
    cpu_info = Path("/proc/cpuinfo")
    models = (
        [line for line in cpu_info.read_text().splitlines() if line.startswith("model name")]
        if cpu_info.exists()
        else []
    )
    return {
        "cpu": models[0].partition(":")[2].strip() if models else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "has_fast_bf16": has_fast_bf16(device),
        "torch": torch.__version__,
        "pytorch_lightning": pl.__version__,
        "load_average_at_start": os.getloadavg()[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, default=64, help="of the first convolution")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=200, help="timed, a contender a round")
    parser.add_argument("--warmup", type=int, default=50, help="steps before these")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, help="write every figure there too")
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
    fraction = plain(compose_config(overrides))["data"]["validation_fraction"]
    wanted = (arguments.warmup + arguments.steps) * arguments.batch_size
    images = torch.randint(
        256, (max(math.ceil((wanted + 1) / (1 - fraction)), wanted + 16), 3, 32, 32), dtype=torch.uint8
    )
    common = {"batch_size": arguments.batch_size, "warmup": arguments.warmup, "steps": arguments.steps}
    setting = Setting(overrides, images, device=arguments.device, **common)

    def hidden_bare(setting: Setting) -> Result:
        with patch.dict(os.environ):
            if setting.device == "cpu":
                hide_gpus()  # as the real command does
            return bare(setting)

    contenders = {"real": real, "student": student, "bare": hidden_bare, "lightning": lightning}
    if facts["has_fast_bf16"]:  # `real` is bf16 then, by precision=auto
        contenders["real_fp32"] = lambda setting: real(setting, "trainer.precision=32")
    results = measure(contenders, setting, arguments.rounds)
    print("\n" + tables(results, arguments.batch_size))
    if arguments.json:
        what = {key: str(value) if key == "json" else value for key, value in vars(arguments).items()}
        arguments.json.write_text(json.dumps({"arguments": what, "machine": facts, "rounds": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
