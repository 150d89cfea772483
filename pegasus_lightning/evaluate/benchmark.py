"""The benchmark of `evaluate`: figures and pictures of one run after another, on one data set, with controls."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pegasus_lightning.data.controls import cutmix, pixel_average
from pegasus_lightning.data.kinds import load_kinds
from pegasus_lightning.data.module import in_mixed_order, load_split
from pegasus_lightning.evaluate.image_sets import TOO_NEAR, ImageSetMetrics, Measurement
from pegasus_lightning.evaluate.inception import inception_figures
from pegasus_lightning.evaluate.metrics.interpolation import line_statistics, path_statistics
from pegasus_lightning.evaluate.metrics.intervals import Parentage, mean_figure, share_figure
from pegasus_lightning.evaluate.metrics.reconstruction import PrincipalComponents
from pegasus_lightning.evaluate.metrics.reconstruction import reconstruction as reconstruction_figures
from pegasus_lightning.evaluate.settings import EvaluateConfig
from pegasus_lightning.generate.mixing import Recipes
from pegasus_lightning.generate.sampler import Pegasi, Sampler, sample
from pegasus_lightning.generate.scores import distance_from_blend
from pegasus_lightning.generate.session import Session
from pegasus_lightning.models.two_player import TwoPlayerModel
from pegasus_lightning.recognisers.network import predict
from pegasus_lightning.recognisers.store import StoredRecogniser
from pegasus_lightning.recognisers.winged import THRESHOLD
from pegasus_lightning.runs.folder import RunName, config_hash, machines_of, read_status
from pegasus_lightning.runs.places import origin_told, path_told
from pegasus_lightning.runs.scorecards import (
    CUTMIX,
    PEGASI,
    PIXEL_AVERAGE,
    PRIOR,
    RECONSTRUCTIONS,
    TRUE_PEGASI,
    Figure,
    Scorecard,
)
from pegasus_lightning.runs.trained import TrainedRun
from pegasus_lightning.utils.compose import plain
from pegasus_lightning.utils.devices import machine
from pegasus_lightning.utils.errors import UserError
from pegasus_lightning.utils.randomness import Stream, generator
from pegasus_lightning.utils.tensors import as_float, in_batches, to_float, to_uint8

PATHS, PATH_FRAMES = 200, 11
LINE_FRAMES = 16  # as in the ACAI paper
GALLERY_PAIRS, GALLERY_FRAMES, GALLERY_PEGASI = 8, 21, 16
MIN_IMAGES = 8  # of each class and split
COLLAPSED = 0.5  # alarm if the variety is below this share of the pixel averages'


class Benchmark:
    """Measures runs against one data set, with one reporting recogniser and the controls, which are computed once.

    Args:
        session: of an `EvaluateConfig`.
        reports: the reporting recogniser.
        inception: Inception's features, see `inception_network`; None: no FID and KID over them.
        winged: the winged judge that reports, if any.

    Raises:
        UserError: too few images.
    """

    def __init__(
        self,
        session: Session,
        reports: StoredRecogniser,
        inception: nn.Module | None = None,
        winged: StoredRecogniser | None = None,
    ) -> None:
        assert session.data is not None and session.split is not None
        self.session, self.reports, self.inception, self.winged = session, reports, inception, winged
        self.settings: EvaluateConfig = session.settings
        self.data, self.selector, self.device = session.data, session.selector, session.device
        self.train = in_mixed_order(load_split(self.data, "train"))
        self.test = in_mixed_order(session.split if self.settings.split == "test" else load_split(self.data, "test"))
        for name, images in (("train", self.train), ("test", self.test)):
            fewest, label = min((len(images.of_class(label)), label) for label in (0, 1))
            if fewest < MIN_IMAGES:
                raise UserError(
                    f"There are {fewest} {name} images of {images.classes[label]}: an evaluation takes at least "
                    f"{MIN_IMAGES} of each class."
                )
        threshold = self.settings.threshold
        self.image_set_metrics = ImageSetMetrics(reports.recogniser, self.train, self.test, threshold=threshold)
        self.components: PrincipalComponents | None = None
        self._measured: dict[tuple[str, bytes], Measurement] = {}  # of image sets that no model made
        self._yardsticks: dict[int, dict[str, Figure]] = {}

    def measure(self, run: TrainedRun, key: str, identity: dict[str, Any]) -> tuple[Scorecard, dict[str, np.ndarray]]:
        """Return a run's scorecard, with `key` and with `identity` as its settings, and its gallery, see `_gallery`."""
        with run.model.inference():
            sampler = self.session.sampler(run.model)
            score = sampler.score(self.selector.recognise if self.selector else None)
            pegasi = sample(sampler, self.settings.count, score)
            decoded = in_batches(lambda part: run.model.reconstruct(to_float(part.to(self.device))), self.test.images)
            rows, counts, measurement = self._rows(run.model, sampler, pegasi, decoded)
            figures = self._of_model(run.model, sampler, pegasi, decoded)
            pictures = self._gallery(sampler, pegasi, measurement)
        group, variant = kind_of(run)
        card = Scorecard(
            run=path_told(run.path),
            name=run.name,
            group=group,
            seed=None if run.config is None else int(run.config.seed),
            batches=run.model.batches_done,
            classes=list(sampler.parents.classes),
            key=key,
            settings=identity,
            parents=origin_told(self.session.origin),
            recognisers={
                "reports": _described(self.reports),
                "selects": _described(self.selector.stored) if self.selector else None,
                **({"winged": _described(self.winged)} if self.winged else {}),
            },
            rows=rows,
            counts=counts,
            model=figures,
            alarms=_alarms(rows),
            variant=variant,
            machines=[] if run.folder is None else machines_of(read_status(run.folder)),
            judged_on=machine(
                self.device.type, 1 if self.device.type == "cpu" else [self.device.index or 0], "32-true"
            ),
        )
        return card, pictures

    def _rows(
        self, model: TwoPlayerModel, sampler: Sampler, pegasi: Pegasi, decoded: Tensor
    ) -> tuple[dict[str, dict[str, Figure]], dict[str, int], Measurement]:
        """Return figures and sizes of all image sets, the pegasi first, and the measurement of the pegasi.

        `decoded` are the reconstructions of the test images.
        """
        first, second = (to_float(images) for images in sampler.originals(pegasi.chosen))
        parentage = Parentage(*sampler.parent_indices(pegasi.chosen))
        ratios = pegasi.chosen.ratios.clamp(0, 1)
        count = self.settings.count
        measured = {PEGASI: self._measure(pegasi.mixes.images, (first, second), parentage)}
        measured[PEGASI].figures["linearity"] = mean_figure(distance_from_blend(pegasi.mixes), parentage)
        sizes = {PEGASI: len(first)}
        recipe = torch.stack([*parentage, ratios], 1).numpy().tobytes()
        blend = pixel_average(first, second, ratios)
        for name, images in ((PIXEL_AVERAGE, blend), (CUTMIX, cutmix(first, second, ratios, self.settings.seed))):
            measured[name], sizes[name] = self._once(name, images, recipe, (first, second), parentage), len(images)
        measured[RECONSTRUCTIONS], sizes[RECONSTRUCTIONS] = self._measure(decoded[:count]), len(decoded[:count])
        if model.config.sample_codes:  # a plain autoencoder has no prior
            noise = generator(self.settings.seed, Stream.PRIOR, 0, self.device)
            measured[PRIOR], sizes[PRIOR] = self._measure(model.sample_prior(count, noise)), count
        for name, images in self._real_images().items():
            measured[name], sizes[name] = self._once(name, images[:count]), len(images[:count])
        return {name: measurement.figures for name, measurement in measured.items()}, sizes, measured[PEGASI]

    def _measure(
        self, images: Tensor, parents: tuple[Tensor, Tensor] | None = None, parentage: Parentage | None = None
    ) -> Measurement:
        """Measure a set; with Inception also FID and KID against as many training images, for sets of full size."""
        measurement = self.image_set_metrics.measure(images, parents, parentage)
        if self.selector is not None:
            with torch.no_grad():
                logits = in_batches(self._logits, images.to(self.device))
            seen = (logits.sigmoid() > self.settings.threshold).all(1)
            measurement.figures["recognised_selecting"] = share_figure(seen, parentage)
        if self.winged is not None:
            carries = predict(self.winged.recogniser.probabilities, images, self.device)[:, 1] > THRESHOLD
            measurement.figures["winged"] = share_figure(carries, parentage)
        if self.inception is not None and len(images) == self.settings.count:
            real = self.train.images[: len(images)]
            found = inception_figures(real, images.cpu(), device=self.device, network=self.inception, parents=parentage)
            half = found.kid_uncertainty.quantile * found.kid_uncertainty.error
            measurement.figures["inception_fid"] = Figure(found.fid, math.nan, math.nan)
            measurement.figures["inception_kid"] = Figure(found.kid, found.kid - half, found.kid + half)
        return measurement

    def _logits(self, images: Tensor) -> Tensor:
        """Return logits (B, 2) by the selecting recogniser, of uint8 images or floats in [0, 1]."""
        assert self.selector is not None
        return self.selector.recognise(as_float(images))[0]

    def _once(
        self,
        name: str,
        images: Tensor,
        recipe: bytes = b"",
        parents: tuple[Tensor, Tensor] | None = None,
        parentage: Parentage | None = None,
    ) -> Measurement:
        """Measure a set that is the same for every run with the same recipe, once."""
        key = (name, recipe)
        if key not in self._measured:
            self._measured[key] = self._measure(images, parents, parentage)
        return self._measured[key]

    def _real_images(self) -> dict[str, Tensor]:
        """Return the test images of each class and of both, and true pegasi if the source can draw them."""
        first, second = self.session.parents.classes
        real = {
            f"real {name}": self.test.images[self.test.of_class(label)] for label, name in enumerate((first, second))
        }
        real[f"real {first} and {second}"] = self.test.images
        kinds = load_kinds(self.data, "test")
        both = kinds.images[kinds.targets.all(1)]
        return real | ({TRUE_PEGASI: both} if len(both) else {})

    def _of_model(self, model: TwoPlayerModel, sampler: Sampler, pegasi: Pegasi, decoded: Tensor) -> dict[str, Figure]:
        """Return figures of reconstruction and of interpolation."""
        images = self.test.images
        latents = min(model.config.networks.latent_dim, images[0].numel())  # there are no more components than pixels
        if self.components is None or len(self.components.components) < latents:
            self.components = PrincipalComponents.fit(self.train.images, latents)
        if latents not in self._yardsticks:
            yardstick = reconstruction_figures(self.components.reconstruct(images, latents), images)
            self._yardsticks[latents] = {
                f"pca_{name}": mean_figure(values) for name, values in yardstick._asdict().items()
            }
        found = reconstruction_figures(decoded.cpu(), images)
        figures = {name: mean_figure(values) for name, values in found._asdict().items()} | self._yardsticks[latents]
        chosen = pegasi.chosen.take(torch.arange(min(PATHS, len(pegasi.chosen))))
        found_paths = path_statistics(sampler.interpolations(chosen, torch.linspace(0, 1, PATH_FRAMES)))
        names = ("path_length", "largest_step", "midpoint", "relative_midpoint")
        parentage = Parentage(*sampler.parent_indices(chosen))
        figures |= {name: mean_figure(values, parentage) for name, values in zip(names, found_paths, strict=True)}
        if self.data.source == "lines":
            lines = line_statistics(sampler.interpolations(chosen, torch.linspace(0, 1, LINE_FRAMES)))
            figures["line_distance"] = mean_figure(lines.distance, parentage)
            figures["line_smoothness"] = mean_figure(lines.smoothness, parentage)
        return figures

    def _gallery(self, sampler: Sampler, pegasi: Pegasi, measurement: Measurement) -> dict[str, np.ndarray]:
        """Return pictures, uint8 (..., 3, 32, 32), and their numbers, by name.

        P pairs: first, second (photographs), first_reconstructed, second_reconstructed, frames (P, F, ...) at `ratios`
        (F,), blend and cutmix at 1/2, pair_indices (P, 2) into the split's classes. G pegasi: pegasi, pegasi_ratios,
        pegasi_probabilities (G, 2), pegasi_selected (G,) (False: the first ones in order; True: the best by the
        selecting recogniser), neighbours (photographs), neighbour_distances (G,), and neighbour_limit, below which 1 %
        of the test images lie. Without `originals` there are no photographs.
        """
        pairs, count = sampler.pairs, min(GALLERY_PAIRS, len(sampler.pairs))
        few = Recipes(pairs.first[:count], pairs.second[:count], torch.full((count,), 0.5), torch.arange(count))
        first, second = (to_float(images) for images in sampler.originals(few))
        ratios = torch.linspace(0, 1, GALLERY_FRAMES)
        plain = torch.arange(min(GALLERY_PEGASI, len(pegasi.chosen)))
        shown, selected = plain, torch.zeros(len(plain), dtype=torch.bool)
        if self.selector is not None:
            with torch.no_grad():
                logits = in_batches(self._logits, pegasi.mixes.images)
            both = logits.sigmoid().amin(1).cpu()
            best = both.argsort(descending=True, stable=True)[:GALLERY_PEGASI]
            shown, selected = torch.cat([shown, best]), torch.cat([selected, torch.ones(len(best), dtype=torch.bool)])
        here = shown.to(self.device)
        pictures = {
            "first_reconstructed": sampler.mixer.parents[0][few.first.to(self.device)],
            "second_reconstructed": sampler.mixer.parents[1][few.second.to(self.device)],
            "frames": sampler.interpolations(few, ratios),
            "blend": pixel_average(first, second, few.ratios),
            "cutmix": cutmix(first, second, few.ratios, self.settings.seed),
            "pegasi": pegasi.mixes.images[here],
        }
        if self.settings.originals:
            neighbours = self.train.images[measurement.neighbours[here].cpu()]
            pictures |= {"first": first, "second": second, "neighbours": to_float(neighbours)}
        else:
            del pictures["blend"], pictures["cutmix"]  # made of photographs
        gallery = {name: _bytes(images) for name, images in pictures.items()}
        numbers: dict[str, np.ndarray] = {
            "ratios": ratios.numpy(),
            "pair_indices": torch.stack(sampler.parent_indices(few), 1).numpy(),
            "pegasi_ratios": pegasi.chosen.ratios[shown].numpy(),
            "pegasi_probabilities": measurement.probabilities[here].cpu().numpy(),
            "pegasi_selected": selected.numpy(),
            "neighbour_distances": measurement.distances[here].cpu().numpy(),
            "neighbour_limit": np.array(self.image_set_metrics.pixel_limit),
        }
        return gallery | numbers


