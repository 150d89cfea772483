"""Pegasus: loss terms computed independently, pairing of images, and the networks that mixes and chimeras train."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.nn import functional

from pegasus_lightning.data.augmentation import OPERATIONS, augment
from pegasus_lightning.models import model_class
from pegasus_lightning.models.pegasus import GuideConfig
from pegasus_lightning.recognisers.committee import Committee
from pegasus_lightning.recognisers.network import Recogniser
from pegasus_lightning.recognisers.store import RecogniserStore, StoredRecogniser
from pegasus_lightning.train.guide import check_guide, give_guide, guide_for
from pegasus_lightning.train.settings import TRAIN
from pegasus_lightning.utils.errors import UserError
from pegasus_lightning.utils.randomness import Stream, generator

LABELS = torch.tensor([1, 0, 0, 1, 1, 0, 1, 0])
FIRST, SECOND = [1, 2, 5, 7], [6, 4, 3, 0]  # horses in order, birds in reverse order
WEIGHTS = {
    "reconstruction": 0.3,
    "kl": 2.0,
    "feature": 0.7,
    "perceptual": 5.0,
    "adversarial": 3.0,
    "guidance": 11.0,
    "layout": 6.0,
    "stay": 0.5,
    "chimera": 7.0,
    "critic_real": 1.5,
    "critic_fake": 2.5,
    "fake_reconstruction": 4.0,
    "fake_mix": 3.0,
    "fake_sample": 1.0,
    "fake_chimera": 2.0,
}
CHIMERAS = ("guidance", "layout", "stay", "chimera")  # loss terms of learned mixing
# Without BatchNorm the images of a batch are independent.
ALONE = {"networks": {"batch_norm": False, "critic_batch_norm": False}}


class Guide:
    """Guide that recognises horses by red and birds by green, with a pixel distance."""

    def __init__(self) -> None:
        self.judged: list[Tensor] = []
        self.turns: list[int] = []
        self.compared: list[int] = []

    def to(self, device: torch.device) -> None:
        """Do nothing: the guide has no tensors."""

    def logits(self, images: Tensor, turn: int) -> Tensor:
        self.judged.append(images)
        self.turns.append(turn)
        return 40 * (images.mean((2, 3))[:, :2] - 0.47)

    def distance(self, images: Tensor, others: Tensor, turn: int) -> Tensor:
        self.compared.append(len(images))
        self.turns.append(turn)
        return (images - others).square().sum((1, 2, 3)) / 100


def leaning(model, lean: float = 1.0, change: float = 0.0):
    """Give the mixer a constant lean towards the second parent and a constant change."""
    for mixer in [model.mixer] + ([] if model.averaged is None else [model.averaged["mixer"]]):
        with torch.no_grad():
            for half, value in zip(mixer.layers[-1].bias.chunk(2), (lean, change), strict=True):
                half.fill_(value)
    return model


def leant(start: Tensor, end: Tensor, ratio: Tensor, lean: float, change: float = 0.0) -> Tensor:
    """Return the mixes of a `leaning` mixer for codes (P, D), ratios (P,): 2 tanh(lean) is added to their log-odds."""
    gate = torch.sigmoid(torch.log(ratio / (1 - ratio)) + 2 * math.tanh(lean))[:, None]
    hill = (4 * ratio * (1 - ratio))[:, None]
    return start * (1 - gate) + end * gate + hill * math.tanh(change)


def guided(model, guide=None):
    object.__setattr__(model, "guide", guide or Guide())
    return model


@pytest.fixture
def eight() -> Tensor:
    return torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def softplus(x: float) -> float:
    return math.log1p(math.exp(-abs(x))) + max(x, 0)


def cells(images: Tensor) -> Tensor:
    """Return thumbnails of 4 x 4: means of 8 x 8 pixels."""
    return images.unflatten(-2, (4, 8)).unflatten(-1, (4, 8)).mean((-3, -1))


# Loss terms.


def by_hand(model, images: Tensor, kind: str, ratios: tuple[float, float]) -> tuple[dict, dict, dict]:
    """Return the terms of autoencoder and critic, weighted by WEIGHTS, and the batch's images.

    A model with learned mixing must be `leaning(model, 0.6, -0.4)`.
    """
    noise = torch.randn(8, 6, generator=generator(0, Stream.NOISE))
    share = torch.rand(4, generator=generator(0, Stream.MIXING)) * (ratios[1] - ratios[0]) + ratios[0]
    prior = torch.randn(2, 6, generator=generator(0, Stream.PRIOR))
    mean, log_variance = model.encoder(images)
    deviation = (log_variance / 2).exp()
    codes = mean + deviation * noise
    start, end = codes[FIRST].detach(), codes[SECOND].detach()
    mixed = start * (1 - share[:, None]) + end * share[:, None]
    logits = model.decoder(torch.cat([codes, mixed, prior]))
    drawn = torch.sigmoid(logits)
    fakes = {"reconstruction": drawn[:8], "mix": drawn[8:12], "sample": drawn[12:]}
    shares = {"reconstruction": 4 / 8, "mix": 3 / 8, "sample": 1 / 8}
    chimeras = fakes["mix"]
    if model.mixer is not None:
        learned = leant(start, end, share, 0.6, -0.4)
        chimeras = fakes["chimera"] = torch.sigmoid(model.decoder(learned))
        shares = {"reconstruction": 0.4, "mix": 0.3, "sample": 0.1, "chimera": 0.2}
    outputs = {name: model.critic(shown) for name, shown in fakes.items()}
    real = model.critic(images)

    def says(x: Tensor, label: int) -> Tensor:
        return functional.softplus(-x if label else x).mean()

    def passes(x: Tensor) -> Tensor:
        return says(x, 1) if kind == "bce" else -x.mean()

    apart = Normal(mean, deviation), Normal(torch.zeros(8, 6), torch.ones(8, 6))
    features = model.critic.features(images) - model.critic.features(fakes["reconstruction"])
    uniforms = torch.rand(4, 8, generator=generator(0, Stream.AUGMENTATION, 4 << 40))
    judged = 40 * (augment(chimeras, uniforms, tuple(OPERATIONS)).mean((2, 3))[:, :2] - 0.47)
    weight = share[:, None, None, None]
    blend = cells((1 - weight) * images[FIRST] + weight * images[SECOND])
    cross_entropy = functional.binary_cross_entropy_with_logits(logits[:8], images, reduction="sum") / 8
    terms = {
        "reconstruction": 0.3 * cross_entropy,
        "kl": 2 * kl_divergence(*apart).sum(1).mean(),
        "feature": 0.7 * features.square().sum() / 2 / 8,
        "perceptual": 5 * sum((images[n] - drawn[n]).square().sum() / 100 for n in (0, 2, 4, 6)) / 4,
        "guidance": 11 * sum(softplus(0.5 - value) for value in judged.flatten().tolist()) / 4,
        "layout": 6 * (cells(chimeras) - blend).square().sum() / 4,
    }
    if model.mixer is not None:
        terms["stay"] = 0.5 * (learned - mixed).square().sum() / 4
        terms["chimera"] = 7 * passes(outputs["chimera"])
    critic = {"real": 1.5 * (says(real, 1) if kind == "bce" else (1 - real).clamp(min=0).mean())}
    for name, output in outputs.items():
        if name != "chimera":
            terms[f"adversarial_{name}"] = 3 * shares[name] * passes(output)
        fake = says(output, 0) if kind == "bce" else (1 + output).clamp(min=0).mean()
        critic[name] = 2.5 * shares[name] * fake
    return terms, critic, fakes


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("kind", ["bce", "hinge"])
def test_every_term_by_hand(kind, learned, tiny, eight) -> None:
    config = {"weights": WEIGHTS, "adversarial_loss": kind, "mix_ratio": [0.2, 0.6], "margin": 0.5, **ALONE}
    model = guided(tiny("pegasus", config | {"learned_mixing": learned}))
    if learned:
        leaning(model, 0.6, -0.4)
    wanted, wanted_critic, fakes = by_hand(model, eight, kind, (0.2, 0.6))
    step = model.forward_batch(eight, LABELS)
    assert step.extra_images.keys() == fakes.keys() - {"reconstruction"}
    for name, images in step.extra_images.items():
        torch.testing.assert_close(images, fakes[name])
    terms, critic = model.autoencoder_losses(step), model.critic_losses(step)
    for found, expected in ((terms, wanted), (critic, wanted_critic)):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert found[name].weighted.item() == pytest.approx(torch.as_tensor(value).item(), rel=1e-4, abs=1e-6), name
    assert len({round(term.weighted.item(), 4) for term in terms.values()}) == len(terms)
    gradients = torch.autograd.grad(
        sum(term.value for term in critic.values()), model.autoencoder_parameters, allow_unused=True
    )
    assert gradients == (None,) * len(gradients)
    if learned:
        assert (fakes["chimera"] - fakes["mix"]).abs().max() > 1e-3


def test_the_step_is_taken_on_these_gradients(tiny, fit, optimizer_steps, assert_gradients, eight) -> None:
    weights = {**WEIGHTS, "guidance": 0.0, "perceptual": 0.0, "layout": 0.0}
    model, twin = (tiny("pegasus", {"weights": weights, **ALONE}) for _ in range(2))
    terms, critic, _ = by_hand(twin, eight, "bce", (0.3, 0.7))
    steps = optimizer_steps(model)
    fit(model, [(eight, LABELS)])
    own = sum(terms[name] for name in ("reconstruction", "kl", "feature", "adversarial_reconstruction"))
    mixes = terms["adversarial_mix"] + terms["adversarial_sample"]
    assert_gradients(steps[0], "encoder", twin.encoder, own)  # mixes do not train it
    assert_gradients(steps[0], "decoder", twin.decoder, own + mixes)
    assert_gradients(steps[1], "critic", twin.critic, sum(critic.values()))


def test_with_the_weights_of_the_start_no_guide_is_asked(tiny, eight) -> None:
    model = guided(tiny("pegasus"))
    assert not model.needs_guide
    terms = model.autoencoder_losses(model.forward_batch(eight, LABELS))
    assert terms.keys() == {
        "reconstruction", "kl", "adversarial_reconstruction", "adversarial_mix", "adversarial_sample"
    }  # fmt: skip
    assert model.guide.turns == []
    assert tiny("pegasus", {"weights": {"guidance": 1.0}}).needs_guide
    assert tiny("pegasus", {"weights": {"perceptual": 1.0}}).needs_guide


# Fakes of the critic.


@pytest.mark.parametrize(
    ("fakes", "wanted"),
    [
        ((1.0, 0.5, 0.25), {"reconstruction": 4 / 7, "mix": 2 / 7, "sample": 1 / 7}),
        ((0.0, 3.0, 1.0), {"mix": 0.75, "sample": 0.25}),
        ((3.0, 0.0, 1.0), {"reconstruction": 0.75, "sample": 0.25}),
        ((2.0, 6.0, 0.0), {"reconstruction": 0.25, "mix": 0.75}),
    ],
)
def test_the_shares_sum_to_one_and_what_weighs_nothing_is_not_shown(fakes, wanted, tiny, eight) -> None:
    names = ("fake_reconstruction", "fake_mix", "fake_sample")
    model = tiny("pegasus", {"weights": dict(zip(names, fakes, strict=True)), "adversarial_loss": "hinge", **ALONE})
    step = model.forward_batch(eight, LABELS)
    terms, critic = model.autoencoder_losses(step), model.critic_losses(step)
    assert {name for name in terms if name.startswith("adversarial")} == {f"adversarial_{name}" for name in wanted}
    assert critic.keys() == {"real", *wanted}
    with torch.no_grad():
        for name, share in wanted.items():
            outputs = model.critic({"reconstruction": step.reconstructions, **step.extra_images}[name])
            assert terms[f"adversarial_{name}"].weighted.item() == pytest.approx(
                -share * outputs.mean().item(), rel=1e-4
            )
            hinge = (1 + outputs).clamp(min=0).mean().item()
            assert critic[name].weighted.item() == pytest.approx(share * hinge, rel=1e-4)
    assert ("sample" in step.extra_images) == (fakes[2] > 0)  # decoded only if used


@pytest.mark.parametrize(
    ("fakes", "wanted"),
    [
        ((1.0, 0.5, 0.0, 0.5), {"reconstruction": 0.5, "mix": 0.25, "chimera": 0.25}),
        ((1.0, 1.0, 1.0, 5.0), {"reconstruction": 1 / 8, "mix": 1 / 8, "sample": 1 / 8, "chimera": 5 / 8}),
        ((3.0, 0.0, 0.0, 1.0), {"reconstruction": 0.75, "chimera": 0.25}),
        ((1.0, 3.0, 0.0, 0.0), {"reconstruction": 0.25, "mix": 0.75}),
    ],
)
def test_of_chimeras_the_critic_has_its_share_and_the_autoencoder_none(fakes, wanted, tiny, eight) -> None:
    names = ("fake_reconstruction", "fake_mix", "fake_sample", "fake_chimera")
    weights = dict(zip(names, fakes, strict=True)) | {"chimera": 2.0}
    model = tiny("pegasus", {"learned_mixing": True, "weights": weights, "adversarial_loss": "hinge", **ALONE})
    step = leaning(model).forward_batch(eight, LABELS)
    terms, critic = model.autoencoder_losses(step), model.critic_losses(step)
    assert critic.keys() == {"real", *wanted}
    assert {name for name in terms if name.startswith("adversarial")} == {
        f"adversarial_{name}" for name in wanted if name != "chimera"
    }
    with torch.no_grad():
        for name, share in wanted.items():
            outputs = model.critic({"reconstruction": step.reconstructions, **step.extra_images}[name])
            hinge = (1 + outputs).clamp(min=0).mean().item()
            assert critic[name].weighted.item() == pytest.approx(share * hinge, rel=1e-4)
            assert f"critic/{'fake' if name == 'reconstruction' else name}" in model._logged_means
            if name != "chimera":
                assert terms[f"adversarial_{name}"].weighted.item() == pytest.approx(
                    -share * outputs.mean().item(), rel=1e-4
                )
        # Mixing receives the critic's gradient at its own weight, whether or not the critic learns from chimeras.
        passes = -2 * model.critic(step.extra_images["chimera"]).mean().item()
    assert terms["chimera"].weighted.item() == pytest.approx(passes, rel=1e-4)


def test_without_learned_mixing_there_are_no_chimeras_to_share_in(tiny, eight) -> None:
    weights = {"fake_reconstruction": 1.0, "fake_mix": 1.0, "fake_sample": 0.0, "fake_chimera": 7.0}
    model = tiny("pegasus", {"weights": weights, "adversarial_loss": "hinge", **ALONE})
    step = model.forward_batch(eight, LABELS)
    critic = model.critic_losses(step)
    assert critic.keys() == {"real", "reconstruction", "mix"}
    outputs = model.critic(step.extra_images["mix"])
    assert critic["mix"].weighted.item() == pytest.approx((1 + outputs).clamp(min=0).mean().item() / 2, rel=1e-4)
    assert "stay" not in model.autoencoder_losses(step)


@pytest.mark.parametrize("kind", ["bce", "hinge"])
def test_the_blind_loss_by_hand(kind, tiny) -> None:
    assert tiny("pegasus", {"adversarial_loss": kind}).blind_critic_loss() == pytest.approx(
        2 * math.log(2) if kind == "bce" else 2
    )
    model = tiny("pegasus", {"adversarial_loss": kind, "weights": {"critic_real": 3.0}})
    # Weights 3 and 1: p = 3/4 for BCE; for hinge an output of 1, where the fake costs 2 and the reals cost 0.
    wanted = -3 * math.log(3 / 4) - math.log(1 / 4) if kind == "bce" else 2
    assert model.blind_critic_loss() == pytest.approx(wanted)


# Pairs.


def pairs_of(model, images: Tensor, labels: list[int]) -> list[tuple[int, int, float]]:
    pairs = model._opposites(images, torch.tensor(labels))
    return list(zip(*(column.tolist() for column in pairs), strict=True))


def test_random_pairs_take_each_image_once_the_first_class_first(tiny, eight) -> None:
    found = pairs_of(tiny("pegasus"), eight, LABELS.tolist())
    assert found == [(first, second, 1.0) for first, second in zip(FIRST, SECOND, strict=True)]
    assert sorted([*FIRST, *SECOND]) == list(range(8))


@pytest.mark.parametrize(
    ("labels", "valid"),
    [
        ([0, 0, 0, 0, 0, 0, 1, 1], 2),  # two birds, six horses
        ([1, 1, 1, 1, 1, 0, 1, 1], 1),
        ([0] * 8, 0),
        ([1] * 8, 0),
        ([0, 1, 1], 1),
    ],
)
def test_of_an_unbalanced_batch_the_pairs_of_one_class_count_for_nothing(labels, valid, tiny, eight) -> None:
    found = pairs_of(tiny("pegasus"), eight[: len(labels)], labels)
    assert len(found) == len(labels) // 2
    for first, second, counts in found:
        assert counts == float(labels[first] != labels[second])
        if counts:
            assert (labels[first], labels[second]) == (0, 1)
    assert sum(counts for *_, counts in found) == valid


def greys(*levels: float) -> Tensor:
    return torch.tensor(levels)[:, None, None, None].expand(-1, 3, 32, 32)


def test_alike_pairs_a_horse_with_the_bird_that_most_resembles_it(tiny) -> None:
    model = tiny("pegasus", {"mix_pairs": "alike"})
    images = greys(0.1, 0.2, 0.9, 0.5, 0.8, 0.45)
    # Horses 0 (0.1), 2 (0.9), 3 (0.5); birds 1 (0.2), 4 (0.8), 5 (0.45).
    assert pairs_of(model, images, [0, 1, 0, 0, 1, 1]) == [(0, 1, 1.0), (2, 4, 1.0), (3, 5, 1.0)]
    # A bird may be used twice: with fewer birds than horses each pair still has one of each.
    assert pairs_of(model, images, [0, 0, 0, 0, 1, 0]) == [(0, 4, 1.0), (1, 4, 1.0), (2, 4, 1.0)]
    assert [counts for *_, counts in pairs_of(model, images, [0] * 6)] == [0, 0, 0]
    assert [counts for *_, counts in pairs_of(model, images, [1] * 6)] == [0, 0, 0]


def test_alike_compares_thumbnails_of_four_by_four(tiny) -> None:
    model = tiny("pegasus", {"mix_pairs": "alike"})
    board = (torch.arange(32)[:, None] + torch.arange(32)) % 2  # grey when averaged
    halves = (torch.arange(32) < 16).float().expand(32, 32)
    shown = [halves, halves.flip(1), board.float(), torch.full((32, 32), 0.5), 0.9 * halves, 0.4 * halves.flip(1)]
    images = torch.stack(shown)[:, None].expand(-1, 3, -1, -1).contiguous()
    found = pairs_of(model, images, [0, 0, 0, 1, 1, 1])
    assert found == [(0, 4, 1.0), (1, 5, 1.0), (2, 3, 1.0)]


@pytest.mark.parametrize("labels", [[0, 1, 1, 1, 1, 1], [1, 1, 0, 1, 1, 1]])
def test_alike_keeps_the_first_class_first_where_there_are_few_of_it(labels, tiny) -> None:
    found = pairs_of(tiny("pegasus", {"mix_pairs": "alike"}), greys(0.1, 0.2, 0.9, 0.5, 0.8, 0.45), labels)
    for first, second, counts in found:
        assert counts == float((labels[first], labels[second]) == (0, 1))
    assert sum(counts for *_, counts in found) == 1  # the only horse


def test_a_mix_begins_at_the_first_class(tiny, eight) -> None:
    for ratio, chosen in ((0.0, FIRST), (1.0, SECOND)):
        model = tiny("pegasus", {"mix_ratio": [ratio, ratio], **ALONE})
        step = model.forward_batch(eight, LABELS)
        torch.testing.assert_close(step.extra_images["mix"], step.reconstructions[chosen], rtol=1e-4, atol=1e-5)


def test_ratios_are_drawn_from_their_range(tiny, eight) -> None:
    model = tiny("pegasus", {"mix_ratio": [0.4, 0.5], **ALONE})
    asked = []
    for batch in range(50):
        model.batches_done = batch
        step = model.forward_batch(eight, LABELS)
        asked.append(step.ratios)
    mixed = step.codes[FIRST] + asked[-1][:, None] * (step.codes[SECOND] - step.codes[FIRST])
    torch.testing.assert_close(step.extra_images["mix"], torch.sigmoid(model.decoder(mixed)), rtol=1e-4, atol=1e-5)
    ratios = torch.stack(asked)
    assert ratios.shape == (50, 4)
    assert 0.4 <= ratios.min() < 0.41
    assert 0.49 < ratios.max() <= 0.5
    assert len(ratios.unique()) > 150


# The guide.


def guidance_of(model, images: Tensor, labels: Tensor) -> tuple[float, Guide]:
    guide = Guide()
    guided(model, guide)
    return model.autoencoder_losses(model.forward_batch(images, labels))["guidance"].weighted.item(), guide


@pytest.mark.parametrize("learned", [False, True])
def test_guidance_counts_the_pairs_of_both_classes_alone(learned, tiny, eight) -> None:
    labels = torch.tensor([0, 0, 0, 0, 0, 1, 1, 0])
    model = tiny("pegasus", {"weights": {"guidance": 3.0}, "margin": 1.5, "learned_mixing": learned})
    found, guide = guidance_of(model, eight, labels)
    (judged,) = guide.judged
    logits = 40 * (judged.mean((2, 3))[:, :2] - 0.47)
    # Pairs (0, 6) and (1, 5), then two pairs of horses only; the mean is over all four.
    wanted = 3 * sum(softplus(1.5 - logit) for logit in logits[:2].flatten().tolist()) / 4
    assert found == pytest.approx(wanted, rel=1e-4)
    assert guidance_of(model, eight, torch.zeros(8, dtype=torch.int64))[0] == 0


def test_a_guide_that_sees_both_classes_is_content(tiny, eight) -> None:
    model = tiny("pegasus", {"weights": {"guidance": 1.0}, "margin": 2.0})

    class Sure(Guide):
        def logits(self, images: Tensor, turn: int) -> Tensor:
            return images.new_tensor([[30.0, 30.0]]).expand(len(images), 2)

    class Torn(Guide):
        def logits(self, images: Tensor, turn: int) -> Tensor:
            return images.new_tensor([[30.0, -6.0]]).expand(len(images), 2)

    found = {}
    for kind in (Sure, Torn):
        guided(model, kind())
        found[kind] = model.autoencoder_losses(model.forward_batch(eight, LABELS))["guidance"].weighted.item()
        assert model._logged_means["guide/both"].item() == float(kind is Sure)
    assert found[Sure] == pytest.approx(0, abs=1e-6)
    assert found[Torn] == pytest.approx(8, rel=1e-3)  # softplus(2 + 6) for the missing bird


def test_the_guide_is_asked_in_turn_about_every_second_reconstruction(tiny, eight) -> None:
    model = guided(tiny("pegasus", {"weights": {"guidance": 1.0, "perceptual": 2.0}}))
    for batch in (0, 1, 7):
        model.batches_done = batch
        model.autoencoder_losses(model.forward_batch(eight, LABELS))
    assert model.guide.compared == [4, 4, 4]
    assert model.guide.turns == [0, 0, 1, 1, 7, 7]
    assert [len(images) for images in model.guide.judged] == [4, 4, 4]


def test_the_perceptual_term_is_that_of_images_0_2_4(tiny, eight) -> None:
    model = guided(tiny("pegasus", {"weights": {"perceptual": 2.0}}))
    step = model.forward_batch(eight, LABELS)
    term = model.autoencoder_losses(step)["perceptual"].weighted
    apart = [(eight[n] - step.reconstructions[n]).square().sum().item() / 100 for n in range(8)]
    assert term.item() == pytest.approx(2 * sum(apart[::2]) / 4, rel=1e-5)
    (gradient,) = torch.autograd.grad(term, step.logits)
    moved = gradient.flatten(1).abs().sum(1) > 0
    assert moved.tolist() == [True, False] * 4


def committee() -> StoredRecogniser:
    members = [Recogniser("averaging", ("horse", "bird"), seed=n) for n in range(2)]
    return StoredRecogniser(Committee(members), Path("store/c.pt"), {"members": [{"sha256": "one"}, {"sha256": "two"}]})


def test_the_guide_is_no_part_of_the_models_state(tiny, eight, fit) -> None:
    model = tiny("pegasus", {"weights": {"guidance": 1.0, "perceptual": 1.0}})

    def contents() -> list[str]:
        return [*model.state_dict(), *(name for name, _ in model.named_parameters()), *map(str, model.modules())]

    own = contents()
    given = committee()
    guide = given.recogniser
    give_guide(model, given)
    assert model.guide is guide
    assert contents() == own
    before = {name: value.clone() for name, value in guide.state_dict().items()}
    (logged,) = fit(model, [(eight, LABELS)])
    assert logged["loss/guidance"] > 0
    assert logged["loss/perceptual"] > 0
    assert all(torch.equal(value, before[name]) for name, value in guide.state_dict().items())
    assert all(parameter.grad is None for parameter in guide.parameters())
    assert not any(member.training for member in guide.members)


def test_a_guide_is_opened_only_for_a_model_that_uses_one(monkeypatch) -> None:
    asked = []

    def committee(store: RecogniserStore, *given, **more) -> str:
        asked.append((store, given, more))
        return "guide"

    def opened(variant: str, **weights: float):
        model = model_class(variant).Config()
        for name, value in weights.items():
            setattr(model.weights, name, value)
        if variant == "pegasus":
            model.guide = GuideConfig(["plain"], images=7)
        return guide_for(model, "data", torch.device("meta"))

    monkeypatch.setattr(RecogniserStore, "committee", committee)
    assert [opened("pegasus"), opened("vae")] == [None, None]
    assert asked == []
    assert [opened("pegasus", guidance=0.1), opened("pegasus", perceptual=0.1)] == ["guide", "guide"]
    for store, given, more in asked:
        assert (given, more) == (("data", ["plain"]), {"images": 7})
        assert store.device == torch.device("meta")  # they are trained on the model's device


def test_a_model_that_needs_a_guide_is_not_trained_without(tiny, fit, eight) -> None:
    with pytest.raises(RuntimeError, match="need a guide, and the model has none"):
        fit(tiny("pegasus", {"weights": {"guidance": 1.0}}), [(eight, LABELS)])


def test_a_run_goes_on_with_its_own_guide_or_not_at_all(tiny, fit, eight, tmp_path) -> None:
    model, file = tiny("pegasus", {"weights": {"guidance": 1.0}}), tmp_path / "last.ckpt"
    give_guide(model, committee())
    fit(model, [(eight, LABELS)])
    checkpoint: dict = {}
    model.on_save_checkpoint(checkpoint)
    assert checkpoint["guide"] == ["one", "two"]
    torch.save(checkpoint | {"state_dict": {}, "hyper_parameters": {}}, file)
    check_guide(committee(), file)
    check_guide(None, file)
    check_guide(committee(), None)
    other = committee()
    other.quality["members"][1]["sha256"] = "three"
    with pytest.raises(UserError, match="was guided by other recognisers than those in store"):
        check_guide(other, file)
    del checkpoint["guide"]
    torch.save(checkpoint | {"state_dict": {}, "hyper_parameters": {}}, file)
    check_guide(other, file)  # older checkpoints do not name their guide


# Networks that the mixes train.


def reached(model, loss: Tensor, network: nn.Module) -> bool:
    gradients = torch.autograd.grad(loss, list(network.parameters()), retain_graph=True, allow_unused=True)
    return any(g is not None and g.abs().sum() > 0 for g in gradients)


@pytest.mark.parametrize("term", ["adversarial_mix", "guidance", "layout"])
def test_without_learned_mixing_mixes_teach_the_decoder_and_not_the_encoder(term, tiny, eight) -> None:
    model = guided(tiny("pegasus", {"weights": WEIGHTS, **ALONE}))
    loss = model.autoencoder_losses(model.forward_batch(eight, LABELS))[term].value
    assert not reached(model, loss, model.encoder)
    assert reached(model, loss, model.decoder)


@pytest.mark.parametrize("averaged", [None, 0.9])
@pytest.mark.parametrize("term", CHIMERAS)
def test_with_it_chimeras_teach_the_mixing_alone(term, averaged, tiny, eight) -> None:
    config = {"learned_mixing": True, "weights": WEIGHTS, "ema_decay": averaged, **ALONE}
    model = guided(leaning(tiny("pegasus", config)))
    loss = model.autoencoder_losses(model.forward_batch(eight, LABELS))[term].value
    assert not reached(model, loss, model.encoder)
    assert not reached(model, loss, model.decoder)
    assert reached(model, loss, model.mixer)


def test_with_it_mixes_still_teach_the_decoder_and_nothing_of_theirs_the_mixing(tiny, eight) -> None:
    model = guided(leaning(tiny("pegasus", {"learned_mixing": True, "weights": WEIGHTS, **ALONE})))
    terms = model.autoencoder_losses(model.forward_batch(eight, LABELS))
    assert reached(model, terms["adversarial_mix"].value, model.decoder)
    assert not reached(model, terms["adversarial_mix"].value, model.encoder)
    own = sum(term.weighted for name, term in terms.items() if name not in CHIMERAS)
    assert reached(model, own, model.encoder)
    assert not reached(model, own, model.mixer)


@pytest.mark.parametrize("adaptive", [False, True])
def test_the_routes_are_two_and_share_no_term(adaptive, tiny, eight) -> None:
    config = {"learned_mixing": True, "weights": WEIGHTS, "adaptive_adversarial": adaptive, **ALONE}
    model = guided(leaning(tiny("pegasus", config)))
    terms = model.autoencoder_losses(model.forward_batch(eight, LABELS))
    (own, _), (chimeras, taught) = model.routes(terms)
    assert [id(p) for p in taught] == [id(p) for p in model.mixer.parameters()]
    assert chimeras.item() == pytest.approx(sum(terms[name].weighted.item() for name in CHIMERAS), rel=1e-5)
    scale = model.adversarial_scale.item() if adaptive else 1.0
    assert (scale != 1) == adaptive
    wanted = sum(
        term.weighted.item() * (scale if name.startswith("adversarial") else 1)
        for name, term in terms.items()
        if name not in CHIMERAS
    )
    assert own.item() == pytest.approx(wanted, rel=1e-4)
    assert not reached(model, own, model.mixer)


def parts_of(step, *names: str) -> dict[str, Tensor]:
    return {name: value for name, value in step.gradients.items() if name.split(".")[0] in names}


def test_the_mixing_steps_on_the_chimeras_terms_and_the_rest_as_if_there_were_none(
    tiny, fit, optimizer_steps, assert_gradients, eight
) -> None:
    """With BatchNorm in decoder and critic."""
    found = {}
    for size in (0.0, 1.0):
        weights = WEIGHTS | {name: size * WEIGHTS[name] for name in CHIMERAS}
        model = guided(leaning(tiny("pegasus", {"learned_mixing": True, "weights": weights}), 0.6, -0.4))
        steps = optimizer_steps(model)
        fit(model, [(eight, LABELS)])
        found[size] = steps[0]
        assert ("loss/guidance" in model.latest) == (size > 0)
    without, with_them = (parts_of(found[size], "encoder", "decoder") for size in (0.0, 1.0))
    assert all(torch.equal(gradient, without[name]) for name, gradient in with_them.items())
    assert all(gradient.abs().sum() == 0 for gradient in parts_of(found[0.0], "mixer").values())
    twin = guided(leaning(tiny("pegasus", {"learned_mixing": True, "weights": WEIGHTS}), 0.6, -0.4))
    terms = twin.autoencoder_losses(twin.forward_batch(eight, LABELS))
    assert_gradients(found[1.0], "mixer", twin.mixer, sum(terms[name].weighted for name in CHIMERAS))
    own = sum(term.weighted for name, term in terms.items() if name not in CHIMERAS)
    for name in ("encoder", "decoder"):
        assert_gradients(found[1.0], name, getattr(twin, name), own)


@pytest.mark.parametrize("decoder", ["plain", "residual"])
def test_decoding_chimeras_leaves_the_decoder_as_it_was(decoder, tiny, eight) -> None:
    """Chimeras do not enter the decoder's running statistics."""
    config = {"networks": {"decoder": decoder}}
    model, twin = (tiny("pegasus", config | {"learned_mixing": learned}) for learned in (True, False))
    before = {name: value.clone() for name, value in model.decoder.named_buffers()}
    step, other = (one.forward_batch(eight, LABELS) for one in (leaning(model), twin))
    counted = [name for name in before if name.endswith("num_batches_tracked")]
    assert counted
    assert {model.decoder.state_dict()[name].item() for name in counted} == {1}
    for name, value in twin.decoder.named_buffers():
        assert torch.equal(dict(model.decoder.named_buffers())[name], value), name
        assert not torch.equal(value, before[name]), name
    torch.testing.assert_close(step.extra_images["mix"], other.extra_images["mix"])
    torch.testing.assert_close(step.reconstructions, other.reconstructions)
    assert all(p.requires_grad for p in model.decoder.parameters())
    assert model.decoder.training


