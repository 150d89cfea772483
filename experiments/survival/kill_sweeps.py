"""Kill sweeps with SIGKILL, run the same command again, compare every run with an uninterrupted sweep.

    python experiments/survival/kill_sweeps.py --sweeps 20 --out survival-sweeps

Three runs in two CPU slots. At a random moment the sweep's process is killed, either alone (its jobs must notice, save
and end) or together with all its jobs. Every second sweep is killed twice.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from commands import SETTINGS, duplicate_steps, outcome

SWEEP = ["-m", *SETTINGS, "seed=0,1,2", "trainer.max_epochs=8", "hydra.launcher.slots=2", "hydra.launcher.report=false"]
ENVIRONMENT = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "2"}
JOB = "pegasus_lightning.launch.job_process"


def start(folder: Path) -> subprocess.Popen[bytes]:
    """Start the sweep in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "out", "ab") as out:
        command = [sys.executable, "-m", "pegasus_lightning", *SWEEP]
        return subprocess.Popen(command, cwd=folder, env=ENVIRONMENT, stdout=out, stderr=out)


def jobs_of(folder: Path) -> list[int]:
    """Return ids of the job processes whose working directory is `folder`, from /proc."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and JOB in (entry / "cmdline").read_text() and (entry / "cwd").resolve() == folder:
                found.append(int(entry.name))
        except OSError:
            continue  # the process has ended
    return found


def states(folder: Path) -> dict[str, str]:
    """Return the status of each run."""
    paths = folder.glob("runs/single/*/status.json")
    return {path.parent.name: json.loads(path.read_text())["status"] for path in paths}


def kill(folder: Path, process: subprocess.Popen[bytes], moment: float, alone: bool) -> dict[str, Any] | None:
    """Send SIGKILL `moment` seconds after the first job's start; return None if the sweep had ended by then."""
    while process.poll() is None and not jobs_of(folder):
        time.sleep(0.05)
    time.sleep(moment)
    if process.poll() is not None:
        return None
    jobs = jobs_of(folder)
    process.send_signal(signal.SIGKILL)
    if not alone:
        for job in jobs:
            os.kill(job, signal.SIGKILL)
    process.wait()
    saved = {path: path.stat().st_mtime_ns for path in folder.glob("runs/single/*/checkpoints/last.ckpt")}
    finished = [name for name, state in states(folder).items() if state == "finished"]
    return {
        "moment": moment,
        "alone": alone,
        "jobs": len(jobs),
        "finished": finished,
        "saved": {str(path): when for path, when in saved.items() if path.parent.parent.name in finished},
    }


def survive(folder: Path, moments: random.Random, kills: int, longest: float) -> dict[str, Any]:
    """Run one sweep until it ends, killed up to `kills` times."""
    struck: list[dict[str, Any]] = []
    for _ in range(kills):
        one = kill(folder, start(folder), moments.uniform(0, longest), moments.random() < 0.5)
        if one is not None:
            struck.append(one)
    code = start(folder).wait()
    retrained = sum(
        Path(path).stat().st_mtime_ns != when for one in struck for path, when in one["saved"].items()
    )  # a finished run must be left alone
    time.sleep(1)
    return {"kills": struck, "code": code, "retrained": retrained, "orphans": len(jobs_of(folder))}


def runs_of(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the outcome of each run of a sweep, by name."""
    return {path.name: outcome(path) for path in sorted(folder.glob("runs/single/*-s*")) if path.is_dir()}


def table(result: list[dict[str, Any]]) -> str:
    """Return the result as a Markdown table."""
    kills = [one for sweep in result for one in sweep["kills"]]
    runs = [run for sweep in result for run in sweep["runs"].values()]
    rows = [
        ("sweeps of three runs", len(result)),
        ("of these killed at least once", sum(bool(sweep["kills"]) for sweep in result)),
        ("kills (SIGKILL)", len(kills)),
        ("of these of the sweep's process alone", sum(one["alone"] for one in kills)),
        ("of these with runs in training", sum(one["jobs"] > 0 for one in kills)),
        ("of these with a run finished before", sum(bool(one["finished"]) for one in kills)),
        ("sweeps finished by the same command, exit code 0", f"{sum(s['code'] == 0 for s in result)} of {len(result)}"),
        ("finished runs that were trained again", sum(sweep["retrained"] for sweep in result)),
        ("processes left behind", sum(sweep["orphans"] for sweep in result)),
    ]
    for key, what in (
        ("weights", "weights those of the sweep never killed (SHA-256)"),
        ("optimizers", "optimizer states too (SHA-256)"),
        ("metrics", "metrics.jsonl the same, but for the speed"),
        ("pictures", "pictures the same, byte for byte"),
    ):
        rows.append((what, f"{sum(run['same'][key] for run in runs)} of {len(runs)}"))
    rows.append(("steps that stand twice in TensorBoard", sum(run["twice"] for run in runs)))
    return "\n".join(["| what | result |", "| --- | --- |", *(f"| {what} | {value} |" for what, value in rows)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", type=int, default=20)
    parser.add_argument("--out", type=Path, required=True, help="new folder for the sweeps and result.json")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True)
    out, moments = asked.out.resolve(), random.Random(asked.seed)

    began = time.monotonic()
    if start(out / "reference").wait():
        raise SystemExit((out / "reference" / "out").read_text())
    took = time.monotonic() - began
    reference = runs_of(out / "reference")
    print(f"The sweep that nothing interrupts: {took:.0f} s, {len(reference)} runs", flush=True)
    result = []
    number = 0
    while sum(bool(sweep["kills"]) for sweep in result) < asked.sweeps:  # unkilled sweeps do not count
        number += 1
        folder = out / f"sweep-{number}"
        one = survive(folder, moments, 1 + number % 2, 0.7 * took)
        found = runs_of(folder)
        assert found.keys() == reference.keys(), f"{folder}: {sorted(found)}"
        one["runs"] = {
            name: {
                "same": {
                    key: run[key] == reference[name][key] for key in ("weights", "optimizers", "metrics", "pictures")
                },
                "twice": duplicate_steps(run["steps"]),
            }
            for name, run in found.items()
        }
        fine = one["code"] == 0 and all(all(run["same"].values()) for run in one["runs"].values())
        print(
            f"{number}: {len(one['kills'])} kills, exit code {one['code']}, {'all the same' if fine else one['runs']}"
        )
        sys.stdout.flush()
        result.append(one)
        if fine:
            shutil.rmtree(folder)  # sweeps that differ are kept for inspection
        (out / "result.json").write_text(json.dumps(result, indent=1))
    print(f"\n{table(result)}")


if __name__ == "__main__":
    main()
