"""From presets and what was typed to a configuration, and what is wrong with it in words."""

from __future__ import annotations

import argparse
import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, ValidationError

from pegasus_lightning.evaluate.settings import EvaluateConfig
from pegasus_lightning.generate.settings import GenerateConfig
from pegasus_lightning.models import MODELS
from pegasus_lightning.train.settings import DATA_SCHEMAS, Config
from pegasus_lightning.utils.errors import UserError, did_you_mean, nearest

VERSION_BASE = "1.3"
LAUNCHER_EXTRAS = {"submitit_slurm": "slurm", "submitit_local": "slurm", "ray": "ray"}  # that install launchers


@dataclass(frozen=True)
class Program:
    """One of the commands: what is typed to start it, its YAML in conf/, the groups of presets it has."""

    command: str
    config: str
    groups: tuple[str, ...]


TRAIN = Program("python -m pegasus_lightning", "config", ("model", "data", "trainer", "callbacks", "experiment"))
GENERATE = Program("python -m pegasus_lightning.generate", "generate", ("search",))
EVALUATE = Program("python -m pegasus_lightning.evaluate", "evaluate", ("search",))


def conf_folder() -> Path:
    """The folder of the presets: inside the package when installed as a wheel, else beside it."""
    package = Path(__file__).parents[1]
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


@functools.cache
def register_schemas() -> None:
    """Make the dataclass schemas known to Hydra, under `schema/`."""
    store = ConfigStore.instance()
    store.store(group="schema", name="config", node=Config)
    store.store(group="schema", name="generate", node=GenerateConfig)
    store.store(group="schema", name="evaluate", node=EvaluateConfig)
    for name, model in MODELS.items():
        store.store(group="schema/model", name=name, node=model.Config)
    for name, source in DATA_SCHEMAS.items():
        store.store(group="schema/data", name=name, node=source)


def compose_config(overrides: Sequence[str], program: Program = TRAIN, *, hydra_too: bool = False) -> DictConfig:
    """The configuration for command-line overrides, as a run would see it (not validated)."""
    register_schemas()
    with initialize_config_dir(str(conf_folder().resolve()), version_base=VERSION_BASE):
        return compose(program.config, overrides=list(overrides), return_hydra_config=hydra_too)


def parse_arguments(arguments: Sequence[str], program: Program = TRAIN) -> argparse.Namespace:
    """Hydra's options and the `overrides`, in any order."""

    def refuse(message: str) -> NoReturn:
        raise UserError(
            f"The command line is not understood ({message}). `{program.command} --help` shows what can be typed."
        )

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    return parser.parse_intermixed_args(list(arguments))


def check_overrides(overrides: Sequence[str], program: Program = TRAIN) -> list[Override]:
    """The overrides parsed: they may change settings, neither remove any nor add what nothing reads.

    Raises:
        UserError: or one of Hydra's errors, see `explain`.
    """
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    for override in parsed:
        key = override.get_key_element().lstrip("+~")
        if override.is_delete():
            raise UserError(f"'{override.input_line}' is not understood: a setting can be changed, not removed.")
        if "_target_" in key.split(".") or _names_target(override._value):  # nothing that is typed is imported
            said = override.input_line
            raise UserError(f"'{key}' cannot be set so ({said}): a preset chooses what is built, not a path.")
        added = (override.is_add() or override.is_force_add()) and key.partition(".")[0] != "hydra"
        if added and key not in known_keys(overrides, program):  # Hydra would add a key that nothing reads
            raise UserError(_unknown_key(key, overrides, program))
    return parsed


def _names_target(value: Any) -> bool:
    if isinstance(value, dict):
        return any("_target_" in str(key) or _names_target(inner) for key, inner in value.items())
    inner = value if isinstance(value, list) else getattr(value, "list", None)
    return isinstance(inner, list) and any(_names_target(each) for each in inner)


def data_settings(saved: DictConfig | None, overrides: Sequence[str]) -> DictConfig | None:
    """The `data` section of a trained run with overrides such as `data=silhouettes` and `data.root=photos`.

    Args:
        saved: the run's; None where it is not known.
        overrides: those that begin with `data=` or `data.`.

    Returns None where there is neither.

    Raises:
        UserError: unknown source, field or type of value; or one of Hydra's errors, see `explain`.
    """
    register_schemas()
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    for override in parsed:
        if override.is_sweep_override():
            raise UserError(f"'{override.input_line}' names several: one at a time here.")
    chosen = [str(override.value()) for override in parsed if override.get_key_element() == "data"]
    source = chosen[-1] if chosen else None if saved is None else str(saved.get("source"))
    if source is None:
        if overrides:
            raise UserError(f"Where do the images come from? Say data=SOURCE too: {', '.join(DATA_SCHEMAS)}.")
        return None
    if source not in DATA_SCHEMAS:
        hint = did_you_mean(source, DATA_SCHEMAS)
        raise UserError(f"There is no data '{source}'.{hint} Choose from: {', '.join(DATA_SCHEMAS)}.")
    config = OmegaConf.structured(DATA_SCHEMAS[source])
    if saved is not None and (not chosen or saved.get("source") == source):
        config = OmegaConf.merge(config, saved)
    elif saved is not None:
        config = OmegaConf.merge(config, {"classes": saved.classes})
    assert isinstance(config, DictConfig)
    known = [str(field) for field in config]
    for override in parsed:
        group, _, field = override.get_key_element().partition(".")
        if group != "data" or not field:
            continue
        if field not in known:
            hint = did_you_mean(field, known)
            raise UserError(f"There is no setting 'data.{field}' for data={source}.{hint}")
        try:
            OmegaConf.update(config, field, override.value())
        except ValidationError as error:
            raise UserError(f"data.{field} has a value of the wrong type: {override.input_line}.") from error
    return config


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


