"""The model that comes with the package: its weights, its winged judges and codes of parents, in one file.

`generate pretrained=pegasus` needs no data and no training. If no parents are given, they are decoded from codes
drawn from the posteriors of training images of each class. These are narrow: such a parent differs little from the
reconstruction of its training image.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors import torch as safetensors
from torch import Tensor

from pegasus_lightning.generate.mixing import encode
from pegasus_lightning.generate.pairs import Parents
from pegasus_lightning.models import model_class
from pegasus_lightning.models.two_player import TwoPlayerModel
from pegasus_lightning.recognisers.committee import Committee
from pegasus_lightning.recognisers.network import Recogniser
from pegasus_lightning.recognisers.store import StoredRecogniser
from pegasus_lightning.runs.checkpoints import model_on_meta
from pegasus_lightning.runs.trained import TrainedRun
from pegasus_lightning.utils.bars import bar
from pegasus_lightning.utils.errors import UserError, did_you_mean
from pegasus_lightning.utils.files import sha256, sorted_header, write_atomically
from pegasus_lightning.utils.foreign import check_safetensors, parse_json
from pegasus_lightning.utils.randomness import Stream, generator
from pegasus_lightning.utils.tensors import BATCH

FOLDER = Path(__file__).parents[1] / "pretrained"
PRETRAINED = {"pegasus": "7f7f70d91fc032b959d029c49eea522909f9b3088d4cb1014dcaa5ca831e2a2f"}  # SHA-256 of each file
NETWORKS = ("encoder", "decoder", "mixer", "critic")  # those that a model has, averaged weights if it keeps them


@dataclass(frozen=True)
class PretrainedModel:
    """A model that comes with the package.

    `codes` has, for each class, means and deviations (N, latent_dim) of the posteriors of N training images.
    """

    run: TrainedRun  # the model as a run
    committee: Committee  # the winged judges that score and guide its searches
    codes: list[tuple[Tensor, Tensor]]

    @property
    def as_stored(self) -> StoredRecogniser:
        """The committee as a recogniser of a store has it."""
        return StoredRecogniser(self.committee, self.run.path, {})

    def sample_parents(self, count: int, seed: int) -> Parents:
        """Return `count` parents of each class, decoded from codes drawn from its posteriors in rounds."""
        images = []
        model = self.run.model
        for label, (means, deviations) in enumerate(self.codes):
            source = generator(seed, Stream.PRIOR, label)
            rounds = [torch.randperm(len(means), generator=source) for _ in range(-(-count // len(means)))]
            chosen = torch.cat(rounds)[:count]
            noise = torch.randn(count, means.shape[1], generator=source)
            codes = (means[chosen] + noise * deviations[chosen]).to(model.device)
            parts = bar(codes.split(BATCH), desc=f"decoding parents ({self.run.classes[label]})", unit="batch")
            decoded = torch.cat([model.decode(part) for part in parts])
            images.append((decoded * 255).round().to(torch.uint8).cpu())
        classes = self.run.classes
        return Parents(images[0], images[1], (classes[0], classes[1]), stored=True)


def pack(model: TwoPlayerModel, committee: Committee, parents: Parents, about: dict[str, Any], path: Path) -> str:
    """Write a trained model as a file of `PRETRAINED`. Return its SHA-256. The same content gives the same bytes.

    `parents` are training images, whose posteriors are kept in half precision; `about` is metadata beside the
    configuration.
    """
    tensors: dict[str, Tensor] = {}
    averaged = {} if model.averaged is None else dict(model.averaged.items())
    for name in _networks(model):
        network = averaged.get(name, getattr(model, name))
        tensors |= {f"{name}.{key}": value for key, value in network.state_dict().items()}
    for index, member in enumerate(committee.members):
        own = {key: value for key, value in member.state_dict().items() if not key.startswith("kinds_head")}
        tensors |= {f"judges.{index}.{key}": value for key, value in own.items()}
    with model.inference():
        for label, images in enumerate((parents.first, parents.second)):
            posterior = encode(model, images)
            deviations = torch.exp(0.5 * posterior.log_variance)
            kept_codes = {"means": posterior.mean, "deviations": deviations}
            tensors |= {f"codes.{label}.{name}": value.half() for name, value in kept_codes.items()}
    kept = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    of_networks = {key: value for key, value in kept.items() if key.partition(".")[0] in NETWORKS}
    content = {
        "networks_sha256": hashlib.sha256(safetensors.save(of_networks)).hexdigest(),
        "model": dict(model.hparams["model"]),
        "seed": model.hparams["seed"],
        "classes": list(model.hparams["classes"]),
        "batches_done": model.batches_done,
        "judges": [member.architecture for member in committee.members],
        **about,
    }
    data = sorted_header(safetensors.save(kept, metadata={key: json.dumps(value) for key, value in content.items()}))
    write_atomically(path, lambda file: file.write(data))
    return sha256(path)


def head_of_pretrained(name: str) -> tuple[list[str], str]:
    """Return the classes of a model of the package and the SHA-256 of its networks, from the head of its file.

    Both are empty if there is no such file. The file's own SHA-256 also depends on the judges that come with it.
    """
    path = FOLDER / f"{name}.safetensors"
    try:
        check_safetensors(path)
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
        return parse_json(path, about["classes"], list), parse_json(path, about["networks_sha256"], str)
    except (UserError, OSError, SafetensorError, KeyError):
        return [], ""


def open_pretrained(name: str, device: torch.device | str = "cpu") -> PretrainedModel:
    """Return a model of the package. Raise UserError if none has that name, or its file is missing or corrupt."""
    if name not in PRETRAINED:
        raise UserError(f"pretrained={name} is none of {', '.join(PRETRAINED)}.{did_you_mean(name, PRETRAINED)}")
    path = FOLDER / f"{name}.safetensors"
    if not path.is_file():
        raise UserError(f"{path} is missing: install the package again.")
    if sha256(path) != PRETRAINED[name]:
        raise UserError(f"{path} is corrupt: its SHA-256 is not the one that this version knows. Install it again.")
    return read_pretrained(path, name, device)


def read_pretrained(path: Path, name: str, device: torch.device | str = "cpu") -> PretrainedModel:
    """Return the content of a file that `pack` wrote. Raise UserError for any other file."""
    check_safetensors(path)
    try:
        with safe_open(path, "pt") as file:
            about = {key: parse_json(path, value, object) for key, value in (file.metadata() or {}).items()}
            shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118 (it is no dict)
            found = {key: shape for key, shape in shapes.items() if key.partition(".")[0] in NETWORKS}
            model_on_meta(path, about, found, [name for name in NETWORKS if any(_under(found, name))])
            tensors = {key: file.get_tensor(key).clone() for key in shapes}
        model = model_class(about["model"]["name"])(about["model"], seed=about["seed"], classes=about["classes"])
        for part in _networks(model):
            getattr(model, part).load_state_dict(_under(tensors, part))
            if model.averaged is not None and part in model.averaged:
                model.averaged[part].load_state_dict(_under(tensors, part))
        model.batches_done = int(about["batches_done"])
        members = []
        for index, architecture in enumerate(about["judges"]):
            member = Recogniser(architecture, tuple(about["classes"]))
            unused = {key: value for key, value in member.state_dict().items() if key.startswith("kinds_head")}
            member.load_state_dict(unused | _under(tensors, f"judges.{index}"))
            members.append(member.freeze())
        codes = [(tensors[f"codes.{k}.means"].float(), tensors[f"codes.{k}.deviations"].float()) for k in (0, 1)]
        if any(not len(pair[0]) or pair[0][0].shape != (model.config.networks.latent_dim,) for pair in codes):
            raise ValueError("codes of another size")
        if any(means.shape != deviations.shape for means, deviations in codes):
            raise ValueError("codes of two sizes")
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"{path} is no model of this package ({type(error).__name__}).") from error
    model = model.requires_grad_(False).to(memory_format=torch.channels_last).to(device).eval()
    committee = Committee(members).to(memory_format=torch.channels_last).to(device)
    return PretrainedModel(TrainedRun(path, path, model, None, name), committee, codes)


def _networks(model: TwoPlayerModel) -> list[str]:
    return [name for name in NETWORKS if getattr(model, name) is not None]


def _under(tensors: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {key.removeprefix(f"{prefix}."): value for key, value in tensors.items() if key.startswith(f"{prefix}.")}
