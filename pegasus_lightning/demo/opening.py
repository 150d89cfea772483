"""Open the model and the parents of a demo."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from omegaconf import DictConfig

from pegasus_lightning.data.module import load_split
from pegasus_lightning.data.settings import data_settings, validate_data
from pegasus_lightning.demo.parents import OfCodes, Offer, OfImages, OfPrior
from pegasus_lightning.demo.session import DemoSession
from pegasus_lightning.demo.settings import DEFAULT_MODEL, DemoConfig
from pegasus_lightning.export.model_files import ExportedModel, load_export
from pegasus_lightning.generate.pairs import Parents
from pegasus_lightning.generate.pretrained import PretrainedModel, open_pretrained
from pegasus_lightning.generate.session import common_data, images_of
from pegasus_lightning.models.two_player import TwoPlayerModel
from pegasus_lightning.recognisers.store import RecogniserStore
from pegasus_lightning.runs.places import check_writable
from pegasus_lightning.runs.trained import TrainedRun, find_trained, open_run
from pegasus_lightning.utils.devices import one_device
from pegasus_lightning.utils.errors import UserError, did_you_mean


def open_demo(settings: DemoConfig, data_overrides: Sequence[str]) -> tuple[DemoSession, Path]:
    """Open the model that a validated `DemoConfig` names. Return it with its parents, and the folder for favourites.

    Raise UserError, before anything is written, if the model, its device, the named images or a class are missing, or
    favourites cannot be written.
    """
    device = one_device(settings.gpus)
    pretrained: PretrainedModel | None = None
    run: TrainedRun | None = None
    model: TwoPlayerModel | ExportedModel
    if settings.export is not None:
        path = Path(settings.export).expanduser()
        model = load_export(path, device)
        classes, name = model.classes, path.absolute().name
    else:
        if settings.run:
            run = _one_run(settings.run, device)
        else:
            pretrained = open_pretrained(settings.pretrained or DEFAULT_MODEL, device)
            run = pretrained.run
        model, path, classes, name = run.model, run.path, run.classes, run.name
        model.requires_grad_(False).eval()
    own = (classes[0], classes[1])
    store = RecogniserStore(None if settings.recognisers is None else Path(settings.recognisers).expanduser(), device)
    folder = check_writable(_favourites(settings, run, name), "out=FOLDER")
    data: DictConfig | None = None
    offer: Offer
    if pretrained is not None and not data_overrides:
        offer = OfCodes(pretrained, settings.seed)
    elif run is None or (run.config is None and not data_overrides):
        data = _data_of_export(path, own, data_overrides)
        offer = OfPrior(model, settings.seed) if data is None else _images(data, settings, own, model)
    else:
        data = common_data([run], data_overrides, "parents from")
        try:
            offer = _images(data, settings, own, model)
        except UserError:
            if data_overrides:
                raise
            data, offer = None, OfPrior(model, settings.seed)
    if isinstance(offer, OfImages):
        own = offer.parents.classes
    return DemoSession(model, name, path, own, offer, store, data, pretrained), folder


def _one_run(places: Sequence[str], device: torch.device) -> TrainedRun:
    found = find_trained(places)
    if len(found) > 1:
        raise UserError(f"The demo shows one model, and run= names {len(found)}: say run={found[0]}, for example.")
    return open_run(found[0], device)


def _data_of_export(path: Path, classes: Sequence[str], overrides: Sequence[str]) -> DictConfig | None:
    """Return the `data` configuration that was named; None if none was. Raise UserError for unknown classes."""
    config = data_settings(None, overrides)
    if config is None:
        return None
    validate_data(config)
    for name in config.classes:
        if name not in classes:
            hint = did_you_mean(name, classes)
            raise UserError(f"{path} was not trained on '{name}': its classes are {', '.join(classes)}.{hint}")
    return config


def _images(
    data: DictConfig, settings: DemoConfig, classes: tuple[str, str], model: TwoPlayerModel | ExportedModel
) -> OfImages:
    split = load_split(data, settings.split)
    origin = {"split": settings.split} | images_of(data)
    words = f"images of the {settings.split} split ({data.source})"
    return OfImages(Parents.of(split), origin, words, settings.seed, fit=model.mixer is not None)


def _favourites(settings: DemoConfig, run: TrainedRun | None, name: str) -> Path:
    """Return the folder for favourites: in the run's folder, but not in the package or an export."""
    if settings.out is not None:
        return Path(settings.out).expanduser()
    home = Path("pegasi") / name if run is None or run.folder is None else run.folder / "pegasi"
    return home / "favourites"
