"""`python -m pegasus_lightning.generate run=...`: pegasi from a trained model."""

from __future__ import annotations

import sys

from omegaconf import DictConfig

from pegasus_lightning.utils.bars import waiting
from pegasus_lightning.utils.compose import describe_presets
from pegasus_lightning.utils.program import answered, run_program


def help_text() -> str:
    """Return the text that `--help` prints."""
    command = "python -m pegasus_lightning.generate"
    return f"""Generate pegasi with a trained model: mix the codes of two images, one of each class, and decode them.

Examples
  {command} pretrained=pegasus                          without data or training
  {command} run=runs/first_run/...                      64 mixes, the best of them
  {command} run=RUN search=best_of search.pairs=25000   the best 64 of 100,000 mixes
  {command} run=RUN search=guided pegasus.pairs=winged  the best, improved by gradient ascent
  {command} run=RUN first=horse.jpg second=bird.png     the best 8 mixes of two image files
  {command} run=runs/first_light                        every run in the folder, compared

run= is a run's folder, a checkpoint file, a folder of runs or a pattern, and can be repeated. pretrained=
names the model in the package instead; without data= its parents are codes near those of training images.

Presets
{describe_presets(("search",))}

Fields, for example
  count=64 (8 of two image files)  seed=0  split=test  out=FOLDER (default: inside the run's folder, or pegasi/)
  'figures=[pegasi,best]'
  pegasus.pairs=random, colour, matched, winged  pegasus.threshold=0.1  pegasus.colour_distance=rgb, lab
  pegasus.mixing=auto (learned if the model has learned it, else lerp), learned, lerp, slerp, direction
  'pegasus.ratio=[0.4,0.6]' (0: first class, 1: second)  pegasus.codes=sampled, mean
  score.judge=auto, recogniser, committee (two recognisers), critic,
    winged (judges that see wings on a horse)
  score.critic=1  score.overlap=2  search.ratios=4  search.steps=80
  search.start_weight=0.5  search.prior_weight=10  search.most_per_parent=2
  checkpoint=best (that of the run's best validation)
  originals=false (show only reconstructions of the parents)  gpus=0 (CPU)
  data.root=photos 'data.classes=[cat,ship]' or data=silhouettes (images other than the training data)

  --cfg job        show the whole configuration
"""


def _work(config: DictConfig, data_overrides: list[str]) -> None:
    from pegasus_lightning.generate.pipeline import generate
    from pegasus_lightning.generate.settings import validate

    validate(config)
    generate(config, data_overrides)


def main() -> None:
    """Run the command line."""
    if answered(sys.argv[1:], help_text):
        return
    with waiting("loading PyTorch"):
        from pegasus_lightning.generate import pipeline  # noqa: F401
        from pegasus_lightning.generate.settings import GENERATE

    sys.exit(run_program(GENERATE, sys.argv[1:], _work))


if __name__ == "__main__":
    main()
