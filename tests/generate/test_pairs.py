"""Tests of pairs against distances in plain Python."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch import Tensor

from pegasus_lightning.generate import pairs as pairs_module
from pegasus_lightning.generate.pairs import (
    METHODS,
    Pairs,
    centre_colours,
    choose_pairs,
    default_threshold,
    layout_descriptors,
)
from pegasus_lightning.utils.errors import UserError
from pegasus_lightning.utils.randomness import Stream, generator

Colour = tuple[float, ...]


def plain(*colours: tuple[int, int, int], side: int = 32) -> Tensor:
    """One image of each colour all over, uint8 (n, 3, side, side)."""
    return torch.tensor(colours, dtype=torch.uint8).reshape(-1, 3, 1, 1).expand(-1, -1, side, side).contiguous()


def greys(*levels: int) -> Tensor:
    return plain(*((level, level, level) for level in levels))


def noise(count: int, key: int, side: int = 32) -> Tensor:
    """Coarse random pictures: 4 x 4 random blocks, so that they differ in background and layout."""
    blocks = torch.randint(256, (count, 3, 4, 4), generator=generator(key, Stream.NOISE))
    return blocks.repeat_interleave(side // 4, 2).repeat_interleave(side // 4, 3).to(torch.uint8)


def centre_by_hand(image: Tensor) -> Colour:
    """Mean of the four centre pixels of a 32 x 32 image, RGB in [0, 1]."""
    return tuple(sum(int(image[c, y, x]) for y in (15, 16) for x in (15, 16)) / 4 / 255 for c in range(3))


def lab_by_hand(colour: Colour) -> Colour:
    """Lindbloom's formulas, with kappa and epsilon."""
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in colour]
    rows = ((0.4124, 0.3576, 0.1805, 0.9505), (0.2126, 0.7152, 0.0722, 1.0), (0.0193, 0.1192, 0.9505, 1.089))
    relative = [(r * linear[0] + g * linear[1] + b * linear[2]) / white for r, g, b, white in rows]
    fx, fy, fz = (v ** (1 / 3) if v > 216 / 24389 else (24389 / 27 * v + 16) / 116 for v in relative)
    return 116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)


