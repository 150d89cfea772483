"""Tests of the image set metrics on sets with known results. Colours stand for the two classes."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pegasus_lightning.data.batches import ImageSet
from pegasus_lightning.evaluate.benchmark import _alarms
from pegasus_lightning.evaluate.image_sets import ImageSetMetrics, Measurement
from pegasus_lightning.evaluate.metrics.intervals import Parentage, mean_figure
from pegasus_lightning.runs.scorecards import MEASURES, PEGASI, PIXEL_AVERAGE
from pegasus_lightning.utils.randomness import Stream, generator
from pegasus_lightning.utils.tensors import BATCH, to_float


class ByColour(nn.Module):
    """Recogniser: the first class is red, the second blue; the features are colours by position, and roughness."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(40.0), requires_grad=False)

    def features(self, images: Tensor) -> Tensor:
        rough = (images[..., 1:] - images[..., :-1]).abs().mean((2, 3))
        by_place = F.adaptive_avg_pool2d((images + images.flip(3)) / 2, 4)  # invariant to mirroring
        return torch.cat([by_place.flatten(1), 10 * rough], 1)

    def classify(self, features: Tensor) -> Tensor:
        return self.weight * (features[:, :48].unflatten(1, (3, 16)).mean(2)[:, [0, 2]] - 0.6)

    def probabilities(self, images: Tensor) -> Tensor:
        return self.classify(self.features(images)).sigmoid()


def scenes(count: int, key: int, red: float, blue: float) -> Tensor:
    """Smooth images with these mean levels of red and blue, uint8 (count, 3, 32, 32)."""
    coarse = torch.rand(count, 3, 4, 4, generator=generator(key, Stream.PICTURES))
    coarse[:, 0] = 0.4 * coarse[:, 0] + red - 0.2
    coarse[:, 2] = 0.4 * coarse[:, 2] + blue - 0.2
    return (255 * F.interpolate(coarse, size=32, mode="bilinear")).round().byte()


def both_classes(count: int, key: int) -> ImageSet:
    images = torch.cat([scenes(count, key, 0.8, 0.2), scenes(count, key + 1, 0.2, 0.8)])
    return ImageSet(images, torch.arange(2).repeat_interleave(count), ("red", "blue"))


TRAIN, TEST = both_classes(150, 10), both_classes(100, 20)
NOISE = torch.rand(100, 3, 32, 32, generator=generator(0, Stream.PICTURES))


@pytest.fixture(scope="module")
def metrics() -> ImageSetMetrics:
    return ImageSetMetrics(ByColour(), TRAIN, TEST)  # type: ignore[arg-type]


def alarms(metrics: ImageSetMetrics, measured: Measurement) -> list[str]:
    return _alarms({PEGASI: measured.figures, PIXEL_AVERAGE: metrics.measure(TEST.images).figures})


def features_of(images: Tensor) -> Tensor:
    """Features scaled by the root mean square over training images."""
    usual = ByColour().features(to_float(TRAIN.images)).double().square().mean().sqrt()
    return ByColour().features(to_float(images) if images.dtype == torch.uint8 else images).double() / usual


def rows(images: Tensor) -> Tensor:
    return to_float(images).flatten(1).double() if images.dtype == torch.uint8 else images.flatten(1).double()


# Sets with known results.


@pytest.mark.parametrize("mirrored", [False, True])
def test_training_images_and_their_mirror_images_are_all_memorised(metrics: ImageSetMetrics, mirrored: bool) -> None:
    measured = metrics.measure(TRAIN.images.flip(3) if mirrored else TRAIN.images)
    assert measured.figures["memorised"].value == measured.figures["memorised"].high == 1
    assert 0.98 < measured.figures["memorised"].low < 1  # Wilson
    assert measured.figures["nearest_pixels"].value == 0
    assert measured.figures["nearest_features"].value == pytest.approx(0, abs=1e-6 if mirrored else 0)
    assert measured.neighbours.tolist() == list(range(300))
    (alarm,) = alarms(metrics, measured)
    assert "100.0% of the pegasi lie nearer to a training image" in alarm
    assert "memorised?" in alarm


def test_training_images_that_were_touched_up_are_memorised_too(metrics: ImageSetMetrics) -> None:
    noise = 0.02 * torch.randn(300, 3, 32, 32, generator=generator(1, Stream.PICTURES))
    measured = metrics.measure((0.98 * to_float(TRAIN.images) + noise).clamp(0, 1))
    assert measured.figures["nearest_pixels"].value > 0.01
    assert measured.figures["memorised"].value > 0.95


