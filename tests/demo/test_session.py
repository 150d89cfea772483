"""Tests of what the page shows, each against the model's own operations by hand."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from pegasus_lightning.data.room import with_room
from pegasus_lightning.demo.parents import OFFERED, OfCodes, OfImages, OfPrior
from pegasus_lightning.demo.session import Choice, DemoSession
from pegasus_lightning.generate.pairs import Parents
from pegasus_lightning.generate.pretrained import PretrainedModel
from pegasus_lightning.models.mixing_network import SHARPNESS, put_on
from pegasus_lightning.runs.trained import TrainedRun
from pegasus_lightning.utils.randomness import Stream, generator


def chosen(session: DemoSession, **changes) -> Choice:
    return Choice(session.offered(0, 0)[3], session.offered(1, 0)[5], **changes)


def test_the_picture_at_a_ratio_is_the_decoded_mix_of_the_mean_codes(linear: DemoSession) -> None:
    choice = chosen(linear, ratio=0.3)
    model = linear.model
    with torch.no_grad():
        first, second = (model.encode(p.pixels[None] / 255).mean for p in (choice.first, choice.second))
        wanted = model.decode(0.7 * first + 0.3 * second)[0]
    torch.testing.assert_close(linear.picture(choice), wanted)
    row = linear.pictures(choice, [0.0, 0.3, 1.0])
    torch.testing.assert_close(row, torch.cat([model.decode(first), wanted[None], model.decode(second)]))


def test_a_mask_keeps_the_limb_inside_it(by_parts: DemoSession) -> None:
    where = torch.zeros(32, 32, dtype=torch.bool)
    where[8:20, 4:12] = True
    choice = chosen(by_parts, where=where)
    model = by_parts.model
    ground = by_parts.ground(choice.first)
    with torch.no_grad():
        first, second = (model.encode(p.pixels[None] / 255).mean for p in (choice.first, choice.second))
        torch.testing.assert_close(ground, with_room(model.decode(first))[0])
        # The likeliest of the places, of 8 x 8 pixels, that hold a painted pixel: rows 1 and 2, columns 0 and 1.
        small = model.encode(ground[None]).mean
        places = model.mixer(small, second).places[0].unflatten(0, (4, 4))
        best = places[1:3, :2].flatten().argmax()
        limb = model.mixer(small, second, torch.tensor([(1 + best // 2) * 4 + best % 2]))
        whole = put_on(ground[None], limb, SHARPNESS)
        cut = torch.where(where, whole, ground[None])
        wanted = model.decode(model.encode(cut).mean)[0]
        free = put_on(ground[None], model.mixer(small, second), SHARPNESS)
        assert (whole - free).abs().max() > 0.01  # the likeliest of all places is another
        assert (whole - ground).abs().amax(1)[0, ~where].max() > 0.05  # there is something to cut off
    torch.testing.assert_close(by_parts.picture(choice), wanted)


def test_an_improvement_climbs_from_the_shown_mix_and_never_ends_below_it(linear: DemoSession) -> None:
    choice = chosen(linear, ratio=0.4)
    steps = list(linear.improve(choice))
    settings = linear.guidance
    assert [step.step for step in steps] == [*range(settings.search.steps + 1)]
    torch.testing.assert_close(steps[0].code, linear.codes(choice, [0.4])[0])
    assert settings.search.method == "guided"
    assert steps[0].seen is None
    assert steps[-1].score > steps[0].score
    improved = linear.picture(choice.with_(code=steps[-1].code))
    torch.testing.assert_close(improved, linear.model.decode(steps[-1].code[None])[0])
    assert not torch.equal(improved, linear.picture(choice))
    assert choice.with_(code=steps[-1].code).with_(ratio=0.5).code is None


def test_parents_are_told_by_numbers_that_find_them_again(linear: DemoSession) -> None:
    images = torch.arange(30, dtype=torch.uint8)[:, None, None, None].expand(30, 3, 32, 32)
    offer = OfImages(Parents(images, images[:7], ("cat", "ship")), {}, "", seed=1, fit=False)
    seen = [number for page in range(3) for number in offer.numbers(0, page)]
    assert sorted(set(seen)) == [*range(30)]  # all of them come before any comes again
    assert len(set(seen[:30])) == 30
    numbers = offer.numbers(1, 4)
    pixels = offer.images(1, numbers)
    assert sorted(numbers) == [*range(7)]
    assert pixels[:, 0, 0, 0].tolist() == numbers

    model = linear.model
    prior = OfPrior(model, seed=4)
    numbers = prior.numbers(1, 2)
    assert not {*numbers} & {*prior.numbers(0, 2), *prior.numbers(1, 1)}
    pixels = prior.images(1, numbers)
    noise = torch.randn(6, generator=generator(4, Stream.PRIOR, numbers[2]))
    with torch.no_grad():
        wanted = model.decode(noise[None])[0]
    assert (pixels[2] / 255 - wanted).abs().max() <= 0.51 / 255

    means = torch.randn(2, 20, 6, generator=torch.Generator().manual_seed(0))
    run = TrainedRun(Path("x"), Path("x"), model, None, "x")
    pretrained = PretrainedModel(run, None, [(means[0], means[0]), (means[1], means[1])])  # type: ignore[arg-type]
    codes = OfCodes(pretrained, seed=4)
    numbers = codes.numbers(1, 0)
    pixels = codes.images(1, numbers)
    assert len(pixels) == OFFERED
    with torch.no_grad():
        wanted = model.decode(means[1][numbers[7]][None])[0]
    assert (pixels[7] / 255 - wanted).abs().max() <= 0.51 / 255


def test_a_dropped_picture_is_cropped_to_its_middle(linear: DemoSession, tmp_path: Path) -> None:
    picture = Image.new("RGB", (64, 32), (255, 0, 0))
    picture.paste((0, 0, 255), (16, 0, 48, 32))
    picture.save(tmp_path / "mine.png")
    parent = linear.read(tmp_path / "mine.png")
    assert parent.pixels[:, 0, 0].tolist() == parent.pixels[:, 31, 31].tolist() == [0, 0, 255]
    assert parent.origin == {"file": "mine.png"}
