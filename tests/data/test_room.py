"""Room for a limb: the smaller picture as Pillow makes it, and what goes on around it."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from pegasus_lightning.data.room import mask_with_room, place_with_room, with_room


def smaller(picture: np.ndarray) -> np.ndarray:
    """Return a picture (32, 32) at 28 x 28 pixels."""
    return np.asarray(Image.fromarray(picture, "F").resize((28, 28), Image.Resampling.BICUBIC)).clip(0, 1)


def test_a_picture_with_room_stands_on_the_lower_edge_amid_its_blurred_mirror_image() -> None:
    pictures = np.random.default_rng(0).random((2, 3, 32, 32), dtype=np.float32)
    found = with_room(torch.from_numpy(pictures)).numpy()
    for picture, made in zip(pictures.reshape(6, 32, 32), found.reshape(6, 32, 32), strict=True):
        small = smaller(picture)
        # The border is soft: the outermost pixels of the picture are mixed with what is around.
        np.testing.assert_allclose(made[5:, 3:29], small[1:, 1:27], atol=1e-4)
        wide = np.pad(small, ((4, 0), (2, 2)), mode="reflect")
        # Row, column and share of the sharp picture: a mean over 3 x 3 pixels of what is inside.
        border = [(0, 0, 0), (0, 16, 0), (2, 31, 0), (16, 0, 0), (16, 1, 1 / 3), (16, 2, 2 / 3), (4, 16, 2 / 3)]
        for row, column, sharp in border:
            window = wide[max(row - 2, 0) : row + 3, max(column - 2, 0) : column + 3]
            wanted = sharp * wide[row, column] + (1 - sharp) * window.mean()
            assert abs(made[row, column] - wanted) < 1e-4
    flat = with_room(torch.full((1, 3, 32, 32), 0.3))
    torch.testing.assert_close(flat, torch.full_like(flat, 0.3))


def test_a_mask_with_room_lies_where_its_picture_does() -> None:
    mask = np.zeros((32, 32), np.float32)
    mask[8:, :16] = 1
    found = mask_with_room(torch.from_numpy(mask)[None, None])[0, 0].numpy()
    np.testing.assert_allclose(found[4:, 2:30], smaller(mask), atol=1e-4)
    assert found[:4].max() == found[:, :2].max() == found[:, 30:].max() == 0
    # The corner of the mask is at x = 16 and y = 8, which room moves to 16 and 32 - 7 / 8 * 24 = 11.
    x, y = place_with_room(torch.tensor([16.0, 0.0]), torch.tensor([8.0, 0.0]))
    assert (x.tolist(), y.tolist()) == ([16.0, 2.0], [11.0, 4.0])
    assert found[12:, 3:14].min() > 0.97 and found[:9].max() < 0.03
