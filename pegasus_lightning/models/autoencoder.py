"""A trained model: encoder, decoder and critic, their averaged weights, and its random draws."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, ClassVar, cast

import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from pegasus_lightning.models.averages import average_over_processes
from pegasus_lightning.models.latent import Posterior, lerp
from pegasus_lightning.models.networks import Critic, Decoder, Encoder
from pegasus_lightning.models.operations import CodeOperations
from pegasus_lightning.models.schedules import average_decay
from pegasus_lightning.models.settings import ModelConfig
from pegasus_lightning.utils.randomness import Stream, derived_seed, generator

PARTS, PART_SHIFT = 8, 40  # the draws of one stream for one batch differ in bits above any batch count
STATISTICS = ("running_mean", "running_var")  # buffers of BatchNorm


class Autoencoder(CodeOperations, pl.LightningModule):
    """Encoder, decoder and, unless the variant has none, critic, with the public operations on them.

    Args:
        config: the variant's `Config` as a plain dict, partial or whole. Checkpoints hold it.
        seed: for the initial weights and every draw in training.
        classes: names of the two classes.
    """

    Config: ClassVar[type[ModelConfig]]
    real_is_high: ClassVar[bool] = True  # the critic's output is highest for a real image

    def __init__(
        self, config: Mapping[str, Any] | None = None, *, seed: int = 0, classes: Sequence[str] = ("horse", "bird")
    ) -> None:
        super().__init__()
        merged = OmegaConf.merge(OmegaConf.structured(self.Config), dict(config or {}))
        self.config = cast(Any, OmegaConf.to_object(merged))  # a Config; its weights differ by variant
        plain = OmegaConf.to_container(merged, resolve=True)
        self.save_hyperparameters({"model": plain, "seed": seed, "classes": list(classes)})
        self.seed, self.batches_done = seed, 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(seed, Stream.WEIGHTS))
            self.encoder = Encoder(self.config.networks, deterministic=not self.config.sample_codes)
            self.decoder = Decoder(self.config.networks)
            self.critic: Any = Critic(self.config.networks) if self.Config.critic_tells else None
        self.mixer: Any = None  # a variant's learned mixing network
        self.averaged: nn.ModuleDict | None = None
        if self.config.ema_decay is not None:
            pair = {"encoder": copy.deepcopy(self.encoder), "decoder": copy.deepcopy(self.decoder)}
            self.averaged = nn.ModuleDict(pair).requires_grad_(False)

    # Public operations, beside those of `CodeOperations`. Images are (B, 3, 32, 32) in [0, 1], codes (B, latent_dim).

    def encode(self, images: Tensor) -> Posterior:
        """Return q(z|x). In eval mode with the averaged weights, if an average is kept."""
        mean, log_variance = self._network("encoder")(images)
        return Posterior(mean, log_variance, deterministic=not self.config.sample_codes)

    def decode_logits(self, codes: Tensor) -> Tensor:
        """Return the logits (B, 3, 32, 32) of the decoded images."""
        return self._network("decoder")(codes)

    def decode(self, codes: Tensor) -> Tensor:
        """Return the decoded images, in [0, 1]."""
        return torch.sigmoid(self.decode_logits(codes).float())

    def sample_prior(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Return `count` images decoded from z ~ N(0, I). The generator must be on the model's device."""
        latent_dim = self.config.networks.latent_dim
        return self.decode(torch.randn(count, latent_dim, generator=generator, device=self.device))

    def mix(self, first: Tensor, second: Tensor, ratios: Tensor) -> Tensor:
        """Return codes between `first` (ratio 0) and `second` (1); ratios (B,). A variant may learn the mixing."""
        return lerp(first, second, ratios[:, None])

    @contextmanager
    def inference(self) -> Iterator[None]:
        """Use eval mode without gradients inside, and restore the former mode."""
        was_training = self.training
        self.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.train(was_training)

    @cached_property
    def autoencoder_parameters(self) -> list[nn.Parameter]:
        """Parameters of encoder and decoder."""
        return [*self.encoder.parameters(), *self.decoder.parameters()]

    @cached_property
    def critic_parameters(self) -> list[nn.Parameter]:
        """Parameters of the critic; none where there is no critic."""
        return [] if self.critic is None else list(self.critic.parameters())

    def draw(self, stream: Stream, *shape: int, uniform: bool = False, part: int = 0) -> Tensor:
        """Return noise of `shape` for this batch, normal or uniform on [0, 1): a function of seed, stream, batch, part.

        `part`, below PARTS, distinguishes draws of one batch. `shape` starts with this process's batch size. The draw
        is made for the global batch and cut, so it does not depend on the number of processes.
        """
        local, rest = shape[0], shape[1:]
        source = generator(self.seed, stream, self.batches_done + (part << PART_SHIFT), self.device)
        sampler = torch.rand if uniform else torch.randn
        everybody = sampler((local * self._world_size, *rest), generator=source, device=self.device)
        return everybody[self._rank * local : (self._rank + 1) * local]

    @torch.no_grad()
    def update_average(self) -> None:
        """Update the averages of weights and BatchNorm statistics.

        The statistics are first averaged over the processes: each has its own part of the batch, and one saves them.
        """
        if self._world_size > 1:
            buffers = [item for network in (self.encoder, self.decoder) for item in network.named_buffers()]
            average_over_processes([buffer for name, buffer in buffers if name.endswith(STATISTICS)])
        if self.averaged is None:
            return
        decay = average_decay(self.batches_done, self.config.ema_decay, self.config.ema_warmup)
        for name, average in self.averaged.items():
            network = getattr(self, name)
            torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - decay)
            for (key, kept), buffer in zip(average.named_buffers(), network.buffers(), strict=True):
                if key.endswith(STATISTICS):  # the statistics of this batch's weights do not fit averaged weights
                    kept.lerp_(buffer, 1 - decay)
                else:  # such as spectral norm's vectors: a mean of unit vectors is not one
                    kept.copy_(buffer)

    def _network(self, name: str) -> nn.Module:
        return getattr(self, name) if self.training or self.averaged is None else self.averaged[name]

    @property
    def _world_size(self) -> int:
        return self._trainer.world_size if self._trainer is not None else 1

    @property
    def _rank(self) -> int:
        return self._trainer.global_rank if self._trainer is not None else 0