def layout_by_hand(image: Tensor) -> list[list[float]]:
    """The four groups of values of a 32 x 32 image, as in the table in `layout_descriptors`."""
    pixels = [[[int(image[c, y, x]) / 255 for c in range(3)] for x in range(32)] for y in range(32)]
    everywhere = [(y, x) for y in range(32) for x in range(32)]
    ring = [(y, x) for y, x in everywhere if min(y, x) < 2 or max(y, x) > 29]
    background = [sum(pixels[y][x][c] for y, x in ring) / 240 for c in range(3)]
    mean = [sum(pixels[y][x][c] for y, x in everywhere) / 1024 for c in range(3)]
    foreground, luma = [0.0] * 16, [0.0] * 16
    for y, x in everywhere:
        r, g, b = pixels[y][x]
        away = math.sqrt(sum((v - w) ** 2 for v, w in zip((r, g, b), background, strict=True)) / 3)
        foreground[y // 8 * 4 + x // 8] += away / 64
        luma[y // 8 * 4 + x // 8] += (0.2126 * r + 0.7152 * g + 0.0722 * b) / 64
    return [background, mean, foreground, luma]


def layout_distance(one: list[list[float]], other: list[list[float]]) -> float:
    total = 0.0
    for weight, a, b in zip((0.3, 0.1, 0.4, 0.2), one, other, strict=True):
        total += weight * sum((v - w) ** 2 for v, w in zip(a, b, strict=True)) / len(a)
    return math.sqrt(total)


def by_hand(first: Tensor, second: Tensor, distance: str) -> dict[tuple[int, int], float]:
    """The distance of every pair."""
    if distance == "matched":
        one, other = ([layout_by_hand(image) for image in images] for images in (first, second))
        return {(i, j): layout_distance(a, b) for i, a in enumerate(one) for j, b in enumerate(other)}
    colours = [[centre_by_hand(image) for image in images] for images in (first, second)]
    if distance == "lab":
        colours = [[lab_by_hand(colour) for colour in some] for some in colours]
    return {(i, j): math.dist(a, b) for i, a in enumerate(colours[0]) for j, b in enumerate(colours[1])}


def as_tuples(pairs: Pairs) -> list[tuple[int, int]]:
    return list(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))


def test_the_centre_is_four_pixels_of_an_even_image_and_one_of_an_odd() -> None:
    image = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    image[0, :, 14:18, 14:18] = 255  # wider than the centre: not to be averaged in
    image[0, 0, 15:17, 15:17] = torch.tensor([[10, 20], [30, 40]], dtype=torch.uint8)
    assert centre_colours(image).tolist() == [pytest.approx([25 / 255, 1, 1])]
    odd = torch.zeros(1, 3, 5, 7, dtype=torch.uint8)
    odd[0, :, 2, 3] = torch.tensor([51, 102, 255], dtype=torch.uint8)
    assert centre_colours(odd).tolist() == [pytest.approx([0.2, 0.4, 1])]
    assert centre_colours(odd).dtype == torch.float32


@pytest.mark.parametrize(
    ("colour", "expected"),
    [  # published CIELAB coordinates (D65) of sRGB's corners
        ((255, 255, 255), (100, 0, 0)),
        ((0, 0, 0), (0, 0, 0)),
        ((255, 0, 0), (53.24, 80.09, 67.20)),
        ((0, 255, 0), (87.74, -86.18, 83.18)),
        ((0, 0, 255), (32.30, 79.19, -107.86)),
        ((119, 119, 119), (50.03, 0, 0)),
        ((2, 2, 2), (0.548, 0, 0)),  # in both linear parts: 24389 / 27 * (2 / 255 / 12.92)
    ],
)
def test_lab_coordinates(colour: tuple[int, int, int], expected: Colour) -> None:
    assert centre_colours(plain(colour), "lab")[0].tolist() == pytest.approx(
        expected, abs=0.03
    )  # the digits of the matrix differ


def test_the_descriptor_of_a_square_worked_out_by_hand() -> None:
    # White, 8 x 8, on black: in one cell of the sixteen. Against black all over the background is alike,
    # the means differ by 1/16, one of sixteen cells by 1 in foreground and in luma.
    image = greys(0, 0, 255)
    image[1, :, 8:16, 16:24] = 255
    black, square, white = layout_descriptors(image)
    assert black.shape == (38,)
    assert (square - black).norm().item() == pytest.approx(math.sqrt(0.1 / 256 + 0.4 / 16 + 0.2 / 16))
    # Black against white differs in all but the foreground, of which there is none in either.
    assert (white - black).norm().item() == pytest.approx(math.sqrt(0.3 + 0.1 + 0.2))


def test_the_background_is_a_ring_two_pixels_wide() -> None:
    images = greys(0, 0, 0)
    images[1, 0, 1] = 255  # a row of red in the ring: 32 of its 240 pixels
    images[2, 0, 2, 2:30] = 255  # just within
    assert layout_descriptors(images)[:, 0].tolist() == pytest.approx([0, 32 / 240 * math.sqrt(0.3 / 3), 0])


@pytest.mark.parametrize("side", [1, 5, 33])
def test_other_sizes_are_described_too(side: int) -> None:
    descriptors = layout_descriptors(plain((0, 0, 0), (255, 255, 255), side=side))
    assert descriptors.diff(dim=0).norm().item() == pytest.approx(math.sqrt(0.6))


@pytest.mark.parametrize(("distance", "threshold"), [("rgb", 0.3), ("lab", 25.0), ("matched", 0.15)])
def test_candidates_and_distances_are_those_of_a_loop_over_all_pairs(distance: str, threshold: float) -> None:
    first, second = noise(12, 0), noise(9, 1)
    table = by_hand(first, second, distance)
    near = {pair for pair, value in table.items() if value <= threshold}
    assert 5 < len(near) < 60
    assert min(abs(value - threshold) for value in table.values()) > 1e-6  # float32 cannot tip any over
    options = {"method": "matched"} if distance == "matched" else {"colour_distance": distance}
    pairs = choose_pairs(first, second, len(near), threshold=threshold, **options)
    assert (pairs.candidates, pairs.possible) == (len(near), 108)
    assert sorted(as_tuples(pairs)) == sorted(near)  # all of them, each once
    assert pairs.distances is not None
    assert pairs.distances.tolist() == pytest.approx([table[pair] for pair in as_tuples(pairs)], rel=1e-5)
    assert pairs.first.dtype == pairs.second.dtype == torch.int64
    assert pairs.distances.dtype == torch.float32

    fewer = choose_pairs(first, second, len(near) - 1, threshold=threshold, seed=1, **options)
    assert len(set(as_tuples(fewer))) == len(fewer) == len(near) - 1
    assert set(as_tuples(fewer)) <= near


def test_the_threshold_itself_is_near_enough() -> None:
    # Red from black by 51 / 255, to the nearest float32.
    pairs = choose_pairs(plain((51, 0, 0), (52, 0, 0)), greys(0), 1, threshold=0.2)
    assert pairs.candidates == 1
    assert as_tuples(pairs) == [(0, 0)]


def test_default_thresholds() -> None:
    assert default_threshold("random") is None
    assert default_threshold("colour") == default_threshold("colour", "rgb") == 0.1
    assert default_threshold("colour", "lab") == 10
    assert default_threshold("matched") == 0.068
    # Greys one apart are 1.7 % of RGB's unit apart: those up to 14 steps off are within 0.1 (14 * 0.00679 = 0.095).
    levels = [0, 14, 15, 40]
    assert choose_pairs(greys(0), greys(*levels), 2).candidates == 2
    # L* of grey 28 is 10.27, of 27 it is 9.80.
    assert choose_pairs(greys(0), greys(0, 27, 28), 2, colour_distance="lab").candidates == 2
    # Plain greys differ by sqrt(0.6) of their difference: 22 steps are 0.0668 apart, 23 are 0.0699.
    assert choose_pairs(greys(0), greys(0, 22, 23), 2, method="matched").candidates == 2


def test_random_pairs_are_any_and_without_replacement() -> None:
    first, second = noise(7, 0), noise(11, 1)
    pairs = choose_pairs(first, second, 77, method="random")
    assert sorted(as_tuples(pairs)) == [(i, j) for i in range(7) for j in range(11)]
    assert as_tuples(pairs) != sorted(as_tuples(pairs))
    assert pairs.distances is None
    assert (pairs.candidates, pairs.possible) == (77, 77)


@pytest.mark.parametrize("method", [method for method in METHODS if method != "winged"])
def test_every_candidate_is_chosen_equally_often_over_seeds(method: str) -> None:
    # Rows with 0, 1, 2 and 3 candidates: a choice of row first, then of column, would favour the second row.
    first, second = (greys(*levels)[:, :, :8, :8] for levels in ((200, 100, 20, 0), (0, 1, 2, 30, 31, 100)))
    near: dict[str, float] = {} if method == "random" else {"threshold": {"colour": 0.08, "matched": 0.04}[method]}
    per_draw, draws = 3, 1000
    used: dict[tuple[int, int], int] = {}
    candidates = 0
    for seed in range(draws):
        pairs = choose_pairs(first, second, per_draw, method=method, seed=seed, **near)
        candidates = pairs.candidates
        for pair in as_tuples(pairs):
            used[pair] = used.get(pair, 0) + 1
    assert candidates == (24 if method == "random" else 6)
    assert len(used) == candidates
    share = per_draw / candidates
    deviation = math.sqrt(draws * share * (1 - share))
    assert max(abs(times - draws * share) for times in used.values()) < 4.5 * deviation


def test_winged_pairs_are_all_pairs_of_images_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    fitting = torch.tensor([1, 3]), torch.tensor([0, 2, 4])
    monkeypatch.setattr(pairs_module, "fit_to_mix", lambda first, second: fitting)
    pairs = choose_pairs(greys(*range(5)), greys(*range(6)), 12, method="winged")
    assert (pairs.candidates, pairs.possible, pairs.distances) == (6, 30, None)
    everything = [(i, j) for i in (1, 3) for j in (0, 2, 4)]
    assert all(sorted(as_tuples(pairs)[start : start + 6]) == everything for start in (0, 6))
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"No pair of images fits pegasus\.pairs=winged: say pegasus\.pairs=colour"):
        choose_pairs(greys(0), greys(0), 1, method="winged")  # nothing can be cut out of them


