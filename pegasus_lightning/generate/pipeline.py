"""The work of `generate`: figures, `pegasi.json` and `pegasi.npz` of each run, each run's in one folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from pegasus_lightning.generate.figures import mixes as mix_figures
from pegasus_lightning.generate.figures.draw import GALLERY, draw, how, log_pictures, wants, write_pictures
from pegasus_lightning.generate.judge import Selector
from pegasus_lightning.generate.mixing import recipes
from pegasus_lightning.generate.pairs import pairs_for
from pegasus_lightning.generate.pretrained import FOLDER
from pegasus_lightning.generate.sampler import Pegasi, Sampler, sample
from pegasus_lightning.generate.session import Session, open_session
from pegasus_lightning.generate.settings import FIGURES, GenerateConfig
from pegasus_lightning.runs.places import check_writable, link_latest, origin_told, path_shown, path_told, title
from pegasus_lightning.runs.trained import TrainedRun
from pegasus_lightning.utils.bars import waiting
from pegasus_lightning.utils.compose import typed
from pegasus_lightning.utils.errors import UserError
from pegasus_lightning.utils.files import whole_folder, write_json
from pegasus_lightning.utils.tensors import to_float, to_uint8

COMPARED = 8
# Settings that change nothing but where results go, what is drawn of them, and how fast.
NOT_PEGASI = ("run", "checkpoint", "out", "figures", "originals", "image_scale", "gpus", "recognisers")
RESULTS = {"pegasi.json", "pegasi.npz", "tensorboard", *(f"{name}.png" for name in FIGURES)}


def generate(config: DictConfig, data_overrides: Sequence[str]) -> list[Path]:
    """Make pegasi for a validated `GenerateConfig`. Return the folders that were written.

    Raise UserError, before anything is written, if a run, device, data, class, image or pair is missing, or results
    cannot be written.
    """
    session = open_session(typed(config, GenerateConfig), data_overrides, "parents from")
    selector = session.selector
    judge = "critic" if selector is None else selector.stored.path.stem
    settings: GenerateConfig = replace(session.settings, score=replace(session.settings.score, judge=judge))
    assert settings.count is not None
    folders = [_place(run, settings, session) for run in session.runs]
    beside = _place_beside(settings, session)
    if settings.first is None:
        print(session.pairs.sentence(), flush=True)
    for note in session.notes():
        print(f"Note: {note}.", flush=True)
    if session.parents.stored:
        print(
            "Parents: codes that come with the model, each near that of a training image. data=... takes photographs."
        )

    for run, folder in zip(session.runs, folders, strict=True):
        with run.model.inference():
            with waiting("encoding the parents"):
                sampler = session.sampler(run.model)
            pegasi = sample(sampler, settings.count, sampler.score(selector.recognise if selector else None))
            with waiting("drawing the figures"):
                pictures = draw(run, sampler, pegasi, settings)
        with whole_folder(folder) as staged:
            write_pictures(staged, pictures)
            write_json(staged / "pegasi.json", _record(run, sampler, pegasi, settings, session.origin))
            with open(staged / "pegasi.npz", "wb") as file:
                images = to_uint8(pegasi.mixes.images).transpose(0, 3, 1, 2)
                trace = np.zeros((0, len(images))) if pegasi.ascent is None else pegasi.ascent.trace.numpy()
                np.savez(file, images=images, codes=pegasi.mixes.codes.cpu().numpy(), trace=trace)
        if run.folder is not None and folder.parent == run.folder / "pegasi":
            log_pictures(run.folder, folder.name, pictures, run.model.batches_done)
        count = len(pegasi.chosen)
        made = "one pegasus" if count == 1 else f"{count:,} pegasi"
        fewer = "" if count == settings.count else f" ({settings.count} were asked for: there were no more mixes)"
        sought = "" if pegasi.tried == count else f", the best of {pegasi.tried:,} mixes"
        print(f"{run.name}: {made}{fewer}{sought}\njudged by {_judges(run, selector)}")
        print(_to_open(folder, pictures, settings), flush=True)
        if settings.out is None:
            link_latest(folder)
    if beside is None:
        return folders
    _compare(session, settings, beside)
    print(f"All of them on {COMPARED} pairs\nopen {path_shown(beside / 'compare.png')}", flush=True)
    return [*folders, beside]


def _judges(run: TrainedRun, selector: Selector | None) -> str:
    """Return who scored the mixes, in words."""
    critic = (
        "its critic" if run.model.critic is not None else "the distance from an overlay alone (the model has no critic)"
    )
    if selector is None:
        return critic.replace("its critic", "the model's critic")
    return selector.words if "selecting" in selector.words else f"{selector.words}; realism by {critic}"


def _to_open(folder: Path, pictures: dict[str, Any], settings: GenerateConfig) -> str:
    """Return a line that names the picture to look at first, or the record if none was drawn."""
    order = ["pegasi", "best"] if settings.search.method == "none" else ["best", "pegasi"]
    shown = [f"{name}.png" for name in [*order, *pictures] if name in pictures]
    return f"open {path_shown(folder / (shown or ['pegasi.json'])[0])}"


def _place(run: TrainedRun, settings: GenerateConfig, session: Session) -> Path:
    """Return the folder for one run's results. Raise UserError if they cannot be written there."""
    if settings.out is not None:
        folder = Path(settings.out).expanduser()
        return check_writable(folder / run.name if len(session.runs) > 1 else folder, "out=FOLDER", ours=RESULTS)
    home = run.folder / "pegasi" if run.folder else run.checkpoint.with_name(f"{run.checkpoint.stem}-pegasi")
    if run.checkpoint.parent == FOLDER:  # not into the installed package
        home = Path("pegasi") / run.name
    return check_writable(home / _title(settings, session.origin, run.model.batches_done), "out=FOLDER", ours=RESULTS)


