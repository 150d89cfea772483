"""`python -m pegasus_lightning.panel make ...` and `... score ...`: a blind panel, and what it says."""

from __future__ import annotations

import sys

from omegaconf import DictConfig

from pegasus_lightning.utils.errors import UserError, complain, did_you_mean
from pegasus_lightning.utils.program import answered, run_program

PARTS = ("make", "score")


def help_text() -> str:
    """Return the text that `--help` prints."""
    command = "python -m pegasus_lightning.panel"
    return f"""Ask people what pegasi show, without telling them where a picture comes from.

  {command} make pretrained=pegasus data=image_folder data.root=photos
  {command} make run=RUN ask='["search=none","search=guided pegasus.pairs=winged"]' images=more.npz
  {command} score key=panels/1f2e3d4c/key.json ratings=anna.csv ratings=ben.csv

make   writes a folder: raters/ (panel.html, a page for the keyboard that needs no network; the same pictures as
       numbered sheets, PNG; ratings.csv to fill in beside them) and key.json, which raters must not see. Give raters/
       to people who know nothing of it.
score  takes the key and one CSV of each rater: shares of each letter with 95 % intervals, agreement, and the pictures
       sorted by votes, beside the key.

Sources are each model that run= or pretrained= names, asked in each way of ask=; and each images=, a folder of 32 x 32
pictures or an .npz with `images`. Controls come by themselves: real photographs of both classes, their
reconstructions, pixel averages, CutMix, and compositions.

Fields, for example
  make   count=30 (pictures of each source)  seed=0  split=test  out=FOLDER  gpus=0 (CPU)  recognisers=FOLDER
         data.root=photos 'data.classes=[cat,ship]' (images other than the training data)
  score  seed=0 (of the bootstrap)

  --cfg job        show the whole configuration
"""


def _make(config: DictConfig, data_overrides: list[str]) -> None:
    from pegasus_lightning.panel.make import make
    from pegasus_lightning.panel.settings import validate_make

    validate_make(config)
    make(config, data_overrides)


def _score(config: DictConfig, data_overrides: list[str]) -> None:
    from pegasus_lightning.panel.score import score
    from pegasus_lightning.panel.settings import validate_score

    if data_overrides:
        raise UserError("`panel score` reads a key and ratings, and no images: leave data out.")
    validate_score(config)
    score(config)


def main() -> None:
    """Run the command line."""
    arguments = sys.argv[1:]
    if answered(arguments, help_text):
        sys.exit(0)
    words = [text for text in arguments if "=" not in text and not text.startswith("-")]
    part = next((text for text in words if text in PARTS), words[0] if words else None)
    if part in PARTS:
        from pegasus_lightning.panel.settings import MAKE, SCORE  # PyTorch is slow to import

        arguments.remove(part)
        program, work = (MAKE, _make) if part == "make" else (SCORE, _score)
        sys.exit(run_program(program, arguments, work))
    said = f"'{part}' is neither make nor score.{did_you_mean(part, PARTS)}" if part else "make or score?"
    sys.exit(complain(f"{said} `python -m pegasus_lightning.panel --help` shows what can be typed."))


if __name__ == "__main__":
    main()
