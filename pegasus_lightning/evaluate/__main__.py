"""`python -m pegasus_lightning.evaluate run=...`: recognisability, realism, uniqueness, by number, with controls."""

from __future__ import annotations

import sys

from omegaconf import DictConfig

from pegasus_lightning.evaluate.settings import EVALUATE, validate
from pegasus_lightning.utils.program import run_program


def help_text() -> str:
    """What `--help` prints."""
    command = EVALUATE.command
    return f"""Judge the pegasi of trained models: recognisable, realistic, unique? With controls and intervals.

Examples
  {command} run=runs/first_run/...               one run: a table, scorecard.json, TensorBoard
  {command} run=runs/ablation                    every run in there; then means over seeds
  {command} run=RUN search=guided search.pairs=1000 count=500
  {command} run=RUN pegasus.pairs=random seed=1
  {command} pretrained=pegasus data=image_folder data.root=FOLDER reporter=independent

run= is a run's folder, a checkpoint file, a folder of runs or a pattern; it can be given several times. pretrained=
is in its place: the model that comes with the package, on images that data= names. What was judged in just this way
before is read, not judged again. The recogniser that reports is trained on the same images the first time
(photographs: 15 minutes on a CPU) and kept. Then `python -m pegasus_lightning.report runs/...` makes a page of it.

Choices
{EVALUATE.describe_presets()}

Fields, for example
  count=2000  seed=0  split=test  threshold=0.5  again=false  out=FOLDER (default: inside the run's folder)
  pegasus.pairs=random, colour, matched  pegasus.mixing=auto, learned, lerp, slerp, direction
  'pegasus.ratio=[0.4,0.6]'
  score.judge=auto (the selecting recogniser if it is trained), recogniser (train it), critic,
    committee (the recognisers that guide model=pegasus; they know one half of the photographs)
  reporter=standard (who reports knows all photographs), independent (only those that no committee has seen)
  recognisers=FOLDER (default: the user's cache)  originals=false (keep no photographs beside the figures)
  inception=true (FID and KID as others report them; needs the extra [inception])  gpus=0 (CPU)

  --cfg job        show the whole configuration
"""


def _work(config: DictConfig, data_overrides: list[str]) -> None:
    from pegasus_lightning.evaluate.pipeline import evaluate  # torchmetrics is slow to import

    validate(config)
    evaluate(config, data_overrides)


def main() -> None:
    """Entry of the command."""
    sys.exit(run_program(EVALUATE, sys.argv[1:], help_text(), _work))


if __name__ == "__main__":
    main()