def test_a_few_stolen_images_among_new_ones_raise_the_alarm(metrics: ImageSetMetrics) -> None:
    measured = metrics.measure(torch.cat([TRAIN.images[:10], both_classes(45, 30).images]))
    assert 0.1 <= measured.figures["memorised"].value <= 0.12
    assert len(alarms(metrics, measured)) == 1


def test_unseen_images_are_not_memorised(metrics: ImageSetMetrics) -> None:
    for images in (TEST.images, both_classes(100, 40).images):
        measured = metrics.measure(images)
        assert measured.figures["memorised"].value <= 0.01
        assert measured.figures["nearest_pixels"].low > 0.05
        assert alarms(metrics, measured) == []


def test_too_near_is_nearer_in_pixels_and_in_features_both() -> None:
    loose = ImageSetMetrics(ByColour(), TRAIN, TEST)  # type: ignore[arg-type]
    for pixels, features, share in ((9.0, 9.0, 1), (9.0, 0.0, 0), (0.0, 9.0, 0)):
        loose.pixel_limit, loose.feature_limit = pixels, features
        assert loose.measure(TEST.images).figures["memorised"].value == share


def test_noise_is_neither_recognised_nor_real(metrics: ImageSetMetrics) -> None:
    figures = metrics.measure(NOISE).figures
    for name in ("recognised", "density", "coverage", "precision"):
        assert figures[name].value == 0, name
    assert figures["kid"].low > 0.1
    assert figures["p_first"].high < 0.1


def test_chimeras_are_recognised_and_the_classes_themselves_are_not(metrics: ImageSetMetrics) -> None:
    figures = metrics.measure(scenes(60, 50, 0.8, 0.8)).figures
    assert figures["recognised"].value == 1
    assert figures["chimera"].low > 1.9
    for label, (first, second) in enumerate(((1, 0), (0, 1))):
        figures = metrics.measure(TEST.images[TEST.of_class(label)]).figures
        assert figures["recognised"].value == 0
        assert figures["p_first"].value == pytest.approx(first, abs=0.02)
        assert figures["p_second"].value == pytest.approx(second, abs=0.02)


def test_real_images_are_real(metrics: ImageSetMetrics) -> None:
    for images in (TRAIN.images, TEST.images):
        figures = metrics.measure(images).figures
        assert figures["kid"].low <= 0 <= figures["kid"].high
        assert figures["density"].value == pytest.approx(1, abs=0.25)
        assert figures["coverage"].value > 0.8
        assert figures["precision"].value > 0.8
        assert figures["recall"].value > 0.8


def test_one_class_alone_is_not_what_both_are(metrics: ImageSetMetrics) -> None:
    figures = metrics.measure(TEST.images[TEST.of_class(0)]).figures
    assert figures["kid"].low > 0
    assert figures["precision"].value > 0.8
    assert figures["recall"].value == pytest.approx(0.5, abs=0.1)
    assert figures["coverage"].value == pytest.approx(0.5, abs=0.1)


def test_a_collapsed_set_raises_the_alarm_of_variety(metrics: ImageSetMetrics) -> None:
    measured = metrics.measure(TEST.images[:1].repeat(64, 1, 1, 1))
    assert measured.figures["variety"].value == pytest.approx(0, abs=1e-6)
    assert measured.figures["variety_features"].value == pytest.approx(0, abs=1e-6)
    assert measured.figures["coverage"].value < 0.1
    assert measured.figures["recall"].value == 0
    (alarm,) = alarms(metrics, measured)
    assert "The pegasi lie 0.000 apart" in alarm
    assert "collapsed?" in alarm


def test_alarms_ring_at_their_limits() -> None:
    def rung(memorised: tuple[float, float, float], variety: float) -> int:
        figures = {"memorised": mean_figure(torch.zeros(2))._replace(value=memorised[0], low=memorised[1])}
        return len(_alarms({
            PEGASI: figures | {"variety": mean_figure(torch.full((2,), variety))},
            PIXEL_AVERAGE: {"variety": mean_figure(torch.full((2,), 0.2))},
        }))  # fmt: skip

    assert rung((0.02, 0.009, 0.03), 0.101) == 0  # interval includes 1 %; variety just above half of the control's
    assert rung((0.02, 0.011, 0.03), 0.101) == 1
    assert rung((0.02, 0.009, 0.03), 0.099) == 1
    assert rung((0.02, 0.011, 0.03), 0.099) == 2
    assert rung((0.02, math.nan, math.nan), 0.2) == 0


