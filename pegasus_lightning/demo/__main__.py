"""`python -m pegasus_lightning.demo`: a page in the browser that mixes two pictures."""

from __future__ import annotations

import gc
import sys

from omegaconf import DictConfig

from pegasus_lightning.utils.bars import waiting
from pegasus_lightning.utils.program import answered, run_program


def help_text() -> str:
    """Return the text that `--help` prints."""
    command = "python -m pegasus_lightning.demo"
    return f"""Serve a page that mixes a horse and a bird in the browser: choose or drop pictures, move the ratio,
say where wings may be, improve the mix, keep favourites. Ctrl-C ends it. It needs no network and, unless told, serves
this machine alone. Install it with: pip install -e '.[demo]'

Examples
  {command}                                        the model that comes with the package
  {command} run=runs/first_run                     a run, with parents from its test images
  {command} export=runs/first_run/.../export data=silhouettes
  {command} data=image_folder data.root=photos open=true

Fields
  run=RUN            a run's folder, a folder with one run in it, or a checkpoint file
  export=FOLDER      a folder that `export` wrote
  pretrained=pegasus the model that comes with the package (default)
  data=SOURCE data.root=FOLDER 'data.classes=[cat,ship]'   images to take parents from, other than the run's own
  split=test (or train)   seed=0 (of the parents that are offered)
  port=7860   host=127.0.0.1 (0.0.0.0: other machines too)   open=true (open the browser)
  out=FOLDER (of favourites; default: pegasi/favourites in the run's folder)
  gpus=0 (CPU)   recognisers=FOLDER (default: the user's cache)

Without images, parents of a pretrained model are decoded from codes that come with it; those of other models are drawn
from the prior.

  --cfg job        show the whole configuration
"""


def _work(config: DictConfig, data_overrides: list[str]) -> None:
    from pegasus_lightning.demo.settings import validate

    validate(config)
    from pegasus_lightning.demo.serve import serve  # Gradio is slow to import, and may be missing

    serve(config, data_overrides)


def main() -> None:
    """Run the command line."""
    if answered(sys.argv[1:], help_text):
        return
    gc.disable()  # until the page is served: the imports take 7 s of a core rather than 8
    with waiting("loading PyTorch"):
        from pegasus_lightning.demo.settings import DEMO

    sys.exit(run_program(DEMO, sys.argv[1:], _work))


if __name__ == "__main__":
    main()
