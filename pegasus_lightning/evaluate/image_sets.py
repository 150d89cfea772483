"""One judge of sets of images: recognisable, realistic, unique, each figure with its 95 % interval.

What it judges by is fixed when it is made: a recogniser, real images for the realism of its features, the training
images for uniqueness, and the limits under which only one test image in a hundred lies.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pegasus_lightning.data.batches import ImageSet
from pegasus_lightning.evaluate.criteria import (
    bootstrap_interval,
    density_coverage,
    distance_to_others,
    kid,
    kid_error,
    mean_kernel_to_others,
    nearest,
    neighbour_radii,
    parent_distances,
    precision_recall,
    recognisability,
)
from pegasus_lightning.recognisers.network import Recogniser
from pegasus_lightning.runs.scorecards import NORMAL_QUANTILE, Figure
from pegasus_lightning.utils.tensors import to_float

REFERENCE = 4000  # training images that realism is measured against, both classes alike
TOO_NEAR = 0.01  # share of test images that lie nearer than the limits of uniqueness
SUPPORT_NEIGHBOUR, CROWD_NEIGHBOUR = 3, 5  # whose distance is the radius: the papers' k
SCALE_SAMPLE = 1000
BATCH = 256


def figure(values: Tensor) -> Figure:
    """The mean of per-image values and its bootstrap interval; NaN values are left out."""
    values = values.detach().cpu().double()
    return Figure(values.nanmean().item(), *bootstrap_interval(values))


@dataclass(frozen=True)
class Measurement:
    """What a set of N images was judged to be.

    Args:
        figures: by the names of `scorecards.MEASURES`.
        probabilities: (N, 2).
        distances, neighbours: to the nearest training image in pixels (N,), and which it is (N,).
    """

    figures: dict[str, Figure]
    probabilities: Tensor
    distances: Tensor
    neighbours: Tensor


class ImageSetMetrics:
    """Judges sets of images by one recogniser against one data set.

    Realism is measured against training images: the test images stay free to be judged themselves, as the control that
    says what a figure can reach. Uniqueness counts an image as too near where it is nearer to a training image than all
    but `TOO_NEAR` of the test images, in pixels and in features both: in pixels alone every blurred image would be.
    Features are scaled to a root mean square of 1 over training images, so that kernel distances by different
    recognisers are of one order.

    Args:
        recogniser: gives probabilities and features; on the device that all is computed on.
        train: training images of the two classes.
        test: images that no model has seen.
        threshold: that both probabilities must exceed.
    """

    def __init__(self, recogniser: Recogniser, train: ImageSet, test: ImageSet, *, threshold: float = 0.5) -> None:
        self.recogniser, self.threshold = recogniser, threshold
        self.device = next(recogniser.parameters()).device
        self.train_images = train.images.to(self.device)
        self.scale = 1.0
        self.scale = 1 / self._features(self.train_images[:SCALE_SAMPLE]).square().mean().sqrt().item()
        self.train_features = self._features(self.train_images)
        half = min(REFERENCE // 2, *(len(train.of_class(label)) for label in (0, 1)))
        chosen = torch.cat([train.of_class(label)[:half] for label in (0, 1)])
        self.reference = self.train_features[chosen.to(self.device)]
        self.to_others = mean_kernel_to_others(self.reference)
        self.radii = {k: neighbour_radii(self.reference, k) for k in (SUPPORT_NEIGHBOUR, CROWD_NEIGHBOUR)}
        pixels, features = self._nearest(test.images.to(self.device))[:2]
        self.pixel_limit, self.feature_limit = (torch.quantile(d.double(), TOO_NEAR).item() for d in (pixels, features))

    @torch.no_grad()
    def _features(self, images: Tensor) -> Tensor:
        return self.scale * torch.cat([self.recogniser.features(_floats(part)) for part in images.split(BATCH)])

    def _nearest(self, images: Tensor, features: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Distances in pixels and in features, and the nearest training image in pixels.

        In pixels a training image's mirror image counts as well; its features are the same.
        """
        in_pixels = nearest(_floats(images), self.train_images, mirrors=True)
        features = self._features(images) if features is None else features
        in_features = nearest(features, self.train_features)
        return in_pixels.distances, in_features.distances, in_pixels.indices

    def measure(self, images: Tensor, parents: tuple[Tensor, Tensor] | None = None) -> Measurement:
        """All that can be said of a set of images.

        Args:
            images: (N, 3, 32, 32), uint8 or float in [0, 1], N at least 12.
            parents: photographs (N, 3, 32, 32) of both parents, where there are any.
        """
        images = images.to(self.device)
        features = self._features(images)
        with torch.no_grad():
            probabilities = torch.sigmoid(self.recogniser.classify(features / self.scale))
        seen = recognisability(probabilities, self.threshold)
        distance, _ = kid(self.reference, features)
        half = NORMAL_QUANTILE * kid_error(self.reference, features, real_to_others=self.to_others)
        support, crowd = (self.radii[k] for k in (SUPPORT_NEIGHBOUR, CROWD_NEIGHBOUR))
        support_of = precision_recall(self.reference, features, SUPPORT_NEIGHBOUR, real_radii=support)
        crowd_of = density_coverage(self.reference, features, CROWD_NEIGHBOUR, real_radii=crowd)
        pixels, in_features, neighbours = self._nearest(images, features)
        too_near = (pixels <= self.pixel_limit) & (in_features <= self.feature_limit)
        figures = {
            "recognised": figure(seen.both),
            "chimera": figure(seen.chimera),
            "p_first": figure(probabilities[:, 0]),
            "p_second": figure(probabilities[:, 1]),
            "kid": Figure(distance, distance - half, distance + half),
            "density": figure(crowd_of.density),
            "coverage": figure(crowd_of.coverage),
            "precision": figure(support_of.precision),
            "recall": figure(support_of.recall),
            "nearest_pixels": figure(pixels),
            "nearest_features": figure(in_features),
            "memorised": figure(too_near),
            "variety": figure(distance_to_others(images)),
            "variety_features": figure(distance_to_others(features)),
        }
        if parents is not None:
            first, second = (parent.to(self.device) for parent in parents)
            figures["parent_distance"] = figure(parent_distances(images, first, second).nearer)
        return Measurement(figures, probabilities, pixels, neighbours)


def _floats(images: Tensor) -> Tensor:
    return to_float(images) if images.dtype == torch.uint8 else images
