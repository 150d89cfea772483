"""Alternating optimisation for every variant: order of steps, gradients, averages, draws, clipping, measures."""

import copy
import gc
import math
import weakref
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Normal, kl_divergence

from pegasus_lightning.data.augmentation import augment
from pegasus_lightning.models import MODELS, model_class
from pegasus_lightning.models.adversarial_vae import AdversarialVAE
from pegasus_lightning.models.latent import Posterior
from pegasus_lightning.models.losses import Term
from pegasus_lightning.models.one_pass import OnePass
from pegasus_lightning.models.pegasus import PegasusStep
from pegasus_lightning.models.two_player import Step
from pegasus_lightning.utils.errors import NonFiniteLoss, UserError
from pegasus_lightning.utils.randomness import Stream, generator

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
    assert all(g is None for g in of("critic", first))  # no gradients from the autoencoder's backward pass
    for step in (first, second):
        assert all(g is not None for g in of("autoencoder", step))
    for step in (critic_first, critic_second):
        assert all(g is not None for g in of("critic", step))
    assert same(of("autoencoder", critic_first), of("autoencoder", first))
    assert same(of("critic", second), of("critic", critic_first))
    assert same(of("autoencoder", critic_second), of("autoencoder", second))


def test_no_gradient_is_left_over_from_the_batch_before(tiny, fit, optimizer_steps, images) -> None:
    # Without draws and updates the same batch must give the same gradients, not their sum.
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


@pytest.mark.parametrize(
    ("name", "decodings"), [("vae", 1), ("adversarial_vae", 1), ("vae_gan", 2), ("acai", 2), ("pegasus", 1)]
)
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
    counts = {"adversarial_vae": 2, "vae_gan": 3, "acai": 2, "pegasus": 2}  # inputs of the critic in its own step
    fit(model, [images])
    assert {m.num_batches_tracked.item() for m in norms} == {counts[name]}


@pytest.mark.parametrize("name", MODELS)
def test_the_logged_terms_and_the_watched_figures(name, tiny, fit, images) -> None:
    model = tiny(name)
    step = model.forward_batch(images)
    terms = {f"loss/{key}": term.value.item() for key, term in model.autoencoder_losses(step).items()}
    if model.critic is not None:
        # With learning rates of 0 the critic's terms use the same weights.
        terms |= {f"critic_loss/{key}": term.value.item() for key, term in model.critic_losses(step).items()}
    still = tiny(name, {"autoencoder_optimizer": {"lr": 0}, "critic_optimizer": {"lr": 0}})
    (logged,) = fit(still, [images])
    for key, value in terms.items():
        assert logged[key] == pytest.approx(value, rel=1e-4)
    assert {"speed/images_per_second", "gradient_norm/autoencoder"} <= logged.keys()
    shown = any(key.startswith("critic/") for key in logged)
    assert ("gradient_norm/critic" in logged) == shown == (name != "vae")


def test_terms_are_logged_without_their_weights(tiny, fit, images) -> None:
    weights = {"reconstruction": 0.01, "kl": 0.0, "adversarial": 7.0, "critic_real": 3.0}
    still = {"autoencoder_optimizer": {"lr": 0}, "critic_optimizer": {"lr": 0}}
    model = tiny("adversarial_vae", still | {"weights": weights})
    (weighted,), (plain,) = fit(model, [images]), fit(tiny("adversarial_vae", still), [images])
    for name in ("loss/reconstruction", "loss/kl", "loss/adversarial", "critic_loss/real", "critic_loss/fake"):
        assert weighted[name] == pytest.approx(plain[name], rel=1e-5)
    assert plain["loss/kl"] > 0.01
    wanted = {"loss/reconstruction": 0.01, "loss/kl": 0, "loss/adversarial": 7}
    assert model.term_weights == wanted | {"critic_loss/real": 3, "critic_loss/fake": 1}


# Learning.


def total(metrics: dict, prefix: str) -> float:
    return sum(value for key, value in metrics.items() if key.startswith(prefix))


def smooth(images: Tensor) -> Tensor:
    """Return smooth colour gradients, since pixel noise cannot be learned."""
    return nn.functional.interpolate(images[:, :, :2, :2], size=32, mode="bilinear")