# Against independent computations.


@pytest.fixture(scope="module")
def sample() -> Tensor:
    """Half chimeras, half images of the first class, as floats."""
    return to_float(torch.cat([scenes(40, 60, 0.7, 0.6), scenes(40, 61, 0.75, 0.3)]))


@pytest.fixture(scope="module")
def measured(metrics: ImageSetMetrics, sample: Tensor) -> Measurement:
    return metrics.measure(sample, (TEST.images[:80], TEST.images[100:180]))


def test_every_figure_has_a_name_that_is_known(measured: Measurement, metrics: ImageSetMetrics, sample: Tensor) -> None:
    others = ("recognised_selecting", "winged", "linearity", "inception_fid", "inception_kid")  # by the benchmark
    known = [name for name in MEASURES if name not in others and not name.startswith("panel_")]  # people say those
    assert [*measured.figures] == known
    assert "parent_distance" not in metrics.measure(sample).figures
    for name, (value, low, high) in measured.figures.items():
        assert low <= value <= high, name


def test_probabilities_are_those_of_the_recogniser(measured: Measurement, sample: Tensor) -> None:
    wanted = 1 / (1 + torch.exp(-40 * (sample.mean((2, 3))[:, [0, 2]] - 0.6)))
    torch.testing.assert_close(measured.probabilities, wanted)
    values = {name: figure.value for name, figure in measured.figures.items()}
    assert values["p_first"] == pytest.approx(wanted[:, 0].mean().item())
    assert values["p_second"] == pytest.approx(wanted[:, 1].mean().item())
    assert values["chimera"] == pytest.approx(2 * wanted.min(1).values.mean().item())
    assert values["recognised"] == ((wanted[:, 0] > 0.5) & (wanted[:, 1] > 0.5)).float().mean()
    assert 0.1 < values["recognised"] < 0.5


def test_the_threshold_is_that_of_both_probabilities(sample: Tensor) -> None:
    strict = ImageSetMetrics(ByColour(), TRAIN, TEST, threshold=0.9)  # type: ignore[arg-type]
    found = strict.measure(sample)
    assert found.figures["recognised"].value == (found.probabilities > 0.9).all(1).float().mean()
    assert found.figures["recognised"].value < (found.probabilities > 0.5).all(1).float().mean()


def test_distances_by_brute_force(measured: Measurement, metrics: ImageSetMetrics, sample: Tensor) -> None:
    own, training, mirrored = rows(sample), rows(TRAIN.images), rows(TRAIN.images.flip(3))
    apart = torch.minimum(torch.cdist(own, training), torch.cdist(own, mirrored)) / 3072**0.5
    torch.testing.assert_close(measured.distances.double(), apart.min(1).values, rtol=1e-5, atol=1e-6)
    assert torch.equal(measured.neighbours, apart.argmin(1))
    assert measured.figures["nearest_pixels"].value == pytest.approx(apart.min(1).values.mean().item(), rel=1e-5)
    inner = features_of(sample)
    in_features = torch.cdist(inner, features_of(TRAIN.images)).min(1).values / inner.shape[1] ** 0.5
    assert measured.figures["nearest_features"].value == pytest.approx(in_features.mean().item(), rel=1e-4)
    for name, items in (("variety", own), ("variety_features", inner)):
        wanted = torch.pdist(items).mean() / items.shape[1] ** 0.5
        assert measured.figures[name].value == pytest.approx(wanted.item(), rel=1e-5)
    first, second = (
        (own - rows(parents)).square().mean(1).sqrt() for parents in (TEST.images[:80], TEST.images[100:180])
    )
    wanted = torch.minimum(first, second).mean()
    assert measured.figures["parent_distance"].value == pytest.approx(wanted.item(), rel=1e-5)


def test_the_limits_leave_out_all_but_one_test_image_in_a_hundred(metrics: ImageSetMetrics) -> None:
    testing, training, mirrored = rows(TEST.images), rows(TRAIN.images), rows(TRAIN.images.flip(3))
    apart = torch.minimum(torch.cdist(testing, training), torch.cdist(testing, mirrored)).min(1).values / 3072**0.5
    second, third = apart.sort().values[1:3].tolist()  # of 200: the quantile is at index 1.99
    assert metrics.pixel_limit == pytest.approx(second + 0.99 * (third - second), rel=1e-5)
    inner = features_of(TEST.images)
    apart = torch.cdist(inner, features_of(TRAIN.images)).min(1).values / inner.shape[1] ** 0.5
    second, third = apart.sort().values[1:3].tolist()
    assert metrics.feature_limit == pytest.approx(second + 0.99 * (third - second), rel=1e-4)


