"""The runs that a command line describes, composed and validated before anything is created."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import torch
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict

from pegasus_lightning.launch.space import SEARCH, check_search, probes, read_space
from pegasus_lightning.runs.folder import NOT_IDENTITY, RunName, find_runs, run_folder
from pegasus_lightning.train.dry_run import shortened
from pegasus_lightning.train.settings import TRAIN, validate
from pegasus_lightning.utils.compose import plain
from pegasus_lightning.utils.devices import choose_devices
from pegasus_lightning.utils.errors import UnreadSetting, UserError, check_above, check_at_least, check_choice
from pegasus_lightning.utils.files import check_makeable

POOL = "hydra_plugins.pegasus_pool.launcher.PoolLauncher"
LOCAL_LAUNCHERS = (
    "PoolLauncher",
    "BasicLauncher",
    "LocalLauncher",
)  # launchers whose runs use this machine's devices and files
# Packages that Hydra may import classes from: its sweeper and the installed launchers.
HYDRAS_OWN = ("hydra._internal.core_plugins.", "hydra_plugins.")
FIGURES = ("psnr", "excess_bce", "kl", "active_dimensions", "critic_real", "critic_fake")
RANKS = tuple(f"{split}/{name}" for split in ("final", "validation", "test") for name in FIGURES)


@dataclass(frozen=True)
class Planned:
    """A planned run: its overrides as typed, its configuration, its folder, and `hydra.launcher`."""

    overrides: list[str]
    config: DictConfig
    folder: Path
    launcher: DictConfig


def jobs_of(overrides: Sequence[str], multirun: bool) -> list[list[str]]:
    """Return the overrides of each job: one list, or with `multirun` one for each combination of the sweep.

    A search has no list of its jobs: a few are returned that have the ends of its ranges and all its choices.
    """
    if not multirun:
        return [list(overrides)]
    parser = OverridesParser.create()
    parsed = parser.parse_overrides(list(overrides))
    single = [text for text, override in zip(overrides, parsed, strict=True) if not override.is_sweep_override()]
    first = TRAIN.compose(single, with_hydra=True).hydra
    if "hydra_optuna_sweeper" in str(first.sweeper.get("_target_")):
        raise UserError("Hydra's own plugin takes the name optuna too: pip uninstall hydra-optuna-sweeper.")
    _check_hydra(first)
    swept = first.sweeper.params or {}
    if first.sweeper.get("_target_") == SEARCH:
        return probes(*read_space(swept, overrides))
    # As in Hydra's sweeper, a typed value replaces the values that the preset sweeps over.
    everything = parser.parse_overrides([*(f"{key}={value}" for key, value in swept.items()), *overrides])
    return BasicSweeper.split_arguments(everything, None)[0]


def readable_name(config: DictConfig, choices: dict[str, Any], overrides: Sequence[str]) -> str:
    """Return `run_name`, or else the model's preset followed by the overrides of model and data."""
    if config.run_name:
        return config.run_name
    left_out = {"data.root", *(f"data.{key}" for key in NOT_IDENTITY["data"])}
    details = [o for o in overrides if o.startswith(("model.", "data.")) and o.partition("=")[0] not in left_out]
    data = [] if choices.get("data") == "cifar10" else [str(choices.get("data"))]
    shown = [f"{key.rpartition('.')[2]}={value}" for key, _, value in (detail.partition("=") for detail in details)]
    begun = config.get("init_from")
    origin = [f"from={RunName.parse(Path(begun).name).readable.partition(',')[0]}"] if begun else []
    return ",".join([str(choices.get("model", config.model.name)), *origin, *data, *shown])


def plan(composed: DictConfig, overrides: Sequence[str]) -> Planned:
    """Return the run that a configuration, composed with its `hydra` section, describes.

    Raises:
        UnreadSetting: nothing reads a setting.
        UserError: the configuration is invalid.
    """
    config = composed.copy()
    _check_hydra(config.hydra)
    choices, launcher = dict(config.hydra.runtime.choices), config.hydra.launcher
    with open_dict(config):
        del config["hydra"]
    validate(config)
    own = [text for text in overrides if not text.startswith("hydra")]
    name = readable_name(config, choices, own)
    check_read(config, composed.hydra, overrides, name)
    config = shortened(config)
    return Planned(list(overrides), config, run_folder(plain(config), name), launcher)


def check_read(config: DictConfig, hydra: Any, overrides: Sequence[str], name: str) -> None:
    """Raise UnreadSetting if a setting of the model that nothing reads differs from the chosen preset's.

    A run that an earlier release began can go on. `hydra` is the section of that name, `name` the run's readable name.
    """
    if (run_folder(plain(config), name) / "status.json").exists():
        return
    folders = f"hydra.searchpath={json.dumps(list(hydra.searchpath), ensure_ascii=False)}"  # of presets
    TRAIN.check_read(config, [folders, f"model={hydra.runtime.choices.model}"], overrides)


