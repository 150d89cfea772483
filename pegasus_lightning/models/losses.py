"""Loss terms and figures of merit: pure functions of tensors.

Every term is summed over the elements (pixels, latents, logits, features) of one image and averaged
over the batch: the source document's summed losses, at a learning rate that does not depend on the
batch size. Terms are computed in float32 at least, whatever the networks ran in.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def _float(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def binary_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """BCE_sum(sigmoid(logits), targets), mean over the batch, in nats an image.

    Args:
        logits: (B, ...), before the sigmoid.
        targets: (B, ...), in [0, 1].
    """
    logits = _float(logits)
    return F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), reduction="sum") / len(logits)


def squared_error(predictions: Tensor, targets: Tensor) -> Tensor:
    """Sum of (predictions - targets)^2 over one image, mean over the batch."""
    predictions = _float(predictions)
    return F.mse_loss(predictions, targets.to(predictions.dtype), reduction="sum") / len(predictions)


def label_cross_entropy(logits: Tensor, label: float) -> Tensor:
    """BCE_sum(C(.), label) for a critic's logits (B,) or (B, n): `label` 1 says real, 0 says fake."""
    logits = _float(logits)
    return binary_cross_entropy(logits, torch.full_like(logits, label))


def hinge_real(outputs: Tensor) -> Tensor:
    """mean max(0, 1 - C(x)) (Miyato et al. 2018, arXiv 1802.05957, eq. 16, first term); outputs (B,)."""
    return F.relu(1 - _float(outputs)).mean()


def hinge_fake(outputs: Tensor) -> Tensor:
    """mean max(0, 1 + C(x~)) (Miyato et al. 2018, eq. 16, second term); outputs (B,)."""
    return F.relu(1 + _float(outputs)).mean()


def critic_loss_real(outputs: Tensor, kind: str) -> Tensor:
    """What the critic minimises over real images' outputs (B,): BCE(C(x), 1), or for kind `hinge` `hinge_real`."""
    return hinge_real(outputs) if kind == "hinge" else label_cross_entropy(outputs, 1.0)


def critic_loss_fake(outputs: Tensor, kind: str) -> Tensor:
    """What the critic minimises over fakes' outputs (B,): BCE(C(x~), 0), or for kind `hinge` `hinge_fake`."""
    return hinge_fake(outputs) if kind == "hinge" else label_cross_entropy(outputs, 0.0)


def generator_loss(outputs: Tensor, kind: str) -> Tensor:
    """What the autoencoder minimises over its fakes' outputs (B,): BCE(C(x~), 1), or for kind `hinge` -mean C(x~)."""
    return -_float(outputs).mean() if kind == "hinge" else label_cross_entropy(outputs, 1.0)


def gradient_penalty(outputs: Tensor, images: Tensor) -> Tensor:
    """R1: 1/2 E ||grad_x C(x)||^2 over real images (Mescheder et al. 2018, arXiv 1801.04406, eq. 9, gamma left out).

    Args:
        outputs: (B,), the critic's, computed from `images`.
        images: (B, 3, H, W), which take a gradient.
    """
    (slope,) = torch.autograd.grad(outputs.sum(), images, create_graph=True)
    return 0.5 * _float(slope).square().flatten(1).sum(1).mean()


def softplus_margin(logits: Tensor, margin: float) -> Tensor:
    """softplus(margin - logit), (B,): a smooth reluctance that vanishes once a logit is well above the margin."""
    return F.softplus(margin - _float(logits))


def kl_per_image(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, exp(log_variance)) || N(0, I)) in nats, (B,) (Kingma & Welling 2014, appendix B).

    0.5 * sum(mean^2 + variance - 1 - log_variance) over the latents (B, latent_dim).
    """
    mean, log_variance = _float(mean), _float(log_variance)
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """`kl_per_image`, mean over the batch."""
    return kl_per_image(mean, log_variance).mean()


def feature_distance(real: Tensor, reconstructed: Tensor) -> Tensor:
    """-log N(C_l(x) | C_l(x~), I) up to a constant (Larsen et al. 2016, eq. 7): 0.5 * sum (C_l(x) - C_l(x~))^2."""
    return 0.5 * squared_error(reconstructed, real)


def mean_square(outputs: Tensor) -> Tensor:
    """mean(C^2), squared per sample and then averaged (Berthelot et al. 2018, eq. 1; not mean(C)^2).

    Args:
        outputs: the critic's real-valued output, (B,).
    """
    return _float(outputs).square().mean()


def coefficient_error(outputs: Tensor, alpha: Tensor) -> Tensor:
    """mean (C(x_alpha) - alpha)^2 (Berthelot et al. 2018, eq. 2, first term); both (B,)."""
    return mean_square(_float(outputs) - alpha.reshape(outputs.shape))


def excess_bce(logits: Tensor, images: Tensor) -> Tensor:
    """BCE_sum(sigmoid(logits), images) above its floor, nats an image, (B,).

    The floor is the images' own Bernoulli entropy, which no reconstruction undercuts; the excess is
    sum KL(Bernoulli(image) || Bernoulli(sigmoid(logit))), at least 0.

    Args:
        logits: (B, C, H, W). images: (B, C, H, W) in [0, 1].
    """
    logits, images = _float(logits), _float(images)
    cross_entropy = F.binary_cross_entropy_with_logits(logits, images, reduction="none")
    # xlogy(0, 0) is 0, as the entropy wants at pixels that are exactly 0 or 1.
    entropy = -(torch.xlogy(images, images) + torch.xlogy(1 - images, 1 - images))
    return (cross_entropy - entropy).flatten(1).sum(1)


def psnr(predictions: Tensor, targets: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image in dB, (B,): -10 log10(mean squared error), peak 1."""
    error = (_float(predictions) - _float(targets)).square().flatten(1).mean(1)
    return -10 * torch.log10(error.clamp_min(1e-10))


def active_dimensions(means: Tensor, threshold: float = 0.01) -> Tensor:
    """How many latents vary with the image: Var_x(E[z|x]) > 0.01 (Burda et al. 2016, sec. 5.2).

    Args:
        means: posterior means of a data set, (N, latent_dim).
    """
    return (_float(means).var(0) > threshold).sum()


def blind_cross_entropy(real: float, fake: float) -> float:
    """Minimum over p of -(real ln p + fake ln(1 - p)), in nats, reached at p = real / (real + fake).

    A blind critic's loss: it says p to all, against the label 1 weighted `real` and 0 weighted `fake`.
    """
    return -sum(weight * math.log(weight / (real + fake)) for weight in (real, fake) if weight)


def blind_loss(kind: str, real: float, fake: float) -> float:
    """`blind_cross_entropy`, or for hinge losses 2 min(real, fake), reached at an output of 1 or -1 for all."""
    return 2 * min(real, fake) if kind == "hinge" else blind_cross_entropy(real, fake)
