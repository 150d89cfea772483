"""What a configuration may say: the checks that every command makes before it touches anything."""

from __future__ import annotations

import re
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from pegasus_lightning.data.augmentation import OPERATIONS
from pegasus_lightning.train.settings import IMAGE_SIZE, MAX_CONV_LAYERS, MIN_CONV_LAYERS, parse_duration
from pegasus_lightning.utils.errors import UserError, did_you_mean

SPECTRAL_NORM = ("none", "critic", "all")
UPSAMPLING = ("transposed", "nearest")
DECODERS = ("plain", "residual")
LATENTS = ("flat", "spatial")
STARTS = ("default", "he")
ADVERSARIAL_LOSSES = ("bce", "hinge")
MIX_PAIRS = ("random", "alike")
GUIDES = ("plain", "averaging")  # evaluation.recogniser.ARCHITECTURES, which lies above, but for the one that reports
REAL = "real from fake"  # what a critic tells, where its variant says nothing else
RECONSTRUCTION = ("bce", "mse")
PRECISION = ("auto", "32", "bf16")
RESUME = ("auto", "never", "must")


def check_choice(key: str, value: str, choices: tuple[str, ...]) -> None:
    """The value is one of the choices; else a UserError with the nearest."""
    if value not in choices:
        hint = did_you_mean(value, choices)
        raise UserError(f"{key}={value} is not a choice.{hint} Choose from: {', '.join(choices)}.")


def check_at_least(key: str, value: float | None, low: float) -> None:
    """The value is null or at least `low`; else a UserError."""
    if value is not None and not value >= low:
        raise UserError(f"{key}={value} is out of range: it must be at least {low}.")


def check_at_most(key: str, value: float, high: float) -> None:
    """The value is at most `high`; else a UserError."""
    if not value <= high:
        raise UserError(f"{key}={value} is out of range: it must be at most {high}.")


def check_above(key: str, value: float | None, low: float) -> None:
    """The value is null or finite and above `low`; else a UserError."""
    if value is not None and not low < value < float("inf"):
        raise UserError(f"{key}={value} is out of range: it must be finite and greater than {low}.")


def check_fraction(key: str, value: float, *, low_open: bool = False) -> None:
    """The value lies in [0, 1), or (0, 1); else a UserError."""
    if not 0 <= value < 1 or (low_open and value == 0):
        raise UserError(f"{key}={value} is out of range: it must lie in {'(' if low_open else '['}0, 1).")


def check_not_negative(key: str, value: float) -> None:
    """The value is finite and at least 0; else a UserError."""
    if not 0 <= value < float("inf"):
        raise UserError(f"{key}={value} is out of range: it must be at least 0, and finite.")


def _fixed(node: Any, group: str, field: str) -> None:
    """The field that says which schema a node has is not a setting: the group's preset chooses it."""
    schema = OmegaConf.get_type(node)
    right = getattr(schema, field, node[field])
    if node[field] != right:
        raise UserError(
            f"{group}.{field}={node[field]} does not fit. Choose with {group}=..., not with {group}.{field}."
        )


def _validate_model(model: Any) -> None:
    _fixed(model, "model", "name")
    networks = model.networks
    if not MIN_CONV_LAYERS <= networks.conv_layers <= MAX_CONV_LAYERS:
        raise UserError(
            f"model.networks.conv_layers={networks.conv_layers} is not possible: each convolution halves the side, "
            f"so {IMAGE_SIZE}x{IMAGE_SIZE} images allow {MIN_CONV_LAYERS} to {MAX_CONV_LAYERS} of them."
        )
    for key in ("latent_dim", "channels", "fc_layers", "fc_width", "critic_channels"):
        check_at_least(f"model.networks.{key}", networks[key], 1)
    check_choice("model.networks.spectral_norm", networks.spectral_norm, SPECTRAL_NORM)
    check_choice("model.networks.upsampling", networks.upsampling, UPSAMPLING)
    check_choice("model.networks.decoder", networks.decoder, DECODERS)
    check_choice("model.networks.latent", networks.latent, LATENTS)
    check_choice("model.networks.critic_start", networks.critic_start, STARTS)
    if networks.critic_start == "he" and networks.spectral_norm != "none":
        raise UserError(
            "model.networks.critic_start=he means nothing with model.networks.spectral_norm, which sets the size of "
            "the critic's weights itself: leave one of them out."
        )
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
    told = getattr(OmegaConf.get_type(model), "critic_tells", REAL)
    if told != REAL and (model.adversarial_loss != "bce" or model.adaptive_adversarial):
        raise UserError(
            f"The critic of {model.name} tells {told}, not {REAL}: model.adversarial_loss and "
            f"model.adaptive_adversarial mean nothing with model={model.name}. Leave them out."
        )
    if "mix_pairs" in model:
        _validate_mixes(model)
    for player in ("autoencoder_optimizer", "critic_optimizer"):
        adam = model[player]
        check_not_negative(f"model.{player}.lr", adam.lr)
        check_fraction(f"model.{player}.beta1", adam.beta1)
        check_fraction(f"model.{player}.beta2", adam.beta2)
        check_above(f"model.{player}.clip", adam.clip, 0)
    if model.ema_decay is not None:
        check_fraction("model.ema_decay", model.ema_decay, low_open=True)
    for key, value in model.weights.items():
        check_not_negative(f"model.weights.{key}", value)
        if key == "blend" and value > 1:
            raise UserError(f"model.weights.blend={value} is out of range: it is a share, 0 to 1.")


