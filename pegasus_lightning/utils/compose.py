"""Compose the Hydra configuration of a command, and turn Hydra's errors into one-line messages."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, ValidationError

from pegasus_lightning.utils.command_line import check_typed, quote_classes, quote_path
from pegasus_lightning.utils.errors import UnreadSetting, UserError, did_you_mean, nearest
from pegasus_lightning.utils.foreign import read_text

Settings = TypeVar("Settings")
_stored: dict[str, type] = {}  # schemas in Hydra's ConfigStore

# What others call a trainer.
DEVICES = {"gpu": "trainer.gpus=1 takes a GPU", "cpu": "trainer.gpus=0 takes the CPU"}
DEVICES |= {"ddp": "trainer.gpus=2 takes two GPUs", "mps": "only NVIDIA's GPUs and the CPU are supported"}
VERSION_BASE = "1.3"
GROUPS = ("model", "data", "trainer", "callbacks", "experiment")  # of presets of a training
OmegaConf.register_new_resolver("home", lambda path: str(Path(path).expanduser()), replace=True)  # as shells read ~
LAUNCHER_EXTRAS = {"submitit_slurm": "slurm", "submitit_local": "slurm", "ray": "ray"}  # extras that install launchers


SWEPT = re.compile(r"(tag|int|float|interval|range|choice|shuffle|sort)\(")  # Hydra's functions of several values
CLOSE = 0.75  # least similarity of a suggested setting


def conf_folder() -> Path:
    """Return the folder of presets: inside the package in an installed wheel, beside the package in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def presets(group: str) -> list[str]:
    """Return the names of a group's presets."""
    return sorted(path.stem for path in (conf_folder() / group).glob("*.yaml"))


def plain(config: Any) -> dict[str, Any]:
    """Return a config as nested dicts and lists, with interpolations resolved. A missing value raises."""
    container = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def typed(config: DictConfig, schema: type[Settings]) -> Settings:
    """Return a config as an instance of its dataclass schema. A missing value raises."""
    settings = OmegaConf.to_object(config)
    assert isinstance(settings, schema)
    return settings


