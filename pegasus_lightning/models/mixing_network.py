"""Learned mixing of two codes: a gate per latent chooses between the parents."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pegasus_lightning.models.networks import SLOPE, final_side
from pegasus_lightning.models.settings import NetworksConfig

HIDDEN = 96
REACH = 2.0  # at ratio 1/2 a gate lies between 0.12 and 0.88, so no latent comes from one parent only
CHANGE = 1.0  # at ratio 1/2 a latent lies at most this far outside the interval between its parents


class MixNetwork(nn.Module):
    """Codes of two parents, each (B, latent_dim), and ratios (B,) to codes of their chimeras, (B, latent_dim).

        gate = r e^g / (r e^g + 1 - r);   z = first + gate * (second - first) + 4 r (1 - r) c

    A small convolutional network computes g in [-REACH, REACH] and c in [-CHANGE, CHANGE] from both codes and the
    ratio. Its last layer is initialised to zero, so training starts at `lerp`. r = 0 and r = 1 always give the parents.
    With a spatial latent the gate is a soft mask over the image (wings at one parent's back), and c adds what neither
    parent has there. c is bounded because an unbounded c maps all pairs to the same chimera. Own design.
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
        inputs = torch.cat([start, end, share.expand(-1, 1, self.side, self.side)], 1)
        lean, change = self.layers(inputs).tanh().chunk(2, 1)
        weight = share * (REACH * lean).exp()
        gate = weight / (weight + (1 - share))
        return (start + gate * (end - start) + 4 * CHANGE * share * (1 - share) * change).flatten(1)
