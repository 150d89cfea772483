"""The command line: Hydra in; for a person's mistake one short message and exit code 2 out.

The configuration is composed and validated, for every job of a sweep, before Hydra creates anything.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pegasus_lightning.composing import (
    TRAIN,
    VERSION_BASE,
    Program,
    check_overrides,
    compose_config,
    conf_folder,
    describe_presets,
    explain,
    parse_arguments,
    register_schemas,
)
from pegasus_lightning.config import plain, validate
from pegasus_lightning.devices import choose_devices
from pegasus_lightning.errors import UserError
from pegasus_lightning.runs import NOT_IDENTITY

USAGE_ERROR = 2
PATHS = ("run", "out", "first", "second", "recognisers", "data.root", "data.cache")


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
        parsed = parse_arguments(arguments)
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


def quote_paths(arguments: Sequence[str]) -> list[str]:
    """Arguments such as `run=runs/a,b=c` with the path quoted for Hydra, which reads commas and `=` in its own way.

    Several `run=` become one list.
    """
    quoted: list[str] = []
    runs: list[str] = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if key == "run" and equals and value in ("", "null"):
            continue
        if key not in PATHS or not equals or value.startswith(("[", '"', "'")) or value in ("", "null"):
            quoted.append(argument)
            continue
        text = '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
        if key == "run":
            runs.append(text)
        else:
            quoted.append(f"{key}={text}")
    return [*quoted, f"run=[{','.join(runs)}]"] if runs else quoted


def run_program(
    program: Program, arguments: Sequence[str], help_text: str, work: Callable[[DictConfig, list[str]], object]
) -> int:
    """Compose the configuration of a command other than training and do its work; returns the exit code.

    Args:
        help_text: what `--help` prints.
        work: called with the configuration and the overrides that begin with `data=` or `data.`.
    """
    if "--help" in arguments or "-h" in arguments:
        print(help_text)
        return 0
    _quieten()
    overrides: list[str] = []
    try:
        parsed = parse_arguments(quote_paths(arguments), program)
        options = [name for name, value in vars(parsed).items() if value and name not in ("overrides", "cfg")]
        if options:
            raise UserError(f"{program.command} has no -m and no option --{options[0]}: `--help` shows what it takes.")
        data = [text for text in parsed.overrides if text.startswith(("data=", "data."))]
        overrides = [text for text in parsed.overrides if text not in data]
        check_overrides(overrides, program)
        config = compose_config(overrides, program)
        if parsed.cfg:
            print(OmegaConf.to_yaml(config), end="")
            return 0
        work(config, data)
    except UserError as error:
        return _complain(str(error))
    except (HydraException, OmegaConfBaseException) as error:
        return _complain(explain(error, [*overrides, *arguments], program))
    except OSError as error:  # a full disk, say
        print(f"pegasus_lightning: {error}. Nothing was left half-written.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped; nothing was left half-written.", file=sys.stderr)
        return 130
    return 0


def check_jobs(overrides: Sequence[str], multirun: bool) -> None:
    """Compose and validate every job, so that a mistake in the last is told before the first starts.

    Raises:
        UserError: or one of Hydra's errors, see `explain`.
    """
    check_overrides(overrides)
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


def help_text() -> str:
    """What `--help` prints."""
    return f"""Train adversarial autoencoders on two classes of images, and watch what their mixed codes decode to.

Examples
  {TRAIN.command} model=acai trainer.gpus=1
  {TRAIN.command} model=vae data=silhouettes trainer=quick
  {TRAIN.command} -m model=vae,acai seed=0,1 data=image_folder data.root=photos

Choices (the first line sets a whole preset; every field of it can be set too)
{describe_presets(TRAIN)}

Fields, for example
  model.networks.latent_dim=64  model.networks.conv_layers=4  model.weights.kl=0.1
  'data.classes=[cat,ship]'  data.batch_size=128  trainer.max_epochs=200  trainer.max_time=2h
  trainer.gpus=0 (CPU), 1, 2, 'trainer.gpus=[0,3]'; left out: one GPU if there is one, else the CPU
  seed=1  runs_dir=runs  resume=auto (same command again continues), never, must

  --cfg job        show the whole configuration      -m   sweep: one run for each combination
"""
