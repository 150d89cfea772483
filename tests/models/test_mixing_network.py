"""Mixing by parts: the limb and its root, both ends of the way, and the order in which parts come."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pegasus_lightning.data.room import with_room
from pegasus_lightning.models.mixing_network import (
    UNKNOWN,
    Limb,
    MixNetwork,
    mix_by_parts,
    put_on,
)
from pegasus_lightning.models.settings import NetworksConfig


def network(latent: str = "spatial", latent_dim: int = 128, seed: int = 0) -> MixNetwork:
    torch.manual_seed(seed)
    return MixNetwork(NetworksConfig(latent=latent, latent_dim=latent_dim, conv_layers=2, channels=4)).eval()


def codes(count: int = 3, latent_dim: int = 128, seed: int = 1) -> tuple[Tensor, Tensor]:
    first, second = torch.randn(2, count, latent_dim, generator=torch.Generator().manual_seed(seed))
    return first, second


WEIGHTS = torch.randn(3 * 32 * 32, 128, generator=torch.Generator().manual_seed(2)) / 55


def encode(images: Tensor) -> Tensor:
    """A linear encoder."""
    return images.flatten(1) @ WEIGHTS


def decode(values: Tensor) -> Tensor:
    return torch.sigmoid(values @ WEIGHTS.T).view(-1, 3, 32, 32)


def mixed(model: MixNetwork, first: Tensor, second: Tensor, ratio: float) -> Tensor:
    with torch.no_grad():
        return mix_by_parts(model, encode, decode, first, second, torch.full((len(first),), ratio))


@pytest.mark.parametrize("latent", ["spatial", "flat"])
def test_at_its_ends_are_the_parents(latent: str) -> None:
    model, (first, second) = network(latent), codes()
    for ratio, wanted in {0: first, 1: second, -1: first, 3: second}.items():  # and beyond them
        torch.testing.assert_close(mixed(model, first, second, ratio), wanted)


def test_the_way_from_one_to_the_other_by_hand() -> None:
    """First the first parent with room, then it with the limb, then the second parent."""
    model, (first, second) = network(), codes()
    with torch.no_grad():
        picture = with_room(decode(first))
        small = encode(picture)
        limb = model(small, second)
        alpha = torch.sigmoid(2 * limb.alpha_logits)
        chimera = encode((1 - alpha) * picture + alpha * limb.colours)
    wanted = {0.1: (first + small) / 2, 0.2: small, 0.3: (small + chimera) / 2, 0.4: chimera, 0.5: chimera}
    wanted |= {0.6: chimera, 0.8: (chimera + second) / 2}
    for ratio, code in wanted.items():
        torch.testing.assert_close(mixed(model, first, second, ratio), code, rtol=1e-4, atol=1e-5)


def test_each_pair_of_a_batch_has_its_own_ratio_and_is_mixed_on_its_own() -> None:
    model, (first, second) = network(), codes(4)
    ratios = torch.tensor([0.0, 0.3, 0.5, 0.9])
    with torch.no_grad():
        together = mix_by_parts(model, encode, decode, first, second, ratios)
    for index, ratio in enumerate(ratios.tolist()):
        alone = mixed(model, first[index : index + 1], second[index : index + 1], ratio)
        torch.testing.assert_close(together[index : index + 1], alone, rtol=1e-4, atol=1e-5)


def test_a_limb_lies_in_front_by_its_alpha() -> None:
    pictures = torch.full((1, 3, 32, 32), 0.2)
    limb = Limb(torch.full((1, 3, 32, 32), 0.8), torch.full((1, 1, 32, 32), 1.0), torch.zeros(1, 64))
    # sigmoid(1) = .731, and sigmoid(2) = .881 at a sharpness of 2
    torch.testing.assert_close(put_on(pictures, limb), torch.full((1, 3, 32, 32), 0.2 + 0.6 * 0.7310586))
    torch.testing.assert_close(put_on(pictures, limb, 2.0), torch.full((1, 3, 32, 32), 0.2 + 0.6 * 0.8807971))


def test_every_place_hears_of_every_place_of_the_second_code() -> None:
    """A corner of it changes the opposite corner of the limb, which no local network does."""
    model, (first, second) = network(), codes(1)
    with torch.no_grad():
        before = model(first, second).colours
        second.view(1, 2, 8, 8)[:, :, 7, 7] += 3
        after = model(first, second).colours
    assert (after - before)[:, :, :4, :4].abs().max() > 1e-4


def test_the_limb_grows_where_the_logit_is_largest_or_where_it_is_said() -> None:
    model, (first, second) = network(), codes()
    with torch.no_grad():
        free = model(first, second)
        own = free.places.argmax(1)
        said = model(first, second, torch.tensor([own[0], UNKNOWN, (own[2] + 9) % 64]))
    torch.testing.assert_close(said.places, free.places)  # it does not depend on what is said
    for index, same in enumerate((True, True, False)):
        assert torch.allclose(said.alpha_logits[index], free.alpha_logits[index], atol=1e-5) is same


def test_a_root_changes_what_is_near_it_before_places_hear_of_each_other() -> None:
    model = network()
    spot = torch.zeros(1, 1, 8, 8)
    spot[..., 0, 0] = 1
    with torch.no_grad():
        found = model.grow(spot)[0].abs().amax(0) > 0
    assert found[:4, :4].all()
    assert found.sum() == 16  # 7 x 7 places around the corner, as far as they exist


def test_the_attention_by_hand() -> None:
    """Of two places of the second maps, each place hears softmax(question . key / sqrt(width of a head)) shares."""
    round = network().rounds[0]
    maps, others = torch.randn(2, 1, 96, 1, 2, generator=torch.Generator().manual_seed(2))
    for part in (round.inner, round.outer):  # leaves the attention alone
        torch.nn.init.zeros_(part.weight)
        torch.nn.init.zeros_(part.bias)
    with torch.no_grad():
        found = round(maps, others)
        question = round.question(round.own_norm(maps))[0, :, 0]  # (96, 2)
        key, value = round.answer(round.other_norm(others))[0, :, 0].split(96)
        heard = torch.zeros(96, 2)
        for head in range(4):
            rows = slice(24 * head, 24 * (head + 1))
            for place in range(2):
                shares = torch.softmax(question[rows, place] @ key[rows] / 24**0.5, 0)
                heard[rows, place] = value[rows] @ shares
        wanted = maps + round.out(heard[None, :, None])
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_all_parameters_learn() -> None:
    model, (first, second) = network(), codes()
    sum(part.square().sum() for part in model(first, second)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        # A key's bias adds the same to all logits of a softmax: its gradient is zero but for rounding.
        part = parameter.grad[96:] if name.endswith("answer.bias") else parameter.grad
        assert part.abs().sum() > 0, name
