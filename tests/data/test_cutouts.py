"""Tests of silhouettes and of limbs that are cut out."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from shapes import COAT, FEATHERS, GROUND, bird, body

from pegasus_lightning.data.cutouts import cut_limbs, fingerprints, limb_axes, silhouettes


def test_a_silhouette_is_the_largest_part_with_its_holes_filled() -> None:
    image = body()
    image[:, 17:19, 12:15] = np.array(GROUND)[:, None, None]  # a hole in the trunk
    image[:, 2, 2] = 255  # a speck
    found = silhouettes(torch.from_numpy(image)[None])
    wanted = (torch.from_numpy(body()) != torch.tensor(GROUND)[:, None, None]).any(0)
    assert torch.equal(found.masks[0], wanted)
    assert found.areas.tolist() == [20 * 8 + 2 * 12 + 24]
    assert found.widths.tolist() == [20]
    assert found.spreads.tolist() == [0]


def test_an_object_may_touch_the_border_and_an_empty_picture_has_none() -> None:
    image = body()
    image[:, 20:26, 26:] = np.array(COAT)[:, None, None]  # a tail that leaves the picture
    plain = np.full((3, 32, 32), 90, np.uint8)
    found = silhouettes(torch.from_numpy(np.stack([image, plain])))
    assert found.areas.tolist() == [20 * 8 + 2 * 12 + 24 + 6 * 6, 0]
    assert found.widths.tolist() == [26, 0]


def test_the_spread_is_that_of_the_borders_colours() -> None:
    image = np.zeros((3, 32, 32), np.uint8)
    image[:, :, 16:] = 60  # half of the border; 105 of 124 pixels are kept, the 62 of the median's side first
    found = silhouettes(torch.from_numpy(image)[None])
    share = 62 / 105
    assert found.spreads.item() == pytest.approx(60 * 3**0.5 * (share * (1 - share)) ** 0.5, abs=1e-3)


def test_a_limb_is_cut_out_on_its_axis_without_the_colour_of_the_ground() -> None:
    image = bird().astype(float)
    edge = image.copy()
    edge[:, 5:18, 13] = edge[:, 5:18, 18] = (np.array(GROUND) + np.array(FEATHERS))[:, None] / 2  # half and half
    images = torch.from_numpy(edge.round().astype(np.uint8))[None]
    limbs = cut_limbs(images, silhouettes(images), torch.tensor([[16.0, 18.0, 16.0, 5.0, 4.0]]), torch.tensor([0]))
    pixels = limbs.pixels[0]
    assert torch.equal(pixels[3, 8:15, 14:18], torch.ones(7, 4))
    assert pixels[3, 19:].max() == 0  # nothing beyond the root
    assert pixels[3, :, :11].max() == 0 and pixels[3, :, 21:].max() == 0
    there = pixels[3] > 0
    colours = pixels[:3, there] / pixels[3, there]
    torch.testing.assert_close(colours, torch.tensor(FEATHERS)[:, None].expand_as(colours) / 255, atol=0.01, rtol=0)


def test_what_sticks_out_of_the_trunk_is_the_limb() -> None:
    axes, found = limb_axes(silhouettes(torch.from_numpy(bird())[None]))
    assert found.tolist() == [0]
    root_x, root_y, tip_x, tip_y, half = axes[0].tolist()
    assert 15 <= root_x <= 17 and 16 <= root_y <= 19
    assert 14 <= tip_x <= 18 and tip_y == 5.5
    assert 2 <= half <= 3.5


def test_what_has_no_limb_is_moved_whole() -> None:
    image = np.full((3, 32, 32), 90, np.uint8)
    image[:, 10:22, 8:24] = 200
    ((root_x, root_y, tip_x, tip_y, half),) = limb_axes(silhouettes(torch.from_numpy(image)[None]))[0].tolist()
    assert (root_x, root_y, tip_x, tip_y) == (16, 21.5, 16, 10.5)
    assert half == 8


def test_fingerprints_are_the_colours_of_cells_and_survive_jpeg() -> None:
    noise = torch.randint(0, 256, (3, 4, 4), generator=torch.Generator().manual_seed(0))
    image = noise.repeat_interleave(8, 1).repeat_interleave(8, 2).byte()
    assert torch.equal(fingerprints(image[None])[0], noise.flatten().byte())
    photograph = torch.from_numpy(bird())
    file = io.BytesIO()
    Image.fromarray(photograph.permute(1, 2, 0).numpy()).save(file, format="JPEG", quality=80)
    again = torch.from_numpy(np.asarray(Image.open(file)).copy()).permute(2, 0, 1)
    before, after = (fingerprints(one[None]).float() for one in (photograph, again))
    assert 0 < (before - after).abs().mean() < 2
