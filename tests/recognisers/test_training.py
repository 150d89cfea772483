"""Tests of the training of a recogniser: what is shown, how the weights move, what the calibration comes to."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from pegasus_lightning.data.augmentation import OPERATIONS
from pegasus_lightning.data.kinds import Kinds, load_kinds
from pegasus_lightning.data.settings import SilhouettesConfig
from pegasus_lightning.recognisers import training
from pegasus_lightning.recognisers.network import ARCHITECTURES, Recogniser, balanced_accuracy, predict
from pegasus_lightning.recognisers.training import (
    Muon,
    RecogniserConfig,
    calibrate,
    fgsm,
    guiding_recipe,
    half_of,
    hold_out,
    independent_recipe,
    learned_from,
    orthogonalised,
    random_shift,
    standard_recipe,
    train_recogniser,
    training_order,
)
from pegasus_lightning.utils.randomness import Stream, generator


def kinds_of(counts: dict[str, int]) -> Kinds:
    """That many black images of each kind; the first two are the classes."""
    kinds = torch.arange(len(counts)).repeat_interleave(torch.tensor(list(counts.values())))
    targets = torch.stack([kinds == 0, kinds == 1], 1).float()
    return Kinds(torch.zeros((), dtype=torch.uint8).expand(len(kinds), 3, 32, 32), kinds, tuple(counts), targets)


def numbered(counts: dict[str, int]) -> Kinds:
    """Each image of its own grey."""
    kinds = kinds_of(counts)
    return dataclasses.replace(kinds, images=kinds.images + torch.arange(len(kinds)).byte()[:, None, None, None])


def greys_of(kinds: Kinds) -> list[int]:
    return kinds.images[:, 0, 0, 0].tolist()


SMALL = RecogniserConfig("plain", epochs=4, least=1, most=10**6, negatives=1.5)


def test_every_epoch_shows_all_of_the_classes_and_a_share_of_the_others_in_turn() -> None:
    kinds = kinds_of({"horse": 6, "bird": 4, "cat": 12, "dog": 18})
    order = training_order(kinds, SMALL)
    assert len(order) == 4 * (10 + 15)
    for epoch in order.view(4, 25):
        assert sorted(epoch.tolist())[:10] == list(range(10))
        assert sorted(epoch[:10].tolist()) != list(range(10))
    assert torch.bincount(order, minlength=40)[10:].tolist() == [2] * 30  # 60 shown of 30: none more than another
    assert not torch.equal(order[:25], order[25:50])
    assert torch.equal(order, training_order(kinds, SMALL))
    assert not torch.equal(order, training_order(kinds, dataclasses.replace(SMALL, seed=1)))


def test_few_images_are_seen_more_often_and_many_less() -> None:
    kinds = kinds_of({"up": 6, "down": 4})
    assert len(training_order(kinds, dataclasses.replace(SMALL, least=57))) == 57
    assert len(training_order(kinds, dataclasses.replace(SMALL, most=33))) == 33
    assert torch.bincount(training_order(kinds, SMALL)).tolist() == [4] * 10


def test_the_standard_recipes_keep_to_their_quarter_of_an_hour() -> None:
    """At 3.3 and 4 milliseconds of one core an image, measured, on as many images as CIFAR-10 leaves to train on."""
    for architecture, seconds in (("plain", 0.0033), ("residual", 0.0040)):
        recipe = standard_recipe(architecture, seed=5)
        assert (recipe.architecture, recipe.seed) == (architecture, 5)
        shown = [
            len(training_order(kinds_of({"horse": count, "bird": count, "others": 8 * count}), recipe))
            for count in (8, 4750, 20_000)
        ]
        assert 40_000 <= shown[0] < shown[1] < shown[2] <= 260_000
        assert shown[1] * seconds < 15 * 60


def test_a_share_of_each_kind_is_held_out_and_of_a_class_an_image_at_least() -> None:
    kinds = numbered({"horse": 40, "bird": 3, "cat": 100, "dog": 1})
    held, kept = hold_out(kinds, 0.1, seed=0)
    assert torch.bincount(held.kinds, minlength=4).tolist() == [4, 1, 10, 0]
    assert sorted(greys_of(held) + greys_of(kept)) == list(range(144))
    assert torch.equal(hold_out(kinds, 0.1, seed=0)[0].images, held.images)
    assert not torch.equal(hold_out(kinds, 0.1, seed=1)[0].images, held.images)


def test_two_halves_of_each_kind_are_all_there_is_and_share_nothing() -> None:
    kinds = numbered({"horse": 40, "bird": 7, "cat": 30, "dog": 1, "deer": 0})
    first, second = half_of(kinds, 0), half_of(kinds, 1)
    assert torch.bincount(first.kinds, minlength=5).tolist() == [20, 3, 15, 0, 0]
    assert torch.bincount(second.kinds, minlength=5).tolist() == [20, 4, 15, 1, 0]
    assert sorted(greys_of(first) + greys_of(second)) == list(range(78))
    for half in (first, second):
        assert half.names == kinds.names
        own = torch.tensor(greys_of(half))
        assert torch.equal(kinds.kinds[own], half.kinds)  # each image with its own kind and targets
        assert torch.equal(kinds.targets[own], half.targets)
    assert greys_of(half_of(kinds, 0)) == greys_of(first)
    assert sorted(greys_of(first)[:20]) != list(range(20))  # shuffled


def test_those_who_guide_and_those_who_report_on_it_learn_from_different_halves() -> None:
    kinds = numbered({"horse": 40, "bird": 60, "cat": 30})
    for name, other in (("plain", "residual"), ("averaging", "averaging")):
        guides, reports = guiding_recipe(name, seed=1), independent_recipe(other, seed=2)
        learned = [set(greys_of(learned_from(kinds, recipe))) for recipe in (guides, reports)]
        assert [len(own) for own in learned] == [65, 65]
        assert not learned[0] & learned[1]
        assert (guides.architecture, guides.seed, reports.architecture, reports.seed) == (name, 1, other, 2)
    assert greys_of(learned_from(kinds, standard_recipe("plain"))) == list(range(130))
    assert guides.adversarial > 0
    assert set(guides.augmentation) == set(OPERATIONS)
    assert (reports.adversarial, reports.augmentation) == (0, ())


def test_a_change_made_against_a_linear_loss_by_hand() -> None:
    weights = torch.tensor([3.0, -2.0, 0.0]).view(1, 3, 1, 1).expand(5, 3, 32, 32)
    images = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    source = torch.Generator().manual_seed(1)
    change = fgsm(images, 0.1, lambda x: (weights * x).sum(), source) - images
    # From a start u in [-0.1, 0.1) by 0.125 with the slope, held within 0.1; where there is no slope the start stays.
    start = (2 * torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(1)) - 1) * 0.1
    wanted = torch.stack([(start[:, 0] + 0.125).clamp(max=0.1), (start[:, 1] - 0.125).clamp(min=-0.1), start[:, 2]], 1)
    torch.testing.assert_close(change, wanted, rtol=0, atol=1e-6)
    assert change.abs().max() <= 0.1 + 1e-6
    assert change[:, 2].abs().mean().item() == pytest.approx(0.05, rel=0.05)
    assert (change[:, 0] > 0.1 - 1e-6).float().mean().item() == pytest.approx(5 / 8, abs=0.02)  # a start above -0.025
    assert not change.requires_grad


def test_the_change_is_small_raises_the_loss_and_leaves_no_gradient_behind() -> None:
    kinds = tinted(10, seed=0)
    model = Recogniser("residual", ("horse", "bird"), kinds=4)
    images = kinds.images / 255
    model.fit_input(images)

    def loss(seen: Tensor) -> Tensor:
        return nn.functional.binary_cross_entropy_with_logits(model.head(model.features(seen)), kinds.targets)

    kept = images.clone()
    changed = fgsm(images, 2 / 255, loss, torch.Generator().manual_seed(0))
    assert torch.equal(images, kept)
    assert (changed - images).abs().max() <= 2 / 255 + 1e-6
    random = images + (2 * torch.rand(images.shape, generator=torch.Generator().manual_seed(0)) - 1) * 2 / 255
    with torch.no_grad():
        at_first, at_random, at_last = loss(images), loss(random), loss(changed)
    assert at_last > at_random + 2 * (at_random - at_first).abs()
    assert at_last > at_first * 1.01
    assert all(parameter.grad is None for parameter in model.parameters())
    again = fgsm(images, 2 / 255, loss, torch.Generator().manual_seed(0))
    torch.testing.assert_close(again, changed)


def test_shifts_reach_as_far_as_they_may_and_are_reflected_at_the_edge() -> None:
    image = torch.arange(32.0 * 32).view(1, 1, 32, 32).repeat(400, 3, 1, 1)
    moved = random_shift(image, 2, torch.Generator().manual_seed(0))
    corners = {(int(corner) // 32, int(corner) % 32) for corner in moved[:, 0, 2, 2]}
    assert corners == {(row, column) for row in range(5) for column in range(5)}
    for one in moved[:20, 1]:
        row, column = divmod(int(one[2, 2]), 32)
        rows = [abs(row - 2 + i) if row - 2 + i < 32 else 62 - (row - 2 + i) for i in range(32)]
        columns = [abs(column - 2 + i) if column - 2 + i < 32 else 62 - (column - 2 + i) for i in range(32)]
        assert one.tolist() == [[32.0 * r + c for c in columns] for r in rows]
    assert torch.equal(random_shift(image[:3], 0, torch.Generator()), image[:3])


@pytest.mark.parametrize("shape", [(5, 12), (12, 5), (6, 6)])
def test_orthogonalising_keeps_the_directions_and_evens_the_lengths(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    inside = left.T @ orthogonalised(3 * matrix) @ right.T  # diagonal, if the singular vectors are the same
    torch.testing.assert_close(inside, torch.diag(inside.diagonal()), rtol=0, atol=1e-8)
    assert (values.max() / values.min()) > 2
    assert inside.diagonal().min() > 0.6
    assert inside.diagonal().max() < 1.3


def test_a_step_of_muon_by_hand() -> None:
    """Filters with one entry each: the orthogonalised direction of a 1 x 1 matrix is its sign, near enough."""
    weight = nn.Parameter(torch.full((1, 1, 1, 1), 5.0))
    muon = Muon([weight], lr=0.1, momentum=0.5)
    size = orthogonalised(torch.ones(1, 1)).item()
    assert size == pytest.approx(1, abs=0.35)
    weight.grad = torch.full_like(weight, 4.0)
    muon.step()
    assert weight.item() == pytest.approx(1 - 0.1 * size)  # scaled to length 1, then moved
    weight.grad = torch.full_like(weight, -1.5)  # average 4/2 - 1.5 = 0.5; direction -1.5 + 0.5 * 0.5 < 0
    muon.step()
    assert weight.item() == pytest.approx(1 + 0.1 * size)
    weight.grad = torch.full_like(weight, -0.05)  # average 0.2; direction 0.05 > 0, against the gradient
    muon.step()
    assert weight.item() == pytest.approx(1 - 0.1 * size)


def test_a_step_of_muon_moves_filters_of_any_shape_along_orthogonal_directions() -> None:
    source = torch.Generator().manual_seed(0)
    for shape in ((6, 1, 1, 2), (2, 3, 3, 3)):
        start, gradient = torch.randn(2, *shape, generator=source)
        weight = nn.Parameter(start.clone().contiguous(memory_format=torch.channels_last))
        weight.grad = gradient
        Muon([weight], lr=0.1, momentum=0.5).step()
        scaled = start * (shape[0] ** 0.5 / start.square().sum().sqrt())
        moved = ((scaled - weight.detach()) / 0.1).reshape(shape[0], -1)
        torch.testing.assert_close(moved, orthogonalised(gradient.reshape(shape[0], -1)), rtol=1e-3, atol=1e-3)


def answering(logits: Tensor) -> tuple[Recogniser, Kinds]:
    """A recogniser whose raw outputs for N images are `logits` (N, 2)."""
    model = Recogniser("plain", ("horse", "bird"))
    numbers = torch.arange(len(logits))
    model.features = lambda images: images[:, 0, 0, :2].mul(255).round()  # type: ignore[method-assign]
    model.head = nn.Module()  # type: ignore[assignment]
    model.head.forward = lambda pixels: logits[(pixels[:, 0] * 256 + pixels[:, 1]).long()]  # type: ignore[assignment]
    images = torch.zeros(len(logits), 3, 32, 32, dtype=torch.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = (numbers // 256).byte(), (numbers % 256).byte()
    return model, Kinds(images, numbers * 0, ("horse", "bird"), torch.zeros(len(logits), 2))


def test_calibration_finds_the_temperature_and_the_offset_that_were_put_in() -> None:
    """One image in ten shows the class; true logits at even odds are 2 x - 1 and x / 2 + 3 of the raw outputs x."""
    source = torch.Generator().manual_seed(0)
    there = (torch.rand(20_000, 2, generator=source) < 0.1).float()
    # Two normals of variance v, v apart: the log of their ratio is the value itself, for even odds.
    spread = torch.tensor([4.0, 2.0])
    true = (there - 0.5) * spread + spread.sqrt() * torch.randn(20_000, 2, generator=source)
    model, held = answering(torch.stack([(true[:, 0] + 1) / 2, (true[:, 1] - 3) * 2], 1))
    calibrate(model, dataclasses.replace(held, targets=there))
    torch.testing.assert_close(model.temperature, torch.tensor([0.5, 2.0]), rtol=0.08, atol=0)
    torch.testing.assert_close(model.offset, torch.tensor([-1.0, 3.0]), rtol=0, atol=0.15)
    torch.testing.assert_close(predict(model, held.images).mean(0), true.mean(0), rtol=0, atol=0.15)
    before = model.temperature.clone()
    calibrate(model, dataclasses.replace(held, targets=there))  # from the raw outputs, whatever was set before
    torch.testing.assert_close(model.temperature, before)


def test_outputs_that_never_err_are_not_made_certain() -> None:
    there = torch.tensor([[1.0, 0], [1, 0], [1, 0], [0, 1], [0, 1], [0, 0], [0, 0], [0, 0]])
    model, held = answering(there * 2 - 1)
    calibrate(model, dataclasses.replace(held, targets=there))
    # Two values of the output, so the fit is exact: Platt's (n + 1) / (n + 2) and 1 / (n + 2).
    first = torch.where(there[:, 0] > 0, 4 / 5, 1 / 7)
    second = torch.where(there[:, 1] > 0, 3 / 4, 1 / 8)
    torch.testing.assert_close(
        predict(model.probabilities, held.images), torch.stack([first, second], 1), rtol=1e-3, atol=1e-3
    )


DRAWN = RecogniserConfig("residual", least=1, most=50, batch_size=25)


@pytest.fixture(scope="module")
def drawn() -> Kinds:
    return load_kinds(SilhouettesConfig(train_per_class=15, test_per_class=8), "train")


@pytest.fixture(scope="module")
def of_all(drawn: Kinds) -> Recogniser:
    """Trained on all images."""
    torch.manual_seed(0)
    return train_recogniser(DRAWN, drawn)


def test_training_is_a_function_of_config_and_images(drawn: Kinds, of_all: Recogniser) -> None:
    torch.rand(3)
    again, other = train_recogniser(DRAWN, drawn), train_recogniser(dataclasses.replace(DRAWN, seed=1), drawn)
    images = drawn.images[::7]
    assert torch.equal(predict(of_all, images), predict(again, images))
    assert not torch.allclose(predict(of_all, images), predict(other, images))
    assert of_all.frozen
    assert not any(parameter.requires_grad for parameter in of_all.parameters())


@pytest.mark.parametrize("half", [0, 1])
def test_of_its_half_alone_it_learns_and_is_calibrated(half: int, drawn: Kinds, of_all: Recogniser) -> None:
    one, same = train_recogniser(dataclasses.replace(DRAWN, half=half), drawn), half_of(drawn, half)
    images = drawn.images[::7]
    assert torch.equal(predict(one, images), predict(train_recogniser(DRAWN, same), images))
    assert not torch.allclose(predict(one, images), predict(of_all, images))


def tinted(count: int, seed: int) -> Kinds:
    """Noise: as it is, redder (a horse), bluer (a bird) and both."""
    pixels = 100 + 100 * torch.rand(4 * count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    kinds = torch.arange(4).repeat(count)
    targets = torch.tensor([[1.0, 0], [0, 1], [0, 0], [1, 1]])[kinds]
    pixels[:, 0] += 50 * targets[:, 0, None, None]
    pixels[:, 2] += 50 * targets[:, 1, None, None]
    return Kinds(pixels.byte(), kinds, ("horse", "bird", "none", "both"), targets)


def test_what_is_plain_to_see_is_learnt_in_a_few_steps() -> None:
    model = train_recogniser(RecogniserConfig("residual", least=400, most=400, batch_size=40), tinted(60, seed=0))
    test = tinted(25, seed=1)
    probabilities = predict(model.probabilities, test.images)
    assert balanced_accuracy(probabilities, test.targets).min() > 0.95


def test_it_learns_from_what_was_altered_and_then_made_against_it(monkeypatch: pytest.MonkeyPatch) -> None:
    augment, harden = training.augment, training.fgsm
    altered, attacked, losses = [], [], []

    def augmented(images: Tensor, numbers: Tensor, policy: tuple[str, ...]) -> Tensor:
        altered.append((numbers, policy, augment(images, numbers, policy)))
        return altered[-1][-1]

    def made_hard(images: Tensor, size: float, loss: object, source: torch.Generator) -> Tensor:
        result = harden(images, size, loss, source)  # type: ignore[arg-type]
        attacked.append((images, size, loss(result).item()))  # type: ignore[operator]
        return result

    monkeypatch.setattr(training, "augment", augmented)
    monkeypatch.setattr(training, "fgsm", made_hard)
    config = RecogniserConfig("residual", seed=3, least=1, most=60, batch_size=30)
    policy = ("brightness", "cutout")
    guided = dataclasses.replace(config, augmentation=policy, adversarial=0.01)
    train_recogniser(guided, tinted(10, seed=0), watch=lambda *given: losses.append(given[-1].item()))
    assert len(losses) == len(altered) == len(attacked) == 2
    for step in range(2):
        numbers, used, images = altered[step]
        assert torch.equal(numbers, torch.rand(30, 8, generator=generator(3, Stream.AUGMENTATION, step)))
        assert used == policy
        assert attacked[step][0] is images
        assert attacked[step][1] == 0.01
        assert losses[step] == pytest.approx(attacked[step][2], rel=1e-4)  # what it learns from is what was made
    train_recogniser(config, tinted(10, seed=0))
    assert len(altered) == len(attacked) == 2  # neither without a policy nor without a size


@pytest.mark.slow
@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_a_little_training_recognises_drawn_pegasi(architecture: str) -> None:
    source = SilhouettesConfig(train_per_class=200, test_per_class=50)
    config = RecogniserConfig(architecture, least=4000, most=4000, batch_size=100)
    model = train_recogniser(config, load_kinds(source, "train"))
    test = load_kinds(source, "test")
    probabilities = predict(model.probabilities, test.images)
    assert balanced_accuracy(probabilities, test.targets).min() > 0.95
    both = (probabilities > 0.5).all(1)
    assert both[test.kinds == 2].float().mean() > 0.9  # pegasi
    assert both[test.kinds != 2].float().mean() < 0.05
