"""Learned mixing of two codes by parts: the first keeps its place, and gets a part of the second."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from pegasus_lightning.data.room import with_room
from pegasus_lightning.models.networks import SLOPE, final_side
from pegasus_lightning.models.settings import NetworksConfig
from pegasus_lightning.utils.tensors import IMAGE_SIZE

WIDTH, HEADS, ROUNDS = 96, 4, 2
REACH = 7  # places, of what a root changes
DRAWN = 32  # channels of the maps between places and pixels
SHARPNESS = 2.0  # factor of the logits of alpha in a mix: a network that is unsure draws a veil
SMALL = 0.2  # ratio at which the first parent has made room
CHIMERA = (0.4, 0.6)  # range of ratios at which the mix is the chimera
UNKNOWN = -1  # root that the network decides on
CLOSED = -3.0  # the logit of alpha before training


class Limb(NamedTuple):
    """What is put on a picture."""

    colours: Tensor  # (B, 3, 32, 32), in [0, 1]
    alpha_logits: Tensor  # (B, 1, 32, 32)
    places: Tensor  # (B, S * S): logits of the place where it grows


class MixNetwork(nn.Module):
    """Codes of a picture with room and of a second parent, each (B, latent_dim), to the limb that the picture gets.

    The network first decides where the limb grows: at the one place of the first code with the largest logit. Then
    every place of the first code attends to all places of the second (Vaswani et al. 2017), and the limb is drawn. A
    network without such a decision draws the mean of all limbs that it thinks possible. Compositions teach it
    (`data/lessons.py`); their limbs grow from squares of 4 x 4 pixels, the places of a code of 8 x 8. Own design.
    """

    def __init__(self, config: NetworksConfig) -> None:
        super().__init__()
        self.side = final_side(config) if config.latent == "spatial" else 1
        depth = config.latent_dim // self.side**2
        # A place knows its neighbours by 3 x 3 convolutions.
        self.first, self.second = (nn.Conv2d(depth, WIDTH, kernel_size=3, padding=1) for _ in range(2))
        self.places = nn.Parameter(0.1 * torch.randn(2, WIDTH, self.side, self.side))
        self.look = _Round()
        self.where = nn.Conv2d(WIDTH, 1, kernel_size=1)
        self.grow = nn.Conv2d(1, WIDTH, kernel_size=REACH, padding=REACH // 2, bias=False)
        self.rounds = nn.ModuleList(_Round() for _ in range(ROUNDS))
        layers: list[nn.Module] = []
        channels = WIDTH
        for _ in range(round(math.log2(IMAGE_SIZE / self.side))):  # each doubles the side
            layers += [nn.Conv2d(channels, 4 * DRAWN, kernel_size=3, padding=1), nn.PixelShuffle(2)]
            layers += [nn.LeakyReLU(SLOPE)]
            channels = DRAWN
        self.draw = nn.Sequential(*layers)
        self.last = nn.Conv2d(channels, 4, kernel_size=3, padding=1)
        assert self.last.bias is not None
        nn.init.constant_(self.last.bias[3:], CLOSED)

    def forward(self, first: Tensor, second: Tensor, roots: Tensor | None = None, where: Tensor | None = None) -> Limb:
        """Return the limb.

        Args:
            roots: (B,) known places, row * S + column, or UNKNOWN; None: none is known.
            where: bool (B, 1, 32, 32), pixels; an unknown root is then the likeliest place that holds one of them.
        """
        start, end = (codes.unflatten(1, (-1, self.side, self.side)) for codes in (first, second))
        maps, asked = self.first(start) + self.places[0], self.second(end) + self.places[1]
        maps = self.look(maps, maps)
        places = self.where(maps).flatten(1).float()
        likely = places
        if where is not None:
            held = F.max_pool2d(where.to(places.dtype), IMAGE_SIZE // self.side).flatten(1) > 0
            likely = places.masked_fill(~held, -math.inf)
        chosen = likely.argmax(1)
        if roots is not None:
            chosen = torch.where(roots == UNKNOWN, chosen, roots)
        spots = F.one_hot(chosen, self.side**2).unflatten(1, (1, self.side, self.side))
        heard = maps + self.grow(spots.to(maps.dtype))
        for step in self.rounds:
            heard = step(heard, asked)
        found = self.last(self.draw(heard)).float()
        return Limb(torch.sigmoid(found[:, :3]), found[:, 3:], places)


class _Round(nn.Module):
    """Every place of the first maps hears from all places of the second, and then from its neighbours."""

    def __init__(self) -> None:
        super().__init__()
        self.own_norm, self.other_norm, self.norm = (nn.GroupNorm(HEADS, WIDTH) for _ in range(3))
        self.question, self.answer = nn.Conv2d(WIDTH, WIDTH, 1), nn.Conv2d(WIDTH, 2 * WIDTH, 1)
        self.out = nn.Conv2d(WIDTH, WIDTH, 1)
        self.inner, self.outer = (nn.Conv2d(WIDTH, WIDTH, 3, padding=1) for _ in range(2))

    def forward(self, maps: Tensor, others: Tensor) -> Tensor:
        asking = self.question(self.own_norm(maps))
        key, value = self.answer(self.other_norm(others)).chunk(2, 1)
        asking, key, value = (
            some.unflatten(1, (HEADS, -1)).flatten(3).transpose(2, 3) for some in (asking, key, value)
        )
        # On a CPU the backward pass of the fused attention takes several times as long as two matrix products.
        with sdpa_kernel(SDPBackend.MATH) if maps.device.type == "cpu" else nullcontext():
            heard = F.scaled_dot_product_attention(asking, key, value)
        maps = maps + self.out(heard.transpose(2, 3).flatten(1, 2).unflatten(2, maps.shape[2:]))
        return maps + self.outer(F.leaky_relu(self.inner(self.norm(maps)), SLOPE))


def mix_by_parts(
    network: MixNetwork,
    encode: Callable[[Tensor], Tensor],
    decode: Callable[[Tensor], Tensor],
    first: Tensor,
    second: Tensor,
    ratios: Tensor,
    where: Tensor | None = None,
) -> Tensor:
    """Return codes (B, latent_dim) between `first` (ratio 0) and `second` (1), each (B, latent_dim); ratios (B,).

        r = 0 to .2    from the first code to a, that of its picture with room above it
        r = .2 to .4   from there to the chimera, the code of the same picture with a limb
        r = .4 to .6   the chimera
        r = .6 to 1    from the chimera to the second code; all linearly

    So parts of the second come first. `encode` gives codes of images, `decode` images of codes. With `where`, bool
    (B, 1, 32, 32), the limb grows from the likeliest place there, and is cut off outside.
    """
    pictures = with_room(decode(first))
    small = encode(pictures)
    limb = network(small, second, where=where)
    if where is not None:
        limb = limb._replace(alpha_logits=limb.alpha_logits.masked_fill(~where, -math.inf))
    chimeras = encode(put_on(pictures, limb, SHARPNESS))
    low, high = CHIMERA
    share = ratios.clamp(0, 1).to(first)[:, None]
    smaller, opened, passed = (
        ((share - begin) / (finish - begin)).clamp(0, 1) for begin, finish in ((0.0, SMALL), (SMALL, low), (high, 1.0))
    )
    mixed = first + smaller * (small - first) + opened * (chimeras - small)
    return mixed + passed * (second - mixed)


def put_on(pictures: Tensor, limb: Limb, sharpness: float = 1.0) -> Tensor:
    """Return pictures (B, 3, 32, 32) with the limb in front."""
    alpha = torch.sigmoid(sharpness * limb.alpha_logits)
    return pictures + alpha * (limb.colours - pictures)
