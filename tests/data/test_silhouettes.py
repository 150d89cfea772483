"""Silhouettes: functions of seed and number, with pegasi as ground truth and classes of equal colours."""

import pytest
import torch

from pegasus_lightning.data.silhouettes import CLASSES, draw, load, load_scenes
from pegasus_lightning.utils.errors import UserError


@pytest.mark.parametrize("kind", CLASSES)
def test_image_depends_on_seed_kind_and_number_alone(kind: str) -> None:
    few, many = draw(kind, 5, seed=3), draw(kind, 9, seed=3)
    assert few.shape == (5, 3, 32, 32)
    assert few.dtype == torch.uint8
    assert few.is_contiguous()
    assert torch.equal(few, many[:5])
    assert len(torch.unique(many.flatten(1), dim=0)) == 9
    assert not (few == draw(kind, 5, seed=4)).flatten(1).all(dim=1).any()
    assert draw(kind, 0, seed=3).shape == (0, 3, 32, 32)


def test_labels_follow_the_order_of_the_classes_given() -> None:
    images, labels = load(["bird", "horse"], "train", 3, seed=0)
    swapped, swapped_labels = load(["horse", "bird"], "train", 3, seed=0)
    assert images.shape == (6, 3, 32, 32)
    assert images.dtype == torch.uint8
    assert labels.tolist() == swapped_labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert labels.dtype == torch.int64
    assert torch.equal(images[labels == 0], swapped[swapped_labels == 1])  # the birds
    assert torch.equal(images[labels == 1], swapped[swapped_labels == 0])  # the horses


def test_train_test_and_draw_share_no_picture() -> None:
    pictures = [load(["horse", "bird"], split, 10, seed=0)[0] for split in ("train", "test")]
    pictures += [draw("horse", 10, seed=0), draw("bird", 10, seed=0)]
    assert len(torch.unique(torch.cat(pictures).flatten(1), dim=0)) == 60


@pytest.mark.parametrize("kind", CLASSES)
def test_a_figure_stands_out_in_every_picture(kind: str) -> None:
    middle = draw(kind, 20, seed=1).float().mean(dim=1)[:, 8:30, 6:26]
    across = middle.std(dim=2).amax(dim=1)  # a row of sky or ground only is almost constant
    assert (across > 15).all()


def test_outlines_are_antialiased() -> None:
    horses, pegasi = (draw(kind, 10, seed=1).permute(0, 2, 3, 1) for kind in ("horse", "pegasus"))
    for horse, pegasus in zip(horses, pegasi, strict=True):
        wings = pegasus[(horse != pegasus).any(dim=2)]  # (pixels, 3)
        assert len(torch.unique(wings, dim=0)) > 25  # two wings of three colours without antialiasing would have six


def test_a_pegasus_is_the_same_horse_with_wings() -> None:
    horses, pegasi = draw("horse", 30, seed=2).int(), draw("pegasus", 30, seed=2).int()
    differs = (horses - pegasi).abs().amax(dim=1) > 0  # (30, 32, 32)
    share = differs.float().mean(dim=(1, 2))
    assert (share > 0.03).all()
    assert (share < 0.3).all()
    assert not differs[:, 26:].any()  # the legs, the shadow and the ground
    assert not differs[:, :, :2].any()
    assert not differs[:, :, -2:].any()
    assert not differs[:, 0].any()  # the wings end inside the picture


def test_mean_colour_does_not_give_the_class_away() -> None:
    images, labels = load(["horse", "bird"], "train", 200, seed=0)
    colours = images.float().mean(dim=(2, 3))  # (400, 3)
    fitted = torch.arange(400) % 2 == 0
    centres = torch.stack([colours[fitted & (labels == k)].mean(dim=0) for k in (0, 1)])
    guesses = torch.cdist(colours[~fitted], centres).argmin(dim=1)
    assert (guesses == labels[~fitted]).float().mean() < 0.7


@pytest.mark.parametrize(
    ("classes", "split", "words"),
    [
        (["horse", "pegasos"], "train", ["'pegasos'", "horse, bird, pegasus", "Did you mean 'pegasus'?"]),
        (["horse"], "tests", ["'tests'", "train, test", "Did you mean 'test'?"]),
    ],
)
def test_unknown_names_are_answered_with_the_known_ones(classes: list[str], split: str, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        load(classes, split, 1, seed=0)
    assert all(word in str(caught.value) for word in words)


def test_draw_answers_an_unknown_class_too() -> None:
    with pytest.raises(UserError, match="Did you mean 'horse'"):
        draw("hores", 1, seed=0)


def test_animals_are_the_pictures_they_always_were() -> None:
    """Models trained on earlier drawings must get the same ones."""
    sums = [draw(kind, 3, seed=5).long().sum().item() for kind in CLASSES]
    assert sums == [1211302, 1531254, 1203586]


def test_a_scene_has_no_animal_and_is_nobodys_background() -> None:
    scenes = load_scenes("train", 20, seed=0)
    assert scenes.shape == (20, 3, 32, 32)
    assert torch.equal(scenes[:5], load_scenes("train", 5, seed=0))
    assert not (scenes == load_scenes("test", 20, seed=0)).flatten(1).all(dim=1).any()
    animals, _ = load(["horse", "bird"], "train", 20, seed=0)
    corner = torch.cat([scenes, animals])[:, :, :4, :4].flatten(1)  # almost always sky only
    assert len(torch.unique(corner, dim=0)) == 60
    # An animal has sharp edges between dark and bright; a scene is blurred except for a ridge or a ripple.
    steps = (scenes.float().mean(1).diff(dim=2).abs() > 25).float().mean(dim=(1, 2))
    drawn = (animals.float().mean(1).diff(dim=2).abs() > 25).float().mean(dim=(1, 2))
    assert steps.max() < drawn.min()
