"""The recognisers that guide a training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from pegasus_lightning.models.two_player import TwoPlayerModel
from pegasus_lightning.recognisers.committee import Committee
from pegasus_lightning.recognisers.store import StoredRecogniser, committee_for, identity_of
from pegasus_lightning.runs.checkpoints import (
    read_checkpoint,
)
from pegasus_lightning.train.trainer import log
from pegasus_lightning.utils.devices import is_first_process
from pegasus_lightning.utils.errors import UserError


def guide_for(
    settings: dict[str, Any], data_config: DictConfig, device: torch.device | str = "cpu"
) -> StoredRecogniser | None:
    """The recognisers that the model is to be guided by, trained now if they must be; None where it needs none."""
    weights, guide = settings["model"]["weights"], settings["model"].get("guide")
    if guide is None or not (weights["guidance"] or weights["perceptual"]):
        return None
    architectures, images = guide["architectures"], guide["images"]
    if not is_first_process():  # it finds them done
        return committee_for(data_config, architectures, images=images, say=log.debug)
    return committee_for(data_config, architectures, images=images, device=device)


def check_guide(guide: StoredRecogniser | None, checkpoint: Path | None) -> None:
    """A run goes on with the guide that it began with, or not at all.

    Raises:
        UserError: the checkpoint was guided by others: they have been trained anew since.
    """
    if guide is None or checkpoint is None:
        return
    known = read_checkpoint(checkpoint).get("guide")
    if known is not None and known != identity_of(guide):
        raise UserError(
            f"{checkpoint} was guided by other recognisers than those in {guide.path.parent}, which were trained anew "
            "since: going on with them would make another model. Put the former back, or begin with another run_name."
        )


def give_guide(model: TwoPlayerModel, guide: StoredRecogniser) -> None:
    """Let the model ask the guide, on whatever device it comes to; no part of its state, as it is never trained.

    Its checkpoints name it.
    """
    committee: Committee = guide.recogniser.to(memory_format=torch.channels_last)
    object.__setattr__(model, "guide", committee)
    object.__setattr__(model, "guide_identity", identity_of(guide))
