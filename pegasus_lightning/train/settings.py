"""What can be configured: dataclass schemas for Hydra (`validation.py` has the ranges and combinations).

The schemas give every field its type and default; `conf/` gives the presets. Each model has its own
schema beside its code (`pegasus_lightning/models/<name>.py`), derived from `ModelConfig` here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from omegaconf import MISSING, OmegaConf

from pegasus_lightning.utils.errors import UserError

IMAGE_SIZE = 32
MIN_CONV_LAYERS = 2
MAX_CONV_LAYERS = 4  # 32 -> 16 -> 8 -> 4 -> 2: a fifth convolution would leave a single pixel


@dataclass
class NetworksConfig:
    """The backbone that all variants share (`networks.py`)."""

    latent_dim: int = 128
    channels: int = 64  # of the first convolution; doubled by each further one
    conv_layers: int = 3  # kernel 4, stride 2: each halves the side
    fc_layers: int = 1  # of each head, and of the decoder's entrance
    fc_width: int = 512  # of the hidden layers, where fc_layers > 1
    batch_norm: bool = True  # in encoder and decoder
    critic_batch_norm: bool = True
    spectral_norm: str = "none"
    upsampling: str = "transposed"  # of the plain decoder
    decoder: str = "plain"  # plain: the encoder reversed; residual: blocks with nearest-neighbour upsampling
    latent: str = "flat"  # spatial: the code is laid out like the last feature map, latent_dim / side^2 channels of it
    critic_channels: int | None = None  # of the critic's first convolution; null: as the encoder's
    critic_start: str = "default"  # of the critic's weights: default (PyTorch's) or he (features as large as the image)
    critic_stem: bool = False  # begin the critic with a 3 x 3 convolution at full resolution, half as wide


@dataclass
class AdamConfig:
    """One player's Adam; `clip` is the largest gradient norm allowed (null: no clipping)."""

    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    clip: float | None = None


@dataclass
class ModelConfig:
    """What every variant has; a variant's own schema adds the weights of its loss terms."""

    name: str = MISSING  # the key in models.MODELS
    networks: NetworksConfig = field(default_factory=NetworksConfig)
    autoencoder_optimizer: AdamConfig = field(default_factory=AdamConfig)
    critic_optimizer: AdamConfig = field(default_factory=lambda: AdamConfig(lr=2e-4, beta1=0.5))
    reconstruction: str = "bce"  # the pixel term: bce or mse, summed over the pixels of an image
    sample_codes: bool = True  # false: the code is the posterior's mean (a plain autoencoder)
    ema_decay: float | None = None  # of encoder, decoder and mixing, for all but training (and chimeras); null: none
    critic_augmentation: list[str] = field(default_factory=list)  # of all that the critic sees: augmentation.OPERATIONS
    adversarial_loss: str = "bce"  # bce (the source document's, non-saturating) or hinge
    adaptive_adversarial: bool = False  # scale the adversarial terms to the other terms' gradient
    r1: float = 0.0  # gamma of the critic's gradient penalty on real images
    weights: Any = MISSING


@dataclass
class DataConfig:
    """Where the images come from, and how batches are cut."""

    source: str = MISSING
    classes: list[str] = field(default_factory=lambda: ["horse", "bird"])
    batch_size: int = 64  # over all processes together
    flip: bool = True  # horizontal flips, one coin an image a batch
    validation_fraction: float = 0.05  # of the train split, held out; the same images for every seed
    on_device: str = "auto"  # hold the images on the training device: auto (when they fit), true, false


@dataclass
class CIFAR10Config(DataConfig):
    source: str = "cifar10"
    root: str = "datasets/cifar10"
    download: bool = True


@dataclass
class ImageFolderConfig(DataConfig):
    source: str = "image_folder"
    root: str = MISSING
    cache: str | None = None  # folder for decoded images; null: the user's cache folder


@dataclass
class SilhouettesConfig(DataConfig):
    source: str = "silhouettes"
    train_per_class: int = 2000
    test_per_class: int = 400
    drawing_seed: int = 0


@dataclass
class LinesConfig(DataConfig):
    source: str = "lines"
    classes: list[str] = field(default_factory=lambda: ["up", "down"])  # halves of the full circle of angles
    train_per_class: int = 5000
    test_per_class: int = 1000
    drawing_seed: int = 0


DATA_SCHEMAS: dict[str, type[DataConfig]] = {
    schema.source: schema for schema in (CIFAR10Config, ImageFolderConfig, SilhouettesConfig, LinesConfig)
}


@dataclass
class TrainerConfig:
    """How long, on what, how often to log and save."""

    gpus: Any = None  # null: one GPU if there is one, else the CPU; 0: the CPU; N: that many; or a list
    cpu_processes: int = 1  # on the CPU only: data-parallel processes (gloo)
    max_epochs: int = 1000
    max_time: str | None = None  # total training time, such as 90s, 20m, 12h, 2d; the epoch is finished
    precision: str = "auto"
    compile: bool = False
    threads: int | None = None  # CPU threads a process; null: PyTorch's choice
    log_every_n_steps: int = 50
    validate_every_n_epochs: int = 1
    checkpoint_every_n_epochs: int = 1
    evaluate_test: bool = True  # measure the test split once, when training is done


@dataclass
class CallbacksConfig:
    """What watches the training."""

    progress_bar: bool = True
    images: bool = True
    images_every_n_epochs: int = 10
    image_columns: int = 8
    image_scale: int = 3
    health: bool = True  # verdicts on the training (`callbacks/health.py`)
    health_warmup_epochs: int = 10  # no verdict before so many epochs,
    health_warmup_batches: int = 700  # nor before so many batches
    health_min_critic_skill: float = 0.03  # less is a dominated critic; 0: as good as blind, 1: without error
    health_min_active_dimensions: int = 2  # fewer are a collapsed posterior
    health_min_variety: float = 0.1  # less are collapsed modes; as a share of the distance between the data's images


@dataclass
class Config:
    """The whole configuration of a run."""

    model: Any = MISSING
    data: Any = MISSING
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    callbacks: CallbacksConfig = field(default_factory=CallbacksConfig)
    seed: int = 0
    experiment_name: str = "single"  # the folder under runs_dir; an experiment preset sets it
    run_name: str | None = None  # the readable part of the run folder's name; null: model and overrides
    runs_dir: str = "runs"
    resume: str = "auto"  # auto: continue if there is something to; never: refuse a used folder; must


def plain(config: Any) -> dict[str, Any]:
    """A config as nested plain dicts and lists, interpolations resolved, nothing missing allowed."""
    container = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def parse_duration(text: str) -> timedelta:
    """`90s`, `20m`, `12h`, `2d` (or a bare number of seconds) as a timedelta."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", str(text).strip())
    if match is None:
        raise UserError(f"trainer.max_time={text} is not a duration. Write for example 90s, 20m, 12h or 2d.")
    unit = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]
    return timedelta(seconds=float(match[1]) * unit)
