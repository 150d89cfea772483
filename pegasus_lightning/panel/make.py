"""The work of `panel make`: collect pictures of all sources, shuffle them, and write page, sheets and key."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor

from pegasus_lightning.data.compositions import compose
from pegasus_lightning.data.controls import cutmix, pixel_average
from pegasus_lightning.data.image_folder import SUFFIXES, read_image
from pegasus_lightning.data.module import in_mixed_order, load_split
from pegasus_lightning.data.parts import find_parts
from pegasus_lightning.data.settings import data_settings, validate_data
from pegasus_lightning.generate.sampler import sample
from pegasus_lightning.generate.session import Session, open_session
from pegasus_lightning.generate.settings import GENERATE, GenerateConfig
from pegasus_lightning.generate.settings import validate as validate_generate
from pegasus_lightning.panel.letters import COLUMNS, MAX_ALL
from pegasus_lightning.panel.page import render, sheets
from pegasus_lightning.panel.pictures import PICTURES, read_pictures
from pegasus_lightning.panel.settings import PanelMakeConfig
from pegasus_lightning.runs.places import check_writable, origin_told, path_told
from pegasus_lightning.utils.compose import typed
from pegasus_lightning.utils.errors import UserError, check_at_most
from pegasus_lightning.utils.files import whole_folder, write_json, write_text
from pegasus_lightning.utils.image_grid import save_png
from pegasus_lightning.utils.program import quote_paths
from pegasus_lightning.utils.randomness import Stream, generator
from pegasus_lightning.utils.tensors import in_batches, to_float

KEY, RATERS, PAGE, SHEETS = "key.json", "raters", "panel.html", "sheet"
NO_PHOTOGRAPHS = "A panel needs photographs as controls: add for example data=image_folder data.root=FOLDER."


@dataclass(frozen=True)
class Source:
    """Pictures of one kind."""

    name: str
    images: Tensor  # uint8 (count, 3, 32, 32)
    about: dict[str, Any] = field(default_factory=dict)  # what a scorecard needs to find its panel: run and settings


def make(config: DictConfig, data_overrides: Sequence[str]) -> Path:
    """Make a panel for a validated `PanelMakeConfig`. Return its folder.

    Raise UserError, before anything is written, if a source is missing or has too few pictures, or the folder holds
    something already.
    """
    settings = typed(config, PanelMakeConfig)
    if settings.out is not None:
        _check_new(Path(settings.out).expanduser())
    ways = settings.ask if settings.run or settings.pretrained else []
    # Each way has a seed of its own: the same mixes would be seen twice.
    asked = {way: _asked(settings, way, settings.seed + i, data_overrides) for i, way in enumerate(ways)}
    sources = [_own(place, settings.count, settings.seed) for place in settings.images]
    controls: list[Source] = []
    classes: tuple[str, str] | None = None
    for way, generating in asked.items():
        session = open_session(generating, data_overrides, "pictures from")
        if session.data is None:
            raise UserError(NO_PHOTOGRAPHS)
        if classes is None:
            classes, controls = session.parents.classes, _controls(session, settings)
            names = [f"{run.name} {each}" for each in asked for run in session.runs]
            _check_names([*(source.name for source in [*sources, *controls]), *names])
        sources += _pegasi(session, way, settings.count)
    if classes is None:
        classes, controls = _controls_without_model(data_overrides, settings)
        _check_names([source.name for source in [*sources, *controls]])
    return _write([*sources, *controls], classes, settings)


def _write(sources: Sequence[Source], classes: tuple[str, str], settings: PanelMakeConfig) -> Path:
    images = torch.cat([source.images for source in sources])
    check_at_most("The number of all pictures", len(images), MAX_ALL)
    origin = [(i, k) for i, source in enumerate(sources) for k in range(len(source.images))]
    order = torch.randperm(len(images), generator=generator(settings.seed, Stream.ORDER)).tolist()
    images = images[order]
    content = json.dumps([[*classes], [sources[origin[i][0]].name for i in order]])
    digest = hashlib.sha256(content.encode() + images.numpy().tobytes()).hexdigest()[:12]
    folder = Path(settings.out).expanduser() if settings.out else Path("panels") / digest[:8]
    _check_new(folder)
    key = {
        "panel": digest,
        "classes": [*classes],
        "sources": {source.name: _told(source.about) for source in sources},
        "pictures": [
            {"number": number, "source": sources[origin[i][0]].name, "index": origin[i][1]}
            for number, i in enumerate(order, 1)
        ],
    }
    with whole_folder(folder) as staged:
        raters = staged / RATERS
        raters.mkdir()
        write_text(raters / PAGE, render(images, digest, classes))
        for number, sheet in enumerate(sheets(images, digest, classes), 1):
            save_png(sheet, raters / f"{SHEETS}-{number:02d}.png")
        rows = [",".join(COLUMNS), *(f"{digest},{number},," for number in range(1, len(images) + 1))]
        write_text(raters / "ratings.csv", "\n".join(rows) + "\n")
        write_json(staged / KEY, key)
        with open(staged / PICTURES, "wb") as file:
            np.savez_compressed(file, images=images.numpy())
    print(f"{len(images)} pictures of {len(sources)} sources: {', '.join(source.name for source in sources)}")
    print(f"  {folder / RATERS}: for the raters, who must not see {folder / KEY}", flush=True)
    return folder


def _check_new(folder: Path) -> None:
    """Raise UserError if a panel would replace something, such as another one with its raters' answers."""
    check_writable(folder, "out=FOLDER")
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} holds something already: remove it, or name another folder with out=FOLDER.")


