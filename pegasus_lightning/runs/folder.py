"""Run folders: what they are called, what lies in them, how a run is found again."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import re
import sys
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pegasus_lightning import __version__
from pegasus_lightning.utils.files import write_json

MAX_NAME, MAX_BYTES = 120, 200  # a file system takes 255 bytes, and some names get an ending
LOCK = ".lock"  # in a run's folder: held by the process that trains it
# What may change without making it another run: where and how long it trains, and what is shown.
NOT_IDENTITY = {
    "": ("runs_dir", "resume", "experiment_name", "run_name", "callbacks"),
    "trainer": ("gpus", "cpu_processes", "max_epochs", "max_time", "threads", "evaluate_test")
    + ("log_every_n_steps", "validate_every_n_epochs", "checkpoint_every_n_epochs"),
    "data": ("download", "cache", "on_device"),
}


def config_hash(config: dict[str, Any]) -> str:
    """SHA-256 (hex) of what makes the run what it is, independent of the order of keys."""
    identity = json.loads(json.dumps(config))
    for group, keys in NOT_IDENTITY.items():
        section = identity[group] if group else identity
        for key in keys:
            section.pop(key, None)
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def run_name(config: dict[str, Any], readable: str) -> str:
    """`<readable>-s<seed>-<8 hex of the config's hash>`, at most 120 characters, fit for a folder's name."""
    tail = f"-s{config['seed']}-{config_hash(config)[:8]}"
    head = re.sub(r"[^\w.=,+-]+", "_", readable).strip("._-") or "run"
    head = head[: MAX_NAME - len(tail)].encode()[: MAX_BYTES - len(tail)].decode(errors="ignore")
    return head + tail


def run_folder(config: dict[str, Any], readable: str) -> Path:
    """`<runs_dir>/<experiment_name>/<run name>`."""
    return Path(config["runs_dir"]).expanduser() / config["experiment_name"] / run_name(config, readable)


def now() -> str:
    """The time as ISO 8601, UTC, in whole seconds."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def software_versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    own = {"python": platform.python_version(), "pegasus-lightning": __version__}
    packages = ("torch", "torchvision", "pytorch-lightning", "hydra-core", "torchmetrics")
    return own | {package: version(package) for package in packages}


class Status:
    """The run's `status.json`: running, finished, interrupted or failed, and what is known of it.

    Every `update` rewrites the file atomically.
    """

    def __init__(self, folder: Path, **fields: Any) -> None:
        self.path = folder / "status.json"
        self.fields: dict[str, Any] = {"status": "running", "exit_code": None, "reason": None} | fields

    @classmethod
    def begin(cls, folder: Path, config: dict[str, Any]) -> Status:
        """The status of a run that starts or goes on now."""
        status = cls(
            folder,
            config_hash=config_hash(config),
            command=[Path(sys.argv[0]).name, *sys.argv[1:]],
            pid=os.getpid(),
            versions=software_versions(),
            started=now(),
        )
        status.update()
        return status

    def update(self, **fields: Any) -> None:
        """Change some fields, and write."""
        self.fields |= fields | {"updated": now()}
        write_json(self.path, self.fields)


def read_status(folder: Path) -> dict[str, Any] | None:
    """What `status.json` in `folder` says; None where there is none that can be read."""
    try:
        content = json.loads((folder / "status.json").read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def log_to(path: Path) -> logging.Handler:
    """Append this package's and Lightning's log to `path`; returns the handler, to be closed at the end."""
    logging.captureWarnings(True)  # Python's warnings go to the log too
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
