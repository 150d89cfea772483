"""What `generate` does: trained runs in; figures, `pegasi.json` and `pegasi.npz` of each out, in one whole folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from pegasus_lightning.generate.figures import mixes as chimera
from pegasus_lightning.generate.figures.draw import GALLERY, draw, how, wants, write_pictures
from pegasus_lightning.generate.judge import selector
from pegasus_lightning.generate.mixing import mixing_of, recipes
from pegasus_lightning.generate.pairs import Parents, choose_pairs, pairs_for, wanted_pairs
from pegasus_lightning.generate.pretrained import FOLDER, open_pretrained
from pegasus_lightning.generate.sampler import REFERENCE, Pegasi, Sampler, sample
from pegasus_lightning.generate.session import common_data, common_guide, images_of, load_common, two_files
from pegasus_lightning.generate.settings import FIGURES
from pegasus_lightning.runs.places import title
from pegasus_lightning.runs.trained import TrainedRun, find_runs, open_runs
from pegasus_lightning.utils.compose import plain
from pegasus_lightning.utils.devices import one_device
from pegasus_lightning.utils.errors import UserError
from pegasus_lightning.utils.files import whole_folder, write_json
from pegasus_lightning.utils.tensors import to_float, to_uint8

COMPARED = 8
PARENTS_PER_CLASS = 1000  # parents a class where none are given
# What changes nothing but where results go, what is drawn of them and how fast.
NOT_PEGASI = ("run", "out", "figures", "originals", "image_scale", "gpus", "recognisers")


def generate(config: DictConfig, data_overrides: Sequence[str]) -> list[Path]:
    """Make pegasi as a validated `GenerateConfig` wants them; returns the folders written.

    Raises:
        UserError: no such run, device, data, class, image or pair, or no place for the results. Nothing was
            written then.
    """
    settings = plain(config)
    device = one_device(settings["gpus"])
    shipped = None if settings["pretrained"] is None else open_pretrained(settings["pretrained"], device)
    runs = open_runs(find_runs(settings["run"]), device) if shipped is None else [shipped.run]
    for run in runs:
        mixing_of(run.model, settings["pegasus"])  # or none of them is begun
    data = others = None
    if settings["first"] is not None:
        parents, origin = two_files(runs, settings, data_overrides)
        settings |= {"count": 1, "pegasus": settings["pegasus"] | {"pairs": "files"}}
        pairs = choose_pairs(parents.first, parents.second, 1, method="random")
        others = None if shipped is None else shipped.sample_parents(REFERENCE // 2, settings["seed"])
    elif shipped is not None and not data_overrides:
        parents, origin = shipped.sample_parents(PARENTS_PER_CLASS, settings["seed"]), {"codes": "drawn"}
        settings |= {"originals": False}  # there are none
        pairs = wanted_pairs(parents, settings)
    else:
        data = common_data(runs, data_overrides, "parents from")
        parents = Parents.of(load_common(runs, data, settings["split"], data_overrides))
        origin = {"split": settings["split"]} | images_of(data)
        pairs = wanted_pairs(parents, settings)
    judge = selector(settings, data, device, common_guide(runs), shipped)
    settings |= {"score": settings["score"] | {"judge": judge.stored.path.stem if judge else "critic"}}
    folders = [_place(run, settings, origin, several=len(runs) > 1) for run in runs]
    beside = _place_beside(runs, settings, origin)
    if settings["first"] is None:
        print(pairs.sentence(), flush=True)

    for run, folder in zip(runs, folders, strict=True):
        with run.model.inference():
            sampler = Sampler(run.model, parents, pairs, settings, others)
            score = sampler.score(judge.look if judge else None)
            pegasi = sample(sampler, settings["count"], score)
            pictures = draw(run, sampler, pegasi, settings)
        with whole_folder(folder) as staged:
            write_pictures(staged, pictures, run.model.batches_done)
            write_json(staged / "pegasi.json", _record(run, sampler, pegasi, settings, origin))
            with open(staged / "pegasi.npz", "wb") as file:
                images = to_uint8(pegasi.mixes.images).transpose(0, 3, 1, 2)
                trace = np.zeros((0, len(images))) if pegasi.ascent is None else pegasi.ascent.trace.numpy()
                np.savez(file, images=images, codes=pegasi.mixes.codes.cpu().numpy(), trace=trace)
        count, asked = len(pegasi.chosen), settings["count"]
        made = "one pegasus" if count == 1 else f"{count:,} pegasi"
        fewer = "" if count == asked else f" ({asked} were asked for: there were no more mixes)"
        sought = "" if pegasi.tried == count else f", the best of {pegasi.tried:,} mixes"
        print(f"{run.name}: {made}{fewer}{sought}\n  {folder}", flush=True)
    if beside is None:
        return folders
    _compare(runs, parents, settings, beside)
    print(f"all of them on {COMPARED} pairs\n  {beside}", flush=True)
    return [*folders, beside]


def _place(run: TrainedRun, settings: dict[str, Any], origin: dict[str, Any], *, several: bool) -> Path:
    """The folder for one run's results. Raises UserError where something else lies."""
    if settings["out"] is not None:
        folder = Path(settings["out"]).expanduser()
        folder = folder / run.name if several else folder
    else:
        home = run.folder / "pegasi" if run.folder else run.checkpoint.with_name(f"{run.checkpoint.stem}-pegasi")
        if run.checkpoint.parent == FOLDER:  # not into the installed package
            home = Path("pegasi") / run.name
        folder = home / _title(settings, origin, run.model.batches_done)
    return _free(folder)