@pytest.mark.parametrize("name", MODELS)
def test_the_autoencoders_loss_falls_on_a_fixed_batch(name, tiny, fit, images) -> None:
    model = tiny(name, {"autoencoder_optimizer": {"lr": 1e-2}, "critic_optimizer": {"lr": 0}})
    sums = fit(model, [smooth(images)] * 20, lambda m: total(m.latest, "loss/"))
    assert sum(sums[-3:]) < 0.96 * sum(sums[:3])  # most of the rest is the entropy of the images


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
def test_the_learning_rate_grows_and_falls(player, tiny, fit, images) -> None:
    """Of .1: halves and whole in a warm-up of two batches, then sqrt(3 / batch) from the third batch on."""
    model = tiny("adversarial_vae", {f"{player}_optimizer": {"lr": 0.1, "warmup": 2, "decay_after": 3}})
    rates = fit(model, [images] * 5, lambda m: m.optimizers()[player == "critic"].param_groups[0]["lr"])
    assert rates == pytest.approx([0.05, 0.1, 0.1, 0.1 * 0.75**0.5, 0.1 * 0.6**0.5])


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
    assert same(found[1e6], found[None])  # a larger bound has no effect
    for clipped, whole in zip(found[1e-3], found[None], strict=True):
        torch.testing.assert_close(clipped, whole * (1e-3 / free), rtol=1e-3, atol=1e-9)


# Averaged weights.


def with_statistics(*networks: nn.Module) -> list[Tensor]:
    """Return weights and running statistics of BatchNorm."""
    running = [b.detach().clone() for network in networks for b in network.buffers() if b.is_floating_point()]
    return [w for network in networks for w in weights(network)] + running


def test_ema_follows_its_recurrence(tiny, fit, images) -> None:
    model = tiny("vae", {"ema_decay": 0.15, "autoencoder_optimizer": {"lr": 1e-2}})
    average = [w.double() for w in with_statistics(model.encoder, model.decoder)]
    assert len(average) > len(weights(model.encoder) + weights(model.decoder))

    def look(model) -> tuple[list[Tensor], list[Tensor]]:
        kept = [model.averaged[part] for part in ("encoder", "decoder")]
        return with_statistics(model.encoder, model.decoder), with_statistics(*kept)

    history = fit(model, [images] * 3, look)
    for decay, (current, kept) in zip((1 / 10, 0.15, 0.15), history, strict=True):  # 2/11 and 3/12 exceed 0.15
        average = [decay * a + (1 - decay) * c for a, c in zip(average, current, strict=True)]
        for wanted, found in zip(average, kept, strict=True):
            torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-7)
    for part in ("encoder", "decoder"):
        for kept, buffer in zip(model.averaged[part].buffers(), getattr(model, part).buffers(), strict=True):
            assert kept.is_floating_point() or torch.equal(kept, buffer)  # the number of batches


def test_an_average_of_spectrally_normalised_weights_is_normalised_too(tiny, fit, images) -> None:
    """A mean of the power iteration's unit vectors is shorter than 1, which would make sigma too small."""
    config = {"ema_decay": 0.99, "networks": {"spectral_norm": "all"}, "autoencoder_optimizer": {"lr": 0.1}}
    model = tiny("vae", config)
    vectors = [(key, vector) for key, vector in model.averaged.named_buffers() if key.endswith(("._u", "._v"))]
    begun = [vector.clone() for _, vector in vectors]
    fit(model, [images] * 12)
    assert len(vectors) > 4
    for key, vector in vectors:
        assert vector.norm().item() == pytest.approx(1, abs=1e-4), key
    assert any((vector @ before).abs() < 0.9 for (_, vector), before in zip(vectors, begun, strict=True))


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
    assert torch.equal(torch.get_rng_state(), untouched)  # neither construction nor training uses it
    torch.rand(5)
    fit(two, [images, images.flip(0)])
    assert same(weights(one), weights(two))


