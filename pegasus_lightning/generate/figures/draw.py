"""The figures of `generate`: which to draw, their captions, and where they are written."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pegasus_lightning.generate.figures import mixes as mix_figures
from pegasus_lightning.generate.figures.networks import Layer, NetworkPlan, diagram_figure, plan
from pegasus_lightning.generate.figures.pipeline import pipeline_figure
from pegasus_lightning.generate.mixing import Recipes, mixing_of
from pegasus_lightning.generate.sampler import Pegasi, Sampler
from pegasus_lightning.generate.settings import GenerateConfig
from pegasus_lightning.models.two_player import TwoPlayerModel
from pegasus_lightning.runs.folder import EVENT_FILES, events_folder, read_status
from pegasus_lightning.runs.trained import TrainedRun
from pegasus_lightning.utils.image_grid import save_png
from pegasus_lightning.utils.tensors import IMAGE_SIZE

SHOWN = 64  # in the figure of many
GALLERY = 16
REPEATS, REPEAT_STEPS = 6, 11
STRIPS = 6
SAMPLING = "z = mean + exp(log-variance / 2) * noise"  # of `Posterior.sample_with`


def wants(settings: GenerateConfig, figure: str) -> bool:
    """Return whether the settings ask for a figure, by name or because they ask for all."""
    return settings.figures is None or figure in settings.figures


def how(settings: GenerateConfig) -> str:
    """Return pairs, mixing and ratio in words."""
    pegasus = settings.pegasus
    low, high = pegasus.ratio
    pairs = "two image files" if settings.first else f"{pegasus.pairs} pairs"
    named = "mixed as each model does" if pegasus.mixing == "auto" else pegasus.mixing
    mixing = named + (" (second parents unused)" if pegasus.mixing == "direction" else "")
    return f"{pairs}, {mixing}, ratio {low:g} to {high:g}"


def _footer(run: TrainedRun, settings: GenerateConfig, tried: int, stored: bool) -> str:
    method, sampled = settings.search.method, settings.pegasus.codes == "sampled"
    drawn = "sampled codes" if sampled and run.model.config.sample_codes else "codes not sampled"
    sought = {"none": "no search", "best_of": f"best of {tried:,}", "guided": f"best of {tried:,}, then guided"}[method]
    judge = "" if run.model.critic is not None else ", scored without a critic"
    seed = f"seed {settings.seed}"
    mixing = mixing_of(run.model, settings.pegasus)
    done = how(replace(settings, pegasus=replace(settings.pegasus, mixing=mixing)))
    of = "parents from stored codes, " if stored else ""
    return f"{run.name}, batch {run.model.batches_done}, {of}{done}, {drawn}, {sought}{judge}, {seed}"


def draw(run: TrainedRun, sampler: Sampler, pegasi: Pegasi, settings: GenerateConfig) -> dict[str, np.ndarray]:
    """Return the figures that are asked for and that apply, by name."""
    chosen, mixes = pegasi.chosen, pegasi.mixes
    stored = sampler.parents.stored
    footer = _footer(run, settings, pegasi.tried, stored)
    look: dict[str, Any] = {"classes": sampler.parents.classes, "footer": footer}
    scaled = look | {"scale": settings.image_scale}
    low, high = settings.pegasus.ratio
    best = pegasi.best(1 + GALLERY)
    top, others = best[:1], best[1:]
    first, second = (images[0] for images in sampler.originals(chosen.take(top)))
    pictures = {}
    if wants(settings, "pegasi") and len(chosen) > 1:
        pictures["pegasi"] = mix_figures.pegasi_figure(mixes.images[:SHOWN], **scaled)
    if wants(settings, "best"):
        one = mixes.take(top)
        pictures["best"] = mix_figures.best_figure(
            one.images[0],
            *((first, second) if stored else (one.first[0], one.second[0])),
            ratio=one.ratios[0].item(),
            scores={name: values[top].item() for name, values in pegasi.terms.items()},
            originals=(first, second) if settings.originals else None,
            shown_as=mix_figures.STORED if stored else "reconstruction",
            **look,
        )
    if wants(settings, "gallery") and len(others):
        good, values = mixes.take(others), pegasi.ranking[others]
        parents = sampler.originals(chosen.take(others)) if stored else (good.first, good.second)
        pictures["gallery"] = mix_figures.gallery_figure(
            good.images,
            *parents,
            ratios=good.ratios.cpu(),
            scores=values,
            shown_as=mix_figures.STORED if stored else "decoded",
            **scaled,
        )
    ratios = torch.linspace(0, 1, REPEAT_STEPS)
    if wants(settings, "interpolation") and settings.first is not None and settings.originals:
        pictures["interpolation"] = mix_figures.interpolation_figure(
            sampler.interpolations(chosen.take(top), ratios)[0],
            ratios=ratios,
            parents=(first, second),
            pegasus_range=(low, high),
            **scaled,
        )
    if wants(settings, "repeats"):
        again = chosen.take(top.repeat(REPEATS))
        anew = Recipes(again.first, again.second, again.ratios, pegasi.tried + torch.arange(REPEATS))
        fixed = not (sampler.mixer.sampled and run.model.config.sample_codes)
        pictures["repeats"] = mix_figures.repeats_figure(
            sampler.interpolations(anew, ratios),
            ratios=ratios,
            pegasus_range=(low, high),
            note="All rows are alike: the codes are not sampled." if fixed else "",
            **scaled,
        )
    if wants(settings, "pipeline"):
        pictures["pipeline"] = _pipeline(sampler, pegasi, settings, **look)
    if wants(settings, "diagram"):
        pictures["diagram"] = diagram(run.model, title=f"The networks of {run.name}", footer=footer)
    if wants(settings, "filmstrip") and pegasi.ascent is not None and pegasi.recorded is not None:
        ascent, shown = pegasi.ascent, pegasi.recorded[:STRIPS]
        pictures["filmstrip"] = mix_figures.filmstrip_figure(
            ascent.frames[:, : len(shown)], steps=ascent.steps, trace=ascent.trace[:, shown], **scaled
        )
    return pictures


def _pipeline(sampler: Sampler, pegasi: Pegasi, settings: GenerateConfig, **look: Any) -> np.ndarray:
    """Return the picture of how the first of the pegasi is made."""
    start = torch.tensor([0])
    chosen, made, mixer = pegasi.chosen.take(start), pegasi.mixes.take(start), sampler.mixer
    codes = mixer.parent_codes(chosen)
    mixed = mixer.mix(*codes, chosen.ratios.to(codes[0]))[0]
    stored = sampler.parents.stored
    parents = sampler.originals(chosen) if settings.originals or stored else (made.first, made.second)
    return pipeline_figure(
        made.images[0],
        (parents[0][0], parents[1][0]),
        (codes[0][0], codes[1][0] if mixer.direction is None else mixer.direction, mixed),
        ratio=made.ratios[0].item(),
        mixing=mixer.how,
        sampled=mixer.sampled and sampler.model.config.sample_codes,
        originals=settings.originals,
        stored=stored,
        log_variance=sampler.model.config.sample_codes,
        ascended=None if pegasi.ascent is None else (made.codes[0], settings.search.steps),
        **look,
    )


def diagram(model: TwoPlayerModel, *, title: str, footer: str = "") -> np.ndarray:
    """Return the model's networks as a picture, with shapes and parameter counts; see `network_plans`."""
    return diagram_figure(network_plans(model), title=title, footer=footer)


