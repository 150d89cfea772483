"""Binary classifiers for the two classes: small CNNs with one independent sigmoid a class, and their quality measures.

One architecture selects and one of another family reports, because a score that was maximised measures nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pegasus_lightning.utils.randomness import Stream, derived_seed
from pegasus_lightning.utils.tensors import BATCH, as_float

PATCH = 2  # side of the whitened patches


class _Normed(nn.Sequential):
    """3 x 3 convolution, optional pooling, BatchNorm with a fixed scale, activation."""

    def __init__(self, inputs: int, outputs: int, activation: type[nn.Module], *, pool: bool = False) -> None:
        norm = nn.BatchNorm2d(outputs)
        norm.weight.requires_grad_(False)
        middle = [nn.MaxPool2d(2)] if pool else []
        convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        nn.init.dirac_(convolution.weight[: min(inputs, outputs)])  # starts as the identity
        super().__init__(convolution, *middle, norm, activation())


class _Whitening(nn.Conv2d):
    """Fixed filters: the principal directions of 2 x 2 patches, scaled to unit variance, and their negatives.

    Coates & Ng 2012, sec. 3.2. `fit` sets the filters; only the biases are trained.
    """

    def __init__(self) -> None:
        super().__init__(3, 2 * 3 * PATCH**2, PATCH)
        self.weight.requires_grad_(False)

    def fit(self, images: Tensor) -> None:
        """Set the filters from normalised images (N, 3, H, W)."""
        patches = F.unfold(images, PATCH).transpose(1, 2).reshape(-1, 3 * PATCH**2)
        values, directions = torch.linalg.eigh(patches.T @ patches / len(patches))
        filters = (directions / (values + 5e-4).sqrt()).T.reshape(-1, 3, PATCH, PATCH)
        self.weight.copy_(torch.cat([filters, -filters]))
        nn.init.zeros_(self.bias)  # type: ignore[arg-type]


class _Residual(nn.Module):
    """Residual block of two convolutions (He et al. 2016, arXiv 1512.03385)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(_Normed(channels, channels, nn.ReLU), _Normed(channels, channels, nn.ReLU))

    def forward(self, maps: Tensor) -> Tensor:
        return maps + self.inner(maps)


def _plain() -> tuple[nn.Module, int]:
    """Return a VGG-like chain of convolutions on whitened patches with global max pooling, and its width."""
    layers: list[nn.Module] = [_Whitening(), nn.SiLU()]
    inputs = 2 * 3 * PATCH**2
    for outputs in (32, 128, 128):  # 31 x 31, 15 x 15 and 7 x 7 positions before pooling
        layers += [_Normed(inputs, outputs, nn.SiLU, pool=True), _Normed(outputs, outputs, nn.SiLU)]
        inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten()), inputs


def _residual() -> tuple[nn.Module, int]:
    """Return a residual network at half resolution with learned filters and global average pooling, and its width."""
    stem = [nn.Conv2d(3, 48, 4, stride=2, padding=1, bias=False), nn.BatchNorm2d(48), nn.ReLU()]
    body = [_Normed(48, 96, nn.ReLU, pool=True), _Residual(96), _Normed(96, 192, nn.ReLU, pool=True), _Residual(192)]
    return nn.Sequential(*stem, *body, nn.AdaptiveAvgPool2d(1), nn.Flatten()), 192


def _averaging() -> tuple[nn.Module, int]:
    """Return a chain at full resolution with learned filters and average pooling throughout, and its width."""
    layers: list[nn.Module] = [_Normed(3, 32, nn.GELU)]
    for inputs, outputs in ((32, 64), (64, 128)):
        layers += [nn.AvgPool2d(2), _Normed(inputs, outputs, nn.GELU), _Normed(outputs, outputs, nn.GELU)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), 128


ARCHITECTURES: dict[str, Callable[[], tuple[nn.Module, int]]] = {
    "plain": _plain,
    "residual": _residual,
    "averaging": _averaging,
}
# The residual network reports: it recognises nothing in noise, where the plain one, with its maxima, gives both .44.
SELECTS = "plain"
REPORTS = "residual"
COMMITTEE = ("plain", "averaging")  # guides and selects; of other families than the reporting recogniser