def test_the_parts_of_a_draw_are_told_apart_and_the_first_is_the_draw_itself(tiny) -> None:
    model = tiny("vae", seed=3)
    for batch in (0, 1, 70_000):
        model.batches_done = batch
        wanted = torch.randn(4, 6, generator=generator(3, Stream.NOISE, batch))
        assert torch.equal(model.draw(Stream.NOISE, 4, 6), wanted)
        assert torch.equal(model.draw(Stream.NOISE, 4, 6, part=0), wanted)
    found = []
    for batch in (0, 1, 2**30):
        model.batches_done = batch
        found += [tuple(model.draw(Stream.NOISE, 2, part=part).tolist()) for part in range(8)]
    assert len(set(found)) == 24


# Inputs of the critic.


def test_without_a_policy_the_critic_sees_the_very_images(tiny, images) -> None:
    model = tiny("adversarial_vae")
    assert model.augment_for_critic(images, 0) is images


def test_the_same_part_alters_alike_and_another_part_or_batch_otherwise(tiny, images) -> None:
    model = tiny("adversarial_vae", {"critic_augmentation": ["brightness"]}, seed=5)

    def change(batch: Tensor, part: int) -> Tensor:
        return (model.augment_for_critic(batch, part) - batch)[:, 0, 0, 0]

    first = change(images, 1)
    torch.testing.assert_close(change(1 - images, 1), first)
    wanted = torch.rand(4, 8, generator=generator(5, Stream.AUGMENTATION, 1 << 40))[:, 0] / 2 - 0.25
    torch.testing.assert_close(first, wanted)
    assert not torch.allclose(change(images, 2), first)
    model.batches_done = 1
    assert not torch.allclose(change(images, 1), first)


SHOWN = {  # the part of the draw that augments each input of the critic, in order
    "adversarial_vae": [0, 2],  # one pass over fakes serves both players
    "vae_gan": [0, 0, 1, 2, 3, 4],  # equal for image and reconstruction, whose features are compared
    "acai": [0, 1, 2],
}


@pytest.mark.parametrize("name", SHOWN)
@pytest.mark.parametrize("policy", [["translation"], ["cutout", "contrast"]])
def test_all_that_the_critic_sees_is_altered_as_it_is_told(name, policy, tiny, fit, images) -> None:
    def shown(policy: list[str]) -> list[Tensor]:
        model, seen = tiny(name, {"critic_augmentation": policy}, seed=2), []
        model.critic.features[0].register_forward_pre_hook(lambda _, given: seen.append(given[0].detach().clone()))
        step = model.forward_batch(images)
        model.autoencoder_losses(step)
        model.critic_losses(step)
        return seen

    clean, altered = shown([]), shown(policy)
    assert len(clean) == len(altered) == len(SHOWN[name])
    for before, after, part in zip(clean, altered, SHOWN[name], strict=True):
        uniforms = torch.rand(len(before), 8, generator=generator(2, Stream.AUGMENTATION, part << 40))
        torch.testing.assert_close(after, augment(before, uniforms, policy))
        assert not torch.allclose(after, before)
    fit(tiny(name, {"critic_augmentation": policy}), [images])  # gradients pass through


