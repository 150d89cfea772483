"""Augmentation against results by hand: translations, cutouts and colour changes."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from pegasus_lightning.data.augmentation import (
    GREY,
    NUMBERS,
    OPERATIONS,
    augment,
    brightness,
    contrast,
    cutout,
    saturation,
    translation,
)

ALL = tuple(OPERATIONS)


def noise(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def numbers(count: int, seed: int = 5) -> Tensor:
    return torch.rand(count, NUMBERS, generator=torch.Generator().manual_seed(seed))


def moved_by_hand(image: Tensor, down: int, right: int) -> Tensor:
    """Translate pixel by pixel; the border becomes grey."""
    moved = torch.full_like(image, 0.5)
    for row, column in itertools.product(range(32), range(32)):
        if 0 <= row - down < 32 and 0 <= column - right < 32:
            moved[:, row, column] = image[:, row - down, column - right]
    return moved


def way(image: Tensor, moved: Tensor) -> tuple[int, int]:
    """Return the translation in pixels, down and right."""
    steps = range(-6, 7)
    inner = image[:, 12:20, 12:20]
    (found,) = [
        (down, right)
        for down, right in itertools.product(steps, steps)
        if torch.allclose(moved[:, 12 + down : 20 + down, 12 + right : 20 + right], inner, atol=1e-6)
    ]
    return found


def test_a_translation_moves_whole_pixels_and_grey_moves_in() -> None:
    images = noise(9)
    uniforms = torch.stack([(torch.arange(9) + 0.5) / 9, (torch.arange(9) * 2 % 9 + 0.5) / 9], 1)
    moved = translation(images, uniforms)
    ways = [way(*pair) for pair in zip(images, moved, strict=True)]
    for image, found, (down, right) in zip(images, moved, ways, strict=True):
        torch.testing.assert_close(found, moved_by_hand(image, down, right))
    rows, columns = zip(*ways, strict=True)
    # Each translation from -4 to 4 pixels has a ninth of the numbers; the second column advances two at a time.
    assert sorted(rows) == list(range(-4, 5))
    assert list(rows) in (sorted(rows), sorted(rows, reverse=True))
    assert list(columns) == [rows[n * 2 % 9] for n in range(9)]


def test_a_translation_reaches_its_extremes_and_the_middle_is_no_move() -> None:
    image = noise(1)
    low, high = (way(image[0], translation(image, torch.tensor([[u, u]]))[0]) for u in (0.0, 1 - 2**-24))
    assert {abs(step) for step in (*low, *high)} == {4}
    assert low == (-high[0], -high[1])
    torch.testing.assert_close(translation(image, torch.tensor([[0.5, 0.5]])), image)


def test_the_first_number_of_a_translation_is_the_row() -> None:
    image = noise(1)
    down, right = way(image[0], translation(image, torch.tensor([[0.0, 0.5]]))[0])
    assert (abs(down), right) == (4, 0)


@pytest.mark.parametrize(
    ("row", "column", "rows", "columns"),
    [
        (16, 16, range(8, 24), range(8, 24)),
        (0, 32, range(0, 8), range(24, 32)),  # centres on the border: half of the square lies outside
        (32, 3, range(24, 32), range(0, 11)),
        (11, 0, range(3, 19), range(0, 8)),
    ],
)
def test_a_square_of_sixteen_pixels_is_cut_out_by_hand(row: int, column: int, rows: range, columns: range) -> None:
    images = noise(1)
    uniforms = torch.tensor([[(row + 0.5) / 33, (column + 0.5) / 33, 0.0]])
    wanted = images.clone()
    for place in itertools.product(rows, columns):
        wanted[0, :, place[0], place[1]] = 0.5
    assert torch.equal(cutout(images, uniforms), wanted)


def test_every_centre_is_as_likely_and_the_last_is_the_lower_right_corner() -> None:
    uniforms = torch.tensor([[u, u, 0.0] for u in (0.0, 1 / 33 + 1e-4, 1 - 2**-24)])
    holes = (cutout(torch.zeros(3, 3, 32, 32), uniforms) == GREY)[:, 0]
    assert holes.flatten(1).sum(1).tolist() == [64, 81, 64]
    assert holes[0, :8, :8].all()
    assert holes[1, :9, :9].all()
    assert holes[2, 24:, 24:].all()


def test_half_of_the_images_keep_their_square() -> None:
    images = noise(1)
    below, above = torch.tensor([[0.5, 0.5, 0.49999]]), torch.tensor([[0.5, 0.5, 0.5]])
    assert torch.equal(cutout(images, above), images)
    assert not torch.equal(cutout(images, below), images)
    many = torch.rand(4000, 3, generator=torch.Generator().manual_seed(0))
    struck = (cutout(torch.zeros(4000, 1, 32, 32), many) == GREY).flatten(1).any(1)
    assert struck.float().mean().item() == pytest.approx(0.5, abs=0.03)
    assert torch.equal(struck, many[:, 2] < 0.5)


# Two pixels: (0.2, 0.4, 0.9) with grey value 0.5, and (0.6, 0.6, 0.9) with grey value 0.7; mean 0.6.
PAIR = torch.tensor([[[[0.2, 0.6]], [[0.4, 0.6]], [[0.9, 0.9]]]])


def pixels(images: Tensor) -> list[list[float]]:
    return images[0, :, 0].T.tolist()


@pytest.mark.parametrize(("number", "change"), [(0.0, -0.25), (0.5, 0.0), (0.9, 0.2)])
def test_brightness_by_hand(number: float, change: float) -> None:
    first, second = pixels(brightness(PAIR, torch.tensor([[number]])))
    assert first == pytest.approx([0.2 + change, 0.4 + change, 0.9 + change])
    assert second == pytest.approx([0.6 + change, 0.6 + change, 0.9 + change])


@pytest.mark.parametrize(("number", "factor"), [(0.0, 0.0), (0.5, 1.0), (0.75, 1.5)])
def test_saturation_by_hand(number: float, factor: float) -> None:
    first, second = pixels(saturation(PAIR, torch.tensor([[number]])))
    assert first == pytest.approx([0.5 - 0.3 * factor, 0.5 - 0.1 * factor, 0.5 + 0.4 * factor])
    assert second == pytest.approx([0.7 - 0.1 * factor, 0.7 - 0.1 * factor, 0.7 + 0.2 * factor])


@pytest.mark.parametrize(("number", "factor"), [(0.0, 0.5), (0.5, 1.0), (0.9, 1.4)])
def test_contrast_by_hand(number: float, factor: float) -> None:
    first, second = pixels(contrast(PAIR, torch.tensor([[number]])))
    assert first == pytest.approx([0.6 - 0.4 * factor, 0.6 - 0.2 * factor, 0.6 + 0.3 * factor])
    assert second == pytest.approx([0.6, 0.6, 0.6 + 0.3 * factor], abs=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_each_image_has_its_own_numbers_and_no_other_image_a_say(name: str) -> None:
    images, uniforms = noise(4), numbers(4)
    together = augment(images, uniforms, [name])
    assert together.shape == images.shape
    for n in range(4):
        torch.testing.assert_close(together[n], augment(images[n : n + 1], uniforms[n : n + 1], [name])[0])
    with_others = augment(torch.cat([images[:1], noise(3, seed=9)]), uniforms, [name])
    torch.testing.assert_close(with_others[0], together[0])


def test_the_same_numbers_alter_two_batches_in_the_same_way() -> None:
    images, uniforms = noise(6), numbers(6)
    uniforms[:, 7] = 0  # every image has a square
    one, other = augment(images, uniforms, ["translation", "cutout"]), augment(1 - images, uniforms, ALL[3:])
    torch.testing.assert_close(one + other, torch.ones_like(one))  # equal squares and translations
    assert not torch.allclose(one, augment(images, numbers(6, seed=6), ALL[3:]))
    # The brightness of both batches changes by the same amount.
    changes = [augment(batch, uniforms, ["brightness"]) - batch for batch in (images, noise(6, seed=1))]
    torch.testing.assert_close(*changes, rtol=0, atol=1e-6)
    assert changes[0].abs().max() > 0.05


def test_the_columns_of_the_operations_are_their_own() -> None:
    used = [list(range(NUMBERS))[columns] for _, columns in OPERATIONS.values()]
    assert sorted(itertools.chain(*used)) == list(range(NUMBERS))
    assert [len(columns) for columns in used] == [1, 1, 1, 2, 3]


@pytest.mark.parametrize("name", ALL)
def test_an_operation_hears_its_own_numbers_alone(name: str) -> None:
    images, uniforms = noise(3), numbers(3)
    uniforms[:, 7] = 0.1
    columns = OPERATIONS[name][1]
    others = 1 - uniforms
    others[:, columns] = uniforms[:, columns]
    alone = augment(images, uniforms, [name])
    assert torch.equal(augment(images, others, [name]), alone)
    own = uniforms.clone()
    own[:, columns] = (own[:, columns] + 0.5) % 1
    assert not torch.allclose(augment(images, own, [name]), alone)


@pytest.mark.parametrize("left_out", ALL)
def test_one_operation_less_leaves_the_others_as_they_were(left_out: str) -> None:
    images, uniforms = noise(3), numbers(3)
    uniforms[:, 7] = 0.1
    u = [uniforms[:, n : n + 1] for n in range(3)]
    steps = {
        "brightness": lambda x: brightness(x, u[0]),
        "saturation": lambda x: saturation(x, u[1]),
        "contrast": lambda x: contrast(x, u[2]),
        "translation": lambda x: translation(x, uniforms[:, 3:5]),
        "cutout": lambda x: cutout(x, uniforms[:, 5:8]),
    }
    wanted = images
    for name, step in steps.items():  # colours first, so the border and the square stay grey
        wanted = wanted if name == left_out else step(wanted)
    rest = [name for name in ALL if name != left_out]
    assert torch.equal(augment(images, uniforms, rest), wanted)
    assert not torch.allclose(augment(images, uniforms, ALL), wanted)


def test_the_order_of_a_policy_makes_no_difference() -> None:
    images, uniforms = noise(3), numbers(3)
    uniforms[:, 7] = 0.1
    wanted = augment(images, uniforms, ALL)
    for policy in (ALL[::-1], ALL[2:] + ALL[:2], [*ALL, "brightness"]):
        assert torch.equal(augment(images, uniforms, policy), wanted)
    square_first = brightness(cutout(images, uniforms[:, 5:8]), uniforms[:, :1])
    assert not torch.allclose(square_first, augment(images, uniforms, ["cutout", "brightness"]))


def test_without_a_policy_images_are_the_very_same() -> None:
    images = noise(2)
    assert augment(images, numbers(2), []) is images


@pytest.mark.parametrize("name", ALL)
def test_gradients_reach_the_images_as_finite_differences_have_it(name: str) -> None:
    images, uniforms = noise(2), numbers(2)
    uniforms[:, 7] = 0.1
    images.requires_grad_()
    weights, direction = noise(2, seed=3) - 0.5, noise(2, seed=4) - 0.5
    (gradient,) = torch.autograd.grad((augment(images, uniforms, [name]) * weights).sum(), images)
    # Each operation is affine in the images, so a finite difference of any length is exact.
    with torch.no_grad():
        ends = [(augment(images + side * direction, uniforms, [name]) * weights).double().sum() for side in (1, -1)]
    wanted = (ends[0] - ends[1]).item() / 2
    assert abs(wanted) > 0.5
    assert (gradient * direction).double().sum().item() == pytest.approx(wanted, rel=1e-3, abs=1e-3)


def test_what_is_out_of_sight_has_no_gradient_and_what_is_in_sight_has() -> None:
    images = noise(1).requires_grad_()
    uniforms = torch.tensor([[0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.0]])  # only the central square
    (gradient,) = torch.autograd.grad(augment(images, uniforms, ALL).sum(), images)
    wanted = torch.ones(3, 32, 32)
    wanted[:, 8:24, 8:24] = 0
    # Contrast and saturation would spread gradients over other pixels; their factors are 1 here.
    torch.testing.assert_close(gradient[0], wanted)