class Recogniser(nn.Module):
    """Calibrated logits, probabilities and features of images (B, 3, 32, 32) in [0, 1], differentiable in the images.

    A probability is that of the class being in the image, for a prior probability of one half. `architecture` is a key
    of ARCHITECTURES, `kinds` the number of image kinds that `kinds_head` tells apart, which is used only in training.
    """

    mean: Tensor
    deviation: Tensor
    temperature: Tensor
    offset: Tensor

    def __init__(self, architecture: str, classes: tuple[str, str], *, kinds: int = 2, seed: int = 0) -> None:
        super().__init__()
        self.architecture, self.classes, self.frozen = architecture, classes, False
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(seed, Stream.WEIGHTS))
            self.body, self.num_features = ARCHITECTURES[architecture]()
            self.head = nn.Linear(self.num_features, len(classes))
            self.kinds_head = nn.Linear(self.num_features, kinds)
        self.register_buffer("mean", torch.zeros(3, 1, 1))
        self.register_buffer("deviation", torch.ones(3, 1, 1))
        self.register_buffer("temperature", torch.ones(len(classes)))
        self.register_buffer("offset", torch.zeros(len(classes)))

    def fit_input(self, images: Tensor) -> None:
        """Set the input normalisation and the whitening from images (N, 3, 32, 32) in [0, 1]."""
        self.mean.copy_(images.mean((0, 2, 3))[:, None, None])
        self.deviation.copy_(images.std((0, 2, 3))[:, None, None])
        for module in self.modules():
            if isinstance(module, _Whitening):
                module.fit((images - self.mean) / self.deviation)

    def features(self, images: Tensor) -> Tensor:
        """Return the penultimate layer (B, num_features); in eval mode its mean over the image and its mirror image.

        The logits are linear in the features, so they are means too.
        """
        normalised = (images - self.mean) / self.deviation
        features = self.body(normalised)
        return features if self.training else (features + self.body(normalised.flip(3))) / 2

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, 2): raw / temperature + offset, with one temperature and offset for each output."""
        return self.classify(self.features(images))

    def classify(self, features: Tensor) -> Tensor:
        """Return the logits (B, 2) of features (B, num_features)."""
        return self.head(features) / self.temperature + self.offset

    def probabilities(self, images: Tensor) -> Tensor:
        """Return sigmoid(logits) (B, 2): the probabilities that the first and the second class are present."""
        return torch.sigmoid(self(images))

    def freeze(self) -> Recogniser:
        """Switch permanently to eval mode, without gradients to the weights."""
        self.eval()
        self.frozen = True
        return self.requires_grad_(False)

    def train(self, mode: bool = True) -> Recogniser:
        """Set the mode, unless the recogniser is frozen."""
        return self if self.frozen else super().train(mode)


def predict(function: Callable[[Tensor], Tensor], images: Tensor, device: torch.device | str = "cpu") -> Tensor:
    """Return `function` of all images, computed in batches without gradients, as float32 on the CPU.

    `function` is, for example, a recogniser's method, and `device` that of its inputs; `images` are (N, 3, 32, 32),
    float in [0, 1] or uint8.
    """
    results = []
    with torch.no_grad():
        for batch in images.split(BATCH):
            here = batch.to(device).contiguous(memory_format=torch.channels_last)
            results.append(function(as_float(here)).float().cpu())
    return torch.cat(results)


def _rates(probabilities: Tensor, targets: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Return sensitivity (2,) and specificity (2,) of the outputs; NaN for a class without images."""
    said, truth = probabilities > threshold, targets > 0.5
    return (said & truth).sum(0) / truth.sum(0), (~said & ~truth).sum(0) / (~truth).sum(0)


def balanced_accuracy(probabilities: Tensor, targets: Tensor, threshold: float = 0.5) -> Tensor:
    """Return (sensitivity + specificity) / 2 of each output, (2,); one half for guessing, however rare the class.

    `probabilities` and `targets` are (N, 2). A class counts as recognised if its probability exceeds `threshold`.
    """
    sensitivity, specificity = _rates(probabilities, targets, threshold)
    return (sensitivity + specificity) / 2


def class_weights(targets: Tensor) -> Tensor:
    """Return weights (N, 2) that sum to 1/2 over the images with, and 1/2 over those without, each class."""
    return (targets / targets.sum(0) + (1 - targets) / (1 - targets).sum(0)) / 2


def calibration_error(probabilities: Tensor, targets: Tensor, bins: int = 15) -> Tensor:
    """Return the expected calibration error of each output, (2,): sum over bins of weight * |confidence - accuracy|.

    Guo et al. 2017 (arXiv 1706.04599), eq. 3, with bins of equal width and images weighted by `class_weights`. Here
    confidence is the mean probability and accuracy the share of images with the class. Both inputs are (N, 2).
    """
    weights = class_weights(targets.double())
    bin_of = (probabilities * bins).long().clamp(max=bins - 1)
    gaps = torch.zeros(bins, probabilities.shape[1], dtype=torch.float64)
    gaps.scatter_add_(0, bin_of, weights * (probabilities.double() - targets))
    return gaps.abs().sum(0)
