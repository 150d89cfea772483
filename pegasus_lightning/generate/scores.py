"""What a search looks for: a mix that shows both classes and could be real (where there is a recogniser), or that the
critic takes for real (where there is none), and that is not just its parents overlaid.

A score gives named terms, (B,) each; their sum is what a search raises."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from pegasus_lightning.generate.mixing import Mixes
from pegasus_lightning.utils.tensors import in_batches

Score = Callable[[Mixes], Mapping[str, Tensor]]
# Images to a recogniser's logits (B, 2), one a class, each of a sigmoid of its own, and to how real they look (B,), at
# most 0, higher for more real; None: it does not say. Both out of one look at the images, the dearest part of a search.
Recognise = Callable[[Tensor], tuple[Tensor, Tensor | None]]


def total(terms: Mapping[str, Tensor]) -> Tensor:
    """The score itself, (B,): the sum of its terms."""
    return torch.stack(list(terms.values())).sum(0)


class CriticScore:
    """log sigmoid((C(image) - mean) / deviation), mean and standard deviation taken over a reference set; at most 0.

    Standardised, so that critics of different models, whose logits differ by orders of magnitude, weigh alike;
    saturating, since a critic that is raised without end is fooled, not pleased.

    Args:
        critic: images (B, 3, 32, 32), or features of images, to one number each (B,), higher for more real.
        reference: N images or features, N at least 2: the model's reconstructions, say.
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
    """How far each mix lies from the pixel blend of its decoded parents, (B,): root mean squared error over pixels.

    0 is two overlaid images (up to 1e-6: a root has no gradient at 0). Not relative to how far the parents lie
    apart: two like parents would win a search by rounding errors.
    """
    return ((mixes.images - mixes.pixel_blend()).square().flatten(1).mean(1) + 1e-12).sqrt()


def overlap(mixes: Mixes, weight: float, margin: float) -> dict[str, Tensor]:
    """-weight * exp(-linearity / margin), (B,): the penalty for two overlaid images, 1/e of itself at `margin`."""
    return {"overlap": -weight * torch.exp(-distance_from_blend(mixes) / margin)}


class CriticAndOverlap:
    """critic_weight * critic(image), and the `overlap`.

    Args:
        critic: images to (B,), higher for more real (see `CriticScore`); None where a model has none.
        critic_weight, overlap_weight: of the two terms.
        margin: the `distance_from_blend` at which the penalty for two overlaid images has fallen to 1/e.
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
    """Recognisability times realism, as logarithms, and the `overlap`.

    recognised_weight * (log p_first + log p_second) + realism_weight * realism(image)

    Args:
        look: see `Recognise`.
        realism: images to (B,), at most 0, higher for more real, where `look` does not say it; None: nobody does.
        recognised_weight, realism_weight, overlap_weight: of the three terms.
        margin: see `overlap`.
    """

    def __init__(
        self,
        look: Recognise,
        realism: Callable[[Tensor], Tensor] | None = None,
        *,
        recognised_weight: float = 1.0,
        realism_weight: float = 1.0,
        overlap_weight: float = 2.0,
        margin: float = 0.02,
    ) -> None:
        self.look, self.realism = look, realism
        self.recognised_weight, self.realism_weight = recognised_weight, realism_weight
        self.overlap_weight, self.margin = overlap_weight, margin

    def __call__(self, mixes: Mixes) -> dict[str, Tensor]:
        logits, real = self.look(mixes.images)
        if real is None:
            real = logits.new_zeros(len(logits)) if self.realism is None else self.realism(mixes.images)
        both = torch.nn.functional.logsigmoid(logits).sum(1)
        terms = {"recognised": self.recognised_weight * both, "realism": self.realism_weight * real}
        return terms | overlap(mixes, self.overlap_weight, self.margin)
