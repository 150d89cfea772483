"""The reparameterised posterior and mixing."""

import math

import pytest
import torch
from torch import Tensor

from pegasus_lightning.models.latent import MIXINGS, Posterior, class_direction, lerp, mix, slerp
from pegasus_lightning.utils.randomness import Stream, generator


def normal(*shape: int, key: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(key, Stream.NOISE))


def test_sample_is_mean_plus_deviation_times_noise() -> None:
    posterior = Posterior(torch.tensor([[1.0, -2.0]]), torch.tensor([[0.0, 2 * math.log(3)]]))
    assert posterior.sample_with(torch.tensor([[0.5, 2.0]])).tolist() == [pytest.approx([1.5, 4.0])]


def test_gradients_of_the_reparameterisation() -> None:
    mean = torch.tensor([[1.0, -2.0]], requires_grad=True)
    log_variance = torch.tensor([[0.0, 2 * math.log(3)]], requires_grad=True)
    Posterior(mean, log_variance).sample_with(torch.tensor([[0.5, 2.0]])).sum().backward()
    assert mean.grad is not None
    assert log_variance.grad is not None
    assert mean.grad.tolist() == [[1, 1]]
    assert log_variance.grad.tolist() == [pytest.approx([0.5 * 1 * 0.5, 0.5 * 3 * 2.0])]


def test_sample_has_the_posteriors_moments_and_follows_its_generator() -> None:
    posterior = Posterior(torch.full((20000, 1), 3.0), torch.full((20000, 1), math.log(4)))
    codes = posterior.sample(torch.Generator().manual_seed(5))
    assert codes.mean().item() == pytest.approx(3, abs=5 * 2 / 20000**0.5)
    assert codes.var().item() == pytest.approx(4, rel=0.05)
    assert torch.equal(codes, posterior.sample(torch.Generator().manual_seed(5)))
    assert not torch.equal(codes, posterior.sample(torch.Generator().manual_seed(6)))


def test_a_deterministic_posterior_is_its_mean() -> None:
    posterior = Posterior(torch.tensor([[1.0, 2.0]]), torch.zeros(1, 2), deterministic=True)
    assert torch.equal(posterior.sample(), posterior.mean)
    assert torch.equal(posterior.sample_with(torch.ones(1, 2)), posterior.mean)


def test_take_gives_these_images_in_this_order() -> None:
    posterior = Posterior(torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[5.0], [6.0], [7.0]]))
    taken = posterior.take(torch.tensor([2, 0, 2]))
    assert taken.mean.tolist() == [[2], [0], [2]]
    assert taken.log_variance.tolist() == [[7], [5], [7]]
    assert not taken.deterministic
    assert Posterior(torch.zeros(2, 1), torch.zeros(2, 1), deterministic=True).take(torch.tensor([1])).deterministic


def test_lerp_by_hand() -> None:
    start, end = torch.tensor([[0.0, 10.0], [1.0, 1.0]]), torch.tensor([[4.0, 20.0], [3.0, 5.0]])
    assert lerp(start, end, 0.25).tolist() == [[1, 12.5], [1.5, 2]]
    assert torch.equal(lerp(start, end, 0.0), start)
    assert torch.equal(lerp(start, end, 1.0), end)
    assert lerp(start, end, torch.tensor([[0.0], [0.5]])).tolist() == [[0, 10], [2, 3]]
    assert lerp(start, end, 1.5).tolist() == [[6, 25], [4, 7]]


def test_slerp_by_hand() -> None:
    # A right angle and two lengths: sin(60 deg) * start + sin(30 deg) * end.
    start, end = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 3.0]])
    torch.testing.assert_close(slerp(start, end, 1 / 3), torch.tensor([[2 * math.sqrt(3) / 2, 3 / 2]]))
    # 60 degrees, ratio 1/2.
    end = torch.tensor([[0.5, math.sqrt(3) / 2]])
    torch.testing.assert_close(slerp(torch.tensor([[1.0, 0.0]]), end, 0.5), torch.tensor([[math.sqrt(3) / 2, 0.5]]))


def test_slerp_turns_at_constant_speed() -> None:
    ratios = torch.tensor([-0.5, 0.0, 0.1, 0.3, 0.5, 0.8, 1.0, 1.4])[:, None]
    whole = 2.1
    mixed = slerp(torch.tensor([[1.0, 0.0]]), torch.tensor([[math.cos(whole), math.sin(whole)]]), ratios)
    torch.testing.assert_close(mixed, torch.cat([torch.cos(whole * ratios), torch.sin(whole * ratios)], 1))


