"""The registry of variants by name. Nothing that a user types is imported by path."""

from __future__ import annotations

from pegasus_lightning.models.acai import ACAI
from pegasus_lightning.models.adversarial_vae import AdversarialVAE
from pegasus_lightning.models.pegasus import Pegasus
from pegasus_lightning.models.two_player import TwoPlayerModel
from pegasus_lightning.models.vae import VAE
from pegasus_lightning.models.vae_gan import VAEGAN
from pegasus_lightning.utils.errors import UserError, did_you_mean

MODELS: dict[str, type[TwoPlayerModel]] = {
    "vae": VAE,
    "adversarial_vae": AdversarialVAE,
    "vae_gan": VAEGAN,
    "acai": ACAI,
    "pegasus": Pegasus,
}


def model_class(name: str) -> type[TwoPlayerModel]:
    """Return the variant called `name`. Raise UserError if there is none."""
    if name not in MODELS:
        raise UserError(
            f"There is no model named '{name}'.{did_you_mean(name, MODELS)} Choose from: {', '.join(MODELS)}."
        )
    return MODELS[name]
