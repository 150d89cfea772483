"""What `generate` does: trained runs in; figures, `pegasi.json` and `pegasi.npz` of each out, in one whole folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from pegasus_lightning.composing import data_settings
from pegasus_lightning.config import IMAGE_SIZE, plain, validate_data
from pegasus_lightning.data.batches import to_float
from pegasus_lightning.data.module import load_split
from pegasus_lightning.devices import choose_devices, hide_gpus
from pegasus_lightning.errors import UserError
from pegasus_lightning.figures import chimera, save_png, to_uint8
from pegasus_lightning.figures.diagram import diagram_figure, plan
from pegasus_lightning.files import whole_folder, write_json
from pegasus_lightning.models.two_player import TwoPlayerModel
from pegasus_lightning.pegasus.mixing import Recipes, recipes
from pegasus_lightning.trained import TrainedRun, check_classes, find_runs, open_run
from pegasus_lightning.workshop import Parents, Pegasi, Workshop, make_pegasi, pairs_for

SHOWN = 64  # in the figure of many
GALLERY = 16
REPEATS, REPEAT_STEPS = 6, 11
COMPARED = 8
# What changes nothing but where results go, what is drawn of them and how fast.
NOT_IDENTITY = ("run", "out", "figures", "originals", "image_scale", "gpus")


def generate(config: DictConfig, data_overrides: Sequence[str]) -> list[Path]:
    """Make pegasi as a validated `GenerateConfig` wants them; returns the folders written.

    Raises:
        UserError: no such run, device, data, class, image or pair. Nothing was written then.
    """
    settings = plain(config)
    device = _device(settings["gpus"])
    runs = [open_run(path, device) for path in find_runs(settings["run"])]
    parents, origin = _parents(runs, settings, data_overrides)
    alone = settings["first"] is not None
    _check_figures(settings, len(runs), alone)
    tried = settings["search"]["pairs"] if settings["search"]["method"] != "none" else settings["count"]
    pairs = pairs_for(
        parents, settings["pegasus"] | ({"pairs": "random"} if alone else {}), 1 if alone else tried, settings["seed"]
    )
    folders = [_place(run, settings, origin, several=len(runs) > 1) for run in runs]
    if not alone:
        print(pairs.sentence(), flush=True)

    written = []
    for run, folder in zip(runs, folders, strict=True):
        with run.model.inference():
            workshop = Workshop(run.model, parents, pairs, settings)
            pegasi = make_pegasi(workshop, 1 if alone else settings["count"], workshop.default_score())
            pictures = _draw(run, workshop, pegasi, settings)
        with whole_folder(folder) as staged:
            _write_pictures(staged, pictures, run.model.batches_done)
            write_json(staged / "pegasi.json", _record(run, workshop, pegasi, settings, origin))
            with open(staged / "pegasi.npz", "wb") as file:
                images = to_uint8(pegasi.mixes.images).transpose(0, 3, 1, 2)
                np.savez(file, images=images, codes=pegasi.mixes.codes.cpu().numpy())
        count = len(pegasi.chosen)
        made = "one pegasus" if count == 1 else f"{count:,} pegasi"
        sought = "" if pegasi.tried == count else f", the best of {pegasi.tried:,} mixes"
        print(f"{run.name}: {made}{sought}\n  {folder}", flush=True)
        written.append(folder)
    if len(runs) > 1 and _wants(settings, "compare"):
        written.append(_compare(runs, parents, settings, origin))
    return written


def _device(gpus: int | None) -> torch.device:
    devices = choose_devices(gpus, key="gpus")
    if devices.accelerator == "cpu":
        hide_gpus()
    return torch.device("cuda:0" if devices.accelerator == "cuda" else "cpu")


def _wants(settings: dict[str, Any], figure: str) -> bool:
    return settings["figures"] is None or figure in settings["figures"]


def _check_figures(settings: dict[str, Any], runs: int, alone: bool) -> None:
    named = settings["figures"] or ()
    if "compare" in named and (runs < 2 or alone):
        raise UserError("figures=[compare] compares runs on pairs of the data: name two or more with run=A run=B.")
    if "filmstrip" in named and settings["search"]["method"] != "guided":
        raise UserError("figures=[filmstrip] shows a guided search: say search=guided too.")
    if "interpolation" in named and not (alone and settings["originals"]):
        raise UserError("figures=[interpolation] is for two image files: say first=IMAGE and second=IMAGE.")
    if "gallery" in named and (alone or settings["count"] < 2):
        raise UserError("figures=[gallery] shows the next best ones: it needs count=2 or more, and no first=.")


def _parents(
    runs: list[TrainedRun], settings: dict[str, Any], overrides: Sequence[str]
) -> tuple[Parents, dict[str, Any]]:
    """The images that parents are taken from, and where they come from, as it is recorded."""
    if settings["first"] is not None:
        from pegasus_lightning.data.image_folder import read_image

        paths = [Path(settings[key]).expanduser() for key in ("first", "second")]
        first, second = (torch.tensor(read_image(path))[None] for path in paths)
        classes = runs[0].model.hparams["classes"]
        return Parents(first, second, (classes[0], classes[1])), {"files": [str(path) for path in paths]}
    known = [run.config.data for run in runs if run.config is not None]
    if not known and not overrides:
        raise UserError(
            f"{runs[0].path} is a checkpoint on its own, which does not say where images come from: add for "
            "example data=silhouettes, or data=image_folder data.root=FOLDER, or first=IMAGE second=IMAGE."
        )
    if not overrides and any(plain(data) != plain(known[0]) for data in known):
        raise UserError("These runs were trained on different data. Say which to take parents from, as in data=SOURCE.")
    config = data_settings(known[0] if known else None, overrides)
    assert config is not None
    validate_data(config)
    for run in runs:
        check_classes(run, config)
    return Parents.of(load_split(config, settings["split"])), {"split": settings["split"]} | plain(config)


def _place(run: TrainedRun, settings: dict[str, Any], origin: dict[str, Any], *, several: bool) -> Path:
    """The folder for one run's results. Raises UserError where something else lies."""
    if settings["out"] is not None:
        folder = Path(settings["out"]).expanduser()
        folder = folder / run.name if several else folder
    else:
        home = run.folder / "pegasi" if run.folder else run.checkpoint.with_name(f"{run.checkpoint.stem}-pegasi")
        folder = home / _title(settings, origin, run.model.batches_done)
    _check_free(folder, "pegasi.json")
    return folder