@pytest.mark.parametrize("averaged", [None, 0.9])
def test_chimeras_are_decoded_as_in_inference(averaged, tiny, eight) -> None:
    """With the averaged weights, if any, and BatchNorm's running statistics, without side effects."""
    model = leaning(tiny("pegasus", {"learned_mixing": True, "ema_decay": averaged}))
    for network in (model.decoder, *([] if averaged is None else [model.averaged["decoder"]])):
        for index, (name, buffer) in enumerate(network.named_buffers()):
            if "running" in name:
                buffer += 0.1 * (1 + index) + (0.3 if network is model.decoder else 0)
    other = None if averaged is None else {k: v.clone() for k, v in model.averaged["decoder"].state_dict().items()}
    step = model.forward_batch(eight, LABELS)
    learned = leant(step.codes[FIRST], step.codes[SECOND], step.ratios, 1.0)
    batch = step.extra_images["chimera"]
    with model.inference():
        torch.testing.assert_close(batch, model.decode(learned), rtol=1e-4, atol=1e-5)
    if other is not None:
        assert all(torch.equal(value, other[name]) for name, value in model.averaged["decoder"].state_dict().items())
        assert not any(p.requires_grad for p in model.averaged.parameters())
        assert model.averaged["decoder"].training
    alone = torch.sigmoid(model.decoder(learned))  # normalised by batch statistics
    assert (alone - batch).abs().max() > 1e-2


