"""From a configuration to a trained run: objects are made, `Trainer.fit` runs, the run folder says how it went."""

from __future__ import annotations

import logging
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import Timer
from pytorch_lightning.plugins.environments import LightningEnvironment
from pytorch_lightning.strategies import DDPStrategy
from torchinfo import summary

from pegasus_lightning.data.module import ImageDataModule
from pegasus_lightning.models import model_class
from pegasus_lightning.models.two_player import TwoPlayerModel
from pegasus_lightning.recognisers.store import StoredRecogniser
from pegasus_lightning.runs.checkpoints import (
    AtomicCheckpointIO,
    SaveLast,
    checkpoint_to_resume,
    is_finished,
    latest_checkpoint,
    read_checkpoint,
)
from pegasus_lightning.runs.folder import LOCK, Status, log_to, run_folder, stop_logging
from pegasus_lightning.runs.scorecards import HPARAMS
from pegasus_lightning.train.callbacks.health import Health
from pegasus_lightning.train.callbacks.images import ImageGrids
from pegasus_lightning.train.callbacks.progress import ProgressLine, numbers_that_matter
from pegasus_lightning.train.callbacks.run_logger import RunLogger
from pegasus_lightning.train.callbacks.run_status import RunStatus
from pegasus_lightning.train.guide import check_guide, give_guide, guide_for
from pegasus_lightning.train.settings import parse_duration
from pegasus_lightning.utils.compose import plain
from pegasus_lightning.utils.devices import Devices, choose_devices, hide_gpus, is_first_process, lightning_precision
from pegasus_lightning.utils.errors import Interrupted, NonFiniteLoss, UserError
from pegasus_lightning.utils.files import clear_leftovers, write_text
from pegasus_lightning.utils.tensors import IMAGE_SIZE

log = logging.getLogger(__name__)


class ReplicaStrategy(DDPStrategy):
    """Processes with equal replicas, which the model keeps equal by averaging the gradients of the player that
    steps; DistributedDataParallel's hooks cannot tell two players apart, so nothing is wrapped. BatchNorm
    normalises by each process's own share of the batch; the first process's running statistics are saved."""

    def configure_ddp(self) -> None:
        pass


