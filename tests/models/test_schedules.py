"""Schedules of rates and weights, late critics, several steps of the critic, and weight decay, by hand."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from pegasus_lightning.models.schedules import average_decay
from pegasus_lightning.models.settings import AdamConfig, ModelConfig
from pegasus_lightning.models.two_player import Step

STILL = {"autoencoder_optimizer": {"lr": 0}, "critic_optimizer": {"lr": 0}, "sample_codes": False}
FREE = {"networks": {"critic_batch_norm": False}}


@pytest.mark.parametrize(
    ("schedule", "wanted"),
    [
        ("linear", [0.5, 1, 1, 0.75, 0.5, 0.25, 0, 0]),
        ("cosine", [0.5, 1, 1, (2 + 2**0.5) / 4, 0.5, (2 - 2**0.5) / 4, 0, 0]),
    ],
)
def test_a_rate_warms_up_and_falls_to_zero(schedule: str, wanted: list[float]) -> None:
    adam = AdamConfig(lr=2.0, warmup=2, schedule=schedule, schedule_batches=6)
    assert [adam.lr_at(batch) / 2 for batch in range(8)] == pytest.approx(wanted, abs=1e-15)


def test_the_optimizer_has_the_rate_of_its_batch(tiny, fit, images) -> None:
    """The first batch has the whole rate of .1; the third of three has a third of it."""
    model = tiny("adversarial_vae", {"critic_optimizer": {"lr": 0.1, "schedule": "linear", "schedule_batches": 3}})
    seen = fit(model, [images] * 3, lambda m: (m.optimizers()[1].param_groups[0]["lr"], dict(m.latest)))
    assert [rate for rate, _ in seen] == pytest.approx([0.1, 0.2 / 3, 0.1 / 3])
    assert [logged["schedule/lr_critic"] for _, logged in seen] == [rate for rate, _ in seen]
    assert "schedule/lr_autoencoder" not in seen[0][1]


@pytest.mark.parametrize(
    ("period", "wanted"), [(None, [0, 0.25, 0.5, 0.75, 1, 1, 1]), (5, [0, 0.25, 0.5, 0.75, 1, 0, 0.25])]
)
def test_the_kl_warms_up_once_or_in_cycles(period: int | None, wanted: list[float], tiny, fit, images) -> None:
    model = tiny("vae", {"kl_warmup": 4, "kl_cycle": period, "weights": {"kl": 3.0}})
    assert fit(model, [images] * 7, lambda m: m.term_weights["loss/kl"] / 3) == wanted
    assert model.latest["schedule/kl"] == wanted[-1]


def test_a_weight_of_zero_leaves_the_kl_out_of_the_gradient(tiny, fit, optimizer_steps, images) -> None:
    found = []
    for settings in ({"kl_warmup": 4}, {"weights": {"kl": 0}}):
        model = tiny("vae", settings)
        steps = optimizer_steps(model)
        fit(model, [images])
        found.append(steps[0].gradients)
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_the_average_warms_up_as_it_is_told() -> None:
    assert [average_decay(n, 0.9, 9) for n in (0, 1, 500)] == [1 / 10, 2 / 11, 0.9]
    assert [average_decay(n, 0.9, 0) for n in (0, 1)] == [0.9, 0.9]
    assert average_decay(899, 0.9999, 100) == 900 / 1000


def test_the_critic_starts_late_and_its_terms_grow(tiny, fit, optimizer_steps, images) -> None:
    """It starts at the third batch; a ramp of two batches gives 1/2, then 1."""
    model = tiny("adversarial_vae", STILL | {"critic_starts_at": 2, "critic_ramp": 2})
    steps = optimizer_steps(model)
    fit(model, [images] * 4)
    assert [step.player for step in steps] == ["autoencoder"] * 3 + ["critic"] + ["autoencoder", "critic"]
    first, second, third, fourth = [step.gradients for step in steps if step.player == "autoencoder"]
    alone = tiny("adversarial_vae", STILL | {"weights": {"adversarial": 0}})
    without = optimizer_steps(alone)
    fit(alone, [images])
    for name, gradient in without[0].gradients.items():
        if name.startswith(("encoder.", "decoder.")):
            torch.testing.assert_close(first[name], gradient, rtol=1e-5, atol=1e-6)
            assert torch.equal(first[name], second[name])
            torch.testing.assert_close(
                third[name] - first[name], (fourth[name] - first[name]) / 2, rtol=1e-2, atol=1e-4
            )
    assert any((fourth[name] - first[name]).abs().max() > 1e-2 for name in first if name.startswith("decoder."))
    assert [ModelConfig(critic_starts_at=2, critic_ramp=2).adversarial_factor(n) for n in range(5)] == [0, 0, 0.5, 1, 1]


def test_an_adaptive_weight_does_not_undo_the_ramp(tiny, fit, optimizer_steps, images) -> None:
    """The scale is measured at the first batch with adversarial terms; the ramp multiplies the scaled terms."""
    found = {}
    for ramp in (0, 4):
        settings = STILL | {"critic_starts_at": 1, "critic_ramp": ramp, "adaptive_adversarial": True}
        model = tiny("adversarial_vae", settings)
        steps = optimizer_steps(model)
        scale = fit(model, [images] * 2, lambda m: m.adversarial_scale.item())
        name = next(key for key, p in model.named_parameters() if p is model.decoder.last_weight)
        before, after = [s.gradients[name] for s in steps if s.player == "autoencoder"]
        found[ramp] = after - before
        assert scale[0] == 1
        assert scale[1] != 1
        # Esser et al.: scaled adversarial terms have the others' gradient norm at this weight; a ramp of 4 a quarter.
        assert found[ramp].norm() / before.norm() == pytest.approx(1 / max(ramp, 1), rel=1e-3)
    torch.testing.assert_close(found[4], found[0] / 4, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("loss", ["bce", "relativistic", "lsgan"])
def test_further_steps_of_the_critic_see_the_same_images(batch_norm, loss, tiny, fit, optimizer_steps, images) -> None:
    settings = {
        "autoencoder_optimizer": {"lr": 0},
        "sample_codes": False,
        "critic_optimizer": {"lr": 1e-2},
        "networks": {"critic_batch_norm": batch_norm},
        "adversarial_loss": loss,
    }
    several, single = tiny("adversarial_vae", settings | {"critic_steps": 3}), tiny("adversarial_vae", settings)
    steps = optimizer_steps(several)
    (logged,) = fit(several, [images])
    assert [step.player for step in steps] == ["autoencoder", "critic", "critic", "critic"]
    seen = fit(single, [images] * 3)  # an autoencoder that stands still shows the critic the same fakes
    for mine, wanted in zip(several.critic.parameters(), single.critic.parameters(), strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-5)
    for tag in ("critic_loss/fake", "critic_loss/real", "critic/real"):
        assert logged[tag] == pytest.approx(seen[0][tag], rel=1e-5)
        assert abs(seen[2][tag] - seen[0][tag]) > 1e-3


@pytest.mark.parametrize("name", ["vae_gan", "acai", "pegasus"])
def test_every_variant_takes_further_steps_and_starts_late(name, tiny, fit, optimizer_steps, images) -> None:
    model = tiny(name, {"critic_steps": 2, "critic_starts_at": 1})
    steps = optimizer_steps(model)
    fit(model, [images] * 2)
    assert [step.player for step in steps] == ["autoencoder", "autoencoder", "critic", "critic"]
    one, other = [{n: g for n, g in s.gradients.items() if n.startswith("critic.")} for s in steps[2:]]
    assert any(not torch.equal(one[name], other[name]) for name in one)  # not the first step's again


@pytest.mark.parametrize("batch_norm", [False, True])
def test_lsgan_has_the_gradients_of_its_equation(batch_norm, tiny, fit, optimizer_steps, images) -> None:
    """Outputs below 0 too, where the loss of a fake falls as its output rises."""
    model = tiny(
        "adversarial_vae", STILL | {"adversarial_loss": "lsgan", "networks": {"critic_batch_norm": batch_norm}}
    )
    with torch.no_grad():
        model.critic.last.bias.fill_(-2.0)
    steps = optimizer_steps(model)
    (logged,) = fit(model, [images])
    model.train()
    logits = model.decoder(model.encoder(images)[0])
    fakes = torch.sigmoid(logits)
    outputs = model.critic(fakes)
    assert (outputs < 0).any()
    loss = functional.binary_cross_entropy(fakes, images, reduction="sum") / 4
    mean = model.encoder(images)[0]
    autoencoder = loss + mean.square().sum() / 8 + ((outputs - 1) ** 2).mean() / 2
    critic = (model.critic(fakes.detach()) ** 2).mean() / 2 + ((model.critic(images) - 1) ** 2).mean() / 2
    for step, network, wanted in ((steps[0], "decoder", autoencoder), (steps[1], "critic", critic)):
        named = dict(getattr(model, network).named_parameters())
        gradients = torch.autograd.grad(wanted, list(named.values()), retain_graph=True)
        for key, gradient in zip(named, gradients, strict=True):
            torch.testing.assert_close(step.gradients[f"{network}.{key}"], gradient, rtol=1e-3, atol=1e-4, msg=key)
    assert logged["critic_loss/fake"] == pytest.approx((outputs**2).mean().item() / 2, rel=1e-4)
    assert logged["critic/fake"] == outputs.clamp(0, 1).mean().item()


@pytest.mark.slow
def test_wgan_gp_learns_the_distance_of_two_points(tiny, fit) -> None:
    """Real images are one colour, fakes another: the best critic has slope 1, its outputs differ by the distance."""
    fake = 0.5  # of a decoder without weights
    real = torch.full((4, 3, 32, 32), 0.5)
    real[:, 0, 12:20, 12:20] = 0.75  # 64 values that differ by 1/4: a distance of 2
    model = tiny(
        "adversarial_vae",
        {
            "adversarial_loss": "wgan_gp",
            "autoencoder_optimizer": {"lr": 0},
            "critic_optimizer": {"lr": 5e-3, "beta1": 0.5},
            "critic_steps": 5,
            "networks": {"critic_batch_norm": False, "critic_channels": 16},
        },
    )
    last = model.decoder.convolutions[-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.zero_()
    assert torch.equal(model.decode(torch.zeros(1, 6)), torch.full((1, 3, 32, 32), fake))
    logged = fit(model, [real] * 60)
    apart = -(logged[-1]["critic_loss/real"] + logged[-1]["critic_loss/fake"])
    # max over critics of d * 2 - 10 (d - 1)^2 for slope d: d = 1.1, so 2.2; a critic without penalty has no bound.
    assert apart == pytest.approx(2.2, abs=0.15)
    assert logged[-1]["critic_penalty/slope"] == pytest.approx(0.01, abs=0.01)
    assert model.term_weights["critic_penalty/slope"] == 10


def test_weight_decay_shrinks_weights_alone(tiny, fit, images) -> None:
    """Without a gradient step: w (1 - lr * decay) a batch. Biases and BatchNorm stay."""
    settings = {"lr": 0.1, "weight_decay": 0.5}
    model = tiny("vae", {"autoencoder_optimizer": settings, "weights": {"reconstruction": 0, "kl": 0}})
    before: dict[str, Tensor] = {name: p.detach().clone() for name, p in model.named_parameters()}
    fit(model, [images] * 2)
    for name, parameter in model.named_parameters():
        factor = 0.95**2 if parameter.ndim > 1 else 1.0
        torch.testing.assert_close(parameter.detach(), before[name] * factor, rtol=1e-5, atol=1e-7, msg=name)


def test_a_cosine_is_halfway_at_its_middle_after_any_warmup() -> None:
    adam = AdamConfig(lr=1.0, warmup=10, schedule="cosine", schedule_batches=110)
    assert adam.lr_at(60) == pytest.approx(0.5)
    assert adam.lr_at(35) == pytest.approx((1 + math.sqrt(0.5)) / 2)


@pytest.mark.parametrize("name", ["adversarial_vae", "vae_gan", "pegasus"])
def test_an_equal_shift_of_all_outputs_does_not_change_wgan_gp(name, tiny, fit, images) -> None:
    """Whatever the weights: otherwise the loss would have no minimum. The shift is the critic's last bias."""
    weights = {"critic_real": 7.0} | ({"critic_noise": 3.0} if name == "vae_gan" else {})
    free = {"networks": {"critic_batch_norm": False}, "weights": weights, "adversarial_loss": "wgan_gp"}
    model = tiny(name, STILL | free)
    seen = []
    for shift in (0.0, 5.0):
        with torch.no_grad():
            model.critic.last.bias.fill_(shift)
        (logged,) = fit(model, [images])
        seen.append(sum(model.term_weights[tag] * v for tag, v in logged.items() if tag.startswith("critic_loss/")))
        model.batches_done = 0
    assert seen[0] == pytest.approx(seen[1], abs=1e-4)


def test_the_penalty_of_wgan_gp_reaches_every_kind_of_fakes(tiny, fit, images) -> None:
    """With fakes that are the images themselves there is no place between: a kind that is not is felt."""
    free = {"networks": {"critic_batch_norm": False}, "adversarial_loss": "wgan_gp"}
    model = tiny("vae_gan", STILL | free)
    fit(model, [images])
    same = torch.logit(images.clamp(1e-6, 1 - 1e-6)).roll(-1, 0)  # each reconstruction is compared with the next image
    step = Step(images, None, None, same)
    alone = model.slope_penalty(step)
    step.extra_images["noise"] = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    assert abs(model.slope_penalty(step) - alone) > 1e-4
