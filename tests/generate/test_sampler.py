"""Tests of the sampler with tiny models: codes, critics, searches and their order, against their parts by hand."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pegasus_lightning.data.batches import ImageSet
from pegasus_lightning.generate.mixing import Mixes, Recipes, encode, mixing_of
from pegasus_lightning.generate.pairs import Pairs, Parents, pairs_for, wanted_pairs
from pegasus_lightning.generate.sampler import Pegasi, Sampler, sample
from pegasus_lightning.generate.search import Ascent
from pegasus_lightning.generate.settings import GENERATE, GenerateConfig, PegasusConfig, SearchConfig
from pegasus_lightning.models.two_player import TwoPlayerModel
from pegasus_lightning.utils.compose import typed
from pegasus_lightning.utils.errors import UserError
from pegasus_lightning.utils.randomness import Stream, generator
from pegasus_lightning.utils.tensors import BATCH, to_float

ADVERSARIAL = [("acai", -1), ("adversarial_vae", 1), ("vae_gan", 1)]


def photos(count: int, key: int) -> Tensor:
    """uint8 noise, every image in a range of its own."""
    source = generator(key, Stream.PICTURES)
    low, high = (torch.rand(count, 3, 1, 1, generator=source) for _ in range(2))
    return (255 * torch.lerp(low, high, torch.rand(count, 3, 32, 32, generator=source))).byte()


PARENTS = Parents(photos(10, 1), photos(12, 2), ("horse", "bird"))
CHOSEN = [(7, 3), (2, 11), (7, 0), (5, 3), (9, 8)]


def pairs_of(pairs: list[tuple[int, int]]) -> Pairs:
    first, second = torch.tensor(pairs).unbind(1)
    return Pairs(first, second, None, len(pairs), len(pairs))


@functools.cache
def composed(*overrides: str) -> GenerateConfig:
    return typed(GENERATE.compose(["run=[x]", *overrides]), GenerateConfig)


def lively(model: TwoPlayerModel) -> TwoPlayerModel:
    """Its BatchNorms normalise noise, as after training: codes and images of an untrained model hardly differ."""
    networks = (
        (model.encoder, photos(64, 8).float() / 255),
        (model.decoder, torch.randn(64, 6, generator=generator(0, Stream.PRIOR))),
    )
    for network, inputs in networks:
        norms = [part for part in network.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
        for norm in norms:
            norm.momentum = 1.0
        with torch.no_grad():
            network.train()(inputs)
    return model


Build = Callable[..., Sampler]


@pytest.fixture
def build(tiny: Callable[..., TwoPlayerModel]) -> Iterator[Build]:
    """build(model, *overrides): a sampler inside `inference`; pairs are CHOSEN of PARENTS unless others are given."""
    with ExitStack() as stack:

        def make(
            model: TwoPlayerModel | str,
            *overrides: str,
            parents: Parents = PARENTS,
            pairs: list[tuple[int, int]] = CHOSEN,
        ) -> Sampler:
            model = lively(tiny(model) if isinstance(model, str) else model)
            stack.enter_context(model.inference())
            return Sampler(model, parents, pairs_of(pairs), composed(*overrides))

        yield make


class Level(nn.Module):
    """A critic: the mean over an image, in units of its own."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, images: Tensor) -> Tensor:
        return self.scale * images.mean((1, 2, 3))


def means_of(model: TwoPlayerModel, images: Tensor) -> Tensor:
    return model.encode(images.float() / 255).mean


def recipes_of(*rows: tuple[int, int, float]) -> Recipes:
    first, second, ratios = zip(*rows, strict=True)
    return Recipes(torch.tensor(first), torch.tensor(second), torch.tensor(ratios), torch.arange(len(rows)))


def log_sigmoid(x: float) -> float:
    return -math.log(1 + math.exp(-x))


def constant(mixes: Mixes) -> dict[str, Tensor]:
    return {"nothing": 0 * mixes.images.sum((1, 2, 3))}


# Parents.


