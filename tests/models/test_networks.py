"""Shapes of every combination, spectral norms, and frozen critics without side effects."""

import itertools
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrize import is_parametrized

from pegasus_lightning.models.networks import Critic, Decoder, Encoder, ResidualBlock, frozen, with_statistics_of
from pegasus_lightning.models.settings import NetworksConfig


def config(**fields) -> NetworksConfig:
    return NetworksConfig(**{"channels": 4, "latent_dim": 6, "fc_width": 8, **fields})


def count(network: nn.Module, *kinds: type[nn.Module]) -> int:
    return sum(isinstance(module, kinds) for module in network.modules())


def weighted(network: nn.Module) -> list[nn.Module]:
    return [m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear))]


COMBINATIONS = list(
    itertools.product((2, 3, 4), (1, 2, 3), ("none", "critic", "all"), ("transposed", "nearest"), (True, False))
)


@pytest.mark.parametrize(("depth", "fc_layers", "spectral", "upsampling", "batch_norm"), COMBINATIONS)
def test_shapes_and_layers_of_every_combination(
    depth: int, fc_layers: int, spectral: str, upsampling: str, batch_norm: bool
) -> None:
    fields = config(
        conv_layers=depth,
        fc_layers=fc_layers,
        spectral_norm=spectral,
        upsampling=upsampling,
        batch_norm=batch_norm,
        critic_batch_norm=not batch_norm,
    )
    encoder, decoder, critic = Encoder(fields), Decoder(fields), Critic(fields)
    images = torch.rand(2, 3, 32, 32)
    last = (2, 4 * 2 ** (depth - 1), 32 // 2**depth, 32 // 2**depth)

    assert encoder.convolutions(images).shape == last
    mean, log_variance = encoder(images)
    assert mean.shape == log_variance.shape == (2, 6)
    logits = decoder(mean)
    assert logits.shape == (2, 3, 32, 32)
    assert critic.features(logits).shape == last
    output = critic(logits)
    assert output.shape == (2,)

    assert count(encoder, nn.Conv2d) == depth
    assert count(decoder, nn.Conv2d, nn.ConvTranspose2d) == depth
    assert count(decoder, nn.ConvTranspose2d) == (depth if upsampling == "transposed" else 0)
    assert count(critic, nn.Conv2d) == depth + 1
    assert count(encoder, nn.Linear) == 2 * fc_layers
    assert count(decoder, nn.Linear) == fc_layers
    assert count(critic, nn.Linear) == 0
    assert count(encoder, nn.BatchNorm2d) == count(decoder, nn.BatchNorm2d) == (depth if batch_norm else 0)
    assert count(critic, nn.BatchNorm2d) == (0 if batch_norm else depth)
    assert {is_parametrized(m) for m in weighted(critic)} == {spectral != "none"}
    assert {is_parametrized(m) for m in weighted(encoder) + weighted(decoder)} == {spectral == "all"}

    # Every layer contributes to the output.
    (output.sum() + log_variance.sum() + logits.sum()).backward()
    for network in (encoder, decoder, critic):
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("network", [Encoder, Decoder, Critic])
@pytest.mark.parametrize("depth", [1, 5])
def test_an_impossible_depth_is_refused(network: type[nn.Module], depth: int) -> None:
    with pytest.raises(ValueError, match=f"convolutions must be 2 to 4, not {depth}"):
        network(config(conv_layers=depth))


def test_the_critic_has_a_depth_of_its_own() -> None:
    critic = Critic(config(conv_layers=2, critic_layers=4, critic_channels=2))
    assert critic.features(torch.rand(2, 3, 32, 32)).shape == (2, 16, 2, 2)
    assert critic(torch.rand(2, 3, 32, 32)).shape == (2,)
    assert Encoder(config(conv_layers=2, critic_layers=4)).convolutions(torch.rand(2, 3, 32, 32)).shape == (2, 8, 8, 8)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_patches_are_judged_before_the_last_convolution(batch_norm: bool) -> None:
    """The patches' share of the output is the mean of a 3 x 3 convolution of the 8 x 8 map, by hand."""
    critic = Critic(config(critic_patches=True, critic_batch_norm=batch_norm)).eval()
    images, maps = torch.rand(2, 3, 32, 32), None
    for layer in list(critic.features)[: 6 if batch_norm else 4]:
        maps = layer(images if maps is None else maps)
    assert maps.shape == (2, 8, 8, 8)
    with torch.no_grad():
        before = critic(images)
        critic.patches.bias += 0.25
        torch.testing.assert_close(critic(images), before + 0.25)
        critic.patches.bias -= 0.25
        whole = critic.last(critic.features(images)).flatten(1).mean(1)
        patches = functional.conv2d(maps, critic.patches.weight, critic.patches.bias, padding=1).mean((1, 2, 3))
        torch.testing.assert_close(critic(images), whole + patches)
    assert is_parametrized(Critic(config(critic_patches=True, critic_batch_norm=False, spectral_norm="all")).patches)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_residual_blocks_keep_the_shape_and_add_to_their_input(batch_norm: bool) -> None:
    fields = config(conv_layers=2, residual_blocks=2, batch_norm=batch_norm)
    plain = config(conv_layers=2, batch_norm=batch_norm)
    encoder, decoder = Encoder(fields).eval(), Decoder(fields).eval()
    images, codes = torch.rand(2, 3, 32, 32), torch.randn(2, 6)
    for network, other, inputs in ((encoder, Encoder(plain).eval(), images), (decoder, Decoder(plain).eval(), codes)):
        assert count(network, ResidualBlock) == 2
        # A block with a last convolution of zeros is the identity: then the network is the one without blocks.
        with torch.no_grad():
            for block in network.modules():
                if isinstance(block, ResidualBlock):
                    block.main[-1].weight.zero_()
        shared = {name: value for name, value in network.state_dict().items() if "main" not in name}
        for key, value in zip(other.state_dict(), shared.values(), strict=True):
            other.state_dict()[key].copy_(value)
        torch.testing.assert_close(network(inputs), other(inputs))


def test_a_deterministic_encoder_has_one_head() -> None:
    encoder = Encoder(config(fc_layers=2), deterministic=True)
    mean, log_variance = encoder(torch.rand(2, 3, 32, 32))
    assert count(encoder, nn.Linear) == 2
    assert mean.shape == (2, 6)
    assert torch.equal(log_variance, torch.zeros(2, 6))


def test_the_heads_are_separate_and_identical() -> None:
    encoder = Encoder(config(fc_layers=3))
    assert [type(m) for m in encoder.mean] == [type(m) for m in encoder.log_variance]
    assert [p.shape for p in encoder.mean.parameters()] == [p.shape for p in encoder.log_variance.parameters()]
    shared = {id(p) for p in encoder.mean.parameters()} & {id(p) for p in encoder.log_variance.parameters()}
    assert not shared


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_the_critics_output_is_the_mean_of_its_last_map(depth: int) -> None:
    critic = Critic(config(conv_layers=depth)).eval()
    images = torch.rand(3, 3, 32, 32)
    features = critic.features(images)
    last = critic.last(features)
    assert last.shape[1:] == ((1, 5, 5) if depth == 2 else (1, 1, 1))
    torch.testing.assert_close(critic(images), last.mean(dim=(1, 2, 3)))
    torch.testing.assert_close(critic.with_features(images), (features, critic(images)))


@pytest.mark.parametrize("upsampling", ["transposed", "nearest"])
def test_spectral_norm_brings_the_largest_singular_value_to_one(upsampling: str) -> None:
    torch.manual_seed(0)
    fields = config(spectral_norm="all", upsampling=upsampling, fc_layers=2)
    encoder, decoder, critic = Encoder(fields), Decoder(fields), Critic(fields)
    with torch.no_grad():
        for _ in range(40):  # one power iteration each
            encoder(torch.rand(2, 3, 32, 32)), decoder(torch.randn(2, 6)), critic(torch.rand(2, 3, 32, 32))
        for layer in weighted(encoder) + weighted(decoder) + weighted(critic):
            # A matrix of outputs times the rest; a transposed convolution has its outputs second.
            weight = layer.weight.transpose(0, 1) if isinstance(layer, nn.ConvTranspose2d) else layer.weight
            largest = torch.linalg.svd(weight.flatten(1)).S[0]
            assert largest.item() == pytest.approx(1, abs=0.02)
            original = layer.parametrizations.weight.original
            assert not torch.allclose(layer.weight, original)


@pytest.mark.parametrize("upsampling", ["transposed", "nearest"])
def test_the_memory_format_changes_nothing(upsampling: str) -> None:
    fields = config(upsampling=upsampling)
    images, codes = torch.rand(2, 3, 32, 32), torch.randn(2, 6)
    strided = images.contiguous(memory_format=torch.channels_last)
    for network, plain, other in (
        (Encoder(fields), images, strided),
        (Decoder(fields), codes, codes),
        (Critic(fields), images, strided),
    ):
        wanted = network(plain)
        found = network.to(memory_format=torch.channels_last)(other)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def snapshot(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def assert_unchanged(network: nn.Module, before: dict[str, Tensor]) -> None:
    after = network.state_dict()
    assert after.keys() == before.keys()
    for name, value in before.items():
        assert torch.equal(after[name], value), name


@pytest.mark.parametrize("spectral", ["none", "critic"])
def test_frozen_leaves_no_trace(spectral: str, images: Tensor) -> None:
    critic = Critic(config(spectral_norm=spectral))
    before = snapshot(critic)
    if spectral == "critic":
        assert any(name.endswith("._u") for name in before)
    assert any(name.endswith("running_mean") for name in before)
    images.requires_grad_()
    with frozen(critic):
        critic(images).sum().backward()
        critic(images + 1)
    assert_unchanged(critic, before)
    assert all(p.grad is None for p in critic.parameters())
    assert images.grad is not None
    assert images.grad.abs().sum() > 0  # gradients pass through

    # Afterwards the same call changes the critic again.
    assert all(p.requires_grad for p in critic.parameters())
    assert all(m.training for m in critic.modules())
    critic(images).sum().backward()
    assert all(p.grad is not None for p in critic.parameters())
    changed = {name for name, value in critic.state_dict().items() if not torch.equal(value, before[name])}
    traces = {name for name in before if name.endswith(("running_mean", "running_var", "tracked", "._u", "._v"))}
    assert {n for n in traces if n.endswith(("running_mean", "running_var", "tracked"))} <= changed
    assert bool([n for n in changed if n.endswith("._u")]) == (spectral == "critic")


def test_frozen_outputs_and_input_gradients_are_those_of_training(images: Tensor) -> None:
    critic = Critic(config())
    for p in critic.buffers():  # running statistics far from the batch's
        p.fill_(3)
    images.requires_grad_()
    with frozen(critic):
        inside = critic(images)
        (gradient,) = torch.autograd.grad(inside.square().sum(), images)
    outside = critic(images)
    (wanted,) = torch.autograd.grad(outside.square().sum(), images)
    torch.testing.assert_close(inside, outside)
    torch.testing.assert_close(gradient, wanted)
    assert not torch.allclose(critic.eval()(images), outside)


def test_frozen_is_lifted_after_an_exception(images: Tensor) -> None:
    critic = Critic(config(spectral_norm="critic"))
    with pytest.raises(RuntimeError, match="in the middle"), frozen(critic):
        raise RuntimeError("in the middle")
    before = snapshot(critic)
    critic(images).sum().backward()
    assert all(p.grad is not None for p in critic.parameters())
    assert not torch.equal(critic.features[1].running_mean, before["features.1.running_mean"])
    u = "features.0.parametrizations.weight.0._u"
    assert not torch.equal(critic.state_dict()[u], before[u])


def test_frozen_keeps_what_was_frozen_before() -> None:
    critic = Critic(config())
    critic.last.requires_grad_(False)
    with frozen(critic):
        pass
    assert not critic.last.weight.requires_grad
    assert critic.features[0].weight.requires_grad


def perturbed(critic: Critic) -> Critic:
    """Set scales, shifts and running statistics of BatchNorm to values other than ones and zeros."""
    draw = torch.Generator().manual_seed(4)
    for norm in critic.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for values, low in ((norm.weight.data, 0.5), (norm.bias.data, -0.5), (norm.running_mean, 2.0)):
                values.copy_(low + torch.rand(values.shape, generator=draw))
            norm.running_var.fill_(7.0)
    return critic


def judged_by_hand(critic: Critic, reference: Tensor, images: Tensor) -> Tensor:
    """Return the critic's outputs with each BatchNorm using the statistics of `reference`.

    Training mode uses variances over n = B * H * W; PyTorch's running variances are n / (n - 1) times these.
    """
    for layer in critic.features:
        if isinstance(layer, nn.BatchNorm2d):
            mean, count = reference.mean((0, 2, 3), keepdim=True), reference[:, 0].numel()
            variance = (reference - mean).square().mean((0, 2, 3), keepdim=True)
            scale, shift = layer.weight[:, None, None], layer.bias[:, None, None]
            images = (images - mean) / (variance * count / (count - 1) + layer.eps).sqrt() * scale + shift
            reference = (reference - mean) / (variance + layer.eps).sqrt() * scale + shift
        else:
            images, reference = layer(images), layer(reference)
    return critic.last(images).mean((1, 2, 3))


@pytest.mark.parametrize("spectral", ["none", "critic"])
def test_a_judge_normalises_by_the_statistics_of_the_reference(spectral: str, images: Tensor) -> None:
    critic = perturbed(Critic(config(spectral_norm=spectral))).eval()
    reference = images.flip(0) ** 2
    judge = with_statistics_of(critic, reference)
    with torch.no_grad():
        wanted = judged_by_hand(critic, reference, images)
        torch.testing.assert_close(judge(images), wanted, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(wanted, critic(images), rtol=0.01)  # differs from the result with running statistics


def test_a_judge_holds_of_the_reference_what_the_critic_holds_of_it_in_training() -> None:
    # Up to the factor n / (n - 1) of the variances, with n = 32 * 4 * 4 in the last layer.
    reference = torch.rand(32, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    critic = perturbed(Critic(config()))
    judge = with_statistics_of(critic, reference)
    with torch.no_grad():
        found, wanted = judge.features(reference), critic.features(reference)
        torch.testing.assert_close(found, wanted, rtol=0.01, atol=0.01)
        torch.testing.assert_close(judge(reference), critic(reference), rtol=0.01, atol=0.01)


def test_a_judge_judges_each_image_on_its_own(images: Tensor) -> None:
    critic = perturbed(Critic(config()))
    judge = with_statistics_of(critic, images)
    together, alone = judge(images), torch.cat([judge(image[None]) for image in images])
    torch.testing.assert_close(alone, together)
    torch.testing.assert_close(judge(images), together)  # earlier inputs do not change it
    assert not torch.allclose(critic(images[:2]), critic(images)[:2], rtol=1e-3)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("spectral", ["none", "critic"])
def test_a_judge_is_frozen_and_its_critic_untouched(spectral: str, training: bool, images: Tensor) -> None:
    critic = perturbed(Critic(config(spectral_norm=spectral))).train(training)
    critic.last.requires_grad_(False)
    trained = {name: parameter.requires_grad for name, parameter in critic.named_parameters()}
    before = snapshot(critic)
    judge = with_statistics_of(critic, images)
    verdict = judge(images)
    assert_unchanged(critic, before)
    assert {module.training for module in critic.modules()} == {training}
    assert {name: parameter.requires_grad for name, parameter in critic.named_parameters()} == trained
    assert {norm.momentum for norm in critic.modules() if isinstance(norm, nn.BatchNorm2d)} == {0.1}

    vectors = {name: value for name, value in judge.state_dict().items() if name.endswith(("._u", "._v"))}
    assert bool(vectors) == (spectral == "critic")
    assert all(torch.equal(value, before[name]) for name, value in vectors.items())
    assert not any(module.training for module in judge.modules())
    assert not any(parameter.requires_grad for parameter in judge.parameters())
    assert not any(buffer.requires_grad for buffer in judge.buffers())
    (gradient,) = torch.autograd.grad(judge(images.requires_grad_()).sum(), images)
    assert gradient.abs().sum() > 0  # differentiable, as a search requires
    with torch.no_grad():
        for values in (*critic.parameters(), *critic.buffers()):
            values.fill_(0)
        torch.testing.assert_close(judge(images), verdict)  # a copy


def test_without_batch_norm_a_judge_is_the_critic_itself(images: Tensor) -> None:
    critic = Critic(config(spectral_norm="critic", critic_batch_norm=False))
    critic(images)  # advances the power iteration
    before = snapshot(critic)
    judge = with_statistics_of(critic, images**2)
    assert torch.equal(judge(images), critic.eval()(images))
    assert any(name.endswith("._u") for name in before)
    assert_unchanged(judge, before)
    assert_unchanged(critic, before)


# Residual decoder, spatial latent, critic of another width.


def doubled(maps: Tensor) -> Tensor:
    return maps.repeat_interleave(2, 2).repeat_interleave(2, 3)


def normalised(maps: Tensor) -> Tensor:
    """Normalise by the batch, with scale 1 and shift 0."""
    mean, variance = maps.mean((0, 2, 3), keepdim=True), maps.var((0, 2, 3), unbiased=False, keepdim=True)
    return (maps - mean) / (variance + 1e-5).sqrt()


def leaky(maps: Tensor) -> Tensor:
    return torch.where(maps > 0, maps, 0.2 * maps)


@pytest.mark.parametrize("batch_norm", [True, False])
def test_a_residual_block_by_hand(batch_norm: bool) -> None:
    torch.manual_seed(0)
    block = ResidualBlock(3, 5, config(batch_norm=batch_norm))
    maps = torch.randn(2, 3, 4, 4)
    first, second = (layer for layer in block.main if isinstance(layer, nn.Conv2d))
    (skip,) = (layer for layer in block.skip if isinstance(layer, nn.Conv2d))
    assert (first.bias is None) == batch_norm  # BatchNorm would cancel a bias
    norm = normalised if batch_norm else (lambda maps: maps)
    inner = functional.conv2d(leaky(norm(maps)), first.weight, first.bias, padding=1)
    inner = functional.conv2d(leaky(norm(doubled(inner))), second.weight, padding=1)
    weight = skip.weight[:, :, 0, 0]
    straight = torch.einsum("oi,bihw->bohw", weight, maps) + skip.bias[:, None, None]
    torch.testing.assert_close(block(maps), doubled(straight) + inner, rtol=1e-4, atol=1e-5)
    assert second.bias is None


@pytest.mark.parametrize("depth", [2, 3, 4])
@pytest.mark.parametrize("spectral", ["none", "all"])
@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize("latent", ["flat", "spatial"])
@pytest.mark.parametrize("decoder", ["plain", "residual"])
def test_shapes_and_layers_of_residual_decoders_and_spatial_latents(
    depth: int, spectral: str, batch_norm: bool, latent: str, decoder: str
) -> None:
    side = 32 // 2**depth
    for fc_layers in (1, 2):
        fields = config(
            conv_layers=depth,
            fc_layers=fc_layers,
            spectral_norm=spectral,
            batch_norm=batch_norm,
            latent=latent,
            latent_dim=2 * side**2,
            decoder=decoder,
        )
        encoder, network = Encoder(fields), Decoder(fields)
        mean, log_variance = encoder(torch.rand(2, 3, 32, 32))
        assert mean.shape == log_variance.shape == (2, 2 * side**2)
        logits = network(mean)
        assert logits.shape == (2, 3, 32, 32)
        blocks = depth if decoder == "residual" else 0
        assert count(network, ResidualBlock) == blocks
        assert count(network.convolutions, nn.Conv2d, nn.ConvTranspose2d) == (3 * depth + 1 if blocks else depth)
        # Two per block and one before the last convolution; a plain decoder begins with one.
        assert count(network, nn.BatchNorm2d) == batch_norm * (2 * depth + 1 if blocks else depth)
        entrance = nn.Conv2d if latent == "spatial" else nn.Linear
        for part in (network.fully_connected, encoder.mean, encoder.log_variance):
            assert count(part, entrance) == fc_layers
        assert {is_parametrized(m) for m in weighted(encoder) + weighted(network)} == {spectral == "all"}
        (logits.sum() + log_variance.sum()).backward()
        for name, parameter in [*encoder.named_parameters(), *network.named_parameters()]:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


def test_the_widths_of_a_residual_decoder() -> None:
    decoder = Decoder(config(channels=6, decoder="residual"))
    convolutions = [block.main for block in decoder.convolutions if isinstance(block, ResidualBlock)]
    pairs = [[layer.in_channels for layer in main if isinstance(layer, nn.Conv2d)] for main in convolutions]
    assert pairs == [[24, 12], [12, 6], [6, 3]]
    assert decoder.convolutions[-1].in_channels == 3
    assert Decoder(config(channels=1, decoder="residual"))(torch.randn(2, 6)).shape == (2, 3, 32, 32)


def one_place_changed(maps: Tensor, row: int, column: int) -> Tensor:
    changed = maps.clone()
    changed[:, :, row, column] += 1
    return changed


@pytest.mark.parametrize(("row", "column"), [(0, 0), (1, 2), (3, 1)])
@pytest.mark.parametrize("fc_layers", [1, 2])
def test_a_place_of_a_spatial_code_reaches_its_neighbourhood_alone(row: int, column: int, fc_layers: int) -> None:
    """The encoder's head and the decoder's entrance share a layout and reach 3 x 3 positions per layer."""
    torch.manual_seed(1)
    fields = config(latent="spatial", latent_dim=32, fc_layers=fc_layers)
    encoder, decoder = Encoder(fields), Decoder(fields)
    near = torch.zeros(4, 4, dtype=torch.bool)
    near[max(0, row - fc_layers) : row + fc_layers + 1, max(0, column - fc_layers) : column + fc_layers + 1] = True
    for network, channels in ((encoder.mean, 16), (encoder.log_variance, 16), (decoder.fully_connected, 2)):
        maps = torch.randn(3, channels, 4, 4)
        before, after = (
            network(m.flatten(1)).reshape(3, -1, 4, 4) for m in (maps, one_place_changed(maps, row, column))
        )
        changed = (before - after).abs().amax((0, 1)) > 1e-6
        assert torch.equal(changed, near)


def test_a_spatial_code_is_a_map_laid_flat(images: Tensor) -> None:
    torch.manual_seed(2)
    encoder = Encoder(config(latent="spatial", latent_dim=48))
    (head,) = (layer for layer in encoder.mean if isinstance(layer, nn.Conv2d))
    maps = functional.conv2d(encoder.convolutions(images), head.weight, head.bias, padding=1)
    assert maps.shape == (4, 3, 4, 4)
    mean, _ = encoder(images)
    for channel, row, column in ((0, 0, 1), (1, 2, 3), (2, 3, 0)):
        torch.testing.assert_close(mean[:, 16 * channel + 4 * row + column], maps[:, channel, row, column])


@pytest.mark.parametrize("spectral", ["none", "all"])
@pytest.mark.parametrize("decoder", ["plain", "residual"])
@pytest.mark.parametrize("upsampling", ["transposed", "nearest"])
def test_the_last_weight_is_that_of_the_layer_that_makes_the_logits(
    spectral: str, decoder: str, upsampling: str
) -> None:
    network = Decoder(config(spectral_norm=spectral, decoder=decoder, upsampling=upsampling))
    weight = network.last_weight
    (name,) = (name for name, parameter in network.named_parameters() if parameter is weight)
    assert isinstance(weight, nn.Parameter)
    assert ("original" in name) == (spectral == "all")
    colours = weight.shape[1] if decoder == "plain" and upsampling == "transposed" else weight.shape[0]
    assert colours == 3
    # With a zero weight only the bias is left, so the layer is the last one; it receives a gradient.
    logits = network(torch.randn(2, 6))
    (gradient,) = torch.autograd.grad(logits.square().sum(), weight)
    assert gradient.abs().sum() > 0
    if spectral == "none":
        with torch.no_grad():
            weight.zero_()
        bias = network.convolutions[-1].bias[:, None, None].expand(2, 3, 32, 32)
        torch.testing.assert_close(network(torch.randn(2, 6)), bias)


@pytest.mark.parametrize("latent", ["flat", "spatial"])
@pytest.mark.parametrize("decoder", ["plain", "residual"])
@pytest.mark.parametrize("batch_norm", [True, False])
def test_networks_leave_what_they_are_given_alone(latent: str, decoder: str, batch_norm: bool) -> None:
    fields = config(latent=latent, latent_dim=32, decoder=decoder, batch_norm=batch_norm, critic_batch_norm=batch_norm)
    codes, images = torch.randn(2, 32), torch.randn(2, 3, 32, 32)
    maps = torch.randn(2, 4, 5, 5)
    for network, given in (
        (Decoder(fields), codes),
        (Encoder(fields), images),
        (Critic(fields), images),
        (ResidualBlock(4, 3, fields), maps),
    ):
        before = given.clone()
        network(given)
        assert torch.equal(given, before)


def test_the_critic_has_a_width_of_its_own(images: Tensor) -> None:
    wide = Critic(config(critic_channels=7))
    outputs = [layer.out_channels for layer in wide.features if isinstance(layer, nn.Conv2d)]
    assert outputs == [7, 14, 28]
    assert wide(images).shape == (4,)
    encoder, decoder = (kind(config(critic_channels=7)) for kind in (Encoder, Decoder))
    for network, kind in ((encoder, Encoder), (decoder, Decoder)):  # theirs is unchanged
        assert [p.shape for p in network.parameters()] == [p.shape for p in kind(config()).parameters()]
    same = Critic(config(critic_channels=4)), Critic(config())
    assert [p.shape for p in same[0].parameters()] == [p.shape for p in same[1].parameters()]


# Stem and initialisation of the critic.


@pytest.mark.parametrize("depth", [2, 3, 4])
@pytest.mark.parametrize("spectral", ["none", "critic", "all"])
@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize(("channels", "stem"), [(None, 2), (7, 3), (1, 1)])
def test_a_stem_looks_at_full_resolution_half_as_wide(
    depth: int, spectral: str, batch_norm: bool, channels: int | None, stem: int, images: Tensor
) -> None:
    shape = {"conv_layers": depth, "spectral_norm": spectral, "critic_batch_norm": batch_norm}
    fields = config(critic_stem=True, critic_channels=channels, **shape)
    critic, without = Critic(fields), Critic(config(critic_channels=channels, **shape))
    first = critic.features[0]
    assert (first.in_channels, first.out_channels) == (3, stem)
    assert (first.kernel_size, first.stride, first.padding) == ((3, 3), (1, 1), (1, 1))
    assert (first.bias is None) == batch_norm  # BatchNorm would cancel a bias
    assert first(images).shape == (4, stem, 32, 32)
    convolutions = [layer for layer in critic.features if isinstance(layer, nn.Conv2d)]
    widths = [(channels or 4) * 2**layer for layer in range(depth)]
    assert [layer.in_channels for layer in convolutions] == [3, stem, *widths[:-1]]
    assert [layer.out_channels for layer in convolutions] == [stem, *widths]
    assert count(critic, nn.Conv2d) == depth + 2
    assert count(critic.features, nn.LeakyReLU) == depth + 1
    assert count(critic, nn.BatchNorm2d) == batch_norm * (depth + 1)
    assert {is_parametrized(layer) for layer in weighted(critic)} == {spectral != "none"}
    assert critic.features(images).shape == without.features(images).shape
    output = critic(images)
    assert output.shape == (4,)
    output.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in critic.parameters())
    # The encoder has no stem.
    assert count(Encoder(fields), nn.Conv2d) == depth


def spread_of(layer: nn.Conv2d) -> float:
    """Return the standard deviation of the weights, in units of 1 / sqrt(fan_in)."""
    return layer.weight.std().item() * math.sqrt(layer.weight[0].numel())


@pytest.mark.parametrize("stem", [False, True])
def test_a_critic_begins_as_he_has_it_where_it_is_asked_for(stem: bool) -> None:
    torch.manual_seed(3)
    critic = Critic(NetworksConfig(critic_batch_norm=False, critic_stem=stem, critic_channels=48, critic_start="he"))
    convolutions = [layer for layer in critic.features if isinstance(layer, nn.Conv2d)]
    assert len(convolutions) == 3 + stem
    for layer in convolutions:
        # LeakyReLU with slope 0.2 keeps (1 + 0.04) / 2 of the variance; at least 24 * 27 weights: 3 % tolerance.
        assert spread_of(layer) == pytest.approx(math.sqrt(2 / 1.04), rel=0.1)
        assert abs(layer.weight.mean().item()) < 4 * layer.weight.std().item() / math.sqrt(layer.weight.numel())
    # PyTorch's default is uniform within 1 / sqrt(fan_in).
    assert spread_of(critic.last) == pytest.approx(1 / math.sqrt(3), rel=0.1)
    # Features of noise are therefore as large as the noise at any depth.
    noise = torch.randn(16, 3, 32, 32)
    assert critic.features(noise).square().mean().item() == pytest.approx(1, abs=0.5)


@pytest.mark.parametrize(
    "fields", [{}, {"critic_batch_norm": False}, {"critic_batch_norm": False, "spectral_norm": "critic"}]
)
def test_a_critic_begins_as_pytorch_has_it_where_nothing_is_asked_for(fields: dict) -> None:
    torch.manual_seed(3)
    critic = Critic(NetworksConfig(**fields))
    for layer in critic.features:
        if isinstance(layer, nn.Conv2d):
            weight = layer.parametrizations.weight.original if is_parametrized(layer) else layer.weight
            assert weight.std().item() * math.sqrt(weight[0].numel()) == pytest.approx(1 / math.sqrt(3), rel=0.1)
