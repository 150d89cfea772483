"""FID and KID as the literature means them: over the features of Inception-v3, where package and weights can be had.

The package is torch-fidelity (the extra `inception`); the weights are the 96 MB of the original TensorFlow network,
fetched once into PyTorch's hub folder, checked by their hash and only then loaded.
"""

from __future__ import annotations

import importlib.util
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance, NoTrainInceptionV3

from pegasus_lightning.evaluate.metrics.realism import kid
from pegasus_lightning.evaluate.settings import MIN_FOR_FID
from pegasus_lightning.utils.errors import UserError
from pegasus_lightning.utils.files import sha256

PACKAGE = "torch_fidelity"
WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{WEIGHTS}"
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
FEATURES = "2048"  # the last average pool, which FID and KID are defined over
BATCH = 64


class InceptionFigures(NamedTuple):
    """`fid`; `kid` and its standard deviation over subsets; `images`, how many of each kind.

    A FID is biased upward, the more the fewer the images: it compares only with one of as many `images`, not with the
    50,000 of most papers. `kid` is unbiased.
    """

    fid: float
    kid: float
    kid_deviation: float
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
) -> InceptionFigures:
    """Both distances of two sets of images.

    FID (Heusel et al. 2017, arXiv 1706.08500, eq. 6; torchmetrics):
    |m_r - m_f|^2 + tr(S_r + S_f - 2 (S_r S_f)^(1/2)), of the features' means and covariances. KID: `realism.kid`.

    Args:
        real, fake: (N, 3, H, W) each, uint8 or float in [0, 1].
        device: that features are computed on; the statistics are computed in float64 on the CPU.
        network: uint8 images (B, 3, H, W) to features (B, d); null: `inception_network()`.
        subsets, subset_size, seed: of the KID; of 2000 images and more a subset has 1000.

    Raises:
        UserError: unequal or too few images, a subset larger than the sets, no package, no weights.
        ValueError: subsets too large for sets that share images (see `realism.kid`).
    """
    if len(real) != len(fake):
        raise UserError(
            f"A FID needs as many real images as fake ones, not {len(real)} and {len(fake)}: its bias depends on the "
            "number. Leave images of the larger set out."
        )
    if len(real) < MIN_FOR_FID:
        raise UserError(
            f"{len(real)} images are too few for a FID: give at least {MIN_FOR_FID} of each kind. With fewer it "
            "measures their number more than their quality; the recogniser's kernel distance takes fewer."
        )
    if subset_size is not None and not 2 <= subset_size <= len(real):
        raise UserError(f"subset_size={subset_size} must be at least 2 and at most {len(real)}, the number of images.")
    network = inception_network() if network is None else network
    real_features, fake_features = (extract_features(images, network, device) for images in (real, fake))
    mean, deviation = kid(real_features, fake_features, subsets, subset_size, seed)
    return InceptionFigures(_fid(real_features, fake_features), mean, deviation, len(real))


@torch.no_grad()
def extract_features(images: Tensor, network: nn.Module, device: torch.device | str) -> Tensor:
    """Features (N, d), float64 on the CPU, of images (N, 3, H, W), uint8 or float in [0, 1].

    The network is put into evaluation mode and left frozen there.
    """
    network = network.to(device).eval().requires_grad_(False)
    return torch.cat([network(_bytes(part).to(device)).double().cpu() for part in images.split(BATCH)])


def _bytes(images: Tensor) -> Tensor:
    if images.dtype == torch.uint8:
        return images
    return (images.float().clamp(0, 1) * 255).round().byte()


class _Handed(nn.Module):
    """A feature network whose images are features already."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.num_features = features

    def forward(self, features: Tensor) -> Tensor:
        return features


def _fid(real: Tensor, fake: Tensor) -> float:
    metric = FrechetInceptionDistance(_Handed(real.shape[1]))
    metric.update(real, real=True)
    metric.update(fake, real=False)
    return float(metric.compute())


def inception_network() -> nn.Module:
    """The Inception-v3 of FID: uint8 images of any size to (B, 2048), resized as TensorFlow 1 did it.

    Raises:
        UserError: the package is missing, or its weights are and cannot be downloaded.
    """
    if importlib.util.find_spec(PACKAGE) is None:
        raise UserError(
            "FID and KID over Inception need the package torch-fidelity: pip install 'pegasus-lightning[inception]'"
        )
    # Without antialiasing: the network's own resizing, and the one that published figures were computed with.
    return NoTrainInceptionV3("inception-v3-compat", [FEATURES], str(inception_weights()), antialias=False)


def inception_weights() -> Path:
    """The weights' file, downloaded unless it is there. It is a pickle: a file of another hash is never opened."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS
    by_hand = f"Download {URL} elsewhere and put it at {path}."
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(URL, str(path), hash_prefix=SHA256, progress=True)
        except (OSError, RuntimeError, HTTPException) as error:  # the second: another hash
            raise UserError(f"Inception's weights could not be downloaded ({error}). {by_hand}") from error
    if sha256(path) != SHA256:
        raise UserError(f"{path} is not the file it is named after (another SHA-256). Delete it. {by_hand}")
    return path
