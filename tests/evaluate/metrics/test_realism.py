"""Tests of the kernel distance against its formula, and of neighbour metrics against loops over all pairs."""

import math
import warnings

import pytest
import torch
from torch import Tensor
from torchmetrics.image.kid import KernelInceptionDistance

from pegasus_lightning.evaluate.metrics import realism
from pegasus_lightning.evaluate.metrics.realism import (
    density_coverage,
    kid,
    kid_uncertainty,
    mean_kernel_to_others,
    neighbour_radii,
    precision_recall,
)


def points(count: int, dimensions: int = 6, seed: int = 0, shift: float = 0.0) -> Tensor:
    return torch.randn(count, dimensions, generator=torch.Generator().manual_seed(seed)) + shift


def kernel(x: list[float], y: list[float]) -> float:
    return (sum(a * b for a, b in zip(x, y, strict=True)) / len(x) + 1) ** 3


def test_kid_by_hand() -> None:
    # k(x1, x2) = (0 / 2 + 1)^3 = 1; k(y1, y2) = (2 / 2 + 1)^3 = 8; k(x1, y1) = 1.5^3, k(x1, y2) = 2^3,
    # k(x2, y1) = 1.5^3, k(x2, y2) = 1.
    real, fake = [[1.0, 0.0], [0.0, 1.0]], [[1.0, 1.0], [2.0, 0.0]]
    by_hand = 1 + 8 - 2 * (3.375 + 8 + 3.375 + 1) / 4
    mean, deviation = kid(torch.tensor(real), torch.tensor(fake), subsets=3, subset_size=2)
    assert mean == pytest.approx(by_hand)
    assert deviation == pytest.approx(0, abs=1e-6)


def test_kid_is_the_unbiased_formula_over_subsets() -> None:
    real, fake = points(7, 3).tolist(), points(7, 3, seed=1, shift=0.5).tolist()
    within = sum(kernel(s[i], s[j]) for s in (real, fake) for i in range(7) for j in range(7) if i != j) / (7 * 6)
    across = sum(kernel(x, y) for x in real for y in fake) / 49
    mean, _ = kid(torch.tensor(real), torch.tensor(fake), subsets=2, subset_size=7)
    assert mean == pytest.approx(within - 2 * across, rel=1e-5)
    # Smaller subsets are unbiased too: their mean equals that of all pairs within the error of 2000 draws.
    mean, deviation = kid(torch.tensor(real), torch.tensor(fake), subsets=2000, subset_size=3)
    assert deviation > 0
    assert abs(mean - (within - 2 * across)) < 4 * deviation / math.sqrt(2000)