@pytest.mark.parametrize("name", ["adversarial_vae", "vae_gan"])
def test_hinge_losses_by_hand(name, tiny, images) -> None:
    fakes = ("critic_fake",) if name == "adversarial_vae" else ("critic_reconstruction", "critic_noise")
    model = tiny(name, {"adversarial_loss": "hinge", "weights": {"critic_real": 3.0, fakes[-1]: 2.0}})
    step = model.forward_batch(images)
    terms = model.autoencoder_losses(step)
    drawn = [step.reconstructions] if name == "adversarial_vae" else [step.reconstructions, step.extra_images["noise"]]
    with torch.no_grad():
        outputs = [model.critic(batch) for batch in drawn]
        real = model.critic(images)
    adversarial = [term.weighted.item() for key, term in terms.items() if key.startswith("adversarial")]
    assert adversarial == pytest.approx([-output.mean().item() for output in outputs], rel=1e-4)
    critic = model.critic_losses(step)
    assert critic.pop("real").weighted.item() == pytest.approx(3 * (1 - real).clamp(min=0).mean().item(), rel=1e-4)
    wanted = [(1 + output).clamp(min=0).mean().item() for output in outputs]
    wanted[-1] *= 2
    assert [term.weighted.item() for term in critic.values()] == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("adversarial_vae", {"critic_fake": 2.0}),
        ("vae_gan", {"critic_reconstruction": 1.0, "critic_noise": 2.0}),
        ("vae_gan", {"critic_reconstruction": 1.5, "critic_noise": 0.0}),
    ],
)
@pytest.mark.parametrize("batch_norm", [False, True])
def test_relativistic_losses_by_hand(
    name, weights, batch_norm, tiny, fit, optimizer_steps, assert_gradients, images
) -> None:
    """Each image is paired with its own reconstruction, and in vae_gan with a sample too: softplus(loser - winner)."""
    config = {"adversarial_loss": "relativistic", "weights": weights, "networks": {"critic_batch_norm": batch_norm}}
    model, twin = tiny(name, config), tiny(name, config)
    step = model.forward_batch(images)
    terms = model.autoencoder_losses(step)
    drawn = [step.reconstructions] if name == "adversarial_vae" else [step.reconstructions, step.extra_images["noise"]]
    outputs, real = [model.critic(batch.detach()) for batch in drawn], model.critic(images)
    passing = [(1 + (real - output).exp()).log().mean().item() for output in outputs]
    adversarial = [term.weighted.item() for key, term in terms.items() if key.startswith("adversarial")]
    assert adversarial == pytest.approx(passing, rel=1e-4)
    shares = list(weights.values())
    losing = [share * (1 + (output - real).exp()).log().mean() for share, output in zip(shares, outputs, strict=True)]
    critic = model.critic_losses(step)
    assert critic.pop("real").weighted.item() == pytest.approx(sum(losing).item(), rel=1e-4)
    assert [term.weighted.item() for term in critic.values()] == pytest.approx([loss.item() for loss in losing])
    # The critic steps on the gradient of one loss of both sides, which does not know an equal shift of its outputs.
    steps = optimizer_steps(twin)
    fit(twin, [images])
    assert_gradients(steps[-1], "critic", model.critic, sum(losing))
    assert steps[-1].gradients["critic.last.bias"].abs().item() < 1e-6


@pytest.mark.parametrize("kind", ["bce", "relativistic"])
def test_the_memory_of_a_batch_is_freed_without_the_collector(kind, tiny, fit, images) -> None:
    """A step that is part of a cycle would wait for it, and a GPU's memory does not call it."""
    model = tiny("adversarial_vae", {"adversarial_loss": kind, "networks": {"critic_batch_norm": False}})
    forward, alive = model.forward_batch, []

    def watched(*batch: Tensor) -> Step:
        step = forward(*batch)
        alive.append(weakref.ref(step))
        return step

    model.forward_batch = watched
    gc.disable()
    try:
        fit(model, [images] * 3)
        assert [step() for step in alive] == [None] * 3
    finally:
        gc.enable()


# Gradient penalty.


def penalty_by_hand(critic: nn.Module, images: Tensor) -> Tensor:
    images = images.detach().requires_grad_()
    (slope,) = torch.autograd.grad(critic(images).sum(), images, create_graph=True)
    return slope.pow(2).sum() / 2 / len(images)


@pytest.mark.parametrize("policy", [[], ["cutout"]])
def test_the_penalty_is_the_critics_alone(policy, tiny, fit, optimizer_steps, assert_gradients, images) -> None:
    found = {}
    for gamma in (0.0, 30.0):
        model = tiny("adversarial_vae", {"r1": gamma, "critic_augmentation": policy})
        steps = optimizer_steps(model)
        (logged,) = fit(model, [images])
        found[gamma] = steps, logged
    assert "critic_penalty/r1" not in found[0.0][1]
    for key in ("loss/adversarial", "critic_loss/real"):
        assert found[30.0][1][key] == pytest.approx(found[0.0][1][key])
    (player, critic), (player_without, critic_without) = found[30.0][0], found[0.0][0]
    assert same(of("autoencoder", player.gradients), of("autoencoder", player_without.gradients))
    assert not same(of("critic", critic.gradients), of("critic", critic_without.gradients))

    twin = tiny("adversarial_vae", {"critic_augmentation": policy})
    uniforms = torch.rand(4, 8, generator=generator(0, Stream.AUGMENTATION, 7 << 40))
    penalty = penalty_by_hand(twin.critic, augment(images, uniforms, policy))
    assert found[30.0][1]["critic_penalty/r1"] == pytest.approx(penalty.item(), rel=1e-4)
    # It is computed at every fourth batch, with four times its weight.
    terms = twin.critic_losses(twin.forward_batch(images))
    loss = 4 * 30 * penalty + sum(term.weighted for term in terms.values())
    assert_gradients(critic, "critic", twin.critic, loss)


