"""Build a run's model, callbacks and Lightning's Trainer, call `Trainer.fit`, and measure the final figures."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Timer
from pytorch_lightning.plugins.environments import LightningEnvironment
from pytorch_lightning.strategies import DDPStrategy
from torchinfo import summary

from pegasus_lightning.data.module import ImageDataModule
from pegasus_lightning.models import model_class
from pegasus_lightning.models.two_player import TwoPlayerModel
from pegasus_lightning.runs.checkpoints import LIMITS, AtomicCheckpointIO, SaveLast, read_to_continue
from pegasus_lightning.runs.scorecards import HPARAMS
from pegasus_lightning.train.callbacks.best import BestValidation
from pegasus_lightning.train.callbacks.health import Health
from pegasus_lightning.train.callbacks.images import ImageGrids
from pegasus_lightning.train.callbacks.progress import ProgressLine
from pegasus_lightning.train.callbacks.run_logger import RunLogger
from pegasus_lightning.train.callbacks.run_status import RunStatus
from pegasus_lightning.train.callbacks.stall import StallWatch
from pegasus_lightning.train.callbacks.tensorboard import charts
from pegasus_lightning.train.dry_run import Stopwatch
from pegasus_lightning.train.hparams import hparams
from pegasus_lightning.train.settings import MONITORS, Config, TrainerConfig, chosen_loggers, parse_duration
from pegasus_lightning.utils.devices import (
    Devices,
    is_first_process,
    lightning_precision,
)
from pegasus_lightning.utils.errors import Interrupted
from pegasus_lightning.utils.tensors import IMAGE_SIZE

log = logging.getLogger(__name__)


class ReplicaStrategy(DDPStrategy):
    """Data parallelism without DistributedDataParallel, whose hooks cannot tell two players apart.

    The model averages the gradients of the player that steps, so replicas stay equal. BatchNorm normalises by each
    process's share of the batch, and the first process's running statistics are saved.
    """

    def configure_ddp(self) -> None:
        pass


def build_model(values: dict[str, Any]) -> TwoPlayerModel:
    """Return the untrained model of a plain configuration, in channels_last layout."""
    keywords = {"seed": values["seed"], "classes": values["data"]["classes"]}
    model = model_class(values["model"]["name"])(values["model"], **keywords)
    return model.to(memory_format=torch.channels_last)


def build_trainer(settings: TrainerConfig, devices: Devices, **arguments: Any) -> pl.Trainer:
    """Return Lightning's Trainer for the configuration. `arguments` add callbacks and a logger."""
    # Under Slurm too, processes start here, and the launcher requeues jobs, not Lightning.
    plugins: list[Any] = [AtomicCheckpointIO(), LightningEnvironment()]
    return pl.Trainer(
        accelerator=devices.accelerator,
        devices=devices.devices,
        strategy=ReplicaStrategy() if devices.count > 1 else "auto",
        precision=lightning_precision(settings.precision, devices.accelerator),  # type: ignore[arg-type]
        max_epochs=settings.max_epochs,
        log_every_n_steps=settings.log_every_n_steps,
        check_val_every_n_epoch=settings.validate_every_n_epochs,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        plugins=plugins,
        **arguments,
    )


def _callbacks(
    settings: Config,
    data: ImageDataModule,
    folder: Path,
    best: BestValidation,
    save_last: SaveLast,
    run_status: RunStatus,
) -> list[pl.Callback]:
    wanted = settings.callbacks
    callbacks: list[pl.Callback] = [best, save_last]  # the best one first: it may say that this epoch is the last
    if settings.trainer.max_time is not None:
        callbacks.append(Timer(duration=parse_duration(settings.trainer.max_time), interval="epoch"))
    if wanted.images:
        look = {"columns": wanted.image_columns, "scale": wanted.image_scale}
        every = wanted.images_every_n_epochs
        callbacks.append(ImageGrids(folder / "images", data.validation, every_n_epochs=every, **look))
    if wanted.health:
        limits: dict[str, Any] = {
            "min_critic_skill": wanted.health_min_critic_skill,
            "min_active_dimensions": wanted.health_min_active_dimensions,
            "min_variety": wanted.health_min_variety,
            "warmup_epochs": wanted.health_warmup_epochs,
            "warmup_batches": wanted.health_warmup_batches,
        }
        callbacks.append(Health(data.validation, run_status.report, **limits))
    if wanted.progress_bar:
        callbacks.append(ProgressLine())
    return [*callbacks, run_status]  # last, so that a save at the end of a batch includes what the others counted


