"""Lessons in mixing: what their images are, that a lesson has one answer, and mirroring."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from scipy import ndimage
from shapes import bird, body
from torch import Tensor

from pegasus_lightning.data import compositions, lessons
from pegasus_lightning.data.batches import ImageSet
from pegasus_lightning.data.lessons import make_lessons
from pegasus_lightning.data.parts import find_parts
from pegasus_lightning.data.room import ROOM
from pegasus_lightning.utils.errors import UserError


def data(horses: list[np.ndarray], birds: list[np.ndarray]) -> ImageSet:
    images = torch.from_numpy(np.stack([*horses, *birds]))
    return ImageSet(images, torch.tensor([0] * len(horses) + [1] * len(birds)), ("horse", "bird"))


def coloured(image: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Return the bird in another colour."""
    plain = image[:, :1, :1]
    shape = (image != plain).any(0)
    return np.where(shape, np.array(colour, np.uint8)[:, None, None], plain)


def colour_of(image: Tensor, alpha: Tensor) -> Tensor:
    """Return the mean colour of what alpha covers."""
    return image[:, alpha[0] > 230].float().mean(1)


def shifts(image: Tensor) -> Tensor:
    """Return an image shifted by up to 3 pixels each way, (49, 3, 32, 32); the border is repeated."""
    wide = np.pad(image.numpy(), ((0, 0), (3, 3), (3, 3)), mode="edge")
    return torch.stack([torch.from_numpy(wide[:, y : y + 32, x : x + 32]) for y in range(7) for x in range(7)])


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lessons of images as they are: on their own ground, with their colours and not shifted."""
    monkeypatch.setattr(compositions, "CONTRAST", -1.0)  # any will do
    for name in ("BUSY_SHARE", "SHADE", "CAST"):
        monkeypatch.setattr(lessons, name, 0.0)
    monkeypatch.setattr(lessons, "SHIFT", 0)


def test_a_lesson_is_two_images_of_the_data_and_the_first_with_a_limb(
    plain: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lessons, "SHIFT", 3)
    images = data([body(1), body(-1)], [bird(), bird()])
    made = make_lessons(images, 20)
    assert [kind.shape[1:] for kind in made] == [(3, 32, 32)] * 3 + [(1, 32, 32), (2,)]
    assert len(made) == 20
    horses, birds = (torch.cat([shifts(image) for image in part]) for part in images.images.split(2))
    assert all((horses == first).flatten(1).all(1).any() for first in made.first)
    assert min(len({image.numpy().tobytes() for image in kind}) for kind in (made.first, made.second)) > 10
    assert all((birds == second).flatten(1).all(1).any() for second in made.second)
    for first, target, alpha in zip(made.first, made.targets, made.moved, strict=True):
        # Below the limb is the first image at 7/8 of its size, with the middle of its lower edge fixed.
        rows = torch.arange(20, 32)
        source = (32 - (32 - rows - 0.5) / ROOM).long()
        columns = (16 + (torch.arange(32) + 0.5 - 16) / ROOM).long()
        inside = (columns >= 1) & (columns < 31)
        wanted = first[:, source][:, :, columns.clamp(0, 31)].float()
        clear = inside[None] & (alpha[0, 20:] == 0)
        close = ((target[:, 20:].float() - wanted).abs().amax(0) < 40)[clear]
        assert close.float().mean() > 0.9  # all but the pixels at an edge
        assert (alpha > 0).sum() > 15
    for alpha, (x, y) in zip(made.moved, made.roots.tolist(), strict=True):
        assert (x % 4, y % 4) == (2, 2)  # the middle of a square of four pixels
        rows, columns = torch.nonzero(alpha[0] > 128).T
        assert alpha[0, y - 2 : y + 2, x - 2 : x + 2].max() > 128  # the limb grows there,
        assert rows.float().mean() < y and rows.max() <= y + 3  # and upwards


def test_half_of_the_animals_stand_in_front_of_an_image_of_the_second_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lessons, "SHIFT", 0)
    images = data([body(1)], [bird((250, 60, 60)), bird((60, 250, 60))])
    made, mask = make_lessons(images, 200), find_parts(images).bodies.masks[0]
    inner, outer = (torch.from_numpy(ndimage.binary_erosion(m.numpy(), iterations=2)) for m in (mask, ~mask))
    busy = 0
    for first in made.first:
        assert torch.equal(first[:, inner], images.images[0][:, inner])
        behind = [index for index in range(3) if torch.equal(first[:, outer], images.images[index][:, outer])]
        assert len(behind) == 1
        busy += behind != [0]
    assert 70 < busy < 130


def test_the_ground_that_goes_on_around_an_animal_is_that_of_its_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lessons, "SHIFT", 0)
    blue = bird()
    blue[:, (blue == blue[:, :1, :1]).all(0)] = np.array([20, 20, 200], np.uint8)[:, None]
    images = data([body(1)], [blue])
    made = make_lessons(images, 40)
    grounds = {tuple(first[:, 28:, :2].flatten(1).float().mean(1).round().tolist()) for first in made.first}
    assert len(grounds) == 2 and (20.0, 20.0, 200.0) in grounds
    for first, target in zip(made.first, made.targets, strict=True):
        apart = target[:, 28:, :2].float().mean((1, 2)) - first[:, 28:, :2].float().mean((1, 2))
        assert apart.abs().max() < 25


def test_the_same_two_images_have_one_target(plain: None) -> None:
    images = data([body(1), body(-1)], [bird()])
    made = make_lessons(images, 40)
    several = 0
    # The bird's own limb, and afterwards the limb of the nearest colour, which is the same one.
    for part in (slice(0, 16), slice(16, 40)):
        targets: dict[bytes, list[Tensor]] = {}
        for first, target in zip(made.first[part], made.targets[part], strict=True):
            targets.setdefault(first.numpy().tobytes(), []).append(target)
        for same in targets.values():
            several += len(same) > 1
            assert all(torch.equal(target, same[0]) for target in same)
    assert several == 4


def test_mirroring_an_image_does_not_change_the_lesson_but_for_mirroring_its_target(plain: None) -> None:
    horse, wings = body(1), bird()
    made = {}
    for name, parents in {"plain": (horse, wings), "horse": (horse[:, :, ::-1], wings)}.items():
        made[name] = make_lessons(data([parents[0].copy()], [parents[1].copy()]), 4).targets[0].float()
    apart = (made["horse"].flip(2) - made["plain"]).abs()
    assert apart.mean() < 6  # but for the middle of a bicubic pixel
    other = make_lessons(data([horse], [wings[:, :, ::-1].copy()]), 4).targets[0].float()
    assert (other - made["plain"]).abs().mean() < 6


def test_two_fifths_of_the_lessons_have_the_donor_and_the_others_a_limb_of_stock_of_the_nearest_colour(
    plain: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three donors; the second images get a limb of their own colour, and only of those that are in stock."""
    colours = {"red": (220, 40, 40), "blue": (40, 40, 220), "green": (40, 190, 40)}
    images = data([body(1)], [coloured(bird(), colour) for colour in colours.values()])
    parts = find_parts(images)
    monkeypatch.setattr(lessons, "find_parts", lambda _: dataclasses.replace(parts, stock=torch.tensor([1, 2])))
    monkeypatch.setattr(lessons, "TINT", 0.0)
    made = make_lessons(images, 200)
    got = {"red": set(), "blue": set(), "green": set()}
    for number, (second, target, alpha) in enumerate(zip(made.second, made.targets, made.moved, strict=True)):
        (which,) = torch.nonzero((images.images[1:] == second).flatten(1).all(1)).flatten().tolist()
        found = colour_of(target, alpha)
        (limb,) = (name for name, rgb in colours.items() if (found - torch.tensor(rgb)).abs().max() < 60)
        got[list(colours)[which]].add((number < 80, limb))
    assert got["blue"] == {(True, "blue"), (False, "blue")}
    assert got["red"] - {(False, "blue"), (False, "green")} == {(True, "red")}  # the nearest one in stock
    assert len(got["red"]) == 2


