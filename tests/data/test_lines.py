"""Drawn lines against pixels computed by hand, a supersampled stroke, and mirror images."""

import math

import pytest
import torch

from pegasus_lightning.data.lines import CLASSES, line_images, load
from pegasus_lightning.data.module import load_split
from pegasus_lightning.data.settings import LinesConfig
from pegasus_lightning.train.settings import TRAIN, validate
from pegasus_lightning.utils.errors import UserError


def test_level_and_upright_lines_by_hand() -> None:
    right, up, left, down = line_images(torch.tensor([0, 0.5, 1, 1.5]) * math.pi)
    wanted = torch.zeros(32, 32)
    wanted[15:17, 16:31] = 1  # two pixels wide, 15 long, from the centre at 16
    torch.testing.assert_close(right, wanted)
    torch.testing.assert_close(left, wanted.flip(1))
    torch.testing.assert_close(down, wanted.T)
    torch.testing.assert_close(up, wanted.T.flip(0))


def test_a_diagonal_line_by_hand() -> None:
    (image,) = line_images(torch.tensor([math.pi / 4]))
    # Slope 1, width 2: the stroke covers each diagonal pixel and half of its neighbours.
    assert image[10, 19:24].tolist() == pytest.approx([0, 0.5, 1, 0.5, 0])
    ends_at = 16 + 15 / math.sqrt(2)  # 26.607: the last pixel is covered up to here
    assert image[5, 26].item() == pytest.approx(ends_at - 26, abs=1e-6)
    assert image[:, 28:].sum() == image[:4].sum() == 0


def test_a_line_is_the_share_of_each_pixel_under_its_stroke() -> None:
    """Compare with a stroke sampled at 64 x 64 points per pixel."""
    samples = (torch.arange(32 * 64, dtype=torch.float64) + 0.5) / 64
    down, right = torch.meshgrid(samples - 16, samples - 16, indexing="ij")
    for angle in (0.3, 1.2, 2.0, 2.9, 3.5, 4.4, 5.0, 6.1):
        x, y = math.cos(angle), -math.sin(angle)
        if abs(x) > abs(y):
            inside = (right / x >= 0) & (right / x <= 15) & ((down - y / x * right).abs() <= 1)
        else:
            inside = (down / y >= 0) & (down / y <= 15) & ((right - x / y * down).abs() <= 1)
        wanted = inside.float().reshape(32, 64, 32, 64).mean((1, 3))
        # The stroke's position across is taken at the centre of each pixel along it: an error of slope / 8 at most.
        assert (line_images(torch.tensor([angle]))[0] - wanted).abs().max() < 0.13


def test_more_lines_than_are_drawn_at_once() -> None:
    angles = torch.linspace(0, 2 * math.pi, 1030)
    images = line_images(angles)
    assert images.shape == (1030, 32, 32)
    torch.testing.assert_close(images[1024:], line_images(angles[1024:]))


def test_a_mirrored_line_is_the_line_at_the_mirrored_angle() -> None:
    angles = torch.linspace(0.05, 6.2, 40, dtype=torch.float64)
    torch.testing.assert_close(line_images(angles).flip(2), line_images(math.pi - angles), atol=1e-6, rtol=0)
    torch.testing.assert_close(line_images(angles).flip(1), line_images(-angles), atol=1e-6, rtol=0)


def test_images_are_grey_uint8_and_labels_follow_the_order_of_the_classes() -> None:
    images, labels = load(["down", "up"], "train", 6, seed=0)
    assert images.shape == (12, 3, 32, 32)
    assert (images.dtype, labels.dtype) == (torch.uint8, torch.int64)
    assert images.is_contiguous()
    assert labels.tolist() == [0] * 6 + [1] * 6
    assert torch.equal(images[:, 0], images[:, 1]) and torch.equal(images[:, 0], images[:, 2])
    assert images.amax((1, 2, 3)).min() > 250
    swapped, _ = load(["up", "down"], "train", 6, seed=0)
    assert torch.equal(swapped, torch.cat([images[6:], images[:6]]))
    upper, lower = images[:, 0, :15].float().sum((1, 2)), images[:, 0, 17:].float().sum((1, 2))
    assert torch.equal(lower > upper, labels == 0)  # every line starts in rows 15 and 16


def test_an_image_depends_on_seed_split_class_and_number_alone() -> None:
    few, many = load(["up"], "train", 5, seed=3)[0], load(["up"], "train", 9, seed=3)[0]
    assert torch.equal(few, many[:5])
    pictures = [load(CLASSES, split, 50, seed)[0] for split in ("train", "test") for seed in (0, 1)]
    assert len(torch.unique(torch.cat(pictures).flatten(1), dim=0)) == 400
    # Independent angles: a lower line is not the upper line of the same number rotated by pi.
    up, down = load(CLASSES, "train", 1, seed=0)[0]
    assert not torch.equal(up, down.flip(1, 2))


def test_angles_fill_the_circle_evenly() -> None:
    images, _ = load(CLASSES, "train", 2000, seed=0)
    mass = images[:, 0].float()
    place = torch.arange(32) - 15.5
    x, y = (mass.sum(1) * place).sum(1), -(mass.sum(2) * place).sum(1)
    eighth = ((torch.atan2(y, x) % (2 * math.pi)) / (math.pi / 4)).long()
    counts = torch.bincount(eighth, minlength=8)
    assert (counts - 500).abs().max() < 5 * math.sqrt(500 * 7 / 8)


def test_the_source_is_wired_to_its_settings() -> None:
    config = LinesConfig(train_per_class=9, test_per_class=8, drawing_seed=5)
    train, test = load_split(config, "train"), load_split(config, "test")
    assert train.classes == ("up", "down")
    assert torch.equal(train.images, load(["up", "down"], "train", 9, seed=5)[0])
    assert torch.equal(test.images, load(["up", "down"], "test", 8, seed=5)[0])
    assert torch.equal(test.labels, torch.tensor([0] * 8 + [1] * 8))


def test_the_preset_is_for_lines_and_refuses_a_negative_seed() -> None:
    config = TRAIN.compose(["data=lines"])
    validate(config)
    assert list(config.data.classes) == ["up", "down"]
    with pytest.raises(UserError, match=r"data\.drawing_seed=-1"):
        validate(TRAIN.compose(["data=lines", "data.drawing_seed=-1"]))


@pytest.mark.parametrize(
    ("classes", "split", "words"),
    [
        (["up", "dwon"], "train", ["'dwon'", "up, down", "Did you mean 'down'?"]),
        (["horse", "bird"], "train", ["'horse'", "up, down"]),
        (["up"], "tests", ["'tests'", "train, test", "Did you mean 'test'?"]),
    ],
)
def test_unknown_names_are_answered_with_the_known_ones(classes: list[str], split: str, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        load(classes, split, 1, seed=0)
    assert all(word in str(caught.value) for word in words)
