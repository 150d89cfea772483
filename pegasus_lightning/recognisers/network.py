"""The recogniser: is there a first class in the image, is there a second? Two questions, two independent answers.

A small convolutional network with one sigmoid output a class. Two architectures of different families exist, so that
what one has selected the other can report: a score that was maximised says nothing about itself any more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pegasus_lightning.utils.randomness import Stream, derived_seed
from pegasus_lightning.utils.tensors import to_float

PREDICT_BATCH = 256
PATCH = 2  # side of the patches that the whitening looks at


class _Normed(nn.Sequential):
    """Convolution 3 x 3, perhaps pooling, BatchNorm, activation. The norm's scale is fixed: the weights carry none."""

    def __init__(self, inputs: int, outputs: int, activation: type[nn.Module], *, pool: bool = False) -> None:
        norm = nn.BatchNorm2d(outputs)
        norm.weight.requires_grad_(False)
        middle = [nn.MaxPool2d(2)] if pool else []
        convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        nn.init.dirac_(convolution.weight[: min(inputs, outputs)])  # what comes in goes on, at first
        super().__init__(convolution, *middle, norm, activation())


class _Whitening(nn.Conv2d):
    """Fixed filters, the principal directions of 2 x 2 patches, each scaled to unit variance, and their negatives.

    Coates & Ng 2012, sec. 3.2. `fit` sets them; the biases alone are trained.
    """

    def __init__(self) -> None:
        super().__init__(3, 2 * 3 * PATCH**2, PATCH)
        self.weight.requires_grad_(False)

    def fit(self, images: Tensor) -> None:
        """images (N, 3, H, W), normalised."""
        patches = F.unfold(images, PATCH).transpose(1, 2).reshape(-1, 3 * PATCH**2)
        values, directions = torch.linalg.eigh(patches.T @ patches / len(patches))
        filters = (directions / (values + 5e-4).sqrt()).T.reshape(-1, 3, PATCH, PATCH)
        self.weight.copy_(torch.cat([filters, -filters]))
        nn.init.zeros_(self.bias)  # type: ignore[arg-type]


