"""Batches as a function of seed, epoch and global batch: shuffles, flips, resuming and data parallelism."""

from collections.abc import Iterable

import pytest
import torch
from torch import Tensor

from pegasus_lightning.data.batches import EvaluationBatches, ImageSet, TrainBatches
from pegasus_lightning.utils.tensors import to_float


def data(count: int) -> ImageSet:
    """Return images with their own number as label, each different from its mirror image."""
    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return ImageSet(images, torch.arange(count), ("horse", "bird")).to("cpu")


def batches(
    count: int = 24, size: int = 8, *, seed: int = 0, flip: bool = False, done: int = 0, **more
) -> TrainBatches:
    return TrainBatches(data(count), size, seed=seed, flip=flip, batches_done=lambda: done, **more)


def labels(loader: Iterable[tuple[Tensor, Tensor]]) -> list[int]:
    return [int(label) for _, batch in loader for label in batch]


def assert_same(one: list[tuple[Tensor, Tensor]], other: list[tuple[Tensor, Tensor]]) -> None:
    assert len(one) == len(other)
    for (images, numbers), (other_images, other_numbers) in zip(one, other, strict=True):
        assert torch.equal(images, other_images)
        assert torch.equal(numbers, other_numbers)


def test_every_image_once_an_epoch() -> None:
    loader = batches(24, 8)
    assert len(loader) == len(list(loader)) == 3
    assert sorted(labels(loader)) == list(range(24))
    assert labels(loader) != list(range(24))


def test_a_remainder_is_dropped_and_differs_between_epochs() -> None:
    dropped = []
    for epoch in range(4):
        loader = batches(21, 8, done=2 * epoch)
        seen = labels(loader)
        assert len(loader) == 2
        assert len(seen) == len(set(seen)) == 16
        dropped.append(frozenset(range(21)) - set(seen))
    assert len(set(dropped)) == 4


def test_order_is_a_function_of_seed_and_epoch() -> None:
    assert labels(batches(seed=5, done=3)) == labels(batches(seed=5, done=3))
    assert labels(batches(seed=5, done=3)) != labels(batches(seed=5, done=0))
    assert labels(batches(seed=5)) != labels(batches(seed=6))


@pytest.mark.parametrize("done", [3, 4, 5])
def test_a_run_taken_up_again_sees_the_remaining_batches(done: int) -> None:
    whole = list(batches(flip=True, done=3))  # the whole second epoch
    assert_same(list(batches(flip=True, done=done)), whole[done - 3 :])


def test_batches_done_is_read_when_an_iteration_begins() -> None:
    done = 0
    loader = TrainBatches(data(24), 8, seed=0, flip=True, batches_done=lambda: done)
    first = list(loader)
    done = 3
    assert_same(list(loader), list(batches(flip=True, done=3)))
    done = 0
    assert_same(list(loader), first)


def test_flips_are_exact_mirror_images_of_about_half() -> None:
    source = to_float(data(400).images)
    mirrored = 0
    for images, numbers in batches(400, 40, flip=True):
        originals = source[numbers]
        flipped = [torch.equal(image, original.flip(2)) for image, original in zip(images, originals, strict=True)]
        kept = [torch.equal(image, original) for image, original in zip(images, originals, strict=True)]
        assert all(a != b for a, b in zip(flipped, kept, strict=True))
        assert 0 < sum(flipped) < 40  # one draw per image, not per batch
        mirrored += sum(flipped)
    assert abs(mirrored - 200) < 5 * 10  # five standard deviations
    for images, numbers in batches(flip=False):
        assert torch.equal(images, source[numbers])


def test_flips_are_tossed_anew_every_batch_and_epoch() -> None:
    source = to_float(data(64).images)
    tosses = []
    for done in (0, 4):
        for images, numbers in batches(64, 16, flip=True, done=done):
            pairs = zip(images, source[numbers], strict=True)
            tosses.append(tuple(torch.equal(image, original) for image, original in pairs))
    assert len(tosses) == len(set(tosses)) == 8


def test_the_ranks_batches_make_up_the_global_batch() -> None:
    whole = list(batches(flip=True))
    shares = [list(batches(flip=True, rank=rank, world_size=2)) for rank in (0, 1)]
    assert [len(share) for share in shares] == [3, 3]
    joined = [(torch.cat([a, b]), torch.cat([m, n])) for (a, m), (b, n) in zip(*shares, strict=True)]
    assert_same(joined, whole)


@pytest.mark.parametrize("flip", [False, True])
def test_batches_are_channels_last_floats_in_unit_range(flip: bool) -> None:
    for images, _ in batches(flip=flip):
        assert images.shape == (8, 3, 32, 32)
        assert images.dtype == torch.float32
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert images.min() >= 0
        assert images.max() <= 1


def test_to_float_by_hand() -> None:
    assert to_float(torch.tensor([0, 51, 255], dtype=torch.uint8)).tolist() == pytest.approx([0, 0.2, 1])
    original = torch.tensor([7], dtype=torch.uint8)
    to_float(original)
    assert original.item() == 7


def test_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    list(batches(flip=True))
    assert torch.equal(torch.get_rng_state(), before)


def test_evaluation_keeps_the_order_and_the_remainder() -> None:
    source = data(21)
    loader = EvaluationBatches(source, 8)
    assert len(loader) == 3
    assert [len(images) for images, _ in loader] == [8, 8, 5]
    assert labels(loader) == list(range(21))
    assert torch.equal(torch.cat([images for images, _ in loader]), source.images / 255)


def test_image_set_takes_and_sorts_by_class() -> None:
    images = ImageSet(data(4).images, torch.tensor([0, 1, 1, 0]), ("horse", "bird"))
    assert len(images) == 4
    assert images.of_class(1).tolist() == [1, 2]
    taken = images.take([3, 1])
    assert taken.labels.tolist() == [0, 1]
    assert torch.equal(taken.images, images.images[[3, 1]])
    assert taken.classes == ("horse", "bird")