def _validate_mixes(model: Any) -> None:
    """What model=pegasus has beside."""
    check_choice("model.mix_pairs", model.mix_pairs, MIX_PAIRS)
    ratio = list(model.mix_ratio)
    if len(ratio) != 2 or not 0 <= ratio[0] <= ratio[1] <= 1:
        raise UserError(f"model.mix_ratio={ratio} is not a range within 0 to 1: write two numbers, as in [0.3,0.7].")
    if not abs(model.margin) < float("inf"):
        raise UserError(f"model.margin={model.margin} is out of range: it must be finite.")
    if not any(model.weights[name] for name in ("fake_reconstruction", "fake_mix", "fake_sample")):
        raise UserError(
            "model.weights.fake_reconstruction, fake_mix and fake_sample are all 0: the critic needs fakes."
        )
    if not model.guide.architectures:
        raise UserError("model.guide.architectures is empty: name at least one, such as [plain].")
    for name in model.guide.architectures:
        check_choice("model.guide.architectures", name, GUIDES)
    check_at_least("model.guide.images", model.guide.images, 1)


def validate_data(data: Any) -> None:
    _fixed(data, "data", "source")
    classes = list(data.classes)
    if len(classes) != 2 or len(set(classes)) != 2:
        raise UserError(f"data.classes={classes} must name two different classes, such as data.classes=[horse,bird].")
    check_at_least("data.batch_size", data.batch_size, 2)
    check_fraction("data.validation_fraction", data.validation_fraction, low_open=True)
    check_choice("data.on_device", str(data.on_device).lower(), ("auto", "true", "false"))
    if OmegaConf.is_missing(data, "root"):
        raise UserError(
            "data=image_folder needs the folder that holds your images: "
            "data.root=FOLDER with FOLDER/{train,test}/<class>/*.png (or .jpg, .jpeg) in it."
        )
    for key in ("train_per_class", "test_per_class"):
        if key in data:
            check_at_least(f"data.{key}", data[key], 8)
    if "drawing_seed" in data:
        check_at_least("data.drawing_seed", data.drawing_seed, 0)


def _validate_trainer(trainer: Any) -> None:
    gpus = trainer.gpus
    listed = list(gpus) if isinstance(gpus, (list, tuple, ListConfig)) else [gpus]
    unfit = any(isinstance(index, bool) or not isinstance(index, int) or index < 0 for index in listed)
    if gpus is not None and (unfit or not listed or len(set(listed)) < len(listed)):
        raise UserError(
            f"trainer.gpus={gpus} is not understood. Write trainer.gpus=0 for the CPU, =2 for two GPUs, =[0,3] for "
            "these two, or leave it out for one GPU if there is one."
        )
    for key in ("cpu_processes", "max_epochs", "log_every_n_steps", "validate_every_n_epochs"):
        check_at_least(f"trainer.{key}", trainer[key], 1)
    for key in ("threads", "checkpoint_every_n_epochs"):
        check_at_least(f"trainer.{key}", trainer[key], 1)
    check_choice("trainer.precision", trainer.precision, PRECISION)
    if trainer.max_time is not None:
        parse_duration(trainer.max_time)


def validate(config: DictConfig) -> None:
    """Check ranges and combinations; touches nothing on disk.

    Raises:
        UserError: what is wrong, what was meant, what to type.
    """
    _validate_model(config.model)
    validate_data(config.data)
    _validate_trainer(config.trainer)
    for key in ("images_every_n_epochs", "image_columns", "image_scale"):
        check_at_least(f"callbacks.{key}", config.callbacks[key], 1)
    for key in ("health_warmup_epochs", "health_warmup_batches", "health_min_active_dimensions"):
        check_at_least(f"callbacks.{key}", config.callbacks[key], 0)
    for key in ("health_min_critic_skill", "health_min_variety"):
        check_fraction(f"callbacks.{key}", config.callbacks[key])
    check_choice("resume", config.resume, RESUME)
    if not 0 <= config.seed < 2**63:
        raise UserError(f"seed={config.seed} is out of range: it must be a whole number from 0 up.")
    if not config.runs_dir.strip():
        raise UserError("runs_dir= is empty: name the folder that shall hold the runs, such as runs_dir=runs.")
    for key in ("experiment_name", "run_name"):
        value = config[key]
        if value is not None and (not re.fullmatch(r"[\w.=,+-]{1,60}", value) or not value.strip(".")):
            raise UserError(f"{key}={value!r} names a folder: use 1 to 60 letters, digits and . _ = , + - only.")
