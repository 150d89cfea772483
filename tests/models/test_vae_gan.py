"""VAE/GAN: three losses with three routes; each gradient by autograd on independently computed terms."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence
from torch.nn import functional

from pegasus_lightning.utils.randomness import Stream

WEIGHTS = {
    "kl": 3.0,
    "feature": 0.7,
    "decoder_feature": 0.2,
    "adversarial_reconstruction": 5.0,
    "adversarial_noise": 7.0,
    "critic_real": 2.0,
    "critic_reconstruction": 11.0,
    "critic_noise": 13.0,
}


def by_hand(model, images):
    """Return unweighted terms of one batch (Larsen et al., algorithm 1) and the critic's mean logit on its fakes."""
    mean, log_variance = model.encoder(images)
    deviation = (log_variance / 2).exp()
    reconstructions = torch.sigmoid(model.decoder(mean + deviation * model.draw(Stream.NOISE, 4, 6)))
    samples = torch.sigmoid(model.decoder(model.draw(Stream.PRIOR, 4, 6)))
    prior = Normal(torch.zeros(4, 6), torch.ones(4, 6))
    logits = {
        "real": model.critic(images),
        "reconstruction": model.critic(reconstructions),
        "noise": model.critic(samples),
    }
    difference = model.critic.features(images) - model.critic.features(reconstructions)
    terms = {
        "kl": kl_divergence(Normal(mean, deviation), prior).sum(1).mean(),
        "feature": difference.square().flatten(1).sum(1).mean() / 2,
    }
    for name, logit in logits.items():
        terms[f"{name} is real"] = functional.softplus(-logit).mean()
        terms[f"{name} is fake"] = functional.softplus(logit).mean()
    return terms, (logits["reconstruction"].mean() + logits["noise"].mean()) / 2


def first_step(tiny, fit, optimizer_steps, images, **weights):
    model = tiny("vae_gan", {"weights": WEIGHTS | weights})
    steps = optimizer_steps(model)
    fit(model, [images])
    return steps


def part(step, name):
    return {key: value for key, value in step.gradients.items() if key.startswith(name)}


def assert_equal(one, other) -> None:
    assert one.keys() == other.keys()
    for key in one:
        torch.testing.assert_close(one[key], other[key], rtol=1e-5, atol=1e-7)


def test_three_routes_by_hand(tiny, fit, optimizer_steps, assert_gradients, images) -> None:
    model = tiny("vae_gan", {"weights": WEIGHTS})
    terms, _ = by_hand(model, images)
    autoencoder, critic = first_step(tiny, fit, optimizer_steps, images)
    assert_gradients(autoencoder, "encoder", model.encoder, 3 * terms["kl"] + 0.7 * terms["feature"])
    decoder = 0.2 * terms["feature"] + 5 * terms["reconstruction is real"] + 7 * terms["noise is real"]
    assert_gradients(autoencoder, "decoder", model.decoder, decoder)
    fakes = 11 * terms["reconstruction is fake"] + 13 * terms["noise is fake"]
    assert_gradients(critic, "critic", model.critic, 2 * terms["real is real"] + fakes)


def test_the_optional_pixel_term_reaches_encoder_and_decoder(
    tiny, fit, optimizer_steps, assert_gradients, images
) -> None:
    model = tiny("vae_gan", {"weights": WEIGHTS})
    step = model.forward_batch(images)
    pixels = 0.01 * functional.binary_cross_entropy(torch.sigmoid(step.logits), images, reduction="sum") / 4
    autoencoder, _ = first_step(tiny, fit, optimizer_steps, images, reconstruction=0.01)
    # With equal weights and draws the gradient of the sum is the sum of the gradients.
    plain, _ = first_step(tiny, fit, optimizer_steps, images)
    for name, network in (("encoder", model.encoder), ("decoder", model.decoder)):
        named = dict(network.named_parameters())
        extra = torch.autograd.grad(pixels, list(named.values()), retain_graph=True)
        for key, gradient in zip(named, extra, strict=True):
            full = f"{name}.{key}"
            torch.testing.assert_close(
                autoencoder.gradients[full], plain.gradients[full] + gradient, rtol=1e-3, atol=1e-4
            )


