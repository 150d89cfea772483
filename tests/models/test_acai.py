"""ACAI with a critic of known outputs: coefficients, direction of the mix, means of squares."""

import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence
from torch.nn import functional

from pegasus_lightning.utils.randomness import Stream

WEIGHTS = {
    "reconstruction": 0.01,
    "kl": 3.0,
    "adversarial": 0.5,
    "critic_coefficient": 5.0,
    "critic_regulariser": 7.0,
    "blend": 0.2,
}


class KnownCritic(nn.Module):
    """Critic that returns given outputs and records its inputs."""

    def __init__(self, *answers: list[float]) -> None:
        super().__init__()
        self.answers, self.shown = [torch.tensor(answer) for answer in answers], []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.shown.append(images)
        return self.answers[len(self.shown) - 1]


def codes_of(model, images):
    mean, log_variance = model.encoder(images)
    return mean + (log_variance / 2).exp() * model.draw(Stream.NOISE, len(images), 6)


def mixing(model, codes):
    """Return (alpha, z_a), computed in a loop over the samples."""
    uniform = model.draw(Stream.MIXING, len(codes), uniform=True).tolist()
    alphas = [min(u, 1 - u) for u in uniform]
    count = len(alphas)
    mixed = [alphas[i] * codes[i] + (1 - alphas[i]) * codes[count - 1 - i] for i in range(count)]
    return alphas, torch.stack(mixed)


def test_coefficients_fill_the_interval_from_none_to_half(tiny) -> None:
    model = tiny("acai")
    entrances = []
    model.decoder.register_forward_pre_hook(lambda _, inputs: entrances.append(inputs[0].detach()))
    found = []
    with torch.no_grad():
        for batch in range(4):
            model.batches_done = batch
            step = model.forward_batch(torch.rand(64, 3, 32, 32))
            model.autoencoder_losses(step)
            mine, other = step.codes, step.codes.flip(0)
            # alpha is the position of the decoded code between the other code (0) and the sample's own (1).
            way = mine - other
            found.append(((entrances[-1] - other) * way).sum(1) / way.square().sum(1))
    alphas = torch.cat(found)
    assert alphas.min() > -1e-4
    assert alphas.max() < 0.5 + 1e-4
    quarters = torch.histc(alphas, bins=4, min=0, max=0.5)  # uniform: 64 each, standard deviation 7
    assert (quarters - 64).abs().max() < 5 * 7
    assert not torch.allclose(found[0], found[1])


def test_terms_with_known_outputs(tiny, images) -> None:
    model = tiny("acai", {"weights": WEIGHTS})
    codes = codes_of(model, images)
    alphas, mixed = mixing(model, codes)
    mixes, reconstructions = torch.sigmoid(model.decoder(mixed)), torch.sigmoid(model.decoder(codes))
    answers = [0.4, -0.1, 0.2, 0.9]
    critic = model.critic = KnownCritic([1.0, -1.0, 2.0, -2.0], answers, [3.0, -3.0, 0.0, 1.0])

    step = model.forward_batch(images)
    terms = model.autoencoder_losses(step)
    assert terms["adversarial"].weighted.item() == pytest.approx(0.5 * (1 + 1 + 4 + 4) / 4)  # mean(C)^2 would be 0
    terms |= model.critic_losses(step)
    wanted = sum((c - a) ** 2 for c, a in zip(answers, alphas, strict=True)) / 4
    assert terms["coefficient"].weighted.item() == pytest.approx(5 * wanted, rel=1e-5)
    assert terms["regulariser"].weighted.item() == pytest.approx(7 * (9 + 9 + 0 + 1) / 4)

    # The mixes for the autoencoder, the same mixes detached, then the blend, mostly reconstruction.
    assert len(critic.shown) == 3
    torch.testing.assert_close(critic.shown[0], mixes, rtol=1e-4, atol=1e-5)
    assert critic.shown[0].requires_grad
    torch.testing.assert_close(critic.shown[1], mixes, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(critic.shown[2], 0.2 * images + 0.8 * reconstructions, rtol=1e-4, atol=1e-5)
    assert not critic.shown[1].requires_grad
    assert not critic.shown[2].requires_grad


def test_both_players_gradients_by_hand(tiny, fit, optimizer_steps, assert_gradients, images) -> None:
    model = tiny("acai", {"weights": WEIGHTS})
    mean, log_variance = model.encoder(images)
    codes = codes_of(model, images)
    alphas, mixed = mixing(model, codes)
    reconstructions, mixes = torch.sigmoid(model.decoder(codes)), torch.sigmoid(model.decoder(mixed))
    pixels = functional.binary_cross_entropy(reconstructions, images, reduction="sum") / 4
    prior = Normal(torch.zeros(4, 6), torch.ones(4, 6))
    kl = kl_divergence(Normal(mean, (log_variance / 2).exp()), prior).sum(1).mean()
    adversarial = sum(c**2 for c in model.critic(mixes)) / 4
    coefficient = sum((c - a) ** 2 for c, a in zip(model.critic(mixes), alphas, strict=True)) / 4
    regulariser = sum(c**2 for c in model.critic(0.2 * images + 0.8 * reconstructions)) / 4

    twin = tiny("acai", {"weights": WEIGHTS})
    steps = optimizer_steps(twin)
    fit(twin, [images])
    autoencoder, critic = steps
    loss = 0.01 * pixels + 3 * kl + 0.5 * adversarial
    assert_gradients(autoencoder, "encoder", model.encoder, loss)
    assert_gradients(autoencoder, "decoder", model.decoder, loss)
    assert_gradients(critic, "critic", model.critic, 5 * coefficient + 7 * regulariser)


def test_opinions_are_coefficients_not_probabilities(tiny) -> None:
    outputs = torch.tensor([0.3, -0.2])
    assert torch.equal(tiny("acai").critic_probability(outputs), outputs)


def test_the_blind_loss_by_hand(tiny) -> None:
    # c = 1/8: variance 1/48 of the coefficient, (1/4 - 1/8)^2 from its mean, and (1/8)^2 from the regulariser.
    assert tiny("acai").blind_critic_loss() == pytest.approx(1 / 48 + 1 / 64 + 1 / 64)
    # c = 3/16 if the coefficient has three times the weight.
    model = tiny("acai", {"weights": {"critic_coefficient": 3.0, "critic_regulariser": 1.0}})
    assert model.blind_critic_loss() == pytest.approx(3 / 48 + 3 / 256 + 9 / 256)
    assert tiny("acai", {"weights": {"critic_regulariser": 0.0}}).blind_critic_loss() == pytest.approx(1 / 48)
    assert tiny("acai", {"weights": {"critic_coefficient": 0.0}}).blind_critic_loss() == 0