@pytest.mark.parametrize("averaged", [None, 0.9])
def test_the_mixing_steps_on_gradients_through_the_function_of_inference(
    averaged, tiny, fit, optimizer_steps, assert_gradients, eight
) -> None:
    """BatchNorm's running statistics do not change between the chimeras and their backward pass."""
    config = {"learned_mixing": True, "weights": WEIGHTS | {"chimera": 0.0}, "ema_decay": averaged}
    model, twin = (guided(leaning(tiny("pegasus", config), 0.6, -0.4)) for _ in range(2))
    steps = optimizer_steps(model)
    fit(model, [(eight, LABELS)])
    step = twin.forward_batch(eight, LABELS)  # now holds the statistics of inference
    decoder = copy.deepcopy(twin.decoder if averaged is None else twin.averaged["decoder"]).eval()
    mixed = twin.mixer(step.codes.detach()[FIRST], step.codes.detach()[SECOND], step.ratios)
    step.extra_images["chimera"] = torch.sigmoid(decoder(mixed))
    terms = twin.autoencoder_losses(step)
    assert_gradients(steps[0], "mixer", twin.mixer, sum(terms[name].weighted for name in CHIMERAS))


@pytest.mark.parametrize("learned", [False, True])
def test_the_layout_counts_pairs_of_both_classes_alone(learned, tiny, eight) -> None:
    labels = torch.tensor([0, 0, 0, 1, 0, 0, 0, 0])
    config = {"weights": {"layout": 2.0}, "mix_ratio": [0.25, 0.25], "learned_mixing": learned}
    model = tiny("pegasus", config)
    step = (leaning(model) if learned else model).forward_batch(eight, labels)
    chimera = step.extra_images["chimera" if learned else "mix"][0]
    wanted = (cells(chimera) - cells(0.75 * eight[0] + 0.25 * eight[3])).square().sum()
    assert model.autoencoder_losses(step)["layout"].weighted.item() == pytest.approx(2 * wanted.item() / 4, rel=1e-4)


