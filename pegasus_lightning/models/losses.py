"""Loss terms and quality measures: pure functions of tensors.

Each term is summed over the elements (pixels, latents, logits, features) of an image and averaged over the batch. These
are the source document's summed losses, with a learning rate independent of the batch size. Terms are computed in
float32 or higher precision, whatever the precision of the networks.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Term(NamedTuple):
    """A term of a loss: its value, without weight, as it is logged, and the weight that it is minimised with."""

    value: Tensor  # a scalar
    weight: float = 1.0

    @property
    def weighted(self) -> Tensor:
        """weight * value."""
        return self.weight * self.value


def _float(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def binary_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return BCE_sum(sigmoid(logits), targets) in nats per image, averaged over the batch.

    Both are (B, ...): logits before the sigmoid, targets in [0, 1].
    """
    logits = _float(logits)
    return F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), reduction="sum") / len(logits)


def squared_error(predictions: Tensor, targets: Tensor) -> Tensor:
    """Return the sum of (predictions - targets)^2 over an image, averaged over the batch."""
    predictions = _float(predictions)
    return F.mse_loss(predictions, targets.to(predictions.dtype), reduction="sum") / len(predictions)


def absolute_error(predictions: Tensor, targets: Tensor) -> Tensor:
    """Return the sum of |predictions - targets| over an image, averaged over the batch."""
    predictions = _float(predictions)
    return F.l1_loss(predictions, targets.to(predictions.dtype), reduction="sum") / len(predictions)


def pixel_error(logits: Tensor, targets: Tensor, kind: str, weights: Tensor) -> Tensor:
    """Return the weighted sum of a pixel term (`bce`, `mse` or `l1`) over an image, averaged over the batch.

    Logits and targets are (B, 3, H, W), weights (B, 1, H, W).
    """
    logits, targets = _float(logits), _float(targets)
    if kind == "bce":
        error = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    else:
        apart = torch.sigmoid(logits) - targets
        error = apart.abs() if kind == "l1" else apart.square()
    return (weights * error).sum() / len(logits)


def label_cross_entropy(logits: Tensor, label: float) -> Tensor:
    """Return BCE_sum(C(.), label) for a critic's logits (B,) or (B, n); `label` is 1 for real, 0 for fake."""
    logits = _float(logits)
    return binary_cross_entropy(logits, torch.full_like(logits, label))


def hinge_real(outputs: Tensor) -> Tensor:
    """Return mean max(0, 1 - C(x)) (Miyato et al. 2018, arXiv 1802.05957, eq. 16, first term); outputs (B,)."""
    return F.relu(1 - _float(outputs)).mean()


def hinge_fake(outputs: Tensor) -> Tensor:
    """Return mean max(0, 1 + C(x~)) (Miyato et al. 2018, eq. 16, second term); outputs (B,)."""
    return F.relu(1 + _float(outputs)).mean()


def relativistic(winners: Tensor, losers: Tensor) -> Tensor:
    """Return mean softplus(C(loser) - C(winner)) over pairs (Jolicoeur-Martineau 2019, arXiv 1807.00734, RpGAN).

    Both are outputs (B,). The critic's winners are the real images, the autoencoder's are its fakes.
    """
    return F.softplus(_float(losers) - _float(winners)).mean()


def least_squares(outputs: Tensor, label: float) -> Tensor:
    """Return mean (C - label)^2 / 2 over outputs (B,) (Mao et al. 2017, arXiv 1611.04076, eq. 9, b = c = 1, a = 0)."""
    return 0.5 * (_float(outputs) - label).square().mean()


def critic_loss_real(outputs: Tensor, kind: str, fakes: Tensor | None = None) -> Tensor:
    """Return the critic's loss for outputs (B,) of real images.

    It is BCE(C(x), 1) for kind `bce`, `hinge_real` for `hinge`, `least_squares` with label 1 for `lsgan`, -mean C(x)
    for `wgan_gp` (Gulrajani et al. 2017, arXiv 1704.00028, eq. 3, without its penalty), or `relativistic` for that
    kind: `fakes` (B,) are then the outputs of the fakes that the images are paired with, and get no gradient.
    """
    if kind == "relativistic":
        assert fakes is not None
        return relativistic(outputs, fakes.detach())
    if kind == "lsgan":
        return least_squares(outputs, 1.0)
    if kind == "wgan_gp":
        return -_float(outputs).mean()
    return hinge_real(outputs) if kind == "hinge" else label_cross_entropy(outputs, 1.0)


def critic_loss_fake(outputs: Tensor, kind: str, real: Tensor | None = None) -> Tensor:
    """Return the critic's loss for outputs (B,) of fakes.

    It is BCE(C(x~), 0), `hinge_fake`, `least_squares` with label 0, mean C(x~) for `wgan_gp`, or `relativistic`.

    `real` (B,) are the outputs of the images that the fakes are paired with; they get no gradient. The critic's two
    relativistic losses have equal values. At equal weights their gradients sum to that of one loss of both sides, which
    an equal shift of all outputs does not change.
    """
    if kind == "relativistic":
        assert real is not None
        return relativistic(real.detach(), outputs)
    if kind == "lsgan":
        return least_squares(outputs, 0.0)
    if kind == "wgan_gp":
        return _float(outputs).mean()
    return hinge_fake(outputs) if kind == "hinge" else label_cross_entropy(outputs, 0.0)


