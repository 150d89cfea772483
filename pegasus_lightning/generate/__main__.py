"""`python -m pegasus_lightning.generate run=...`: pegasi out of a trained model."""

from __future__ import annotations

import sys

from omegaconf import DictConfig

from pegasus_lightning.generate.pipeline import generate
from pegasus_lightning.generate.settings import GENERATE, validate
from pegasus_lightning.utils.program import run_program


def help_text() -> str:
    """What `--help` prints."""
    command = GENERATE.command
    return f"""Mix the codes of two images, one of each class, and decode: pegasi out of a trained model.

Examples
  {command} pretrained=pegasus                          from the model that comes along: no data, no training
  {command} run=runs/first_run/...                      64 mixes, the best, further good ones, ...
  {command} run=RUN search=best_of search.pairs=25000   the best 64 of 100,000 mixes
  {command} run=RUN search=guided pegasus.pairs=matched the best, improved by gradient ascent
  {command} run=RUN first=horse.jpg second=bird.png     one pegasus from two image files
  {command} run=runs/first_light                        every run in there, and all side by side

run= is a run's folder, a checkpoint file, a folder of runs or a pattern; it can be given several times. pretrained=
is in its place: the model that comes with the package. Without data= its parents are decoded from drawn codes.

Choices
{GENERATE.describe_presets()}

Fields, for example
  count=64  seed=0  out=FOLDER (default: inside the run's folder, or pegasi/)  split=test  'figures=[pegasi,best]'
  pegasus.pairs=random, colour, matched  pegasus.threshold=0.1  pegasus.colour_distance=rgb, lab
  pegasus.mixing=auto (as the model has learned it, else lerp), learned, lerp, slerp, direction
  'pegasus.ratio=[0.4,0.6]' (0 first class, 1 second)  pegasus.codes=sampled, mean
  score.judge=auto, recogniser, committee (the recognisers that guide model=pegasus), critic
  score.critic=1  score.overlap=2  search.ratios=4  search.steps=80
  search.start_weight=0.5  search.prior_weight=10  search.most_per_parent=2
  originals=false (show parents as reconstructions only)  gpus=0 (CPU)
  data.root=photos 'data.classes=[cat,ship]' or data=silhouettes: other images than the run was trained on

  --cfg job        show the whole configuration
"""


def _work(config: DictConfig, data_overrides: list[str]) -> None:
    validate(config)
    generate(config, data_overrides)


def main() -> None:
    """Entry of the command."""
    sys.exit(run_program(GENERATE, sys.argv[1:], help_text(), _work))


if __name__ == "__main__":
    main()
