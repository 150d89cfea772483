"""Tests of inline SVG: well-formed, without URLs, with the colours of the page and unique ids."""

from __future__ import annotations

import functools
import math
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

from pegasus_lightning.report.comparison import Point
from pegasus_lightning.report.plots import MAX_OVERLAID, legend, overlays, shorten
from pegasus_lightning.report.read import Run
from pegasus_lightning.report.realism import realism_plot
from pegasus_lightning.runs.scorecards import Spread

CURVES = {
    "loss/kl": [(10, 3.0), (20, 4.0), (30, math.nan)],
    "loss/reconstruction": [(10, 5000.0), (20, 20.0)],
    "critic/real": [(10, 0.5), (20, 0.7)],
    "critic/fake": [(10, 0.5), (20, 0.3)],
    "critic_loss/real": [(10, 1.0)],
    "validation/psnr": [(20, 15.0)],
    "speed/images_per_second": [(10, 99.0)],
}


def run(name: str = "vae", **curves: list[tuple[int, float]]) -> Run:
    return Run(Path(), f"{name}-s0", name, curves=CURVES | curves)


@functools.cache
def plots() -> list[str]:
    return overlays([run(), run('<b> & "c"', **{"validation/psnr": [(20, 16.0)]})], ["vae", '<b> & "c"'])


def spread(value: float, half: float = 0.01) -> Spread:
    return Spread(value, value - half, value + half, math.nan, (value,))


def test_psnr_kl_and_critic_come_first_then_every_other_loss_and_output() -> None:
    labels = [ElementTree.fromstring(plot).attrib["aria-label"] for plot in plots()]
    both = 'at the end: vae {0}; <b> & "c" {0}.'
    assert labels == [
        'PSNR of validation images, dB, at the end: vae 15; <b> & "c" 16.',
        "KL, nats an image, " + both.format(4),
        "Critic: P(real), images less reconstructions, " + both.format(0.4),  # .7 - .3
        "Critic: fake, " + both.format(0.3),
        "Critic: real, " + both.format(0.7),
        "Loss: reconstruction, " + both.format(20),
    ]
    weighed = replace(run(), status={"weights": {"loss/reconstruction": 0.03}})
    assert 'aria-label="Loss: reconstruction, weight 0.03,' in overlays([weighed], ["vae"])[-1]


def test_validation_is_shown_rather_than_training() -> None:
    both = {"validation/kl": [(10, 9.0)], "validation/critic_real": [(1, 1.0)], "validation/critic_fake": [(1, 0.75)]}
    labels = [ElementTree.fromstring(plot).attrib["aria-label"] for plot in overlays([run(**both)], ["vae"])]
    assert labels[1:3] == [
        "KL, nats an image, at the end: vae 9.",
        "Critic: P(real), images less reconstructions, at the end: vae 0.25.",
    ]


def test_only_a_loss_has_a_logarithmic_axis() -> None:
    wide = [(10, 0.001), (20, 0.9)]
    found = overlays(
        [run(**{"validation/critic_real": wide, "validation/critic_fake": [(10, 0.0), (20, 0.0)]})], ["vae"]
    )
    logarithmic = ["(logarithmic)" in plot for plot in found]
    assert logarithmic == [False] * (len(found) - 1) + [True]  # reconstruction: 5000 to 20; none of the critic's


def test_groups_differ_in_colour_or_dashes_and_seeds_do_not() -> None:
    names = [f"model_{i}" for i in range(MAX_OVERLAID)]
    looks = [(colour, dashes) for _, colour, dashes in legend(names)]
    assert len(set(looks)) == MAX_OVERLAID and looks[0] == (1, "") and looks[8][0] == 1
    text = overlays([run("b"), run("b"), run("c")], ["a", "b", "c"])[0]
    lines = re.findall(r"stroke: var\(--series-(\d)\)", text)
    assert [lines.count(number) > 0 for number in "123"] == [False, True, True]


def test_plots_hold_no_address_no_font_and_only_the_pages_colours() -> None:
    text = "".join(plots()) + realism_plot([Point("vae", spread(0.3), spread(0.8), False)], "b")
    assert "http" not in text and "font-family" not in text and "<style" not in text
    assert re.findall(r"#[0-9a-fA-F]{6}", text) == []
    assert {"currentColor", "var(--series-1)", "var(--rule)"} <= set(re.findall(r"currentColor|var\([\w-]+\)", text))


def test_ids_of_plots_differ_and_every_reference_is_met() -> None:
    text = "".join(plots())
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', text)) == set(ids)


def test_long_curves_are_averaged_in_stretches() -> None:
    assert shorten([(10, 1.0), (20, 3.0)]) == [(10, 1.0), (20, 3.0)]
    curve = shorten([(batch, float(batch)) for batch in range(900)])
    assert len(curve) == 300
    assert curve[:2] == [(1, 1.0), (4, 4.0)]


def test_nothing_finite_is_no_plot() -> None:
    assert overlays([Run(Path(), "vae", "vae", curves={"loss/kl": [(1, math.nan)]})], ["vae"]) == []
    assert realism_plot([], "a") == ""


def test_the_realism_plot_names_every_point() -> None:
    points = [Point("vae", spread(0.3), spread(0.8), False), Point("pixel average", spread(0.41), spread(0.5), True)]
    svg = ElementTree.fromstring(realism_plot(points, "a"))
    texts = [element.text for element in svg.iter("text")]
    assert {"vae", "pixel average"} <= set(texts)
    label = "Recognised against realism. vae: 30.0% recognised, KID 0.800; pixel average: 41.0% recognised, KID 0.500."
    assert svg.attrib["aria-label"] == label
