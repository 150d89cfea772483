"""Tests of the diagram: layers, shapes and counts by hand; networks left unchanged; branches side by side."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from pegasus_lightning.generate.figures import cards
from pegasus_lightning.generate.figures import networks as diagram
from pegasus_lightning.generate.figures.draw import network_plans
from pegasus_lightning.generate.figures.networks import Layer, NetworkPlan, describe, diagram_figure, plan
from pegasus_lightning.models.two_player import TwoPlayerModel
from pegasus_lightning.utils.image_grid import BACKGROUND, INK, MARGIN, SMALLEST, save_png

Tiny = Callable[..., TwoPlayerModel]
IMAGE, CODE = torch.zeros(1, 3, 32, 32), torch.zeros(1, 6)
HEAD = 16 * 4 * 4 * 6 + 6


def small() -> nn.Sequential:
    convolution = nn.Conv2d(3, 8, 4, stride=2, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(8), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(128, 10))


def test_a_small_network_by_hand() -> None:
    assert plan("net", small(), torch.zeros(2, 3, 8, 8)) == NetworkPlan(
        "net",
        (3, 8, 8),
        (
            Layer("Conv 4x4, stride 2, 3 -> 8 + BatchNorm + LeakyReLU", (8, 4, 4), 3 * 8 * 16 + 2 * 8),
            Layer("Flatten", (128,), 0),
            Layer("Linear 128 -> 10", (10,), 1290),
        ),
        384 + 16 + 1290,
    )


def test_the_encoder_ends_in_two_heads_that_read_the_same(tiny: Tiny) -> None:
    found = plan("encoder", tiny("adversarial_vae").encoder, IMAGE)
    after = " + BatchNorm + LeakyReLU"
    assert found.layers == (
        Layer(f"convolutions: Conv 4x4, stride 2, 3 -> 4{after}", (4, 16, 16), 192 + 8),
        Layer(f"convolutions: Conv 4x4, stride 2, 4 -> 8{after}", (8, 8, 8), 512 + 16),
        Layer(f"convolutions: Conv 4x4, stride 2, 8 -> 16{after}", (16, 4, 4), 2048 + 32),
        Layer("mean: Linear 256 -> 6", (6,), HEAD),
        Layer("log_variance: Linear 256 -> 6", (6,), HEAD, follows=(2,)),
    )
    assert found.parameters == 200 + 528 + 2080 + 2 * HEAD


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_deeper_heads_are_two_chains_in_either_memory_format(tiny: Tiny, memory_format: torch.memory_format) -> None:
    encoder: nn.Module = tiny("adversarial_vae", {"networks": {"fc_layers": 2}}).encoder
    encoder = encoder.to(memory_format=memory_format)  # type: ignore[call-overload]
    found = plan("encoder", encoder, torch.zeros(2, 3, 32, 32).to(memory_format=memory_format))
    assert [(layer.name, layer.follows) for layer in found.layers[3:]] == [
        ("mean: Linear 256 -> 8 + LeakyReLU", None),
        ("mean: Linear 8 -> 6", None),
        ("log_variance: Linear 256 -> 8 + LeakyReLU", (2,)),
        ("log_variance: Linear 8 -> 6", None),
    ]


def test_the_decoder_and_the_critic(tiny: Tiny) -> None:
    model = tiny("adversarial_vae")
    decoder, critic = plan("decoder", model.decoder, CODE), plan("critic", model.critic, IMAGE)
    after = " + BatchNorm + LeakyReLU"
    assert decoder.input_shape == (6,)
    assert decoder.layers == (
        Layer("fully_connected: Linear 6 -> 256", (256,), 6 * 256 + 256),
        Layer(f"convolutions: Reshape{after}", (16, 4, 4), 32),
        Layer(f"convolutions: Transposed conv 4x4, stride 2, 16 -> 8{after}", (8, 8, 8), 2048 + 16),
        Layer(f"convolutions: Transposed conv 4x4, stride 2, 8 -> 4{after}", (4, 16, 16), 512 + 8),
        Layer("convolutions: Transposed conv 4x4, stride 2, 4 -> 3", (3, 32, 32), 192 + 3),
    )
    assert decoder.parameters == 4603
    assert [layer.name.partition(":")[0] for layer in critic.layers] == ["features"] * 3 + ["last"]
    assert critic.layers[-1] == Layer("last: Conv 4x4, 16 -> 1", (1, 1, 1), 16 * 16 + 1)


def test_upsampling_is_a_line_of_its_own(tiny: Tiny) -> None:
    layers = plan("d", tiny("vae", {"networks": {"upsampling": "nearest"}}).decoder, CODE).layers
    assert layers[2:4] == (
        Layer("convolutions: Upsample x2, nearest", (16, 8, 8), 0),
        Layer("convolutions: Conv 3x3, 16 -> 8 + BatchNorm + LeakyReLU", (8, 8, 8), 16 * 8 * 9 + 16),
    )


def test_spectral_norm_is_marked_and_counts_nothing(tiny: Tiny) -> None:
    plain, normed = (
        plan("c", tiny("adversarial_vae", {"networks": {"spectral_norm": which}}).critic, IMAGE)
        for which in ("none", "all")
    )
    assert normed.parameters == plain.parameters
    assert [layer.name.replace(" (spectral norm)", "") for layer in normed.layers] == [x.name for x in plain.layers]
    assert normed.layers[0].name.startswith("features: Conv 4x4, stride 2, 3 -> 4 (spectral norm)")
    assert describe(parametrizations.weight_norm(nn.Linear(2, 3))) == "Linear 2 -> 3 (parametrized)"
    assert plan("w", nn.Sequential(parametrizations.weight_norm(nn.Linear(2, 3))), torch.zeros(1, 2)).layers == (
        Layer("Linear 2 -> 3 (parametrized)", (3,), 6 + 3 + 3),
    )


def test_a_deterministic_encoder_has_one_head(tiny: Tiny) -> None:
    layers = plan("encoder", tiny("acai", {"sample_codes": False}).encoder, IMAGE).layers
    assert layers[-1].name == "mean: Linear 256 -> 6"
    assert all(layer.follows is None for layer in layers)


def test_the_heads_of_a_spatial_latent_read_the_same_map(tiny: Tiny) -> None:
    networks = {"latent": "spatial", "latent_dim": 32, "batch_norm": False}
    found = plan("encoder", tiny("adversarial_vae", {"networks": networks}).encoder, IMAGE)
    assert [(layer.name, layer.follows) for layer in found.layers[3:]] == [
        ("mean: Conv 3x3, 16 -> 2", None),
        ("log_variance: Conv 3x3, 16 -> 2", (2,)),
    ]
    assert found.ends() == (3, 4)


SPATIAL = {"latent": "spatial", "latent_dim": 32, "batch_norm": False, "residual_blocks": 1}


def test_a_skip_connection_joins_the_sum_and_no_layer_is_a_dead_end(tiny: Tiny) -> None:
    model = tiny("pegasus", {"networks": SPATIAL, "learned_mixing": True})
    encoder, mixing, decoder, _ = network_plans(model)
    assert [(layer.name.rpartition(": ")[2], layer.follows) for layer in encoder.layers[2:]] == [
        ("Conv 4x4, stride 2, 8 -> 16 + LeakyReLU", None),
        ("LeakyReLU", None),  # of the block alone: the skip connection does not pass it
        ("Conv 3x3, 16 -> 16 + LeakyReLU", None),
        ("Conv 3x3, 16 -> 16", None),
        ("Sum", (2, 5)),
        ("Conv 3x3, 16 -> 2", None),
        ("Conv 3x3, 16 -> 2", (6,)),
        ("z = mean + exp(log-variance / 2) * noise", (7, 8)),
    ]
    assert [layer.follows for layer in decoder.layers if "Sum" in layer.name] == [(1, 4)]
    assert not any("Flatten" in layer.name for layer in decoder.layers)  # the convolutions undo it
    assert [len(each.ends()) for each in (encoder, mixing, decoder)] == [1, 1, 1]


def test_the_mixing_network_stands_between_two_codes(tiny: Tiny) -> None:
    model = tiny("pegasus", {"networks": SPATIAL, "learned_mixing": True})
    mixing = network_plans(model)[1]
    assert mixing.inputs == ("first code, of the smaller image", "second code")
    assert [(layer.name, layer.follows) for layer in mixing.layers[:9]] == [
        ("first: Conv 3x3, 2 -> 96", None),
        ("second: Conv 3x3, 2 -> 96", (-2,)),
        ("look: Attention, two conv 3x3", (0,)),
        ("where: Conv 1x1, 96 -> 1", None),
        ("One place, the largest", None),
        ("grow: Conv 7x7, 1 -> 96", None),
        ("Sum", (2, 5)),
        ("rounds: Attention, two conv 3x3", (6, 1)),
        ("rounds: Attention, two conv 3x3", (7, 1)),
    ]
    assert mixing.layers[-1] == Layer("Sigmoid", (4, 32, 32), 0)
    assert mixing.parameters == sum(layer.parameters for layer in mixing.layers) + 2 * 96 * 4 * 4  # and of the places
    assert len(network_plans(tiny("pegasus", {"networks": SPATIAL}))) == 3  # no mixing is learned


def test_both_branches_of_a_residual_decoder_are_upsampled(tiny: Tiny) -> None:
    decoder = plan("decoder", tiny("vae", {"networks": {"decoder": "residual", "batch_norm": False}}).decoder, CODE)
    upsampled = [i for i, layer in enumerate(decoder.layers) if "Upsample" in layer.name]
    assert len(upsampled) == 2 * 3
    sums = [i for i, layer in enumerate(decoder.layers) if "Sum" in layer.name]
    assert [decoder.sources(i) for i in sums] == [(upsampled[0 + 2 * k], sums[k] - 1) for k in range(3)]
    # Two lanes, which each block uses again.
    picture = diagram_figure([decoder], title="t")
    assert picture.shape[1] == 2 * diagram.LANE + MARGIN + 2 * MARGIN + 2 * MARGIN


def test_a_skip_connection_is_drawn_beside_the_cards_that_it_passes() -> None:
    skipped = diagram_figure([chain(A, B, Layer("Sum", (3,), 0, follows=(0, 1)))], title="t")
    dark = (skipped == INK).all(axis=-1)
    x = MARGIN + MARGIN + diagram.LANE + MARGIN // 2
    white = (skipped == cards.CARD).all(axis=-1)
    lines = np.flatnonzero(white.any(axis=1))
    tops = lines[np.concatenate([[True], np.diff(lines) > 1])]
    assert dark[tops[2] - cards.ARROW // 2 : tops[3] - cards.ARROW // 2 - 3, x].all()  # from above B to above the sum


SAMPLING = Layer("sampling: z = mean + exp(log-variance / 2) * noise", (6,), 0, follows=(3, 4))
PIXELS = Layer("Sigmoid", (3, 32, 32), 0)
LAST = "last: Conv 4x4, 16 -> 1"


@pytest.mark.parametrize("name", ["adversarial_vae", "vae_gan", "pegasus", "vae", "acai"])
def test_codes_are_sampled_from_both_heads_and_pixels_end_in_a_sigmoid(tiny: Tiny, name: str) -> None:
    encoder, decoder, *_ = network_plans(tiny(name))
    assert [layer.name for layer in encoder.layers[3:5]] == ["mean: Linear 256 -> 6", "log_variance: Linear 256 -> 6"]
    assert encoder.layers[5:] == (SAMPLING,)
    assert decoder.layers[-2:] == (
        Layer("convolutions: Transposed conv 4x4, stride 2, 4 -> 3", (3, 32, 32), 195),
        PIXELS,
    )


def test_codes_that_are_not_sampled_are_the_mean(tiny: Tiny) -> None:
    encoder = network_plans(tiny("adversarial_vae", {"sample_codes": False}))[0]
    assert encoder.layers[-1] == Layer("mean: Linear 256 -> 6", (6,), HEAD)
    assert encoder.output == "the code z, not sampled"


@pytest.mark.parametrize(
    ("name", "settings", "ending", "output"),
    [
        ("adversarial_vae", {}, [LAST, "Sigmoid"], "the probability of a real image"),
        ("vae_gan", {}, [LAST, "Sigmoid"], "the probability of a real image"),
        ("pegasus", {}, [LAST, "Sigmoid"], "the probability of a real image"),
        ("acai", {}, [LAST], "a coefficient, no sigmoid"),
        ("adversarial_vae", {"adversarial_loss": "hinge"}, [LAST], "hinge score, no sigmoid"),
        ("vae_gan", {"adversarial_loss": "relativistic"}, [LAST], "score to compare in pairs, no sigmoid"),
        # Two convolutions leave 8 x 8 pixels, and the last convolution 5 x 5, of which the mean is taken.
        ("vae_gan", {"networks": {"conv_layers": 2}}, ["last: Conv 4x4, 8 -> 1", "Mean", "Sigmoid"], None),
        ("acai", {"networks": {"conv_layers": 2}}, ["last: Conv 4x4, 8 -> 1", "Mean"], None),
    ],
)
def test_the_critic_ends_in_what_is_read_of_it(
    tiny: Tiny, name: str, settings: dict[str, Any], ending: list[str], output: str | None
) -> None:
    critic = network_plans(tiny(name, settings))[2]
    convolutions = settings.get("networks", {}).get("conv_layers", 3)
    assert [layer.name for layer in critic.layers[convolutions:]] == ending
    assert all(layer.shape == (1,) for layer in critic.layers[convolutions + 1 :])
    assert output in (critic.output, None)


def test_patches_and_the_whole_are_branches_that_end_in_one_number(tiny: Tiny) -> None:
    critic = network_plans(tiny("adversarial_vae", {"networks": {"critic_patches": True}}))[2]
    names = [layer.name for layer in critic.layers]
    assert names[3:] == ["patches: Conv 3x3, 8 -> 1", LAST, "Mean of each, sum", "Sigmoid"]
    assert [layer.follows for layer in critic.layers[3:]] == [(1,), (2,), (3, 4), None]


def test_a_model_without_a_critic_has_two_networks(tiny: Tiny) -> None:
    assert [each.name for each in network_plans(tiny("vae"))] == ["encoder", "decoder"]


class Flat(nn.Module):
    """Flattens in a function, in a module that is no leaf."""

    def __init__(self) -> None:
        super().__init__()
        self.idle = nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


def test_small_layers_stand_alone_where_they_follow_nothing_of_their_shape() -> None:
    network = nn.Sequential(nn.ReLU(), nn.BatchNorm1d(4), nn.Linear(4, 2))
    names = [layer.name for layer in plan("n", network, torch.zeros(2, 4)).layers]
    assert names == ["ReLU + BatchNorm", "Linear 4 -> 2"]
    network = nn.Sequential(nn.Linear(4, 6), nn.Unflatten(1, (2, 3)), Flat(), nn.BatchNorm1d(6))
    names = [layer.name for layer in plan("n", network, torch.zeros(2, 4)).layers]
    assert names == ["Linear 4 -> 6", "Reshape", "BatchNorm"]
    assert [layer.name for layer in plan("one", nn.Linear(4, 2), torch.zeros(1, 4)).layers] == ["Linear 4 -> 2"]


class Forked(nn.Module):
    """One reader of a sum, run twice, and two of the input itself; a layer that never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.act, self.idle = nn.Linear(4, 4), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(self.a(x + 1)) + self.b(x) + self.act(x)