def test_parents_are_the_images_of_each_class_in_the_splits_order() -> None:
    labels = torch.tensor([1, 0, 0, 1, 2, 0])
    images = photos(6, 3)
    parents = Parents.of(ImageSet(images, labels, ("up", "down", "off")))
    assert torch.equal(parents.first, images[[1, 2, 5]])
    assert torch.equal(parents.second, images[[0, 3]])
    assert parents.classes == ("up", "down")


def test_pairs_are_chosen_as_the_settings_say() -> None:
    # Grey levels: only (0, 0) is within .1 of each other in all channels, (0, 0) and (1, 0) within .5.
    first, second = (torch.tensor(v, dtype=torch.uint8)[:, None, None, None] for v in ([100, 150], [102, 250]))
    parents = Parents(first.expand(-1, 3, 32, 32), second.expand(-1, 3, 32, 32), ("horse", "bird"))
    near = pairs_for(parents, PegasusConfig(), 3, 0)
    assert (near.candidates, near.possible, len(near)) == (1, 4, 3)
    assert (near.first.tolist(), near.second.tolist()) == ([0] * 3, [0] * 3)
    assert pairs_for(parents, PegasusConfig(threshold=0.5), 3, 0).candidates == 2
    anything = PegasusConfig(pairs="random")
    assert pairs_for(parents, anything, 3, 0).candidates == 4
    with pytest.raises(UserError):  # 2 of 255 greys are .8 of lightness
        pairs_for(parents, PegasusConfig(colour_distance="lab", threshold=0.5), 3, 0)
    many = [pairs_for(PARENTS, anything, 20, seed).first.tolist() for seed in (0, 0, 1)]
    assert many[0] == many[1] != many[2]
    # As many as are made, or as many as a search tries.
    made = GenerateConfig(count=5, seed=2, pegasus=anything)
    tried = GenerateConfig(count=5, seed=2, pegasus=anything, search=SearchConfig(method="best_of", pairs=9))
    for settings, count in ((made, 5), (tried, 9)):
        found = wanted_pairs(PARENTS, settings)
        assert len(found) == count
        assert torch.equal(found.first, pairs_for(PARENTS, anything, count, 2).first)


@pytest.mark.parametrize("deterministic", [False, True])
def test_encoding_in_batches_is_encoding_at_once(tiny: Callable[..., TwoPlayerModel], deterministic: bool) -> None:
    model, images = tiny("vae", {"sample_codes": not deterministic}), photos(BATCH + 44, 5)
    with model.inference():
        found, wanted = encode(model, images), model.encode(images.float() / 255)
    torch.testing.assert_close(found.mean, wanted.mean)
    torch.testing.assert_close(found.log_variance, wanted.log_variance)
    assert len(found.mean) == BATCH + 44
    assert found.deterministic is deterministic


def test_recipes_lead_back_to_the_images_of_the_data(build: Build) -> None:
    sampler = build("vae", "pegasus.codes=mean")
    chosen = Recipes(sampler.pairs.first, sampler.pairs.second, torch.zeros(5), torch.arange(5))
    first, second = sampler.parent_indices(chosen)
    assert list(zip(first.tolist(), second.tolist(), strict=True)) == CHOSEN
    backwards = chosen.take(torch.tensor([4, 1]))
    assert [indices.tolist() for indices in sampler.parent_indices(backwards)] == [[9, 2], [8, 11]]
    originals = sampler.originals(backwards)
    assert torch.equal(originals[0], PARENTS.first[[9, 2]])
    assert torch.equal(originals[1], PARENTS.second[[8, 11]])
    # Parents are encoded once each, and their codes are those of these images.
    assert [len(posterior.mean) for posterior in (sampler.mixer.first, sampler.mixer.second)] == [4, 4]
    start, end = sampler.mixer.parent_codes(chosen)
    torch.testing.assert_close(start, means_of(sampler.model, PARENTS.first[[7, 2, 7, 5, 9]]))
    torch.testing.assert_close(end, means_of(sampler.model, PARENTS.second[[3, 11, 0, 3, 8]]))


# Mixes.


