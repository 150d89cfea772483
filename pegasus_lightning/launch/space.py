"""The space of a search: settings with the values that they may take, in Hydra's syntax of sweeps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import zip_longest
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Transformer

from pegasus_lightning.runs.folder import NOT_IDENTITY
from pegasus_lightning.utils.errors import UserError, check_at_least, check_not_negative

SEARCH = "hydra_plugins.pegasus_optuna.sweeper.OptunaSweeper"
INSIDE = 0.382  # where in an interval a value lies that is not round, as a whole number would be
MAX_RUN_NAME = 60  # characters that `train.settings.validate` allows
DIGITS = 4  # significant, of the values of a trial


@dataclass(frozen=True)
class Dimension:
    """A setting of a search: a list of `choices` as typed, or the numbers from `low` to `high`."""

    key: str
    choices: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    step: float | None = None
    log: bool = False  # whether the logarithm is drawn evenly
    whole: bool = False  # whether only whole numbers are drawn

    def written(self, value: Any) -> str:
        """Return `key=value` as typed: numbers rounded to four digits, unless they leave the range."""
        if self.choices or self.whole:
            return f"{self.key}={value}"
        rounded = f"{value:.{DIGITS}g}"
        return f"{self.key}={rounded if self.low <= float(rounded) <= self.high else value}"

    def probes(self) -> list[str]:
        """Return settings whose validity tells that of the others: a value inside, both ends, or all choices."""
        if self.choices:
            return [self.written(choice) for choice in self.choices]
        inside = self.low + INSIDE * (self.high - self.low)
        if self.whole or self.step is not None:
            step = self.step or 1
            inside = self.low + step * math.floor((inside - self.low) / step)
        values = (inside, self.low, self.high)
        return list(dict.fromkeys(self.written(int(value) if self.whole else value) for value in values))

    def distribution(self) -> Any:
        """Return the distribution of Optuna that draws values."""
        from optuna import distributions

        if self.choices:
            return distributions.CategoricalDistribution(self.choices)
        if self.whole:
            return distributions.IntDistribution(int(self.low), int(self.high), log=self.log, step=int(self.step or 1))
        return distributions.FloatDistribution(self.low, self.high, log=self.log, step=self.step)


def read_space(params: Mapping[Any, Any] | None, overrides: Sequence[str]) -> tuple[list[str], list[Dimension]]:
    """Return the overrides with one value, and the dimensions, of a command line with the params of its preset.

    As in every sweep, a typed value replaces that of the preset. Raise UserError for values that cannot be searched,
    and HydraException for those that cannot be parsed.
    """
    parser = OverridesParser.create()
    preset = [f"{key}={value}" for key, value in (params or {}).items()]
    last = {parsed.get_key_element(): parsed for parsed in parser.parse_overrides([*preset, *overrides])}
    fixed = [str(parsed.input_line) for parsed in last.values() if not parsed.is_sweep_override()]
    return fixed, [_dimension(key, parsed) for key, parsed in last.items() if parsed.is_sweep_override()]


def _dimension(key: str, override: Override) -> Dimension:
    value: Any = override.value()
    if override.is_interval_sweep():
        whole, log = isinstance(value.start, int) and isinstance(value.end, int), "log" in value.tags
        if not value.start < value.end:
            raise UserError(f"'{override.input_line}' is empty: write the lower end first, as in interval(0.1,10).")
        if log and value.start <= 0:
            raise UserError(f"'{override.input_line}' begins at {value.start}, which has no logarithm: begin above 0.")
        return Dimension(key, low=value.start, high=value.end, log=log, whole=whole)
    texts = [str(each) for each in override.sweep_iterator(transformer=Transformer.encode)]
    if len(set(texts)) < len(texts) or not texts:
        raise UserError(f"'{override.input_line}' names {'a value twice' if texts else 'no value'}.")
    if override.is_range_sweep() and len(texts) > 1 and value.step > 0 and not value.shuffle:
        whole = all(isinstance(each, int) for each in (value.start, value.stop, value.step))
        return Dimension(key, low=float(texts[0]), high=float(texts[-1]), step=value.step, whole=whole)
    return Dimension(key, choices=tuple(texts))


def probes(fixed: Sequence[str], space: Sequence[Dimension]) -> list[list[str]]:
    """Return overrides of a few runs that tell whether those of the search are valid: each value that counts, once."""
    columns = [dimension.probes() for dimension in space]
    rows = list(zip_longest(*columns)) or [()]
    return [[*fixed, *(value or column[0] for value, column in zip(row, columns, strict=True))] for row in rows]


def check_search(settings: Any, launcher: Any, config: Any, space: Sequence[Dimension], pool: str) -> None:
    """Raise UserError if a search cannot be run with `hydra.sweeper`, `hydra.launcher` and the settings of a run."""
    spec = find_spec("optuna")
    if spec is None or spec.origin is None:  # a folder of that name has no origin
        raise UserError(
            "hydra/sweeper=optuna needs a package that is not installed. In a checkout: pip install -e '.[search]'."
        )
    if not space:
        raise UserError(
            "There is nothing to search: give a setting several values, such as "
            "'model.autoencoder_optimizer.lr=tag(log,interval(1e-4,1e-2))'."
        )
    if any(dimension.key == "seed" for dimension in space):
        raise UserError("A search would choose the luckiest seed: give seed one value.")
    for group, _, name in (dimension.key.partition(".") for dimension in space):
        if group in NOT_IDENTITY[""] or name in NOT_IDENTITY.get(group, ()):
            key = f"{group}.{name}" if name else group
            raise UserError(f"{key} makes no other run, so it cannot be searched: give it one value.")
    if launcher.get("_target_") != pool:
        raise UserError("hydra/sweeper=optuna trains on this machine alone: leave hydra/launcher out.")
    if not launcher.rank_by.startswith("validation/"):
        raise UserError(
            f"hydra.launcher.rank_by={launcher.rank_by} is of the test split, which is not for choosing settings: "
            "a search takes a figure of validation/."
        )
    if config.resume != "auto":
        raise UserError(f"A search goes on where it ended: leave resume={config.resume} out.")
    every, epochs = config.trainer.validate_every_n_epochs, config.trainer.max_epochs
    if every > epochs:
        raise UserError(f"trainer.validate_every_n_epochs={every} validates nothing in {epochs} epochs: make it less.")
    check_at_least("hydra.sweeper.n_trials", settings.n_trials, 1)
    longest = MAX_RUN_NAME - 1 - max(2, len(str(settings.n_trials)))
    if config.run_name and len(config.run_name) > longest:
        raise UserError(
            f"run_name={config.run_name} is too long for a search, which adds the number of each trial: "
            f"use at most {longest} characters."
        )
    for key in ("seed", "random_trials", "prune_after_epochs", "prune_after_trials"):
        check_not_negative(f"hydra.sweeper.{key}", settings[key])