def kind_of(run: TrainedRun) -> tuple[str, str]:
    """Return what runs share that differ in their seed alone: the name without the seed, and a hash of the settings."""
    if run.config is None:
        return run.name, ""
    name = RunName.parse(run.name)
    group = name.readable if name.seed == str(run.config.seed) else run.name
    return group, config_hash(plain(run.config) | {"seed": None})


def _bytes(images: Tensor) -> np.ndarray:
    """Return images (..., 3, 32, 32) in [0, 1] as uint8."""
    flat = to_uint8(images.reshape(-1, *images.shape[-3:])).transpose(0, 3, 1, 2)
    return flat.reshape(images.shape)


def _described(stored: StoredRecogniser) -> dict[str, Any]:
    return {"file": stored.path.name} | stored.quality


def _alarms(rows: dict[str, dict[str, Figure]]) -> list[str]:
    """Return what a reader must not overlook, a sentence each."""
    pegasi, alarms = rows[PEGASI], []
    if pegasi["memorised"].low > TOO_NEAR:
        alarms.append(
            f"{pegasi['memorised'].value:.1%} of the pegasi lie nearer to a training image, in pixels and in features, "
            f"than all but {TOO_NEAR:.0%} of the test images: memorised?"
        )
    control = rows[PIXEL_AVERAGE]["variety"].value
    if pegasi["variety"].value < COLLAPSED * control:
        alarms.append(
            f"The pegasi lie {pegasi['variety'].value:.3f} apart, pixel averages of the same pairs {control:.3f}: have "
            "modes collapsed?"
        )
    return alarms