def generator_loss(outputs: Tensor, kind: str, real: Tensor | None = None) -> Tensor:
    """Return the autoencoder's loss for outputs (B,) of its fakes.

    It is BCE(C(x~), 1), -mean C(x~) for kinds `hinge` and `wgan_gp`, `least_squares` with label 1 for `lsgan`, or
    `relativistic` with the outputs `real` (B,) of the images that the fakes are paired with.
    """
    if kind == "relativistic":
        assert real is not None
        return relativistic(outputs, real.detach())
    if kind == "lsgan":
        return least_squares(outputs, 1.0)
    return -_float(outputs).mean() if kind in ("hinge", "wgan_gp") else label_cross_entropy(outputs, 1.0)


def gradient_penalty(outputs: Tensor, images: Tensor) -> Tensor:
    """Return R1, 1/2 E ||grad_x C(x)||^2 over real images (Mescheder et al. 2018, arXiv 1801.04406, eq. 9, no gamma).

    Over fakes it is R2 (their eq. 10). `outputs` (B,) are the critic's for `images` (B, 3, H, W), which require
    gradients.
    """
    (slope,) = torch.autograd.grad(outputs.sum(), images, create_graph=True)
    return 0.5 * _float(slope).square().flatten(1).sum(1).mean()


def distance_from_slope_one(outputs: Tensor, images: Tensor) -> Tensor:
    """Return E (||grad_x C(x)|| - 1)^2 (Gulrajani et al. 2017, arXiv 1704.00028, eq. 3, without its lambda).

    `outputs` (B,) are the critic's for `images` (B, 3, H, W) between real ones and fakes, which require gradients.
    """
    (slope,) = torch.autograd.grad(outputs.sum(), images, create_graph=True)
    return (_float(slope).flatten(1).norm(dim=1) - 1).square().mean()


def kl_per_image(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return KL(N(mean, exp(log_variance)) || N(0, I)) in nats, (B,) (Kingma & Welling 2014, appendix B).

    0.5 * sum(mean^2 + variance - 1 - log_variance) over the latents (B, latent_dim).
    """
    mean, log_variance = _float(mean), _float(log_variance)
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return `kl_per_image` averaged over the batch."""
    return kl_per_image(mean, log_variance).mean()


def feature_distance(real: Tensor, reconstructed: Tensor) -> Tensor:
    """Return 0.5 * sum (C_l(x) - C_l(x~))^2, or -log N(C_l(x) | C_l(x~), I) + constant (Larsen et al. 2016, eq. 7)."""
    return 0.5 * squared_error(reconstructed, real)


def mean_square(outputs: Tensor) -> Tensor:
    """Return mean(C^2), not mean(C)^2, over the critic's outputs (B,) (Berthelot et al. 2018, eq. 1)."""
    return _float(outputs).square().mean()


def coefficient_error(outputs: Tensor, alpha: Tensor) -> Tensor:
    """Return mean (C(x_alpha) - alpha)^2 (Berthelot et al. 2018, eq. 2, first term); both (B,)."""
    return mean_square(_float(outputs) - alpha.reshape(outputs.shape))


def excess_bce(logits: Tensor, images: Tensor) -> Tensor:
    """Return BCE_sum(sigmoid(logits), images) minus its minimum, in nats, (B,).

    Both are (B, C, H, W), images in [0, 1]. The minimum is the Bernoulli entropy of the images, so the excess is
    sum KL(Bernoulli(image) || Bernoulli(sigmoid(logit))) >= 0.
    """
    logits, images = _float(logits), _float(images)
    cross_entropy = F.binary_cross_entropy_with_logits(logits, images, reduction="none")
    # xlogy(0, 0) is 0, the correct entropy of pixels that are exactly 0 or 1.
    entropy = -(torch.xlogy(images, images) + torch.xlogy(1 - images, 1 - images))
    return (cross_entropy - entropy).flatten(1).sum(1)


def psnr(predictions: Tensor, targets: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio in dB, (B,): -10 log10(mean squared error) for peak 1."""
    error = (_float(predictions) - _float(targets)).square().flatten(1).mean(1)
    return -10 * torch.log10(error.clamp_min(1e-10))


def active_dimensions(means: Tensor, threshold: float = 0.01) -> Tensor:
    """Return the number of latents with Var_x(E[z|x]) > threshold (Burda et al. 2016, sec. 5.2).

    `means` are the posterior means of a data set, (N, latent_dim).
    """
    return (_float(means).var(0) > threshold).sum()


def blind_cross_entropy(real: float, fake: float) -> float:
    """Return the minimum over p of -(real ln p + fake ln(1 - p)) in nats, attained at p = real / (real + fake).

    It is the loss of a critic with constant output p, where label 1 has weight `real` and label 0 weight `fake`.
    """
    return -sum(weight * math.log(weight / (real + fake)) for weight in (real, fake) if weight)


def blind_loss(kind: str, real: float, fake: float) -> float | None:
    """Return the smallest loss of a critic with a constant output: `blind_cross_entropy` for kind `bce`.

    For `hinge` it is 2 min(real, fake), at an output of 1 or -1; for `relativistic` 2 fake ln 2, at any; for `lsgan`
    real fake / (real + fake) / 2, at real / (real + fake). For `wgan_gp` it is None: its outputs have no scale.
    """
    if kind == "wgan_gp":
        return None
    if kind == "lsgan":
        return real * fake / (real + fake) / 2 if real + fake else 0.0
    if kind == "relativistic":
        return 2 * fake * math.log(2)
    return 2 * min(real, fake) if kind == "hinge" else blind_cross_entropy(real, fake)
