"""Encoder, decoder and critic, and context managers that run them without side effects.

Every method accepts every combination of NetworksConfig. Shapes for 3 convolutions and 64 channels (kernel 4, stride
2, padding 1): encoder (B, 3, 32, 32) -> (B, 64, 16, 16) -> (B, 128, 8, 8) -> (B, 256, 4, 4) -> two heads
(B, latent_dim). The decoder is the reverse and ends in logits. The critic is the encoder without heads, followed by a
convolution to one number.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrizations
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.parametrize import is_parametrized

from pegasus_lightning.models.convolution import Convolution, TransposedConvolution
from pegasus_lightning.models.settings import MAX_CONV_LAYERS, MIN_CONV_LAYERS, NetworksConfig
from pegasus_lightning.utils.tensors import IMAGE_SIZE

SLOPE = 0.2


def _maybe_spectral(layer: nn.Module, wanted: bool) -> nn.Module:
    return parametrizations.spectral_norm(layer) if wanted else layer


def _normalise_and_activate(channels: int, batch_norm: bool) -> list[nn.Module]:
    norm: list[nn.Module] = [nn.BatchNorm2d(channels)] if batch_norm else []
    return [*norm, nn.LeakyReLU(SLOPE, inplace=True)]


def widths(config: NetworksConfig) -> list[int]:
    """Return the channels after each convolution of the encoder, [c, 2c, 4c, ...]."""
    return _doubled(config.channels, config.conv_layers)


def critic_widths(config: NetworksConfig) -> list[int]:
    """Return `widths` of the critic, which may have its own channels and number of convolutions."""
    layers = config.conv_layers if config.critic_layers is None else config.critic_layers
    return _doubled(config.critic_channels or config.channels, layers)


def _doubled(channels: int, layers: int) -> list[int]:
    if not MIN_CONV_LAYERS <= layers <= MAX_CONV_LAYERS:
        raise ValueError(f"the number of convolutions must be {MIN_CONV_LAYERS} to {MAX_CONV_LAYERS}, not {layers}")
    return [channels * 2**layer for layer in range(layers)]


def final_side(config: NetworksConfig) -> int:
    """Return the side of the last feature map, 32 / 2^conv_layers."""
    return IMAGE_SIZE // 2**config.conv_layers


def convolutions(
    config: NetworksConfig, channels_of: list[int], *, batch_norm: bool, spectral: bool, stem: bool = False
) -> nn.Sequential:
    """Return convolutions (B, 3, 32, 32) -> (B, c * 2^(L-1), 32 / 2^L, 32 / 2^L), each with BatchNorm and LeakyReLU."""
    layers: list[nn.Module] = []
    channels = 3
    if stem:
        channels = max(1, channels_of[0] // 2)
        first = nn.Conv2d(3, channels, kernel_size=3, padding=1, bias=not batch_norm)
        layers += [_maybe_spectral(first, spectral), *_normalise_and_activate(channels, batch_norm)]
    for width in channels_of:
        # BatchNorm subtracts the mean and would cancel a bias.
        convolution = Convolution(channels, width, kernel_size=4, stride=2, padding=1, bias=not batch_norm)
        layers += [_maybe_spectral(convolution, spectral), *_normalise_and_activate(width, batch_norm)]
        channels = width
    return nn.Sequential(*layers)


def fully_connected(sizes: list[int], *, spectral: bool) -> nn.Sequential:
    """Return linear layers of the given sizes with LeakyReLU between them (none after the last)."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        if layers:
            layers.append(nn.LeakyReLU(SLOPE, inplace=True))
        layers.append(_maybe_spectral(nn.Linear(inputs, outputs), spectral))
    return nn.Sequential(*layers)


