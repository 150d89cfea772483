"""Kill a training run repeatedly with SIGKILL, run the same command each time, compare with an uninterrupted run.

    python experiments/survival/kill_runs.py --kills 50 --out survival

Some kills come at a random moment between the start of the training and its expected end, others in the middle of a
save. One thread; a run that was killed six times is left to finish.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import signal
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from commands import BATCHES_PER_EPOCH, Process, batches_logged, duplicate_steps, outcome, the_run

from pegasus_lightning.runs.checkpoints import LAST, latest_checkpoint, read_checkpoint
from pegasus_lightning.utils.errors import UserError

KILLS_A_RUN = 6
POLL_SECONDS = 0.001


@dataclass
class Session:
    """One process, from its start to its end or kill."""

    resumed_at: int  # batches; 0 for a fresh start
    first_batch_seconds: float | None  # process start to the end of the first batch; None if it was killed before
    seconds: float
    training_seconds: float  # part of `seconds`, from "Run folder: ..." on
    killed: bool
    aimed: bool = False
    in_save: bool = False
    saved: int = 0  # batches in the newest intact checkpoint after the kill


def saved_batches(run: Path | None) -> int | None:
    """Return batches done in the newest intact checkpoint; 0 if nothing was saved, None if all are corrupt."""
    if run is None:
        return 0
    try:
        newest = latest_checkpoint(run)
    except UserError:
        return None
    return 0 if newest is None else int(read_checkpoint(newest)["batches_done"])


def save_under_way(run: Path | None) -> bool:
    """Return whether a save is unfinished: a temporary file, or a hash file with two hashes."""
    folder = run / "checkpoints" if run is not None else None
    if folder is None or not folder.is_dir():
        return False
    hashes = [path for path in folder.glob("*.sha256") if len(path.read_text().split()) > 1]
    return bool(hashes) or any(path.name.startswith(".") for path in folder.iterdir())


def session(folder: Path, epochs: int, resumed_at: int, ripe: Callable[[Path | None, float], bool] | None) -> Session:
    """Run the command; kill it when `ripe(run folder, seconds since the training began)` is true."""
    process = Process(folder, [f"trainer.max_epochs={epochs}"])
    began, first_batch = None, None
    while process.popen.poll() is None:
        now = time.time()
        run = the_run(folder)
        if began is None and "Run folder:" in process.out:
            began = now
        if first_batch is None and began is not None and batches_logged(run, process.started) > resumed_at:
            first_batch = now - process.started
        if ripe is not None and began is not None and ripe(run, now - began):
            os.kill(process.popen.pid, signal.SIGKILL)
            process.popen.wait()
        time.sleep(POLL_SECONDS)
    code = process.popen.returncode
    if code not in (0, -signal.SIGKILL):
        raise SystemExit(f"The command ended with {code}:\n{process.err}")
    killed = code == -signal.SIGKILL
    ended = time.time()
    return Session(resumed_at, first_batch, ended - process.started, ended - (began or ended), killed)


def at_random(moments: random.Random, expected: float) -> Callable[[Path | None, float], bool]:
    """Return a condition that holds from a random moment of the `expected` seconds of training left."""
    moment = moments.uniform(0, expected)
    return lambda run, seconds: seconds >= moment


def in_a_save(moments: random.Random, saves_left: int, save_seconds: float) -> Callable[[Path | None, float], bool]:
    """Return a condition that holds within `save_seconds` of the start of one of the remaining saves."""
    which, delay = moments.randint(1, max(saves_left, 1)), moments.uniform(0, save_seconds)
    begun: list[float] = []
    stirring = True  # a file left by a killed save is no save of this process

    def ripe(run: Path | None, seconds: float) -> bool:
        nonlocal stirring
        there = run is not None and any(run.glob(f"checkpoints/.{LAST}.*"))
        if there and not stirring:
            begun.append(seconds)
        stirring = there
        return len(begun) >= which and seconds >= begun[which - 1] + delay

    return ripe


def survive(
    folder: Path, epochs: int, pace: dict[str, float], moments: random.Random, kills_left: int, aimed_share: float
) -> dict[str, Any]:
    """Run one training to its end, killed up to KILLS_A_RUN times."""
    sessions: list[Session] = []
    lost, saved = 0, 0
    while True:
        epochs_left = epochs - saved // BATCHES_PER_EPOCH
        ripe, aimed = None, moments.random() < aimed_share
        if len(sessions) < min(KILLS_A_RUN, kills_left):
            expected = pace["around"] + epochs_left * pace["epoch"]
            ripe = in_a_save(moments, epochs_left, pace["save"]) if aimed else at_random(moments, expected)
        one = session(folder, epochs, saved, ripe)
        sessions.append(one)
        if not one.killed:
            break
        run = the_run(folder)
        one.aimed, one.in_save = aimed, save_under_way(run)
        there = saved_batches(run)
        lost += there is None or there < saved
        one.saved = saved = there or 0
        print(
            f"  killed after {one.seconds:5.1f} s{' in a save' if one.in_save else '':<11} {saved} batches", flush=True
        )
    run = the_run(folder)
    assert run is not None
    leftovers = [str(path.relative_to(run)) for path in run.rglob(".*") if path.name != ".lock"]
    return {"sessions": [vars(one) for one in sessions], "checkpoints_lost": lost, "leftovers": leftovers} | outcome(
        run
    )


def compare(run: dict[str, Any], reference: dict[str, Any]) -> dict[str, bool]:
    """Return which parts of the outcome equal the reference."""
    return {key: run[key] == reference[key] for key in ("weights", "optimizers", "metrics", "steps", "pictures")}


def pace_of(reference: Session, run: Path, epochs: int) -> dict[str, float]:
    """Return seconds outside the epochs, of an epoch, and of a save with some margin."""
    log = (run / "train.log").read_text()
    trained = float(log.rpartition("Trained for ")[2].split()[0])
    content = torch.load(run / "checkpoints" / LAST, weights_only=True)
    with open(run / "timed.tmp", "wb") as file:  # time of a save on this disk
        began = time.perf_counter()
        torch.save(content, file)
        os.fsync(file.fileno())
    save = time.perf_counter() - began
    (run / "timed.tmp").unlink()
    return {"around": reference.training_seconds - trained, "epoch": trained / epochs, "save": 1.5 * save}


def spread(values: list[float]) -> str:
    """Return the median and the range."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})" if values else "none"


