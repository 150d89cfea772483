"""What follows from encoding, decoding and mixing, for trained models and exported ones alike."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pegasus_lightning.models.latent import Posterior
from pegasus_lightning.utils.tensors import BATCH


class CodeOperations:
    """Operations on a model with `encode`, `decode`, `mix` and `device`.

    Images are (B, 3, 32, 32) in [0, 1], codes (B, latent_dim).
    """

    # Those of the model; in a declaration only, so that a subclass of nn.Module finds its own.
    encode: Any
    decode: Any
    mix: Any
    device: Any

    def reconstruct(self, images: Tensor) -> Tensor:
        """Return decode(posterior mean) of images (B, 3, 32, 32) in [0, 1], likewise."""
        reconstructed: Tensor = self.decode(self.encode(images).mean)
        return reconstructed

    def interpolate(self, start: Tensor, end: Tensor, ratios: Tensor) -> Tensor:
        """Return decoded mixes of codes (B, latent_dim) at all ratios (R,): (B, R, 3, 32, 32)."""
        count = len(ratios)
        first, second = (codes.repeat_interleave(count, 0) for codes in (start, end))
        mixed = self.mix(first, second, ratios.to(start).repeat(len(start)))
        decoded: Tensor = self.decode(mixed).unflatten(0, (len(start), count))
        return decoded

    def encode_images(self, images: Any) -> Posterior:
        """Return q(z|x) of pictures of any size: its `mean` is (B, latent_dim). Without gradients.

        Args:
            images: paths, pictures of Pillow, arrays or tensors, see `pegasus_lightning.read_images`.

        Raises:
            UserError: a picture cannot be used.
        """
        from pegasus_lightning.data.own_images import read_images  # Pillow is slow to import

        pixels = read_images(images)
        with torch.no_grad():
            parts = [self.encode(part.to(self.device)) for part in pixels.split(BATCH)]
        means, log_variances = ([getattr(part, name) for part in parts] for name in ("mean", "log_variance"))
        return Posterior(torch.cat(means), torch.cat(log_variances), parts[0].deterministic)
