"""Settings of the data sources: dataclass schemas for Hydra, and their checks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import ValidationError

from pegasus_lightning.utils.errors import (
    UserError,
    check_at_least,
    check_choice,
    check_fixed,
    check_fraction,
    did_you_mean,
)


@dataclass
class DataConfig:
    """The source of the images, and their batches."""

    source: str = MISSING
    classes: list[str] = field(default_factory=lambda: ["horse", "bird"])
    batch_size: int = 64  # of all processes together
    flip: bool = True  # random horizontal flips
    validation_fraction: float = 0.05  # share of the train split, held out; the same images for every seed
    on_device: str = "auto"  # keep the images on the training device: auto (if they fit), true, false


@dataclass
class CIFAR10Config(DataConfig):
    source: str = "cifar10"
    root: str = "datasets/cifar10"
    download: bool = True


@dataclass
class ImageFolderConfig(DataConfig):
    source: str = "image_folder"
    root: str = MISSING
    cache: str | None = None  # folder for decoded images; null: the user's cache folder


@dataclass
class SilhouettesConfig(DataConfig):
    source: str = "silhouettes"
    train_per_class: int = 2000
    test_per_class: int = 400
    drawing_seed: int = 0


@dataclass
class LinesConfig(DataConfig):
    source: str = "lines"
    classes: list[str] = field(default_factory=lambda: ["up", "down"])  # halves of the full circle of angles
    train_per_class: int = 5000
    test_per_class: int = 1000
    drawing_seed: int = 0


DATA_SCHEMAS: dict[str, type[DataConfig]] = {
    schema.source: schema for schema in (CIFAR10Config, ImageFolderConfig, SilhouettesConfig, LinesConfig)
}


def validate_data(data: Any) -> None:
    """Raise UserError if a value of the section `data` is invalid."""
    check_fixed(data, "data", "source")
    classes = list(data.classes)
    if len(classes) != 2 or len(set(classes)) != 2:
        raise UserError(f"data.classes={classes} must name two different classes, such as data.classes=[horse,bird].")
    check_at_least("data.batch_size", data.batch_size, 2)
    check_fraction("data.validation_fraction", data.validation_fraction, low_open=True)
    check_choice("data.on_device", str(data.on_device).lower(), ("auto", "true", "false"))
    if OmegaConf.is_missing(data, "root"):
        raise UserError(
            "data=image_folder needs the folder that holds your images: "
            "data.root=FOLDER with FOLDER/{train,test}/<class>/*.png (or .jpg, .jpeg) in it."
        )
    for key in ("train_per_class", "test_per_class"):
        if key in data:
            check_at_least(f"data.{key}", data[key], 8)
    if "drawing_seed" in data:
        check_at_least("data.drawing_seed", data.drawing_seed, 0)


def data_settings(saved: DictConfig | None, overrides: Sequence[str]) -> DictConfig | None:
    """Return the `data` section of a trained run with overrides such as `data=silhouettes` and `data.root=photos`.

    `saved` is the run's section, None if unknown. Return None without section and overrides.

    Raises:
        UserError: an unknown source or field, or a value of the wrong type.
        HydraException: an override cannot be parsed; see `Program.explain`.
    """
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    for override in parsed:
        if override.is_sweep_override():
            raise UserError(f"'{override.input_line}' has several values: this command takes one.")
    chosen = [str(override.value()) for override in parsed if override.get_key_element() == "data"]
    source = chosen[-1] if chosen else None if saved is None else str(saved.get("source"))
    if source is None:
        if overrides:
            raise UserError(f"The source of the images is unknown: add data=SOURCE, one of {', '.join(DATA_SCHEMAS)}.")
        return None
    if source not in DATA_SCHEMAS:
        hint = did_you_mean(source, DATA_SCHEMAS)
        raise UserError(f"There is no data '{source}'.{hint} Choose from: {', '.join(DATA_SCHEMAS)}.")
    config = OmegaConf.structured(DATA_SCHEMAS[source])
    if saved is not None and (not chosen or saved.get("source") == source):
        config = OmegaConf.merge(config, saved)
    elif saved is not None:
        config = OmegaConf.merge(config, {"classes": saved.classes})
    assert isinstance(config, DictConfig)
    known = [str(field) for field in config]
    for override in parsed:
        group, _, field = override.get_key_element().partition(".")
        if group != "data" or not field:
            continue
        if field not in known:
            hint = did_you_mean(field, known)
            raise UserError(f"There is no setting 'data.{field}' for data={source}.{hint}")
        try:
            OmegaConf.update(config, field, override.value())
        except ValidationError as error:
            raise UserError(f"data.{field} has a value of the wrong type: {override.input_line}.") from error
    return config