def test_the_penalty_is_taken_at_every_fourth_batch(tiny, fit, optimizer_steps, images) -> None:
    found = {}
    for gamma in (0.0, 30.0):
        still = {"autoencoder_optimizer": {"lr": 0.0}, "critic_optimizer": {"lr": 0.0}}
        model = tiny("adversarial_vae", {"r1": gamma, **still})
        steps = optimizer_steps(model)
        fit(model, [images] * 10)
        found[gamma] = [of("critic", step.gradients) for step in steps if step.player == "critic"]
    alike = [same(*pair) for pair in zip(found[0.0], found[30.0], strict=True)]
    assert alike == [False, True, True, True] * 2 + [False, True]


def test_the_second_penalty_is_taken_at_the_reconstructions(
    tiny, fit, optimizer_steps, assert_gradients, images
) -> None:
    """R2 alone, and beside R1: each is logged under its own name, with its own value."""
    model = tiny("adversarial_vae", {"r1": 2.0, "r2": 3.0})
    steps = optimizer_steps(model)
    (both,) = fit(model, [images])
    (alone,) = fit(tiny("adversarial_vae", {"r2": 3.0}), [images])
    assert "critic_penalty/r1" not in alone
    twin = tiny("adversarial_vae")
    step = twin.forward_batch(images)
    penalties = {n: penalty_by_hand(twin.critic, x) for n, x in (("r1", images), ("r2", step.reconstructions))}
    wanted = {name: penalty.item() for name, penalty in penalties.items()}
    assert wanted["r1"] != pytest.approx(wanted["r2"], rel=1e-3)
    for name, value in wanted.items():
        assert both[f"critic_penalty/{name}"] == pytest.approx(value, rel=1e-4)
    assert alone["critic_penalty/r2"] == pytest.approx(wanted["r2"], rel=1e-4)
    terms = [term.weighted for term in twin.critic_losses(step).values()]
    assert_gradients(steps[-1], "critic", twin.critic, sum(terms) + 4 * (2 * penalties["r1"] + 3 * penalties["r2"]))
    assert twin.critic_penalties(step) == {}


@pytest.mark.parametrize("harmed", [0, 4])
def test_a_penalty_that_is_not_finite_stops_the_training_by_its_name(harmed, tiny, fit, images, monkeypatch) -> None:
    model = tiny("adversarial_vae", {"r1": 1.0})
    monkeypatch.setattr(
        "pegasus_lightning.models.losses.gradient_penalty",
        lambda outputs, images: outputs.mean() * (math.nan if model.batches_done == harmed else 1),
    )
    with pytest.raises(NonFiniteLoss, match=r"critic_penalty/r1"):
        fit(model, [images] * 9)
    assert model.batches_done == harmed


def test_the_penalty_is_no_part_of_the_critics_loss(tiny, fit, images) -> None:
    # The health check compares the logged `critic_loss/` with `blind_critic_loss`.
    sums = [total(fit(tiny("vae_gan", {"r1": gamma}), [images])[0], "critic_loss/") for gamma in (0.0, 30.0)]
    assert sums[0] == pytest.approx(sums[1])


# Adaptive weight of the adversarial terms.


def parted(name: str, terms: dict[str, Term]) -> tuple[Tensor, Tensor]:
    """Return the decoder's non-adversarial loss and its adversarial loss."""
    adversarial = sum(term.weighted for key, term in terms.items() if key.startswith("adversarial"))
    if name == "vae_gan":
        return 0.1 * terms["feature"].value, adversarial
    return sum(term.weighted for key, term in terms.items() if not key.startswith("adversarial")), adversarial


def ratio_by_hand(name: str, model, terms: dict[str, Term]) -> float:
    """Return the ratio of the gradient norms at the decoder's last weight, in float64."""
    weight = model.decoder.convolutions[-1].weight
    lengths = [torch.autograd.grad(loss, weight, retain_graph=True)[0].double().norm() for loss in parted(name, terms)]
    return (lengths[0] / lengths[1]).item()


