"""The command line: Hydra in; for a person's mistake one short message and exit code 2 out.

The configuration is composed and validated, for every job of a sweep, before Hydra creates anything.
"""

from __future__ import annotations

import argparse
import functools
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException, ValidationError

from pegasus_lightning.config import CIFAR10Config, Config, ImageFolderConfig, SilhouettesConfig, plain, validate
from pegasus_lightning.devices import choose_devices
from pegasus_lightning.errors import UserError, did_you_mean, nearest
from pegasus_lightning.models import MODELS
from pegasus_lightning.runs import NOT_IDENTITY

PROGRAM = "python -m pegasus_lightning"
GROUPS = ("model", "data", "trainer", "callbacks", "experiment")
USAGE_ERROR = 2
VERSION_BASE = "1.3"


def conf_folder() -> Path:
    """The folder of the presets: inside the package when installed as a wheel, else beside it."""
    inside = Path(__file__).parent / "conf"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "conf"


@functools.cache
def register_schemas() -> None:
    """Make the dataclass schemas known to Hydra, under `schema/`."""
    store = ConfigStore.instance()
    store.store(group="schema", name="config", node=Config)
    for name, model in MODELS.items():
        store.store(group="schema/model", name=name, node=model.Config)
    for source in (CIFAR10Config, ImageFolderConfig, SilhouettesConfig):
        store.store(group="schema/data", name=source.source, node=source)


def compose_config(overrides: Sequence[str], *, hydra_too: bool = False) -> DictConfig:
    """The configuration for command-line overrides, as a run would see it (not validated)."""
    register_schemas()
    with initialize_config_dir(str(conf_folder().resolve()), version_base=VERSION_BASE):
        return compose("config", overrides=list(overrides), return_hydra_config=hydra_too)


def jobs_of(overrides: Sequence[str], multirun: bool) -> list[list[str]]:
    """The overrides of each job: one list, or with `multirun` one a combination of the sweep."""
    if not multirun:
        return [list(overrides)]
    parser = OverridesParser.create()
    parsed = parser.parse_overrides(list(overrides))
    single = [text for text, override in zip(overrides, parsed, strict=True) if not override.is_sweep_override()]
    swept = compose_config(single, hydra_too=True).hydra.sweeper.params or {}
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


def _task(failures: list[Exception], config: DictConfig) -> None:
    """One job. What a person caused is kept in `failures`: Hydra would add words of its own to a raised error."""
    from pegasus_lightning.training import train  # Lightning's callbacks and TensorBoard are slow to import

    if any(hasattr(failure, "exit_code") for failure in failures):
        return  # a signal ended the sweep's last job: it is meant for all
    state = HydraConfig.get()
    try:
        validate(config)
        train(config, readable_name(config, state.runtime.choices, list(state.overrides.task)))
    except Exception as error:
        if not isinstance(error, UserError) and not hasattr(error, "exit_code"):
            raise
        failures.append(error)


def _processes(config: DictConfig) -> int:
    gpus = config.trainer.gpus
    return max(config.trainer.cpu_processes, gpus if isinstance(gpus, int) else len(gpus or [0]))


def run_command(arguments: list[str]) -> int:
    """Run the command line; returns the exit code. A user's mistake is told in one message on stderr."""
    if "--help" in arguments or "-h" in arguments:
        print(help_text())
        return 0
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come to us, not to Hydra's own printer
    _quieten()
    overrides: list[str] = []
    failures: list[Exception] = []
    try:
        parsed = _parse(arguments)
        overrides = parsed.overrides
        if not (parsed.config_dir or parsed.config_path or parsed.config_name or parsed.cfg or parsed.info):
            check_jobs(overrides, parsed.multirun)
        register_schemas()
        options = list(arguments)
        for override in overrides:
            options.remove(override)
        sys.argv[1:] = [*options, *overrides]  # Hydra's own parser wants its options first
        entry = hydra.main(str(conf_folder().resolve()), "config", VERSION_BASE)
        entry(lambda config: _task(failures, config))()
    except UserError as error:
        return _complain(str(error))
    except (HydraException, OmegaConfBaseException) as error:
        return _complain(explain(error, overrides))
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 130
    codes = [getattr(failure, "exit_code", None) or _complain(str(failure)) for failure in failures]
    return codes[-1] if codes else 0


def _parse(arguments: list[str]) -> argparse.Namespace:
    """Hydra's options and the overrides, in any order."""

    def refuse(message: str) -> NoReturn:
        raise UserError(f"The command line is not understood ({message}). `{PROGRAM} --help` shows what can be typed.")

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    return parser.parse_intermixed_args(arguments)


def check_jobs(overrides: Sequence[str], multirun: bool) -> None:
    """Compose and validate every job, so that a mistake in the last is told before the first starts.

    Raises:
        UserError: or one of Hydra's errors, see `explain`.
    """
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key = override.get_key_element().lstrip("+~")
        if override.is_delete():
            raise UserError(f"'{override.input_line}' is not understood: a setting can be changed, not removed.")
        added = (override.is_add() or override.is_force_add()) and key.partition(".")[0] != "hydra"
        if added and key not in known_keys(overrides):  # Hydra would add a key that nothing reads
            raise UserError(_unknown_key(key, overrides))
    for job in jobs_of(overrides, multirun):
        config = compose_config(job)
        validate(config)
        choose_devices(plain(config.trainer)["gpus"])
        if config.data.source == "image_folder":
            from pegasus_lightning.data.image_folder import class_folders

            class_folders(Path(config.data.root).expanduser(), list(config.data.classes), "train")
        if multirun and _processes(config) > 1:
            raise UserError("A run on several devices cannot be part of a sweep (-m) yet: start it on its own.")