def table(result: dict[str, Any]) -> str:
    """Return the result as a Markdown table."""
    runs, kills = result["runs"], [s for run in result["runs"] for s in run["sessions"] if s["killed"]]
    everything = [s for run in runs for s in run["sessions"]]
    timed = [s for s in everything if s["first_batch_seconds"] is not None]
    fresh = [s["first_batch_seconds"] for s in timed if s["resumed_at"] == 0] + [
        result["reference_first_batch_seconds"]
    ]
    resumed = [s["first_batch_seconds"] for s in timed if s["resumed_at"] > 0]
    same = {key: sum(run["same"][key] for run in runs) for key in runs[0]["same"]}
    of_all = f"of {len(runs)}"
    rows = [
        ("kills (SIGKILL)", len(kills)),
        ("of these while a save was under way", sum(s["in_save"] for s in kills)),
        ("of these before anything was saved", sum(s["saved"] == 0 for s in kills)),
        ("most kills in one run", max(sum(s["killed"] for s in run["sessions"]) for run in runs)),
        ("runs finished by running the same command again", f"{len(runs)} {of_all}"),
        ("weights those of the run never killed (SHA-256)", f"{same['weights']} {of_all}"),
        ("optimizer states too (SHA-256)", f"{same['optimizers']} {of_all}"),
        ("checkpoints lost or gone back", sum(run["checkpoints_lost"] for run in runs)),
        ("metrics.jsonl the same, but for the speed", f"{same['metrics']} {of_all}"),
        ("TensorBoard's tags and steps the same", f"{same['steps']} {of_all}"),
        ("steps that stand twice in TensorBoard", sum(duplicate_steps(run["steps"]) for run in runs)),
        ("pictures the same, byte for byte", f"{same['pictures']} {of_all}"),
        ("temporary files left in finished run folders", sum(len(run["leftovers"]) for run in runs)),
        ("seconds to the first batch, fresh start", f"{spread(fresh)}, n = {len(fresh)}"),
        ("seconds to the first batch, resumed", f"{spread(resumed)}, n = {len(resumed)}"),
    ]
    if resumed:
        cost = statistics.median(resumed) - statistics.median(fresh)
        rows.append(("a resume costs more than a fresh start by", f"{cost:.2f} s (medians)"))
    return "\n".join(["| what | result |", "| --- | --- |", *(f"| {what} | {value} |" for what, value in rows)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--out", type=Path, required=True, help="new folder for the runs and result.json")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--aimed", type=float, default=0.35, help="share of kills aimed into a save")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True)
    out, moments = asked.out.absolute(), random.Random(asked.seed)

    print("The run that nothing interrupts:", flush=True)
    first = session(out / "reference", asked.epochs, 0, None)
    run = the_run(out / "reference")
    assert run is not None
    assert first.first_batch_seconds is not None
    pace, reference = pace_of(first, run, asked.epochs), outcome(run)
    print(f"  {first.seconds:.1f} s, {pace['epoch']:.2f} s an epoch, {pace['save']:.3f} s a save", flush=True)

    runs: list[dict[str, Any]] = []
    kills = 0
    while kills < asked.kills:
        print(f"Run {len(runs) + 1}, {kills} kills so far:", flush=True)
        folder = out / f"run-{len(runs) + 1}"
        one = survive(folder, asked.epochs, pace, moments, asked.kills - kills, asked.aimed)
        one["same"] = compare(one, reference)
        kills += sum(s["killed"] for s in one["sessions"])
        print(f"  finished; the same: {one['same']}", flush=True)
        runs.append(one)
        if all(one["same"].values()):
            shutil.rmtree(folder)  # runs that differ are kept for inspection
    result = {
        "asked": {key: str(value) for key, value in vars(asked).items()},
        "machine": {"python": platform.python_version(), "torch": torch.__version__, "cores": os.cpu_count()},
        "pace": pace,
        "reference_first_batch_seconds": first.first_batch_seconds,
        "reference": reference,
        "runs": runs,
    }
    (out / "result.json").write_text(json.dumps(result, indent=1))
    print(f"\n{table(result)}")


if __name__ == "__main__":
    main()