@pytest.mark.parametrize("method", ["random", "colour"])
def test_too_few_candidates_are_used_in_shuffled_rounds(method: str) -> None:
    first, second = greys(0, 1), greys(0, 1, 2)  # six pairs, all near
    pairs = choose_pairs(first, second, 20, method=method)
    everything = [(i, j) for i in range(2) for j in range(3)]
    chosen = as_tuples(pairs)
    rounds = [chosen[start : start + 6] for start in (0, 6, 12)]
    assert all(sorted(some) == everything for some in rounds)
    assert len({tuple(some) for some in rounds}) > 1
    assert len(set(chosen[18:])) == 2


def test_a_seed_decides_the_pairs() -> None:
    first, second = noise(30, 0), noise(30, 1)
    for options in ({"method": "random"}, {"threshold": 0.5}, {"method": "matched", "threshold": 0.3}):
        chosen = [as_tuples(choose_pairs(first, second, 40, seed=seed, **options)) for seed in (3, 3, 4)]
        assert chosen[0] == chosen[1]
        assert set(chosen[0]) != set(chosen[2])


@pytest.mark.parametrize("block", [1, 100, 7 * 41])
@pytest.mark.parametrize(
    "options",
    [{"threshold": 0.3}, {"colour_distance": "lab", "threshold": 30.0}, {"method": "matched", "threshold": 0.25}],
)
def test_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch, options: dict, block: int) -> None:
    first, second = noise(50, 0), noise(41, 1)
    whole = choose_pairs(first, second, 60, **options)
    sizes = []

    def watched(rows: Tensor, others: Tensor, **mode: str) -> Tensor:
        sizes.append(len(rows) * len(others))
        return cdist(rows, others, **mode)

    cdist = torch.cdist
    monkeypatch.setattr(torch, "cdist", watched)
    monkeypatch.setattr(pairs_module, "BLOCK", block)
    monkeypatch.setattr(pairs_module, "IMAGES_AT_A_TIME", 3)
    blocks = choose_pairs(first, second, 60, **options)
    assert max(sizes) == max(block // 41, 1) * 41  # no more at a time
    assert as_tuples(blocks) == as_tuples(whole)
    assert blocks.candidates == whole.candidates
    assert blocks.distances is not None
    assert whole.distances is not None
    assert torch.equal(blocks.distances, whole.distances)


def test_the_global_generators_are_left_alone() -> None:
    before = torch.get_rng_state()
    choose_pairs(greys(0, 1), greys(0, 1), 3)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_sentence() -> None:
    def sentence(count: int, candidates: int, possible: int) -> str:
        return Pairs(torch.zeros(count), torch.zeros(count), None, candidates, possible).sentence()

    assert sentence(64, 12345, 10**6) == "64 pairs out of 12,345 candidates (of 1,000,000 possible)"
    assert sentence(1, 1, 4) == "1 pair out of 1 candidate (of 4 possible)"
    assert sentence(64, 64, 64) == "64 pairs out of 64 candidates (of 64 possible)"
    assert sentence(64, 10, 99) == (
        "64 pairs out of 10 candidates (of 99 possible): each candidate is used 6 or 7 times"
    )
    assert sentence(64, 32, 99) == "64 pairs out of 32 candidates (of 99 possible): each candidate is used 2 times"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "color"}, "pegasus.pairs=color is none of random, colour, matched, winged. Did you mean 'colour'?"),
        ({"method": "xyz"}, "pegasus.pairs=xyz is none of random, colour, matched, winged."),
        ({"colour_distance": "labs"}, "pegasus.colour_distance=labs is none of rgb, lab. Did you mean 'lab'?"),
        ({"count": 0}, "The number of pairs must be at least 1, not 0."),
        ({"first": greys()}, "There are no images of the first class to make pairs of."),
        ({"second": greys()}, "There are no images of the second class to make pairs of."),
        ({"second": greys(), "method": "random"}, "There are no images of the second class to make pairs of."),
        ({"threshold": 0.0}, "pegasus.threshold must be a positive number, not 0.0."),
        ({"threshold": -1.0}, "pegasus.threshold must be a positive number, not -1.0."),
        ({"threshold": math.nan, "method": "matched"}, "pegasus.threshold must be a positive number, not nan."),
        ({"threshold": math.inf}, "pegasus.threshold must be a positive number, not inf."),
        (
            {"threshold": 0.1, "method": "random"},
            "pegasus.threshold=0.1 means nothing with pegasus.pairs=random, which measures no distance."
            " Leave it out, or choose pegasus.pairs=colour or pegasus.pairs=matched.",
        ),
    ],
)
def test_mistakes_are_named(options: dict, message: str) -> None:
    settings = {"first": greys(0), "second": greys(0), "count": 1} | options
    first, second, count = (settings.pop(name) for name in ("first", "second", "count"))
    with pytest.raises(UserError) as error:
        choose_pairs(first, second, count, **settings)
    assert str(error.value) == message