def _own(place: str, count: int, seed: int) -> Source:
    """Return `count` pictures of a folder or an .npz file."""
    path = Path(place).expanduser()
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
        _enough(str(path), len(files), count)
        chosen = torch.randperm(len(files), generator=generator(seed, Stream.PICTURES))[:count].sort().values
        images = torch.from_numpy(np.stack([read_image(files[i]) for i in chosen.tolist()]))
        return Source(path.name or str(path), images)
    if path.suffix != ".npz" or not path.is_file():
        raise UserError(f"images={place} is neither a folder of pictures nor an .npz file.")
    images = read_pictures(path)
    _enough(str(path), len(images), count)
    return Source(path.parent.name if path.stem == "pegasi" else path.stem, images[:count])


def _enough(place: str, have: int, count: int) -> None:
    if have < count:
        raise UserError(f"{place} has {have} pictures: a panel of count={count} takes as many of each source.")


def _asked(settings: PanelMakeConfig, way: str, seed: int, data_overrides: Sequence[str]) -> GenerateConfig:
    """Return the settings of `generate` for one way of asking, validated."""
    own = [f"run={run}" for run in settings.run] if settings.run else [f"pretrained={settings.pretrained}"]
    own += [f"count={settings.count}", f"seed={seed}", f"split={settings.split}"]
    own += [f"gpus={settings.gpus}"] if settings.gpus is not None else []
    own += [f"recognisers={settings.recognisers}"] if settings.recognisers else []
    typed_in = way.split()
    for text in typed_in:
        if text.partition("=")[0].split(".")[0] not in ("search", "pegasus", "score"):
            raise UserError(f"ask={way}: a way of asking is made of search=, pegasus. and score. settings, not {text}.")
    overrides = quote_paths([*own, *typed_in])
    try:
        GENERATE.check_overrides(overrides)
        config = GENERATE.compose(overrides)
        chosen = [text for text in typed_in if text.startswith("search=")]
        GENERATE.check_read(config, chosen, overrides, data_overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(f"ask={way}: {GENERATE.explain(error, typed_in)}") from error
    validate_generate(config)
    return typed(config, GenerateConfig)


def _pegasi(session: Session, way: str, count: int) -> list[Source]:
    selector = session.selector
    sources = []
    for run in session.runs:
        with run.model.inference():
            sampler = session.sampler(run.model)
            pegasi = sample(sampler, count, sampler.score(selector.recognise if selector else None))
        images = _bytes(pegasi.mixes.images)
        _enough(f"{run.name}, asked {way}", len(images), count)
        asked: dict[str, Any] = {"pegasus": asdict(session.settings.pegasus), "search": asdict(session.settings.search)}
        if session.settings.search.method != "none":
            asked |= {"count": count, "score": asdict(session.settings.score) | {"judge": session.judge_name}}
        about = {
            "run": None if run.folder is None else str(run.folder),
            "batches": run.model.batches_done,
            "ask": way,
            "seed": session.settings.seed,
            "settings": asked,
            "parents": origin_told(session.origin),
        }
        sources.append(Source(f"{run.name} {way}", images, about))
    return sources


def _told(about: dict[str, Any]) -> dict[str, Any]:
    """Return `about` with the run's folder as `panel score` finds it again, and without the home's name."""
    if about.get("run") is None:
        return about
    run, told = Path(about["run"]), path_told(about["run"])
    return about | {"run": str(run) if told.startswith(".../") else told}


def _controls(session: Session, settings: PanelMakeConfig) -> list[Source]:
    """Return the controls: photographs, combined photographs, and reconstructions by the first model."""
    count, model = settings.count, session.runs[0].model
    assert session.split is not None
    data = in_mixed_order(session.split)
    controls = _of_photographs(data, settings)
    for label, name in enumerate(data.classes[:2]):
        others = data.images[data.of_class(label)][count : 2 * count]  # not those that are shown themselves
        _enough(f"The {settings.split} split of {name}", len(others) + count, 2 * count)
        with model.inference(), torch.no_grad():
            decoded = in_batches(lambda part: model.reconstruct(to_float(part.to(model.device))), others)
        controls.append(Source(f"reconstructions of {name}", _bytes(decoded)))
    pairs = session.pairs
    first = session.parents.first[pairs.first[:count]]
    return [*controls, *_combined(first, session.parents.second[pairs.second[:count]], settings)]


def _controls_without_model(
    data_overrides: Sequence[str], settings: PanelMakeConfig
) -> tuple[tuple[str, str], list[Source]]:
    config = data_settings(None, data_overrides)
    if config is None:
        raise UserError(NO_PHOTOGRAPHS)
    validate_data(config)
    data = in_mixed_order(load_split(config, settings.split))
    first, second = (data.images[data.of_class(label)][-settings.count :] for label in (0, 1))
    return (data.classes[0], data.classes[1]), [*_of_photographs(data, settings), *_combined(first, second, settings)]


def _combined(first: Tensor, second: Tensor, settings: PanelMakeConfig) -> list[Source]:
    """Return pixel averages and CutMix pictures of pairs of photographs, half of each."""
    _enough("The list of pairs", min(len(first), len(second)), settings.count)
    ratios = torch.full((len(first),), 0.5)
    averaged = pixel_average(to_float(first), to_float(second), ratios)
    pasted = cutmix(to_float(first), to_float(second), ratios, settings.seed)
    return [Source("pixel average", _bytes(averaged)), Source("CutMix", _bytes(pasted))]


def _of_photographs(data: Any, settings: PanelMakeConfig) -> list[Source]:
    count, found = settings.count, []
    for label, name in enumerate(data.classes[:2]):
        images = data.images[data.of_class(label)]
        _enough(f"The {settings.split} split of {name}", len(images), count)
        found.append(Source(f"real {name}", images[:count]))
    parts = find_parts(data)
    made = compose(parts.bodies, parts.limbs, 2 * count, settings.seed)
    without = Source("compositions without a limb", made.bodies[count:])  # of other bodies, as far as there are
    return [*found, Source("compositions", made.images[:count]), without]


def _check_names(names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"Two sources are called '{name}': rename a folder or file, or name one of them only.")


def _bytes(images: Tensor) -> Tensor:
    return (images.cpu().clamp(0, 1) * 255).round().to(torch.uint8)
