"""How well images come back, and the yardstick beside it: principal components, as many as the model has latents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from pegasus_lightning import losses
from pegasus_lightning.data.batches import to_float

HALF_A_LEVEL = 0.5 / 255
BATCH = 256


class Reconstruction(NamedTuple):
    """`psnr` in dB, `ssim` (at most 1) and `excess_bce` in nats an image, (N,) each."""

    psnr: Tensor
    ssim: Tensor
    excess_bce: Tensor


def reconstruction(reconstructions: Tensor, images: Tensor) -> Reconstruction:
    """Three figures of each reconstruction.

    `losses.psnr`; SSIM (Wang et al. 2004; Gaussian window of 11 pixels, torchmetrics); `losses.excess_bce`. Before the
    last, reconstructions are kept half a grey level away from 0 and 1, where a single wrong pixel would cost an
    infinity: so for models and PCA alike. A perfect copy of a black pixel then costs 0.002 nats, a black image 6.

    Args:
        reconstructions, images: (N, 3, H, W) each, in [0, 1]; H and W at least 11. uint8 images are scaled.
    """
    if images.dtype == torch.uint8:
        images = to_float(images)
    parts = []
    for predictions, targets in zip(reconstructions.float().split(BATCH), images.float().split(BATCH), strict=True):
        ssim = structural_similarity_index_measure(predictions, targets, data_range=1.0, reduction="none")
        assert isinstance(ssim, Tensor)
        logits = torch.logit(predictions.clamp(HALF_A_LEVEL, 1 - HALF_A_LEVEL))
        parts.append((losses.psnr(predictions, targets), ssim.reshape(-1), losses.excess_bce(logits, targets)))
    return Reconstruction(*(torch.cat(column) for column in zip(*parts, strict=True)))


@dataclass(frozen=True)
class PrincipalComponents:
    """The best linear code of images: `mean` (D,) and orthonormal `components` (K, D), the strongest first."""

    mean: Tensor
    components: Tensor

    @staticmethod
    def fit(images: Tensor, count: int) -> PrincipalComponents:
        """The `count` strongest components of images (N, ...), float in [0, 1] or uint8.

        Exact and deterministic: eigenvectors of the covariance, about 20 CPU seconds at 10,000 images of 3072 pixels.
        Fit the most that you need once; `reconstruct` takes fewer.
        """
        rows = (to_float(images) if images.dtype == torch.uint8 else images).flatten(1)
        if not 1 <= count <= rows.shape[1]:
            raise ValueError(f"{count} components are not to be had of {rows.shape[1]} elements")
        mean = rows.mean(0)
        centred = rows - mean
        vectors = torch.linalg.eigh(centred.T @ centred).eigenvectors  # (D, D), the weakest first
        return PrincipalComponents(mean, vectors.flip(1)[:, :count].T.contiguous())

    def reconstruct(self, images: Tensor, count: int | None = None) -> Tensor:
        """Images (N, ...) through the first `count` components (null: all) and back, clamped to [0, 1]; float."""
        images = to_float(images) if images.dtype == torch.uint8 else images
        kept = self.components[:count]
        codes = (images.flatten(1) - self.mean) @ kept.T
        return (self.mean + codes @ kept).clamp(0, 1).reshape(images.shape)