def test_no_gan_gradient_reaches_the_encoder(tiny, fit, optimizer_steps, images) -> None:
    one, _ = first_step(tiny, fit, optimizer_steps, images)
    other, _ = first_step(tiny, fit, optimizer_steps, images, adversarial_reconstruction=500.0, adversarial_noise=700.0)
    assert_equal(part(one, "encoder"), part(other, "encoder"))
    assert not torch.allclose(*(part(s, "decoder")["decoder.convolutions.1.weight"] for s in (one, other)))


def test_no_kl_gradient_reaches_the_decoder(tiny, fit, optimizer_steps, images) -> None:
    one, _ = first_step(tiny, fit, optimizer_steps, images)
    other, _ = first_step(tiny, fit, optimizer_steps, images, kl=300.0, feature=70.0)
    assert_equal(part(one, "decoder"), part(other, "decoder"))
    assert not torch.allclose(*(part(s, "encoder")["encoder.mean.0.weight"] for s in (one, other)))


def test_no_feature_gradient_reaches_the_critic(tiny, fit, optimizer_steps, images) -> None:
    _, one = first_step(tiny, fit, optimizer_steps, images)
    _, other = first_step(tiny, fit, optimizer_steps, images, feature=70.0, decoder_feature=20.0)
    assert_equal(part(one, "critic"), part(other, "critic"))


def test_the_decoders_adversarial_gradient_points_towards_real(tiny, fit, optimizer_steps, images) -> None:
    model = tiny("vae_gan")
    _, before = by_hand(model, images)
    autoencoder, _ = first_step(tiny, fit, optimizer_steps, images, decoder_feature=0.0)
    with torch.no_grad():
        for name, parameter in model.decoder.named_parameters():
            parameter -= 1e-3 * autoencoder.gradients[f"decoder.{name}"]
    _, after = by_hand(model, images)
    assert after > before


def test_the_feature_term_compares_the_image_with_its_reconstruction(tiny, images) -> None:
    model = tiny("vae_gan", {"weights": WEIGHTS})
    terms, _ = by_hand(model, images)
    found = model.autoencoder_losses(model.forward_batch(images))["feature"]
    assert terms["feature"] > 1
    assert found.value.item() == pytest.approx(terms["feature"].item(), rel=1e-4)


def test_the_critics_terms_call_both_fakes_fake(tiny, images) -> None:
    model = tiny("vae_gan", {"weights": WEIGHTS})
    wanted, _ = by_hand(model, images)
    step = model.forward_batch(images)
    model.autoencoder_losses(step)
    terms = model.critic_losses(step)
    assert terms.keys() == {"real", "reconstruction", "noise"}
    assert terms["real"].weighted.item() == pytest.approx(2 * wanted["real is real"].item(), rel=1e-4)
    assert terms["reconstruction"].weighted.item() == pytest.approx(
        11 * wanted["reconstruction is fake"].item(), rel=1e-4
    )
    assert terms["noise"].weighted.item() == pytest.approx(13 * wanted["noise is fake"].item(), rel=1e-4)
    gradients = torch.autograd.grad(
        sum(term.value for term in terms.values()), model.autoencoder_parameters, allow_unused=True
    )
    assert gradients == (None,) * len(gradients)


def test_the_blind_loss_by_hand(tiny) -> None:
    # One real and two fakes: p = 1/3.
    assert tiny("vae_gan").blind_critic_loss() == pytest.approx(math.log(3) + 2 * math.log(3 / 2))
    model = tiny("vae_gan", {"weights": {"critic_real": 2.0, "critic_reconstruction": 5.0, "critic_noise": 1.0}})
    assert model.blind_critic_loss() == pytest.approx(2 * math.log(4) + 6 * math.log(4 / 3))