# Learned mixing.


def test_staying_is_the_squared_way_from_the_straight_line(tiny, eight) -> None:
    config = {"learned_mixing": True, "weights": {"stay": 3.0}, "mix_ratio": [0.5, 0.5], **ALONE}
    model = tiny("pegasus", config)
    terms = model.autoencoder_losses(model.forward_batch(eight, LABELS))
    assert terms["stay"].weighted.item() == pytest.approx(0, abs=1e-9)  # mixing starts at lerp
    leaning(model, 0.0, 0.5)
    terms = model.autoencoder_losses(model.forward_batch(eight, LABELS))
    assert terms["stay"].weighted.item() == pytest.approx(
        3 * 6 * math.tanh(0.5) ** 2, rel=1e-4
    )  # six latents at equal distance
    leaning(model, 0.7)
    step = model.forward_batch(eight, LABELS)
    shift = 1 / (1 + math.exp(-2 * math.tanh(0.7))) - 0.5
    apart = (step.codes[SECOND] - step.codes[FIRST]).square().sum(1).mean().item()
    wanted = 3 * shift**2 * apart
    assert model.autoencoder_losses(step)["stay"].weighted.item() == pytest.approx(wanted, rel=1e-4)


def test_chimeras_are_shown_to_the_critic_altered_in_their_own_way(tiny, eight) -> None:
    """Fakes are altered in one draw: eight reconstructions, four mixes, two samples, four chimeras."""
    config = {"learned_mixing": True, "weights": {"chimera": 2.0}, "critic_augmentation": ["brightness"], **ALONE}
    model = leaning(tiny("pegasus", config))
    step = model.forward_batch(eight, LABELS)
    uniforms = torch.rand(18, 8, generator=generator(0, Stream.AUGMENTATION))[14:]
    outputs = model.critic(augment(step.extra_images["chimera"], uniforms, ("brightness",)))
    wanted = 2 * functional.softplus(-outputs).mean().item()
    assert model.autoencoder_losses(step)["chimera"].weighted.item() == pytest.approx(wanted, rel=1e-4)
    plain = 2 * functional.softplus(-model.critic(step.extra_images["chimera"])).mean().item()
    assert abs(plain - wanted) > 1e-5