def train(config: DictConfig, readable_name: str) -> Path:
    """Train (or continue, or leave alone) the run that a validated configuration describes; returns its folder.

    Raises:
        UserError: no such device or data, or a used folder against `resume`. Nothing was created then.
        Interrupted: a signal came; everything is saved.
    """
    settings = plain(config)
    devices = choose_devices(settings["trainer"]["gpus"], settings["trainer"]["cpu_processes"])
    if settings["data"]["batch_size"] % devices.count:
        raise UserError(
            f"data.batch_size={settings['data']['batch_size']} cannot be shared evenly by {devices.count} processes: "
            f"make it a multiple of {devices.count}."
        )
    folder = run_folder(settings, readable_name)
    if is_first_process() and is_finished(folder, settings):
        more = "trainer.max_epochs" if settings["trainer"]["max_time"] is None else "trainer.max_time or max_epochs"
        _say(f"Already trained: {folder} (resume=auto leaves a finished run alone; raise {more} to go on).")
        return folder
    checkpoint = checkpoint_to_resume(folder, settings)
    if devices.accelerator == "cpu":
        hide_gpus()
        if settings["trainer"]["threads"]:
            torch.set_num_threads(settings["trainer"]["threads"])
    # Before the folder: missing data creates nothing, and a test split that cannot be read costs no training.
    data = ImageDataModule(config.data, settings["seed"], with_test=settings["trainer"]["evaluate_test"])
    guide = guide_for(settings, config.data, devices.first)
    check_guide(guide, checkpoint)
    run_status = RunStatus()
    if not is_first_process():
        run_status.install_handlers()
        _fit(settings, data, devices, folder, checkpoint, run_status, guide)
        return folder

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK, timeout=1)  # a sweep may be looking whether it is free
    try:
        lock.acquire()
    except Timeout:
        raise UserError(f"{folder} is being trained by another process at this moment.") from None
    for place in (folder, folder / "images"):
        clear_leftovers(place)
    handler = log_to(folder / "train.log")
    run_status.install_handlers()  # from here on the folder says how it ended
    status = Status.begin(folder, settings)
    run_status.report = status.update
    try:
        if settings["resume"] != "never":
            checkpoint = latest_checkpoint(folder)  # once more: another process may have trained until a moment ago
        write_text(folder / "config.yaml", OmegaConf.to_yaml(config, resolve=True))
        if checkpoint is None:  # what an attempt left that ended before its first checkpoint
            (folder / "metrics.jsonl").unlink(missing_ok=True)
            shutil.rmtree(folder / "tensorboard", ignore_errors=True)
        _say(f"Training {settings['model']['name']} on {len(data.train)} images, on {devices.sentence}.")
        _say(f"Run folder: {folder}")
        if checkpoint is not None:
            epochs, rest = divmod(read_checkpoint(checkpoint)["batches_done"], data.train_batches_per_epoch)
            _say(f"Continuing from {checkpoint.name}: {epochs} epochs{f' and {rest} batches' if rest else ''} done.")
        model = _fit(settings, data, devices, folder, checkpoint, run_status, guide)
        epochs = model.batches_done // data.train_batches_per_epoch
        status.update(status="finished", exit_code=0, epochs=epochs, batches=model.batches_done, metrics=model.latest)
        _say(_closing_words(folder, model))
    except (Interrupted, KeyboardInterrupt) as error:
        interrupt = error if isinstance(error, Interrupted) else Interrupted(signal.SIGINT)
        status.update(status="interrupted", exit_code=interrupt.exit_code, reason=str(interrupt))
        _say(f"\nThe run was {interrupt}. Run the same command again to continue from its last checkpoint.")
        raise interrupt from None
    except BaseException as error:
        log.exception("The run failed.")
        reason = str(error) if isinstance(error, NonFiniteLoss) else f"{type(error).__name__}: {error}"
        status.update(status="failed", exit_code=2 if isinstance(error, UserError) else 1, reason=reason)
        raise
    finally:
        run_status.restore_handlers()
        stop_logging(handler)
        lock.release()
    return folder


def _say(text: str) -> None:
    """To the person at the terminal, and to the log file where there is one."""
    print(text, flush=True)
    for line in text.strip().splitlines():
        log.info(line)


def _closing_words(folder: Path, model: TwoPlayerModel) -> str:
    pictures = sorted((folder / "images").glob("*.png"), key=lambda path: path.stat().st_mtime)
    lines = [
        f"Done: {numbers_that_matter(model.latest)}",
        f"  pictures    {folder / 'images'}" + (f" (newest: {pictures[-1].name})" if pictures else ""),
        f"  log         {folder / 'train.log'}",
        f"  checkpoint  {folder / 'checkpoints' / 'last.ckpt'}",
        f"  TensorBoard tensorboard --logdir {folder.parent.parent}",
    ]
    return "\n".join(lines)


def build_model(settings: dict[str, Any]) -> TwoPlayerModel:
    """The untrained model of a plain configuration, channels_last."""
    keywords = {"seed": settings["seed"], "classes": settings["data"]["classes"]}
    model = model_class(settings["model"]["name"])(settings["model"], **keywords)
    return model.to(memory_format=torch.channels_last)


def build_trainer(settings: dict[str, Any], devices: Devices, **arguments: Any) -> pl.Trainer:
    """Lightning's Trainer as the configuration wants it; `arguments` add callbacks and logger."""
    trainer = settings["trainer"]
    # Under Slurm, too, processes are started here and nothing is requeued by Lightning: that is the launcher's to do.
    plugins: list[Any] = [AtomicCheckpointIO(), LightningEnvironment()]
    return pl.Trainer(
        accelerator=devices.accelerator,
        devices=devices.devices,
        strategy=ReplicaStrategy() if devices.count > 1 else "auto",
        precision=lightning_precision(trainer["precision"], devices.accelerator),  # type: ignore[arg-type]
        max_epochs=trainer["max_epochs"],
        log_every_n_steps=trainer["log_every_n_steps"],
        check_val_every_n_epoch=trainer["validate_every_n_epochs"],
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        plugins=plugins,
        **arguments,
    )