def _place_beside(settings: GenerateConfig, session: Session) -> Path | None:
    """Return the folder for the comparison of all runs; None if nothing is compared."""
    runs = session.runs
    possible = len(runs) > 1 and settings.first is None
    if not possible and "compare" in (settings.figures or ()):
        raise UserError("figures=[compare] compares runs on pairs of the data: name two or more with run=A run=B.")
    if not possible or not wants(settings, "compare"):
        return None
    if settings.out is not None:
        return check_writable(Path(settings.out).expanduser() / "compare", "out=FOLDER", ours=RESULTS)
    what = [*(str(run.path) for run in runs), *(run.model.batches_done for run in runs)]
    folder = (runs[0].folder or runs[0].path).parent / "compare" / _title(settings, session.origin, *what)
    return check_writable(folder, "out=FOLDER", ours=RESULTS)


def _identity(settings: GenerateConfig) -> dict[str, Any]:
    return {key: value for key, value in asdict(settings).items() if key not in NOT_PEGASI}


def _settings_told(settings: GenerateConfig) -> dict[str, Any]:
    told = _identity(settings)
    return told | {key: path_told(told[key]) for key in ("first", "second") if told[key] is not None}


def _title(settings: GenerateConfig, origin: dict[str, Any], *more: Any) -> str:
    return title(settings, [_identity(settings), origin, *more])


def _record(
    run: TrainedRun, sampler: Sampler, pegasi: Pegasi, settings: GenerateConfig, origin: dict[str, Any]
) -> dict[str, Any]:
    """Return the content of `pegasi.json`: the settings, and the parents, ratio, seed and scores of each pegasus.

    After a guided search, ratio and draw are those of the mix at its start, whose score is `score_before`; the final
    codes are in `pegasi.npz`.
    """
    classes = sampler.parents.classes
    first, second = (indices.tolist() for indices in sampler.parent_indices(pegasi.chosen))
    scores = {name: values.tolist() for name, values in pegasi.terms.items()} | {"score": pegasi.scores.tolist()}
    if pegasi.ascent is not None:
        scores |= {"objective": pegasi.ranking.tolist(), "score_before": pegasi.ascent.trace[0].tolist()}
    return {
        "run": path_told(run.path),
        "batches": run.model.batches_done,
        "classes": list(classes),
        "parents": origin_told(origin) | ({"near": "training images"} if sampler.parents.stored else {}),
        "pairs": {"candidates": sampler.pairs.candidates, "possible": sampler.pairs.possible},
        "mixes_tried": pegasi.tried,
        "settings": _settings_told(settings),
        "best": pegasi.best(1 + GALLERY).tolist(),
        "pegasi": [
            {
                "index": i,
                "first": {"class": classes[0], "index": first[i]},
                "second": {"class": classes[1], "index": second[i]},
                "ratio": round(pegasi.chosen.ratios[i].item(), 6),
                "seed": settings.seed,
                "draw": pegasi.chosen.draws[i].item(),
                "scores": {name: round(values[i], 6) for name, values in scores.items()},
            }
            for i in range(len(pegasi.chosen))
        ],
    }


def _compare(session: Session, settings: GenerateConfig, folder: Path) -> None:
    """Draw the same pairs at the same ratios through every model, beside the pixel average."""
    pegasus, seed, runs, parents = settings.pegasus, settings.seed, session.runs, session.parents
    pairs = pairs_for(parents, pegasus, COMPARED, seed)
    rows: list[tuple[str, Tensor]] = []
    shown: list[Tensor] = []
    for run in runs:
        with run.model.inference():
            sampler = Sampler(run.model, parents, pairs, settings)
            chosen = recipes(sampler.pairs, (pegasus.ratio[0], pegasus.ratio[1]), seed=seed)
            mixes = sampler.make(chosen)
        rows.append((run.name, mixes.images.cpu()))
        if not shown:
            own = [to_float(images) for images in sampler.originals(chosen)]
            shown = own if settings.originals else [mixes.first.cpu(), mixes.second.cpu()]
    batches = ", ".join(dict.fromkeys(str(run.model.batches_done) for run in runs))
    picture = mix_figures.compare_figure(
        rows,
        shown[0],
        shown[1],
        classes=parents.classes,
        ratios=chosen.ratios,
        parents_caption="original" if settings.originals else f"as {runs[0].name} decodes it",
        controls=[("pixel average", torch.lerp(shown[0], shown[1], chosen.ratios[:, None, None, None]))],
        footer=f"{how(settings)}, {pegasus.codes} codes, batch {batches}, seed {seed}",
        scale=settings.image_scale,
    )
    with whole_folder(folder) as staged:
        write_pictures(staged, {"compare": picture})
