"""The recognisers that guide a training: find or train them, check them on resume, hand them to the model."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from pegasus_lightning.models.two_player import TwoPlayerModel
from pegasus_lightning.recognisers.committee import Committee
from pegasus_lightning.recognisers.store import RecogniserStore, StoredRecogniser
from pegasus_lightning.runs.checkpoints import read_checkpoint
from pegasus_lightning.utils.devices import is_first_process
from pegasus_lightning.utils.errors import UserError

log = logging.getLogger(__name__)


def guide_for(model: Any, data: Any, device: torch.device | str = "cpu") -> StoredRecogniser | None:
    """Return the recognisers that guide a model, trained now if need be. None: no loss term of the model uses them.

    `model` is a `ModelConfig`, `data` a `DataConfig`.
    """
    guide = getattr(model, "guide", None)
    if guide is None or not (model.weights.guidance or model.weights.perceptual):
        return None
    # Further processes of a data-parallel run find the recognisers trained, and say nothing.
    store = RecogniserStore(device=device) if is_first_process() else RecogniserStore(say=log.debug)
    return store.committee(data, guide.architectures, images=guide.images)


def check_guide(guide: StoredRecogniser | None, checkpoint: Path | None) -> None:
    """Raise UserError if a run began with another guide, whose recognisers have been trained anew since."""
    if guide is None or checkpoint is None:
        return
    known = read_checkpoint(checkpoint).get("guide")
    if known is not None and known != guide.member_hashes:
        raise UserError(
            f"{checkpoint} was guided by other recognisers than those in {guide.path.parent}, which were trained anew "
            "since: going on with them would make another model. Put the former back, or begin with another run_name."
        )


def give_guide(model: TwoPlayerModel, guide: StoredRecogniser) -> None:
    """Attach the guide to the model. It is not part of the model's state; checkpoints hold its SHA-256s alone."""
    committee: Committee = guide.recogniser.to(memory_format=torch.channels_last)
    object.__setattr__(model, "guide", committee)
    object.__setattr__(model, "guide_identity", guide.member_hashes)
