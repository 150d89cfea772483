"""Tests of the four grids: cells, times of drawing, and no effect on the training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from pegasus_lightning.data.batches import ImageSet
from pegasus_lightning.models.two_player import TwoPlayerModel
from pegasus_lightning.train.callbacks import images as module
from pegasus_lightning.train.callbacks.images import (
    ImageGrids,
    fixed_pairs,
    interpolation_grid,
    pegasus_grid,
    prior_grid,
    reconstruction_grid,
)


@pytest.fixture
def data() -> ImageSet:
    """Ten images; even ones are of class 0."""
    pixels = torch.randint(0, 256, (10, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return ImageSet(pixels, torch.arange(10) % 2, ("horse", "bird"))


@pytest.fixture
def model(tiny: Callable[..., TwoPlayerModel]) -> TwoPlayerModel:
    return tiny("vae").eval()


@pytest.fixture
def cells(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, dict[str, Any]]]:
    """List of the arguments of `image_grid`."""
    handed: list[tuple[Tensor, dict[str, Any]]] = []
    draw = module.image_grid

    def watched(images: Tensor, **look: Any) -> np.ndarray:
        handed.append((images, look))
        return draw(images, **look)

    monkeypatch.setattr(module, "image_grid", watched)
    return handed


def test_fixed_pairs_are_the_first_of_each_class(data: ImageSet) -> None:
    first, second = fixed_pairs(data, 3)
    assert torch.equal(first * 255, data.images[[0, 2, 4]].float())
    assert torch.equal(second * 255, data.images[[1, 3, 5]].float())


def test_pairs_need_a_partner_each(data: ImageSet) -> None:
    first, second = fixed_pairs(data.take([0, 2, 4, 6, 1]), 8)
    assert len(first) == len(second) == 1


@torch.no_grad()
def test_reconstructions_stand_under_their_inputs(
    data: ImageSet, model: TwoPlayerModel, cells: list[tuple[Tensor, dict[str, Any]]]
) -> None:
    pairs = fixed_pairs(data, 3)
    grid = reconstruction_grid(model, pairs, scale=1)
    ((rows, look),) = cells
    assert grid.dtype == np.uint8
    assert rows.shape == (4, 3, 3, 32, 32)
    assert torch.equal(rows[0], pairs[0])
    assert torch.equal(rows[2], pairs[1])
    for row, images in ((1, pairs[0]), (3, pairs[1])):
        logits = model.decoder(model.encoder(images)[0])
        torch.testing.assert_close(rows[row], 1 / (1 + torch.exp(-logits)))
    assert [caption.split("\n") for caption in look["row_captions"]] == [
        ["horse", "input"], ["horse", "reconstruction"], ["bird", "input"], ["bird", "reconstruction"]
    ]  # fmt: skip


@torch.no_grad()
def test_interpolations_go_from_the_first_class_to_the_second(
    data: ImageSet, model: TwoPlayerModel, cells: list[tuple[Tensor, dict[str, Any]]]
) -> None:
    pairs = fixed_pairs(data, 3)
    interpolation_grid(model, pairs, scale=1)
    ((rows, look),) = cells
    assert rows.shape == (3, 11, 3, 32, 32)
    start, end = (model.encoder(images)[0] for images in pairs)
    for column, ratio in ((0, 0.0), (3, 0.3), (10, 1.0)):
        mixed = model.decode((1 - ratio) * start + ratio * end)
        torch.testing.assert_close(rows[:, column], mixed, rtol=1e-4, atol=1e-5)
    assert look["column_captions"] == ["0.0", "0.1", "0.2", "0.3", "0.4", "0.5", "0.6", "0.7", "0.8", "0.9", "1.0"]
    assert look["highlight_columns"] == [4, 5, 6]
    assert "horse (0) to bird (1)" in look["title"]


@torch.no_grad()
def test_mixes_lie_between_their_parents(
    data: ImageSet, model: TwoPlayerModel, cells: list[tuple[Tensor, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[Tensor] = []
    decode = TwoPlayerModel.decode
    monkeypatch.setattr(TwoPlayerModel, "decode", lambda self, codes: decoded.append(codes) or decode(self, codes))
    pairs = fixed_pairs(data, 4)
    pegasus_grid(model, pairs, scale=1)
    ((rows, look),) = cells
    start, mix, end = decoded
    for codes, images in ((start, pairs[0]), (end, pairs[1])):  # sampled: near the mean, not on it
        mean, log_variance = model.encoder(images)
        deviations = (codes - mean) / torch.exp(log_variance / 2)
        assert 0.3 < deviations.square().mean().sqrt() < 2
    ratios = ((mix - start) / (end - start)).median(dim=1).values
    torch.testing.assert_close(mix, (1 - ratios[:, None]) * start + ratios[:, None] * end, rtol=1e-3, atol=1e-4)
    assert ((ratios >= 0.4) & (ratios <= 0.6)).all()
    assert len(set(ratios.tolist())) == 4
    assert look["column_captions"] == [f"{ratio:.2f}" for ratio in ratios.tolist()]
    for row, codes in enumerate((start, mix, end)):
        torch.testing.assert_close(rows[row], torch.sigmoid(model.decoder(codes)))


@torch.no_grad()
def test_prior_samples_are_decoded_noise_the_same_every_time(
    model: TwoPlayerModel, cells: list[tuple[Tensor, dict[str, Any]]]
) -> None:
    first, second = prior_grid(model, 5, scale=1), prior_grid(model, 5, scale=1)
    assert np.array_equal(first, second)
    assert cells[0][0].shape == (20, 3, 32, 32)
    assert len(torch.unique(cells[0][0].flatten(1), dim=0)) == 20
    assert cells[0][1]["columns"] == 5


# Callback.


class Trainer(SimpleNamespace):
    """The attributes of a Trainer that the callback uses."""

    def __init__(self, epoch: int, *, first: bool = True, logged: bool = True, stopping: bool = False) -> None:
        self.pictures: list[tuple[str, int]] = []
        logger = SimpleNamespace(log_picture=lambda tag, _, step: self.pictures.append((tag, step)))
        super().__init__(current_epoch=epoch, is_global_zero=first, logger=logger if logged else None)
        self.max_epochs, self.should_stop = 7, stopping


def grids(folder: Path, data: ImageSet, every: int = 10) -> ImageGrids:
    return ImageGrids(folder, data, every_n_epochs=every, columns=2, scale=1)


FOUR = ("interpolations", "mixes", "prior", "reconstructions")


def test_they_are_drawn_after_the_first_and_every_nth_epoch_and_at_the_end(
    tmp_path: Path, data: ImageSet, model: TwoPlayerModel
) -> None:
    callback = grids(tmp_path, data, every=3)
    for epoch in range(7):  # 7 epochs of 5 batches
        model.batches_done = 5 * (epoch + 1)
        callback.on_train_epoch_end(Trainer(epoch), model)  # type: ignore[arg-type]
    drawn = sorted(path.name for path in tmp_path.iterdir())
    assert drawn == sorted(f"{name}-epoch-{epoch:04d}.png" for name in FOUR for epoch in (1, 3, 6, 7))


def test_the_last_epoch_is_drawn_when_time_is_over_too(tmp_path: Path, data: ImageSet, model: TwoPlayerModel) -> None:
    callback = grids(tmp_path, data)
    model.batches_done = 25
    callback.on_train_epoch_end(Trainer(4), model)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
    end = Trainer(4, stopping=True)
    callback.on_train_epoch_end(end, model)  # type: ignore[arg-type]
    assert sorted(end.pictures) == [(f"images/{name}", 25) for name in FOUR]
    again = Trainer(4, stopping=True)
    callback.on_train_epoch_end(again, model)  # type: ignore[arg-type]
    assert again.pictures == []


def test_only_the_first_process_draws_and_a_logger_is_not_needed(
    tmp_path: Path, data: ImageSet, model: TwoPlayerModel
) -> None:
    grids(tmp_path / "second", data).draw(Trainer(0, first=False), model, 1)  # type: ignore[arg-type]
    assert not (tmp_path / "second").exists()
    grids(tmp_path / "mute", data).draw(Trainer(0, logged=False), model, 1)  # type: ignore[arg-type]
    assert len(list((tmp_path / "mute").iterdir())) == 4


def test_training_does_not_notice(tmp_path: Path, data: ImageSet, tiny: Callable[..., TwoPlayerModel]) -> None:
    model = tiny("adversarial_vae").train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    grids(tmp_path, data).draw(Trainer(0), model, 1)  # type: ignore[arg-type]
    assert torch.equal(torch.rand(3), expected)  # the global generator is unchanged
    assert model.training
    assert torch.is_grad_enabled()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_the_same_model_gives_the_same_files(tmp_path: Path, data: ImageSet, model: TwoPlayerModel) -> None:
    for folder in ("a", "b"):
        grids(tmp_path / folder, data).draw(Trainer(0), model, 1)  # type: ignore[arg-type]
    for path in (tmp_path / "a").iterdir():
        assert np.array_equal(np.asarray(Image.open(path)), np.asarray(Image.open(tmp_path / "b" / path.name)))


def test_a_validation_split_without_one_of_the_classes_does_not_end_the_run(
    tmp_path: Path, data: ImageSet, model: TwoPlayerModel
) -> None:
    grids(tmp_path, data.take([0, 2])).draw(Trainer(0), model, 1)  # type: ignore[arg-type]
