"""The reparameterised posterior, and mixing."""

import math

import pytest
import torch

from pegasus_lightning.latent import Posterior, lerp


def test_sample_is_mean_plus_deviation_times_noise() -> None:
    posterior = Posterior(torch.tensor([[1.0, -2.0]]), torch.tensor([[0.0, 2 * math.log(3)]]))
    assert posterior.sample_with(torch.tensor([[0.5, 2.0]])).tolist() == [pytest.approx([1.5, 4.0])]


def test_gradients_of_the_reparameterisation() -> None:
    mean = torch.tensor([[1.0, -2.0]], requires_grad=True)
    log_variance = torch.tensor([[0.0, 2 * math.log(3)]], requires_grad=True)
    Posterior(mean, log_variance).sample_with(torch.tensor([[0.5, 2.0]])).sum().backward()
    assert mean.grad is not None
    assert log_variance.grad is not None
    assert mean.grad.tolist() == [[1, 1]]
    assert log_variance.grad.tolist() == [pytest.approx([0.5 * 1 * 0.5, 0.5 * 3 * 2.0])]


def test_sample_has_the_posteriors_moments_and_follows_its_generator() -> None:
    posterior = Posterior(torch.full((20000, 1), 3.0), torch.full((20000, 1), math.log(4)))
    codes = posterior.sample(torch.Generator().manual_seed(5))
    assert codes.mean().item() == pytest.approx(3, abs=5 * 2 / 20000**0.5)
    assert codes.var().item() == pytest.approx(4, rel=0.05)
    assert torch.equal(codes, posterior.sample(torch.Generator().manual_seed(5)))
    assert not torch.equal(codes, posterior.sample(torch.Generator().manual_seed(6)))


def test_a_deterministic_posterior_is_its_mean() -> None:
    posterior = Posterior(torch.tensor([[1.0, 2.0]]), torch.zeros(1, 2), deterministic=True)
    assert torch.equal(posterior.sample(), posterior.mean)
    assert torch.equal(posterior.sample_with(torch.ones(1, 2)), posterior.mean)


def test_lerp_by_hand() -> None:
    start, end = torch.tensor([[0.0, 10.0], [1.0, 1.0]]), torch.tensor([[4.0, 20.0], [3.0, 5.0]])
    assert lerp(start, end, 0.25).tolist() == [[1, 12.5], [1.5, 2]]
    assert torch.equal(lerp(start, end, 0.0), start)
    assert torch.equal(lerp(start, end, 1.0), end)
    assert lerp(start, end, torch.tensor([[0.0], [0.5]])).tolist() == [[0, 10], [2, 3]]
