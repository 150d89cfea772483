"""Check of `make demo`: seven runs finished without a health alarm, one failed, a page with eight rows.

python experiments/survival/demo_outcome.py runs/demo_ablation
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from pegasus_lightning.launch.jobs import read_jobs
from pegasus_lightning.runs.folder import read_status

VERDICTS = ("dominated critic", "collapsed posterior", "collapsed modes")


def main(home: Path) -> None:
    newest = max(home.glob("sweep-*/sweep.json"), key=lambda path: path.stat().st_mtime)
    jobs = read_jobs(newest)
    failed = [job for job in jobs if job["state"] == "failed"]
    assert [job["name"].partition(",")[0] for job in failed] == ["exploding"], failed
    assert "became NaN or infinite at batch" in failed[0]["reason"], failed
    assert sum(job["state"] == "finished" for job in jobs) == 7, jobs
    for run in (home / job["name"] for job in jobs if job["state"] == "finished"):
        verdicts = {entry["name"]: entry["verdict"] for entry in (read_status(run) or {})["health"]}
        assert verdicts == dict.fromkeys(VERDICTS, "ok"), f"{run}: {verdicts}"
    page = (newest.parent / "report.html").read_text()
    for job in jobs:
        model = job["name"].partition(",")[0]
        assert re.search(rf"\b{model}-s0\b", page), f"{model} is not on the page"
    print(f"Seven runs finished, one failed ({failed[0]['reason']}), all eight are on {newest.parent / 'report.html'}.")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
