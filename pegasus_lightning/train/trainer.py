"""Train one run: choose devices, load the data, continue or begin, and keep the run folder up to date."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from pegasus_lightning.data.lessons import Lessons, make_lessons
from pegasus_lightning.data.module import ImageDataModule
from pegasus_lightning.models.two_player import TwoPlayerModel
from pegasus_lightning.runs.checkpoints import (
    checkpoint_to_resume,
    is_finished,
    latest_checkpoint,
    load_model,
    read_checkpoint,
)
from pegasus_lightning.runs.folder import is_locked, machines_of, read_status, run_folder, run_session, say
from pegasus_lightning.runs.images import check_images, images_now, recorded_images
from pegasus_lightning.train.callbacks.progress import numbers_that_matter
from pegasus_lightning.train.callbacks.run_logger import clear
from pegasus_lightning.train.callbacks.run_status import RunStatus
from pegasus_lightning.train.callbacks.stall import JOB
from pegasus_lightning.train.dry_run import Stopwatch, shortened
from pegasus_lightning.train.fit import build_model, fit
from pegasus_lightning.train.init_from import first_weights
from pegasus_lightning.train.settings import Config, idle_players
from pegasus_lightning.utils.compose import plain, typed
from pegasus_lightning.utils.devices import (
    choose_devices,
    hide_gpus,
    is_first_process,
    lightning_precision,
    machine,
    set_threads,
    starting_processes,
)
from pegasus_lightning.utils.errors import UserError
from pegasus_lightning.utils.files import write_text

log = logging.getLogger(__name__)


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
        status_now = read_status(folder) or {}
        trained = status_now.get("epochs", 0) >= trainer.max_epochs
        more = "trainer.max_epochs" if trained else status_now.get("stopped_by") or "trainer.max_epochs"
        if trainer.max_time is not None and more != "trainer.patience":
            more = "trainer.max_time or max_epochs"
        reason = status_now.get("reason")
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
            fit(settings, values, data, devices, folder, checkpoint, run_status, prepare, stopwatch)
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
            for note in [load, *idle_players(settings.model, trainer.max_epochs * data.train_batches_per_epoch)]:
                if note:
                    say(note)
            if first is not None:
                say(first.sentence)
            say(f"Run folder: {folder}")
            if checkpoint is not None:
                epochs, rest = divmod(read_checkpoint(checkpoint)["batches_done"], data.train_batches_per_epoch)
                say(f"Continuing from {checkpoint.name}: {epochs} epochs{f' and {rest} batches' if rest else ''} done.")
                if former and former[-1] != here:
                    say(_change_of_machine(former[-1], here))
            with starting_processes():
                model, no_better = fit(
                    settings, values, data, devices, folder, checkpoint, run_status, prepare, stopwatch
                )
            done = {"epochs": model.batches_done // data.train_batches_per_epoch, "batches": model.batches_done}
            ended = {"status": "finished", "exit_code": 0} | done
            outcome = "Done"
            if done["epochs"] < trainer.max_epochs:
                by, more, why = "trainer.max_time", "time", ""
                if no_better is not None:
                    by, more, why = "trainer.patience", "patience", f", {no_better}"
                limit = f"{by}={OmegaConf.select(config, by)}"
                of_all = f"{done['epochs']} of {trainer.max_epochs} epochs"
                ended |= {"stopped_by": by, "reason": f"{limit}: {of_all}{why}"}
                outcome = f"Stopped after {of_all} ({limit}{why}). The same command with more {more} goes on"
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