class _Residual(nn.Module):
    """maps + two convolutions of them (He et al. 2016, arXiv 1512.03385)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(_Normed(channels, channels, nn.ReLU), _Normed(channels, channels, nn.ReLU))

    def forward(self, maps: Tensor) -> Tensor:
        return maps + self.inner(maps)


def _plain() -> tuple[nn.Module, int]:
    """A chain of convolutions over whitened patches, in the manner of VGG; the strongest response anywhere counts."""
    layers: list[nn.Module] = [_Whitening(), nn.SiLU()]
    inputs = 2 * 3 * PATCH**2
    for outputs in (32, 128, 128):  # 31 x 31, 15 x 15 and 7 x 7 places before they are pooled
        layers += [_Normed(inputs, outputs, nn.SiLU, pool=True), _Normed(outputs, outputs, nn.SiLU)]
        inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten()), inputs


def _residual() -> tuple[nn.Module, int]:
    """A residual network at half resolution from the start, its filters all learned; the average response counts."""
    stem = [nn.Conv2d(3, 48, 4, stride=2, padding=1, bias=False), nn.BatchNorm2d(48), nn.ReLU()]
    body = [_Normed(48, 96, nn.ReLU, pool=True), _Residual(96), _Normed(96, 192, nn.ReLU, pool=True), _Residual(192)]
    return nn.Sequential(*stem, *body, nn.AdaptiveAvgPool2d(1), nn.Flatten()), 192


def _averaging() -> tuple[nn.Module, int]:
    """A chain at full resolution, its filters all learned, that averages wherever `_plain` takes the strongest."""
    layers: list[nn.Module] = [_Normed(3, 32, nn.GELU)]
    for inputs, outputs in ((32, 64), (64, 128)):
        layers += [nn.AvgPool2d(2), _Normed(inputs, outputs, nn.GELU), _Normed(outputs, outputs, nn.GELU)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), 128


ARCHITECTURES: dict[str, Callable[[], tuple[nn.Module, int]]] = {
    "plain": _plain,
    "residual": _residual,
    "averaging": _averaging,
}
# The residual network reports: its averages see nothing in noise, where the plain one's maxima see half of everything.
SELECTS = "plain"
REPORTS = "residual"
COMMITTEE = ("plain", "averaging")  # guides and selects; of other families than what reports


class Recogniser(nn.Module):
    """Calibrated logits, probabilities and features of images (B, 3, 32, 32) in [0, 1], differentiable in the images.

    A probability is that of the class being in the image where, before one looks, it is as likely to be there as not.

    Args:
        architecture: a key of ARCHITECTURES.
        classes: names of the two classes that are asked for.
        kinds: how many kinds the training tells apart (`kinds_head`, of no use afterwards).
        seed: of the weights.
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
        """Set what depends on the images (N, 3, 32, 32) in [0, 1] and is not trained."""
        self.mean.copy_(images.mean((0, 2, 3))[:, None, None])
        self.deviation.copy_(images.std((0, 2, 3))[:, None, None])
        for module in self.modules():
            if isinstance(module, _Whitening):
                module.fit((images - self.mean) / self.deviation)

    def features(self, images: Tensor) -> Tensor:
        """The penultimate layer, (B, num_features); in eval mode the mean over the image and its mirror image.

        So an image and its mirror image have the same features, and the logits, linear in them, are means too.
        """
        normalised = (images - self.mean) / self.deviation
        features = self.body(normalised)
        return features if self.training else (features + self.body(normalised.flip(3))) / 2

    def maps(self, images: Tensor) -> list[Tensor]:
        """What the body's blocks put out one after another, (B, C, H, W) each, the last the penultimate layer (B, F).

        Of the image alone, not of its mirror image: in training one look is enough.
        """
        x = (images - self.mean) / self.deviation
        found = []
        for block in cast(nn.Sequential, self.body):
            x = block(x)
            if isinstance(block, _Normed | _Residual):
                found.append(x)
        return [*found, x]

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, 2): raw / temperature + offset, an output each."""
        return self.classify(self.features(images))

    def classify(self, features: Tensor) -> Tensor:
        """Logits (B, 2) of features (B, num_features)."""
        return self.head(features) / self.temperature + self.offset

    def probabilities(self, images: Tensor) -> Tensor:
        """sigmoid(logits): p(first is there), p(second is there), (B, 2)."""
        return torch.sigmoid(self(images))

    def freeze(self) -> Recogniser:
        """For good: eval mode, no gradients to the weights."""
        self.eval()
        self.frozen = True
        return self.requires_grad_(False)

    def train(self, mode: bool = True) -> Recogniser:
        """Does nothing once it is frozen."""
        return self if self.frozen else super().train(mode)


class Features(nn.Module):
    """A recogniser's features of images in [0, 1], (B, num_features), without gradients.

    What torchmetrics' KernelInceptionDistance and FrechetInceptionDistance take as `feature`, with `normalize=True`.
    """

    def __init__(self, recogniser: Recogniser) -> None:
        super().__init__()
        self.recogniser = recogniser.freeze()
        self.num_features = recogniser.num_features

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        return self.recogniser.features(images)


def predict(function: Callable[[Tensor], Tensor], images: Tensor, device: torch.device | str = "cpu") -> Tensor:
    """`function` (a recogniser's method, say) of all images, some at a time, without gradients; float32 on the CPU.

    Args:
        images: (N, 3, 32, 32), float in [0, 1], or uint8.
        device: where `function` wants them.
    """
    results = []
    with torch.no_grad():
        for batch in images.split(PREDICT_BATCH):
            here = batch.to(device).contiguous(memory_format=torch.channels_last)
            results.append(function(to_float(here) if here.dtype == torch.uint8 else here).float().cpu())
    return torch.cat(results)


def _rates(probabilities: Tensor, targets: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Sensitivity and specificity of each output, (2,) both; NaN where no image counts."""
    said, truth = probabilities > threshold, targets > 0.5
    return (said & truth).sum(0) / truth.sum(0), (~said & ~truth).sum(0) / (~truth).sum(0)


def balanced_accuracy(probabilities: Tensor, targets: Tensor, threshold: float = 0.5) -> Tensor:
    """(sensitivity + specificity) / 2 of each output, (2,): one half for guessing, however rare the class.

    Args:
        probabilities, targets: (N, 2).
        threshold: that a probability must exceed for the class to count as seen.
    """
    sensitivity, specificity = _rates(probabilities, targets, threshold)
    return (sensitivity + specificity) / 2


def class_weights(targets: Tensor) -> Tensor:
    """Weights (N, 2), summing to 1 for each output, that give the images with and without the class one half each."""
    return (targets / targets.sum(0) + (1 - targets) / (1 - targets).sum(0)) / 2


def calibration_error(probabilities: Tensor, targets: Tensor, bins: int = 15) -> Tensor:
    """Expected calibration error of each output, (2,): sum over bins of weight * |mean probability - share of truth|.

    Guo et al. 2017 (arXiv 1706.04599), eq. 3, bins of equal width, with images weighed as in `class_weights`.

    Args:
        probabilities, targets: (N, 2).
    """
    weights = class_weights(targets.double())
    bin_of = (probabilities * bins).long().clamp(max=bins - 1)
    gaps = torch.zeros(bins, probabilities.shape[1], dtype=torch.float64)
    gaps.scatter_add_(0, bin_of, weights * (probabilities.double() - targets))
    return gaps.abs().sum(0)
