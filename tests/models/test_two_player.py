"""The alternation: who steps when, on whose gradients; averages, draws, clipping, figures; for every variant."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Normal, kl_divergence

from pegasus_lightning.errors import UserError
from pegasus_lightning.latent import Posterior
from pegasus_lightning.models import MODELS, model_class
from pegasus_lightning.models.two_player import NonFiniteLoss, Step
from pegasus_lightning.randomness import Stream

WITH_CRITIC = [name for name in MODELS if name != "vae"]


def weights(network: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in network.parameters()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def norm(gradients: list[Tensor]) -> float:
    return math.sqrt(sum(g.double().square().sum().item() for g in gradients))


def of(player: str, gradients: dict) -> list:
    names = ("critic.",) if player == "critic" else ("encoder.", "decoder.")
    return [g for name, g in gradients.items() if name.startswith(names)]


# Order and routing.


@pytest.mark.parametrize("name", MODELS)
def test_each_player_steps_once_a_batch_the_autoencoder_first(name, tiny, fit, optimizer_steps, images) -> None:
    model = tiny(name)
    steps = optimizer_steps(model)
    fit(model, [images] * 3)
    assert [s.player for s in steps] == (["autoencoder"] if name == "vae" else ["autoencoder", "critic"]) * 3
    assert model.batches_done == 3


@pytest.mark.parametrize("name", WITH_CRITIC)
def test_no_player_touches_the_others_gradients(name, tiny, fit, optimizer_steps, images) -> None:
    model = tiny(name)
    steps = optimizer_steps(model)
    fit(model, [images, images.flip(3)])
    first, critic_first, second, critic_second = [s.gradients for s in steps]
    assert all(g is None for g in of("critic", first))  # the autoencoder's backward reached none
    for step in (first, second):
        assert all(g is not None for g in of("autoencoder", step))
    for step in (critic_first, critic_second):
        assert all(g is not None for g in of("critic", step))
    assert same(of("autoencoder", critic_first), of("autoencoder", first))
    assert same(of("critic", second), of("critic", critic_first))
    assert same(of("autoencoder", critic_second), of("autoencoder", second))


def test_no_gradient_is_left_over_from_the_batch_before(tiny, fit, optimizer_steps, images) -> None:
    # Nothing drawn and nothing learnt: the same batch again must give the same gradients, not their sum.
    still = {"autoencoder_optimizer": {"lr": 0}, "critic_optimizer": {"lr": 0}, "sample_codes": False}
    model = tiny("adversarial_vae", still)
    steps = optimizer_steps(model)
    fit(model, [images] * 2)
    for player in ("autoencoder", "critic"):
        first, second = [of(player, s.gradients) for s in steps if s.player == player]
        for one, other in zip(first, second, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", WITH_CRITIC)
def test_a_player_that_stands_still_is_left_bitwise_alone(name, tiny, fit, images) -> None:
    for still, moving in (("autoencoder", "critic"), ("critic", "autoencoder")):
        model = tiny(name, {f"{still}_optimizer": {"lr": 0}})
        before = {part: weights(getattr(model, part)) for part in ("encoder", "decoder", "critic")}
        fit(model, [images] * 2)
        changed = {part for part, old in before.items() if not same(weights(getattr(model, part)), old)}
        assert changed == ({"critic"} if moving == "critic" else {"encoder", "decoder"})


@pytest.mark.parametrize(("name", "decodings"), [("vae", 1), ("adversarial_vae", 1), ("vae_gan", 2), ("acai", 2)])
def test_one_forward_serves_both_players(name, decodings, tiny, fit, images) -> None:
    model = tiny(name)
    calls = {"encoder": 0, "decoder": 0}
    for part in calls:

        def counted(*_, part=part) -> None:
            calls[part] += 1

        getattr(model, part).register_forward_hook(counted)
    fit(model, [images] * 3)
    assert calls == {"encoder": 3, "decoder": 3 * decodings}


@pytest.mark.parametrize("name", WITH_CRITIC)
def test_the_critics_statistics_come_from_its_own_step_alone(name, tiny, fit, images) -> None:
    model = tiny(name)
    norms = [m for m in model.critic.modules() if isinstance(m, nn.BatchNorm2d)]
    counts = {"adversarial_vae": 2, "vae_gan": 3, "acai": 2}  # what the critic is shown in its own turn
    fit(model, [images])
    assert {m.num_batches_tracked.item() for m in norms} == {counts[name]}


@pytest.mark.parametrize("name", MODELS)
def test_the_logged_terms_and_the_watched_figures(name, tiny, fit, images) -> None:
    model = tiny(name)
    step = model.forward_batch(images)
    terms = {f"loss/{key}": value.item() for key, value in model.autoencoder_losses(step).items()}
    if model.critic is not None:
        # With both at rest the critic's terms are those of the same weights.
        terms |= {f"critic_loss/{key}": value.item() for key, value in model.critic_losses(step).items()}
    still = tiny(name, {"autoencoder_optimizer": {"lr": 0}, "critic_optimizer": {"lr": 0}})
    (logged,) = fit(still, [images])
    for key, value in terms.items():
        assert logged[key] == pytest.approx(value, rel=1e-4)
    assert {"speed/images_per_second", "gradient_norm/autoencoder"} <= logged.keys()
    assert ("gradient_norm/critic" in logged) == ("critic/fake" in logged) == (name != "vae")


# Learning.


def total(metrics: dict, prefix: str) -> float:
    return sum(value for key, value in metrics.items() if key.startswith(prefix))


def smooth(images: Tensor) -> Tensor:
    """Colour gradients: pixel noise cannot be learnt."""
    return nn.functional.interpolate(images[:, :, :2, :2], size=32, mode="bilinear")


@pytest.mark.parametrize("name", MODELS)
def test_the_autoencoders_loss_falls_on_a_fixed_batch(name, tiny, fit, images) -> None:
    model = tiny(name, {"autoencoder_optimizer": {"lr": 1e-2}, "critic_optimizer": {"lr": 0}})
    sums = fit(model, [smooth(images)] * 20, lambda m: total(m.latest, "loss/"))
    assert sum(sums[-3:]) < 0.96 * sum(sums[:3])  # most of the rest is the images' own entropy


@pytest.mark.parametrize("name", WITH_CRITIC)
def test_the_critics_loss_falls_on_a_fixed_batch(name, tiny, fit, images) -> None:
    model = tiny(name, {"autoencoder_optimizer": {"lr": 0}, "critic_optimizer": {"lr": 1e-2}})
    sums = fit(model, [images] * 12, lambda m: total(m.latest, "critic_loss/"))
    assert sum(sums[-3:]) < 0.5 * sum(sums[:3])


@pytest.mark.parametrize("name", MODELS)
def test_reconstructions_come_nearer_when_both_learn(name, tiny, fit, images) -> None:
    model = tiny(name, {"autoencoder_optimizer": {"lr": 1e-2}})
    key = "loss/feature" if name == "vae_gan" else "loss/reconstruction"
    errors = fit(model, [smooth(images)] * 20, lambda m: m.latest[key])
    assert sum(errors[-3:]) < 0.96 * sum(errors[:3])


# Clipping.


@pytest.mark.parametrize("player", ["autoencoder", "critic"])
def test_clipping_scales_the_gradient_to_its_bound(player, tiny, fit, optimizer_steps, images) -> None:
    found = {}
    for clip in (None, 1e-3, 1e6):
        model = tiny("adversarial_vae", {f"{player}_optimizer": {"clip": clip}})
        steps = optimizer_steps(model)
        (logged,) = fit(model, [images])
        found[clip] = of(player, next(s.gradients for s in steps if s.player == player))
        assert logged[f"gradient_norm/{player}"] == pytest.approx(norm(found[None]), rel=1e-4)  # before clipping
    free = norm(found[None])
    assert free > 1e-2
    assert norm(found[1e-3]) == pytest.approx(1e-3, rel=1e-3)
    assert same(found[1e6], found[None])  # a bound above it does nothing
    for clipped, whole in zip(found[1e-3], found[None], strict=True):
        torch.testing.assert_close(clipped, whole * (1e-3 / free), rtol=1e-3, atol=1e-9)


# The average of the weights.


def test_ema_follows_its_recurrence(tiny, fit, images) -> None:
    model = tiny("vae", {"ema_decay": 0.15, "autoencoder_optimizer": {"lr": 1e-2}})
    average = [w.double() for w in weights(model.encoder) + weights(model.decoder)]
    history = fit(model, [images] * 3, lambda m: (weights(m.encoder) + weights(m.decoder), weights(m.averaged)))
    for decay, (current, kept) in zip((1 / 10, 0.15, 0.15), history, strict=True):  # 2/11 and 3/12 exceed 0.15
        average = [decay * a + (1 - decay) * c for a, c in zip(average, current, strict=True)]
        for wanted, found in zip(average, kept, strict=True):
            torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-7)
    for part in ("encoder", "decoder"):
        for kept, buffer in zip(model.averaged[part].buffers(), getattr(model, part).buffers(), strict=True):
            assert torch.equal(kept, buffer)


def test_ema_warms_up(tiny, fit, images) -> None:
    model = tiny("vae", {"ema_decay": 0.999, "autoencoder_optimizer": {"lr": 1e-2}})
    average = weights(model.decoder)
    history = fit(model, [images] * 3, lambda m: (weights(m.decoder), weights(m.averaged["decoder"])))
    for decay, (current, kept) in zip((1 / 10, 2 / 11, 3 / 12), history, strict=True):
        average = [decay * a + (1 - decay) * c for a, c in zip(average, current, strict=True)]
        for wanted, found in zip(average, kept, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-7)


def test_the_average_is_used_in_eval_mode_alone_and_never_trained(tiny, fit, images) -> None:
    model = tiny("vae", {"ema_decay": 0.5, "autoencoder_optimizer": {"lr": 1e-2}})
    fit(model, [images] * 3)
    assert not any(p.requires_grad for p in model.averaged.parameters())
    trained = {id(p) for group in model.configure_optimizers()[0].param_groups for p in group["params"]}
    assert not trained & {id(p) for p in model.averaged.parameters()}
    codes = torch.randn(2, 6)
    with model.inference():
        assert torch.equal(model.encode(images).mean, model.averaged["encoder"](images)[0])
        assert torch.equal(model.decode_logits(codes), model.averaged["decoder"](codes))
        assert not torch.allclose(model.encode(images).mean, model.encoder(images)[0])
    model.train()
    assert torch.equal(model.encode(images).mean, model.encoder(images)[0])
    assert torch.equal(model.decode_logits(codes), model.decoder(codes))
    assert tiny("vae").averaged is None


# Draws.


def test_draws_are_a_function_of_seed_stream_and_batch(tiny) -> None:
    model, twin, other = tiny("vae", seed=3), tiny("vae", seed=3), tiny("vae", seed=4)
    noise = model.draw(Stream.NOISE, 4, 6)
    assert torch.equal(model.draw(Stream.NOISE, 4, 6), noise)
    assert torch.equal(twin.draw(Stream.NOISE, 4, 6), noise)
    assert not torch.equal(other.draw(Stream.NOISE, 4, 6), noise)
    assert not torch.equal(model.draw(Stream.PRIOR, 4, 6), noise)
    model.batches_done = 1
    assert not torch.equal(model.draw(Stream.NOISE, 4, 6), noise)
    uniform = model.draw(Stream.MIXING, 1000, uniform=True)
    assert uniform.min() >= 0
    assert 0.95 < uniform.max() < 1


def test_the_processes_shares_make_up_the_global_draw(tiny) -> None:
    model = tiny("vae")
    whole = model.draw(Stream.NOISE, 8, 6)
    shares = []
    for rank in (0, 1):
        model._trainer = SimpleNamespace(world_size=2, global_rank=rank)
        shares.append(model.draw(Stream.NOISE, 4, 6))
    assert torch.equal(torch.cat(shares), whole)


@pytest.mark.parametrize("name", MODELS)
def test_the_seed_decides_the_weights_and_the_whole_run(name, tiny, fit, images) -> None:
    one = tiny(name, seed=7)
    torch.rand(1)
    torch.manual_seed(99)
    two, other = tiny(name, seed=7), tiny(name, seed=8)
    assert same(weights(one), weights(two))
    assert not same(weights(one), weights(other))
    torch.manual_seed(98)
    untouched = torch.get_rng_state()
    tiny(name)
    fit(one, [images, images.flip(0)])
    assert torch.equal(torch.get_rng_state(), untouched)  # neither building nor training draws from it
    torch.rand(5)
    fit(two, [images, images.flip(0)])
    assert same(weights(one), weights(two))


# What is not finite.


@pytest.mark.parametrize("name", MODELS)
def test_nan_images_end_the_run_by_name(name, tiny, fit, images) -> None:
    images[0, 0, 0, 0] = float("nan")
    term = "loss/feature" if name == "vae_gan" else "loss/reconstruction"
    with pytest.raises(NonFiniteLoss, match=rf"{term}.* became NaN or infinite at batch 1\."):
        fit(tiny(name), [images])


def test_only_the_terms_at_fault_are_named(tiny) -> None:
    model = tiny("vae")
    bad = {"loss/reconstruction": 1.0, "loss/kl": float("inf")}
    model.averages.add({name: torch.tensor(value) for name, value in bad.items()})
    with pytest.raises(NonFiniteLoss, match=r"^loss/kl became"):
        model._log_averages()


# Public methods and figures.


def test_evaluation_figures_by_an_independent_route(tiny, images) -> None:
    model = tiny("adversarial_vae").eval()
    with torch.no_grad():
        figures = model.evaluate_batch(images)
        mean, log_variance = model.encoder(images)
        logits = model.decoder(mean)
        reconstructions = torch.sigmoid(logits)
    errors = ((reconstructions - images) ** 2).mean(dim=(1, 2, 3))
    assert figures["psnr"].tolist() == pytest.approx([10 * math.log10(1 / e) for e in errors.tolist()], rel=1e-4)
    excess = kl_divergence(Bernoulli(images), Bernoulli(logits=logits)).sum(dim=(1, 2, 3))
    torch.testing.assert_close(figures["excess_bce"], excess, rtol=1e-4, atol=1e-2)
    prior = Normal(torch.zeros(4, 6), torch.ones(4, 6))
    posterior = Normal(mean, (log_variance / 2).exp())
    torch.testing.assert_close(figures["kl"], kl_divergence(posterior, prior).sum(1), rtol=1e-4, atol=1e-5)
    untouched = copy.deepcopy(model.critic.state_dict())
    critic = copy.deepcopy(model.critic).train()  # each batch normalised by itself, as the players meet it
    with torch.no_grad():
        torch.testing.assert_close(figures["critic_real"], 1 / (1 + torch.exp(-critic(images))))
        torch.testing.assert_close(figures["critic_fake"], 1 / (1 + torch.exp(-critic(reconstructions))))
    assert not model.critic.training
    assert all(torch.equal(value, untouched[name]) for name, value in model.critic.state_dict().items())
    assert torch.equal(figures["means"], mean)


def test_published_figures_are_means_over_images_not_over_batches(tiny) -> None:
    model = tiny("vae").eval()
    batches = [torch.rand(5, 3, 32, 32), torch.zeros(1, 3, 32, 32)]
    with torch.no_grad():
        for index, batch in enumerate(batches):
            model.validation_step((batch, torch.zeros(len(batch))), index)
        model.on_validation_epoch_end()
        whole = model.evaluate_batch(torch.cat(batches))
    assert model.latest["validation/psnr"] == pytest.approx(whole["psnr"].mean().item(), rel=1e-5)
    assert model.latest["validation/kl"] == pytest.approx(whole["kl"].mean().item(), rel=1e-4)
    active = sum(1 for column in whole["means"].T.tolist() if torch.tensor(column).var() > 0.01)
    assert model.latest["validation/active_dimensions"] == active
    # The next pass starts from nothing, and the test split has names of its own.
    with torch.no_grad():
        model.test_step((batches[1], torch.zeros(1)), 0)
        model.test_step((batches[1], torch.zeros(1)), 1)
    model.on_test_epoch_end()
    assert model.latest["test/psnr"] == pytest.approx(whole["psnr"][-1].item(), rel=1e-4)


def test_interpolations_end_at_their_ends(tiny) -> None:
    model = tiny("vae").eval()
    start, end = torch.randn(3, 6), torch.randn(3, 6)
    with torch.no_grad():
        path = model.interpolate(start, end, torch.tensor([0.0, 0.25, 1.0]))
        assert path.shape == (3, 3, 3, 32, 32)
        torch.testing.assert_close(path[:, 0], model.decode(start), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(path[:, 1], model.decode(0.75 * start + 0.25 * end), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(path[:, 2], model.decode(end), rtol=1e-4, atol=1e-5)


def test_decode_reconstruct_and_sample(tiny, images) -> None:
    model = tiny("vae").eval()
    with torch.no_grad():
        mean = model.encoder(images)[0]
        torch.testing.assert_close(model.reconstruct(images), 1 / (1 + torch.exp(-model.decoder(mean))))
        samples = model.sample_prior(5, torch.Generator().manual_seed(2))
        codes = torch.randn(5, 6, generator=torch.Generator().manual_seed(2))
        torch.testing.assert_close(samples, model.decode(codes))


def test_inference_gives_the_mode_back(tiny, images) -> None:
    model = tiny("vae")
    with model.inference():
        assert not model.training
        assert not model.decode(torch.zeros(1, 6)).requires_grad
    assert model.training
    with pytest.raises(RuntimeError, match="inside"), model.inference():
        raise RuntimeError("inside")
    assert model.training
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("name", MODELS)
def test_a_plain_autoencoder_does_not_sample(name, tiny, fit, images) -> None:
    model = tiny(name, {"sample_codes": False, "weights": {"kl": 0}})
    posterior = model.encode(images)
    assert torch.equal(posterior.sample(), posterior.mean)
    assert torch.equal(model.forward_batch(images).codes, model.encode(images).mean)
    fit(model, [images] * 2)
    with model.inference():
        model.validation_step((images, torch.zeros(4)), 0)
        model.on_validation_epoch_end()
    assert "validation/psnr" in model.latest
    assert "validation/kl" not in model.latest
    assert "validation/active_dimensions" not in model.latest


@pytest.mark.parametrize("name", MODELS)
def test_every_backbone_field_suits_every_variant(name, tiny, fit, images) -> None:
    fields = {"conv_layers": 2, "fc_layers": 2, "spectral_norm": "all", "upsampling": "nearest", "batch_norm": False}
    model = tiny(name, {"networks": fields, "reconstruction": "mse", "ema_decay": 0.9})
    before = weights(model)
    fit(model, [images])
    assert model.batches_done == 1
    assert not same(weights(model), before)


def test_summed_squared_error_as_the_pixel_term(tiny, images) -> None:
    model = tiny("vae", {"reconstruction": "mse"})
    step = model.forward_batch(images)
    error = (torch.sigmoid(step.logits) - images).square().flatten(1).sum(1).mean()
    assert model.autoencoder_losses(step)["reconstruction"].item() == pytest.approx(error.item(), rel=1e-5)


def test_the_registry_knows_the_variants_by_name_alone() -> None:
    for name, kind in MODELS.items():
        assert model_class(name) is kind
        assert kind.Config().name == name
    with pytest.raises(UserError, match="vae_gan"):
        model_class("vae_gna")


def test_batches_done_travels_in_the_checkpoint(tiny) -> None:
    model, checkpoint = tiny("vae"), {}
    model.batches_done = 17
    model.on_save_checkpoint(checkpoint)
    fresh = tiny("vae")
    fresh.on_load_checkpoint(checkpoint)
    assert fresh.batches_done == 17


class Blind(nn.Module):
    """A critic that gives every image the same output."""

    def __init__(self, output: float) -> None:
        super().__init__()
        self.output = output

    def features(self, images: Tensor) -> Tensor:
        return images

    def score(self, features: Tensor) -> Tensor:
        return torch.full((len(features),), self.output)

    def forward(self, images: Tensor) -> Tensor:
        return self.score(images)


@pytest.mark.parametrize("name", WITH_CRITIC)
@pytest.mark.parametrize("weight", [1.0, 2.5])
def test_the_blind_loss_is_the_least_of_all_blind_critics(name, weight, tiny) -> None:
    count = 4096
    first = next(key for key in vars(tiny(name).config.weights) if key.startswith("critic_"))
    model = tiny(name, {"weights": {first: weight}})
    model.decode_logits = lambda codes: torch.zeros(len(codes), 1)  # who is blind needs no pictures
    codes = torch.zeros(count, 6)
    step = Step(torch.zeros(count, 1), Posterior(codes, codes), codes, torch.zeros(count, 1))
    least = math.inf
    for output in torch.linspace(-1.2, 1.2, 97).tolist():
        model.critic = Blind(output)
        model.autoencoder_losses(step)
        least = min(least, sum(term.item() for term in model.critic_losses(step).values()))
    # ACAI's coefficients are drawn: within some standard errors of a mean over the batch.
    assert model.blind_critic_loss() == pytest.approx(least, rel=0.05 if name == "acai" else 1e-3)


def test_without_a_critic_no_blind_loss_is_known(tiny) -> None:
    assert tiny("vae").blind_critic_loss() is None