def network_plans(model: TwoPlayerModel) -> list[NetworkPlan]:
    """Return the plans of encoder, mixing network, decoder and critic, with what the model does to their outputs.

    These steps are no modules: the sampling of codes, the sigmoid of pixels, and the mean and the sigmoid of the
    critic's output, each only where the model has it.
    """
    image = torch.zeros(2, 3, IMAGE_SIZE, IMAGE_SIZE, device=model.device)
    code = torch.zeros(2, model.config.networks.latent_dim, device=model.device)
    encoder, decoder = plan("encoder", model.encoder, image), plan("decoder", model.decoder, code)
    if model.config.sample_codes:
        sampled = Layer(f"sampling: {SAMPLING}", tuple(code.shape[1:]), 0, follows=encoder.ends())
        encoder = encoder.then(sampled, output="the code z")
    else:
        encoder = encoder.then(output="the code z, not sampled")
    pixels = Layer("Sigmoid", tuple(image.shape[1:]), 0)
    plans = [encoder, *_mixing(model, code), decoder.then(pixels, output="the image, pixels in 0 to 1")]
    if model.critic is None:
        return plans
    critic = plan("critic", model.critic, image)
    if len(critic.ends()) > 1:  # of patches and of the whole
        critic = critic.then(Layer("Mean of each, sum", (1,), 0, follows=critic.ends()))
    elif math.prod(critic.layers[-1].shape) > 1:
        critic = critic.then(Layer("Mean", (1,), 0))
    if not _reads_probability(model):
        told = getattr(model.config, "critic_tells", "one number")
        return [*plans, critic.then(output=f"{told}, no sigmoid")]
    scores = {
        "hinge": "hinge score, no sigmoid",
        "relativistic": "score to compare in pairs, no sigmoid",
        "wgan_gp": "score, no sigmoid",
    }
    if model.config.adversarial_loss in scores:
        return [*plans, critic.then(output=scores[model.config.adversarial_loss])]
    return [*plans, critic.then(Layer("Sigmoid", (1,), 0), output="the probability of a real image")]


def _mixing(model: TwoPlayerModel, code: Tensor) -> list[NetworkPlan]:
    """Return the plan of the network that mixes two codes, if the model has learned it."""
    if model.mixer is None:
        return []
    rounds = {type(model.mixer.look): "Attention, two conv 3x3"}
    mixing = plan(
        "mixing network",
        model.mixer,
        code,
        code.clone(),
        inputs=("first code, of the smaller image", "second code"),
        blocks=rounds,
    )
    drawn = Layer("Sigmoid", mixing.layers[-1].shape, 0)
    return [
        mixing.then(
            drawn, output="colours and alpha of the limb that is put on the smaller image, which is then encoded"
        )
    ]


def _reads_probability(model: TwoPlayerModel) -> bool:
    """Return whether the sigmoid of the critic's output is what the model logs as the probability of real."""
    outputs = torch.tensor([-2.0, 0.0, 2.0])
    return torch.equal(model.critic_probability(outputs), torch.sigmoid(outputs))


def write_pictures(folder: Path, pictures: dict[str, np.ndarray]) -> None:
    """Write pictures as PNG."""
    for name, picture in pictures.items():
        save_png(picture, folder / f"{name}.png")


def log_pictures(run: Path, title: str, pictures: dict[str, np.ndarray], step: int) -> None:
    """Write pictures into a run's own TensorBoard run at `step` batches done, replacing former ones of this title."""
    from torch.utils.tensorboard import SummaryWriter

    status = read_status(run)
    if status is None or status.get("status") == "running":
        return  # a second writer would stop a TensorBoard that follows the training
    folder = events_folder(run)
    for old in folder.glob(f"{EVENT_FILES}.{title}"):
        old.unlink()
    with SummaryWriter(str(folder), filename_suffix=f".{title}") as writer:
        for name, picture in pictures.items():
            writer.add_image(f"pegasi/{name}", picture, step, dataformats="HWC")
