"""Tests of inline SVG: well-formed, without URLs, with the colours of the page and unique ids."""

from __future__ import annotations

import functools
import math
import re
from pathlib import Path
from xml.etree import ElementTree

from pegasus_lightning.report.comparison import Point
from pegasus_lightning.report.plots import colours_of_tags, curves_plots, panels, shorten
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


@functools.cache
def plots(prefix: str = "a", name: str = "vae") -> list[str]:
    return curves_plots(CURVES, colours_of_tags([Run(Path(), name, name, curves=CURVES)]), prefix, name)


def spread(value: float, half: float = 0.01) -> Spread:
    return Spread(value, value - half, value + half, math.nan, (value,))


def test_every_loss_has_a_panel_the_critics_outputs_share_one() -> None:
    assert panels(CURVES, {}) == [
        ("Loss: kl", ["loss/kl"]),
        ("Loss: reconstruction", ["loss/reconstruction"]),
        ("Outputs of the critic", ["critic/fake", "critic/real"]),
        ("Validation PSNR, dB", ["validation/psnr"]),
    ]
    weighed = panels(CURVES, {"loss/kl": 0.03, "loss/reconstruction": 1.0, "critic_loss/real": 2.0})
    assert [title for title, _ in weighed][:2] == ["Loss: kl, weight 0.03", "Loss: reconstruction"]
    assert panels({"speed/images_per_second": 1}, {}) == []


def test_plots_are_whole_and_describe_themselves() -> None:
    labels = [ElementTree.fromstring(plot).attrib["aria-label"] for plot in plots(name='<b> & "c"')]
    assert labels == [
        '<b> & "c". Loss: kl: kl 3 to nan.',
        '<b> & "c". Loss: reconstruction (logarithmic): reconstruction 5000 to 20.',
        '<b> & "c". Outputs of the critic: fake 0.5 to 0.3, real 0.5 to 0.7.',
        '<b> & "c". Validation PSNR, dB: psnr 15 to 15.',
    ]


def test_plots_hold_no_address_no_font_and_only_the_pages_colours() -> None:
    text = "".join(plots()) + realism_plot([Point("vae", spread(0.3), spread(0.8), False)], "b")
    assert "http" not in text and "font-family" not in text and "<style" not in text
    assert re.findall(r"#[0-9a-fA-F]{6}", text) == []
    assert {"currentColor", "var(--series-1)", "var(--rule)"} <= set(re.findall(r"currentColor|var\([\w-]+\)", text))


def test_ids_of_plots_differ_and_every_reference_is_met() -> None:
    text = "".join(plots("a") + plots("b"))
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', text)) == set(ids)


def test_a_tag_has_one_colour_in_every_run_and_tags_of_a_panel_differ() -> None:
    few = Run(Path(), "b", "b", curves={"loss/reconstruction": [], "critic/real": []})
    colours = colours_of_tags([Run(Path(), "a", "a", curves=CURVES), few])
    assert colours == colours_of_tags([few, Run(Path(), "a", "a", curves=CURVES)])
    assert colours["critic/real"] != colours["critic/fake"]
    assert colours["loss/kl"] != colours["loss/reconstruction"]


def test_long_curves_are_averaged_in_stretches() -> None:
    assert shorten([(10, 1.0), (20, 3.0)]) == [(10, 1.0), (20, 3.0)]
    curve = shorten([(batch, float(batch)) for batch in range(900)])
    assert len(curve) == 300
    assert curve[:2] == [(1, 1.0), (4, 4.0)]


def test_nothing_finite_is_no_plot() -> None:
    assert curves_plots({"loss/kl": [(1, math.nan)]}, {"loss/kl": "#000000"}, "a", "vae") == []
    assert realism_plot([], "a") == ""


def test_the_realism_plot_names_every_point() -> None:
    points = [Point("vae", spread(0.3), spread(0.8), False), Point("pixel average", spread(0.41), spread(0.5), True)]
    svg = ElementTree.fromstring(realism_plot(points, "a"))
    texts = [element.text for element in svg.iter("text")]
    assert {"vae", "pixel average"} <= set(texts)
    label = "Recognised against realism. vae: 30.0% recognised, KID 0.800; pixel average: 41.0% recognised, KID 0.500."
    assert svg.attrib["aria-label"] == label
