"""Which runs a command line stands for, and what is wrong with them, before anything is created."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict

from pegasus_lightning.runs.folder import NOT_IDENTITY, run_folder
from pegasus_lightning.train.settings import TRAIN, validate
from pegasus_lightning.utils.compose import plain
from pegasus_lightning.utils.devices import choose_devices
from pegasus_lightning.utils.errors import UserError, check_above, check_at_least, check_choice

POOL = "hydra_plugins.pegasus_pool.launcher.PoolLauncher"
HERE = ("PoolLauncher", "BasicLauncher", "LocalLauncher")  # launchers whose runs use this machine's devices and files
# What Hydra may build for itself: its sweeper, and launchers that are installed.
HYDRAS_OWN = ("hydra._internal.core_plugins.", "hydra_plugins.")
FIGURES = ("psnr", "excess_bce", "kl", "active_dimensions", "critic_real", "critic_fake")
RANKS = tuple(f"{split}/{name}" for split in ("final", "validation", "test") for name in FIGURES)


@dataclass(frozen=True)
class Planned:
    """A run to be: what was typed for it, its configuration, its folder, and `hydra.launcher`."""

    overrides: list[str]
    config: DictConfig
    folder: Path
    launcher: DictConfig


def jobs_of(overrides: Sequence[str], multirun: bool) -> list[list[str]]:
    """The overrides of each job: one list, or with `multirun` one a combination of the sweep."""
    if not multirun:
        return [list(overrides)]
    parser = OverridesParser.create()
    parsed = parser.parse_overrides(list(overrides))
    single = [text for text, override in zip(overrides, parsed, strict=True) if not override.is_sweep_override()]
    swept = TRAIN.compose(single, with_hydra=True).hydra.sweeper.params or {}
    # As Hydra's own sweeper has it: what is typed takes the place of what the preset sweeps over.
    everything = parser.parse_overrides([*(f"{key}={value}" for key, value in swept.items()), *overrides])
    return BasicSweeper.split_arguments(everything, None)[0]


def readable_name(config: DictConfig, choices: dict[str, Any], overrides: Sequence[str]) -> str:
    """What a person calls the run: its `run_name`, or the model's preset and what was overridden in model and data."""
    if config.run_name:
        return config.run_name
    unsaid = {"data.root", *(f"data.{key}" for key in NOT_IDENTITY["data"])}
    details = [o for o in overrides if o.startswith(("model.", "data.")) and o.partition("=")[0] not in unsaid]
    data = [] if choices.get("data") == "cifar10" else [str(choices.get("data"))]
    shown = [f"{key.rpartition('.')[2]}={value}" for key, _, value in (detail.partition("=") for detail in details)]
    return ",".join([str(choices.get("model", config.model.name)), *data, *shown])


def plan(composed: DictConfig, overrides: Sequence[str]) -> Planned:
    """The run that a composed configuration, with its `hydra` section, stands for; validated.

    Raises:
        UserError: what is wrong with it.
    """
    config = composed.copy()
    _check_hydra(config.hydra)
    choices, launcher = dict(config.hydra.runtime.choices), config.hydra.launcher
    with open_dict(config):
        del config["hydra"]
    validate(config)
    own = [text for text in overrides if not text.startswith("hydra")]
    return Planned(list(overrides), config, run_folder(plain(config), readable_name(config, choices, own)), launcher)


def check_jobs(overrides: Sequence[str], multirun: bool) -> None:
    """Compose and validate every job, so that a mistake in the last is told before the first starts.

    Raises:
        UserError: or one of Hydra's errors, see `composing.explain`.
    """
    TRAIN.check_overrides(overrides)
    if not multirun:
        _check_single(overrides)
    runs = [plan(TRAIN.compose(job, with_hydra=True), job) for job in jobs_of(overrides, multirun)]
    if multirun:
        _check_sweep(runs)
        if not str(runs[0].launcher.get("_target_")).endswith(HERE):
            return  # where they will run there may be other GPUs and files
    for run in runs:
        choose_devices(plain(run.config.trainer)["gpus"])
        if run.config.data.source == "image_folder":
            from pegasus_lightning.data.image_folder import class_folders

            data = run.config.data
            class_folders(Path(data.root).expanduser(), list(data.classes), "train")


