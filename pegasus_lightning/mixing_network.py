"""The learned mixing of two codes: which parent each latent of the chimera is taken from, place by place."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pegasus_lightning.config import NetworksConfig
from pegasus_lightning.networks import SLOPE, final_side

HIDDEN = 64


class MixNetwork(nn.Module):
    """Codes of two parents (B, latent_dim) each and a ratio (B,) to the code of their chimera, (B, latent_dim).

        gate = r e^g / (r e^g + 1 - r);   z = first + gate * (second - first)

    g comes from a small convolutional network that sees both codes and the ratio; it begins with zeros, so that the
    first mixes are `lerp`'s. r = 0 and r = 1 are the parents themselves, whatever was learned. With a spatial latent
    the gate is a soft mask over the image: wings where the one parent's back is. Nothing is added to what the parents
    have: a free term soon makes one and the same chimera out of every pair. Own design.
    """

    def __init__(self, config: NetworksConfig) -> None:
        super().__init__()
        self.side = final_side(config) if config.latent == "spatial" else 1
        depth = config.latent_dim // self.side**2
        last = nn.Conv2d(HIDDEN, depth, kernel_size=3, padding=1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]
        self.layers = nn.Sequential(
            nn.Conv2d(2 * depth + 1, HIDDEN, kernel_size=3, padding=1),
            nn.LeakyReLU(SLOPE, inplace=True),
            nn.Conv2d(HIDDEN, HIDDEN, kernel_size=3, padding=1),
            nn.LeakyReLU(SLOPE, inplace=True),
            last,
        )

    def forward(self, first: Tensor, second: Tensor, ratios: Tensor) -> Tensor:
        share = ratios.clamp(0, 1).reshape(-1, 1, 1, 1).to(first)
        start, end = (codes.unflatten(1, (-1, self.side, self.side)) for codes in (first, second))
        lean = self.layers(torch.cat([start, end, share.expand(-1, 1, self.side, self.side)], 1))
        weight = share * lean.clamp(-10, 10).exp()
        gate = weight / (weight + (1 - share))
        return (start + gate * (end - start)).flatten(1)
