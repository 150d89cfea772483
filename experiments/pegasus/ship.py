"""Write a trained run as weights of the package (`pegasus_lightning/generate/pretrained.py`).

    python experiments/pegasus/ship.py runs/pegasus/... --name pegasus --trained-from "JPEG copies ..."

Reads the run's data, for the statistics of its codes, and packs its guide too. Prints the SHA-256 to enter in
`pegasus_lightning.generate.pretrained.PRETRAINED`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pegasus_lightning.data.module import load_split
from pegasus_lightning.generate.pairs import Parents
from pegasus_lightning.generate.pretrained import FOLDER, pack
from pegasus_lightning.recognisers.store import RecogniserStore
from pegasus_lightning.runs.trained import open_run
from pegasus_lightning.train.guide import check_guide


def main() -> None:
    """Pack one run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the run's folder")
    parser.add_argument("--name", default="pegasus")
    parser.add_argument("--trained-from", required=True, help="description of the training images")
    options = parser.parse_args()
    run = open_run(options.run)
    if run.config is None:
        raise SystemExit(f"{options.run} is no run's folder.")
    guide = run.config.model.guide
    stored = RecogniserStore().committee(run.config.data, list(guide.architectures), images=guide.images)
    check_guide(stored, run.checkpoint)
    parents = Parents.of(load_split(run.config.data, "train"))
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{options.name}.safetensors"
    digest = pack(run.model, stored.recogniser, parents, {"trained_from": options.trained_from}, path)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB\n{digest}")


if __name__ == "__main__":
    main()
