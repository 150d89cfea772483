"""Scores of mixes for a search: both classes recognised and realistic, or rated real by the critic if there is no
recogniser, with a penalty for overlaid parents. A score returns named terms, each (B,); a search maximises their sum.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from pegasus_lightning.generate.mixing import Mixes
from pegasus_lightning.utils.tensors import in_batches

Score = Callable[[Mixes], Mapping[str, Tensor]]
# Images to a recogniser's logits (B, 2), one sigmoid a class, and to realism (B,), at most 0, higher for more real
# (None: not available). One forward pass gives both; it is the most expensive part of a search.
Recognise = Callable[[Tensor], tuple[Tensor, Tensor | None]]


def total(terms: Mapping[str, Tensor]) -> Tensor:
    """Return the score (B,), the sum of its terms."""
    return torch.stack(list(terms.values())).sum(0)


class CriticScore:
    """log sigmoid((C(image) - mean) / deviation), with mean and standard deviation over a reference set; at most 0.

    Standardisation gives critics of different models, whose logits differ by orders of magnitude, equal weight. The
    score saturates because very high critic outputs come from images that fool the critic.

    Args:
        critic: images (B, 3, 32, 32), or features of images, to (B,), higher for more real.
        reference: at least 2 images or features, e.g. the model's reconstructions.
    """

    def __init__(self, critic: Callable[[Tensor], Tensor], reference: Tensor) -> None:
        if len(reference) < 2:
            raise ValueError(f"a standard deviation needs at least 2 reference images, not {len(reference)}")
        with torch.no_grad():
            outputs = in_batches(critic, reference)
        self.critic = critic
        self.mean, self.deviation = outputs.mean(), outputs.std().clamp_min(1e-6)

    def __call__(self, images: Tensor) -> Tensor:
        return torch.nn.functional.logsigmoid((self.critic(images) - self.mean) / self.deviation)


def distance_from_blend(mixes: Mixes) -> Tensor:
    """Return the root mean squared error of each mix to the pixel blend of its decoded parents, (B,).

    0 means two overlaid images (up to 1e-6, as a root has no gradient at 0). The distance is not relative to that of
    the parents: two similar parents would win a search by rounding errors.
    """
    return ((mixes.images - mixes.pixel_blend()).square().flatten(1).mean(1) + 1e-12).sqrt()


def overlap(mixes: Mixes, weight: float, margin: float) -> dict[str, Tensor]:
    """Return -weight * exp(-distance_from_blend / margin), (B,): a penalty for two overlaid images."""
    return {"overlap": -weight * torch.exp(-distance_from_blend(mixes) / margin)}


class CriticAndOverlap:
    """critic_weight * critic(image) plus the `overlap` penalty.

    Args:
        critic: images to (B,), higher for more real (see `CriticScore`); None for a model without a critic.
        critic_weight, overlap_weight: weights of the two terms.
        margin: `distance_from_blend` at which the overlap penalty has fallen to 1/e.
    """

    def __init__(
        self,
        critic: Callable[[Tensor], Tensor] | None,
        *,
        critic_weight: float = 1.0,
        overlap_weight: float = 2.0,
        margin: float = 0.02,
    ) -> None:
        self.critic, self.critic_weight = critic, critic_weight
        self.overlap_weight, self.margin = overlap_weight, margin

    def __call__(self, mixes: Mixes) -> dict[str, Tensor]:
        terms = {} if self.critic is None else {"critic": self.critic_weight * self.critic(mixes.images)}
        return terms | overlap(mixes, self.overlap_weight, self.margin)


class RecognisedAndReal:
    """recognised_weight * (log p_first + log p_second) + realism_weight * realism(image) plus the `overlap` penalty.

    Args:
        recognise: see `Recognise`.
        realism: images to (B,), at most 0, higher for more real, used if `recognise` returns no realism; None: 0.
        recognised_weight, realism_weight, overlap_weight: weights of the three terms.
        margin: `distance_from_blend` at which the overlap penalty has fallen to 1/e.
    """

    def __init__(
        self,
        recognise: Recognise,
        realism: Callable[[Tensor], Tensor] | None = None,
        *,
        recognised_weight: float = 1.0,
        realism_weight: float = 1.0,
        overlap_weight: float = 2.0,
        margin: float = 0.02,
    ) -> None:
        self.recognise, self.realism = recognise, realism
        self.recognised_weight, self.realism_weight = recognised_weight, realism_weight
        self.overlap_weight, self.margin = overlap_weight, margin

    def __call__(self, mixes: Mixes) -> dict[str, Tensor]:
        logits, real = self.recognise(mixes.images)
        if real is None:
            real = logits.new_zeros(len(logits)) if self.realism is None else self.realism(mixes.images)
        both = torch.nn.functional.logsigmoid(logits).sum(1)
        terms = {"recognised": self.recognised_weight * both, "realism": self.realism_weight * real}
        return terms | overlap(mixes, self.overlap_weight, self.margin)
