"""What a search has found: the settings of its trials, best first, and the command that trains the best in full."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pegasus_lightning.launch.jobs import Job
from pegasus_lightning.launch.space import Dimension
from pegasus_lightning.launch.tables import STYLES, ShellCommand, head_of, lower_is_better, plain_table
from pegasus_lightning.train.settings import TRAIN
from pegasus_lightning.utils.compose import plain

SHORTENED = ("max_epochs", "max_time")  # settings of the trainer that make a trial short
# Settings of the model that count batches, whatever the length of the run.
IN_BATCHES = ("schedule_batches", "warmup", "decay_after", "kl_warmup", "kl_cycle", "critic_starts_at", "critic_ramp")
SHORT = ("run_name", "experiment_name", "trainer", *(f"trainer.{name}" for name in SHORTENED))  # of trials alone


def print_best(jobs: Sequence[Job], space: Sequence[Dimension], values: Mapping[int, float], rank_by: str) -> None:
    """Print the trials' settings, best first, and the command that trains those of the best in full.

    `values` are the objectives of the finished trials by number of the job.
    """
    sign = 1 if lower_is_better(rank_by) else -1
    order = sorted(values, key=lambda number: (sign * values[number], number))
    by_number = {job.number: job for job in jobs}
    console = Console()
    others = [job for job in jobs if job.number not in values and job.overrides]
    console.print(settings_table([*(by_number[number] for number in order), *others], space, values, rank_by))
    if not order:
        print("No trial has finished: there is no best one.", flush=True)
        return
    best = by_number[order[0]]
    print(f"The best is {best.shown}, {best.folder}. To train its settings in full:", flush=True)
    words = ["python", "-m", "pegasus_lightning", *in_full(best.overrides)]
    # A terminal gets short lines; a file is not to be cut anywhere.
    console.print(ShellCommand(words, indent=2), soft_wrap=not sys.stdout.isatty())
    if kept := in_batches(best.overrides):
        print(f"These settings count batches and stay as in the trial: {', '.join(kept)}.", flush=True)


def settings_table(jobs: Sequence[Job], space: Sequence[Dimension], values: Mapping[int, float], rank_by: str) -> Table:
    """Return a row for each job: its settings, and its objective or how it ended."""
    table = plain_table("Settings, best first")
    table.add_column("trial", no_wrap=True)
    head, style = head_of(rank_by)
    table.add_column(head, justify="right", no_wrap=True)
    for dimension in space:
        name = short_key(dimension.key, space).replace("_", "\n").replace(".", "\n")
        table.add_column(name, justify="right", overflow="fold")
    for place, job in enumerate(jobs):
        chosen = dict(text.partition("=")[::2] for text in job.overrides)
        value = values.get(job.number)
        said = Text(job.state.value, STYLES[job.state]) if value is None else Text(format(value, style))
        row = [Text(chosen[dimension.key]) for dimension in space]
        best = "bold" if place == 0 and value is not None else ""
        table.add_row(Text(job.shown.removeprefix("trial ")), said, *row, style=best)
    return table


def short_key(key: str, space: Sequence[Dimension]) -> str:
    """Return as little of a dotted key as tells it from the others of the space."""
    others = [f".{dimension.key}" for dimension in space if dimension.key != key]
    parts = key.split(".")
    ends = (".".join(parts[start:]) for start in reversed(range(len(parts))))
    return next((end for end in ends if not any(other.endswith(f".{end}") for other in others)), key)


def in_full(overrides: Sequence[str]) -> list[str]:
    """Return the overrides of a trial at full length, for a folder beside that of the search."""
    config, usual = plain(TRAIN.compose(overrides)), plain(TRAIN.compose([]))["trainer"]
    words = [text for text in overrides if text.partition("=")[0] not in SHORT]
    words.append(f"experiment_name={config['experiment_name']}_best")
    given = plain(TRAIN.compose(words))["trainer"]
    for name in SHORTENED:
        if given[name] != usual[name]:
            words.append(f"trainer.{name}={'null' if usual[name] is None else usual[name]}")
    return words


def in_batches(overrides: Sequence[str]) -> list[str]:
    """Return the model's settings, as typed, that count batches and are set in a trial of these overrides."""
    model = plain(TRAIN.compose(overrides))["model"]
    sections = {"model": model} | {f"model.{key}": value for key, value in model.items() if isinstance(value, dict)}
    return [
        f"{key}.{name}={section[name]}" for key, section in sections.items() for name in IN_BATCHES if section.get(name)
    ]
