"""An ensemble of recognisers that selects pegasi and improves their codes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pegasus_lightning.recognisers.network import Recogniser


class Committee(nn.Module):
    """Frozen recognisers of the same two classes. The logits are the mean of the members'.

    Images that several architectures recognise are more likely to be recognised by a further one than images chosen by
    one network (Liu et al. 2017, arXiv 1611.02770, "Delving into transferable adversarial examples").
    """

    def __init__(self, members: Sequence[Recogniser]) -> None:
        super().__init__()
        if not members:
            raise ValueError("a committee needs a member")
        self.members = nn.ModuleList(member.freeze() for member in members)

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
