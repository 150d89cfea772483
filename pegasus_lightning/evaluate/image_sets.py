"""Recognisability, realism and uniqueness of image sets, each metric with its 95 % interval.

Fixed at construction: the recogniser, the real images for realism, the training images for uniqueness, and the
distances to training images below which only 1 % of the test images lie.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pegasus_lightning.data.batches import ImageSet
from pegasus_lightning.evaluate.metrics.intervals import (
    Parentage,
    mean_figure,
    pairs_figure,
    reached_figure,
    share_figure,
)
from pegasus_lightning.evaluate.metrics.realism import (
    density_coverage,
    kid,
    kid_uncertainty,
    mean_kernel_to_others,
    neighbour_radii,
    precision_recall,
)
from pegasus_lightning.evaluate.metrics.recognisability import recognisability
from pegasus_lightning.evaluate.metrics.uniqueness import distance_to_others, nearest, parent_distances
from pegasus_lightning.recognisers.network import Recogniser
from pegasus_lightning.runs.scorecards import Figure
from pegasus_lightning.utils.tensors import as_float, in_batches

REFERENCE = 4000  # training images for the realism metrics, half of each class
TOO_NEAR = 0.01  # share of test images below the distance limits
SUPPORT_NEIGHBOUR, CROWD_NEIGHBOUR = 3, 5  # k of the radii, as in the papers
SCALE_SAMPLE = 1000


@dataclass(frozen=True)
class Measurement:
    """Metrics of a set of N images."""

    figures: dict[str, Figure]  # by the names in `scorecards.MEASURES`
    probabilities: Tensor  # (N, 2)
    distances: Tensor  # pixel distance to the nearest training image, (N,)
    neighbours: Tensor  # its index, (N,)


class ImageSetMetrics:
    """Metrics of image sets, by one recogniser on one data set.

    Realism is measured against training images, so that the test images can be evaluated as a control that shows what
    a metric can reach. An image is too near if it is nearer to a training image than all but `TOO_NEAR` of the test
    images, in pixels and in features; by pixels alone every blurred image would be. Features are scaled to a root
    mean square of 1 over training images, so kernel distances of different recognisers have one order of magnitude.

    Args:
        recogniser: its probabilities and features are used; everything is computed on its device.
        train: training images of the two classes.
        test: images that no model was trained on.
        threshold: value that both probabilities must exceed.
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
        return self.scale * in_batches(lambda part: self.recogniser.features(as_float(part)), images)

    def _nearest(self, images: Tensor, features: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return distances in pixels and in features, and the index of the nearest training image in pixels.

        Pixel distances include mirror images of training images; features of mirror images are the same.
        """
        in_pixels = nearest(as_float(images), self.train_images, mirrors=True)
        features = self._features(images) if features is None else features
        in_features = nearest(features, self.train_features)
        return in_pixels.distances, in_features.distances, in_pixels.indices

    def measure(
        self,
        images: Tensor,
        parents: tuple[Tensor, Tensor] | None = None,
        parentage: Parentage | None = None,
    ) -> Measurement:
        """Return all metrics of a set of images.

        Args:
            images: (N, 3, 32, 32), uint8 or float in [0, 1], N at least 12.
            parents: photographs (N, 3, 32, 32) of both parents, if any.
            parentage: which photographs these are, so that the intervals know what images share.
        """
        images = images.to(self.device)
        features = self._features(images)
        with torch.no_grad():
            probabilities = torch.sigmoid(self.recogniser.classify(features / self.scale))
        recognised = recognisability(probabilities, self.threshold)
        distance, _ = kid(self.reference, features)
        apart = kid_uncertainty(self.reference, features, real_to_others=self.to_others, parents=parentage)
        half = apart.quantile * apart.error
        support, crowd = (self.radii[k] for k in (SUPPORT_NEIGHBOUR, CROWD_NEIGHBOUR))
        support_of = precision_recall(self.reference, features, SUPPORT_NEIGHBOUR, real_radii=support)
        crowd_of = density_coverage(self.reference, features, CROWD_NEIGHBOUR, real_radii=crowd)
        pixels, in_features, neighbours = self._nearest(images, features)
        too_near = (pixels <= self.pixel_limit) & (in_features <= self.feature_limit)
        figures = {
            "recognised": share_figure(recognised.both, parentage),
            "chimera": mean_figure(recognised.chimera, parentage),
            "p_first": mean_figure(probabilities[:, 0], parentage),
            "p_second": mean_figure(probabilities[:, 1], parentage),
            "kid": Figure(distance, distance - half, distance + half),
            "density": mean_figure(crowd_of.density, parentage),
            "coverage": reached_figure(crowd_of.reached, parentage),
            "precision": share_figure(support_of.precision, parentage),
            "recall": reached_figure(support_of.reached, parentage, corrected=False),
            "nearest_pixels": mean_figure(pixels, parentage),
            "nearest_features": mean_figure(in_features, parentage),
            "memorised": share_figure(too_near, parentage),
            "variety": pairs_figure(distance_to_others(images), parentage),
            "variety_features": pairs_figure(distance_to_others(features), parentage),
        }
        if parents is not None:
            first, second = (parent.to(self.device) for parent in parents)
            figures["parent_distance"] = mean_figure(parent_distances(images, first, second).nearer, parentage)
        return Measurement(figures, probabilities, pixels, neighbours)