def map_layers(sizes: list[int], *, spectral: bool) -> list[nn.Module]:
    """Return 3 x 3 convolutions of the given sizes that keep the side, with LeakyReLU between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        if layers:
            layers.append(nn.LeakyReLU(SLOPE, inplace=True))
        layers.append(_maybe_spectral(nn.Conv2d(inputs, outputs, kernel_size=3, padding=1), spectral))
    return layers


class Encoder(nn.Module):
    """Images (B, 3, 32, 32) to mean and log-variance of q(z|x), each (B, latent_dim), by two heads of equal structure.

    Convolutions of stride 2 and any residual blocks come first.
    The heads are fully connected or, for a spatial latent, convolutional: the code is then a flattened map
    (latent_dim / S^2, S, S). A `deterministic` encoder has no second head; its log-variances are zeros, which its
    posterior ignores.
    """

    def __init__(self, config: NetworksConfig, *, deterministic: bool = False) -> None:
        super().__init__()
        spectral = config.spectral_norm == "all"
        self.convolutions = convolutions(config, widths(config), batch_norm=config.batch_norm, spectral=spectral)
        self.convolutions.extend(residual_blocks(config))
        self.mean = self._head(config, spectral)
        self.log_variance = None if deterministic else self._head(config, spectral)

    @staticmethod
    def _head(config: NetworksConfig, spectral: bool) -> nn.Sequential:
        channels, side = widths(config)[-1], final_side(config)
        if config.latent == "spatial":
            sizes = [channels, *[config.fc_width] * (config.fc_layers - 1), config.latent_dim // side**2]
            return nn.Sequential(nn.Unflatten(1, (channels, side, side)), *map_layers(sizes, spectral=spectral))
        sizes = [channels * side**2, *[config.fc_width] * (config.fc_layers - 1), config.latent_dim]
        return fully_connected(sizes, spectral=spectral)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        # Flattening is channels-first here and in the decoder, so checkpoints do not depend on the memory format.
        features = self.convolutions(images).flatten(1)
        mean = self.mean(features).flatten(1).float()
        if self.log_variance is None:
            return mean, torch.zeros_like(mean)
        return mean, self.log_variance(features).flatten(1).float()


class ResidualBlock(nn.Module):
    """A skip connection plus two 3 x 3 convolutions (He et al. 2016), (B, inputs, S, S) to (B, outputs, 2S, 2S).

    The first convolution precedes the nearest-neighbour upsampling, at a quarter of the cost. The second follows it and
    smooths the steps (Odena et al. 2016, "Deconvolution and checkerboard artifacts"). Without upsampling the side and
    the channels stay, and the skip connection is the identity.
    """

    def __init__(self, inputs: int, outputs: int, config: NetworksConfig, *, upsample: bool = True) -> None:
        super().__init__()
        spectral = config.spectral_norm == "all"
        first = nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=not config.batch_norm)
        second = nn.Conv2d(outputs, outputs, kernel_size=3, padding=1, bias=False)
        doubled: list[nn.Module] = [nn.Upsample(scale_factor=2, mode="nearest")] if upsample else []
        layers = [*_normalise_and_activate(inputs, config.batch_norm), _maybe_spectral(first, spectral)]
        layers += [*doubled, *_normalise_and_activate(outputs, config.batch_norm)]
        self.main = nn.Sequential(*layers, _maybe_spectral(second, spectral))
        self.skip: nn.Module | None = None
        if upsample:
            skip = _maybe_spectral(nn.Conv2d(inputs, outputs, kernel_size=1), spectral)
            self.skip = nn.Sequential(skip, *doubled)

    def forward(self, maps: Tensor) -> Tensor:
        # Without BatchNorm the main path begins with an in-place activation, which would alter the input of the skip.
        return (maps if self.skip is None else self.skip(maps)) + self.main(
            maps if isinstance(self.main[0], nn.BatchNorm2d) else maps.clone()
        )


def residual_blocks(config: NetworksConfig) -> list[nn.Module]:
    """Return `config.residual_blocks` blocks at the smallest map, for the end of the encoder or the decoder's start."""
    channels = widths(config)[-1]
    return [ResidualBlock(channels, channels, config, upsample=False) for _ in range(config.residual_blocks)]