def test_realism_is_measured_against_training_images_of_both_classes_alike(
    sample: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pegasus_lightning.evaluate.image_sets.REFERENCE", 60)
    mixed = TRAIN.take(torch.randperm(300, generator=generator(0, Stream.SPLIT)))
    metrics = ImageSetMetrics(ByColour(), mixed, TEST)  # type: ignore[arg-type]
    assert len(metrics.reference) == 60
    chosen = torch.cat([mixed.images[mixed.labels == label][:30] for label in (0, 1)])
    real, fake = (features_of(images) for images in (chosen, sample))
    torch.testing.assert_close(metrics.reference.double(), real, rtol=1e-4, atol=1e-5)
    within = torch.cdist(real, real)
    figures = metrics.measure(sample).figures
    radii = within.sort(1).values[:, 5]  # index 0 is the point itself
    inside = torch.cdist(real, fake) <= radii[:, None]
    assert figures["coverage"].value == pytest.approx(inside.any(1).double().mean().item())
    assert figures["density"].value == pytest.approx(inside.sum().item() / 5 / 80)
    inside = torch.cdist(real, fake) <= within.sort(1).values[:, 3, None]
    assert figures["precision"].value == pytest.approx(inside.any(0).double().mean().item())
    fake_radii = torch.cdist(fake, fake).sort(1).values[:, 3]
    recalled = (torch.cdist(real, fake) <= fake_radii).any(1)
    assert figures["recall"].value == pytest.approx(recalled.double().mean().item())

    def kernel(one: Tensor, other: Tensor) -> Tensor:
        return (one @ other.T / one.shape[1] + 1) ** 3

    within = [(kernel(some, some).sum() - kernel(some, some).trace()) / len(some) / (len(some) - 1)
              for some in (real, fake)]  # fmt: skip
    whole = (sum(within) - 2 * kernel(real, fake).mean()).item()
    deviation = (figures["kid"].high - figures["kid"].low) / 2 / 1.96
    assert figures["kid"].value == pytest.approx(whole, abs=3 * deviation / 100**0.5)  # the mean of 100 subsets


def test_bytes_and_floats_are_measured_alike_in_batches_or_at_once(metrics: ImageSetMetrics) -> None:
    images = torch.cat([TEST.images, scenes(BATCH, 70, 0.6, 0.6)])
    one, other = metrics.measure(images), metrics.measure(to_float(images))
    assert one.figures == other.figures
    torch.testing.assert_close(one.probabilities, ByColour().probabilities(to_float(images)))
    assert metrics.measure(images).figures == one.figures


def test_intervals_know_of_shared_photographs(metrics: ImageSetMetrics, sample: Tensor) -> None:
    """Each of 80 images twice: as many pictures as photographs, and no more to learn from them."""
    twice, both = sample.repeat(2, 1, 1, 1), torch.arange(80).repeat(2)
    apart = metrics.measure(sample).figures
    blind, knowing = metrics.measure(twice).figures, metrics.measure(twice, None, Parentage(both, both)).figures
    for name in ("recognised", "chimera", "p_first", "density", "precision", "nearest_pixels", "variety", "kid"):
        assert knowing[name].value == blind[name].value
        assert knowing[name].half == pytest.approx(apart[name].half, rel=0.1), name
    for name in ("chimera", "p_first", "nearest_pixels"):
        assert blind[name].half == pytest.approx(apart[name].half / 2**0.5, rel=0.05), name


def test_the_kids_interval_holds_and_is_of_the_order_of_its_chance(metrics: ImageSetMetrics) -> None:
    """For new samples of one distribution, half as many as the reference, most intervals contain the overall mean."""
    found = [metrics.measure(scenes(150, 100 + key, 0.7, 0.6)).figures["kid"] for key in range(12)]
    mean = sum(figure.value for figure in found) / 12
    assert sum(figure.low <= mean <= figure.high for figure in found) >= 11
    deviation = torch.tensor([figure.value for figure in found]).std().item()
    halves = torch.tensor([(figure.high - figure.low) / 2 for figure in found])
    assert 0.8 < halves.mean().item() / (1.96 * deviation) < 6