def plan_sweep(
    jobs: Iterable[tuple[DictConfig, Sequence[str]]],
) -> tuple[list[Planned], list[tuple[list[str], UnreadSetting]]]:
    """Return the runs of a sweep, and the combinations that are left out because nothing reads a setting of theirs.

    `jobs` are composed configurations with their overrides. Raise UserError if one is invalid otherwise.
    """
    runs, left_out = [], []
    for composed, overrides in jobs:
        try:
            runs.append(plan(composed, overrides))
        except UnreadSetting as error:
            left_out.append((list(overrides), error))
    return runs, left_out


def check_jobs(overrides: Sequence[str], multirun: bool) -> list[str]:
    """Compose and validate every job, so that a mistake in the last is reported before the first starts.

    Return lines that name the combinations of a sweep that are left out.

    Raises:
        UserError: a job is invalid, or no combination remains.
        HydraException: a configuration cannot be composed; see `Program.explain`.
    """
    TRAIN.check_overrides(overrides)
    if not multirun:
        _check_single(overrides)
    jobs = jobs_of(overrides, multirun)
    composed = ((TRAIN.compose(job, with_hydra=True), job) for job in jobs)
    lines: list[str] = []
    if multirun:
        runs, left_out = plan_sweep(composed)
        if not runs:
            reasons = ", and ".join(dict.fromkeys(error.reason for _, error in left_out))
            raise UnreadSetting(f"No combination of the sweep remains, because {reasons}: leave that out.")
        hydra = TRAIN.compose(jobs[0], with_hydra=True).hydra
        if hydra.sweeper.get("_target_") == SEARCH:
            check_search(
                hydra.sweeper, hydra.launcher, runs[0].config, read_space(hydra.sweeper.params, overrides)[1], POOL
            )
        else:
            lines = _lines(left_out, jobs)
        _check_sweep(runs)
        if not str(runs[0].launcher.get("_target_")).endswith(LOCAL_LAUNCHERS):
            return lines  # the machines that run the jobs may have other GPUs and files
    else:
        runs = [plan(*job) for job in composed]
    for run in runs:
        check_makeable(run.folder)
        choose_devices(plain(run.config.trainer)["gpus"])
        if run.config.init_from is not None and not run.folder.exists():
            find_runs([run.config.init_from], "checkpoints")
        if run.config.data.source == "image_folder":
            from pegasus_lightning.data.image_folder import class_folders

            data = run.config.data
            class_folders(Path(data.root).expanduser(), list(data.classes), "train")
    return lines


def _lines(left_out: Sequence[tuple[list[str], UnreadSetting]], jobs: Sequence[Sequence[str]]) -> list[str]:
    """Return a line for each reason with the combinations that are left out for it.

    A combination is named by its overrides at fault and by those that choose its model and differ within the sweep.
    """
    shared = set.intersection(*(set(job) for job in jobs))
    combinations: dict[str, dict[str, int]] = {}  # reason, combination, number of runs
    for job, error in left_out:
        varied = [text for text in job if text not in shared and text.startswith(("model", "experiment="))]
        named = " ".join(text for text in job if text in varied or text in error.settings) or " ".join(job)
        counts = combinations.setdefault(error.reason, {})
        counts[named] = counts.get(named, 0) + 1
    return [
        f"Left out, because {reason}: "
        + ", ".join(f"{named} ({count} runs)" if count > 1 else named for named, count in counts.items())
        for reason, counts in combinations.items()
    ]


HYDRAS_OPEN = ("launcher", "sweeper", "sweep", "mode", "searchpath", "job")
HYDRAS_OWN_NOTES = ("runtime", "overrides")  # what Hydra writes there itself