@pytest.mark.parametrize("name", WITH_CRITIC)
def test_the_adversarial_terms_are_scaled_to_the_others_gradient(name, tiny, images) -> None:
    model = tiny(name, {"adaptive_adversarial": True})
    terms = model.autoencoder_losses(model.forward_batch(images))
    ratio = ratio_by_hand(name, model, terms)
    others, adversarial = parted(name, terms)
    assert abs(ratio - 1) > 0.1
    loss, _ = model.routes(terms)[-1]
    assert model.adversarial_scale.item() == pytest.approx(ratio, rel=1e-3)  # not averaged at the first batch
    assert loss.item() == pytest.approx((others + ratio * adversarial).item(), rel=1e-4)
    # The gradients of both parts then have equal norms.
    weight = model.decoder.last_weight
    pulls = [torch.autograd.grad(part, weight, retain_graph=True)[0] for part in (others, loss)]
    assert (pulls[1] - pulls[0]).norm().item() == pytest.approx(pulls[0].norm().item(), rel=1e-2)


def test_the_scale_is_smoothed_every_eight_batches(tiny, images) -> None:
    model = tiny("adversarial_vae", {"adaptive_adversarial": True})
    for batch, smoothed in ((8, True), (24, True), (1, False), (7, False), (9, False)):
        model.batches_done = batch
        model.adversarial_scale.fill_(2.0)
        terms = model.autoencoder_losses(model.forward_batch(images))
        ratio = ratio_by_hand("adversarial_vae", model, terms)
        ((loss, _),) = model.routes(terms)
        wanted = 2 + 0.2 * (ratio - 2) if smoothed else 2.0
        assert model.adversarial_scale.item() == pytest.approx(wanted, rel=1e-3)
        others, adversarial = parted("adversarial_vae", terms)
        assert loss.item() == pytest.approx((others + wanted * adversarial).item(), rel=1e-4)


def test_without_it_the_sum_is_plain(tiny, images) -> None:
    model = tiny("adversarial_vae")
    terms = model.autoencoder_losses(model.forward_batch(images))
    ((loss, _),) = model.routes(terms)
    assert loss.item() == pytest.approx(sum(term.weighted.item() for term in terms.values()), rel=1e-6)
    assert "adversarial_scale" not in model.state_dict()


def test_the_scale_holds_for_the_step_is_logged_and_kept(tiny, fit, optimizer_steps, assert_gradients, images) -> None:
    model, twin = (tiny("adversarial_vae", {"adaptive_adversarial": True}) for _ in range(2))
    terms = twin.autoencoder_losses(twin.forward_batch(images))
    ratio = ratio_by_hand("adversarial_vae", twin, terms)
    steps = optimizer_steps(model)
    (logged,) = fit(model, [images])
    assert logged["adversarial_scale"] == pytest.approx(ratio, rel=1e-3)
    others, adversarial = parted("adversarial_vae", terms)
    assert_gradients(steps[0], "decoder", twin.decoder, others + ratio * adversarial)
    twin.load_state_dict(model.state_dict())
    assert twin.adversarial_scale.item() == pytest.approx(ratio, rel=1e-3)


def test_a_critic_that_has_nothing_to_say_scales_within_bounds(tiny, images) -> None:
    model = tiny("adversarial_vae", {"adaptive_adversarial": True, "weights": {"adversarial": 0.0}})
    ((loss, _),) = model.routes(model.autoencoder_losses(model.forward_batch(images)))
    assert model.adversarial_scale.item() == 1e4
    assert loss.isfinite()


# Non-finite losses.


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


# Public methods and measures.


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
    critic = copy.deepcopy(model.critic).train()  # each batch normalised by its own statistics, as in training
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
    # The next pass starts empty, and the test split has its own names.
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
    assert model.autoencoder_losses(step)["reconstruction"].value.item() == pytest.approx(error.item(), rel=1e-5)


def test_summed_absolute_error_as_the_pixel_term(tiny, images) -> None:
    model = tiny("vae", {"reconstruction": "l1"})
    step = model.forward_batch(images)
    error = (torch.sigmoid(step.logits) - images).abs().sum().item() / len(images)
    assert model.autoencoder_losses(step)["reconstruction"].value.item() == pytest.approx(error, rel=1e-5)


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

    def with_features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return images, torch.full((len(images),), self.output)

    def forward(self, images: Tensor) -> Tensor:
        return self.with_features(images)[1]


