"""The same command run again after a full disk in the middle of a save, and after damaged checkpoints.

    python experiments/survival/disk_cases.py --out disk

The full disk is a tmpfs, if `unshare -rm` may mount one.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from commands import BATCHES_PER_EPOCH, ENVIRONMENT, SETTINGS, Process, outcome, the_run

from pegasus_lightning.runs.checkpoints import LAST, PREVIOUS, is_intact, read_checkpoint

EPOCHS = 4
SMALL = ["callbacks.images=false", "model.networks.channels=16"]


def ended(folder: Path, epochs: int) -> dict[str, Any]:
    """Run the command to its end in `folder`; return its exit code and the lines that `said` keeps."""
    process = Process(folder, [*SMALL, f"trainer.max_epochs={epochs}"])
    code = process.popen.wait()
    return said(code, process.out, process.err)


def said(code: int, out: str, err: str) -> dict[str, Any]:
    """Return exit code, the line that reports where it continued, and the last error line."""
    continued = [line for line in out.splitlines() if line.startswith(("Continuing", "Already"))]
    errors = [line for line in err.splitlines() if "corrupt" in line or "Error" in line]
    return {"code": code, "went_on": continued[0].split(":")[0] if continued else "", "error": (errors or [""])[-1]}


def epochs_saved(run: Path) -> dict[str, str]:
    """Return the state of the two checkpoint files."""
    state = {}
    for name in (LAST, PREVIOUS):
        path = run / "checkpoints" / name
        intact = is_intact(path)
        epochs = read_checkpoint(path)["batches_done"] // BATCHES_PER_EPOCH if intact else 0
        state[name] = f"epoch {epochs}" if intact else "corrupt" if path.exists() else "absent"
    return state


def same(run: Path, reference: dict[str, Any]) -> str:
    """Compare the weights and the optimizers' states with the reference."""
    got = outcome(run)
    return "the same" if all(got[key] == reference[key] for key in ("weights", "optimizers")) else "DIFFERENT"


def full_disk(out: Path, reference: dict[str, Any], megabytes: float) -> dict[str, Any]:
    """Train on a file system of 2.5 checkpoints, enlarge it, run the same command again."""
    place = out / "full"
    (place / "disk").mkdir(parents=True)
    command = [sys.executable, "-m", "pegasus_lightning", *SETTINGS, *SMALL, f"trainer.max_epochs={EPOCHS}"]
    typed, disk = shlex.join(command), shlex.quote(str(place / "disk"))
    notes, room = shlex.quote(str(place)), int(2.5 * megabytes * 1024)
    script = f"""
        mount -t tmpfs -o size={room}k none {disk} || exit 77
        cd {disk}
        timeout 300 {typed} >{notes}/out-1 2>{notes}/err-1; echo $? >{notes}/code-1
        cp -a {disk} {notes}/after-1
        mount -o remount,size=1g {disk}
        timeout 300 {typed} >{notes}/out-2 2>{notes}/err-2; echo $? >{notes}/code-2
        cp -a {disk} {notes}/after-2
    """
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script], env=ENVIRONMENT, capture_output=True, check=False)
    if done.returncode == 77:
        return {"case": "disk full in the third save", "outcome": "not tried: no tmpfs can be mounted here"}
    sessions = []
    for number in (1, 2):
        words = [(place / f"{name}-{number}").read_text() for name in ("code", "out", "err")]
        sessions.append(said(int(words[0]), words[1], words[2]))
    first, second = the_run(place / "after-1"), the_run(place / "after-2")
    assert first is not None
    assert second is not None
    status = (first / "status.json").read_text()
    return {
        "case": "disk full in the third save",
        "first": sessions[0] | {"status": json.loads(status)["status"]} | epochs_saved(first),
        "leftovers": [path.name for path in (first / "checkpoints").iterdir() if path.name.startswith(".")],
        "again": sessions[1],
        "weights": same(second, reference),
    }


def truncate(path: Path) -> None:
    """Keep the first half of the file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    """Empty the file."""
    path.write_bytes(b"")


def flip(path: Path) -> None:
    """Flip one bit in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x80
    path.write_bytes(bytes(data))


DAMAGES: list[Callable[[Path], None]] = [truncate, empty, flip]


def damaged(
    out: Path, begun: Path, reference: dict[str, Any], damage: Callable[[Path], None], names: list[str], epochs: int
) -> dict[str, Any]:
    """Damage these checkpoint files in a copy of the run, then run the command for `epochs`."""
    folder = out / f"{damage.__name__}-{'-'.join(names)}-{epochs}"
    shutil.copytree(begun, folder)
    run = the_run(folder)
    assert run is not None
    for name in names:
        damage(run / "checkpoints" / name)
    again = ended(folder, epochs)
    saved = epochs_saved(run)
    right = epochs == EPOCHS and again["code"] == 0
    return {
        "case": f"{damage.__name__} {' and '.join(names)}{'' if epochs == EPOCHS else ' of a finished run'}",
        "again": again,
        "first": saved,
        "weights": same(run, reference) if right else saved[LAST],
    }


def table(cases: list[dict[str, Any]]) -> str:
    """Return a Markdown table, one row for each case."""
    lines = ["| case | the same command again | exit code | it said | weights at the end |"]
    lines.append("| --- | --- | --- | --- | --- |")
    for case in cases:
        if "again" not in case:
            lines.append(f"| {case['case']} | {case['outcome']} | | | |")
            continue
        again = case["again"]
        error = again["error"].replace("|", "/")[:160]
        lines.append(f"| {case['case']} | {again['went_on']} | {again['code']} | {error} | {case['weights']} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a folder that does not exist yet")
    out = parser.parse_args().out.absolute()
    out.mkdir(parents=True)

    assert ended(out / "reference", EPOCHS)["code"] == 0
    run = the_run(out / "reference")
    assert run is not None
    reference = outcome(run)
    assert ended(out / "begun", EPOCHS - 1)["code"] == 0
    cases = [full_disk(out, reference, (run / "checkpoints" / LAST).stat().st_size / 2**20)]
    print(json.dumps(cases[0], indent=1), flush=True)
    for damage in DAMAGES:
        for names in ([LAST], [PREVIOUS], [LAST, PREVIOUS]):
            cases.append(damaged(out, out / "begun", reference, damage, names, EPOCHS))
            print(cases[-1], flush=True)
    cases.append(damaged(out, out / "begun", reference, flip, [f"{LAST}.sha256"], EPOCHS))
    cases.append(damaged(out, out / "begun", reference, flip, [LAST], EPOCHS - 1))
    (out / "result.json").write_text(json.dumps(cases, indent=1))
    print(f"\n{table(cases)}")


if __name__ == "__main__":
    main()
