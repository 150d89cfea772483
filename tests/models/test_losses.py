"""Each loss against results by hand, independent computations and numerical gradients."""

import math

import pytest
import torch
from torch.distributions import Bernoulli, Normal, kl_divergence

from pegasus_lightning.models import losses


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def cross_entropy(logit: float, target: float) -> float:
    p = sigmoid(logit)
    return -target * math.log(p) - (1 - target) * math.log(1 - p)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_binary_cross_entropy_sums_over_the_image_and_averages_over_the_batch() -> None:
    logits, targets = [[0.5, -1.0], [2.0, 0.0]], [[1.0, 0.25], [0.0, 0.5]]
    first = cross_entropy(0.5, 1.0) + cross_entropy(-1.0, 0.25)
    second = cross_entropy(2.0, 0.0) + math.log(2)
    value = losses.binary_cross_entropy(torch.tensor(logits), torch.tensor(targets))
    assert value.item() == pytest.approx((first + second) / 2, rel=1e-6)


def test_squared_error_by_hand() -> None:
    predictions, targets = torch.tensor([[1.0, 2.0], [0.0, -1.0]]), torch.tensor([[0.0, 4.0], [3.0, -1.0]])
    assert losses.squared_error(predictions, targets).item() == pytest.approx((1 + 4 + 9 + 0) / 2)


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_label_cross_entropy_by_hand(label: float) -> None:
    wanted = (cross_entropy(0.3, label) + cross_entropy(-2.0, label)) / 2
    assert losses.label_cross_entropy(torch.tensor([0.3, -2.0]), label).item() == pytest.approx(wanted, rel=1e-6)
    # Several logits per image are summed.
    wanted = cross_entropy(0.3, label) + cross_entropy(-2.0, label)
    assert losses.label_cross_entropy(torch.tensor([[0.3, -2.0]]), label).item() == pytest.approx(wanted, rel=1e-6)


def test_label_one_says_real() -> None:
    sure_of_real = torch.tensor([9.0])
    assert losses.label_cross_entropy(sure_of_real, 1.0) < 1e-3
    assert losses.label_cross_entropy(sure_of_real, 0.0).item() == pytest.approx(9, rel=1e-3)


def test_kl_by_hand_and_by_torch_distributions() -> None:
    by_hand = 0.5 * (4 + math.e - 1 - 1)  # mean 2, log-variance 1
    assert losses.kl_per_image(torch.tensor([[2.0]]), torch.tensor([[1.0]])).tolist() == pytest.approx([by_hand])
    mean, log_variance = random(5, 3), random(5, 3, seed=1)
    wanted = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(torch.zeros(5, 3), torch.ones(5, 3))).sum(1)
    torch.testing.assert_close(losses.kl_per_image(mean, log_variance), wanted)
    torch.testing.assert_close(losses.kl_divergence(mean, log_variance), wanted.mean())
    assert losses.kl_divergence(torch.zeros(2, 3), torch.zeros(2, 3)) == 0


def test_feature_distance_by_hand() -> None:
    real, reconstructed = torch.tensor([[[1.0], [2.0]], [[0.0], [0.0]]]), torch.tensor([[[0.0], [5.0]], [[2.0], [0.0]]])
    assert losses.feature_distance(real, reconstructed).item() == pytest.approx(0.5 * ((1 + 9) + 4) / 2)


def test_mean_square_squares_before_it_averages() -> None:
    assert losses.mean_square(torch.tensor([3.0, -3.0, 1.0])).item() == pytest.approx(19 / 3)  # mean(C)^2 is 1 / 9


def test_coefficient_error_by_hand() -> None:
    value = losses.coefficient_error(torch.tensor([0.5, -0.1]), torch.tensor([0.2, 0.3]))
    assert value.item() == pytest.approx((0.09 + 0.16) / 2)
    # alpha as a column must not broadcast to a matrix of differences.
    assert losses.coefficient_error(torch.tensor([0.5, -0.1]), torch.tensor([[0.2], [0.3]])) == value


def test_excess_bce_is_the_divergence_of_bernoullis() -> None:
    images, logits = torch.rand(3, 3, 4, 4, dtype=torch.float64), random(3, 3, 4, 4)
    wanted = kl_divergence(Bernoulli(images), Bernoulli(logits=logits)).flatten(1).sum(1)
    torch.testing.assert_close(losses.excess_bce(logits, images), wanted)


