"""The settings of a run, and which of them to show first: model and seed, and what the user chose."""

from __future__ import annotations

from typing import Any

from hydra.core.hydra_config import HydraConfig

from pegasus_lightning.runs.folder import flat
from pegasus_lightning.train.settings import TRAIN
from pegasus_lightning.utils.compose import plain

SECTIONS = ("model", "data", "seed")


def hparams(values: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
    """Return the settings of a plain configuration that make the run what it is, flat, and those to show first.

    These are model, seed, the source if it was typed, and the model's settings that were typed or differ from the
    preset of its name. TensorBoard shows five at first, and sorts by name: the data's would hide the model's.
    """
    shown = flat({key: values[key] for key in SECTIONS})
    usual = flat({"model": plain(TRAIN.compose([f"model={values['model']['name']}"]))["model"]})
    typed = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    keys = {text.partition("=")[0].lstrip("+") for text in typed}
    first = {key for key, value in usual.items() if key in keys or value != shown.get(key)}
    return shown, {"model.name", "seed", *first, *(["data.source"] if "data" in keys else [])}