def _check_free(folder: Path, ours: str) -> None:
    if folder.absolute() == Path.cwd():
        raise UserError(f"out={folder} is the folder you stand in: name another one, such as out=pegasi.")
    taken = folder.exists() and not (folder / ours).exists() and (not folder.is_dir() or any(folder.iterdir()))
    if taken or folder.is_symlink():
        raise UserError(f"out={folder} exists and holds something else: name another folder.")


def _title(settings: dict[str, Any], origin: dict[str, Any], *more: Any) -> str:
    """`<pairs>-<mixing>-<search>-s<seed>-<8 hex of all that decides the pegasi>`."""
    identity = {key: value for key, value in settings.items() if key not in NOT_IDENTITY}
    code = hashlib.sha256(json.dumps([identity, origin, *more], sort_keys=True).encode()).hexdigest()[:8]
    kind = "files" if "files" in origin else settings["pegasus"]["pairs"]
    return f"{kind}-{settings['pegasus']['mixing']}-{settings['search']['method']}-s{settings['seed']}-{code}"


def _footer(run: TrainedRun, settings: dict[str, Any], tried: int) -> str:
    pegasus = settings["pegasus"]
    low, high = pegasus["ratio"]
    pairs = "two image files" if settings["first"] else f"{pegasus['pairs']} pairs"
    drawn = "sampled codes" if pegasus["codes"] == "sampled" and run.model.config.sample_codes else "codes not sampled"
    method = settings["search"]["method"]
    sought = {"none": "no search", "best_of": f"best of {tried:,}", "guided": f"best of {tried:,}, then guided"}[method]
    how = f"{pairs}, {pegasus['mixing']}, ratio {low:g} to {high:g}, {drawn}, {sought}"
    return f"{run.name}, batch {run.model.batches_done}, {how}, seed {settings['seed']}"