@pytest.mark.parametrize("name", WITH_CRITIC)
@pytest.mark.parametrize("weight", [1.0, 2.5])
@pytest.mark.parametrize("kind", ["bce", "hinge", "relativistic"])
def test_the_blind_loss_is_the_least_of_all_blind_critics(name, weight, kind, tiny) -> None:
    count = 4096
    first = next(key for key in vars(tiny(name).config.weights) if key.startswith("critic_"))
    model = tiny(name, {"weights": {first: weight}, "adversarial_loss": kind})
    model.decode_logits = lambda codes: torch.zeros(len(codes), 1)  # a constant critic needs no images
    codes = torch.zeros(count, 6)
    kind_of_step = PegasusStep if name == "pegasus" else Step
    step = kind_of_step(torch.zeros(count, 1), Posterior(codes, codes), codes, torch.zeros(count, 1))
    if name == "pegasus":
        step.partners = {"reconstruction": torch.arange(count)}
    least = math.inf
    for output in torch.linspace(-1.2, 1.2, 97).tolist():
        model.critic = Blind(output)
        if name in ("adversarial_vae", "pegasus"):  # the forward pass runs the critic on the fakes
            step.fakes = OnePass(model.critic, {"reconstruction": step.reconstructions})
            step.real = model.critic(step.images)
        else:
            model.autoencoder_losses(step)
        least = min(least, sum(term.weighted.item() for term in model.critic_losses(step).values()))
    # ACAI's coefficients are random: the tolerance is a few standard errors of the batch mean.
    assert model.blind_critic_loss() == pytest.approx(least, rel=0.05 if name == "acai" else 1e-3)


def test_without_a_critic_no_blind_loss_is_known(tiny) -> None:
    assert tiny("vae").blind_critic_loss() is None


def test_before_they_are_averaged_statistics_are_made_the_same_in_all_processes(
    tiny, images, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each process normalises by its part of the batch, but only one saves; otherwise a resumed run would differ."""
    model, alone = (tiny("pegasus", {"ema_decay": 0.5}) for _ in range(2))
    for one in (model, alone):
        one.forward_batch(images)  # the running statistics of this process
    own = [b.clone() for n in (model.encoder, model.decoder) for b in n.buffers() if b.is_floating_point()]
    monkeypatch.setattr(type(model), "_world_size", property(lambda self: 2 if self is model else 1))
    shown: list[Tensor] = []

    def all_reduce(tensor: Tensor) -> None:  # the other process holds 3 everywhere
        shown.append(tensor.clone())
        tensor.add_(3.0)

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    for one in (model, alone):
        one.update_average()
    assert len(shown) == 1
    assert torch.equal(shown[0], torch.cat([buffer.flatten() for buffer in own]))
    after = [b for n in (model.encoder, model.decoder) for b in n.buffers() if b.is_floating_point()]
    for buffer, before in zip(after, own, strict=True):
        torch.testing.assert_close(buffer, (before + 3) / 2)
    kept = [b for b in alone.decoder.buffers() if b.is_floating_point()]
    assert all(torch.equal(b, before) for b, before in zip(kept, own[-len(kept) :], strict=True))
    pairs = zip(model.averaged["decoder"].buffers(), alone.averaged["decoder"].buffers(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)  # the average uses the reduced statistics


def test_a_variant_must_say_what_its_critic_tells() -> None:
    class Silent(AdversarialVAE.Config):
        pass

    class Said(AdversarialVAE.Config):
        critic_tells: ClassVar[str | None] = "1 from 0"

    def losses(self: AdversarialVAE, step: Step) -> dict[str, Term]:
        return {}

    type("Base", (AdversarialVAE,), {"Config": Silent})  # the base's losses
    type("Own", (AdversarialVAE,), {"Config": Said, "critic_losses": losses})
    with pytest.raises(TypeError, match=r"Own has losses of its own for the critic.*critic_tells: ClassVar"):
        type("Own", (AdversarialVAE,), {"Config": Silent, "critic_losses": losses})
