"""The plain VAE: its two terms and their gradient, computed independently."""

import pytest
import torch
from torch.distributions import Normal, kl_divergence
from torch.nn import functional

from pegasus_lightning.utils.randomness import Stream


def by_hand(model, images):
    """Return (reconstruction, kl) of one batch, in nats per image."""
    mean, log_variance = model.encoder(images)
    deviation = (log_variance / 2).exp()
    codes = mean + deviation * model.draw(Stream.NOISE, 4, 6)
    pictures = torch.sigmoid(model.decoder(codes))
    reconstruction = functional.binary_cross_entropy(pictures, images, reduction="none").sum(dim=(1, 2, 3)).mean()
    prior = Normal(torch.zeros(4, 6), torch.ones(4, 6))
    return reconstruction, kl_divergence(Normal(mean, deviation), prior).sum(1).mean()


def test_terms_by_hand(tiny, images) -> None:
    model = tiny("vae", {"weights": {"reconstruction": 2.0, "kl": 3.0}})
    reconstruction, kl = by_hand(model, images)
    terms = model.autoencoder_losses(model.forward_batch(images))
    assert terms.keys() == {"reconstruction", "kl"}
    assert terms["reconstruction"].weighted.item() == pytest.approx(2 * reconstruction.item(), rel=1e-5)
    assert terms["kl"].weighted.item() == pytest.approx(3 * kl.item(), rel=1e-4)


def test_gradients_by_hand(tiny, fit, optimizer_steps, assert_gradients, images) -> None:
    model = tiny("vae", {"weights": {"kl": 3.0}})
    reconstruction, kl = by_hand(model, images)
    twin = tiny("vae", {"weights": {"kl": 3.0}})
    steps = optimizer_steps(twin)
    fit(twin, [images])
    (step,) = steps
    assert_gradients(step, "encoder", model.encoder, reconstruction + 3 * kl)
    assert_gradients(step, "decoder", model.decoder, reconstruction)


def test_there_is_no_critic(tiny) -> None:
    model = tiny("vae")
    assert model.critic is None
    assert len(model.configure_optimizers()) == 1
