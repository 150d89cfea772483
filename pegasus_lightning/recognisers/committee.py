"""An ensemble of recognisers that guides a model, selects its pegasi and improves their codes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pegasus_lightning.recognisers.network import Recogniser


class Committee(nn.Module):
    """Frozen recognisers of the same two classes. The logits are the mean of the members'; in training they take turns.

    Images that several architectures recognise are more likely to be recognised by a further one than images chosen by
    one network (Liu et al. 2017, arXiv 1611.02770, "Delving into transferable adversarial examples").
    """

    def __init__(self, members: Sequence[Recogniser]) -> None:
        super().__init__()
        if not members:
            raise ValueError("a committee needs a member")
        self.members = nn.ModuleList(member.freeze() for member in members)

    def member(self, turn: int) -> Recogniser:
        """Return the member whose turn it is."""
        member: Recogniser = self.members[turn % len(self.members)]  # type: ignore[assignment]
        return member

    def forward(self, images: Tensor) -> Tensor:
        """Return mean logits (B, 2) of images (B, 3, 32, 32) in [0, 1]."""
        return self.classify(self.features(images))

    def features(self, images: Tensor) -> Tensor:
        """Return the penultimate layers of all members, concatenated to (B, F)."""
        return torch.cat([member.features(images) for member in self.members], 1)  # type: ignore[operator]

    def classify(self, features: Tensor) -> Tensor:
        """Return mean logits (B, 2) of features (B, F)."""
        sizes = [int(member.num_features) for member in self.members]  # type: ignore[arg-type]
        parts = zip(self.members, features.split(sizes, 1), strict=True)
        return torch.stack([member.classify(part) for member, part in parts]).mean(0)  # type: ignore[operator]

    def logits(self, images: Tensor, turn: int) -> Tensor:
        """Return logits (B, 2) of the member whose turn it is, without the mirror image (see `Recogniser.maps`)."""
        member = self.member(turn)
        return member.classify(member.maps(images)[-1])

    def distance(self, images: Tensor, others: Tensor, turn: int) -> Tensor:
        """Return the perceptual distance (B,): sum over a member's layers of the mean over positions of |a - b|^2.

        a and b are channel vectors of length 1: Zhang et al. 2018 (LPIPS, arXiv 1801.03924, eq. 1) with weights of 1
        and the recogniser's features. No gradient reaches `images`.
        """
        member = self.member(turn)
        with torch.no_grad():
            wanted = member.maps(images)
        pairs = zip(wanted, member.maps(others), strict=True)
        return torch.stack([(_unit(a) - _unit(b)).square().sum(1).flatten(1).mean(1) for a, b in pairs]).sum(0)


def _unit(maps: Tensor) -> Tensor:
    """Return maps (B, C, ...) with channel vectors scaled to length 1; (B, C) becomes (B, C, 1)."""
    maps = maps if maps.ndim > 2 else maps[:, :, None]
    return maps / maps.norm(dim=1, keepdim=True).clamp_min(1e-6)