@dataclass(frozen=True)
class Program:
    """The configuration of a command: its main file, groups of presets and schemas."""

    command: str  # what starts it
    config: str  # name of its main file in conf/
    groups: tuple[str, ...]  # its groups of presets
    schemas: Callable[[], Mapping[str, type]]  # by place in Hydra's ConfigStore, such as "schema/model/vae"
    # Settings that nothing reads in a configuration with such overrides of data, and why ("... means nothing with ...")
    unread: Callable[[DictConfig, Sequence[str]], Mapping[str, str]] = lambda config, data: {}
    # What users of other tools type, and what does it here; None: a command that makes no sweeps
    habits: Mapping[str, str] | None = field(default=None, hash=False)

    def register(self) -> None:
        """Put the schemas into Hydra's ConfigStore."""
        for path, schema in self.schemas().items():
            if _stored.get(path) is not schema:  # storing takes a few milliseconds each
                group, _, name = path.rpartition("/")
                ConfigStore.instance().store(group=group, name=name, node=schema)
                _stored[path] = schema

    def compose(self, overrides: Sequence[str], *, with_hydra: bool = False) -> DictConfig:
        """Return the configuration for command-line overrides, not validated."""
        self.register()
        running = GlobalHydra.instance().hydra  # a launcher's, which runs a job in this process
        GlobalHydra.instance().clear()
        try:
            with initialize_config_dir(str(conf_folder().resolve()), version_base=VERSION_BASE):
                return compose(self.config, overrides=list(overrides), return_hydra_config=with_hydra)
        finally:
            GlobalHydra.instance().hydra = running

    def parse_arguments(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Return Hydra's options and the `overrides`, which may come in any order."""

        def refuse(message: str) -> NoReturn:
            raise UserError(
                f"The command line is not understood ({message}). `{self.command} --help` shows what can be typed."
            )

        check_typed(arguments)
        parser = get_args_parser()
        parser.error = refuse  # type: ignore[method-assign]
        parsed = parser.parse_intermixed_args(list(arguments))
        parsed.overrides = [quote_path(quote_classes(text)) for text in parsed.overrides]
        return parsed

    def check_overrides(self, overrides: Sequence[str]) -> list[Override]:
        """Return the overrides parsed. They may change settings, but not remove any or add unknown ones.

        Raises:
            UserError: an override does more, or sets `_target_`.
            HydraException: an override cannot be parsed; see `explain`.
        """
        parsed = OverridesParser.create().parse_overrides(list(overrides))
        for override in parsed:
            key = override.get_key_element().lstrip("+~")
            if override.is_delete():
                raise UserError(f"'{override.input_line}' is not understood: a setting can be changed, not removed.")
            if key in self.groups and override._value is None:
                raise UserError(f"{key}=null chooses nothing: leave it out, or choose from {', '.join(presets(key))}.")
            if "_target_" in key.split(".") or _names_target(override._value):
                text = override.input_line
                raise UserError(f"'{key}' cannot be set so ({text}): a preset chooses what is built, not a path.")
            if key == "hydra.searchpath" and not _only_folders(override):  # composing would import packages in it
                raise UserError(f"{override.input_line} is not allowed: add presets with --config-dir=FOLDER.")
            added = (override.is_add() or override.is_force_add()) and key.partition(".")[0] != "hydra"
            if added and key not in self.known_keys(overrides):  # Hydra would add a key that nothing reads
                raise UserError(self._unknown_key(key, overrides))
        return parsed

    def _sets(self, text: str, key: str) -> bool:
        """Return whether an override sets the field `key` itself, or a dict around it, rather than chooses a preset."""
        name, _, value = text.lstrip("+").partition("=")
        chooses = name in self.groups and not value.startswith("{")
        return f"{key}.".startswith(f"{name}.") and not chooses

    def check_read(
        self, config: DictConfig, chosen: Sequence[str], typed: Sequence[str], data: Sequence[str] = ()
    ) -> None:
        """Raise UnreadSetting if a setting that nothing reads differs from what the presets give.

        `chosen` are the overrides that choose these presets, `typed` all overrides.
        """
        unread = self.unread(config, data)
        if not unread:
            return
        given = _composed(self, tuple(chosen))
        names: dict[str, list[str]] = {}  # by reason
        keys: dict[str, list[str]] = {}
        at_fault: list[str] = []
        to_add: list[str] = []
        for key, reason in unread.items():
            value, wanted = OmegaConf.select(config, key), OmegaConf.select(given, key)
            if value == wanted:
                continue
            own = [text for text in typed if self._sets(text, key)]
            at_fault += own[-1:]
            if not own:  # another preset sets it
                to_add.append(_as_typed(key, wanted))
            names.setdefault(reason, []).append(own[-1] if own else _as_typed(key, value))
            keys.setdefault(reason, []).append(key)
        if names:
            advice = [f"leave {'it' if len(set(at_fault)) == 1 else 'them'} out"] if at_fault else []
            advice += [f"add {' '.join(to_add)}"] if to_add else []
            raise UnreadSetting(f"{_meaningless(names)}: {' and '.join(advice)}.", _meaningless(keys), at_fault)

    def known_keys(self, overrides: Sequence[str]) -> list[str]:
        """Return every key that could be set, given the presets that the overrides choose (if these exist)."""
        split = [override.partition("=") for override in overrides]
        chosen = [f"{key}={value}" for key, _, value in split if key in self.groups and value in presets(key)]
        return [*_keys(_composed(self, tuple(chosen))), *self.groups]

    def explain(self, error: Exception, overrides: Sequence[str] = ()) -> str:
        """Return an error of Hydra or OmegaConf as one short message: what is wrong, and what to type instead."""
        for cause in _causes(error):
            if isinstance(cause, MissingConfigException) and cause.missing_cfg_file:
                group, _, name = str(cause.missing_cfg_file).rpartition("/")
                if group == "hydra/launcher" and name in LAUNCHER_EXTRAS:
                    extra = f"'.[{LAUNCHER_EXTRAS[name]}]'"
                    return f"This launcher needs a plugin that is not installed. In a checkout: pip install -e {extra}."
                options = presets(group) if group in self.groups else list(cause.options or [])
                if group == "trainer" and name in DEVICES:
                    return f"There is no trainer '{name}': {DEVICES[name]}."
                return f"There is no {group} '{name}'.{did_you_mean(name, options)} Choose from: {', '.join(options)}."
            if isinstance(cause, ConfigKeyError):  # also ConfigAttributeError
                return self._unknown_key(str(cause.full_key or cause.key), overrides)
            if isinstance(cause, ValidationError):
                value = (str(cause.msg) if cause.msg else str(cause)).splitlines()[0]
                if "ListConfig" in value and cause.full_key:
                    typed = next((o.partition("=")[2] for o in overrides if o.startswith(f"{cause.full_key}=")), "one")
                    return f"{cause.full_key} takes a list: write {cause.full_key}=[{typed}]."
                key = cause.full_key or next((o.partition("=")[0] for o in overrides if "=" in o), "?")
                drawn = any(text.startswith(f"{key}=") and "interval(" in text for text in overrides)
                hint = " For whole numbers write int(interval(...))." if drawn and "Integer" in value else ""
                return f"{key} has a value of the wrong type: {value}.{hint}"
            if isinstance(cause, OverrideParseException):
                key, equals, value = str(cause.override).partition("=")
                if re.search(r"\s[\w.+~]+=", value):
                    return f"'{cause.override}' holds several settings in one pair of quotes: quote each by itself."
                if SWEPT.match(value):
                    return (
                        f"The values in '{cause.override}' are not understood. Write {key}=one,two for a list, or "
                        f"{key}=range(1,9,2); a search also takes interval(0.1,1) and tag(log,interval(0.1,1))."
                    )
                if equals and '"' in value:
                    return (
                        f"The value in '{cause.override}' is not understood. Put each text with other signs than "
                        "letters and digits in double quotes, and the whole setting in single quotes."
                    )
                if equals:
                    return f"The value in '{cause.override}' is not understood. Quote it: '{key}=\"{value}\"'."
                return f"'{cause.override}' is not understood. Write settings as key=value, such as seed=1."
        if match := re.search(r"Could not override '([^']+)'", str(error)):
            return self._unknown_key(match[1], overrides)
        match = re.search(r"(?:Ambiguous value for argument|Sweep parameters) '([^']+)'", str(error))
        if match:
            key, sweep = match[1].partition("=")[0], "add -m to train each. " if self.habits is not None else ""
            return f"'{match[1]}' has several values: {sweep}A list is written as {key}=[one,two]."
        if "ConfigLoader is not set" in str(error):
            return "glob(...) is not understood here: write the presets, such as model=vae,acai."
        if "HydraConfig was not set" in str(error):
            return "${hydra:...} is not known here: write the value itself."
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return " ".join(lines[:2])

    def _unknown_key(self, key: str, overrides: Sequence[str]) -> str:
        if key.startswith(("hydra.launcher.", "hydra.sweeper.")):
            plugin = key.split(".")[1]
            chosen = [
                text for text in overrides if text.startswith((f"hydra/{plugin}=", "experiment=")) and "," not in text
            ]
            config = self.compose(chosen, with_hydra=True).hydra[plugin]
            fields = [str(field) for field in config if not str(field).startswith("_")]
            hint = did_you_mean(key.rpartition(".")[2], fields)
            return f"There is no setting '{key}'.{hint} This {plugin} has: {', '.join(sorted(fields))}."
        habit = next((text for name, text in (self.habits or {}).items() if f"{key}.".startswith(f"{name}.")), None)
        if habit is not None:
            return f"There is no setting '{key}'. {habit}"
        section, _, last = key.rpartition(".")
        group = key.partition(".")[0]
        having = (
            [name for name in presets(group) if key in _keys(_composed(self, (f"{group}={name}",)))] if section else []
        )
        swept = any(text.startswith(f"{group}=") and "," in text for text in overrides)
        if having and swept:  # Hydra composes what is common to all jobs first
            return f"'{key}' cannot be set while -m sweeps over {group}: train each {group} by a command of its own."
        if having:
            return f"The chosen {group} has no setting '{key}': it belongs to {group}={','.join(having)}."
        keys = self.known_keys(overrides)
        inside = [known for known in keys if known.startswith(f"{group}.")] if section else []
        # Compare last components: a shared prefix makes any two keys of a section look alike.
        by_last: dict[str, str] = {}
        inside += [known for known in keys if known.rpartition(".")[2] == last]
        for known in sorted(inside or keys, key=lambda known: known.rpartition(".")[0] != section):
            by_last.setdefault(known.rpartition(".")[2], known)
        match = nearest(last, by_last, CLOSE)
        hint = f" Did you mean '{by_last[match]}'?" if match else ""
        return f"There is no setting '{key}'.{hint} `{self.command} --cfg job` shows them all."


def describe_presets(names: Sequence[str]) -> str:
    """Return groups as `--help` lists them: each preset with the first comment line of its file."""
    paragraphs = []
    for group in names:
        lines = [f"  {group}="]
        for name in presets(group):
            text = (conf_folder() / group / f"{name}.yaml").read_text()
            comments = re.findall(r"^# (?!@)(.*)$", text, re.MULTILINE)
            lines.append(f"    {name:<18} {comments[0] if comments else ''}")
        if len(lines) > 1:
            paragraphs.append("\n".join(lines))
    return "\n\n".join(paragraphs)


@lru_cache(maxsize=64)
def _composed(program: Program, overrides: tuple[str, ...]) -> DictConfig:
    return program.compose(overrides)


def _as_typed(key: str, value: Any) -> str:
    """Return a setting as it can be typed."""
    values = list(value) if isinstance(value, ListConfig) else [value]
    words = ["null" if each is None else str(each).lower() if isinstance(each, bool) else str(each) for each in values]
    return f"{key}=[{','.join(words)}]" if isinstance(value, ListConfig) else f"{key}={words[0]}"


def _meaningless(settings: Mapping[str, Sequence[str]]) -> str:
    """Return `a and b mean nothing with x, and c means nothing with y` for settings by reason."""
    clauses = []
    for reason, names in settings.items():
        *most, last = dict.fromkeys(names)
        listed = f"{', '.join(most)} and {last}" if most else last
        clauses.append(f"{listed} {'mean' if most else 'means'} nothing with {reason}")
    return ", and ".join(clauses)


def _only_folders(override: Override) -> bool:
    """Return whether a search path is one list of folders."""
    if override.is_sweep_override():
        return False
    value = override.value()
    return isinstance(value, list) and all(str(place).startswith("file://") for place in value)


def check_presets(folder: Path, overrides: Sequence[str], groups: Sequence[str]) -> None:
    """Raise UserError if a preset in the user's `folder` that the overrides choose cannot be read as one."""
    import yaml  # type: ignore[import-untyped]

    for override in overrides:
        group, _, names = override.partition("=")
        for path in [folder / group / f"{name.strip()}.yaml" for name in names.split(",") if group in groups]:
            if not path.is_file():
                continue
            text = read_text(path)
            try:
                content = yaml.safe_load(text)
            except (yaml.YAMLError, RecursionError, ValueError) as error:
                mark = getattr(error, "problem_mark", None)
                line = "" if mark is None else f", line {mark.line + 1}"
                tab = " YAML is indented with spaces, not with tabs." if "\t" in text else ""
                raise UserError(
                    f"{path}{line} is not YAML ({getattr(error, 'problem', None) or error}).{tab}"
                ) from error
            if not isinstance(content, dict):
                raise UserError(f"{path} holds no settings: a preset is a file of lines such as `key: value`.")
            if "defaults" not in content and group in ("model", "data"):  # the others have one schema
                start = f"`defaults: [{presets(group)[0]}]`"
                raise UserError(f"{path} names no preset that it changes: begin it with a line such as {start}.")


def _names_target(value: Any) -> bool:
    if isinstance(value, dict):
        return any("_target_" in str(key) or _names_target(inner) for key, inner in value.items())
    inner = value if isinstance(value, list) else getattr(value, "list", None)
    return isinstance(inner, list) and any(_names_target(each) for each in inner)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _keys(node: Any, prefix: str = "") -> Iterator[str]:
    for key in node:
        yield prefix + str(key)
        child = None if OmegaConf.is_missing(node, key) else node[key]
        if isinstance(child, DictConfig):
            yield from _keys(child, f"{prefix}{key}.")