def test_slerp_keeps_the_length_that_lerp_loses() -> None:
    start, end = (torch.nn.functional.normalize(normal(50, 128, key=key)) for key in (0, 1))
    ratios = torch.linspace(0, 1, 50)[:, None]
    torch.testing.assert_close(slerp(start, end, ratios).norm(dim=1), torch.ones(50))
    assert lerp(start, end, 0.5).norm(dim=1).max() < 0.9
    orthogonal = end - (end * start).sum(1, keepdim=True) * start
    orthogonal = torch.nn.functional.normalize(orthogonal)
    torch.testing.assert_close(slerp(start, orthogonal, 0.5), (start + orthogonal) / math.sqrt(2))


STRAIGHT = {
    "equal": ([1.0, 2.0, 2.0], [1.0, 2.0, 2.0]),
    "parallel": ([1.0, 0.0, 0.0], [3.0, 0.0, 0.0]),
    "parallel, rounded": ([0.3, 0.7, 0.1], [0.6, 1.4, 0.2]),
    "nearly parallel": ([1.0, 0.0, 0.0], [2.0, 1e-4, 0.0]),
    "opposite": ([1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]),
    "opposite, longer": ([0.3, 0.7, 0.1], [-0.6, -1.4, -0.2]),
    "nearly opposite": ([1.0, 0.0, 0.0], [-2.0, 0.0, 1e-4]),
}


@pytest.mark.parametrize("codes", STRAIGHT.values(), ids=STRAIGHT.keys())
def test_slerp_falls_back_to_lerp_where_there_is_no_circle(codes: tuple[list[float], list[float]]) -> None:
    # In a batch with regular codes, which do not affect each other.
    start, end = (torch.tensor([code, other]) for code, other in zip(codes, ([1.0, 0, 0], [0, 1.0, 0]), strict=True))
    start.requires_grad_(), end.requires_grad_()
    mixed = slerp(start, end, 0.25)
    first, second = codes
    assert mixed[0].tolist() == pytest.approx([0.75 * a + 0.25 * b for a, b in zip(first, second, strict=True)])
    assert mixed[1].tolist() == pytest.approx([math.cos(math.pi / 8), math.sin(math.pi / 8), 0])
    mixed[0].sum().backward()
    assert start.grad is not None
    assert end.grad is not None
    assert start.grad.tolist() == [[0.75] * 3, [0] * 3]
    assert end.grad.tolist() == [[0.25] * 3, [0] * 3]


def test_slerp_of_zero_codes_is_finite() -> None:
    zero, code = torch.zeros(1, 3), torch.tensor([[1.0, 2.0, 2.0]])
    assert torch.equal(slerp(zero, zero, 0.25), zero)
    for start, end in ((zero, zero), (zero, code), (code, zero)):
        start, end = start.clone().requires_grad_(), end.clone().requires_grad_()
        mixed = slerp(start, end, 0.25)
        assert mixed.isfinite().all()
        assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(mixed.sum(), (start, end)))


def test_slerp_meets_its_fall_back_without_a_jump() -> None:
    for angle in (0.0009, 0.0011, 0.01, 0.05):  # the sines on both sides of the threshold
        start, end = torch.tensor([[1.0, 0.0]]), torch.tensor([[math.cos(angle), math.sin(angle)]])
        wanted = torch.tensor([[math.cos(0.3 * angle), math.sin(0.3 * angle)]])
        torch.testing.assert_close(slerp(start, end, 0.3), wanted, rtol=0, atol=2e-5)


