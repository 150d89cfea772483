"""Tests of the start of the page: sentences by hand, and pictures cut out of what training draws."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pegasus_lightning.report.cells import cells, trained_gallery
from pegasus_lightning.report.comparison import Point, compare
from pegasus_lightning.report.lead import MAX_LEAD, headline, models, shorter
from pegasus_lightning.report.page import render
from pegasus_lightning.report.read import Run, read_runs
from pegasus_lightning.report.realism import realism_plot
from pegasus_lightning.runs.folder import find_runs
from pegasus_lightning.runs.scorecards import PEGASI, Figure, Scorecard, Spread
from pegasus_lightning.utils.image_grid import image_grid, save_png

MakeRun = Callable[..., Path]
Card = Callable[..., Scorecard]


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    """Noise (*shape, 3, 32, 32) whose values are whole numbers of 255."""
    return torch.randint(0, 256, (*shape, 3, 32, 32), generator=torch.Generator().manual_seed(seed)) / 255


def draw(run: Path, seed: int = 0, count: int = 8) -> dict[str, np.ndarray]:
    """Draw the grids of training into a run's folder; return the images, uint8. The inputs are the same for all."""
    inputs, decoded = images(2, count, seed=99), images(2, count, seed=seed)
    drawn = {
        "reconstructions": torch.stack([inputs[0], decoded[0], inputs[1], decoded[1]]),
        "mixes": images(3, count, seed=seed + 1),
        "interpolations": images(6, 11, seed=seed + 2),
    }
    for kind, pictures in drawn.items():
        framed = [4, 5, 6] if kind == "interpolations" else []
        captions = ["a long caption of a row"] * len(pictures)
        grid = image_grid(pictures, title=kind, row_captions=captions, footer="f", highlight_columns=framed)
        save_png(grid, run / "images" / f"{kind}-epoch-0007.png")
    return {kind: (pictures * 255).round().numpy().astype(np.uint8) for kind, pictures in drawn.items()}


def test_a_saved_grid_is_cut_into_the_very_images_that_were_drawn(tmp_path: Path, make_run: MakeRun) -> None:
    run = make_run(tmp_path, evaluated=False, epochs=())
    drawn = draw(run)
    for kind, pictures in drawn.items():
        np.testing.assert_array_equal(cells(run / "images" / f"{kind}-epoch-0007.png", run), pictures)
    (found,) = read_runs([run])
    gallery = trained_gallery(found)
    assert gallery is not None
    np.testing.assert_array_equal(gallery.pegasi, drawn["mixes"][1])
    np.testing.assert_array_equal(gallery.frames, drawn["interpolations"])
    first, second = drawn["reconstructions"][0].astype(float), drawn["reconstructions"][2].astype(float)
    assert gallery.blend is not None and np.abs(gallery.blend - (first + second) / 2).max() <= 0.5
    assert gallery.without_photographs().blend is None


@pytest.mark.parametrize("size", [(60, 40), (1, 1), (3000, 1)])
def test_a_picture_that_is_no_grid_of_training_is_not_cut(tmp_path: Path, size: tuple[int, int]) -> None:
    for colour in ((20, 200, 120), (250, 249, 247)):
        Image.new("RGB", size, colour).save(tmp_path / "a.png")
        assert cells(tmp_path / "a.png", tmp_path, 3) is None


def test_runs_that_were_not_evaluated_show_the_same_validation_pairs(tmp_path: Path, make_run: MakeRun) -> None:
    for i, name in enumerate(("vae", "acai")):
        status = {"metrics": {"validation/psnr": 20.0 + i}}
        draw(make_run(tmp_path, name, evaluated=False, epochs=(), status=status), seed=10 * i)
    make_run(tmp_path, "vae_gan", evaluated=False, epochs=(), status={"status": "failed", "reason": "It broke."})
    runs = read_runs(find_runs([str(tmp_path)], "status.json"))
    text, hidden = render(runs), render(runs, originals=False)
    assert text.count('<section class="pairs"') == 1 and text.count('class="strip moving"') == 2
    start = text[text.index('<section class="leading"') : text.index('id="training"')]
    assert start.count('class="cell ') == 3 * 8 and start.index("pixel average") < start.index("<b>acai")
    assert start.index("<b>acai") < start.index("<b>vae<")  # the better PSNR first
    assert "Validation PSNR 21.00 dB after 5 epochs; finished." in start
    assert "Not evaluated: no figure says yet" in start and "20.00 dB (vae) to 21.00 dB (acai)" in start
    assert "failed: It broke." in start and "python -m pegasus_lightning.evaluate run=" in start
    table = text[text.index('<table class="verdicts') : text.index("</table>")]
    assert "It broke." in table[table.index("vae_gan-s0") :]
    without = hidden[hidden.index('<section class="leading"') : hidden.index('id="training"')]
    assert without.count('class="cell ') == 2 * 8 and "pixel average" not in without