class Decoder(nn.Module):
    """Codes (B, latent_dim) to image logits (B, 3, 32, 32): the reversed encoder, or residual blocks.

    The residual blocks have widths 4c, 2c, c, c/2 (from 4 x 4 to 32 x 32); a convolution to three channels follows.
    """

    def __init__(self, config: NetworksConfig) -> None:
        super().__init__()
        spectral = config.spectral_norm == "all"
        channels, side = widths(config)[-1], final_side(config)
        if config.latent == "spatial":
            depth = config.latent_dim // side**2
            sizes = [depth, *[config.fc_width] * (config.fc_layers - 1), channels]
            entrance = [nn.Unflatten(1, (depth, side, side)), *map_layers(sizes, spectral=spectral), nn.Flatten()]
            self.fully_connected = nn.Sequential(*entrance)
        else:
            sizes = [config.latent_dim, *[config.fc_width] * (config.fc_layers - 1), channels * side * side]
            self.fully_connected = fully_connected(sizes, spectral=spectral)
        layers = residual_layers(config) if config.decoder == "residual" else plain_layers(config)
        blocks = residual_blocks(config)
        self.convolutions = nn.Sequential(nn.Unflatten(1, (channels, side, side)), *blocks, *layers)

    def forward(self, codes: Tensor) -> Tensor:
        return self.convolutions(self.fully_connected(codes))

    @property
    def last_weight(self) -> nn.Parameter:
        """The weight of the layer that outputs the logits."""
        layer: Any = self.convolutions[-1]
        return layer.parametrizations.weight.original if is_parametrized(layer) else layer.weight


def plain_layers(config: NetworksConfig) -> list[nn.Module]:
    """Return layers (B, 4c, 4, 4) -> logits (B, 3, 32, 32): one upsampling convolution per encoder convolution."""
    channels = widths(config)[-1]
    layers = _normalise_and_activate(channels, config.batch_norm)
    for width in [*reversed(widths(config)[:-1]), None]:
        layers += _upsample(channels, width or 3, config, bias=width is None or not config.batch_norm)
        if width is not None:
            layers += _normalise_and_activate(width, config.batch_norm)
            channels = width
    return layers


