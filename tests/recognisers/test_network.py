"""Tests of the recogniser's logits, features and freezing, and of the figures about its outputs, by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pegasus_lightning.recognisers.network import (
    ARCHITECTURES,
    REPORTS,
    SELECTS,
    Recogniser,
    balanced_accuracy,
    calibration_error,
    predict,
)


@pytest.fixture(params=sorted(ARCHITECTURES))
def model(request: pytest.FixtureRequest, images: Tensor) -> Recogniser:
    model = Recogniser(request.param, ("horse", "bird"), kinds=4)
    with torch.no_grad():
        model.fit_input(images)
    return model


def test_the_one_that_selects_is_of_another_family_than_the_one_that_reports() -> None:
    one, other = (Recogniser(name, ("a", "b")) for name in (SELECTS, REPORTS))
    kinds = [{type(module).__name__ for module in model.body.modules()} for model in (one, other)]
    assert "_Residual" in kinds[1] - kinds[0]
    assert "_Whitening" in kinds[0] - kinds[1]


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_a_forward_is_cheap(architecture: str) -> None:
    """At most 50 million multiplications an image and as many for its mirror image, counted layer by layer."""
    model = Recogniser(architecture, ("horse", "bird"))
    counted = []

    def count(layer: torch.nn.Conv2d, _: object, maps: Tensor) -> None:
        counted.append(layer.weight.numel() * maps.shape[2] * maps.shape[3])

    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(count)
    model.freeze()(torch.rand(1, 3, 32, 32))
    assert 10e6 < sum(counted) / 2 < 50e6


def test_logits_are_the_head_of_the_features_by_temperature_and_offset(model: Recogniser, images: Tensor) -> None:
    model.temperature.copy_(torch.tensor([2.0, 0.5]))
    model.offset.copy_(torch.tensor([0.3, -0.7]))
    model.freeze()
    features = model.features(images)
    assert features.shape == (4, model.num_features)
    raw = features @ model.head.weight.T + model.head.bias
    wanted = torch.stack([raw[:, 0] / 2 + 0.3, raw[:, 1] / 0.5 - 0.7], 1)
    torch.testing.assert_close(model(images), wanted)
    torch.testing.assert_close(model.probabilities(images), 1 / (1 + (-wanted).exp()))
    assert not torch.allclose(features[0], features[1])


def test_an_image_and_its_mirror_image_are_one_to_it(model: Recogniser, images: Tensor) -> None:
    model.freeze()
    normalised = (images - model.mean) / model.deviation
    one, other = model.body(normalised), model.body(normalised.flip(3))
    assert not torch.allclose(one, other, rtol=1e-2, atol=1e-4)
    torch.testing.assert_close(model.features(images), (one + other) / 2)
    torch.testing.assert_close(model(images.flip(3)), model(images), rtol=1e-3, atol=1e-4)


def test_it_learns_from_an_image_as_it_is(model: Recogniser, images: Tensor) -> None:
    model.train()
    seen = []
    model.body.register_forward_hook(lambda _, given, __: seen.append(given[0]))
    model.features(images)
    assert len(seen) == 1
    torch.testing.assert_close(seen[0], (images - model.mean) / model.deviation)


def test_the_input_is_normalised_by_what_it_was_fitted_to(model: Recogniser, images: Tensor) -> None:
    pixels = images.permute(1, 0, 2, 3).flatten(1)
    torch.testing.assert_close(model.mean.flatten(), pixels.mean(1))
    torch.testing.assert_close(model.deviation.flatten(), pixels.std(1), rtol=1e-2, atol=0)


def test_brightness_and_contrast_that_all_images_share_make_no_difference(images: Tensor) -> None:
    seen = []
    for shown in (images, images * 0.5 + 0.4):
        model = Recogniser("residual", ("horse", "bird"))
        model.fit_input(shown)
        seen.append(model.freeze().features(shown))
    torch.testing.assert_close(*seen, rtol=1e-3, atol=1e-3)


def test_whitened_patches_have_unit_covariance(images: Tensor) -> None:
    model = Recogniser("plain", ("horse", "bird"))
    model.fit_input(images)
    normalised = (images - model.mean) / model.deviation
    responses = model.body[0](normalised).permute(1, 0, 2, 3).flatten(1)  # (24, places)
    first, negatives = responses[:12], responses[12:]
    torch.testing.assert_close(negatives, -first, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(first @ first.T / first.shape[1], torch.eye(12), rtol=0, atol=5e-3)


def test_it_stays_in_eval_mode_once_frozen(model: Recogniser, images: Tensor) -> None:
    model.train()
    assert model.training  # not before
    model.freeze()
    logits = model(images)
    assert model.train() is model
    assert not any(module.training for module in model.modules())
    assert torch.equal(model(images), logits)  # batch statistics would not even depend on the image alone
    torch.testing.assert_close(model(images[:1]), logits[:1], rtol=1e-3, atol=1e-3)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_its_gradient_in_the_images_is_the_slope_of_its_logits(model: Recogniser, images: Tensor) -> None:
    model.freeze().double()
    start = images[:1].double().requires_grad_(True)
    (gradient,) = torch.autograd.grad(model(start)[0, 1], start)
    direction = gradient.sign()
    h = 1e-7
    with torch.no_grad():
        slope = (model(start + h * direction)[0, 1] - model(start - h * direction)[0, 1]) / (2 * h)
    assert slope.item() > 0
    assert slope.item() == pytest.approx(gradient.abs().sum().item(), rel=1e-3)


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_weights_are_a_function_of_the_seed_and_leave_the_global_generator_alone(architecture: str) -> None:
    torch.manual_seed(1)
    wanted = torch.rand(1)
    torch.manual_seed(1)
    one, same, other = (Recogniser(architecture, ("a", "b"), seed=seed) for seed in (3, 3, 4))
    assert torch.equal(torch.rand(1), wanted)
    assert torch.equal(one.head.weight, same.head.weight)
    assert not torch.equal(one.head.weight, other.head.weight)


def test_predicting_in_batches_is_predicting_at_once(model: Recogniser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pegasus_lightning.recognisers.network.BATCH", 8)
    pixels = torch.randint(0, 256, (20, 3, 32, 32), generator=torch.Generator().manual_seed(0)).byte()
    model.freeze()
    outputs = predict(model.probabilities, pixels)
    assert outputs.shape == (20, 2)
    assert not outputs.requires_grad
    torch.testing.assert_close(outputs, model.probabilities(pixels / 255), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(outputs, predict(model.probabilities, pixels / 255), rtol=1e-3, atol=1e-4)


TARGETS = torch.tensor([[1, 1], [1, 0], [0, 0], [0, 0], [0, 0], [0, 0]]).float()


def test_balanced_accuracy_by_hand() -> None:
    first = [0.9, 0.4, 0.6, 0.1, 0.1, 0.1]  # one of two found, three of four left alone: (1/2 + 3/4) / 2
    second = [0.6, 0.5, 0.5, 0.5, 0.7, 0.2]  # one of one, four of five (one half is not above one half)
    probabilities = torch.tensor([first, second]).T
    assert balanced_accuracy(probabilities, TARGETS).tolist() == pytest.approx([0.625, 0.9])
    assert balanced_accuracy(probabilities, TARGETS, 0.3).tolist() == pytest.approx([(1 + 3 / 4) / 2, (1 + 1 / 5) / 2])
    assert balanced_accuracy(torch.ones(6, 2), TARGETS).tolist() == [0.5, 0.5]


def test_calibration_error_by_hand() -> None:
    # Images with the class weigh 1/2 together, those without 1/2: first class 1/4 each, and 1/8 each.
    first = [0.9, 0.5, 0.5, 0.5, 0.1, 0.1]
    wanted_first = abs(0.25 * (0.9 - 1)) + abs(0.25 * (0.5 - 1) + 0.25 * 0.5) + 0.25 * 0.1
    second = [1.0] * 6  # all in the last bin: (1/2) 0 + (1/2) 1
    probabilities = torch.tensor([first, second]).T
    assert calibration_error(probabilities, TARGETS).tolist() == pytest.approx([wanted_first, 0.5])


def test_answers_drawn_as_likely_as_they_say_are_calibrated() -> None:
    source = torch.Generator().manual_seed(0)
    said = torch.rand(200_000, 2, generator=source)
    targets = (torch.rand(200_000, 2, generator=source) < said).float()
    assert calibration_error(said, targets).max() < 0.01
    surer = torch.sigmoid(3 * torch.logit(said, eps=1e-6))
    assert calibration_error(surer, targets).min() > 0.1
    assert math.isclose(F.binary_cross_entropy(said, targets).item(), 0.5, abs_tol=0.01)  # 1/2 nat: the draw is right
