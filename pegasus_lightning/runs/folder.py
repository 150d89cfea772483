"""A run's folder: its name, its status, its log and its lock, and how runs are found again."""

from __future__ import annotations

import errno
import fcntl
import glob
import hashlib
import json
import logging
import os
import platform
import re
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from pegasus_lightning import __version__
from pegasus_lightning.utils.errors import Interrupted, NonFiniteLoss, UserError, did_you_mean, listing
from pegasus_lightning.utils.files import clear_leftovers, make_folder, write_json
from pegasus_lightning.utils.foreign import MEGABYTE, Unreadable, inside, open_regular, read_json

MAX_NAME, MAX_BYTES = 120, 200  # a file system takes 255 bytes, and some names get a suffix
LOCK = ".lock"  # in a run's folder: held by the process that trains it
# Settings that do not make another run: where and how long it trains, and what is shown.
NOT_IDENTITY = {
    "": ("runs_dir", "resume", "experiment_name", "run_name", "callbacks", "logger"),
    "trainer": ("gpus", "cpu_processes", "max_epochs", "max_time", "patience", "monitor", "stall_after", "threads")
    + ("dry_run", "evaluate_test", "log_every_n_steps", "validate_every_n_epochs", "checkpoint_every_n_epochs"),
    "data": ("download", "cache", "on_device"),
}
# Settings of models that came after the first runs were named: at these values they do not make another run either.
PLAYERS = ("autoencoder", "critic")
ADDED: dict[tuple[str, ...], Any] = {
    ("r2",): 0.0,
    ("networks", "residual_blocks"): 0,
    ("networks", "critic_layers"): None,
    ("networks", "critic_patches"): False,
    **{(f"{player}_optimizer", "warmup"): 0 for player in PLAYERS},
    **{(f"{player}_optimizer", "decay_after"): None for player in PLAYERS},
    **{(f"{player}_optimizer", "schedule"): "constant" for player in PLAYERS},
    **{(f"{player}_optimizer", "schedule_batches"): None for player in PLAYERS},
    **{(f"{player}_optimizer", "weight_decay"): 0.0 for player in PLAYERS},
    ("ema_warmup",): 9,
    ("kl_warmup",): 0,
    ("kl_cycle",): None,
    ("gradient_penalty",): 10.0,
    ("critic_starts_at",): 0,
    ("critic_ramp",): 0,
    ("critic_steps",): 1,
}
# Fields of a status that commands work with.
STATUS_KINDS: dict[str, type] = {"status": str, "epochs": int, "batches": int, "pid": int, "exit_code": int}
STATUS_KINDS |= {"limits": dict, "stopped_by": str}
DEPTHS = ("*", "*/*", "*/*/*")  # where runs are looked for in a folder
DRY_RUNS = ".dry_run"  # the folder of dry runs, in runs_dir
EVENT_FILES = "events.out.tfevents.*"  # TensorBoard's

log = logging.getLogger(__name__)


