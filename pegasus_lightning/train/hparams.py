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

    These are model, seed, and what was typed or differs from the presets with the names of the model and the source.
    """
    shown = flat({key: values[key] for key in SECTIONS})
    presets = [f"model={values['model']['name']}", f"data={values['data']['source']}"]
    usual = flat(plain(TRAIN.compose(presets)))
    typed = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    keys = {text.partition("=")[0].lstrip("+") for text in typed}
    first = {key for key, value in shown.items() if key in keys or value != usual.get(key)}
    return shown, {"model.name", "seed", *first, *(["data.source"] if "data" in keys else [])}