def _place_beside(runs: list[TrainedRun], settings: dict[str, Any], origin: dict[str, Any]) -> Path | None:
    """The folder for what shows all runs side by side; None where nothing does."""
    possible = len(runs) > 1 and settings["first"] is None
    if not possible and "compare" in (settings["figures"] or ()):
        raise UserError("figures=[compare] compares runs on pairs of the data: name two or more with run=A run=B.")
    if not possible or not wants(settings, "compare"):
        return None
    if settings["out"] is not None:
        return _free(Path(settings["out"]).expanduser() / "compare")
    title = _title(settings, origin, *(str(run.path) for run in runs), *(run.model.batches_done for run in runs))
    return _free(runs[0].path.parent / "compare" / title)


def _free(folder: Path) -> Path:
    """`folder`, if it can be made, or holds nothing but what an earlier call left. Raises UserError else."""
    place = folder.absolute()
    if place == Path.cwd():
        raise UserError(f"out={folder} is the folder you stand in: name another one, such as out=pegasi.")
    ours = {"pegasi.json", "pegasi.npz", "tensorboard", *(f"{name}.png" for name in FIGURES)}
    if place.is_symlink() or place.is_file() or (place.is_dir() and {entry.name for entry in place.iterdir()} - ours):
        raise UserError(f"out={folder} exists and holds something else: name another folder.")
    above = next(parent for parent in place.parents if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise UserError(f"out={folder} cannot be made: {above} is not a folder that can be written to.")
    return folder


def _title(settings: dict[str, Any], origin: dict[str, Any], *more: Any) -> str:
    """`title` of all that decides the pegasi."""
    identity = {key: value for key, value in settings.items() if key not in NOT_PEGASI}
    return title(settings, [identity, origin, *more])


def _record(
    run: TrainedRun, sampler: Sampler, pegasi: Pegasi, settings: dict[str, Any], origin: dict[str, Any]
) -> dict[str, Any]:
    """What `pegasi.json` says: how they were made, and of each its parents, ratio, seed and scores.

    After a guided search ratio and draw are those of the mix that it began with, whose score is `score_before`; the
    codes it led to are in `pegasi.npz`.
    """
    classes = sampler.parents.classes
    first, second = (indices.tolist() for indices in sampler.parent_indices(pegasi.chosen))
    scores = {name: values.tolist() for name, values in pegasi.terms.items()} | {"score": pegasi.scores.tolist()}
    if pegasi.ascent is not None:
        scores |= {"objective": pegasi.ranking.tolist(), "score_before": pegasi.ascent.trace[0].tolist()}
    pairs = sampler.pairs
    return {
        "run": str(run.path),
        "batches": run.model.batches_done,
        "classes": list(classes),
        "parents": origin,
        "pairs": {"candidates": pairs.candidates, "possible": pairs.possible},
        "mixes_tried": pegasi.tried,
        "settings": {key: value for key, value in settings.items() if key not in NOT_PEGASI},
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


def _compare(runs: list[TrainedRun], parents: Parents, settings: dict[str, Any], folder: Path) -> None:
    """The same pairs at the same ratios through every model, beside the pixel average."""
    pegasus, seed = settings["pegasus"], settings["seed"]
    pairs = pairs_for(parents, pegasus, COMPARED, seed)
    rows: list[tuple[str, Tensor]] = []
    shown: list[Tensor] = []
    for run in runs:
        with run.model.inference():
            sampler = Sampler(run.model, parents, pairs, settings)
            chosen = recipes(sampler.pairs, tuple(pegasus["ratio"]), seed=seed)
            mixes = sampler.make(chosen)
        rows.append((run.name, mixes.images.cpu()))
        if not shown:
            own = [to_float(images) for images in sampler.originals(chosen)]
            shown = own if settings["originals"] else [mixes.first.cpu(), mixes.second.cpu()]
    batches = ", ".join(dict.fromkeys(str(run.model.batches_done) for run in runs))
    picture = chimera.compare_figure(
        rows,
        shown[0],
        shown[1],
        classes=parents.classes,
        ratios=chosen.ratios,
        parents_caption="original" if settings["originals"] else f"as {runs[0].name} decodes it",
        controls=[("pixel average", torch.lerp(shown[0], shown[1], chosen.ratios[:, None, None, None]))],
        footer=f"{how(settings)}, {pegasus['codes']} codes, batch {batches}, seed {seed}",
        scale=settings["image_scale"],
    )
    with whole_folder(folder) as staged:
        write_pictures(staged, {"compare": picture}, max(run.model.batches_done for run in runs))