def known_keys(overrides: Sequence[str], program: Program = TRAIN) -> list[str]:
    """Every key that could be set, given the groups that the overrides choose (as far as these exist)."""
    chosen = []
    for override in overrides:
        key, _, value = override.partition("=")
        if key in program.groups and value in presets(key):
            chosen.append(override)
    return [*_flat_keys(compose_config(chosen, program)), *program.groups]


def explain(error: Exception, overrides: Sequence[str] = (), program: Program = TRAIN) -> str:
    """Hydra's or OmegaConf's error as one short message: what was wrong, what was meant, what to type."""
    for cause in _causes(error):
        if isinstance(cause, MissingConfigException) and cause.missing_cfg_file:
            group, _, name = str(cause.missing_cfg_file).rpartition("/")
            if group == "hydra/launcher" and name in LAUNCHER_EXTRAS:
                extra = LAUNCHER_EXTRAS[name]
                return f"This launcher needs a plugin that is not installed: pip install 'pegasus-lightning[{extra}]'."
            options = presets(group) if group in program.groups else list(cause.options or [])
            return f"There is no {group} '{name}'.{did_you_mean(name, options)} Choose from: {', '.join(options)}."
        if isinstance(cause, ConfigKeyError):  # also ConfigAttributeError
            return _unknown_key(str(cause.full_key or cause.key), overrides, program)
        if isinstance(cause, ValidationError):
            value = (str(cause.msg) if cause.msg else str(cause)).splitlines()[0]
            if "ListConfig" in value and cause.full_key:
                return f"{cause.full_key} takes a list: write {cause.full_key}=[one] or {cause.full_key}=[one,two]."
            key = cause.full_key or next((o.partition("=")[0] for o in overrides if "=" in o), "?")
            return f"{key} has a value of the wrong type: {value}."
        if isinstance(cause, OverrideParseException):
            key, equals, value = str(cause.override).partition("=")
            if equals:
                return f"The value in '{cause.override}' is not understood. Quote it: '{key}=\"{value}\"'."
            return f"'{cause.override}' is not understood. Write settings as key=value, such as seed=1."
    match = re.search(r"Could not override '([^']+)'", str(error))
    if match:
        return _unknown_key(match[1], overrides, program)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])


def _unknown_key(key: str, overrides: Sequence[str], program: Program) -> str:
    if key.startswith("hydra.launcher."):
        launcher = [text for text in overrides if text.startswith("hydra/launcher=")]
        config = compose_config(launcher, program, hydra_too=True).hydra.launcher
        fields = [str(field) for field in config if not str(field).startswith("_")]
        hint = did_you_mean(key.rpartition(".")[2], fields)
        return f"There is no setting '{key}'.{hint} This launcher has: {', '.join(sorted(fields))}."
    keys = known_keys(overrides, program)
    # By the last component first, wherever it stands: a shared prefix makes any two keys of a section alike.
    by_last: dict[str, str] = {}
    for known in sorted(keys, key=lambda known: known.rpartition(".")[0] != key.rpartition(".")[0]):
        by_last.setdefault(known.rpartition(".")[2], known)
    match = nearest(key.rpartition(".")[2], by_last)
    hint = f" Did you mean '{by_last[match]}'?" if match else did_you_mean(key, keys)
    return f"There is no setting '{key}'.{hint} `{program.command} --cfg job` shows them all."


# What there is.


def presets(group: str) -> list[str]:
    """Names of a group's presets."""
    return sorted(path.stem for path in (conf_folder() / group).glob("*.yaml"))


def describe_presets(program: Program) -> str:
    """The program's groups, each preset with the first line of its file, as `--help` lists them."""
    paragraphs = []
    for group in program.groups:
        lines = [f"  {group}="]
        for name in presets(group):
            comments = re.findall(r"^# (?!@)(.*)$", (conf_folder() / group / f"{name}.yaml").read_text(), re.MULTILINE)
            lines.append(f"    {name:<18} {comments[0] if comments else ''}")
        if len(lines) > 1:
            paragraphs.append("\n".join(lines))
    return "\n\n".join(paragraphs)
