"""Several recognisers as one: what guides a model, selects among its pegasi and moves their codes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pegasus_lightning.recognisers.network import Recogniser


class Committee(nn.Module):
    """Recognisers of the same two classes, frozen. Its logits are the mean of theirs; in training each takes its turn.

    What pleases several networks of different architectures pleases one that was not asked sooner than what pleases
    one of them (Liu et al. 2017, arXiv 1611.02770, "Delving into transferable adversarial examples").
    """

    def __init__(self, members: Sequence[Recogniser]) -> None:
        super().__init__()
        if not members:
            raise ValueError("a committee needs a member")
        self.members = nn.ModuleList(member.freeze() for member in members)

    def member(self, turn: int) -> Recogniser:
        """The one whose turn it is."""
        member: Recogniser = self.members[turn % len(self.members)]  # type: ignore[assignment]
        return member

    def forward(self, images: Tensor) -> Tensor:
        """Mean logits (B, 2) of images (B, 3, 32, 32) in [0, 1]."""
        return self.classify(self.features(images))

    def features(self, images: Tensor) -> Tensor:
        """All members' penultimate layers side by side, (B, F)."""
        return torch.cat([member.features(images) for member in self.members], 1)  # type: ignore[operator]

    def classify(self, features: Tensor) -> Tensor:
        """Mean logits (B, 2) of features (B, F)."""
        sizes = [int(member.num_features) for member in self.members]  # type: ignore[arg-type]
        parts = zip(self.members, features.split(sizes, 1), strict=True)
        return torch.stack([member.classify(part) for member, part in parts]).mean(0)  # type: ignore[operator]

    def logits(self, images: Tensor, turn: int) -> Tensor:
        """Logits (B, 2) of the member whose turn it is, from one look (see `Recogniser.maps`)."""
        member = self.member(turn)
        return member.classify(member.maps(images)[-1])

    def distance(self, images: Tensor, others: Tensor, turn: int) -> Tensor:
        """Sum over a member's layers of the mean over places of |a - b|^2, a and b unit vectors of channels: (B,).

        The distance of Zhang et al. 2018 (LPIPS, arXiv 1801.03924, eq. 1) with weights of 1, over features that know
        the two classes. No gradient reaches `images`.
        """
        member = self.member(turn)
        with torch.no_grad():
            wanted = member.maps(images)
        found = member.maps(others)
        pairs = zip(wanted, found, strict=True)
        return torch.stack([(_unit(a) - _unit(b)).square().sum(1).flatten(1).mean(1) for a, b in pairs]).sum(0)


def _unit(maps: Tensor) -> Tensor:
    """(B, C, ...) with channels scaled to length 1; penultimate vectors get a place of their own."""
    maps = maps if maps.ndim > 2 else maps[:, :, None]
    return maps / maps.norm(dim=1, keepdim=True).clamp_min(1e-6)