def _check_hydra(settings: DictConfig) -> None:
    """Raise UserError if Hydra would build anything but its sweeper and an installed launcher, or would run code.

    Its logging, for example, can build handlers out of a file. Values are compared as they are written: some name
    other settings, such as the job's name.
    """
    plain_settings = cast(dict[str, Any], OmegaConf.to_container(settings))
    targets = {text for text in _targets(plain_settings) if not text.startswith(HYDRAS_OWN)}
    if targets or settings.get("callbacks"):
        named = ", ".join(sorted(targets)) or "hydra.callbacks"
        raise UserError(f"The configuration makes Hydra build {named}, which is not allowed.")
    for key, value in plain_settings.items():
        if key not in (*HYDRAS_OPEN, *HYDRAS_OWN_NOTES) and value != _usual_hydra()[key]:
            instead = "a run's folder follows from runs_dir, experiment_name and run_name"
            others = f"of Hydra's settings, {', '.join(HYDRAS_OPEN)} can"
            raise UserError(f"hydra.{key} cannot be set: {instead if key in ('run', 'output_subdir') else others}.")
    if settings.job.get("env_set"):
        raise UserError("hydra.job.env_set cannot be set: give variables to the command itself.")
    swept = settings.sweeper.get("params") or {}
    for place in (*swept, *settings.overrides.hydra):
        if str(place).lstrip("+~").startswith("hydra.searchpath") and "file://" not in str(place):
            raise UserError(f"{place} is not allowed in a preset: add presets with --config-dir=FOLDER.")
    for path in settings.searchpath:
        if not str(path).startswith("file://"):
            raise UserError(f"hydra.searchpath={path} is not allowed: add presets with --config-dir=FOLDER.")


@lru_cache(maxsize=1)
def _usual_hydra() -> dict[str, Any]:
    return cast(dict[str, Any], OmegaConf.to_container(TRAIN.compose([], with_hydra=True).hydra))


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
    """Raise UserError if a preset sweeps over a setting that the overrides leave open."""
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
    if len({run.config.trainer.dry_run for run in runs}) > 1:
        raise UserError("trainer.dry_run holds for a whole sweep: give it one value.")
    datas = [run.config.data for run in runs]
    images = {json.dumps([data.source, data.get("root"), *data.classes]) for data in datas}
    if runs[0].launcher.get("evaluate") and len(images) > 1:
        raise UserError("hydra.launcher.evaluate=true compares runs on the same images: leave it out of this sweep.")
    first: dict[Path, Planned] = {}
    for run in runs:
        gpus = run.config.trainer.gpus
        if run.config.trainer.cpu_processes > 1 or gpus not in (None, 0, 1):
            example = ",".join(str(index) for index in gpus) if isinstance(gpus, (list, ListConfig)) else "0,3"
            raise UserError(
                "In a sweep (-m) each run gets one GPU or a share of the CPU: leave out trainer.gpus and "
                "trainer.cpu_processes. Choose the sweep's GPUs with CUDA_VISIBLE_DEVICES, such as "
                f"CUDA_VISIBLE_DEVICES={example}. A run on several devices must be started on its own, without -m."
            )
        if run.folder in first:
            changed = [text for text in run.overrides if text not in first[run.folder].overrides]
            differ = f"they differ only in {', '.join(text.partition('=')[0] for text in changed)}" if changed else ""
            raise UserError(
                f"Two runs of the sweep would be the same run, {run.folder}: {differ or 'a value is listed twice'}. "
                "Runs are told apart by the seed and the settings of model, data and precision, not by where and how "
                "long they train or what is shown."
            )
        first[run.folder] = run
        if run.config.resume == "never" and runs[0].launcher.get("retries"):
            raise UserError("hydra.launcher.retries continues a run, and resume=never refuses that: leave out one.")
        if run.config.resume != "auto":
            from pegasus_lightning.runs.checkpoints import checkpoint_to_resume  # slow to import

            checkpoint_to_resume(run.folder, plain(run.config))


def uses_gpus(runs: Sequence[Planned]) -> bool:
    """Return whether a sweep runs on GPUs: one is available, and not every run sets `trainer.gpus=0`."""
    return torch.cuda.device_count() > 0 and any(run.config.trainer.gpus != 0 for run in runs)


def _check_launcher(launcher: DictConfig, on_gpus: bool) -> None:
    """Check the settings of the launcher `pool`, and that Slurm is there for `slurm`. Others check their own."""
    if str(launcher.get("_target_")).endswith("SlurmLauncher") and shutil.which("srun") is None:
        raise UserError(
            "hydra/launcher=slurm hands the runs to Slurm, and this machine has no srun. Start the sweep on a login "
            "node of the cluster, or leave hydra/launcher out to train on this machine."
        )
    if launcher.get("_target_") != POOL:
        return
    check_at_least("hydra.launcher.slots", launcher.slots, 1)
    check_at_least("hydra.launcher.jobs_per_gpu", launcher.jobs_per_gpu, 1)
    check_at_least("hydra.launcher.retries", launcher.retries, 0)
    check_choice("hydra.launcher.rank_by", launcher.rank_by, RANKS)
    check_above("hydra.launcher.stop_timeout", launcher.stop_timeout, 0)
    if launcher.slots is not None and on_gpus:
        raise UserError(
            "hydra.launcher.slots is for sweeps on the CPU (trainer.gpus=0). On GPUs set hydra.launcher.jobs_per_gpu."
        )