def test_codes_are_drawn_or_means_as_the_settings_say(build: Build) -> None:
    chosen = recipes_of((0, 1, 0.0), (2, 3, 0.0))
    means = build("vae", "pegasus.codes=mean").make(chosen).codes
    drawn = [build("vae", *more).make(chosen).codes for more in ((), ("seed=0",), ("seed=1",))]
    assert (drawn[0] - means).abs().min() > 1e-4
    assert torch.equal(drawn[0], drawn[1])
    assert (drawn[2] - drawn[0]).abs().min() > 1e-4


@pytest.mark.parametrize("batch_size", [1, 2, 5, 256])
def test_mixes_by_hand_whatever_the_batches(build: Build, batch_size: int) -> None:
    sampler = build("vae", "pegasus.codes=mean", "search.method=best_of", f"search.batch_size={batch_size}")
    chosen = recipes_of((0, 3, 0.25), (3, 1, -0.5), (1, 1, 2.0))
    made = sampler.make(chosen)
    # Parents in use, ascending: 2, 5, 7, 9 and 0, 3, 8, 11.
    start = means_of(sampler.model, PARENTS.first[[2, 9, 5]])
    end = means_of(sampler.model, PARENTS.second[[11, 3, 3]])
    ratios = torch.tensor([[0.25], [-0.5], [2.0]])
    torch.testing.assert_close(made.codes, (1 - ratios) * start + ratios * end)
    torch.testing.assert_close(made.images, sampler.model.decode(made.codes))
    torch.testing.assert_close(made.first, sampler.model.decode(start))
    torch.testing.assert_close(made.second, sampler.model.decode(end))
    assert made.ratios.tolist() == [0.25, -0.5, 2.0]


@pytest.mark.parametrize("mixing", ["lerp", "slerp"])
@pytest.mark.parametrize("codes", ["mean", "sampled"])
def test_interpolations_lead_from_parent_to_parent(build: Build, mixing: str, codes: str) -> None:
    sampler = build("vae", f"pegasus.mixing={mixing}", f"pegasus.codes={codes}")
    chosen = recipes_of((0, 3, 0.3), (2, 1, 0.9))
    found = sampler.interpolations(chosen, torch.tensor([0.0, 0.3, 1.0]))
    assert found.shape == (2, 3, 3, 32, 32)
    start, end = sampler.mixer.parent_codes(chosen)
    decode = sampler.model.decode
    for ratio, wanted in ((0, decode(start)), (2, decode(end))):
        torch.testing.assert_close(found[:, ratio], wanted, rtol=0, atol=1e-5)
    assert (decode(start) - decode(end)).abs().amax((1, 2, 3)).min() > 1e-3  # else it would say nothing
    torch.testing.assert_close(found[0, 1], sampler.make(chosen).images[0], rtol=0, atol=1e-5)  # its own ratio


def test_the_class_direction_is_that_of_all_images(build: Build) -> None:
    sampler = build("vae", "pegasus.mixing=direction", "pegasus.codes=mean")
    model, chosen = sampler.model, recipes_of((0, 3, 1.0), (2, 1, 2.0))
    direction = means_of(model, PARENTS.second).mean(0) - means_of(model, PARENTS.first).mean(0)
    start = means_of(model, PARENTS.first[[2, 7]])
    ratios = torch.tensor([[1.0], [2.0]])
    torch.testing.assert_close(sampler.make(chosen).codes - start, ratios * direction, rtol=1e-3, atol=1e-5)
    strip = sampler.interpolations(chosen, torch.tensor([0.0, 1.5]))
    wanted = torch.stack([model.decode(start), model.decode(start + 1.5 * direction)], 1)
    torch.testing.assert_close(strip, wanted, rtol=0, atol=1e-5)
    # The pairs' own parents alone would give another one.
    own = means_of(model, PARENTS.second[[0, 3, 8, 11]]).mean(0) - means_of(model, PARENTS.first[[2, 5, 7, 9]]).mean(0)
    assert (own - direction).abs().max() > 1e-3


# The critic.