def test_each_layer_once_in_order_of_execution() -> None:
    found = plan("forked", Forked(), torch.zeros(1, 4))
    assert [(layer.name, layer.follows) for layer in found.layers] == [
        ("a: Linear 4 -> 4", None),
        ("b: Linear 4 -> 4", (-1,)),
        ("Sum", (0, 1)),
        ("act: ReLU", (-1,)),
        ("Sum", (2, 3)),
    ]
    assert found.parameters == 3 * 20


class Frugal(nn.Module):
    """Frees what it no longer needs, so that a later tensor may lie where an earlier one did."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 64), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        z = self.b(self.a(x) * 2)
        return self.c(z[:, :4] * 2)


def test_storage_used_again_is_no_branch() -> None:
    assert [layer.follows for layer in plan("frugal", Frugal(), torch.zeros(1, 4)).layers] == [None] * 3


class Failing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("no")


@pytest.mark.parametrize("fails", [False, True])
def test_the_network_is_left_as_it_was(tiny: Tiny, fails: bool) -> None:
    networks = {"spectral_norm": "all", "critic_batch_norm": True}
    network: Any = tiny("adversarial_vae", {"networks": networks}).critic.train()
    network.features[1].eval()  # a mode of its own
    if fails:
        network.last = nn.Sequential(Failing())
    before, modes = copy.deepcopy(network.state_dict()), [m.training for m in network.modules()]
    state, example = torch.get_rng_state(), torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    if fails:
        with pytest.raises(RuntimeError, match="no"):
            plan("critic", network, example)
    else:
        plan("critic", network, example)
    assert any(modes)
    assert not all(modes)
    assert [m.training for m in network.modules()] == modes
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(p.grad is None and p.requires_grad for p in network.parameters())


def chain(*layers: Layer) -> NetworkPlan:
    return NetworkPlan("net", (3, 32, 32), layers, 12345)


A, B, C = (Layer(f"{name}: Linear 2 -> 3", (3,), 9) for name in "abc")


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Fills with the texts written, and their sizes."""
    written: list[tuple[str, int]] = []
    write = diagram.render_text

    def watched(text: str, size: int, width: int, align: str = "left") -> np.ndarray:
        written.append((text, size))
        return write(text, size, width, align)

    for module in (diagram, cards):
        monkeypatch.setattr(module, "render_text", watched)
    return written


