"""Contenders of the benchmark: the real command, a student's loop, a bare loop and Lightning's GAN example.

Each trains the adversarial VAE on the same networks, weights and images, and returns images per second.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from pegasus_lightning.data import module as data_module
from pegasus_lightning.data.batches import ImageSet
from pegasus_lightning.models.networks import Critic, Decoder, Encoder
from pegasus_lightning.models.settings import NetworksConfig
from pegasus_lightning.train import fit as fitting
from pegasus_lightning.train import trainer as training
from pegasus_lightning.train.settings import TRAIN, validate
from pegasus_lightning.utils.compose import plain
from pegasus_lightning.utils.devices import has_fast_bf16, hide_gpus
from pegasus_lightning.utils.randomness import Stream, derived_seed

SEED = 0
CLASSES = ("horse", "bird")


class Stopwatch:
    """Time from the end of step `warmup` to the end of step `warmup + steps`."""

    def __init__(self, warmup: int, steps: int, device: str) -> None:
        self.warmup, self.steps, self.device = warmup, steps, device
        self.start = self.end = math.nan

    def step_done(self, count: int) -> None:
        """Record that `count` steps are done; at both ends, wait for the accelerator first."""
        if count in (self.warmup, self.warmup + self.steps):
            if self.device == "cuda":
                torch.cuda.synchronize()
            now = time.perf_counter()
            self.start, self.end = (now, self.end) if count == self.warmup else (self.start, now)


class StopwatchCallback(pl.Callback):
    """Stopwatch for a Trainer. It must be the last callback, so that the time includes the others."""

    def __init__(self, watch: Stopwatch) -> None:
        self.watch, self.seconds_after = watch, math.nan

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.watch.step_done(batch_idx + 1)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.seconds_after = time.perf_counter() - self.watch.end


class NullTerminal(io.StringIO):
    """A stream that claims to be a terminal, so that progress bars are drawn, and discards its input."""

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        return len(text)


@contextlib.contextmanager
def unseen() -> Iterator[None]:
    """Discard stdout and stderr inside the context."""
    with contextlib.redirect_stdout(NullTerminal()), contextlib.redirect_stderr(NullTerminal()):
        yield


@dataclass
class Setting:
    """Settings of all contenders. `images`, uint8 (N, 3, 32, 32), are split into warmup + steps batches."""

    overrides: list[str]
    images: Tensor
    batch_size: int
    warmup: int
    steps: int
    device: str

    def __post_init__(self) -> None:
        self.settings = plain(TRAIN.compose(self.overrides))
        self.networks_config = NetworksConfig(**self.settings["model"]["networks"])

    def stopwatch(self) -> Stopwatch:
        return Stopwatch(self.warmup, self.steps, self.device)

    def networks(self) -> tuple[Encoder, Decoder, Critic]:
        """Return the networks with the initial weights of the real command."""
        torch.manual_seed(derived_seed(SEED, Stream.WEIGHTS))
        config = self.networks_config
        return Encoder(config), Decoder(config), Critic(config)

    def adam(self, player: str, parameters: list[nn.Parameter], **keywords: Any) -> torch.optim.Adam:
        config = self.settings["model"][f"{player}_optimizer"]
        return torch.optim.Adam(parameters, lr=config["lr"], betas=(config["beta1"], config["beta2"]), **keywords)

    def float_loader(self) -> DataLoader:
        """Return the usual loader: float images in a TensorDataset, one __getitem__ an image, in this process."""
        images = self.images[: (self.warmup + self.steps) * self.batch_size].float() / 255
        return DataLoader(TensorDataset(images), batch_size=self.batch_size, shuffle=True, drop_last=True)


def reparameterise(mean: Tensor, log_variance: Tensor) -> Tensor:
    return mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)


def image_losses(logits: Tensor, images: Tensor, mean: Tensor, log_variance: Tensor) -> tuple[Tensor, Tensor]:
    """Return summed cross-entropy and KL divergence, means over the batch."""
    cross_entropy = F.binary_cross_entropy_with_logits(logits, images, reduction="sum") / len(images)
    return cross_entropy, 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum() / len(images)


def label_loss(critic_logits: Tensor, label: float) -> Tensor:
    return F.binary_cross_entropy_with_logits(critic_logits, torch.full_like(critic_logits, label))


# The contenders. Each returns images/s and further figures.

Result = dict[str, float]


def real(setting: Setting, *more_overrides: str) -> Result:
    """Train with `pegasus_lightning.train.trainer.train`, as the command does, all defaults, in a temporary folder."""
    labels = torch.arange(len(setting.images)) % 2
    data = ImageSet(setting.images, labels, CLASSES)
    callback = StopwatchCallback(setting.stopwatch())
    build_trainer = fitting.build_trainer

    def with_stopwatch(settings: Any, devices: Any, *, callbacks: list[pl.Callback], **arguments: Any) -> pl.Trainer:
        return build_trainer(settings, devices, callbacks=[*callbacks, callback], **arguments)

    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        stack.enter_context(patch.object(data_module, "load_split", lambda config, split: data))
        stack.enter_context(patch.object(fitting, "build_trainer", with_stopwatch))
        stack.enter_context(unseen())
        config = TRAIN.compose([*setting.overrides, *more_overrides, f"runs_dir={folder}"])
        validate(config)
        run = training.train(config, "speed")
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    speeds = [line["speed/images_per_second"] for line in lines if "speed/images_per_second" in line]
    own = statistics.median(speeds[1:] or speeds or [math.nan])
    more = {"logged_images_per_second": own, "epoch_end_seconds": callback.seconds_after}
    return rate(callback.watch, setting) | more


def student(setting: Setting) -> Result:
    """(a) Train with a plain fp32 loop, as a student would write it."""
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
    """(b) Train with the fastest eager PyTorch loop: no logging, no checkpoints, no Lightning."""
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
    if setting.device == "cpu":
        hide_gpus()  # as the real command does
    for count in range(1, setting.warmup + setting.steps + 1):
        images = everything[order[count - 1]].float().div_(255)
        coins = torch.rand(len(images), 1, 1, 1, device=setting.device) < 0.5
        images = torch.where(coins, images.flip(3), images)
        with torch.autocast(setting.device, torch.bfloat16, enabled=bf16):
            mean, log_variance = encoder(images)
            logits = decoder(reparameterise(mean, log_variance)).float()
            reconstructions = torch.sigmoid(logits)
            reconstruction, kl = image_losses(logits, images, mean, log_variance)
            shown = reconstructions.detach().requires_grad_()
            fake = critic(shown)  # once for both players
            (slope,) = torch.autograd.grad(label_loss(fake, 1.0), shown, retain_graph=True)
            loss = reconstruction + kl + (slope * reconstructions).sum()
        autoencoder_optimizer.zero_grad()
        loss.backward()
        autoencoder_optimizer.step()

        with torch.autocast(setting.device, torch.bfloat16, enabled=bf16):
            critic_loss = label_loss(fake, 0.0) + label_loss(critic(images), 1.0)
        critic_optimizer.zero_grad()
        critic_loss.backward()
        critic_optimizer.step()
        watch.step_done(count)
    return rate(watch, setting)


class ExampleModule(pl.LightningModule):
    """Lightning's GAN example with encoder and decoder as its generator and six logged scalars.

    As in the example: both optimizers toggled, the generator run again for the discriminator, default Adam.
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
        adam, generator = self.setting.adam, [*self.encoder.parameters(), *self.decoder.parameters()]
        return [adam("autoencoder", generator), adam("critic", list(self.critic.parameters()))]


def lightning(setting: Setting) -> Result:
    """(c) Train Lightning's GAN example with the Trainer's defaults: progress bar, TensorBoard, checkpoint."""
    callback = StopwatchCallback(setting.stopwatch())
    with tempfile.TemporaryDirectory() as folder, unseen():
        trainer = pl.Trainer(
            accelerator=setting.device, devices=1, max_epochs=1, default_root_dir=folder, callbacks=[callback]
        )
        trainer.fit(ExampleModule(setting), setting.float_loader())
    return {**rate(callback.watch, setting), "epoch_end_seconds": callback.seconds_after}


def rate(watch: Stopwatch, setting: Setting) -> Result:
    return {"images_per_second": setting.steps * setting.batch_size / (watch.end - watch.start)}
