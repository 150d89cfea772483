"""Settings of a training: dataclass schemas for Hydra, and their checks. Models and data have their own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from importlib.util import find_spec
from typing import Any

from omegaconf import MISSING, DictConfig, ListConfig

from pegasus_lightning.data.settings import DATA_SCHEMAS, validate_data
from pegasus_lightning.models import MODELS
from pegasus_lightning.models.settings import unread_settings, validate_model
from pegasus_lightning.runs.folder import DRY_RUNS
from pegasus_lightning.utils.compose import GROUPS, Program
from pegasus_lightning.utils.errors import (
    UserError,
    check_above,
    check_at_least,
    check_choice,
    check_fraction,
    check_seed,
)

PRECISION = ("auto", "32", "bf16")
RESUME = ("auto", "never", "must")
MONITORS = {"validation/psnr": True, "validation/excess_bce": False}  # whether the largest value is the best
LOGGERS = ("tensorboard", "csv", "wandb", "mlflow", "trackio")
LOGGER_PACKAGES = ("wandb", "mlflow", "trackio")  # extras of the same names


@dataclass
class TrainerConfig:
    """Length of the training, devices, and intervals of logging and saving."""

    gpus: Any = None  # null: one GPU if available, else the CPU; 0: the CPU; N: N GPUs; or a list of indices
    cpu_processes: int = 1  # data-parallel processes on the CPU (gloo)
    max_epochs: int = 1000
    max_time: str | None = None  # total training time, such as 90s, 20m, 12h, 2d; checked after each epoch
    patience: int | None = None  # end after this many validations without a better one; null: never
    monitor: str = "validation/psnr"  # what `patience` and best.ckpt go by; or validation/excess_bce
    stall_after: str | None = "30m"  # after this time without a batch, say where the run hangs; in a sweep it fails
    precision: str = "auto"  # auto (bf16 where the hardware has it), 32, bf16
    compile: bool = False
    threads: int | None = None  # CPU threads a process; null: PyTorch's default
    log_every_n_steps: int = 50
    validate_every_n_epochs: int = 1
    checkpoint_every_n_epochs: int = 1
    evaluate_test: bool = True  # measure the test split once, after training
    dry_run: bool = False  # try a few batches of everything, keep nothing, and say what the whole run takes


@dataclass
class CallbacksConfig:
    """Progress, pictures and health checks during training."""

    progress_bar: bool = True
    images: bool = True
    images_every_n_epochs: int = 10
    image_columns: int = 8
    image_scale: int = 3
    health: bool = True  # health verdicts (`train/callbacks/health.py`)
    health_warmup_epochs: int = 10  # no verdict before this many epochs,
    health_warmup_batches: int = 700  # nor before this many batches
    health_min_critic_skill: float = 0.03  # below: dominated critic; 0: as good as a constant output, 1: no error
    health_min_active_dimensions: int = 2  # below: collapsed posterior
    health_min_variety: float = 0.1  # below: collapsed modes; distance of decoded images over that of the data


@dataclass
class Config:
    """The configuration of a run. `model` and `data` have the schemas of the chosen presets."""

    model: Any = MISSING
    data: Any = MISSING
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    callbacks: CallbacksConfig = field(default_factory=CallbacksConfig)
    logger: Any = "tensorboard"  # tensorboard, csv, wandb, mlflow, trackio, or a list of these; [] for none
    seed: int = 0
    experiment_name: str = "single"  # folder under runs_dir; experiment presets set it
    run_name: str | None = None  # readable part of the run folder's name; null: model and overrides
    runs_dir: str = "runs"
    init_from: str | None = None  # a trained run whose weights a new run begins with; its data may be other
    resume: str = "auto"  # auto: continue if there is a checkpoint; never: refuse a used folder; must


def parse_duration(text: str, key: str = "max_time") -> timedelta:
    """Return `90s`, `20m`, `12h`, `2d` or a bare number of seconds as a timedelta. Raise UserError otherwise."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", str(text).strip())
    if match is None:
        raise UserError(f"trainer.{key}={text} is not a duration. Write for example 90s, 20m, 12h or 2d.")
    unit = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]
    return timedelta(seconds=float(match[1]) * unit)


def about(seconds: float) -> str:
    """Return a rounded length of time: `40 s`, `4 min`, `2 h 10 min`, `3 d 4 h`."""
    if seconds < 89.5:
        return f"{round(seconds)} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def _schemas() -> dict[str, type]:
    models = {f"schema/model/{name}": model.Config for name, model in MODELS.items()}
    return {"schema/config": Config} | models | {f"schema/data/{name}": data for name, data in DATA_SCHEMAS.items()}


def _unread(config: DictConfig, data: Sequence[str]) -> dict[str, str]:
    return {f"model.{key}": reason for key, reason in unread_settings(config.model).items()}


