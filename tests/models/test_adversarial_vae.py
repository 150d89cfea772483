"""The source document's baseline: loss terms and the gradients of both players, computed independently."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence
from torch.nn import functional

from pegasus_lightning.models.losses import blind_cross_entropy
from pegasus_lightning.utils.randomness import Stream

WEIGHTS = {"reconstruction": 0.01, "kl": 3.0, "adversarial": 5.0, "critic_real": 7.0, "critic_fake": 11.0}


def by_hand(model, images):
    """Return the weighted terms of both players, from probabilities and logarithms instead of logits."""
    mean, log_variance = model.encoder(images)
    deviation = (log_variance / 2).exp()
    pictures = torch.sigmoid(model.decoder(mean + deviation * model.draw(Stream.NOISE, 4, 6)))
    pixels = functional.binary_cross_entropy(pictures, images, reduction="none").sum(dim=(1, 2, 3)).mean()
    prior = Normal(torch.zeros(4, 6), torch.ones(4, 6))
    fake, real = torch.sigmoid(model.critic(pictures)), torch.sigmoid(model.critic(images))
    return {
        "reconstruction": 0.01 * pixels,
        "kl": 3 * kl_divergence(Normal(mean, deviation), prior).sum(1).mean(),
        "adversarial": -5 * fake.log().mean(),
        "real": -7 * real.log().mean(),
        "fake": -11 * (1 - fake).log().mean(),
    }


def test_terms_by_hand(tiny, images) -> None:
    model = tiny("adversarial_vae", {"weights": WEIGHTS})
    wanted = by_hand(model, images)
    step = model.forward_batch(images)
    terms = model.autoencoder_losses(step) | model.critic_losses(step)
    assert terms.keys() == wanted.keys()
    for name, term in terms.items():
        assert term.weighted.item() == pytest.approx(wanted[name].item(), rel=1e-4)


def test_the_critic_is_shown_detached_reconstructions(tiny, images) -> None:
    model = tiny("adversarial_vae")
    step = model.forward_batch(images)
    for term in model.critic_losses(step).values():
        gradients = torch.autograd.grad(term.value, model.autoencoder_parameters, allow_unused=True, retain_graph=True)
        assert gradients == (None,) * len(gradients)


def test_both_players_gradients_by_hand(tiny, fit, optimizer_steps, assert_gradients, images) -> None:
    model = tiny("adversarial_vae", {"weights": WEIGHTS})
    wanted = by_hand(model, images)
    twin = tiny("adversarial_vae", {"weights": WEIGHTS})
    steps = optimizer_steps(twin)
    fit(twin, [images])
    autoencoder, critic = steps
    assert_gradients(
        autoencoder, "encoder", model.encoder, wanted["reconstruction"] + wanted["kl"] + wanted["adversarial"]
    )
    assert_gradients(autoencoder, "decoder", model.decoder, wanted["reconstruction"] + wanted["adversarial"])
    # Both players share one forward pass, so the reconstructions are those before the autoencoder's step.
    assert_gradients(critic, "critic", model.critic, wanted["real"] + wanted["fake"])


def test_the_decoder_learns_to_please_the_critic(tiny, fit, images) -> None:
    only = {"reconstruction": 0, "kl": 0}
    model = tiny("adversarial_vae", {"weights": only, "critic_optimizer": {"lr": 0}})
    opinions = fit(model, [images] * 15, lambda m: m.latest["critic/fake"])
    assert opinions[-1] > opinions[0] + 0.01


def test_the_blind_loss_by_hand(tiny) -> None:
    assert tiny("adversarial_vae").blind_critic_loss() == pytest.approx(2 * math.log(2))
    # Three quarters of the weight on real: p = 3/4.
    model = tiny("adversarial_vae", {"weights": {"critic_real": 6.0, "critic_fake": 2.0}})
    assert model.blind_critic_loss() == pytest.approx(6 * math.log(4 / 3) + 2 * math.log(4))
    assert blind_cross_entropy(3.0, 0.0) == blind_cross_entropy(0.0, 3.0) == blind_cross_entropy(0.0, 0.0) == 0
