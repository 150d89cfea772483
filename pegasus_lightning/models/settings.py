"""Settings of the models: dataclass schemas for Hydra, and their checks. Each variant derives its own schema."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from omegaconf import MISSING, OmegaConf

from pegasus_lightning.data.augmentation import OPERATIONS
from pegasus_lightning.models.schedules import cyclic, fallen, grown
from pegasus_lightning.utils.errors import (
    UserError,
    check_above,
    check_at_least,
    check_at_most,
    check_choice,
    check_fixed,
    check_fraction,
    check_not_negative,
)
from pegasus_lightning.utils.tensors import IMAGE_SIZE

SPECTRAL_NORM = ("none", "critic", "all")
UPSAMPLING = ("transposed", "nearest")
DECODERS = ("plain", "residual")
LATENTS = ("flat", "spatial")
CRITIC_STARTS = ("default", "he")
ADVERSARIAL_LOSSES = ("bce", "hinge", "lsgan", "relativistic", "wgan_gp")
SCHEDULES = ("constant", "linear", "cosine")
BALANCED = ("relativistic", "wgan_gp")  # losses in which images and fakes weigh the same
DEFAULT_TASK = "real from fake"
OF_LESSONS = ("target", "limb", "root", "alpha", "colour", "fake_target")  # weights of pegasus
RECONSTRUCTION = ("bce", "mse", "l1")
MIN_CONV_LAYERS = 2
MAX_CONV_LAYERS = 4  # 32 -> 16 -> 8 -> 4 -> 2: a fifth one would leave a single pixel


@dataclass
class NetworksConfig:
    """The backbone of all variants (`models/networks.py`)."""

    latent_dim: int = 128
    channels: int = 64  # of the first convolution; each further one doubles them
    conv_layers: int = 3  # kernel 4, stride 2: each halves the side of the maps
    fc_layers: int = 1  # of each head, and of the decoder's input
    fc_width: int = 512  # of hidden layers, if fc_layers > 1
    residual_blocks: int = 0  # at the smallest map: after the encoder's convolutions, before the decoder's
    batch_norm: bool = True  # in encoder and decoder
    critic_batch_norm: bool = True
    spectral_norm: str = "none"
    upsampling: str = "transposed"  # transposed or nearest, in the plain decoder
    decoder: str = "plain"  # plain: the encoder reversed; residual: residual blocks with nearest upsampling
    latent: str = "flat"  # flat: a vector; spatial: a map of latent_dim / side^2 channels
    critic_channels: int | None = None  # of the critic's first convolution; null: the encoder's
    critic_layers: int | None = None  # convolutions of the critic; null: the encoder's
    critic_start: str = "default"  # initial weights of the critic: default (PyTorch's) or he (He et al. 2015)
    critic_stem: bool = False  # a 3 x 3 convolution at full resolution, half as wide, before the critic
    critic_patches: bool = False  # the critic also judges patches; VAE/GAN's features are those of the whole


@dataclass
class AdamConfig:
    """Adam of one player, and its learning rate.

    The rate grows linearly for `warmup` batches. Then it stays, falls as sqrt(decay_after / batch) from batch
    `decay_after` on, or falls to 0 at batch `schedule_batches`, as `schedule` says.
    """

    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    clip: float | None = None  # largest gradient norm; null: no clipping
    warmup: int = 0
    decay_after: int | None = None  # null: the rate does not fall so
    schedule: str = "constant"  # constant, linear or cosine: the last two fall to 0
    schedule_batches: int | None = None  # the batch at which they reach 0
    weight_decay: float = 0.0  # decoupled, as in AdamW; of weights, not of biases and normalisations

    def lr_at(self, batch: int) -> float:
        """Return the learning rate of a batch, counted from 0."""
        slower = math.sqrt(min(1.0, self.decay_after / (batch + 1))) if self.decay_after else 1.0
        left = fallen(batch, self.schedule, self.warmup, self.schedule_batches)
        return self.lr * grown(batch + 1, self.warmup) * slower * left

    @property
    def changes(self) -> bool:
        """Whether the rate changes during a training."""
        return bool(self.warmup or self.decay_after or self.schedule != "constant")


@dataclass
class ModelConfig:
    """Fields of every variant. A variant's schema adds the weights of its loss terms."""

    critic_tells: ClassVar[str | None] = DEFAULT_TASK  # None: the variant has no critic
    name: str = MISSING  # the key in models.MODELS
    networks: NetworksConfig = field(default_factory=NetworksConfig)
    autoencoder_optimizer: AdamConfig = field(default_factory=AdamConfig)
    critic_optimizer: AdamConfig = field(default_factory=lambda: AdamConfig(lr=2e-4, beta1=0.5))
    reconstruction: str = "bce"  # pixel term: bce, mse or l1, summed over an image
    sample_codes: bool = True  # false: the code is the posterior mean, as in a plain autoencoder
    # EMA decay of encoder, decoder and mixing weights; the average is used for inference; null: no average
    ema_decay: float | None = None
    ema_warmup: int = 9  # the average reaches back over at most batches / ema_warmup; 0: no warm-up
    kl_warmup: int = 0  # batches over which the KL's weight grows from 0
    kl_cycle: int | None = None  # batches after which it starts again at 0; null: never
    critic_augmentation: list[str] = field(default_factory=list)  # of the critic's inputs: names of OPERATIONS
    adversarial_loss: str = "bce"  # bce (non-saturating), hinge, lsgan, relativistic (real and fake in pairs), wgan_gp
    gradient_penalty: float = 10.0  # lambda of wgan_gp
    critic_starts_at: int = 0  # batches without adversarial terms and without steps of the critic
    critic_ramp: int = 0  # batches over which the adversarial terms grow from 0 then
    critic_steps: int = 1  # steps of the critic a batch
    adaptive_adversarial: bool = False  # scale adversarial terms to the gradient of the other terms
    r1: float = 0.0  # gamma of the critic's gradient penalty on real images
    r2: float = 0.0  # the same on reconstructions
    weights: Any = MISSING

    def kl_factor(self, batch: int) -> float:
        """Return what the weight of the KL is multiplied with at a batch, counted from 0."""
        return cyclic(batch, self.kl_warmup, self.kl_cycle)

    def adversarial_factor(self, batch: int) -> float:
        """Return what the adversarial terms are multiplied with at a batch, counted from 0."""
        if batch < self.critic_starts_at:
            return 0.0
        return grown(batch - self.critic_starts_at + 1, self.critic_ramp)