def test_gradients_of_slerp_are_those_of_finite_differences() -> None:
    start, end = (normal(4, 3, key=key).double().requires_grad_() for key in (0, 1))
    ratio = torch.tensor([[0.0], [0.3], [0.5], [1.0]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(slerp, (start, end, ratio))


@pytest.mark.parametrize("how", ["lerp", "slerp"])
def test_a_mix_goes_from_the_first_parent_to_the_second(how: str) -> None:
    start, end = normal(5, 6, key=0), normal(5, 6, key=1)
    torch.testing.assert_close(mix(start, end, 0.0, how), start)
    torch.testing.assert_close(mix(start, end, 1.0, how), end)
    torch.testing.assert_close(mix(start, end, 0.3, how), mix(end, start, 0.7, how))


def test_mix_by_hand() -> None:
    start, end = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    assert mix(start, end, 0.25).tolist() == [[1.5, 0.5]]
    assert mix(start, end, 0.25, "lerp").tolist() == [[1.5, 0.5]]
    torch.testing.assert_close(mix(start, end, 0.5, "slerp"), torch.full((1, 2), math.sqrt(2)))
    direction = torch.tensor([10.0, -4.0])
    assert mix(start, end, 0.25, "direction", direction).tolist() == [[4.5, -1]]
    assert mix(start, end, 0.25, "lerp", direction).tolist() == [[1.5, 0.5]]


def test_a_direction_is_the_way_from_mean_to_mean() -> None:
    first, second = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[10.0, 20.0], [20.0, 10.0], [30.0, 0.0]])
    assert class_direction(first, second).tolist() == [20 - 2, 10 - 3]


def test_mixing_along_a_direction_takes_nothing_of_the_second_parent() -> None:
    start, direction = normal(3, 4), normal(4, key=1)
    mixed = mix(start, torch.full((3, 4), torch.nan), torch.tensor([[0.0], [0.5], [1.0]]), "direction", direction)
    torch.testing.assert_close(mixed, torch.stack([start[0], start[1] + direction / 2, start[2] + direction]))


@pytest.mark.parametrize("how", [how for how in MIXINGS if how != "learned"])
def test_ratios_of_each_code_and_of_a_whole_grid(how: str) -> None:
    start, end, direction = normal(3, 4, key=0), normal(3, 4, key=1), normal(4, key=2)
    ratios = torch.tensor([0.1, 0.5, 0.7])
    one_each = mix(start, end, ratios[:, None], how, direction)
    grid = mix(start[:, None], end[:, None], ratios[None, :, None], how, direction)
    assert grid.shape == (3, 3, 4)
    for row in range(3):
        for column in range(3):
            alone = mix(start[row : row + 1], end[row : row + 1], ratios[column].item(), how, direction)
            torch.testing.assert_close(grid[row, column], alone[0])
        torch.testing.assert_close(one_each[row], grid[row, row])


@pytest.mark.parametrize("ratio", [0.25, torch.tensor(0.25), torch.full((3, 1), 0.25)])
def test_learned_mixing_is_the_models(ratio: Tensor | float) -> None:
    asked = []

    def learned(start: Tensor, end: Tensor, ratios: Tensor) -> Tensor:
        asked.append(ratios)
        return start * 10 + end * ratios[:, None]

    start, end = normal(3, 4), normal(3, 4, key=1)
    torch.testing.assert_close(mix(start, end, ratio, "learned", learned=learned), 10 * start + end / 4)
    assert asked[0].tolist() == [0.25] * 3
    mix(start, end, torch.tensor([[0.0], [0.5], [1.0]]), "learned", learned=learned)
    assert asked[1].tolist() == [0, 0.5, 1]
    assert torch.equal(mix(start, end, 0.25, "lerp", learned=learned), lerp(start, end, 0.25))  # learned is ignored
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("how", "direction", "message"),
    [
        ("slurp", None, "not 'slurp'"),
        ("slurp", torch.zeros(2), "not 'slurp'"),
        ("direction", None, "needs one"),
        ("learned", None, "needs a model"),
    ],
)
def test_what_is_no_mixing_is_refused(how: str, direction: Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mix(torch.zeros(1, 2), torch.ones(1, 2), 0.5, how, direction)


@pytest.mark.parametrize("zero_first", [True, False])
def test_slerp_of_a_zero_code_is_lerp(zero_first: bool) -> None:
    zero, code = torch.zeros(1, 2), torch.tensor([[3.0, 4.0]])
    start, end = (zero, code) if zero_first else (code, zero)
    start, end = start.clone().requires_grad_(), end.clone().requires_grad_()
    mixed = slerp(start, end, 0.5)
    assert mixed.tolist() == [[1.5, 2.0]]
    mixed.sum().backward()
    assert start.grad is not None
    assert end.grad is not None
    assert start.grad.tolist() == end.grad.tolist() == [[0.5, 0.5]]