def test_the_message_says_shares_with_counts_and_the_control(card: Card) -> None:
    def rows(winged: float, seen: float) -> dict[str, dict[str, Figure]]:
        figures = {"winged": winged, "recognised": seen}
        return {
            PEGASI: {name: Figure(v, v - 0.01, v + 0.02) for name, v in figures.items()},
            "pixel average": {name: Figure(0.05, 0.04, 0.06) for name in figures},
        }

    cards = [card("vae", rows=rows(0.03, 0.2)), card("acai", rows=rows(0.005, 0.3))]
    runs = [Run(Path(c.name), c.name, c.group, card=c, cards={"k": (Path(), c)}, status=DONE) for c in cards]
    runs = [replace(run, has_checkpoint=True) for run in runs]
    compared = compare(cards)
    found = models(runs, compared)
    assert [(model.name, model.sentence) for model in found] == [
        ("vae", "Winged in 3.0% (2.0 to 5.0) of 2,000; both classes seen in 20.0% (19.0 to 22.0); one seed."),
        ("acai", "Winged in 0.5% (0.0 to 2.5) of 2,000; both classes seen in 30.0% (29.0 to 32.0); one seed."),
    ]
    assert headline(runs, compared, found) == (
        "The winged judge finds wings in 0.5% (acai) to 3.0% (vae) of 2,000 pegasi of each run, and in 5.0% "
        "(4.0 to 6.0) of the pixel averages of their parents. The recogniser sees both classes in 20.0% (vae) to "
        "30.0% (acai), and in 5.0% (4.0 to 6.0) of these averages. "
        "A model has fewer than 3 seeds, so the order may be chance."
    )


DONE = {"status": "finished", "epochs": 5}


def test_names_leave_out_what_all_share_unless_they_would_be_equal() -> None:
    def short(*names: str) -> list[str]:
        return [run.name for run in shorter([Run(Path(), f"{name}-s0", name) for name in names])[0]]

    assert short("vae,channels=16,kl=2", "acai,channels=16") == ["vae,kl=2-s0", "acai-s0"]
    assert short("vae,channels=16", "vae,channels=32") == ["vae,channels=16-s0", "vae,channels=32-s0"]
    assert short("vae,channels=16") == ["vae,channels=16-s0"]


def test_a_page_of_one_run_compares_nothing(tmp_path: Path, make_run: MakeRun) -> None:
    text = render(read_runs([make_run(tmp_path)]))
    assert "<title>horse + bird: vae-s0</title>" in text
    body = text[text.index("<body>") : text.index("<script>")]
    assert not any(word in body for word in ("Comparison", "Ranking", "variant<", "baseline</small>", "every model"))


def test_the_page_begins_with_the_best_models_only(tmp_path: Path, make_run: MakeRun) -> None:
    for i in range(MAX_LEAD + 2):
        status = {"metrics": {"validation/psnr": 20.0 + i}}
        make_run(tmp_path, f"model_{i:02}", evaluated=False, epochs=(), status=status)
    start = render(read_runs(find_runs([str(tmp_path)], "status.json"))).split('id="training"')[0]
    assert "<b>model_13<" in start and "<b>model_02<" in start and "<b>model_01<" not in start
    assert "12 of 14 variants" in start


def test_a_control_far_off_is_an_arrow_and_the_models_fill_the_plot() -> None:
    def point(name: str, seen: float, kid: float, control: bool = False) -> Point:
        ends = [Spread(v, v - 0.001, v + 0.001, math.nan, (v,)) for v in (seen, kid)]
        return Point(name, *ends, control)

    models = [point("vae", 0.01, 1.0), point("acai", 0.03, 1.5)]
    text = realism_plot([*models, point("true pegasi", 0.99, 6.5, True), point("overlay", 0.05, 0.9, True)], "a")
    assert ">true pegasi (99.0%, KID 6.500)<" in text and ">overlay<" in text
    assert all(f">{name}<" in text for name in ("vae", "acai"))
    assert ">80<" not in text and ">4.0<" not in text  # no tick of an axis that holds the far control
