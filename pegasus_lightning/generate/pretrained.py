"""The model that comes with the package: its weights, its guide and statistics of its codes, in one file.

`generate pretrained=pegasus` needs no data and no training. If no parents are given, they are decoded from codes drawn
from Gaussians that were fitted to the codes of each class.
"""

from __future__ import annotations

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
from pegasus_lightning.runs.trained import TrainedRun
from pegasus_lightning.utils.errors import UserError, did_you_mean
from pegasus_lightning.utils.files import sha256, sorted_header, write_atomically
from pegasus_lightning.utils.randomness import Stream, generator
from pegasus_lightning.utils.tensors import in_batches

FOLDER = Path(__file__).parents[1] / "pretrained"
PRETRAINED = {"pegasus": "d2e457866ce5710a122b1f3d68b9f194baa77dd1c0b2d1f6fc7e0329860caefd"}  # SHA-256 of each file
NETWORKS = ("encoder", "decoder", "mixer", "critic")  # those that a model has, averaged weights if it keeps them
JITTER = 1e-4  # added to the diagonal of a covariance, so that its Cholesky factor exists


@dataclass(frozen=True)
class PretrainedModel:
    """A model that comes with the package.

    `codes` has, for each class, mean (latent_dim,) and Cholesky factor of the covariance (latent_dim, latent_dim) of
    the posterior means of its training images.
    """

    run: TrainedRun  # the model as a run
    committee: Committee  # the recognisers that guided its training; they also score searches
    codes: list[tuple[Tensor, Tensor]]

    @property
    def as_stored(self) -> StoredRecogniser:
        """The committee as a recogniser of a store has it."""
        return StoredRecogniser(self.committee, self.run.path, {})

    def sample_parents(self, count: int, seed: int) -> Parents:
        """Return `count` images of each class, decoded from codes drawn from the class's Gaussian."""
        images = []
        model = self.run.model
        for label, (mean, root) in enumerate(self.codes):
            noise = torch.randn(count, len(mean), generator=generator(seed, Stream.PRIOR, label))
            codes = (mean + noise @ root.T).to(model.device)
            images.append((in_batches(model.decode, codes) * 255).round().to(torch.uint8).cpu())
        classes = self.run.classes
        return Parents(images[0], images[1], (classes[0], classes[1]))


def class_statistics(codes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean (D,) of codes (N, D) and the Cholesky factor (D, D) of their covariance."""
    mean = codes.double().mean(0)
    covariance = torch.cov(codes.double().T) + JITTER * torch.eye(codes.shape[1], dtype=torch.float64)
    return mean.float(), torch.linalg.cholesky(covariance).float()


def pack(model: TwoPlayerModel, committee: Committee, parents: Parents, about: dict[str, Any], path: Path) -> str:
    """Write a trained model as a file of `PRETRAINED`. Return its SHA-256. The same content gives the same bytes.

    `parents` are training images, for the statistics of their codes; `about` is metadata beside the configuration.
    """
    tensors: dict[str, Tensor] = {}
    averaged = {} if model.averaged is None else dict(model.averaged.items())
    for name in _networks(model):
        network = averaged.get(name, getattr(model, name))
        tensors |= {f"{name}.{key}": value for key, value in network.state_dict().items()}
    for index, member in enumerate(committee.members):
        own = {key: value for key, value in member.state_dict().items() if not key.startswith("kinds_head")}
        tensors |= {f"guide.{index}.{key}": value for key, value in own.items()}
    with model.inference():
        for label, images in enumerate((parents.first, parents.second)):
            mean, root = class_statistics(encode(model, images).mean.cpu())
            tensors |= {f"codes.{label}.mean": mean, f"codes.{label}.root": root}
    kept = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    content = {
        "model": dict(model.hparams["model"]),
        "seed": model.hparams["seed"],
        "classes": list(model.hparams["classes"]),
        "batches_done": model.batches_done,
        "guide": [member.architecture for member in committee.members],
        **about,
    }
    data = sorted_header(safetensors.save(kept, metadata={key: json.dumps(value) for key, value in content.items()}))
    write_atomically(path, lambda file: file.write(data))
    return sha256(path)


def classes_of_pretrained(name: str) -> list[str]:
    """Return the classes of a model of the package, from the head of its file; none if there is no such file."""
    try:
        with safe_open(FOLDER / f"{name}.safetensors", "pt") as file:
            return list(json.loads((file.metadata() or {})["classes"]))
    except (OSError, SafetensorError, KeyError, ValueError):
        return []


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
    try:
        with safe_open(path, "pt") as file:
            about = {key: json.loads(value) for key, value in (file.metadata() or {}).items()}
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118 (it is no dict)
        model = model_class(about["model"]["name"])(about["model"], seed=about["seed"], classes=about["classes"])
        for part in _networks(model):
            getattr(model, part).load_state_dict(_under(tensors, part))
            if model.averaged is not None and part in model.averaged:
                model.averaged[part].load_state_dict(_under(tensors, part))
        model.batches_done = about["batches_done"]
        members = []
        for index, architecture in enumerate(about["guide"]):
            member = Recogniser(architecture, tuple(about["classes"]))
            unused = {key: value for key, value in member.state_dict().items() if key.startswith("kinds_head")}
            member.load_state_dict(unused | _under(tensors, f"guide.{index}"))
            members.append(member.freeze())
    except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} is no model of this package ({type(error).__name__}).") from error
    model = model.requires_grad_(False).to(memory_format=torch.channels_last).to(device).eval()
    committee = Committee(members).to(memory_format=torch.channels_last).to(device)
    codes = [(tensors[f"codes.{label}.mean"], tensors[f"codes.{label}.root"]) for label in (0, 1)]
    return PretrainedModel(TrainedRun(path, path, model, None, name), committee, codes)


def _networks(model: TwoPlayerModel) -> list[str]:
    return [name for name in NETWORKS if getattr(model, name) is not None]


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{prefix}."): value for key, value in tensors.items() if key.startswith(f"{prefix}.")}
