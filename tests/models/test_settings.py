"""Tests of `unread_settings`: what it names changes nothing in a training, and what it leaves out does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from pegasus_lightning.data.lessons import Lessons
from pegasus_lightning.models import MODELS, model_class
from pegasus_lightning.models.settings import unread_settings
from pegasus_lightning.train.settings import TRAIN
from pegasus_lightning.utils.compose import presets

LABELS = torch.tensor([1, 0, 0, 1, 1, 0, 1, 0])
SMALL = ("networks.channels=4", "networks.latent_dim=16")
CODES = ("networks.conv_layers=2", "networks.latent_dim=64")
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
    "critic_optimizer.warmup": 3,
    "critic_optimizer.decay_after": 1,
    "critic_optimizer.schedule": "linear",
    "critic_optimizer.schedule_batches": 5,
    "critic_optimizer.weight_decay": 0.5,
    "autoencoder_optimizer.warmup": 3,
    "autoencoder_optimizer.schedule_batches": 5,
    "gradient_penalty": 3.0,
    "critic_starts_at": 1,
    "critic_ramp": 5,
    "critic_steps": 3,
    "ema_warmup": 0,
    "kl_warmup": 3,
    "kl_cycle": 1,
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
    "mix_ratio": [0.1, 0.2],
    "lessons": 77,
    "lesson_share": 0.5,
    "target_share": 0.5,
    "move_share": 0.5,
    "mirror_moves": True,
    "weights.blend": 0.9,
    "weights.target": 7.0,
    "weights.root": 8.0,
    "weights.alpha": 5.0,
    "weights.colour": 3.0,
    "weights.limb": 4.0,
    "weights.fake_target": 8.0,
    "weights.fake_reconstruction": 3.0,
}
# The scale of the adversarial terms is measured even where no variant of this name takes it, or where it scales zeros.
NOT_TRAINED = {"adaptive_adversarial"}


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
        source = torch.Generator().manual_seed(4)
        sizes = [(5, depth, 32, 32) for depth in (3, 3, 3, 1)]
        noise = [torch.randint(256, size, generator=source, dtype=torch.uint8) for size in sizes]
        roots = torch.randint(32, (5, 2), generator=source)
        object.__setattr__(model, "lessons", Lessons(*noise, roots))
        images = torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(3)).split(8)
        fit(model, [(batch, LABELS) for batch in images])
        return {name: value.detach().clone() for name, value in model.named_parameters()}

    return train


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("preset", "settings"),
    [
        *(
            (preset, CODES if preset == "pegasus" else ()) for preset in presets("model") if preset != "two_fc_layers"
        ),  # which leaves nothing unread
        ("vae", ("networks.spectral_norm=critic", "networks.decoder=residual", "weights.reconstruction=0")),
        ("adversarial_vae", ("weights.reconstruction=0", "weights.adversarial=0", "networks.latent=spatial")),
        ("acai", ("weights.critic_regulariser=0",)),
        ("pegasus", (*CODES, "learned_mixing=false")),
        ("pegasus", (*CODES, "learned_mixing=false", "weights.fake_mix=0")),
        ("pegasus", (*CODES, "weights.fake_mix=0", "weights.fake_target=0")),
        ("pegasus", (*CODES, "weights.target=0")),
        ("adversarial_vae", ("networks.spectral_norm=critic", "networks.critic_batch_norm=false")),
        ("adversarial_vae", ("adversarial_loss=relativistic",)),
        ("vae_gan", ("adversarial_loss=relativistic",)),
        ("vae", ("weights.kl=0",)),
        ("vae_gan", ("adversarial_loss=wgan_gp", "networks.critic_batch_norm=false")),
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
        ("pegasus", (*CODES, "learned_mixing=false"), "mix_ratio"),
        ("pegasus", CODES, "weights.limb"),
        ("pegasus", CODES, "weights.alpha"),
        ("adversarial_vae", (), "autoencoder_optimizer.warmup"),
        ("adversarial_vae", (), "critic_optimizer.decay_after"),
        ("pegasus", (*CODES, "weights.moves=1"), "mirror_moves"),
        ("pegasus", CODES, "weights.fake_reconstruction"),
        ("adversarial_vae", ("adversarial_loss=wgan_gp", "networks.critic_batch_norm=false"), "gradient_penalty"),
        ("vae_gan", (), "critic_starts_at"),
        ("acai", (), "critic_ramp"),
        ("pegasus", CODES, "critic_steps"),
        ("acai", (), "critic_optimizer.weight_decay"),
        ("vae", (), "kl_warmup"),
        ("adversarial_vae", ("kl_warmup=1",), "kl_cycle"),
        (
            "vae",
            ("autoencoder_optimizer.schedule=cosine", "autoencoder_optimizer.schedule_batches=2"),
            "autoencoder_optimizer.schedule_batches",
        ),
    ],
)
def test_what_is_read_changes_the_training(trained: Any, preset: str, settings: tuple[str, ...], name: str) -> None:
    config = composed(preset, *settings)
    assert name not in unread_settings(config)
    assert not same(trained(config, {}), trained(config, {name: OTHER[name]}))


def test_the_adaptive_weight_cancels_a_single_adversarial_weight(trained: Any) -> None:
    preset = "adversarial_vae"

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
