"""The training command line, on Hydra. A user error ends in one short message and exit code 2.

The configuration of every job is composed and validated before Hydra creates anything.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from pegasus_lightning import __version__
from pegasus_lightning.launch.planning import check_jobs, check_read, readable_name
from pegasus_lightning.train.settings import TRAIN, validate
from pegasus_lightning.utils.compose import VERSION_BASE, check_presets, conf_folder
from pegasus_lightning.utils.devices import check_ranks
from pegasus_lightning.utils.errors import (
    Interrupted,
    NonFiniteLoss,
    SweepEnded,
    UnreadSetting,
    UserError,
    complain,
)
from pegasus_lightning.utils.program import quieten
from pegasus_lightning.utils.surroundings import steady_streams


@steady_streams()
def _task(failures: list[Exception], config: DictConfig) -> None:
    """Train one job. Expected errors are appended to `failures`, as Hydra would add text to a raised error.

    In a sweep they are raised too: the launchers other than `pool` call this for each job, perhaps on another machine,
    and learn of a failure only from the error.
    """
    from pegasus_lightning.train.callbacks.run_status import requeue_signal
    from pegasus_lightning.train.trainer import train  # Lightning's callbacks and TensorBoard are slow to import

    if any(isinstance(failure, Interrupted) for failure in failures):
        return  # a signal stops the whole sweep, not only the job that it interrupted
    quieten()  # a cluster's launcher calls this in a new process
    state = HydraConfig.get()
    try:
        validate(config)
        name = readable_name(config, state.runtime.choices, list(state.overrides.task))
        check_read(config, state, state.overrides.task, name)
        train(config, name)
    except Exception as error:
        if isinstance(error, UnreadSetting) and state.mode is RunMode.MULTIRUN:
            print(f"Left out: {error}", file=sys.stderr)
            return
        if not isinstance(error, (UserError, Interrupted, NonFiniteLoss, OSError)):
            raise
        if isinstance(error, Interrupted) and error.number == requeue_signal():
            # Everything is saved. The scheduler's handler queues the job again and pickles `failures` as they are now.
            signal.raise_signal(error.number)
        failures.append(error)
        if state.mode is RunMode.MULTIRUN:
            raise


@steady_streams()
def run_command(arguments: list[str]) -> int:
    """Run the command line and return the exit code. A user error is reported as one message on stderr."""
    if "--help" in arguments or "-h" in arguments:
        print(help_text())
        return 0
    if "--version" in arguments:
        print(f"pegasus_lightning {__version__}")
        return 0
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises errors rather than prints them
    quieten()
    overrides: list[str] = []
    failures: list[Exception] = []
    try:
        parsed = TRAIN.parse_arguments(arguments)
        overrides = [*_search_path(parsed.config_dir), *parsed.overrides]
        if parsed.hydra_help or parsed.shell_completion:
            raise UserError(f"Hydra's own help and completion do not know this command. Try `{TRAIN.command} --help`.")
        if parsed.config_path or parsed.config_name or parsed.experimental_rerun:
            raise UserError("There is one main configuration. --config-dir=FOLDER adds presets of your own to it.")
        if parsed.multirun and (parsed.cfg or parsed.info):
            raise UserError("--cfg and --info show one run: leave -m out, and give every setting one value.")
        overrides = [text for text in overrides if text != "experiment=null"]  # the default, which Hydra does not take
        if parsed.config_dir:
            check_presets(Path(parsed.config_dir).expanduser(), overrides, TRAIN.groups)
        if parsed.cfg or parsed.info:
            TRAIN.check_overrides(overrides)
        else:
            check_ranks()
            for line in check_jobs(overrides, parsed.multirun):
                print(line, file=sys.stderr, flush=True)
        TRAIN.register()
        sys.argv[1:] = [*_options(parsed), *overrides]
        entry = hydra.main(str(conf_folder().resolve()), "config", VERSION_BASE)
        entry(lambda config: _task(failures, config))()
    except SweepEnded as error:
        return error.exit_code
    except UserError as error:
        return complain(str(error))
    except (HydraException, OmegaConfBaseException) as error:
        return complain(TRAIN.explain(error, overrides))
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 130
    except (Interrupted, NonFiniteLoss, OSError) as error:  # such as from a sweep of another launcher
        failures.append(error)
    return _exit_code(failures[-1]) if failures else 0


def _exit_code(failure: Exception) -> int:
    """Return the exit code of a run that ended early, and print the reason unless it was printed."""
    if isinstance(failure, Interrupted):
        return failure.exit_code
    if isinstance(failure, NonFiniteLoss):
        advice = "The last good checkpoint is kept. Try a lower model.autoencoder_optimizer.lr, or clip the gradients."
        print(f"pegasus_lightning: the run failed: {failure} {advice}", file=sys.stderr)
        return 1
    if isinstance(failure, OSError):  # such as a full disk
        advice = "What was saved is kept: once the cause is mended, the same command goes on."
        print(f"pegasus_lightning: the run failed: {failure}. {advice}", file=sys.stderr)
        return 1
    return complain(str(failure))


def _search_path(folder: str | None) -> list[str]:
    """Return --config-dir as the equivalent override, so that every job of a sweep gets it too."""
    if folder is None:
        return []
    path = Path(folder).expanduser().resolve()
    if not path.is_dir():
        raise UserError(f"--config-dir={folder}: there is no such folder.")
    return [f'hydra.searchpath=["file://{path}"]']


def _options(parsed: argparse.Namespace) -> list[str]:
    """Return Hydra's own options. Its parser requires them before the overrides."""
    texts = [f"--{name}={getattr(parsed, name)}" for name in ("cfg", "info", "package") if getattr(parsed, name)]
    flags = ("run", "multirun", "resolve")
    return texts + [f"--{name.replace('_', '-')}" for name in flags if getattr(parsed, name)]


def help_text() -> str:
    """Return the text that `--help` prints."""
    return f"""Train adversarial autoencoders on two classes of images and show what mixes of their codes decode to.

Examples
  {TRAIN.command} model=acai trainer.gpus=1
  {TRAIN.command} model=vae data=silhouettes trainer=quick
  {TRAIN.command} -m model=vae,acai seed=0,1 data=image_folder data.root=photos
  {TRAIN.command} -m experiment=ablation seed=0,1,2

Presets (GROUP=NAME sets all fields of a group; each field can be set too)
{TRAIN.describe_presets()}

Fields, for example
  model.networks.latent_dim=64  model.networks.conv_layers=4  model.weights.kl=0.1
  'data.classes=[cat,ship]'  data.batch_size=128  trainer.max_epochs=200  trainer.max_time=2h
  trainer.gpus=0 (CPU), 1, 2, 'trainer.gpus=[0,3]' (default: one GPU if available, else the CPU)
  logger=csv, wandb, mlflow, trackio, 'logger=[tensorboard,wandb]' (default: tensorboard)
  seed=1  runs_dir=runs  resume=auto (the same command again continues the run), never, must

  --cfg job        show the whole configuration      --config-dir=FOLDER   add your own presets
  -m               sweep: one run for each combination, in parallel; the same command again continues it
    hydra.launcher.slots=4 (parallel runs on the CPU)  hydra.launcher.jobs_per_gpu=2  hydra.launcher.rank_by=final/kl
    hydra/launcher=pool (this machine), slurm, ray_cluster
"""
