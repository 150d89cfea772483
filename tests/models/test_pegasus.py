"""Pegasus: loss terms computed independently, lessons and pairs of a batch, and what trains which network."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor
from torch.distributions import Normal, kl_divergence
from torch.nn import functional

from pegasus_lightning.data.augmentation import augment
from pegasus_lightning.data.lessons import Lessons
from pegasus_lightning.data.room import with_room
from pegasus_lightning.models.mixing_network import put_on
from pegasus_lightning.models.moves import move, random_affine
from pegasus_lightning.train.settings import TRAIN
from pegasus_lightning.utils.randomness import Stream, generator

LABELS = torch.tensor([1, 0, 0, 1, 1, 0, 1, 0])
FIRST, SECOND = [1, 2], [6, 4]  # two pairs: horses in order, birds in reverse order
WEIGHTS = {
    "reconstruction": 0.3,
    "kl": 2.0,
    "target": 0.7,
    "limb": 3.0,
    "root": 0.9,
    "alpha": 0.4,
    "colour": 5.0,
    "moves": 1.7,
    "adversarial": 3.0,
    "critic_real": 1.5,
    "critic_fake": 2.5,
    "fake_reconstruction": 4.0,
    "fake_target": 1.0,
    "fake_mix": 3.0,
}
NETWORKS = {"latent": "spatial", "latent_dim": 128, "conv_layers": 2, "critic_layers": 3}
ALONE = {"networks": NETWORKS | {"batch_norm": False, "critic_batch_norm": False}}  # images of a batch are independent
SHARES = {"mix_share": 0.25, "move_share": 0.375}  # 2 pairs and 3 moves of 8 images
# 3 lessons; the targets of 2 are reconstructed:
LEARNED = {"learned_mixing": True, "lesson_share": 0.375, "target_share": 0.25, **SHARES}


@pytest.fixture
def eight() -> Tensor:
    return torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def lessons() -> Lessons:
    """Five lessons of noise."""
    source = torch.Generator().manual_seed(4)
    kinds = [torch.randint(256, (5, depth, 32, 32), generator=source, dtype=torch.uint8) for depth in (3, 3, 3, 1)]
    return Lessons(*kinds, torch.randint(32, (5, 2), generator=source))


def taught(model, lessons: Lessons, mixing: bool = True) -> Any:
    """Give a model lessons, and its mixer a limb that can be seen, as after some training."""
    object.__setattr__(model, "lessons", lessons)
    if mixing:
        with torch.no_grad():
            model.mixer.last.bias[3:] = 0.0
    return model


def of_batch(lessons: Lessons, batch: int = 0) -> list[Tensor]:
    """Return the three lessons of a batch, by hand."""
    uniforms = torch.rand(3, 3, generator=generator(0, Stream.LESSONS, batch))
    chosen = [int(5 * u) for u in uniforms[:, 0].tolist()]
    kinds = [[kind[n].float() / 255 for n in chosen] for kind in list(lessons)[:4]]
    places = []
    for index in range(3):
        for kind, column in zip(kinds, (1, 2, 1, 1), strict=True):
            if uniforms[index, column] < 0.5:
                kind[index] = kind[index].flip(2)
        x, y = lessons.roots[chosen[index]].tolist()
        places.append(y // 4 * 8 + (31 - x if uniforms[index, 1] < 0.5 else x) // 4)  # of 8 x 8 places of 4 x 4 pixels
    return [*(torch.stack(kind) for kind in kinds), torch.tensor(places)]


def by_hand(model, images: Tensor, lessons: Lessons, pixels: str, kind: str) -> tuple[dict, dict, dict]:
    """Return the weighted terms of autoencoder and critic, and the fakes; WEIGHTS, SHARES, and no BatchNorm."""
    first, second, all_targets, alpha, roots = of_batch(lessons)
    targets = all_targets[:2]
    mean, log_variance = model.encoder(torch.cat([images, targets]))
    noise = torch.randn(10, 128, generator=generator(0, Stream.NOISE))
    codes = mean + (log_variance / 2).exp() * noise
    # What is mixed is encoded on its own; the pairs' second images have been encoded with the batch.
    of_first, of_horses = (model.encoder(with_room(parents))[0].detach() for parents in (first, images[FIRST]))
    limb = model.mixer(of_first, model.encoder(second)[0].detach(), roots)
    of_pairs = model.mixer(of_horses, codes[SECOND].detach())
    opaque = torch.sigmoid(2 * of_pairs.alpha_logits)
    pictures = (1 - opaque) * with_room(images[FIRST]) + opaque * of_pairs.colours
    matrices = random_affine(torch.rand(3, 4, generator=generator(0, Stream.MOVES)), False)
    moved = move(codes[:3].view(3, 2, 8, 8), matrices).flatten(1)
    drawn = {"reconstruction": codes[:8], "mix": model.encoder(pictures)[0], "target": codes[8:], "moved": moved}
    drawn = {name: torch.sigmoid(model.decoder(values)) for name, values in drawn.items()}

    def error(found: Tensor, wanted: Tensor, weight: Tensor | float = 1.0) -> Tensor:
        values = {
            "mse": (found - wanted) ** 2,
            "l1": (found - wanted).abs(),
            "bce": -(wanted * found.log() + (1 - wanted) * (1 - found).log()),
        }
        return (weight * values[pixels]).sum() / len(found)

    centre = torch.stack([torch.stack([(torch.arange(32) + 0.5) / 16 - 1] * 32, i) for i in (0, 1)])

    def inside(matrices: Tensor) -> Tensor:
        source = torch.einsum("bij,jhw->bihw", matrices[:, :, :2], centre) + matrices[:, :, 2, None, None]
        return (source.abs() <= 1).all(1, keepdim=True).float()

    opaque = torch.sigmoid(limb.alpha_logits)
    entropy = -(alpha * opaque.log() + (1 - alpha) * (1 - opaque).log())
    chosen = torch.softmax(limb.places, 1)[torch.arange(3), roots]
    distance = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(torch.zeros(10, 128), torch.ones(10, 128)))
    terms = {
        "reconstruction": 0.3 * error(drawn["reconstruction"], images),
        "kl": 2 * distance.sum(1).mean(),
        "target": 0.7 * error(drawn["target"], targets, 1 + 3 * alpha[:2]),
        "root": -0.9 * chosen.log().mean(),
        "alpha": 0.4 * entropy.sum() / 3,
        "colour": 5 * (alpha * (limb.colours - all_targets) ** 2).sum() / 3,
        "moved": 1.7 * error(drawn.pop("moved"), move(images[:3], matrices), inside(matrices)),
    }
    real, target = model.critic(images), model.critic(targets)
    outputs = {name: model.critic(values) for name, values in drawn.items()}
    partners = {"reconstruction": real, "target": target, "mix": target}
    shares = {"reconstruction": 0.5, "target": 0.125, "mix": 0.375}
    shown = torch.cat([real, target])
    critic = {"real": 0.0 if kind == "relativistic" else 1.5 * functional.softplus(-shown).mean()}
    if kind == "hinge":
        critic["real"] = 1.5 * (1 - shown).clamp(min=0).mean()
    for name, output in outputs.items():
        share, own = shares[name], partners[name]
        passing, losing = {
            "bce": (functional.softplus(-output), functional.softplus(output)),
            "hinge": (-output, (1 + output).clamp(min=0)),
            "relativistic": (functional.softplus(own - output), functional.softplus(output - own)),
        }[kind]
        terms[f"adversarial_{name}"] = 3 * share * passing.mean()
        critic[name] = 2.5 * share * losing.mean()
        if kind == "relativistic":
            critic["real"] = critic["real"] + 2.5 * share * losing.mean()
    return terms, critic, drawn


@pytest.mark.parametrize(("pixels", "kind"), [("bce", "bce"), ("mse", "hinge"), ("l1", "relativistic")])
def test_every_term_by_hand(pixels, kind, tiny, lessons, eight) -> None:
    config = {"weights": WEIGHTS, "adversarial_loss": kind, "reconstruction": pixels, **LEARNED, **ALONE}
    model = taught(tiny("pegasus", config), lessons)
    wanted, wanted_critic, fakes = by_hand(model, eight, lessons, pixels, kind)
    step = model.forward_batch(eight, LABELS)
    torch.testing.assert_close({"reconstruction": step.reconstructions, **step.extra_images}, fakes)
    terms, critic = model.autoencoder_losses(step), model.critic_losses(step)
    for found, expected in ((terms, wanted), (critic, wanted_critic)):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert found[name].weighted.item() == pytest.approx(value.item(), rel=1e-4), name
    gradients = torch.autograd.grad(
        sum(term.value for term in critic.values()), model.autoencoder_parameters, allow_unused=True
    )
    assert gradients == (None,) * len(gradients)


@pytest.mark.parametrize("kind", ["bce", "relativistic"])
def test_the_step_is_taken_on_these_gradients(
    kind, tiny, fit, optimizer_steps, assert_gradients, lessons, eight
) -> None:
    config = {"weights": WEIGHTS, "adversarial_loss": kind, "reconstruction": "l1", **LEARNED, **ALONE}
    model, twin = (taught(tiny("pegasus", config), lessons) for _ in range(2))
    terms, critic, _ = by_hand(twin, eight, lessons, "l1", kind)
    steps = optimizer_steps(model)
    fit(model, [(eight, LABELS)])
    for part in ("encoder", "decoder", "mixer"):
        assert_gradients(steps[0], part, getattr(twin, part), sum(terms.values()))
    if kind == "relativistic":  # each pair is in two terms, one a side: one loss of both sides
        del critic["real"]
    assert_gradients(steps[1], "critic", twin.critic, sum(critic.values()))


def test_without_learned_mixing_mixes_lie_on_the_straight_line_and_nothing_is_taught(tiny, eight) -> None:
    model = tiny("pegasus", {"mix_ratio": [0.2, 0.6], "weights": WEIGHTS | {"moves": 0.0}, **SHARES, **ALONE})
    assert model.mixer is None
    step = model.forward_batch(eight, LABELS)
    ratios = 0.2 + 0.4 * torch.rand(2, generator=generator(0, Stream.MIXING))
    codes = (1 - ratios[:, None]) * step.codes[FIRST] + ratios[:, None] * step.codes[SECOND]
    torch.testing.assert_close(step.extra_images, {"mix": torch.sigmoid(model.decoder(codes))})
    assert model.autoencoder_losses(step).keys() == {
        "reconstruction", "kl", "adversarial_reconstruction", "adversarial_mix"
    }  # fmt: skip
    start, end = torch.randn(3, 128), torch.randn(3, 128)
    torch.testing.assert_close(model.mix(start, end, torch.full((3,), 0.25)), 0.75 * start + 0.25 * end)


def test_a_model_without_lessons_says_so(tiny, fit, eight) -> None:
    with pytest.raises(RuntimeError, match="needs lessons"):
        fit(tiny("pegasus", {**LEARNED, **ALONE}), [(eight, LABELS)])


@pytest.mark.parametrize("weight", ["reconstruction", "target", "mix"])
def test_fakes_that_weigh_nothing_are_not_shown_and_the_shares_sum_to_one(weight, tiny, lessons, eight) -> None:
    weights = WEIGHTS | {f"fake_{weight}": 0.0, "critic_fake": 1.0}
    model = taught(tiny("pegasus", {"weights": weights, **LEARNED, **ALONE}), lessons)
    step = model.forward_batch(eight, LABELS)
    critic = model.critic_losses(step)
    kinds = {"reconstruction", "target", "mix"} - {weight}
    assert critic.keys() == {"real", *kinds}
    assert sum(critic[kind].weight for kind in kinds) == pytest.approx(1)
    assert {name for name in model.autoencoder_losses(step) if "adversarial" in name} == {
        f"adversarial_{kind}" for kind in kinds
    }


def test_a_fake_is_altered_as_the_image_that_it_is_compared_with(tiny, lessons, eight) -> None:
    config = {"weights": WEIGHTS, "critic_augmentation": ["brightness", "cutout"], **LEARNED, **ALONE}
    model = taught(tiny("pegasus", config), lessons)
    step = model.forward_batch(eight, LABELS)
    uniforms = torch.rand(10, 8, generator=generator(0, Stream.AUGMENTATION))
    own = {"reconstruction": uniforms[:8], "target": uniforms[8:], "mix": uniforms[8:]}
    policy = ("brightness", "cutout")
    for kind, draws in own.items():
        fakes = {"reconstruction": step.reconstructions, **step.extra_images}[kind]
        torch.testing.assert_close(step.fakes.for_critic[kind], model.critic(augment(fakes, draws, policy)))
    real = torch.cat([eight, of_batch(lessons)[2][:2]])
    torch.testing.assert_close(step.real, model.critic(augment(real, uniforms, policy)))


@pytest.mark.parametrize("kind", ["bce", "hinge", "relativistic"])
def test_the_blind_loss_by_hand(kind, tiny) -> None:
    model = tiny("pegasus", {"adversarial_loss": kind, "weights": {"critic_real": 3.0}})
    # Weights 3 and 1: p = 3/4 for BCE; for hinge an output of 1, where fakes cost 2 and images 0; else 2 ln 2.
    wanted = {"bce": -3 * math.log(3 / 4) - math.log(1 / 4), "hinge": 2, "relativistic": 2 * math.log(2)}[kind]
    assert model.blind_critic_loss() == pytest.approx(wanted)


def test_pairs_are_of_both_classes_as_far_as_the_batch_has_them(tiny) -> None:
    model = tiny("pegasus", {"mix_share": 0.5})
    for labels in (LABELS, torch.tensor([0, 0, 0, 1, 1, 1, 1, 1])):
        first, second = model._pairs(labels, 8)
        assert len(first) == len(second) == 4
        assert len({*first.tolist(), *second.tolist()}) == 8
        both = min(4, int((labels == 0).sum()))
        assert labels[first].tolist()[:both] == [0] * both
        assert labels[second].tolist() == [1] * 4
    first, second = tiny("pegasus", {"mix_share": 0.01})._pairs(None, 8)  # without labels, and at least one
    assert len(first) == len(second) == 1


def test_lessons_of_a_batch_follow_its_number_and_the_seed(tiny, lessons, eight) -> None:
    model, other = (taught(tiny("pegasus", {**LEARNED, **ALONE}, seed=seed), lessons) for seed in (0, 1))
    seen = []
    for batch in (0, 1, 2):
        model.batches_done = batch
        drawn = model._lessons_of_batch(3)
        for found, wanted in zip(drawn, of_batch(lessons, batch), strict=True):
            torch.testing.assert_close(found, wanted)
        seen.append(drawn.targets)
    assert not torch.equal(seen[0], seen[1])
    model.batches_done = 0
    assert torch.equal(model._lessons_of_batch(3).targets, seen[0])
    assert not torch.equal(other._lessons_of_batch(3).targets, seen[0])


def test_the_mixer_is_averaged_kept_and_used_in_inference(tiny, fit, lessons, eight) -> None:
    config = {"ema_decay": 0.5, "autoencoder_optimizer": {"lr": 1e-3}, **LEARNED, **ALONE}
    model = taught(tiny("pegasus", config), lessons)
    average = [p.detach().clone() for p in model.averaged["mixer"].parameters()]
    history = fit(
        model,
        [(eight, LABELS)] * 3,
        lambda m: [[p.detach().clone() for p in n.parameters()] for n in (m.mixer, m.averaged["mixer"])],
    )
    for decay, (current, kept) in zip((1 / 10, 2 / 11, 3 / 12), history, strict=True):
        average = [decay * a + (1 - decay) * c for a, c in zip(average, current, strict=True)]
        for wanted, found in zip(average, kept, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-7)
    other = tiny("pegasus", config, seed=9)
    other.load_state_dict(model.state_dict())
    first, second = torch.randn(2, 128), torch.randn(2, 128)
    half = torch.full((2,), 0.5)
    with model.inference(), other.inference():
        picture = with_room(model.decode(first))
        limb = model.averaged["mixer"](model.encode(picture).mean, second)
        wanted = model.encode(put_on(picture, limb, 2.0)).mean
        torch.testing.assert_close(model.mix(first, second, half), wanted, rtol=1e-4, atol=1e-6)
        assert torch.equal(other.mix(first, second, half), model.mix(first, second, half))
        path = model.interpolate(first, second, torch.tensor([0.0, 0.5, 1.0]))
        ends = torch.stack([model.decode(codes) for codes in (first, wanted, second)], 1)
        torch.testing.assert_close(path, ends, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(model.train().mix(first, second, half), wanted)


def test_learned_mixing_leaves_the_weights_of_the_others_alone(tiny) -> None:
    one, other = tiny("pegasus", ALONE), tiny("pegasus", {**LEARNED, **ALONE})
    for part in ("encoder", "decoder", "critic"):
        pairs = zip(getattr(one, part).parameters(), getattr(other, part).parameters(), strict=True)
        assert all(torch.equal(*pair) for pair in pairs)


@pytest.mark.slow
def test_the_whole_of_the_preset_learns_the_lesson(tiny, fit, eight) -> None:
    """One lesson: the first image is grey, the second has a bright square, which the target has in its upper half."""
    config = OmegaConf.to_container(TRAIN.compose(["model=pegasus"]).model)
    config["networks"] |= {"channels": 4, "latent_dim": 128, "residual_blocks": 0}
    config["autoencoder_optimizer"] |= {"lr": 2e-3, "warmup": 0}
    grey = torch.full((1, 3, 32, 32), 90, dtype=torch.uint8)
    bright, target, alpha = grey.clone(), grey.clone(), torch.zeros(1, 1, 32, 32, dtype=torch.uint8)
    bright[:, 0, 12:20, 12:20] = 230
    target[:, 0, 4:12, 12:20] = 230
    alpha[:, :, 4:12, 12:20] = 255
    lessons = Lessons(grey, bright, target, alpha, torch.tensor([[14, 10]]))
    model = taught(tiny("pegasus", config), lessons, mixing=False)
    images = torch.cat([grey, bright] * 4).float() / 255
    history = fit(model, [(images, torch.tensor([0, 1] * 4))] * 120)
    keys = ("root", "alpha", "colour", "target", "adversarial_target", "adversarial_mix")
    assert {f"loss/{name}" for name in keys} <= history[0].keys()
    assert {"critic_penalty/r1", "critic_penalty/r2", "critic/mix"} <= history[0].keys()
    with model.inference():
        limb = model.mixer(*model.encoder(images[:2])[0].split(1))
    assert limb.places.argmax().item() in (2 * 8 + 3, 2 * 8 + 4)  # the place of pixel (14, 10), or its mirror image
    drawn = torch.sigmoid(limb.alpha_logits)[0, 0]
    assert drawn[5:11, 13:19].min() > 0.8
    assert drawn[16:].max() < 0.2
    assert limb.colours[0, 0, 5:11, 13:19].mean() == pytest.approx(230 / 255, abs=0.1)