def test_without_it_mixes_lie_on_the_straight_line(tiny) -> None:
    model = tiny("pegasus")
    assert model.mixer is None
    start, end = torch.randn(3, 6), torch.randn(3, 6)
    ratios = torch.tensor([0.1, 0.5, 0.8])
    torch.testing.assert_close(model.mix(start, end, ratios), start + ratios[:, None] * (end - start))
    assert not any("mixer" in name for name in model.state_dict())


def test_learned_mixing_is_used_by_mix_by_interpolate_and_in_training(tiny, eight) -> None:
    model = tiny("pegasus", {"learned_mixing": True, "mix_ratio": [0.5, 0.5], **ALONE})
    leaning(model)
    gate = 1 / (1 + math.exp(-2 * math.tanh(1)))  # log-odds 0 at ratio 1/2, plus the lean
    step = model.forward_batch(eight, LABELS)
    mixed = step.codes[FIRST] * (1 - gate) + step.codes[SECOND] * gate
    straight = (step.codes[FIRST] + step.codes[SECOND]) / 2
    for name, codes in (("chimera", mixed), ("mix", straight)):
        torch.testing.assert_close(step.extra_images[name], torch.sigmoid(model.decoder(codes)), rtol=1e-4, atol=1e-5)
    model.eval()
    with torch.no_grad():
        start, end = model.encode(eight[:2]).mean, model.encode(eight[2:4]).mean
        torch.testing.assert_close(model.mix(start, end, torch.full((2,), 0.5)), start + gate * (end - start))
        path = model.interpolate(start, end, torch.tensor([0.0, 0.5, 1.0]))
        assert path.shape == (2, 3, 3, 32, 32)
        wanted = [
            model.reconstruct(eight[:2]),
            model.decode(start + gate * (end - start)),
            model.reconstruct(eight[2:4]),
        ]
        torch.testing.assert_close(path, torch.stack(wanted, 1), rtol=1e-4, atol=1e-5)
        assert (path[:, 1] - model.decode((start + end) / 2)).abs().max() > 1e-5