def test_a_donor_is_shown_with_its_own_limb_alone(plain: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of three birds is a donor, with two limbs. It is shown with the first one, the others with one in stock."""
    images = data([body(1)], [coloured(bird(), colour) for colour in ((220, 40, 40), (40, 40, 220), (40, 190, 40))])
    parts = find_parts(images)
    twice = dataclasses.replace(parts.limbs.take(torch.tensor([0, 1])), donors=torch.tensor([0, 0]))
    monkeypatch.setattr(
        lessons, "find_parts", lambda _: dataclasses.replace(parts, limbs=twice, stock=torch.tensor([1]))
    )
    monkeypatch.setattr(lessons, "TINT", 0.0)
    made = make_lessons(images, 100)
    donors = (made.second == images.images[1]).flatten(1).all(1)
    assert donors.tolist() == [True] * 40 + [False] * 60
    found = torch.stack(list(map(colour_of, made.targets, made.moved)))
    assert ((found[:, 0] > found[:, 2] + 60) == donors).all()  # red, else blue


def test_limbs_of_lessons_stand_out(plain: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ground has a brightness near that of the bird: without the rule one could not see the wing."""
    ground = bird()[:, 0, 0]
    alike = np.where((bird() == ground[:, None, None]).all(0), ground[:, None, None], ground[:, None, None] - 12)
    images = data([body(1)], [alike.astype(np.uint8)])
    apart = []
    for contrast in (-1.0, 0.3):
        monkeypatch.setattr(compositions, "CONTRAST", contrast)
        (target,), (alpha,) = (kind[:1] for kind in (make_lessons(images, 1).targets, make_lessons(images, 1).moved))
        apart.append((colour_of(target, alpha).mean() - float(ground.mean())).abs().item())
    assert apart[0] < 25 and apart[1] > 60


def test_a_limb_of_stock_is_tinted_towards_the_second_image(plain: None, monkeypatch: pytest.MonkeyPatch) -> None:
    red, blue = coloured(bird(), (220, 40, 40)), coloured(bird(), (40, 40, 220))
    images = data([body(1)], [red, blue])
    parts = find_parts(images)
    monkeypatch.setattr(lessons, "find_parts", lambda _: dataclasses.replace(parts, stock=torch.tensor([1])))
    made = make_lessons(images, 80)
    reds = (made.second[32:] == images.images[1]).flatten(1).all(1)
    found = torch.stack(list(map(colour_of, made.targets[32:][reds], made.moved[32:][reds]))).mean(0)
    torch.testing.assert_close(found, torch.tensor([184.0, 40.0, 76.0]), rtol=0, atol=25)  # .8 of the way from blue


def test_a_donor_is_made_brighter_or_darker_together_with_its_limb(
    plain: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lessons, "SHADE", 0.3)
    monkeypatch.setattr(lessons, "CAST", 0.1)
    monkeypatch.setattr(lessons, "OWN_SHARE", 1.0)
    images = data([body(1)], [coloured(bird(), (160, 120, 140))])
    made = make_lessons(images, 30)
    shades = made.second[:, :, 22, 16] / images.images[1, :, 22, 16].float()  # a pixel of the bird
    assert 0.6 < shades.min() < 0.8 and 1.2 < shades.max() < 1.44
    assert (shades.amax(1) / shades.amin(1)).max() > 1.05  # the colours by themselves, too
    found = torch.stack(list(map(colour_of, made.targets, made.moved)))
    apart = found / found.mean(0) - shades / shades.mean(0)
    assert apart.abs().max() < 0.05


def test_lessons_are_a_function_of_images_and_seed() -> None:
    images = data([body(1), body(-1)], [bird()])
    one, again, other = (make_lessons(images, 30, seed) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert not torch.equal(one.first, other.first)


def test_images_without_an_object_teach_nothing() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (3, 32, 32), dtype=np.uint8)
    with pytest.raises(UserError, match="No bird can be cut out"):
        make_lessons(data([body(1)], [noise]), 4)
