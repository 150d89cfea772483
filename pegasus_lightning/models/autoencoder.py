"""What a trained model is: encoder, decoder and critic, the averaged weights, and every draw made for it."""

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
from pegasus_lightning.models.settings import ModelConfig
from pegasus_lightning.utils.randomness import Stream, derived_seed, generator

PARTS, PART_SHIFT = 8, 40  # draws of one stream for one batch are told apart by bits above any count of batches
STATISTICS = ("running_mean", "running_var")  # of BatchNorm


class Autoencoder(pl.LightningModule):
    """Encoder, decoder and (where a variant has one) critic, and what may be asked of them.

    Args:
        config: the variant's `Config` as a plain dict (it is saved in every checkpoint), partial or whole.
        seed: of the initial weights and of every draw in training.
        classes: names of the two classes, for captions.
    """

    Config: ClassVar[type[ModelConfig]]
    has_critic: ClassVar[bool] = True
    real_is_high: ClassVar[bool] = True  # the critic's output is highest for a real image

    def __init__(
        self, config: Mapping[str, Any] | None = None, *, seed: int = 0, classes: Sequence[str] = ("horse", "bird")
    ) -> None:
        super().__init__()
        merged = OmegaConf.merge(OmegaConf.structured(self.Config), dict(config or {}))
        self.config = cast(Any, OmegaConf.to_object(merged))  # a Config; its weights differ by variant
        plain = OmegaConf.to_container(merged, resolve=True)
        self.save_hyperparameters({"model": plain, "seed": seed, "classes": list(classes)})
        self.seed = seed
        self.batches_done = 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(seed, Stream.WEIGHTS))
            self.encoder = Encoder(self.config.networks, deterministic=not self.config.sample_codes)
            self.decoder = Decoder(self.config.networks)
            self.critic: Any = Critic(self.config.networks) if self.has_critic else None
        self.mixer: Any = None  # what a variant has learned to mix codes with
        self.averaged: nn.ModuleDict | None = None
        if self.config.ema_decay is not None:
            pair = {"encoder": copy.deepcopy(self.encoder), "decoder": copy.deepcopy(self.decoder)}
            self.averaged = nn.ModuleDict(pair).requires_grad_(False)

    # What everybody may call. Images (B, 3, 32, 32) in [0, 1]; codes (B, latent_dim).

    def encode(self, images: Tensor) -> Posterior:
        """q(z|x). In eval mode with the averaged weights, where an average is kept."""
        mean, log_variance = self._network("encoder")(images)
        return Posterior(mean, log_variance, deterministic=not self.config.sample_codes)

    def decode_logits(self, codes: Tensor) -> Tensor:
        """Logits (B, 3, 32, 32) of the images that the codes stand for."""
        return self._network("decoder")(codes)

    def decode(self, codes: Tensor) -> Tensor:
        """Images in [0, 1] for codes (B, latent_dim)."""
        return torch.sigmoid(self.decode_logits(codes).float())

    def reconstruct(self, images: Tensor) -> Tensor:
        """decode(posterior mean)."""
        return self.decode(self.encode(images).mean)

    def sample_prior(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """`count` images decoded from z ~ N(0, I); the generator must live on the model's device."""
        latent_dim = self.config.networks.latent_dim
        return self.decode(torch.randn(count, latent_dim, generator=generator, device=self.device))

    def mix(self, first: Tensor, second: Tensor, ratios: Tensor) -> Tensor:
        """Codes (B, latent_dim) on the way from `first` to `second`; ratios (B,), 0 `first`. A variant may learn it."""
        return lerp(first, second, ratios[:, None])

    def interpolate(self, start: Tensor, end: Tensor, ratios: Tensor) -> Tensor:
        """Decoded mixes of codes (B, latent_dim) at ratios (R,), 0 `start` and 1 `end`: (B, R, 3, 32, 32)."""
        count = len(ratios)
        first, second = (codes.repeat_interleave(count, 0) for codes in (start, end))
        mixed = self.mix(first, second, ratios.to(start).repeat(len(start)))
        return self.decode(mixed).unflatten(0, (len(start), count))

    @contextmanager
    def inference(self) -> Iterator[None]:
        """Eval mode and no gradients inside; the former mode comes back."""
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
        """Noise for this batch, (B, *shape): normal, or uniform on [0, 1). A function of seed, stream, batch and part.

        `part`, below PARTS, tells several draws for one batch apart. `shape` starts with this process's batch size. The
        draw is made for the global batch and cut, so it does not depend on the number of processes.
        """
        local, rest = shape[0], shape[1:]
        source = generator(self.seed, stream, self.batches_done + (part << PART_SHIFT), self.device)
        sampler = torch.rand if uniform else torch.randn
        everybody = sampler((local * self._world_size, *rest), generator=source, device=self.device)
        return everybody[self._rank * local : (self._rank + 1) * local]

    @torch.no_grad()
    def update_average(self) -> None:
        """The averaged weights come a little nearer to the present ones, BatchNorm's statistics too.

        Those are first made the same in all processes (each has seen its own part of the batch; only one saves them).
        """
        if self._world_size > 1:
            buffers = [item for network in (self.encoder, self.decoder) for item in network.named_buffers()]
            average_over_processes([buffer for name, buffer in buffers if name.endswith(STATISTICS)])
        if self.averaged is None:
            return
        # The usual warm-up: the average forgets the random start within the first batches.
        decay = min(self.config.ema_decay, (1 + self.batches_done) / (10 + self.batches_done))
        for name, average in self.averaged.items():
            network = getattr(self, name)
            torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - decay)
            for (key, kept), buffer in zip(average.named_buffers(), network.buffers(), strict=True):
                if key.endswith(STATISTICS):  # those of this batch's weights fit no average
                    kept.lerp_(buffer, 1 - decay)
                else:  # spectral norm's vectors, say: the mean of unit vectors is none
                    kept.copy_(buffer)

    def _network(self, name: str) -> nn.Module:
        return getattr(self, name) if self.training or self.averaged is None else self.averaged[name]

    @property
    def _world_size(self) -> int:
        return self._trainer.world_size if self._trainer is not None else 1

    @property
    def _rank(self) -> int:
        return self._trainer.global_rank if self._trainer is not None else 0