def test_where_no_pair_is_near_the_nearest_is_named_and_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = plain((0, 0, 0), (90, 0, 0), (0, 0, 0)), plain((255, 255, 255), (100, 0, 0))
    monkeypatch.setattr(pairs_module, "BLOCK", 1)  # the nearest in a block neither first nor last
    with pytest.raises(UserError) as error:  # 10 / 255 is 0.039216 (rounded up: 0.03922)
        choose_pairs(first, second, 1, threshold=0.001)
    assert str(error.value) == (
        "No pair of centre colours lies within pegasus.threshold=0.001: the nearest are 0.03922 apart."
        " Raise pegasus.threshold to 0.03922 or more."
    )
    assert as_tuples(choose_pairs(first, second, 1, threshold=0.03922)) == [(1, 1)]


@pytest.mark.parametrize("options", [{}, {"colour_distance": "lab"}, {"method": "matched"}])
def test_what_the_message_says_to_type_is_enough(options: dict) -> None:
    for key in range(20):  # the nearest distance rounds down as often as up
        first, second = noise(2, key), noise(2, key + 100)
        with pytest.raises(UserError, match="No pair") as error:
            choose_pairs(first, second, 1, threshold=1e-9, **options)
        enough = re.search(r"to (\S+) or more", str(error.value))
        assert enough is not None
        pairs = choose_pairs(first, second, 1, threshold=float(enough[1]), **options)
        assert pairs.candidates == 1
        assert pairs.distances is not None
        assert pairs.distances.item() == pytest.approx(float(enough[1]), rel=2e-3)