def fit(
    settings: Config,
    values: dict[str, Any],
    data: ImageDataModule,
    devices: Devices,
    folder: Path,
    checkpoint: Path | None,
    run_status: RunStatus,
    prepare: Callable[[TwoPlayerModel], None],
    stopwatch: Stopwatch | None,
) -> tuple[TwoPlayerModel, str | None]:
    """Build everything, fit, and measure the final figures. Signal handlers must be installed.

    Return the model, and why `trainer.patience` ended the training, if it did.
    """
    model = build_model(values)
    prepare(model)
    resumed, logged = (None, None) if checkpoint is None else read_to_continue(checkpoint, model)
    logger = RunLogger(folder, resumed, logged, chosen_loggers(settings.logger))
    wanted = settings.trainer
    best = BestValidation(wanted.monitor, highest=MONITORS[wanted.monitor], patience=wanted.patience)
    save_last = SaveLast(folder / "checkpoints", wanted.checkpoint_every_n_epochs, run_status.check, lambda: best.batch)
    run_status.save = save_last.save
    run_status.report(limits={key: getattr(wanted, key) for key in LIMITS})
    callbacks = _callbacks(settings, data, folder, best, save_last, run_status)
    watch = None
    if settings.trainer.stall_after is not None and is_first_process():
        watch = StallWatch(parse_duration(settings.trainer.stall_after).total_seconds(), folder, run_status.report)
        callbacks.insert(0, watch)
    if stopwatch is not None:
        callbacks.insert(0, stopwatch)
    trainer = build_trainer(settings.trainer, devices, callbacks=callbacks, logger=logger)

    log.info("Networks:\n%s", describe_networks(model))
    log.info("Precision %s, PyTorch %s.", trainer.precision, torch.__version__)
    if settings.trainer.compile:
        # A graph with donated buffers can be differentiated once only; the adaptive weight and the learned mixing
        # differentiate one graph several times.
        torch._functorch.config.donated_buffer = False
        for network in (model.encoder, model.decoder, model.critic, model.mixer):
            if network is not None:
                network.compile()
    final = [f"final/{name}" for name in _final_names(model)]
    evaluated = [f"evaluation/{name}" for name in HPARAMS]  # `evaluate` fills them
    shown, first = hparams(values)
    layout = charts(critic=model.critic is not None, posterior=model.config.sample_codes)
    # TensorBoard shows the first few by default.
    logger.open_hparams(shown, [final[0], *evaluated, *final[1:]], first, layout)
    began = time.monotonic()
    try:
        with watch.watching() if watch is not None else contextlib.nullcontext():
            run_status.check()
            trainer.fit(model, datamodule=data, ckpt_path=checkpoint, weights_only=True)
            run_status.sync_signal(trainer)
            run_status.check()
            log.info("Trained for %.1f s in this session.", time.monotonic() - began)
            logger.begin_closing()
            split = "test" if settings.trainer.evaluate_test else "validation"
            if split == "test":
                trainer.test(model, datamodule=data, verbose=False)
            elif model.validated_at != model.batches_done:
                trainer.validate(model, datamodule=data, verbose=False)
            run_status.sync_signal(trainer)
            run_status.check()
            measured = {f"final/{name}": model.latest[f"{split}/{name}"] for name in _final_names(model)}
            model.latest |= measured
            logger.close_hparams(measured, model.batches_done)
    except BaseException as error:
        # Lightning turns a KeyboardInterrupt, and a SIGTERM between its loops, into exits of its own.
        if run_status.received is not None and not isinstance(error, Interrupted):
            raise Interrupted(run_status.received) from error
        raise
    finally:
        logger.close()
    return model, best.told(data.train_batches_per_epoch) if best.gave_up else None


def _final_names(model: TwoPlayerModel) -> list[str]:
    names = ["psnr", "excess_bce"] + (["kl", "active_dimensions"] if model.config.sample_codes else [])
    return names + (["critic_real", "critic_fake"] if model.critic is not None else [])


def describe_networks(model: TwoPlayerModel) -> str:
    """Return a table for each network: layers, output shapes, parameters."""
    sizes = {"encoder": (1, 3, IMAGE_SIZE, IMAGE_SIZE), "decoder": (1, model.config.networks.latent_dim)}
    tables = []
    for name in ("encoder", "decoder", "critic"):
        network = getattr(model, name)
        if network is not None:
            size = sizes.get(name, sizes["encoder"])
            columns = ("output_size", "num_params", "mult_adds")
            tables.append(f"{name}\n{summary(network, input_size=size, col_names=columns, verbose=0, mode='eval')}")
    return "\n\n".join(tables)
