"""Train one run: build the model, data and callbacks, call `Trainer.fit`, and keep the run folder up to date."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import Timer
from pytorch_lightning.plugins.environments import LightningEnvironment
from pytorch_lightning.strategies import DDPStrategy
from torchinfo import summary

from pegasus_lightning.data.lessons import Lessons, make_lessons
from pegasus_lightning.data.module import ImageDataModule
from pegasus_lightning.models import model_class
from pegasus_lightning.models.two_player import TwoPlayerModel
from pegasus_lightning.runs.checkpoints import (
    AtomicCheckpointIO,
    SaveLast,
    checkpoint_to_resume,
    is_finished,
    latest_checkpoint,
    load_model,
    read_checkpoint,
    read_to_continue,
)
from pegasus_lightning.runs.folder import is_locked, machines_of, read_status, run_folder, run_session, say
from pegasus_lightning.runs.images import check_images, images_now, recorded_images
from pegasus_lightning.runs.scorecards import HPARAMS
from pegasus_lightning.train.callbacks.health import Health
from pegasus_lightning.train.callbacks.images import ImageGrids
from pegasus_lightning.train.callbacks.progress import ProgressLine, numbers_that_matter
from pegasus_lightning.train.callbacks.run_logger import RunLogger, clear
from pegasus_lightning.train.callbacks.run_status import RunStatus
from pegasus_lightning.train.callbacks.stall import JOB, StallWatch
from pegasus_lightning.train.callbacks.tensorboard import charts
from pegasus_lightning.train.dry_run import Stopwatch, shortened
from pegasus_lightning.train.hparams import hparams
from pegasus_lightning.train.init_from import first_weights
from pegasus_lightning.train.settings import Config, TrainerConfig, chosen_loggers, parse_duration
from pegasus_lightning.utils.compose import plain, typed
from pegasus_lightning.utils.devices import (
    Devices,
    choose_devices,
    hide_gpus,
    is_first_process,
    lightning_precision,
    machine,
    set_threads,
    starting_processes,
)
from pegasus_lightning.utils.errors import Interrupted, UserError
from pegasus_lightning.utils.files import write_text
from pegasus_lightning.utils.tensors import IMAGE_SIZE

log = logging.getLogger(__name__)


class ReplicaStrategy(DDPStrategy):
    """Data parallelism without DistributedDataParallel, whose hooks cannot tell two players apart.

    The model averages the gradients of the player that steps, so replicas stay equal. BatchNorm normalises by each
    process's share of the batch, and the first process's running statistics are saved.
    """

    def configure_ddp(self) -> None:
        pass


def train(config: DictConfig, readable_name: str) -> Path:
    """Train, continue or leave alone the run of a validated configuration. Return its folder.

    Raises:
        UserError: the device or the data is missing, or `resume` does not fit the folder. Nothing was created.
        Interrupted: a signal came. Everything is saved.
    """
    planned, config = typed(config, Config), shortened(config)
    settings, values = typed(config, Config), plain(config)
    trainer = settings.trainer
    devices = choose_devices(trainer.gpus, trainer.cpu_processes)
    if settings.data.batch_size % devices.count:
        raise UserError(
            f"data.batch_size={settings.data.batch_size} cannot be shared evenly by {devices.count} processes: "
            f"make it a multiple of {devices.count}."
        )
    folder = run_folder(values, readable_name)
    if trainer.dry_run and is_first_process():
        if is_locked(folder):
            raise UserError("The same dry run is running already, in another process: wait for its end.")
        shutil.rmtree(folder, ignore_errors=True)  # of a dry run that was killed
    if is_first_process() and is_finished(folder, values):
        check_images(folder, settings.data, recorded_images(folder, None), images_now(settings.data))
        more = "trainer.max_epochs" if trainer.max_time is None else "trainer.max_time or max_epochs"
        reason = (read_status(folder) or {}).get("reason")
        short = f" until {reason}" if reason else ""
        say(f"Already trained{short}: {folder} (resume=auto leaves a finished run alone; raise {more} to go on).")
        return folder
    checkpoint, load = checkpoint_to_resume(folder, values), ""
    if devices.accelerator == "cpu":
        hide_gpus()
        former = machines_of(read_status(folder))[-1:] if checkpoint is not None else []
        if devices.count == 1 or trainer.threads:
            load = set_threads(trainer.threads, former[0].get("threads") if former else None)
        devices = choose_devices(trainer.gpus, trainer.cpu_processes)  # again: its sentence names the threads
    # Load before creating the folder: missing data creates nothing, and an unreadable test split costs no training.
    record = recorded_images(folder, checkpoint)
    if checkpoint is not None:
        check_images(folder, settings.data, record, images_now(settings.data))
    by_position = checkpoint is not None and (record or {}).get("validation") != "content"
    data = ImageDataModule(settings.data, settings.seed, with_test=trainer.evaluate_test, by_position=by_position)
    lessons = _lessons(settings, data)
    stopwatch = Stopwatch(data) if trainer.dry_run else None
    first = None
    if settings.init_from is not None and checkpoint is None:
        with torch.device("meta"):
            shapes = build_model(values)
        first = first_weights(settings.init_from, shapes)

    def prepare(model: TwoPlayerModel) -> None:
        if lessons is not None:
            object.__setattr__(model, "lessons", lessons)
        if first is not None:
            first.give(model)

    here = machine(devices.accelerator, devices.devices, lightning_precision(trainer.precision, devices.accelerator))
    run_status = RunStatus()
    with run_status.handling_signals():
        if not is_first_process():
            _fit(settings, values, data, devices, folder, checkpoint, run_status, prepare, stopwatch)
            return folder
        former = machines_of(read_status(folder))
        with run_session(folder, values, images=data.record) as status:
            run_status.report = status.update
            if settings.resume != "never":
                checkpoint = latest_checkpoint(folder)  # again: another process may have trained until a moment ago
            before = [] if checkpoint is None else former or [{"cpu": "unknown"}]
            status.update(machines=before if here in before[-1:] else [*before, here])
            write_text(folder / "config.yaml", OmegaConf.to_yaml(config, resolve=True))
            if checkpoint is None:  # remove what an attempt left that ended before its first checkpoint
                clear(folder)
            say(f"Training {settings.model.name} on {len(data.train)} images, on {devices.sentence}.")
            if load:
                say(load)
            if first is not None:
                say(first.sentence)
            say(f"Run folder: {folder}")
            if checkpoint is not None:
                epochs, rest = divmod(read_checkpoint(checkpoint)["batches_done"], data.train_batches_per_epoch)
                say(f"Continuing from {checkpoint.name}: {epochs} epochs{f' and {rest} batches' if rest else ''} done.")
                if former and former[-1] != here:
                    say(_change_of_machine(former[-1], here))
            with starting_processes():
                model = _fit(settings, values, data, devices, folder, checkpoint, run_status, prepare, stopwatch)
            done = {"epochs": model.batches_done // data.train_batches_per_epoch, "batches": model.batches_done}
            ended = {"status": "finished", "exit_code": 0} | done
            outcome = "Done"
            if done["epochs"] < trainer.max_epochs:
                ended["reason"] = (
                    f"trainer.max_time={trainer.max_time}: {done['epochs']} of {trainer.max_epochs} epochs"
                )
                outcome = (
                    f"Stopped after {done['epochs']} of {trainer.max_epochs} epochs (trainer.max_time="
                    f"{trainer.max_time}). The same command with more time goes on"
                )
            if stopwatch is not None:
                load_model(folder)
                figures = stopwatch.figures(planned, folder)
                ended["dry_run"] = figures
            status.update(**ended, metrics=model.latest, weights=model.term_weights)
            if stopwatch is not None:
                say(stopwatch.sentence(figures, planned))
            else:
                say(_closing_message(outcome, folder, model))
    own = os.environ.get(JOB) != str(os.getpid())  # a sweep reads the status of its jobs, and removes their folders
    if trainer.dry_run and own:
        shutil.rmtree(folder)
        with contextlib.suppress(OSError):  # others are in it
            folder.parent.rmdir()
    return folder


def _change_of_machine(before: dict[str, Any], here: dict[str, Any]) -> str:
    changes = [f"{key} {here[key]} (before: {before.get(key)})" for key in here if here[key] != before.get(key)]
    return (
        f"The run continues under other conditions: {', '.join(changes)}. From here on the last bits of its "
        "results may be others."
    )


def _closing_message(first: str, folder: Path, model: TwoPlayerModel) -> str:
    pictures = sorted((folder / "images").glob("*.png"), key=lambda path: path.stat().st_mtime)
    lines = [
        f"{first}: {numbers_that_matter(model.latest, model.term_weights)}",
        f"  pictures    {folder / 'images'}" + (f" (newest: {pictures[-1].name})" if pictures else ""),
        f"  log         {folder / 'train.log'}",
        f"  checkpoint  {folder / 'checkpoints' / 'last.ckpt'}",
        f"  TensorBoard tensorboard --logdir {folder.parent.parent}",
    ]
    return "\n".join(lines)


def _lessons(settings: Config, data: ImageDataModule) -> Lessons | None:
    """Return the lessons in mixing, out of the training images; None: the model learns no mixing."""
    if not getattr(settings.model, "learned_mixing", False):
        return None
    try:
        return make_lessons(data.train, settings.model.lessons, settings.seed)
    except UserError as error:
        raise UserError(f"{error} Without them, say model.learned_mixing=false.") from error


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
    settings: Config, data: ImageDataModule, folder: Path, save_last: SaveLast, run_status: RunStatus
) -> list[pl.Callback]:
    wanted = settings.callbacks
    callbacks: list[pl.Callback] = [save_last]
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


def _fit(
    settings: Config,
    values: dict[str, Any],
    data: ImageDataModule,
    devices: Devices,
    folder: Path,
    checkpoint: Path | None,
    run_status: RunStatus,
    prepare: Callable[[TwoPlayerModel], None],
    stopwatch: Stopwatch | None,
) -> TwoPlayerModel:
    """Build everything, fit, and measure the final figures. Signal handlers must be installed."""
    model = build_model(values)
    prepare(model)
    resumed, logged = (None, None) if checkpoint is None else read_to_continue(checkpoint, model)
    logger = RunLogger(folder, resumed, logged, chosen_loggers(settings.logger))
    save_last = SaveLast(folder / "checkpoints", settings.trainer.checkpoint_every_n_epochs, run_status.check)
    run_status.save = save_last.save
    run_status.report(limits={"max_epochs": settings.trainer.max_epochs, "max_time": settings.trainer.max_time})
    callbacks = _callbacks(settings, data, folder, save_last, run_status)
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
    return model


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