def test_the_mixer_steps_with_the_autoencoder_and_is_averaged(tiny, fit, eight, optimizer_steps) -> None:
    config = {"learned_mixing": True, "ema_decay": 0.15, "autoencoder_optimizer": {"lr": 1e-2}}
    model = tiny("pegasus", config)
    groups = model.configure_optimizers()
    stepped = [{id(p) for group in optimizer.param_groups for p in group["params"]} for optimizer in groups]
    for parameter in model.mixer.parameters():
        assert [id(parameter) in players for players in stepped] == [True, False]
    average = [p.detach().clone() for p in model.mixer.parameters()]
    start = [p.clone() for p in average]
    history = fit(
        model,
        [(eight, LABELS)] * 3,
        lambda m: [[p.detach().clone() for p in n.parameters()] for n in (m.mixer, m.averaged["mixer"])],
    )
    for decay, (current, kept) in zip((1 / 10, 0.15, 0.15), history, strict=True):
        average = [decay * a + (1 - decay) * c for a, c in zip(average, current, strict=True)]
        for wanted, found in zip(average, kept, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-7)
    assert all(not torch.equal(*pair) for pair in zip(start, history[-1][0], strict=True))
    assert not any(p.requires_grad for p in model.averaged.parameters())


def test_in_eval_mode_the_averaged_mixer_mixes(tiny) -> None:
    model = tiny("pegasus", {"learned_mixing": True, "ema_decay": 0.5})
    with torch.no_grad():
        # A gate of 3/4 at ratio 1/2: 2 tanh(lean) = log 3.
        model.averaged["mixer"].layers[-1].bias.chunk(2)[0].fill_(math.atanh(math.log(3) / 2))
    start, end = torch.randn(2, 6), torch.randn(2, 6)
    half = torch.full((2,), 0.5)
    torch.testing.assert_close(model.mix(start, end, half), (start + end) / 2)
    torch.testing.assert_close(model.eval().mix(start, end, half), start / 4 + end * 3 / 4)


