"""`init_from=RUN`: begin a run with the weights of another."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from pegasus_lightning.models.autoencoder import Autoencoder
from pegasus_lightning.models.two_player import TwoPlayerModel
from pegasus_lightning.runs.checkpoints import load_model
from pegasus_lightning.runs.folder import find_runs
from pegasus_lightning.utils.errors import UserError

NEEDED, TAKEN = ("encoder", "decoder"), ("encoder", "decoder", "mixer", "critic")


@dataclass(frozen=True)
class FirstWeights:
    """Weights of a trained run, by network, for a run that begins."""

    networks: dict[str, dict[str, Tensor]]
    sentence: str  # what was taken, for the log

    def give(self, model: TwoPlayerModel) -> None:
        """Load the weights into a new model, and into its average of weights."""
        for name, weights in self.networks.items():
            getattr(model, name).load_state_dict(weights)
            if model.averaged is not None and name in model.averaged:
                model.averaged[name].load_state_dict(weights)


def first_weights(place: str, model: TwoPlayerModel) -> FirstWeights:
    """Return the weights of the run at `place` (its folder or a checkpoint) for `model`, which may be on `meta`.

    Encoder and decoder are the trained model's for inference: the average of its weights if it keeps one. Its critic
    and its mixing network are taken if they have the same shapes and the critic the same task.

    Raises:
        UserError: there is not one run, or its encoder or decoder has other shapes than the model's.
    """
    runs = find_runs([place], "checkpoints")
    if len(runs) > 1:
        raise UserError(f"init_from={place} holds {len(runs)} runs: name one, such as init_from={runs[0]}.")
    trained = load_model(runs[0])
    networks: dict[str, dict[str, Tensor]] = {}
    for name in TAKEN:
        theirs, own = _network(trained, name), getattr(model, name)
        if theirs is None or own is None:
            continue
        if _shapes(theirs) == _shapes(own) and (name != "critic" or _task(trained) == _task(model)):
            networks[name] = theirs.state_dict()
        elif name in NEEDED:
            raise UserError(
                f"init_from={place} does not fit: its {name} has other layers. {_difference(trained, model)}"
            )
    anew = [name for name in TAKEN if name not in networks and getattr(model, name) is not None]
    rest = f"; new: {', '.join(anew)}" if anew else ""
    return FirstWeights(
        networks, f"Weights of {runs[0]} after {trained.batches_done:,} batches: {', '.join(networks)}{rest}."
    )


def _network(model: Autoencoder, name: str) -> nn.Module | None:
    averaged = model.averaged
    return averaged[name] if averaged is not None and name in averaged else getattr(model, name)


def _shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}


def _task(model: TwoPlayerModel) -> str | None:
    return type(model.config).critic_tells


def _difference(trained: TwoPlayerModel, model: TwoPlayerModel) -> str:
    """Return the settings to type for networks of the same shapes."""
    theirs, own = vars(trained.config.networks), vars(model.config.networks)
    others = [key for key in theirs if theirs[key] != own[key] and not key.startswith("critic")]
    needed = [f"model.networks.{key}={theirs[key]}" for key in others]
    return f"Add {' '.join(needed)}." if needed else "Choose the model= of that run."