def residual_layers(config: NetworksConfig) -> list[nn.Module]:
    """Return layers (B, 4c, 4, 4) -> logits (B, 3, 32, 32): one residual block per encoder convolution."""
    steps = [*reversed(widths(config)), max(1, config.channels // 2)]
    blocks: list[nn.Module] = [ResidualBlock(*pair, config) for pair in itertools.pairwise(steps)]
    last = _maybe_spectral(nn.Conv2d(steps[-1], 3, kernel_size=3, padding=1), config.spectral_norm == "all")
    return [*blocks, *_normalise_and_activate(steps[-1], config.batch_norm), last]


def _upsample(inputs: int, outputs: int, config: NetworksConfig, *, bias: bool) -> list[nn.Module]:
    spectral = config.spectral_norm == "all"
    if config.upsampling == "transposed":
        layer: nn.Module = TransposedConvolution(inputs, outputs, kernel_size=4, stride=2, padding=1, bias=bias)
        return [_maybe_spectral(layer, spectral)]
    layer = nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=bias)
    return [nn.Upsample(scale_factor=2, mode="nearest"), _maybe_spectral(layer, spectral)]


class Critic(nn.Module):
    """Images (B, 3, 32, 32) to one real number per image, (B,): a logit, or ACAI's coefficient.

    `features` is an encoder without heads, of `critic_layers` convolutions; its output is the penultimate layer
    (VAE/GAN's C_l). `last` is a convolution to one channel. The output is the mean of its map, a single pixel with 3
    or more convolutions. With `critic_patches` the mean of a second map is added, one value a place of the map before
    the last convolution of stride 2: the critic then judges patches and the whole (PatchGAN: Isola et al. 2017).
    """

    def __init__(self, config: NetworksConfig) -> None:
        super().__init__()
        spectral = config.spectral_norm in ("critic", "all")
        channels_of = critic_widths(config)
        self.features = convolutions(
            config, channels_of, batch_norm=config.critic_batch_norm, spectral=spectral, stem=config.critic_stem
        )
        last = Convolution(channels_of[-1], 1, kernel_size=min(4, IMAGE_SIZE // 2 ** len(channels_of)))
        self.last = _maybe_spectral(last, spectral)
        self.patches: nn.Module | None = None
        self.last_convolution = max(i for i, layer in enumerate(self.features) if isinstance(layer, nn.Conv2d))
        if config.critic_patches:
            patches = Convolution(channels_of[-2], 1, kernel_size=3, padding=1)
            self.patches = _maybe_spectral(patches, spectral)
        if config.critic_start == "he" and not spectral:  # spectral norm sets the size of the weights
            # PyTorch's default initialisation shrinks activations at each layer. Without normalisation, a critic of
            # real and fake then learns nothing for hundreds of batches. ACAI's critic predicts a small coefficient and
            # is better off with small initial outputs.
            for layer in self.features:
                if isinstance(layer, nn.Conv2d):
                    nn.init.kaiming_normal_(layer.weight, a=SLOPE)

    def forward(self, images: Tensor) -> Tensor:
        return self.with_features(images)[1]

    def with_features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the penultimate features (B, C, S, S) and the output (B,), float32."""
        if self.patches is None:
            features = self.features(images)
            return features, self.last(features).flatten(1).float().mean(1)
        maps = self.features[: self.last_convolution](images)
        features = self.features[self.last_convolution :](maps)
        patches, whole = (part.flatten(1).float().mean(1) for part in (self.patches(maps), self.last(features)))
        return features, patches + whole


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Let gradients pass through `network` without changing it.

    Inside, its parameters receive no gradient. In training mode BatchNorm uses batch statistics without updating the
    running ones, and spectral norms keep their power-iteration vectors.
    """
    parameters = [p for p in network.parameters() if p.requires_grad]
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    spectral = [m for m in network.modules() if isinstance(m, _SpectralNorm) and m.training]
    try:
        for parameter in parameters:
            parameter.requires_grad_(False)
        for norm in norms:
            norm.track_running_stats = False
        for module in spectral:
            module.eval()
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
        for norm in norms:
            norm.track_running_stats = True
        for module in spectral:
            module.train()


@contextmanager
def _frozen_in_mode(network: nn.Module, training: bool) -> Iterator[None]:
    was_training = network.training
    network.train(training)
    try:
        with frozen(network):
            yield
    finally:
        network.train(was_training)


def as_in_inference(network: nn.Module) -> AbstractContextManager[None]:
    """Put `network` into eval mode and `frozen`: gradients pass through the function used in inference.

    BatchNorm's backward pass reads the running statistics again. They must not change before it, neither by a forward
    pass in training mode nor by an update of averaged weights.
    """
    return _frozen_in_mode(network, False)


def with_statistics_of(critic: nn.Module, images: Tensor) -> nn.Module:
    """Return a frozen copy of `critic` whose BatchNorm normalises by the statistics of `images` (B, 3, 32, 32).

    With fakes as `images`, its output for one image is the output in training within a batch of fakes, but independent
    of the rest of the batch (see `as_in_training` for the original running statistics). Running variances are unbiased,
    n / (n - 1) times the batch variance, where n is the number of images times the pixels of a map.
    """
    fixed = copy.deepcopy(critic).requires_grad_(False).train()
    norms = [module for module in fixed.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    for norm in norms:
        norm.momentum = 1.0  # the running statistics become those of the next batch
    for module in fixed.modules():
        if isinstance(module, _SpectralNorm):
            module.eval()
    if norms:
        with torch.no_grad():
            fixed(images)
    return fixed.eval()


def as_in_training(critic: nn.Module) -> AbstractContextManager[None]:
    """Put `critic` into training mode and `frozen`: each batch is normalised by its own statistics, as in training.

    BatchNorm's running statistics are averages over real and fake images. With them a critic hardly separates the two.
    """
    return _frozen_in_mode(critic, True)