def test_excess_bce_is_zero_at_the_optimum_and_finite_at_black_and_white() -> None:
    images = torch.rand(2, 3, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(
        losses.excess_bce(torch.logit(images), images), torch.zeros(2, dtype=torch.float64), atol=1e-9, rtol=0
    )
    extremes = torch.tensor([0.0, 1.0]).reshape(1, 1, 1, 2)
    zero_logits = torch.zeros(1, 1, 1, 2)
    assert losses.excess_bce(zero_logits, extremes).item() == pytest.approx(2 * math.log(2))
    assert losses.excess_bce(torch.tensor([-90.0, 90.0]).reshape(1, 1, 1, 2), extremes).item() == pytest.approx(0)


def test_psnr_by_hand() -> None:
    targets = torch.zeros(2, 3, 4, 4)
    predictions = torch.stack([torch.full((3, 4, 4), 0.1), torch.full((3, 4, 4), 0.5)])
    assert losses.psnr(predictions, targets).tolist() == pytest.approx([20.0, 20 * math.log10(2)], rel=1e-5)
    assert losses.psnr(targets, targets).tolist() == pytest.approx([100, 100])  # capped, not infinite


def test_active_dimensions_by_hand() -> None:
    # Unbiased variances: 0, 0.02, 0.005, 2.
    means = torch.tensor([[5.0, 0.0, 0.0, 0.0], [5.0, 0.2, 0.1, 2.0]])
    assert losses.active_dimensions(means) == 2
    assert losses.active_dimensions(means, threshold=0.001) == 3
    assert losses.active_dimensions(means, threshold=1.0) == 1


def test_hinge_losses_by_hand() -> None:
    outputs = torch.tensor([2.0, 1.0, 0.25, -3.0])
    assert losses.hinge_real(outputs).item() == pytest.approx((0 + 0 + 0.75 + 4) / 4)
    assert losses.hinge_fake(outputs).item() == pytest.approx((3 + 2 + 1.25 + 0) / 4)


@pytest.mark.parametrize("kind", ["bce", "hinge"])
def test_what_the_critic_and_the_autoencoder_minimise_by_hand(kind: str) -> None:
    outputs = torch.tensor([2.0, -0.5])
    if kind == "bce":
        real = (cross_entropy(2.0, 1.0) + cross_entropy(-0.5, 1.0)) / 2
        fake = (cross_entropy(2.0, 0.0) + cross_entropy(-0.5, 0.0)) / 2
        passing = real  # non-saturating: the label is swapped, not the sign
    else:
        real, fake, passing = 1.5 / 2, (3 + 0.5) / 2, -1.5 / 2
    assert losses.critic_loss_real(outputs, kind).item() == pytest.approx(real, rel=1e-6)
    assert losses.critic_loss_fake(outputs, kind).item() == pytest.approx(fake, rel=1e-6)
    assert losses.generator_loss(outputs, kind).item() == pytest.approx(passing, rel=1e-6)


def test_relativistic_losses_compare_the_images_of_a_pair_by_hand() -> None:
    real, fake = torch.tensor([2.0, -1.0]), torch.tensor([0.5, 1.0])
    # softplus(x) = ln(1 + e^x) of -1.5 and 2 for the critic, of 1.5 and -2 for the autoencoder
    critic, passing = (0.2014133 + 2.1269280) / 2, (1.7014133 + 0.1269280) / 2
    assert losses.critic_loss_real(real, "relativistic", fake).item() == pytest.approx(critic, rel=1e-6)
    assert losses.critic_loss_fake(fake, "relativistic", real).item() == pytest.approx(critic, rel=1e-6)
    assert losses.generator_loss(fake, "relativistic", real).item() == pytest.approx(passing, rel=1e-6)


@pytest.mark.parametrize("kind", ["bce", "hinge"])
def test_the_two_players_pull_a_fakes_output_in_opposite_ways(kind: str) -> None:
    outputs = torch.tensor([0.3, -0.2], requires_grad=True)
    for loss, sign in ((losses.critic_loss_real, -1), (losses.critic_loss_fake, 1), (losses.generator_loss, -1)):
        (slope,) = torch.autograd.grad(loss(outputs, kind), outputs)
        assert (slope * sign > 0.1).all()


def test_hinge_losses_pass_no_gradient_beyond_the_margin() -> None:
    outputs = torch.tensor([1.5, -1.5, 0.0], requires_grad=True)
    real, fake = (torch.autograd.grad(loss(outputs), outputs)[0] for loss in (losses.hinge_real, losses.hinge_fake))
    assert real.tolist() == pytest.approx([0, -1 / 3, -1 / 3])
    assert fake.tolist() == pytest.approx([1 / 3, 0, 1 / 3])


def test_the_gradient_penalty_of_a_linear_critic_is_half_its_squared_length() -> None:
    images = random(5, 3, 2, 2).requires_grad_()
    weight = random(3, 2, 2, seed=1).requires_grad_()
    penalty = losses.gradient_penalty((images * weight).sum((1, 2, 3)) + 7, images)
    assert penalty.item() == pytest.approx(0.5 * sum(w * w for w in weight.flatten().tolist()))
    (slope,) = torch.autograd.grad(penalty, weight)
    torch.testing.assert_close(slope, weight)


def test_the_gradient_penalty_is_a_mean_over_images_and_learns_through_the_slope() -> None:
    # C(x) = w sum(x^3) / 3 has slope w x^2 in each pixel: R1 = 1/2 mean_n w^2 sum x^4, with derivative 2 R1 / w in w.
    images = torch.tensor([[1.0, 2.0], [0.0, 3.0]]).view(2, 1, 1, 2).requires_grad_()
    weight = torch.tensor(0.5, requires_grad=True)
    penalty = losses.gradient_penalty(weight * images.pow(3).sum((1, 2, 3)) / 3, images)
    assert penalty.item() == pytest.approx(0.5 * 0.25 * (1 + 16 + 81) / 2)
    assert torch.autograd.grad(penalty, weight)[0].item() == pytest.approx(0.5 * (1 + 16 + 81) / 2)


PAIRS = {  # name: (function of one differentiable tensor, that tensor)
    "binary_cross_entropy": (lambda x: losses.binary_cross_entropy(x, torch.full_like(x, 0.3)), (3, 2)),
    "squared_error": (lambda x: losses.squared_error(x, torch.full_like(x, 0.3)), (3, 2)),
    "label_cross_entropy": (lambda x: losses.label_cross_entropy(x, 1.0), (3,)),
    "kl_mean": (lambda x: losses.kl_divergence(x, 0.5 * torch.ones_like(x)), (3, 2)),
    "kl_log_variance": (lambda x: losses.kl_divergence(torch.ones_like(x), x), (3, 2)),
    "feature_distance_real": (lambda x: losses.feature_distance(x, torch.ones_like(x)), (3, 2)),
    "feature_distance_reconstructed": (lambda x: losses.feature_distance(torch.ones_like(x), x), (3, 2)),
    "mean_square": (losses.mean_square, (4,)),
    "coefficient_error": (lambda x: losses.coefficient_error(x, torch.full_like(x, 0.2)), (4,)),
    "excess_bce": (lambda x: losses.excess_bce(x, torch.full_like(x, 0.2)), (2, 3, 2, 2)),
    "psnr": (lambda x: losses.psnr(x, torch.zeros_like(x)), (2, 3, 2, 2)),
    "hinge_real": (losses.hinge_real, (4,)),
    "hinge_fake": (losses.hinge_fake, (4,)),
    "generator_loss": (lambda x: losses.generator_loss(x, "hinge"), (4,)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    function, shape = PAIRS[name]
    assert torch.autograd.gradcheck(function, (random(*shape, seed=3).requires_grad_(),))


@pytest.mark.parametrize("name", [name for name in PAIRS if name not in ("excess_bce", "psnr", "at_least")])
def test_a_batch_twice_over_has_the_same_loss(name: str) -> None:
    function, shape = PAIRS[name]
    batch = random(*shape, seed=4)
    torch.testing.assert_close(function(torch.cat([batch, batch])), function(batch))


@pytest.mark.parametrize(
    "name", ["binary_cross_entropy", "squared_error", "kl_mean", "feature_distance_real", "label_cross_entropy"]
)
def test_elements_are_summed_not_averaged(name: str) -> None:
    function, _ = PAIRS[name]
    one = random(3, 2, seed=5)
    twice_the_elements = torch.cat([one, one], dim=1)
    torch.testing.assert_close(function(twice_the_elements), 2 * function(one))


@pytest.mark.parametrize("name", PAIRS)
def test_half_precision_is_computed_in_float32(name: str) -> None:
    function, shape = PAIRS[name]
    low = random(*shape, seed=6).bfloat16()
    value = function(low)
    assert value.dtype == torch.float32
    # bf16 constants (0.2, 0.3) round by up to 0.4 per cent; a loss summed in bf16 would be off by more.
    torch.testing.assert_close(value, function(low.float()), rtol=5e-3, atol=5e-3)
