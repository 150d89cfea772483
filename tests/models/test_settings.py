"""Tests of `unread_settings`: what it names changes nothing in a training, and what it leaves out does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from pegasus_lightning.models import MODELS, model_class
from pegasus_lightning.models.settings import unread_settings
from pegasus_lightning.train.settings import TRAIN
from pegasus_lightning.utils.compose import presets

LABELS = torch.tensor([1, 0, 0, 1, 1, 0, 1, 0])
SMALL = ("networks.channels=4", "networks.latent_dim=16")
MIXING = ("learned_mixing=false", "weights.guidance=0", "weights.layout=0", "weights.fake_mix=0")
# Another value of every field that can be unread.
OTHER: dict[str, Any] = {
    "r1": 5.0,
    "r2": 5.0,
    "adversarial_loss": "hinge",
    "critic_augmentation": ["cutout"],
    "critic_optimizer.lr": 0.1,
    "critic_optimizer.beta1": 0.3,
    "critic_optimizer.beta2": 0.4,
    "critic_optimizer.clip": 0.5,
    "networks.critic_batch_norm": False,
    "networks.critic_channels": 6,
    "networks.critic_start": "he",
    "networks.critic_stem": True,
    "networks.critic_layers": 2,
    "networks.critic_patches": True,
    "networks.residual_blocks": 1,
    "weights.critic_real": 3.0,
    "weights.critic_noise": 3.0,
    "networks.spectral_norm": "none",
    "networks.fc_width": 9,
    "networks.upsampling": "nearest",
    "reconstruction": "mse",
    "margin": 3.0,
    "mix_ratio": [0.1, 0.2],
    "mix_pairs": "random",
    "weights.blend": 0.9,
    "weights.stay": 7.0,
    "weights.chimera": 8.0,
    "weights.fake_chimera": 9.0,
    "weights.fake_reconstruction": 3.0,
}
# The scale of the adversarial terms is measured even where no variant of this name takes it, or where it scales zeros.
NOT_TRAINED = {"adaptive_adversarial"}


class Guide:
    """Guide that recognises horses by red and birds by green, with a pixel distance."""

    def to(self, device: torch.device) -> None:
        """Do nothing: the guide has no tensors."""

    def logits(self, images: Tensor, turn: int) -> Tensor:
        return 40 * (images.mean((2, 3))[:, :2] - 0.47)

    def distance(self, images: Tensor, others: Tensor, turn: int) -> Tensor:
        return (images - others).square().sum((1, 2, 3)) / 100


def composed(preset: str, *settings: str) -> Any:
    return TRAIN.compose([f"model={preset}", *(f"model.{text}" for text in (*SMALL, *settings))]).model


@pytest.fixture
def trained(fit: Callable[..., list[Any]]) -> Callable[..., dict[str, Tensor]]:
    """trained(config, {field: value}): the weights after two batches with these fields changed."""

    def train(config: Any, changes: dict[str, Any]) -> dict[str, Tensor]:
        changed = config.copy()
        for name, value in changes.items():
            OmegaConf.update(changed, name, value)
        model = model_class(config.name)(OmegaConf.to_container(changed), seed=1)
        object.__setattr__(model, "guide", Guide())
        images = torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(3)).split(8)
        fit(model, [(batch, LABELS) for batch in images])
        return {name: value.detach().clone() for name, value in model.named_parameters()}

    return train


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("preset", "settings"),
    [
        *((preset, ()) for preset in presets("model") if preset != "two_fc_layers"),  # which leaves nothing unread
        ("vae", ("networks.spectral_norm=critic", "networks.decoder=residual", "weights.reconstruction=0")),
        ("adversarial_vae", ("weights.reconstruction=0", "weights.adversarial=0", "networks.latent=spatial")),
        ("acai", ("weights.critic_regulariser=0",)),
        ("pegasus", ("weights.guidance=0", "learned_mixing=false")),
        ("pegasus", (*MIXING, "networks.batch_norm=false")),
        ("pegasus", ("weights.fake_mix=0", "weights.fake_chimera=0")),
        ("adversarial_vae", ("networks.spectral_norm=critic", "networks.critic_batch_norm=false")),
        ("adversarial_vae", ("adversarial_loss=relativistic",)),
        ("vae_gan", ("adversarial_loss=relativistic",)),
    ],
)
def test_what_is_not_read_changes_nothing(trained: Any, preset: str, settings: tuple[str, ...]) -> None:
    config = composed(preset, *settings)
    unread = [name for name in unread_settings(config) if name not in NOT_TRAINED]
    assert unread
    changes = {name: OTHER[name] for name in unread}
    assert all(OmegaConf.select(config, name) != value for name, value in changes.items())
    assert same(trained(config, {}), trained(config, changes))


@pytest.mark.parametrize(
    ("preset", "settings", "name"),
    [
        ("adversarial_vae", (), "r1"),
        ("vae_gan", (), "critic_augmentation"),
        ("vae_gan", (), "networks.critic_channels"),
        ("adversarial_vae", (), "networks.critic_start"),
        ("vae", ("networks.fc_layers=2",), "networks.fc_width"),
        ("vae", (), "networks.upsampling"),
        ("vae_gan", ("weights.reconstruction=1",), "reconstruction"),
        ("acai", (), "weights.blend"),
        ("vae", (), "networks.residual_blocks"),
        ("vae_gan", (), "networks.critic_layers"),
        ("adversarial_vae", (), "networks.critic_patches"),
        ("acai", (), "r2"),
        ("vae_gan", ("adversarial_loss=relativistic",), "weights.critic_noise"),
        ("pegasus", ("learned_mixing=false",), "margin"),
        ("pegasus", (), "weights.stay"),
        ("pegasus", MIXING, "mix_ratio"),  # BatchNorm of the decoder sees the mixes
        ("pegasus", (), "weights.fake_reconstruction"),
    ],
)
def test_what_is_read_changes_the_training(trained: Any, preset: str, settings: tuple[str, ...], name: str) -> None:
    config = composed(preset, *settings)
    assert name not in unread_settings(config)
    assert not same(trained(config, {}), trained(config, {name: OTHER[name]}))


@pytest.mark.parametrize("preset", ["adversarial_vae", "pegasus"])
def test_the_adaptive_weight_cancels_a_single_adversarial_weight(trained: Any, preset: str) -> None:
    def moved_by_the_weight(config: Any) -> float:
        once, twice = trained(config, {}), trained(config, {"weights.adversarial": 2.0})
        return sum((once[name] - twice[name]).abs().sum().item() for name in once)

    common = ("networks.batch_norm=false", "weights.adversarial=1")
    adaptive, fixed = composed(preset, *common, "adaptive_adversarial=true"), composed(preset, *common)
    assert unread_settings(adaptive)["weights.adversarial"] == "model.adaptive_adversarial=true"
    assert "weights.adversarial" not in unread_settings(fixed)
    assert moved_by_the_weight(fixed) > 20 * moved_by_the_weight(adaptive)  # the rest is rounding
    off = unread_settings(composed(preset, "weights.adversarial=0", "adaptive_adversarial=true"))
    assert "weights.adversarial" not in off and "adaptive_adversarial" in off  # 0 is no scale
    several = unread_settings(composed("vae_gan", "adaptive_adversarial=true"))
    assert not {"weights.adversarial_noise", "weights.adversarial_reconstruction"} & several.keys()


@pytest.mark.parametrize("name", MODELS)
def test_a_variant_without_a_critic_says_so(tiny: Callable[..., Any], name: str) -> None:
    assert (tiny(name).critic is None) == (MODELS[name].Config.critic_tells is None) == (name == "vae")