def _complain(message: str) -> int:
    print(f"pegasus_lightning: {message}", file=sys.stderr)
    return USAGE_ERROR


def _quieten() -> None:
    # Advice that does not fit here: batches come from memory without workers, the validation set is small.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*The number of training batches.*log_every_n_steps.*")
    logging.getLogger("pegasus_lightning").setLevel(logging.INFO)
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)


# What went wrong, in words.


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _flat_keys(node: Any, prefix: str = "") -> Iterator[str]:
    for key in node:
        yield prefix + str(key)
        child = None if OmegaConf.is_missing(node, key) else node[key]
        if isinstance(child, DictConfig):
            yield from _flat_keys(child, f"{prefix}{key}.")


def known_keys(overrides: Sequence[str]) -> list[str]:
    """Every key that could be set, given the groups that the overrides choose (as far as these exist)."""
    chosen = []
    for override in overrides:
        key, _, value = override.partition("=")
        if key in GROUPS and value in presets(key):
            chosen.append(override)
    return [*_flat_keys(compose_config(chosen)), *(group for group in GROUPS)]


def explain(error: Exception, overrides: Sequence[str] = ()) -> str:
    """Hydra's or OmegaConf's error as one short message: what was wrong, what was meant, what to type."""
    for cause in _causes(error):
        if isinstance(cause, MissingConfigException) and cause.missing_cfg_file:
            group, _, name = str(cause.missing_cfg_file).rpartition("/")
            options = presets(group) if group in GROUPS else list(cause.options or [])
            return f"There is no {group} '{name}'.{did_you_mean(name, options)} Choose from: {', '.join(options)}."
        if isinstance(cause, ConfigKeyError):  # also ConfigAttributeError
            return _unknown_key(str(cause.full_key or cause.key), overrides)
        if isinstance(cause, ValidationError):
            value = (str(cause.msg) if cause.msg else str(cause)).splitlines()[0]
            key = cause.full_key or next((o.partition("=")[0] for o in overrides if "=" in o), "?")
            return f"{key} has a value of the wrong type: {value}."
        if isinstance(cause, OverrideParseException):
            key, equals, value = str(cause.override).partition("=")
            if equals:
                return f"The value in '{cause.override}' is not understood. Quote it: '{key}=\"{value}\"'."
            return f"'{cause.override}' is not understood. Write settings as key=value, such as seed=1."
    match = re.search(r"Could not override '([^']+)'", str(error))
    if match:
        return _unknown_key(match[1], overrides)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])


def _unknown_key(key: str, overrides: Sequence[str]) -> str:
    keys = known_keys(overrides)
    # By the last component first, wherever it stands: a shared prefix makes any two keys of a section alike.
    by_last: dict[str, str] = {}
    for known in sorted(keys, key=lambda known: known.rpartition(".")[0] != key.rpartition(".")[0]):
        by_last.setdefault(known.rpartition(".")[2], known)
    match = nearest(key.rpartition(".")[2], by_last)
    hint = f" Did you mean '{by_last[match]}'?" if match else did_you_mean(key, keys)
    return f"There is no setting '{key}'.{hint} `{PROGRAM} --cfg job` shows them all."


# Help.


def presets(group: str) -> list[str]:
    """Names of a group's presets."""
    return sorted(path.stem for path in (conf_folder() / group).glob("*.yaml"))


def _describe(group: str) -> str:
    lines = []
    for name in presets(group):
        comments = re.findall(r"^# (?!@)(.*)$", (conf_folder() / group / f"{name}.yaml").read_text(), re.MULTILINE)
        lines.append(f"    {name:<18} {comments[0] if comments else ''}")
    return "\n".join(lines)


def help_text() -> str:
    """What `--help` prints."""
    groups = "\n\n".join(f"  {group}=\n{_describe(group)}" for group in GROUPS if presets(group))
    return f"""Train adversarial autoencoders on two classes of images, and watch what their mixed codes decode to.

Examples
  {PROGRAM} model=acai trainer.gpus=1
  {PROGRAM} model=vae data=silhouettes trainer=quick
  {PROGRAM} -m model=vae,acai seed=0,1 data=image_folder data.root=photos

Choices (the first line sets a whole preset; every field of it can be set too)
{groups}

Fields, for example
  model.networks.latent_dim=64  model.networks.conv_layers=4  model.weights.kl=0.1
  'data.classes=[cat,ship]'  data.batch_size=128  trainer.max_epochs=200  trainer.max_time=2h
  trainer.gpus=0 (CPU), 1, 2, 'trainer.gpus=[0,3]'; left out: one GPU if there is one, else the CPU
  seed=1  runs_dir=runs  resume=auto (same command again continues), never, must

  --cfg job        show the whole configuration      -m   sweep: one run for each combination
"""