def _draw(run: TrainedRun, workshop: Workshop, pegasi: Pegasi, settings: dict[str, Any]) -> dict[str, np.ndarray]:
    """The figures that are wanted and that there is something to draw for, by name."""
    chosen, mixes, scores = pegasi.chosen, pegasi.mixes, pegasi.scores
    look: dict[str, Any] = {"classes": workshop.parents.classes, "footer": _footer(run, settings, pegasi.tried)}
    scaled = look | {"scale": settings["image_scale"]}
    low, high = settings["pegasus"]["ratio"]
    best = pegasi.best(1 + GALLERY)
    top, others = best[:1], best[1:]
    originals = tuple(images[0] for images in workshop.originals(chosen.take(top)))
    pictures = {}
    if _wants(settings, "pegasi") and len(chosen) > 1:
        pictures["pegasi"] = chimera.pegasi_figure(mixes.images[:SHOWN], **scaled)
    if _wants(settings, "best"):
        one = mixes.take(top)
        pictures["best"] = chimera.best_figure(
            one.images[0],
            one.first[0],
            one.second[0],
            ratio=one.ratios[0].item(),
            scores={name: values[top][0].item() for name, values in pegasi.terms.items()},
            originals=originals if settings["originals"] else None,  # type: ignore[arg-type]
            **look,
        )
    if _wants(settings, "gallery") and len(others):
        good = mixes.take(others)
        pictures["gallery"] = chimera.gallery_figure(
            good.images, good.first, good.second, ratios=good.ratios.cpu(), scores=scores[others], **scaled
        )
    ratios = torch.linspace(0, 1, REPEAT_STEPS)
    if _wants(settings, "interpolation") and settings["first"] is not None and settings["originals"]:
        pictures["interpolation"] = chimera.interpolation_figure(
            workshop.interpolations(chosen.take(top), ratios)[0],
            ratios=ratios,
            parents=originals,  # type: ignore[arg-type]
            pegasus_range=(low, high),
            **scaled,
        )
    if _wants(settings, "repeats"):
        again = chosen.take(top.repeat(REPEATS))
        anew = Recipes(again.first, again.second, again.ratios, pegasi.tried + torch.arange(REPEATS))
        fixed = not (workshop.mixer.sampled and run.model.config.sample_codes)
        pictures["repeats"] = chimera.repeats_figure(
            workshop.interpolations(anew, ratios),
            ratios=ratios,
            pegasus_range=(low, high),
            note="All rows are alike: the codes are not sampled." if fixed else "",
            **scaled,
        )
    if _wants(settings, "diagram"):
        pictures["diagram"] = diagram(run.model, title=f"The networks of {run.name}")
    if _wants(settings, "filmstrip") and pegasi.ascent is not None:
        ascent = pegasi.ascent
        pictures["filmstrip"] = chimera.filmstrip_figure(
            ascent.frames, steps=ascent.steps, trace=ascent.trace, **scaled
        )
    return pictures


def diagram(model: TwoPlayerModel, *, title: str, footer: str = "") -> np.ndarray:
    """The model's networks as a picture, with shapes and parameter counts."""
    image = torch.zeros(2, 3, IMAGE_SIZE, IMAGE_SIZE, device=model.device)
    code = torch.zeros(2, model.config.networks.latent_dim, device=model.device)
    examples = {"encoder": image, "decoder": code, "critic": image}
    networks = {name: getattr(model, name) for name in examples}
    plans = [plan(name, network, examples[name]) for name, network in networks.items() if network is not None]
    return diagram_figure(plans, title=title, footer=footer)