def test_the_diagram_says_names_shapes_and_counts_legibly(tiny: Tiny, texts: list[tuple[str, int]]) -> None:
    model = tiny("adversarial_vae")
    plans = [plan("encoder", model.encoder, IMAGE), plan("decoder", model.decoder, CODE)]
    figure = diagram_figure(plans, title="Two networks", footer="run a")
    said = [text for text, _ in texts]
    for text in ("encoder", "decoder", "mean", "log-variance", "Linear 256 -> 6"):
        assert text in said
    for text in ("3 x 32 x 32", "16 x 4 x 4\n2,080 parameters", "6\n1,542 parameters", "4,603 parameters in all"):
        assert text in said
    assert "Conv 4x4, stride 2, 8 -> 16\n+ BatchNorm + LeakyReLU" in said
    assert "Transposed conv 4x4,\nstride 2, 16 -> 8\n+ BatchNorm + LeakyReLU" in said
    assert said.count("convolutions") == 2  # once where each begins
    assert min(size for _, size in texts) >= SMALLEST
    for edge in (figure[0], figure[-1], figure[:, 0], figure[:, -1]):
        assert (edge == BACKGROUND).all()


def test_a_long_word_widens_the_cards_and_is_not_clipped() -> None:
    word = "AnActivationWithTheLongestNameEver"
    plain, wide = (diagram_figure([chain(Layer(name, (3,), 0))], title="t") for name in ("a", word))
    assert wide.shape[1] > plain.shape[1] + 50
    long_head = diagram_figure([NetworkPlan(word * 2, (3,), (A,), 9)], title="t")
    assert long_head.shape[1] > wide.shape[1]


