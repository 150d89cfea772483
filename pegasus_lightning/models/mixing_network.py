"""The learned mixing of two codes: which parent each latent of the chimera is taken from, place by place."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pegasus_lightning.models.networks import SLOPE, final_side
from pegasus_lightning.models.settings import NetworksConfig

HIDDEN = 96
REACH = 2.0  # at a ratio of 1/2 a gate lies within 0.12 and 0.88: no latent is one parent's alone
CHANGE = 1.0  # at a ratio of 1/2 no latent moves farther than this from between its parents'


class MixNetwork(nn.Module):
    """Codes of two parents (B, latent_dim) each and a ratio (B,) to the code of their chimera, (B, latent_dim).

        gate = r e^g / (r e^g + 1 - r);   z = first + gate * (second - first) + 4 r (1 - r) c

    g, from -REACH to REACH, and c, from -CHANGE to CHANGE, come from a small convolutional network that sees both codes
    and the ratio; it begins with zeros, so that the first mixes are `lerp`'s. r = 0 and r = 1 are the parents
    themselves, whatever was learned. With a spatial latent the gate is a soft mask over the image (wings where the one
    parent's back is), and c what neither parent has there. Bounded, since a free c soon makes one and the same chimera
    out of every pair. Own design.
    """

    def __init__(self, config: NetworksConfig) -> None:
        super().__init__()
        self.side = final_side(config) if config.latent == "spatial" else 1
        depth = config.latent_dim // self.side**2
        last = nn.Conv2d(HIDDEN, 2 * depth, kernel_size=3, padding=1)
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
        seen = torch.cat([start, end, share.expand(-1, 1, self.side, self.side)], 1)
        lean, change = self.layers(seen).tanh().chunk(2, 1)
        weight = share * (REACH * lean).exp()
        gate = weight / (weight + (1 - share))
        return (start + gate * (end - start) + 4 * CHANGE * share * (1 - share) * change).flatten(1)