def config_hash(config: dict[str, Any]) -> str:
    """Return the SHA-256 (hex) of the settings that identify a run. The order of keys does not matter."""
    identity = json.loads(json.dumps(config))
    for group, keys in NOT_IDENTITY.items():
        section = identity[group] if group else identity
        for key in keys:
            section.pop(key, None)
    if identity.get("init_from") is None:  # runs of before had no such setting
        identity.pop("init_from", None)
    for (*groups, key), value in ADDED.items():
        section = identity.get("model", {})
        for group in groups:
            section = section.get(group, {})
        if key in section and section[key] == value:
            del section[key]
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def flat(nested: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Return {"a": {"b": 1}} as {"a.b": 1}."""
    leaves: dict[str, Any] = {}
    for key, value in nested.items():
        leaves |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return leaves


class RunName(NamedTuple):
    """The parts of a name such as `vae,lines-s0-1a2b3c4d`: what is readable, the seed, 8 hex digits of the hash.

    `suffix` is what follows, such as the checkpoint's name in a caption. A name without `-s<seed>` is all readable.
    """

    readable: str
    seed: str | None = None
    digest: str = ""
    suffix: str = ""

    @classmethod
    def parse(cls, name: str) -> RunName:
        """Take a name apart."""
        pattern = r"(.*?)(?:-s(\d+)(?:-([0-9a-f]{8}))?(?:-(?!s\d+$)(\w+))?)?"
        match = re.fullmatch(pattern, name, re.DOTALL)
        assert match is not None
        return cls(match[1], match[2], match[3] or "", match[4] or "")

    @property
    def short(self) -> str:
        """The name without the hash, unless a suffix follows it."""
        parts = [self.readable, *([] if self.seed is None else [f"s{self.seed}"])]
        parts += [part for part in (self.digest, self.suffix) if part] if self.suffix else []
        return "-".join(parts)

    def caption(self, source: object) -> str:
        """The name without the hash and the name of the data source."""
        return self.short.replace(f",{source}", "")


def run_name(config: dict[str, Any], readable: str) -> str:
    """Return `<readable>-s<seed>-<8 hex of the config's hash>`: at most 120 characters, valid as a folder's name."""
    tail = f"-s{config['seed']}-{config_hash(config)[:8]}"
    head = re.sub(r"[^\w.=,+-]+", "_", readable).strip("._-") or "run"
    head = head[: MAX_NAME - len(tail)].encode()[: MAX_BYTES - len(tail)].decode(errors="ignore")
    return head + tail


def run_folder(config: dict[str, Any], readable: str) -> Path:
    """Return `<runs_dir>/<experiment_name>/<run name>`."""
    return Path(config["runs_dir"]).expanduser() / config["experiment_name"] / run_name(config, readable)


def events_folder(run: Path) -> Path:
    """Return the folder of a run's event files: its own, or for a run that 0.1 began the folder `tensorboard` in it."""
    old = run / "tensorboard"
    return old if old.is_dir() and not old.is_symlink() else run


def find_runs(places: Sequence[str], marker: str) -> list[Path]:
    """Return the run folders in `places`. A place is a run's folder, a folder of runs (three deep) or a pattern.

    `marker` is the entry that makes a folder a run's: "status.json" or "checkpoints". With the latter a place may also
    be a checkpoint file, which is returned as it is. Raise UserError if a place is missing, or holds no run.
    """
    what = "run folder or checkpoint" if marker == "checkpoints" else "run folder"
    found: dict[Path, Path] = {}
    for place in places:
        path = Path(place).expanduser()
        if path.absolute().name == marker and path.is_dir():
            path = path.absolute().parent
        entries = [path] if path.exists() else [Path(match) for match in sorted(glob.glob(str(path)))]
        if not entries:
            around = path.parent.iterdir() if path.parent.is_dir() else []
            beside = sorted(entry.name for entry in around if entry.is_dir() and not entry.name.startswith("."))
            hint = did_you_mean(path.name, beside) or (f" Folders there: {listing(beside)}." if beside else "")
            raise UserError(f"There is no {what} {path}.{hint} Patterns need quotes, such as 'runs/*/vae*'.")
        files = [entry for entry in entries if entry.is_file() and marker == "checkpoints"]
        runs = files + [run for entry in entries for run in _runs_inside(entry, marker)]
        if not runs:
            reason = "is a file" if path.is_file() else f"holds no run: no folder in it has {marker}"
            raise UserError(f"{path} {reason}. Name a run's folder or a folder of runs, such as runs/first_run.")
        for run in runs:
            found.setdefault(run.resolve(), run)
    return list(found.values())


def _runs_inside(folder: Path, marker: str) -> list[Path]:
    if (folder / marker).exists():
        return [folder]
    runs: set[Path] = set()
    for depth in DEPTHS:
        for path in sorted(folder.glob(f"{depth}/{marker}")):
            run = path.parent
            hidden = any(part.startswith(".") for part in run.relative_to(folder).parts)
            if not hidden and runs.isdisjoint(run.parents):
                runs.add(run)
    return sorted(runs)


def now() -> str:
    """Return the time as ISO 8601, UTC, in whole seconds."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def software_versions() -> dict[str, str]:
    """Return the versions of the software that a result depends on."""
    own = {"python": platform.python_version(), "pegasus-lightning": __version__}
    packages = ("torch", "torchvision", "pytorch-lightning", "hydra-core", "torchmetrics")
    return own | {package: version(package) for package in packages}


class Status:
    """A run's `status.json`: running, finished, interrupted or failed, with what is known of the run.

    Every `update` rewrites the file atomically.
    """

    def __init__(self, folder: Path, **fields: Any) -> None:
        self.path = folder / "status.json"
        self.fields: dict[str, Any] = {"status": "running", "exit_code": None, "reason": None} | fields

    @classmethod
    def begin(cls, folder: Path, config: dict[str, Any], **fields: Any) -> Status:
        """Write and return the status of a run that starts or continues now. `fields` are added."""
        status = cls(
            folder,
            config_hash=config_hash(config),
            command=[Path(sys.argv[0]).name, *sys.argv[1:]],
            pid=os.getpid(),
            versions=software_versions(),
            started=now(),
            **fields,
        )
        status.update()
        return status

    def update(self, **fields: Any) -> None:
        """Change some fields, and write. On a full disk the file is written in place, which takes no new room."""
        self.fields |= fields | {"updated": now()}
        try:
            write_json(self.path, self.fields)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not self.path.exists():
                raise
            with open(self.path, "r+b") as file:
                file.write(json.dumps(self.fields).encode())
                file.truncate()


def status_of(folder: Path) -> dict[str, Any]:
    """Return the content of `status.json` in `folder`. Raise Unreadable if there is none that can be used."""
    path = folder / "status.json"
    content: dict[str, Any] = read_json(inside(path, folder), limit=MEGABYTE)
    for key, kind in STATUS_KINDS.items():
        value = content.get(key)
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            raise Unreadable(path, f"holds a {type(value).__name__} as {key}")
        if isinstance(value, int) and value < 0:
            raise Unreadable(path, f"holds {value} as {key}")
    return content


def read_status(folder: Path) -> dict[str, Any] | None:
    """Return the content of `status.json` in `folder`; None if there is none that can be used."""
    try:
        return status_of(folder)
    except Unreadable:
        return None


def is_locked(folder: Path) -> bool:
    """Return whether a process trains the run in `folder`: whether it holds the lock file, which is not changed."""
    try:
        with open_regular(inside(folder / LOCK, folder)) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # as FileLock locks; closing the file releases it
    except Unreadable:
        return False
    except OSError:  # held, or the file system cannot say
        return True
    return False


def machines_of(status: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Return the kinds of machine that trained a run, see `utils.devices.machine`; empty if unknown."""
    found = (status or {}).get("machines")
    return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []


@contextmanager
def run_session(folder: Path, config: dict[str, Any], **fields: Any) -> Iterator[Status]:
    """Hold a run's folder while it trains: its lock, its log file, and its status, which says how the run ended.

    `fields` are written into the status from the beginning.
    Raise UserError if another process trains the run, and Interrupted in place of a KeyboardInterrupt.
    """
    make_folder(folder)
    lock = FileLock(folder / LOCK, timeout=1)  # a sweep may hold it for a moment to see whether it is free
    try:
        lock.acquire()
    except Timeout:
        raise UserError(f"{folder} is being trained by another process at this moment.") from None
    for place in (folder, folder / "images"):
        clear_leftovers(place)
    handler = log_to(folder / "train.log")
    try:
        status = Status.begin(folder, config, **fields)
        try:
            yield status
        except (Interrupted, KeyboardInterrupt) as error:
            interrupt = error if isinstance(error, Interrupted) else Interrupted(signal.SIGINT)
            status.update(status="interrupted", exit_code=interrupt.exit_code, reason=str(interrupt))
            say(f"\nThe run was {interrupt}. {_what_goes_on(folder, config)}")
            raise interrupt from None
        except BaseException as error:
            log.exception("The run failed.")
            reason = str(error) if isinstance(error, NonFiniteLoss) else f"{type(error).__name__}: {error}"
            status.update(status="failed", exit_code=2 if isinstance(error, UserError) else 1, reason=reason)
            raise
    finally:
        stop_logging(handler)
        lock.release()


def _what_goes_on(folder: Path, config: Mapping[str, Any]) -> str:
    """Return what the same command will do with a run that was interrupted."""
    if config["resume"] == "never":
        return "resume=never refuses its folder: leave it out to continue."
    if any((folder / "checkpoints").glob("*.ckpt")):
        return "Run the same command again to continue from its last checkpoint."
    return "Nothing was saved yet: the same command starts it again."


def say(text: str) -> None:
    """Print a text, and write it to the log file if there is one."""
    print(text, flush=True)
    for line in text.strip().splitlines():
        log.info(line)


def log_to(path: Path) -> logging.Handler:
    """Append this package's and Lightning's log to `path`. Return the handler, for `stop_logging`."""
    logging.captureWarnings(True)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for name in ("pegasus_lightning", "pytorch_lightning", "py.warnings"):
        logging.getLogger(name).addHandler(handler)
    return handler


def stop_logging(handler: logging.Handler) -> None:
    """Undo `log_to`."""
    logging.captureWarnings(False)
    for name in ("pegasus_lightning", "pytorch_lightning", "py.warnings"):
        logging.getLogger(name).removeHandler(handler)
    handler.close()
