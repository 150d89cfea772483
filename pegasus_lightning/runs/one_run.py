"""All that is known of one run, as text: `python -m pegasus_lightning.runs show`."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pegasus_lightning.runs.catalogue import Entry, same_value, setting
from pegasus_lightning.runs.folder import machines_of
from pegasus_lightning.runs.scorecards import FILE, newest_first
from pegasus_lightning.runs.state import command_of, moment, words_of
from pegasus_lightning.runs.tables import clock, epochs_of, telling, told, written

MACHINE = {"device": "{}", "cpu": "{}", "precision": "{}", "processes": "processes: {}", "threads": "threads: {}"}
RESULTS = ("pegasi", "evaluation", "panel", "export")  # folders of results


def about_run(entry: Entry) -> str:
    """Return what is known of a run: how it was made, how it ended, its figures, and where its results are."""
    said, folder = entry.said, entry.folder
    parts: dict[str, list[str]] = {"folder": [str(folder)], "command": [command_of(said)], "typed": _typed(entry)}
    exit_code, reason = said.get("exit_code"), said.get("reason")
    ended = f" (exit code {exit_code})" if exit_code else ""
    parts["status"] = [f"{entry.state}{ended}{f': {reason}' if reason else ''}"]
    batches = f", {said['batches']:,} batches" if said.get("batches") is not None else ""
    parts["epochs"] = [f"{epochs.replace('/', ' of ')}{batches}" if (epochs := epochs_of(entry)) else ""]
    times = [f"{field} {_date(moment(said, field))}" for field in ("started", "updated") if moment(said, field)]
    seconds = entry.seconds
    parts["time"] = [", ".join([*times, *([] if seconds is None else [f"last session {clock(seconds)}"])])]
    parts["machine"] = [
        ", ".join(form.format(machine[key]) for key, form in MACHINE.items() if machine.get(key))
        for machine in machines_of(said)
    ]
    parts["figures"] = [f"{tag:<26} {written(entry, tag):>8}" for tag in telling([entry])]
    parts["health"] = [*_health(said.get("health")), *(entry.card.alarms if entry.card else ())]
    parts |= {"there": _there(entry), "unreadable": entry.problems}
    lines = [entry.name]
    for title, texts in parts.items():
        shown = [text for text in texts if text]
        lines += [f"  {title if i == 0 else '':<10}  {text}" for i, text in enumerate(shown)]
    return "\n".join(told(line) for line in lines)


def _typed(entry: Entry) -> list[str]:
    """Return the settings that were typed, with the value in config.yaml where it is another one."""
    typed = {}
    for word in words_of(entry.said)[1:]:
        key, equals, value = word.partition("=")
        key = key.lstrip("+~")
        if equals and not word.startswith("-"):
            other = key in entry.config and not same_value(entry.config[key], value)
            typed[key] = f"{word}  (config.yaml: {setting(entry.config[key])})" if other else word
    return list(typed.values())


def _date(seconds: float | None) -> str:
    return "" if seconds is None else datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S")


def _health(verdicts: Any) -> list[str]:
    found = [entry for entry in verdicts if isinstance(entry, dict)] if isinstance(verdicts, list) else []
    return [f"{entry.get('verdict')}: {entry.get('sentence') or entry.get('name')}" for entry in found]


def _there(entry: Entry) -> list[str]:
    folder = entry.folder
    pictures = newest_first((folder / "images").glob("*.png"))
    lines = [f"{folder / 'images'} (newest: {pictures[0].name})"] if pictures else []
    files = (folder / "train.log", *(folder / "checkpoints" / f"{name}.ckpt" for name in ("last", "best")))
    lines += [str(path) for path in files if path.exists()]
    for name in RESULTS:
        results = [path for path in newest_first((folder / name).glob("*")) if not path.name.startswith(".")]
        card = f"{results[0].name}/{FILE}" if name == "evaluation" and results else ""
        more = f" (newest: {card or results[0].name})" if results and name != "export" else ""
        lines += [f"{folder / name}{more}"] if results else []
    return lines