def test_branches_stand_beside_each_other_and_a_chain_below() -> None:
    forked = diagram_figure([chain(A, B, Layer(C.name, C.shape, C.parameters, follows=(0,)))], title="t")
    straight = diagram_figure([chain(A, B, C)], title="t")
    lines = [np.unique(np.flatnonzero((f == cards.CARD).all(axis=-1).any(axis=1))) for f in (forked, straight)]
    rows = [1 + int((np.diff(line) > 1).sum()) for line in lines]
    assert rows == [3, 4]  # the input's included
    assert forked.shape[1] == 2 * diagram.LANE + MARGIN + 2 * MARGIN

    # Of the fork, the cards' left edges: two alone in the middle, then two lanes.
    white = (forked == cards.CARD).all(axis=-1)
    tops = lines[0][np.concatenate([[True], np.diff(lines[0]) > 1])]
    middle = (forked.shape[1] - diagram.LANE) // 2 + 1
    assert [int(np.flatnonzero(white[top])[0]) for top in tops] == [middle, middle, MARGIN + 1]
    assert [int(white[top].sum()) for top in tops] == [diagram.LANE - 2] * 2 + [2 * (diagram.LANE - 2)]


def test_a_card_that_follows_two_lies_below_both_with_an_arrow_from_each() -> None:
    fork = (A, B, Layer(C.name, C.shape, C.parameters, follows=(0,)))
    forked = diagram_figure([chain(*fork)], title="t")
    joined = diagram_figure([chain(*fork, Layer("sum", (3,), 0, follows=(1, 2)))], title="t")
    assert joined.shape[1] == forked.shape[1]
    white = (joined == cards.CARD).all(axis=-1)
    lines = np.flatnonzero(white.any(axis=1))
    top, last = lines[np.concatenate([[True], np.diff(lines) > 1])][[0, -1]]  # of the first and the last card
    left = (joined.shape[1] - diagram.LANE) // 2
    assert (np.flatnonzero(white[last])[[0, -1]] == (left + 1, left + diagram.LANE - 2)).all()  # alone in the middle
    # The arrows: a stem below the middle of each lane, and one line from stem to stem just above the card.
    dark = (joined == INK).all(axis=-1)
    stems = [MARGIN + lane * (diagram.LANE + MARGIN) + diagram.LANE // 2 for lane in (0, 1)]
    bar = last - 1 - cards.ARROW // 2 - 2
    assert dark[bar, stems[0] : stems[1]].all()
    assert (np.flatnonzero(dark[bar - 1]) == [stems[0] - 1, stems[0], stems[1] - 1, stems[1]]).all()
    assert top < bar < last


def test_blocks_are_as_wide_as_the_maps_and_as_deep_as_the_channels() -> None:
    def area(shape: tuple[int, ...], colour: tuple[int, int, int]) -> int:
        return int((diagram._glyph(shape) == colour).all(axis=-1).sum())

    fronts = [area((8, side, side), diagram.FRONT) for side in (32, 16, 8, 4)]
    assert fronts == sorted(set(fronts), reverse=True)
    depths = [area((channels, 16, 16), diagram.TOP) for channels in (1, 4, 32, 256)]
    assert depths == sorted(set(depths))
    assert depths[0] == 0
    assert area((512,), diagram.FRONT) > area((8,), diagram.FRONT) > 0
    for shape in ((2048, 32, 32), (4096,), (1, 1, 1), (), (3, 256, 256)):
        diagram._glyph(shape)


def test_the_file_is_the_same_each_time(tiny: Tiny, tmp_path: Path) -> None:
    for file in ("a.png", "b.png"):
        save_png(diagram_figure([plan("d", tiny("vae").decoder, CODE)], title="t"), tmp_path / file)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert (tmp_path / "a.png").stat().st_size < 150_000


def test_a_diagram_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        diagram_figure([], title="t")
    for follows, said in (((-2,), "-2"), ((0,), "0"), ((-1, 5), "-1, 5"), ((), "nothing")):
        with pytest.raises(ValueError, match=f"follow .* not {said}$"):
            diagram_figure([chain(Layer("a", (3,), 0, follows=follows))], title="t")
