"""`python -m pegasus_lightning.evaluate run=...`: recognisability, realism and uniqueness of pegasi, with controls."""

from __future__ import annotations

import sys

from omegaconf import DictConfig

from pegasus_lightning.utils.compose import describe_presets
from pegasus_lightning.utils.program import answered, run_program


def help_text() -> str:
    """Return the text that `--help` prints."""
    command = "python -m pegasus_lightning.evaluate"
    return f"""Measure how recognisable, realistic and unique pegasi of trained models are, with controls and intervals.

Examples
  {command} run=runs/first_run/...               one run: a sentence, scorecard.json, TensorBoard
  {command} run=runs/ablation                    every run in the folder, a line each
  {command} run=RUN search=guided search.pairs=1000 count=500
  {command} run=RUN pegasus.pairs=random seed=1
  {command} pretrained=pegasus data=image_folder data.root=FOLDER reporter=independent

run= is a run's folder, a checkpoint file, a folder of runs or a pattern, and can be repeated. pretrained=
names the model in the package instead; data= must then name the images. An evaluation with the same settings is read
from disk, not repeated. The reporting recogniser is trained on the same images the first time (CIFAR-10: 15 minutes on
a CPU) and then kept. `python -m pegasus_lightning.report runs/...` shows the results.

  {command} prepare=true data=image_folder data.root=FOLDER   trains the recogniser now, before there is a run

Presets
{describe_presets(("search",))}

Fields, for example
  count=2000  seed=0  split=test  threshold=0.5  again=false  verbose=true (every table)
  out=FOLDER (default: inside the run's folder)
  pegasus.pairs=random, colour, matched, winged  pegasus.mixing=auto, learned, lerp, slerp, direction
  'pegasus.ratio=[0.4,0.6]'
  score.judge=auto (the selecting recogniser if it is trained), recogniser (train it), critic,
    committee (two recognisers, trained on one half of the photographs)
  reporter=standard (reporting recogniser trained on all photographs), independent (only on those no committee uses)
  checkpoint=best (that of the run's best validation)
  recognisers=FOLDER (default: the user's cache)  originals=false (save no photographs in the gallery)
  winged=true (share that a winged judge calls winged; trained if need be), false (default: if it is trained already)
  inception=true (FID and KID on Inception features; pip install -e '.[inception]')  gpus=0 (CPU)

  --cfg job        show the whole configuration
"""


def _work(config: DictConfig, data_overrides: list[str]) -> None:
    from pegasus_lightning.evaluate.pipeline import evaluate, train_recognisers  # torchmetrics is slow to import
    from pegasus_lightning.evaluate.settings import validate

    validate(config)
    (train_recognisers if config.prepare else evaluate)(config, data_overrides)


def main() -> None:
    """Run the command line."""
    if answered(sys.argv[1:], help_text):
        return
    from pegasus_lightning.evaluate.settings import EVALUATE  # PyTorch is slow to import

    sys.exit(run_program(EVALUATE, sys.argv[1:], _work))


if __name__ == "__main__":
    main()