@pytest.mark.parametrize(("name", "sign"), ADVERSARIAL)
def test_the_critics_output_by_hand(build: Build, tiny: Callable[..., TwoPlayerModel], name: str, sign: int) -> None:
    parents = Parents(photos(40, 1), photos(40, 2), ("horse", "bird"))
    model = tiny(name)
    model.critic = Level(30.0)
    sampler = build(model, parents=parents, pairs=[(n, 39 - n) for n in range(35)])
    # Its reference are the reconstructions of the parents in use, 35 of each class.
    used = torch.cat([parents.first[:35], parents.second[5:]])
    outputs = 30 * model.decode(means_of(model, used)).mean((1, 2, 3))
    levels = outputs.mean() / 30 + outputs.std() / 30 * torch.tensor([-2.0, 0.5, 3.0])
    found = sampler.critic(levels[:, None, None, None].expand(-1, 3, 32, 32))
    assert found.tolist() == pytest.approx([log_sigmoid(sign * x) for x in (-2.0, 0.5, 3.0)], rel=1e-2)
    assert (sign * found.diff() > 0).all()


@pytest.mark.parametrize(("name", "sign"), ADVERSARIAL)
def test_a_critic_rates_reconstructions_as_it_does_in_training(build: Build, name: str, sign: int) -> None:
    parents = Parents(photos(40, 1), photos(40, 2), ("horse", "bird"))
    sampler = build(name, parents=parents, pairs=[(n, n) for n in range(40)])
    model = sampler.model
    before = copy.deepcopy(model.critic.state_dict())
    images = model.decode(means_of(model, torch.cat([parents.first, parents.second])))
    found = sampler.critic(images)
    assert all(torch.equal(value, before[key]) for key, value in model.critic.state_dict().items())  # left alone
    raw = copy.deepcopy(model.critic).train()(images)  # BatchNorm by the batch: that of the reference
    wanted = torch.nn.functional.logsigmoid(sign * (raw - raw.mean()) / raw.std())
    torch.testing.assert_close(found, wanted, rtol=0.02, atol=0.02)
    assert torch.equal(found.argsort(), sampler.critic(images.flip(0)).flip(0).argsort())  # each on its own
    assert torch.corrcoef(torch.stack([found, sign * raw]))[0, 1] > 0.8


def test_few_parents_are_helped_out_by_samples_of_the_prior(build: Build, tiny: Callable[..., TwoPlayerModel]) -> None:
    model = tiny("adversarial_vae")
    model.critic = Level()
    sampler = build(model, "seed=4")  # four and four parents
    own = torch.cat([PARENTS.first[[2, 5, 7, 9]], PARENTS.second[[0, 3, 8, 11]]])
    samples = model.sample_prior(512, generator(4, Stream.PICTURES, 0))
    outputs = torch.cat([model.decode(means_of(model, own)), samples]).mean((1, 2, 3))
    assert sampler.critic.mean.item() == pytest.approx(outputs.mean().item(), rel=1e-5)
    assert sampler.critic.deviation.item() == pytest.approx(outputs.std().item(), rel=1e-3)