def validate_model(model: Any) -> None:
    """Check ranges and combinations of a variant's settings. Raise UserError with what to type instead."""
    check_fixed(model, "model", "name")
    networks = model.networks
    if not MIN_CONV_LAYERS <= networks.conv_layers <= MAX_CONV_LAYERS:
        raise UserError(
            f"model.networks.conv_layers={networks.conv_layers} is not possible: each convolution halves the side, "
            f"so {IMAGE_SIZE}x{IMAGE_SIZE} images allow {MIN_CONV_LAYERS} to {MAX_CONV_LAYERS} of them."
        )
    check_at_least("model.networks.critic_layers", networks.critic_layers, MIN_CONV_LAYERS)
    check_at_most("model.networks.critic_layers", networks.critic_layers, MAX_CONV_LAYERS)
    check_not_negative("model.networks.residual_blocks", networks.residual_blocks)
    for key in ("latent_dim", "channels", "fc_layers", "fc_width", "critic_channels"):
        check_at_least(f"model.networks.{key}", networks[key], 1)
    check_choice("model.networks.spectral_norm", networks.spectral_norm, SPECTRAL_NORM)
    check_choice("model.networks.upsampling", networks.upsampling, UPSAMPLING)
    check_choice("model.networks.decoder", networks.decoder, DECODERS)
    check_choice("model.networks.latent", networks.latent, LATENTS)
    check_choice("model.networks.critic_start", networks.critic_start, CRITIC_STARTS)
    _check_spectral_norm(networks, has_critic=_critic_tells(model) is not None)
    places = (IMAGE_SIZE // 2**networks.conv_layers) ** 2
    if networks.latent == "spatial" and networks.latent_dim % places:
        raise UserError(
            f"model.networks.latent_dim={networks.latent_dim} cannot be laid out on {places} places: make it a "
            f"multiple of {places} for model.networks.latent=spatial."
        )
    check_choice("model.reconstruction", model.reconstruction, RECONSTRUCTION)
    check_choice("model.adversarial_loss", model.adversarial_loss, ADVERSARIAL_LOSSES)
    for name in model.critic_augmentation:
        check_choice("model.critic_augmentation", name, tuple(OPERATIONS))
    check_not_negative("model.r1", model.r1)
    check_not_negative("model.r2", model.r2)
    _check_schedules(model)
    if "learned_mixing" in model:
        _validate_mixes(model)
    for player in ("autoencoder_optimizer", "critic_optimizer"):
        adam = model[player]
        check_not_negative(f"model.{player}.lr", adam.lr)
        check_fraction(f"model.{player}.beta1", adam.beta1)
        check_fraction(f"model.{player}.beta2", adam.beta2)
        check_above(f"model.{player}.clip", adam.clip, 0)
        check_not_negative(f"model.{player}.warmup", adam.warmup)
        check_at_least(f"model.{player}.decay_after", adam.decay_after, 1)
        _check_schedule(f"model.{player}", adam)
    if model.ema_decay is not None:
        check_fraction("model.ema_decay", model.ema_decay, low_open=True)
    for key, value in model.weights.items():
        check_not_negative(f"model.weights.{key}", value)
        if key == "blend" and value > 1:
            raise UserError(f"model.weights.blend={value} is out of range: it is a share, 0 to 1.")


def _check_schedules(model: Any) -> None:
    """Check the fields that say when and how much the critic trains, and when the KL and the average warm up."""
    for key in ("ema_warmup", "kl_warmup", "critic_starts_at", "critic_ramp", "gradient_penalty"):
        check_not_negative(f"model.{key}", model[key])
    check_at_least("model.critic_steps", model.critic_steps, 1)
    if model.kl_cycle is not None:
        check_at_least("model.kl_cycle", model.kl_cycle, model.kl_warmup + 1)
    if (
        model.adversarial_loss == "wgan_gp"
        and model.networks.critic_batch_norm
        and _critic_tells(model) == DEFAULT_TASK
    ):
        raise UserError(
            "model.adversarial_loss=wgan_gp penalises the critic's gradient at each image, which BatchNorm mixes with "
            "those of others: add model.networks.critic_batch_norm=false."
        )


def _check_schedule(player: str, adam: Any) -> None:
    check_choice(f"{player}.schedule", adam.schedule, SCHEDULES)
    check_not_negative(f"{player}.weight_decay", adam.weight_decay)
    if adam.schedule == "constant":
        return
    if adam.decay_after is not None:
        raise UserError(
            f"{player}.schedule={adam.schedule} and {player}.decay_after={adam.decay_after} are two ways for one rate "
            f"to fall: leave the first out, or add {player}.decay_after=null."
        )
    if adam.schedule_batches is None:
        raise UserError(
            f"{player}.schedule={adam.schedule} needs the batch at which the rate reaches 0: add "
            f"{player}.schedule_batches=N, where N is trainer.max_epochs times the training images / data.batch_size."
        )
    check_at_least(f"{player}.schedule_batches", adam.schedule_batches, adam.warmup + 1)


def _critic_tells(model: Any) -> str | None:
    """Return what the critic of a typed configuration tells; None: there is no critic."""
    told: str | None = getattr(OmegaConf.get_type(model), "critic_tells", DEFAULT_TASK)
    return told


def _check_spectral_norm(networks: Any, has_critic: bool) -> None:
    """Raise UserError if BatchNorm follows the layers that are spectrally normalised, and so undoes it."""
    places = {"critic_batch_norm": has_critic, "batch_norm": networks.spectral_norm == "all"}
    undoing = [key for key, normalised in places.items() if normalised and networks[key]]
    if networks.spectral_norm != "none" and undoing:
        raise UserError(
            f"model.networks.spectral_norm={networks.spectral_norm} is undone by BatchNorm in the same layers: add "
            f"{' '.join(f'model.networks.{key}=false' for key in undoing)}."
        )


CRITIC_ONLY = (
    *("r1", "r2", "adversarial_loss", "adaptive_adversarial", "critic_augmentation"),
    *("gradient_penalty", "critic_starts_at", "critic_ramp", "critic_steps"),
    *(f"critic_optimizer.{adam.name}" for adam in fields(AdamConfig)),
    *(f"networks.{name}" for name in ("critic_batch_norm", "critic_channels", "critic_start", "critic_stem")),
    *(f"networks.{name}" for name in ("critic_layers", "critic_patches")),
)


def unread_settings(model: Any) -> dict[str, str]:
    """Return the fields (below `model.`) that do not affect the trained networks, each with the reason.

    A reason ends the sentence "... means nothing with ...". `model` is a valid typed configuration. The scale of
    adversarial terms cancels under `adaptive_adversarial` up to its limits.
    """
    networks, weights = model.networks, model.weights
    tells = _critic_tells(model)
    no_critic = f"model={model.name}, which has no critic"
    other_critic = f"model={model.name}, whose critic tells {tells}, not {DEFAULT_TASK}"
    normalised = f"model.networks.spectral_norm={networks.spectral_norm}, which sets the size of the critic's weights"
    adversarial = [name for name in weights if str(name).startswith("adversarial")]
    in_use = [name for name in adversarial if weights[name]]
    one_scale = in_use if model.adaptive_adversarial and len(in_use) == 1 else []
    rules: list[tuple[Any, str, Iterable[str]]] = [
        (tells is None, no_critic, CRITIC_ONLY),
        (tells is None and networks.spectral_norm == "critic", no_critic, ["networks.spectral_norm"]),
        (tells != DEFAULT_TASK, other_critic, ["adversarial_loss", "adaptive_adversarial", "gradient_penalty"]),
        (model.adversarial_loss != "wgan_gp", f"model.adversarial_loss={model.adversarial_loss}", ["gradient_penalty"]),
        (model.ema_decay is None, "model.ema_decay=null", ["ema_warmup"]),
        (not model.kl_warmup, "model.kl_warmup=0", ["kl_cycle"]),
        (not weights.get("kl", 1), "model.weights.kl=0", ["kl_warmup", "kl_cycle"]),
        *(
            (model[player].schedule == "constant", f"model.{player}.schedule=constant", [f"{player}.schedule_batches"])
            for player in ("autoencoder_optimizer", "critic_optimizer")
        ),
        (networks.spectral_norm != "none", normalised, ["networks.critic_start"]),
        (
            tells is not None and model.adversarial_loss in BALANCED,
            f"model.adversarial_loss={model.adversarial_loss}, whose images have the weights of their fakes",
            ["weights.critic_real"],
        ),
        (networks.fc_layers == 1, "model.networks.fc_layers=1", ["networks.fc_width"]),
        (networks.decoder == "residual", "model.networks.decoder=residual", ["networks.upsampling"]),
        (not weights.get("reconstruction", 1), "model.weights.reconstruction=0", ["reconstruction"]),
        (  # with BatchNorm, the critic's statistics see the blends nevertheless
            not weights.get("critic_regulariser", 1) and not networks.critic_batch_norm,
            "model.weights.critic_regulariser=0",
            ["weights.blend"],
        ),
        (adversarial and not in_use, "adversarial weights of 0", ["adaptive_adversarial", "critic_ramp"]),
        (one_scale, "model.adaptive_adversarial=true", [f"weights.{name}" for name in one_scale]),
    ]
    if "learned_mixing" in model:
        rules += _unread_of_mixes(model)
    unread: dict[str, str] = {}
    for applies, reason, names in rules:
        for name in names if applies else ():
            unread.setdefault(name, reason)
    return unread


def _unread_of_mixes(model: Any) -> list[tuple[Any, str, Iterable[str]]]:
    """Return the rules of `unread_settings` for the fields that model=pegasus adds."""
    weights = model.weights
    taught = ["lessons", "lesson_share", "target_share", *(f"weights.{name}" for name in OF_LESSONS)]
    kinds = ["reconstruction", "mix", *(["target"] if model.learned_mixing else [])]
    fakes = [f"fake_{name}" for name in kinds if weights[f"fake_{name}"]]
    return [
        (not model.learned_mixing, "model.learned_mixing=false", taught),
        (model.learned_mixing, "model.learned_mixing=true", ["mix_ratio"]),
        (not weights.target, "model.weights.target=0", ["weights.limb"]),
        (not weights.moves, "model.weights.moves=0", ["mirror_moves", "move_share"]),
        (len(fakes) == 1, "one kind of fakes, whose share is always 1", [f"weights.{name}" for name in fakes]),
    ]


def _validate_mixes(model: Any) -> None:
    """Check the fields that model=pegasus adds."""
    ratio = list(model.mix_ratio)
    if len(ratio) != 2 or not 0 <= ratio[0] <= ratio[1] <= 1:
        raise UserError(f"model.mix_ratio={ratio} is not a range within 0 to 1: write two numbers, as in [0.3,0.7].")
    check_at_least("model.lessons", model.lessons, 1)
    for name in ("lesson_share", "target_share", "mix_share", "move_share"):
        check_fraction(f"model.{name}", model[name], low_open=True)
    check_at_most("model.mix_share", model.mix_share, 0.5)  # of two classes, each is about half of a batch
    if model.learned_mixing and model.target_share > model.lesson_share:
        raise UserError(
            f"model.target_share={model.target_share} is more than model.lesson_share={model.lesson_share}: targets "
            "are those of lessons. Make it smaller, or the other larger."
        )
    if model.weights.moves and model.networks.latent != "spatial":
        raise UserError("model.weights.moves needs codes with places: add model.networks.latent=spatial.")
    if not any(model.weights[f"fake_{name}"] for name in ("reconstruction", "mix")):
        raise UserError("model.weights.fake_reconstruction and fake_mix are both 0: the critic needs fakes.")