def _check_hydra(settings: DictConfig) -> None:
    """A preset may choose a launcher; it cannot make Hydra import and build anything else."""
    targets = {text for text in _targets(OmegaConf.to_container(settings)) if not text.startswith(HYDRAS_OWN)}
    if targets or settings.get("callbacks"):
        named = ", ".join(sorted(targets)) or "hydra.callbacks"
        raise UserError(f"The configuration would have Hydra build {named}: that is refused.")
    for path in settings.searchpath:
        if not str(path).startswith("file://"):
            raise UserError(f"hydra.searchpath={path} is refused: presets come from a folder, --config-dir=FOLDER.")


def _targets(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "_target_":
                yield str(value)
            else:
                yield from _targets(value)
    elif isinstance(node, list):
        for value in node:
            yield from _targets(value)


def _check_single(overrides: Sequence[str]) -> None:
    """A preset that is a sweep stands for one run only when all that it sweeps over is chosen."""
    swept = TRAIN.compose(overrides, with_hydra=True).hydra.sweeper.params or {}
    chosen = {text.partition("=")[0] for text in overrides}
    missing = [str(key) for key in swept if key not in chosen]
    if missing:
        raise UserError(
            f"This experiment is a sweep over {', '.join(map(str, swept))}: add -m to run it all, or choose "
            f"{' and '.join(f'{key}=...' for key in missing)}."
        )


def _check_sweep(runs: Sequence[Planned]) -> None:
    _check_launcher(runs[0].launcher, uses_gpus(runs))
    first: dict[Path, Planned] = {}
    for run in runs:
        gpus = run.config.trainer.gpus
        if run.config.trainer.cpu_processes > 1 or gpus not in (None, 0, 1):
            example = ",".join(str(index) for index in gpus) if isinstance(gpus, (list, ListConfig)) else "0,3"
            raise UserError(
                "In a sweep (-m) each run gets one GPU, or its share of the CPU: leave trainer.gpus and "
                "trainer.cpu_processes out. CUDA_VISIBLE_DEVICES says which GPUs the sweep may use, such as "
                f"CUDA_VISIBLE_DEVICES={example}. A run on several devices is started on its own."
            )
        if run.folder in first:
            changed = [text for text in run.overrides if text not in first[run.folder].overrides]
            differ = f"they differ in {', '.join(text.partition('=')[0] for text in changed)} alone" if changed else ""
            raise UserError(
                f"Two runs of the sweep would be the same one, {run.folder}: {differ or 'a value stands twice'}. What "
                "tells runs apart is the seed and the settings of model, data and precision, not where and how long "
                "they train or what is shown."
            )
        first[run.folder] = run
        if run.config.resume != "auto":
            from pegasus_lightning.runs.checkpoints import checkpoint_to_resume  # slow to import

            checkpoint_to_resume(run.folder, plain(run.config))


def uses_gpus(runs: Sequence[Planned]) -> bool:
    """Whether a sweep runs on GPUs: there are some, and a run wants one or does not mind."""
    return torch.cuda.device_count() > 0 and any(run.config.trainer.gpus != 0 for run in runs)


def _check_launcher(launcher: DictConfig, on_gpus: bool) -> None:
    """Ranges of the pool's settings; other launchers' are theirs."""
    if launcher.get("_target_") != POOL:
        return
    check_at_least("hydra.launcher.slots", launcher.slots, 1)
    check_at_least("hydra.launcher.jobs_per_gpu", launcher.jobs_per_gpu, 1)
    check_choice("hydra.launcher.rank_by", launcher.rank_by, RANKS)
    check_above("hydra.launcher.stop_timeout", launcher.stop_timeout, 0)
    if launcher.slots is not None and on_gpus:
        raise UserError(
            "hydra.launcher.slots shares the CPU out. On GPUs each gets one run, or hydra.launcher.jobs_per_gpu of "
            "them; trainer.gpus=0 runs the sweep on the CPU."
        )