def _fit(
    settings: dict[str, Any],
    data: ImageDataModule,
    devices: Devices,
    folder: Path,
    checkpoint: Path | None,
    run_status: RunStatus,
    guide: StoredRecogniser | None,
) -> TwoPlayerModel:
    """Build and fit; `run_status` is listening."""
    callbacks_config, trainer_config = settings["callbacks"], settings["trainer"]
    model = build_model(settings)
    if guide is not None:
        give_guide(model, guide)
    resumed_at = None if checkpoint is None else read_checkpoint(checkpoint)["batches_done"]
    logger = RunLogger(folder, resumed_at)
    save_last = SaveLast(folder / "checkpoints", trainer_config["checkpoint_every_n_epochs"], run_status.check)
    run_status.save = save_last.save
    limits = {key: trainer_config[key] for key in ("max_epochs", "max_time")}
    run_status.report(limits=limits)
    callbacks: list[pl.Callback] = [save_last]
    if trainer_config["max_time"] is not None:
        callbacks.append(Timer(duration=parse_duration(trainer_config["max_time"]), interval="epoch"))
    if callbacks_config["images"]:
        look = {
            "every_n_epochs": callbacks_config["images_every_n_epochs"],
            "columns": callbacks_config["image_columns"],
            "scale": callbacks_config["image_scale"],
        }
        callbacks.append(ImageGrids(folder / "images", data.validation, **look))
    if callbacks_config["health"]:
        names = ("min_critic_skill", "min_active_dimensions", "min_variety", "warmup_epochs", "warmup_batches")
        limits_of_health = {name: callbacks_config[f"health_{name}"] for name in names}
        callbacks.append(Health(data.validation, run_status.report, **limits_of_health))
    if callbacks_config["progress_bar"]:
        callbacks.append(ProgressLine())
    callbacks.append(run_status)  # the last to see a batch's end: what it saves holds what the others counted
    trainer = build_trainer(settings, devices, callbacks=callbacks, logger=logger)

    log.info("Networks:\n%s", describe_networks(model))
    log.info("Precision %s, PyTorch %s.", trainer.precision, torch.__version__)
    if trainer_config["compile"]:
        for network in (model.encoder, model.decoder, model.critic, model.mixer):
            if network is not None:
                network.compile()
    final = [f"final/{name}" for name in _final_names(model)]
    judged = [f"evaluation/{name}" for name in HPARAMS]  # `evaluate` fills them
    values = _flat({"model": settings["model"], "data": settings["data"], "seed": settings["seed"]})
    logger.open_hparams(values, [final[0], *judged, *final[1:]])  # TensorBoard shows the first few unasked
    began = time.monotonic()
    try:
        run_status.check()
        trainer.fit(model, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        run_status.sync_signal(trainer)
        run_status.check()
        log.info("Trained for %.1f s in this session.", time.monotonic() - began)
        logger.begin_closing()
        split = "test" if trainer_config["evaluate_test"] else "validation"
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


def _flat(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} as {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def describe_networks(model: TwoPlayerModel) -> str:
    """A table a network: layers, output shapes, parameters."""
    sizes = {"encoder": (1, 3, IMAGE_SIZE, IMAGE_SIZE), "decoder": (1, model.config.networks.latent_dim)}
    tables = []
    for name in ("encoder", "decoder", "critic"):
        network = getattr(model, name)
        if network is not None:
            size = sizes.get(name, sizes["encoder"])
            columns = ("output_size", "num_params", "mult_adds")
            tables.append(f"{name}\n{summary(network, input_size=size, col_names=columns, verbose=0, mode='eval')}")
    return "\n\n".join(tables)
