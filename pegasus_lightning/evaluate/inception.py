"""FID and KID over the features of Inception-v3, as in the literature; they need a package and weights.

The package is torch-fidelity (the extra `inception`). The weights (96 MB) are those of the original TensorFlow network,
downloaded once into PyTorch's hub folder and loaded only if their hash matches.
"""

from __future__ import annotations

import importlib.util
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance, NoTrainInceptionV3

from pegasus_lightning.evaluate.metrics.intervals import Parentage, Uncertainty
from pegasus_lightning.evaluate.metrics.realism import kid, kid_uncertainty
from pegasus_lightning.evaluate.settings import MIN_FOR_FID
from pegasus_lightning.utils.errors import UserError
from pegasus_lightning.utils.files import sha256

PACKAGE = "torch_fidelity"
WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{WEIGHTS}"
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
FEATURES = "2048"  # the last average pool, on which FID and KID are defined
BATCH = 64


class InceptionFigures(NamedTuple):
    """`fid`; `kid` and its uncertainty over draws of both sets; `images`, the number of images of each kind.

    FID is biased upward, more so for fewer images: compare it only at equal `images`, not with the 50,000 of most
    papers. `kid` is unbiased.
    """

    fid: float
    kid: float
    kid_uncertainty: Uncertainty
    images: int


def inception_figures(
    real: Tensor,
    fake: Tensor,
    *,
    device: torch.device | str,
    network: nn.Module | None = None,
    subsets: int = 100,
    subset_size: int | None = None,
    seed: int = 0,
    parents: Parentage | None = None,
) -> InceptionFigures:
    """Return FID and KID of two sets of images.

    FID (Heusel et al. 2017, arXiv 1706.08500, eq. 6; torchmetrics) is |m_r - m_f|^2 + tr(S_r + S_f -
    2 (S_r S_f)^(1/2)) of the means and covariances of the features. KID: `realism.kid`.

    Args:
        real, fake: each (N, 3, H, W), uint8 or float in [0, 1].
        device: device of the feature network; the statistics are computed in float64 on the CPU.
        network: uint8 images (B, 3, H, W) to features (B, d); null: `inception_network()`.
        subsets, subset_size, seed: options of the KID; the default subset size is 1000.
        parents: the photographs that the fakes share.

    Raises:
        UserError: unequal or too few images, a subset larger than the sets, package or weights missing.
        ValueError: subsets too large for sets that share images (see `realism.kid`).
    """
    if len(real) != len(fake):
        raise UserError(
            f"A FID needs as many real images as fake ones, not {len(real)} and {len(fake)}: its bias depends on the "
            "number. Leave out images of the larger set."
        )
    if len(real) < MIN_FOR_FID:
        raise UserError(
            f"{len(real)} images are too few for a FID: give at least {MIN_FOR_FID} of each kind. With fewer it "
            "depends more on their number than on their quality; the recogniser's kernel distance works with fewer."
        )
    if subset_size is not None and not 2 <= subset_size <= len(real):
        raise UserError(f"subset_size={subset_size} must be at least 2 and at most {len(real)}, the number of images.")
    network = inception_network() if network is None else network
    real_features, fake_features = (extract_features(images, network, device) for images in (real, fake))
    mean, _ = kid(real_features, fake_features, subsets, subset_size, seed)
    apart = kid_uncertainty(real_features, fake_features, parents=parents)
    return InceptionFigures(_fid(real_features, fake_features), mean, apart, len(real))


@torch.no_grad()
def extract_features(images: Tensor, network: nn.Module, device: torch.device | str) -> Tensor:
    """Return features (N, d), float64 on the CPU, of images (N, 3, H, W), uint8 or float in [0, 1].

    The network is left frozen and in evaluation mode.
    """
    network = network.to(device).eval().requires_grad_(False)
    return torch.cat([network(_bytes(part).to(device)).double().cpu() for part in images.split(BATCH)])


def _bytes(images: Tensor) -> Tensor:
    if images.dtype == torch.uint8:
        return images
    return (images.float().clamp(0, 1) * 255).round().byte()


class _Identity(nn.Module):
    """A feature network whose input is the features."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.num_features = features

    def forward(self, features: Tensor) -> Tensor:
        return features


def _fid(real: Tensor, fake: Tensor) -> float:
    metric = FrechetInceptionDistance(_Identity(real.shape[1]))
    metric.update(real, real=True)
    metric.update(fake, real=False)
    return float(metric.compute())


def inception_network() -> nn.Module:
    """Return the Inception-v3 of FID: uint8 images of any size, resized as in TensorFlow 1, to features (B, 2048).

    Raise UserError if the package is missing, or the weights are missing and cannot be downloaded.
    """
    if importlib.util.find_spec(PACKAGE) is None:
        raise UserError("FID and KID over Inception need the package torch-fidelity: pip install -e '.[inception]'")
    # Published figures were computed with the network's own resizing, without antialiasing.
    return NoTrainInceptionV3("inception-v3-compat", [FEATURES], str(inception_weights()), antialias=False)


def inception_weights() -> Path:
    """Return the path of the weights; download them if missing. A file of another hash, a pickle, is never opened."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS
    by_hand = f"Download {URL} elsewhere and put it at {path}."
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(URL, str(path), hash_prefix=SHA256, progress=True)
        except (OSError, RuntimeError, HTTPException) as error:  # RuntimeError: another hash
            raise UserError(f"Inception's weights could not be downloaded ({error}). {by_hand}") from error
    if sha256(path) != SHA256:
        raise UserError(f"{path} has another SHA-256 than the published weights. Delete it. {by_hand}")
    return path