@pytest.mark.parametrize("latent", ["flat", "spatial"])
def test_the_mixer_is_kept_in_the_state_and_follows_the_seed(latent, tiny, fit, eight) -> None:
    config = {"learned_mixing": True, "ema_decay": 0.9, "networks": {"latent": latent, "latent_dim": 32}}
    model, twin, other = (tiny("pegasus", config, seed=seed) for seed in (1, 1, 2))
    for one, two in zip(model.mixer.parameters(), twin.mixer.parameters(), strict=True):
        assert torch.equal(one, two)
    assert not torch.equal(model.mixer.layers[0].weight, other.mixer.layers[0].weight)
    fit(model, [(eight, LABELS)] * 2)
    other.load_state_dict(model.state_dict())
    source = torch.Generator().manual_seed(0)
    first, second = (torch.randn(3, 32, generator=source) for _ in range(2))
    ratios = torch.tensor([0.3, 0.5, 0.7])
    for mode in (True, False):
        wanted = model.train(mode).mix(first, second, ratios)
        assert torch.equal(other.train(mode).mix(first, second, ratios), wanted)
        assert not torch.allclose(wanted, first + ratios[:, None] * (second - first), atol=1e-6)


def test_learned_mixing_leaves_the_weights_of_the_others_alone(tiny) -> None:
    one, other = tiny("pegasus"), tiny("pegasus", {"learned_mixing": True})
    for part in ("encoder", "decoder", "critic"):
        pairs = zip(getattr(one, part).parameters(), getattr(other, part).parameters(), strict=True)
        assert all(torch.equal(*pair) for pair in pairs)


def test_the_whole_of_the_preset_trains(tiny, fit) -> None:
    config = OmegaConf.to_container(TRAIN.compose(["model=pegasus"]).model)
    config["networks"] |= {"channels": 4, "latent_dim": 16}
    config["autoencoder_optimizer"]["lr"] = 0.01
    model = tiny("pegasus", config)
    give_guide(model, committee())
    dark = torch.where(LABELS[:, None, None, None] == 0, torch.arange(32) < 16, torch.arange(32) >= 16)
    halves = (0.03 + 0.94 * dark.float()).expand(8, 3, 32, 32).contiguous()  # one per class
    history = fit(model, [(halves, LABELS)] * 16)
    keys = {f"loss/{name}" for name in ("reconstruction", "kl", "perceptual", "adversarial_mix", *CHIMERAS)}
    keys |= {"critic_loss/chimera", "critic/chimera", "critic_penalty/r1", "guide/both"}
    assert keys <= history[0].keys()
    assert "loss/adversarial_sample" not in history[0]
    assert any((p != 0).any() for p in model.mixer.layers[-1].parameters())  # the mixer has been trained
    assert history[-1]["loss/reconstruction"] < 0.8 * history[0]["loss/reconstruction"]
