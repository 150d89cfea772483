"""The criteria, by name: pure functions over images, features and probabilities; no model, no file.

Each gives one value an image (or a path), so that a caller can average and bootstrap; `kid` alone is a figure of two
sets. A NaN is a value that is not defined for that image; `bootstrap_interval` leaves it out.
"""

from pegasus_lightning.evaluate.metrics.interpolation import line_statistics, path_statistics
from pegasus_lightning.evaluate.metrics.realism import (
    density_coverage,
    kid,
    kid_error,
    mean_kernel_to_others,
    neighbour_radii,
    precision_recall,
)
from pegasus_lightning.evaluate.metrics.recognisability import bootstrap_interval, recognisability
from pegasus_lightning.evaluate.metrics.reconstruction import PrincipalComponents, reconstruction
from pegasus_lightning.evaluate.metrics.uniqueness import (
    distance_to_others,
    memorised,
    nearest,
    parent_distances,
    rmse,
)

__all__ = [
    "PrincipalComponents",
    "bootstrap_interval",
    "density_coverage",
    "distance_to_others",
    "kid",
    "kid_error",
    "line_statistics",
    "mean_kernel_to_others",
    "memorised",
    "nearest",
    "neighbour_radii",
    "parent_distances",
    "path_statistics",
    "precision_recall",
    "recognisability",
    "reconstruction",
    "rmse",
]
