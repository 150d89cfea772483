"""Write a trained run as weights of the package (`pegasus_lightning/generate/pretrained.py`).

    python experiments/pegasus/ship.py runs/pegasus/... --name pegasus --trained-from "JPEG copies ..."

Packs the winged judges that guide searches, trained now if need be, and the codes of training images that make good
chimeras. Prints the SHA-256 to enter in `pegasus_lightning.generate.pretrained.PRETRAINED`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pegasus_lightning.data.module import load_split
from pegasus_lightning.data.parts import fit_to_mix
from pegasus_lightning.generate.judge import winged_store
from pegasus_lightning.generate.pairs import Parents
from pegasus_lightning.generate.pretrained import FOLDER, pack
from pegasus_lightning.recognisers.network import COMMITTEE
from pegasus_lightning.recognisers.store import RecogniserStore
from pegasus_lightning.runs.trained import open_run

MOST = 256  # parents of each class


def main() -> None:
    """Pack one run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the run's folder")
    parser.add_argument("--name", default="pegasus")
    parser.add_argument("--trained-from", required=True, help="description of the training images")
    parser.add_argument("--recognisers", type=Path, default=None)
    options = parser.parse_args()
    run = open_run(options.run)
    if run.config is None:
        raise SystemExit(f"{options.run} is no run's folder.")
    data = run.config.data
    store = winged_store(RecogniserStore(options.recognisers), data.classes)
    judges = store.winged_guides(data, COMMITTEE)
    parents = Parents.of(load_split(data, "train"))
    fitting = fit_to_mix(parents.first, parents.second)
    chosen = Parents(parents.first[fitting[0][:MOST]], parents.second[fitting[1][:MOST]], parents.classes)
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{options.name}.safetensors"
    digest = pack(run.model, judges.recogniser, chosen, {"trained_from": options.trained_from}, path)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB\n{digest}")


if __name__ == "__main__":
    main()