def test_kid_is_that_of_torchmetrics_with_features_handed_in() -> None:
    real, fake = points(40, 8), points(40, 8, seed=1, shift=0.3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        metric = KernelInceptionDistance(torch.nn.Identity(), subsets=1, subset_size=40)
    metric.update(real, real=True)
    metric.update(fake, real=False)
    wanted = [figure.item() for figure in metric.compute()]
    assert kid(real, fake, subsets=1, subset_size=40) == pytest.approx(wanted, rel=1e-4)  # one subset: deviation 0


@pytest.mark.parametrize("block", [1, 70, 2**22])
def test_kid_s_portions_change_nothing(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real, fake = points(41, 8), points(35, 8, seed=1, shift=0.3)
    whole = kid(real, fake, subsets=7, subset_size=20)
    monkeypatch.setattr(realism, "BLOCK", block)
    assert kid(real, fake, subsets=7, subset_size=20) == pytest.approx(whole, rel=1e-9)


def test_kid_s_deviation_is_that_of_its_subsets() -> None:
    real, fake = points(12, 2), points(12, 2, seed=1, shift=0.5)
    values = [kid(real, fake, subsets=1, subset_size=5, seed=seed)[0] for seed in range(400)]
    deviation = kid(real, fake, subsets=2000, subset_size=5)[1]
    assert deviation == pytest.approx(torch.tensor(values).std(correction=0).item(), rel=0.15)
    one, two = kid(real, fake, subsets=1, subset_size=5)[0], kid(real, fake, subsets=2, subset_size=5)
    other = 2 * two[0] - one  # the first subset of two is the one of one
    assert two[1] == pytest.approx(abs(one - other) / 2)


def test_kid_is_exact_far_from_the_origin() -> None:
    real, fake = points(60, 4), points(60, 4, seed=1, shift=0.5)
    far, further = (x.double() + 300 for x in (real, fake))
    within = sum(((x @ x.T / 4 + 1) ** 3).sum() - (((x * x).sum(1) / 4 + 1) ** 3).sum() for x in (far, further)) / (
        60 * 59
    )
    by_hand = within - 2 * ((far @ further.T / 4 + 1) ** 3).mean()
    assert kid(far, further, subsets=1, subset_size=60)[0] == pytest.approx(by_hand.item(), rel=1e-2)


def test_kid_of_one_distribution_is_zero_within_its_spread_and_grows_with_a_shift() -> None:
    real = points(400)
    mean, deviation = kid(real, points(400, seed=1))
    assert abs(mean) < 2 * deviation
    near, far = kid(real, points(400, seed=1, shift=0.3)), kid(real, points(400, seed=1, shift=0.6))
    assert 3 * deviation < near[0] < far[0]


@pytest.mark.parametrize("shared", [400, 130])
def test_an_image_in_both_sets_does_not_meet_itself(shared: int) -> None:
    real = points(400, 64)
    fake = torch.cat([points(400 - shared, 64, seed=1), real[:shared]]).flip(0)
    mean, deviation = kid(real, fake, subset_size=200)
    assert abs(mean) < deviation  # with independent draws it would be 10 deviations below 0


def test_doubled_images_in_both_sets_leave_room_for_subsets() -> None:
    real = points(300, 64)
    real[:5] = real[100:105]  # so half of the shared images may be less than half of the set
    mean, deviation = kid(real, real.flip(0))
    assert abs(mean) < deviation
    with pytest.raises(ValueError, match=r"subset_size=170 .* at most 14\d"):
        kid(real, real.flip(0), subset_size=170)


def test_kid_s_subsets_are_a_function_of_the_seed() -> None:
    real, fake = points(50), points(60, seed=1)
    before = torch.get_rng_state()
    assert kid(real, fake, subsets=5) == kid(real, fake, subsets=5) != kid(real, fake, subsets=5, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert kid(real, fake, subsets=5) == kid(real, fake, subsets=5, subset_size=25)  # half of the smaller


@pytest.mark.parametrize("size", [1, 11])
def test_a_subset_fits_the_sets(size: int) -> None:
    with pytest.raises(ValueError, match=rf"subset_size={size} .* at most 10"):
        kid(points(10), points(20, seed=1), subset_size=size)


# Neighbours against loops.


def distance(x: list[float], y: list[float]) -> float:
    return math.sqrt(sum((a - b) ** 2 for a, b in zip(x, y, strict=True)))


def radius(index: int, among: list[list[float]], k: int) -> float:
    return sorted(distance(among[index], other) for place, other in enumerate(among) if place != index)[k - 1]


def in_balls(point: list[float], of: list[list[float]], k: int) -> int:
    return sum(distance(point, centre) <= radius(place, of, k) for place, centre in enumerate(of))


SETS = {
    "alike": (points(30, 2), points(25, 2, seed=1)),
    "apart": (points(30, 2), points(25, 2, seed=1, shift=1.5)),
    "far away": (points(20, 2), points(20, 2, seed=1, shift=9)),
    "collapsed": (points(30, 2), 0.05 * points(20, 2, seed=1)),
    "doubled": (points(15, 3).repeat(2, 1), points(12, 3, seed=2)),
}


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("k", [1, 3, 5])
def test_neighbours_are_those_of_a_loop(name: str, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real, fake = SETS[name]
    reals, fakes = real.tolist(), fake.tolist()
    radii = [radius(place, reals, k) for place in range(len(reals))]
    balls = [in_balls(point, reals, k) for point in fakes]
    recalled = [in_balls(point, fakes, k) > 0 for point in reals]
    covered = [any(distance(point, other) <= size for other in fakes) for point, size in zip(reals, radii, strict=True)]
    for block in (1, 60, 2**22):
        monkeypatch.setattr(realism, "BLOCK", block)
        assert neighbour_radii(real, k).tolist() == pytest.approx(radii, abs=1e-7)
        found = precision_recall(real, fake, k)
        assert (found.precision.tolist(), found.recall.tolist()) == ([count > 0 for count in balls], recalled)
        near = density_coverage(real, fake, k)
        assert near.density.tolist() == pytest.approx([count / k for count in balls])
        assert near.coverage.tolist() == covered
        within = [[distance(point, other) <= size for other in fakes] for point, size in zip(reals, radii, strict=True)]
        assert near.reached.tolist() == within


@pytest.mark.parametrize("block", [1, 60, 2**22])
def test_radii_known_already_are_taken(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(realism, "BLOCK", block)
    real, fake = SETS["alike"]
    for given in (neighbour_radii(real, 4), torch.zeros(30), torch.full((30,), 9.0)):
        among = [[distance(x, y) <= size for x, size in zip(real.tolist(), given.tolist(), strict=True)] for y in fake]
        assert precision_recall(real, fake, real_radii=given).precision.tolist() == [any(row) for row in among]
        found = density_coverage(real, fake, k=4, real_radii=given)
        assert found.density.tolist() == pytest.approx([sum(row) / 4 for row in among])
        assert found.coverage.tolist() == [any(column) for column in zip(*among, strict=True)]
    known = precision_recall(real, fake, real_radii=torch.zeros(30))
    assert torch.equal(known.recall, precision_recall(real, fake).recall)  # recall uses the balls of the fakes only


def test_neighbours_on_a_line_by_hand() -> None:
    real, fake = torch.tensor([[0.0], [1.0], [3.0], [7.0]]), torch.tensor([[0.5], [4.5], [20.0]])
    assert neighbour_radii(real, 1).tolist() == [1, 1, 2, 4]
    assert neighbour_radii(real, 2).tolist() == [3, 2, 3, 6]
    assert neighbour_radii(fake, 1).tolist() == [4, 4, 15.5]
    found = precision_recall(real, fake, k=1)
    assert found.precision.tolist() == [True, True, False]
    # Balls of 4 about .5 and 4.5, of 15.5 about 20; reals at 0, 1, 3, 7.
    assert found.reached.tolist() == [
        [True, False, False],
        [True, True, False],
        [True, True, False],
        [False, True, True],
    ]
    assert found.recall.tolist() == [True, True, True, True]  # 7 is within 4 of 4.5
    near = density_coverage(real, fake, k=1)
    assert near.density.tolist() == [2, 2, 0]  # 0.5 is in the balls of 0 and 1, 4.5 in those of 3 and 7
    assert near.coverage.tolist() == [True, True, True, True]
    assert density_coverage(real, fake[2:], k=1).coverage.tolist() == [False] * 4


def test_a_ball_s_edge_belongs_to_it() -> None:
    real, fake = torch.tensor([[0.0], [1.0]]), torch.tensor([[2.0], [-1.5]])  # 2 lies on the edge of the ball of 1
    assert precision_recall(real, fake, k=1).precision.tolist() == [True, False]
    assert density_coverage(real, fake, k=1).density.tolist() == [1, 0]
    assert density_coverage(real, fake, k=1).coverage.tolist() == [False, True]
    assert precision_recall(fake, real, k=1).recall.tolist() == [True, False]


def test_the_defaults_are_the_papers() -> None:
    real, fake = SETS["apart"]
    shares = {k: precision_recall(real, fake, k=k).precision.sum() for k in (2, 3, 4)}
    assert shares[2] < shares[3] < shares[4]
    assert precision_recall(real, fake).precision.sum() == shares[3]
    assert torch.equal(density_coverage(real, fake).density, density_coverage(real, fake, k=5).density)


def test_a_set_compared_with_itself_is_precise_recalled_and_covered() -> None:
    real = 1000 + points(200, 32)  # far from the origin, where a matrix product loses precision
    assert precision_recall(real, real, k=1).precision.all()
    assert precision_recall(real, real, k=1).recall.all()
    assert density_coverage(real, real, k=1).coverage.all()


def test_alike_sets_have_a_density_of_one_and_the_paper_s_expected_coverage() -> None:
    real, fake = points(1500, 16), points(1500, 16, seed=1)
    found = density_coverage(real, fake)
    assert found.density.mean().item() == pytest.approx(1, abs=0.1)
    assert found.coverage.float().mean().item() == pytest.approx(
        1 - 2**-5, abs=0.02
    )  # Naeem et al., eq. 9, large N = M


@pytest.mark.parametrize("k", [0, 4])
def test_neighbours_must_be_there(k: int) -> None:
    with pytest.raises(ValueError, match=f"k={k} neighbours .* 4 points"):
        neighbour_radii(points(4), k)


def test_the_kids_error_by_hand() -> None:
    """Two reals, two fakes, one feature: k(x, y) = (x y + 1)^3."""
    real, fake = torch.tensor([[0.0], [1.0]]), torch.tensor([[2.0], [3.0]])
    # k(0, 1) = 1, k(2, 3) = 343, k(0, 2) = k(0, 3) = 1, k(1, 2) = 27, k(1, 3) = 64.
    a = [1 - 1, 1 - (27 + 64) / 2]  # mean with the other reals minus mean with the fakes
    b = [343 - (1 + 27) / 2, 343 - (1 + 64) / 2]
    variance = [(values[0] - values[1]) ** 2 / 2 for values in (a, b)]
    overall = (1 + 1 + 27 + 64) / 4
    rows, columns = (1, 45.5), (14, 32.5)
    centred = [
        (value - rows[i] - columns[j] + overall) ** 2
        for (i, j), value in {(0, 0): 1, (0, 1): 1, (1, 0): 27, (1, 1): 64}.items()
    ]
    noise = (1 / 2 + 1 / 2) * sum(centred) / 4
    wanted = 4 * sum(max(0, value - noise) for value in variance) / 2 + 2 * (1 / 2 + 1 / 2) * noise
    found = kid_uncertainty(real, fake)
    assert found.error == pytest.approx(wanted**0.5)
    assert found.quantile == pytest.approx(12.7062, rel=1e-5)  # Student's t for two fakes
    others = mean_kernel_to_others(real)
    assert others.tolist() == [1, 1]
    assert kid_uncertainty(real, fake, real_to_others=others).error == pytest.approx(wanted**0.5)


@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_the_kids_error_is_how_much_the_distance_varies_from_draw_to_draw(shift: float) -> None:
    source = torch.Generator().manual_seed(3)
    distances, errors = [], []
    for _ in range(60):
        real = torch.randn(160, 8, generator=source).abs()
        fake = torch.randn(80, 8, generator=source).abs() + shift
        across = ((real.double() @ fake.double().T) / 8 + 1) ** 3
        within = mean_kernel_to_others(real).mean() + mean_kernel_to_others(fake).mean()
        distances.append(within - 2 * across.mean())
        errors.append(kid_uncertainty(real, fake).error)
    deviation = torch.stack(distances).std().item()
    assert 0.75 * deviation < sum(errors) / 60 < 1.5 * deviation  # loose: small sets, 60 draws