@pytest.mark.parametrize(("count", "helped"), [(31, True), (32, False)])
def test_how_many_parents_are_few(build: Build, count: int, helped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    parents = Parents(photos(count, 1), photos(count, 2), ("horse", "bird"))
    sampler, asked = build("adversarial_vae", parents=parents, pairs=[(n, n) for n in range(count)]), []
    sample = sampler.model.sample_prior
    monkeypatch.setattr(sampler.model, "sample_prior", lambda *given: (asked.append(given[0]), sample(*given))[1])
    assert sampler.critic is not None
    assert asked == ([512] if helped else [])


def test_few_parents_are_helped_out_by_others_if_any(tiny: Callable[..., TwoPlayerModel]) -> None:
    model = lively(tiny("adversarial_vae"))
    model.critic = Level()
    others = Parents(photos(50, 4), photos(40, 5), ("horse", "bird"))
    with model.inference():
        sampler = Sampler(model, PARENTS, pairs_of(CHOSEN), composed(), others)
        own = torch.cat([PARENTS.first[[2, 5, 7, 9]], PARENTS.second[[0, 3, 8, 11]]])
        every = torch.cat([own, others.first, others.second])
        outputs = model.decode(means_of(model, every)).mean((1, 2, 3))
        posterior = model.encode(to_float(every[8:]))
        mean, deviation = sampler.prior()
        critic = sampler.critic
    assert critic.mean.item() == pytest.approx(outputs.mean().item(), rel=1e-4)
    assert critic.deviation.item() == pytest.approx(outputs.std().item(), rel=1e-3)
    torch.testing.assert_close(mean, posterior.mean.mean(0), rtol=1e-4, atol=1e-5)
    wanted = (posterior.mean.var(0) + posterior.log_variance.exp().mean(0)).sqrt()
    torch.testing.assert_close(deviation, wanted, rtol=1e-4, atol=1e-5)


def test_a_model_without_a_critic_is_scored_by_the_overlap_alone(build: Build) -> None:
    weights = ("score.critic=3", "score.overlap=5", "score.overlap_margin=0.01")
    chosen = recipes_of((0, 1, 0.5), (3, 2, 0.4))
    alone, with_critic = build("vae", *weights), build("adversarial_vae", *weights)
    assert alone.critic is None
    assert alone.prior() is None
    for sampler, names in ((alone, {"overlap"}), (with_critic, {"critic", "overlap"})):
        made = sampler.make(chosen)
        terms = sampler.score()(made)
        assert terms.keys() == names
        blend = (1 - made.ratios)[:, None, None, None] * made.first + made.ratios[:, None, None, None] * made.second
        off = (made.images - blend).square().mean((1, 2, 3)).sqrt()
        torch.testing.assert_close(terms["overlap"], -5 * torch.exp(-off / 0.01), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(terms["critic"], 3 * with_critic.critic(made.images))


def test_a_learned_mixing_ends_at_the_parents(tiny: Callable[..., TwoPlayerModel]) -> None:
    learned, straight = tiny("pegasus", {"learned_mixing": True}), tiny("pegasus")
    for mixing in ("auto", "learned"):
        assert mixing_of(learned, PegasusConfig(mixing=mixing, ratio=[0.0, 1.0])) == "learned"
        for ratio in ([-0.1, 0.5], [0.5, 1.1]):
            with pytest.raises(UserError, match=r"lies beyond the parents.*or say pegasus.mixing=lerp"):
                mixing_of(learned, PegasusConfig(mixing=mixing, ratio=ratio))
    assert mixing_of(learned, PegasusConfig(mixing="lerp", ratio=[-1.0, 2.0])) == "lerp"
    assert mixing_of(straight, PegasusConfig(ratio=[-1.0, 2.0])) == "lerp"
    with pytest.raises(UserError, match=r"pegasus.mixing=learned needs a model that has learned to mix"):
        mixing_of(straight, PegasusConfig(mixing="learned"))


# The prior.


@pytest.mark.parametrize("name", ["vae", "acai"])
def test_the_prior_of_deterministic_codes_is_that_of_the_parents(
    build: Build, tiny: Callable[..., TwoPlayerModel], name: str
) -> None:
    sampler = build(tiny(name, {"sample_codes": False}))
    own = torch.cat([PARENTS.first[[2, 5, 7, 9]], PARENTS.second[[0, 3, 8, 11]]])
    codes = means_of(sampler.model, own)
    mean, deviation = sampler.prior()
    wanted = codes.sum(0) / 8
    torch.testing.assert_close(mean, wanted)
    torch.testing.assert_close(deviation, ((codes - wanted).square().sum(0) / 7).sqrt())
    assert build(name).prior() is None


def test_the_prior_of_drawn_codes_has_the_posteriors_own_spread_too(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pegasus_lightning.generate.sampler.MIN_REFERENCE", 2)
    sampler = build("adversarial_vae")
    own = torch.cat([PARENTS.first[[2, 5, 7, 9]], PARENTS.second[[0, 3, 8, 11]]])
    posterior = sampler.model.encode(to_float(own))
    mean, deviation = sampler.prior()
    torch.testing.assert_close(mean, posterior.mean.mean(0))
    draws = posterior.mean + torch.exp(posterior.log_variance / 2) * torch.randn(4000, *posterior.mean.shape)
    # Many draws of these eight posteriors; the means' own variance is over 7, not 8.
    wanted = (draws.var((0, 1)) + posterior.mean.var(0) / 8).sqrt()
    torch.testing.assert_close(deviation, wanted, rtol=0.03, atol=0.01)


# Searches.


def test_without_a_search_there_is_a_mix_a_pair(build: Build) -> None:
    sampler = build("vae", "pegasus.ratio=[0.2,0.3]", "search.batch_size=2")
    made = sample(sampler, 3, lambda mixes: {"ratio": mixes.ratios, "one": torch.ones_like(mixes.ratios)})
    first, second = sampler.parent_indices(made.chosen)
    assert list(zip(first.tolist(), second.tolist(), strict=True)) == CHOSEN
    assert ((made.chosen.ratios >= 0.2) & (made.chosen.ratios <= 0.3)).all()
    assert made.tried == 5
    assert made.ascent is None
    assert made.recorded is None
    torch.testing.assert_close(made.terms["ratio"], made.chosen.ratios)
    torch.testing.assert_close(made.scores, made.chosen.ratios + 1)
    assert torch.equal(made.ranking, made.scores)
    torch.testing.assert_close(made.mixes.codes, sampler.make(made.chosen).codes)


@pytest.mark.parametrize("batch_size", [3, 256])
def test_the_best_of_many_by_hand(build: Build, batch_size: int) -> None:
    options = ("search.method=best_of", "search.ratios=6", "search.most_per_parent=null", "pegasus.ratio=[0,1]")
    sampler = build("vae", *options, f"search.batch_size={batch_size}")
    made = sample(sampler, 3, lambda mixes: {"ratio": mixes.ratios})
    drawn = torch.rand(30, generator=generator(0, Stream.RATIOS))  # six a pair, pair after pair
    best = sorted(((group.max().item(), number) for number, group in enumerate(drawn.split(6))), reverse=True)[:3]
    assert made.tried == 30
    assert made.scores.tolist() == pytest.approx([ratio for ratio, _ in best])
    first, second = sampler.parent_indices(made.chosen)
    assert list(zip(first.tolist(), second.tolist(), strict=True)) == [CHOSEN[number] for _, number in best]


@pytest.mark.parametrize(
    ("most", "kept"), [("null", [0, 1, 2, 3]), ("1", [0, 4, 5, 6]), ("2", [0, 1, 4, 5]), ("3", [0, 1, 2, 4])]
)
@pytest.mark.parametrize("method", ["best_of", "guided"])
def test_no_parent_is_in_more_mixes_than_allowed(build: Build, method: str, most: str, kept: list[int]) -> None:
    pairs = [(4, 0), (4, 1), (4, 2), (4, 3), (0, 4), (1, 5), (2, 6), (3, 7)]
    options = (f"search.method={method}", "search.ratios=1", "search.steps=1", f"search.most_per_parent={most}")
    sampler = build("vae", *options, pairs=pairs)
    favourite = sampler.mixer.parents[0][sampler.pairs.first[0]]

    def score(mixes: Mixes) -> dict[str, Tensor]:
        """All of one parent before all others, which are alike: the earlier first."""
        return constant(mixes) | {"favourite": (mixes.first == favourite).all(3).all(2).all(1).float()}

    made = sample(sampler, 4, score)
    assert sorted(made.chosen.draws.tolist()) == kept
    assert sum(parent == 4 for parent in sampler.parent_indices(made.chosen)[0].tolist()) == {
        "null": 4, "1": 1, "2": 2, "3": 3
    }[most]  # fmt: skip


def objective_by_hand(sampler: Sampler, made: Pegasi, score: Tensor) -> Tensor:
    """What `guided` says it raises, at the returned codes; a loop over mixes."""
    search = sampler.settings.search
    start = sampler.make(made.chosen).codes
    mean, deviation = sampler.prior() or (torch.zeros(6), torch.ones(6))
    critic = torch.zeros(len(start)) if sampler.critic is None else sampler.critic(made.mixes.images)
    found = []
    for row, code in enumerate(made.mixes.codes):
        beyond = max(0.0, (((code - mean) / deviation) ** 2).mean().item() - 1)
        away = (((code - start[row]) / deviation) ** 2).mean().item()
        weighed = search.critic_weight * critic[row] - search.prior_weight * beyond / 2
        found.append((score[row] + weighed - search.start_weight * away / 2).item())
    return torch.tensor(found)


@pytest.mark.parametrize("sample_codes", [True, False])
def test_a_guided_search_holds_codes_by_the_models_own_prior(
    build: Build, tiny: Callable[..., TwoPlayerModel], sample_codes: bool
) -> None:
    options = ("search.method=guided", "search.steps=3", "pegasus.ratio=[9,9]", "search.ratios=1")
    sampler = build(
        tiny("vae", {"sample_codes": sample_codes}), *options, "search.prior_weight=4", "search.start_weight=0.25"
    )
    made = sample(sampler, 5, constant)
    torch.testing.assert_close(made.ascent.objective, objective_by_hand(sampler, made, torch.zeros(5)))
    assert (made.ascent.objective < -0.01).any()  # nine times as far as the other parent: unusual
    start = sampler.make(made.chosen).codes
    assert ((made.mixes.codes - start).abs().amax(1) > 0.01).any()


@pytest.mark.parametrize("name", ["acai", "adversarial_vae"])
def test_a_guided_search_raises_the_critic_too(build: Build, name: str) -> None:
    base = ("search.method=guided", "search.steps=5", "search.ratios=1")
    with_critic = build(name, *base, "search.critic_weight=50")
    made = sample(with_critic, 5, constant)
    start = with_critic.make(made.chosen)
    assert (with_critic.critic(made.mixes.images) > with_critic.critic(start.images)).all()
    torch.testing.assert_close(
        made.ascent.objective, objective_by_hand(with_critic, made, torch.zeros(5)), rtol=1e-4, atol=1e-4
    )
    without = build(name, *base, "search.critic_weight=0", "search.prior_weight=0")
    made = sample(without, 5, constant)
    assert torch.equal(made.mixes.codes, without.make(made.chosen).codes)  # nothing to gain


def test_a_guided_search_uses_the_learning_rate_and_steps_of_the_settings(build: Build) -> None:
    options = ("search.method=guided", "search.lr=0.125", "search.steps=1", "search.start_weight=0")
    sampler = build("vae", *options, "search.prior_weight=0")
    made = sample(sampler, 2, lambda mixes: {"sum": mixes.codes.sum(1)})
    assert made.ascent.trace.shape == (2, 2)
    torch.testing.assert_close(made.mixes.codes, sampler.make(made.chosen).codes + 0.125)  # Adam's first step


@pytest.fixture
def climbed(build: Build) -> tuple[Sampler, Pegasi, Callable[[Mixes], dict[str, Tensor]]]:
    """Five ascents in batches of 2, in which the worst at the start ends up as the best."""
    options = ("search.method=guided", "search.ratios=1", "search.batch_size=2", "search.steps=10", "search.lr=0.1")
    sampler = build("adversarial_vae", *options, "pegasus.codes=mean", pairs=[(n, n) for n in range(5)])
    parents = sampler.mixer.parents[0]

    def score(mixes: Mixes) -> dict[str, Tensor]:
        number = torch.stack([(mixes.first == parent).all(3).all(2).all(1) for parent in parents], 1).float().argmax(1)
        return {"head": -100.0 * number, "climb": 200.0 * (number + 1) * mixes.codes.mean(1)}

    return sampler, sample(sampler, 5, score), score


def test_all_of_a_guided_search_is_in_one_order_the_best_objective_first(climbed: Any) -> None:
    sampler, made, score = climbed
    assert made.chosen.draws.tolist() == [4, 3, 2, 1, 0]
    start = sampler.make(made.chosen)
    assert (score(start)["head"] + score(start)["climb"]).diff().min() > 0  # another order than at the start
    ascent = made.ascent
    assert made.tried == 5
    assert ascent.objective.diff().max() < 0
    assert torch.equal(made.ranking, ascent.objective)
    assert ascent.mixes is made.mixes
    scores = score(made.mixes)["head"] + score(made.mixes)["climb"]
    torch.testing.assert_close(ascent.objective, objective_by_hand(sampler, made, scores))
    for name in ("first", "second", "ratios"):
        assert torch.equal(getattr(made.mixes, name), getattr(start, name))
    torch.testing.assert_close(made.mixes.images, sampler.model.decode(made.mixes.codes))
    assert made.terms.keys() == {"head", "climb"}
    for name, values in made.terms.items():
        torch.testing.assert_close(values, score(made.mixes)[name])
    torch.testing.assert_close(made.scores, scores)


def test_the_trace_of_a_guided_search_begins_at_each_ones_own_mix(climbed: Any) -> None:
    sampler, made, score = climbed
    assert made.ascent.trace.shape == (11, 5)
    for row in range(5):
        own = score(sampler.make(made.chosen.take(torch.tensor([row]))))
        assert made.ascent.trace[0, row].item() == pytest.approx((own["head"] + own["climb"]).item(), rel=1e-4)
    torch.testing.assert_close(made.ascent.trace[-1], made.scores)  # uphill all the way


def test_the_frames_of_a_guided_search_are_those_of_the_recorded(climbed: Any) -> None:
    sampler, made, _ = climbed
    assert made.recorded.tolist() == [3, 4]  # the first batch, which came in last
    frames = made.ascent.frames
    assert frames.shape == (9, 2, 3, 32, 32)
    assert made.ascent.steps == [0, 1, 2, 4, 5, 6, 8, 9, 10]
    start = sampler.make(made.chosen)
    torch.testing.assert_close(frames[0], start.images[3:], rtol=0, atol=1e-6)
    torch.testing.assert_close(frames[-1], made.mixes.images[3:], rtol=0, atol=1e-6)
    assert (frames[0, 0] - frames[0, 1]).abs().max() > 1e-4  # the two can be told apart
    assert (frames[-1, 0] - frames[-1, 1]).abs().max() > 1e-4


def pegasi(pairs: list[tuple[int, int]], scores: list[float], objective: list[float] | None = None) -> Pegasi:
    first, second = torch.tensor(pairs).unbind(1)
    count = len(pairs)
    images = torch.zeros(count, 3, 2, 2)
    mixes = Mixes(torch.zeros(count, 6), images, images, images, torch.zeros(count))
    terms = {"half": torch.tensor(scores) / 2, "other": torch.tensor(scores) / 2}
    ascent = None
    if objective is not None:
        ascent = Ascent(mixes, torch.tensor(objective), torch.zeros(1, count), images[None], [0])
    return Pegasi(Recipes(first, second, mixes.ratios, torch.arange(count)), mixes, terms, count, ascent)


def test_the_best_take_no_parent_twice_if_there_are_enough() -> None:
    made = pegasi([(0, 0), (0, 1), (2, 0), (3, 3), (4, 4)], [5.0, 4, 3, 2, 1])
    assert made.best(1).tolist() == [0]
    assert made.best(3).tolist() == [0, 3, 4]
    assert made.best(4).tolist() == [0, 1, 3, 4]  # there are but three without a repeat
    assert made.best(9).tolist() == [0, 1, 2, 3, 4]
    assert made.scores.tolist() == [5, 4, 3, 2, 1]


def test_the_best_of_a_guided_search_have_the_highest_objective() -> None:
    made = pegasi([(n, n) for n in range(4)], [1.0, 1, 1, 2], [-1.0, -3, -2, -4])
    assert made.ranking.tolist() == [-1, -3, -2, -4]
    assert made.best(3).tolist() == [0, 2, 1]
    assert made.scores.tolist() == [1, 1, 1, 2]