# What users of other tools type, and what does it here.
HABITS = {
    "ckpt_path": "The same command again continues a run; resume=must insists on it.",
    "tags": "Name a run with run_name=..., or a folder of runs with experiment_name=... .",
    "trainer.accelerator": "trainer.gpus=1 takes a GPU, trainer.gpus=0 the CPU.",
    "trainer.devices": "trainer.gpus=2 takes two GPUs, trainer.gpus=0 the CPU.",
    "trainer.limit_train_batches": "trainer=quick is a short training.",
    "trainer.limit_val_batches": "trainer=quick is a short training.",
    "trainer.fast_dev_run": "trainer.dry_run=true tries a few batches of everything.",
    "trainer.min_epochs": "trainer.max_epochs is the number of epochs.",
    "callbacks.early_stopping": "trainer.patience=10 ends a run after 10 validations without a better one.",
    "callbacks.model_checkpoint": "Every run keeps its last and its best checkpoint; see trainer.monitor.",
}
TRAIN = Program("python -m pegasus_lightning", "config", GROUPS, _schemas, _unread, HABITS)


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
    check_choice("trainer.monitor", trainer.monitor, tuple(MONITORS))
    check_at_least("trainer.patience", trainer.patience, 1)
    if trainer.patience is not None and trainer.validate_every_n_epochs > trainer.max_epochs:
        every = f"trainer.validate_every_n_epochs={trainer.validate_every_n_epochs}"
        raise UserError(f"trainer.patience counts validations, and {every} allows none in {trainer.max_epochs} epochs.")
    for key in ("max_time", "stall_after"):
        if trainer[key] is not None:
            check_above(f"trainer.{key}", parse_duration(trainer[key], key).total_seconds(), 0)


def idle_players(model: Any, batches: int) -> list[str]:
    """Return a sentence for each player that stops learning before the end of a training of so many batches.

    Its rate is then 0; or it is a critic that starts after the end.
    """
    players = ["autoencoder", *(["critic"] if model.critic_tells else [])]
    rates = {player: getattr(model, f"{player}_optimizer") for player in players}
    late = []
    if model.critic_tells and model.critic_starts_at >= batches:
        late = [f"The critic never trains: model.critic_starts_at={model.critic_starts_at} of {batches} batches."]
    return late + [
        f"The {player} stops learning at batch {adam.schedule_batches} of {batches}, where its rate reaches 0 "
        f"(model.{player}_optimizer.schedule_batches)."
        for player, adam in rates.items()
        if adam.schedule != "constant" and adam.schedule_batches < batches
    ]


def chosen_loggers(logger: Any) -> tuple[str, ...]:
    """Return the loggers in `logger`, a name or a list of names. Raise UserError if one is unknown or not installed."""
    names = tuple(dict.fromkeys(logger)) if isinstance(logger, (list, tuple, ListConfig)) else (logger,)
    for name in names:
        check_choice("logger", str(name), LOGGERS)
        spec = find_spec(str(name)) if name in LOGGER_PACKAGES else None
        if name in LOGGER_PACKAGES and (spec is None or spec.origin is None):  # a folder of that name has no origin
            raise UserError(
                f"logger={name} needs a package that is not installed. In a checkout: pip install -e '.[{name}]'."
            )
    return names


def validate(config: DictConfig) -> None:
    """Check ranges and combinations, nothing on disk. Raise UserError with what is wrong and what to type instead."""
    validate_model(config.model)
    validate_data(config.data)
    _validate_trainer(config.trainer)
    for key in ("images_every_n_epochs", "image_columns", "image_scale"):
        check_at_least(f"callbacks.{key}", config.callbacks[key], 1)
    for key in ("health_warmup_epochs", "health_warmup_batches", "health_min_active_dimensions"):
        check_at_least(f"callbacks.{key}", config.callbacks[key], 0)
    for key in ("health_min_critic_skill", "health_min_variety"):
        check_fraction(f"callbacks.{key}", config.callbacks[key])
    check_choice("resume", config.resume, RESUME)
    chosen_loggers(config.logger)
    check_seed(config.seed)
    if not config.runs_dir.strip():
        raise UserError("runs_dir= is empty: name the folder for the runs, such as runs_dir=runs.")
    if config.experiment_name == DRY_RUNS and not config.trainer.dry_run:
        raise UserError(
            f"experiment_name={DRY_RUNS} is the folder of dry runs, which are removed: choose another name."
        )
    for key in ("experiment_name", "run_name"):
        value = config[key]
        if value is not None and (not re.fullmatch(r"[\w.=,+-]{1,60}", value) or not value.strip(".")):
            raise UserError(f"{key}={value!r} names a folder: use 1 to 60 letters, digits and . _ = , + - only.")