def _write_pictures(folder: Path, pictures: dict[str, np.ndarray], step: int) -> None:
    """As PNG, and into TensorBoard at `step` batches done."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder / "tensorboard")) as writer:
        for name, picture in pictures.items():
            save_png(picture, folder / f"{name}.png")
            writer.add_image(f"pegasi/{name}", picture, step, dataformats="HWC")


def _record(
    run: TrainedRun, workshop: Workshop, pegasi: Pegasi, settings: dict[str, Any], origin: dict[str, Any]
) -> dict[str, Any]:
    """What `pegasi.json` says: how they were made, and of each its parents, ratio, seed and scores."""
    classes = workshop.parents.classes
    first, second = (indices.tolist() for indices in workshop.parent_indices(pegasi.chosen))
    scores = {name: values.tolist() for name, values in pegasi.terms.items()} | {"score": pegasi.scores.tolist()}
    pairs = workshop.pairs
    return {
        "run": str(run.path),
        "batches": run.model.batches_done,
        "classes": list(classes),
        "parents": origin,
        "pairs": {"candidates": pairs.candidates, "possible": pairs.possible},
        "mixes_tried": pegasi.tried,
        "settings": {key: value for key, value in settings.items() if key not in NOT_IDENTITY},
        "best": pegasi.best(1 + GALLERY).tolist(),
        "pegasi": [
            {
                "index": i,
                "first": {"class": classes[0], "index": first[i]},
                "second": {"class": classes[1], "index": second[i]},
                "ratio": round(pegasi.chosen.ratios[i].item(), 6),
                "seed": settings["seed"],
                "draw": pegasi.chosen.draws[i].item(),
                "scores": {name: round(values[i], 6) for name, values in scores.items()},
            }
            for i in range(len(pegasi.chosen))
        ],
    }


def _compare(runs: list[TrainedRun], parents: Parents, settings: dict[str, Any], origin: dict[str, Any]) -> Path:
    """The same pairs at the same ratios through every model, beside the pixel average. Returns the folder."""
    if settings["out"] is not None:
        folder = Path(settings["out"]).expanduser() / "compare"
    else:
        title = _title(settings, origin, *(str(run.path) for run in runs), *(run.model.batches_done for run in runs))
        folder = runs[0].path.parent / "compare" / title
    _check_free(folder, "compare.png")
    pairs = pairs_for(parents, settings["pegasus"], COMPARED, settings["seed"])
    low, high = settings["pegasus"]["ratio"]
    rows: list[tuple[str, Tensor]] = []
    shown: list[Tensor] = []
    for run in runs:
        with run.model.inference():
            workshop = Workshop(run.model, parents, pairs, settings)
            chosen = recipes(workshop.pairs, (low, high), seed=settings["seed"])
            mixes = workshop.make(chosen)
        rows.append((run.name, mixes.images.cpu()))
        if not shown:
            own = [to_float(images) for images in workshop.originals(chosen)]
            shown = own if settings["originals"] else [mixes.first.cpu(), mixes.second.cpu()]
    ratios = chosen.ratios
    blend = torch.lerp(shown[0], shown[1], ratios[:, None, None, None])
    picture = chimera.compare_figure(
        rows,
        shown[0],
        shown[1],
        classes=parents.classes,
        ratios=ratios,
        parents_caption="original" if settings["originals"] else f"as {runs[0].name} decodes it",
        controls=[("pixel average", blend)],
        footer=f"{settings['pegasus']['pairs']} pairs, {settings['pegasus']['mixing']}, seed {settings['seed']}",
        scale=settings["image_scale"],
    )
    with whole_folder(folder) as staged:
        _write_pictures(staged, {"compare": picture}, max(run.model.batches_done for run in runs))
    print(f"compared on {len(ratios)} pairs\n  {folder}", flush=True)
    return folder
