"""Export of trained networks to safetensors files, which can be used without a checkpoint, and their loading.

An export is a folder of `encoder.safetensors`, `decoder.safetensors`, `mixer.safetensors` (with learned mixing),
`config.json`, `decoder.onnx` (if asked for) and `SHA256SUMS` over them. The same checkpoint gives the same bytes.
Loading runs no code from the files.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors import torch as safetensors
from torch import Tensor, nn

from pegasus_lightning import __version__
from pegasus_lightning.export.onnx import check_onnx, decoder_onnx, largest_difference
from pegasus_lightning.models.latent import Posterior, lerp
from pegasus_lightning.models.mixing_network import MixNetwork, mix_by_parts
from pegasus_lightning.models.operations import CodeOperations
from pegasus_lightning.models.settings import ModelConfig
from pegasus_lightning.models.two_player import TwoPlayerModel
from pegasus_lightning.runs.checkpoints import find_checkpoint, load_model, model_on_meta
from pegasus_lightning.runs.places import check_writable
from pegasus_lightning.runs.trained import find_trained
from pegasus_lightning.utils.errors import UserError
from pegasus_lightning.utils.files import clear_staged, sha256, sorted_header, whole_folder, write_json
from pegasus_lightning.utils.foreign import Unreadable, check_safetensors, read_json, read_text

PACKAGE = "pegasus_lightning"
FORMAT_VERSION = 1  # raise it if older and newer code can no longer read each other's exports
NETWORKS = ("encoder", "decoder")
CONFIG, SUMS, ONNX, MIXER = "config.json", "SHA256SUMS", "decoder.onnx", "mixer.safetensors"
FILES = {
    "encoder.safetensors": "images (B, 3, 32, 32) in [0, 1] to mean and log-variance of q(z|x), each (B, latent_dim)",
    "decoder.safetensors": "codes (B, latent_dim) to logits (B, 3, 32, 32); their sigmoid is the image",
    MIXER: "codes (B, latent_dim) of two parents and ratios (B,) to the codes of their chimeras, (B, latent_dim)",
    CONFIG: "what was trained, how and on what, in one place; the two above carry the same as strings",
    ONNX: "codes (batch, latent_dim) to images (batch, 3, 32, 32) in [0, 1]",
}
ABOUT = {"package_version", "checkpoint_sha256", "batches_done", "seed", "classes", "model"}
NEEDED = {"encoder.safetensors", "decoder.safetensors", CONFIG}


@dataclass(frozen=True)
class ExportedModel(CodeOperations):
    """The networks of an export, frozen and in eval mode. Gradients still reach images and codes."""

    encoder: nn.Module
    decoder: nn.Module
    config: ModelConfig  # the variant's `Config`
    about: dict[str, Any]  # content of `config.json`: seed, classes, batches_done, checkpoint_sha256, versions
    mixer: MixNetwork | None = None  # the learned mixing, if any

    @property
    def classes(self) -> list[str]:
        """The two classes of its training."""
        return list(self.about["classes"])

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.encoder.parameters()).device

    def encode(self, images: Tensor) -> Posterior:
        """Return q(z|x) of images (B, 3, 32, 32) in [0, 1]."""
        mean, log_variance = self.encoder(images)
        return Posterior(mean, log_variance, deterministic=not self.config.sample_codes)

    def decode(self, codes: Tensor) -> Tensor:
        """Return images (B, 3, 32, 32) in [0, 1] of codes (B, latent_dim)."""
        return torch.sigmoid(self.decoder(codes).float())

    def mix(self, first: Tensor, second: Tensor, ratios: Tensor, where: Tensor | None = None) -> Tensor:
        """Return mixed codes (B, latent_dim) at ratios (B,), by learned mixing if any, else linear interpolation.

        `where` says where a limb may be (`mix_by_parts`), if mixing is learned.
        """
        if self.mixer is None:
            return lerp(first, second, ratios[:, None])
        return mix_by_parts(
            self.mixer, lambda images: self.encode(images).mean, self.decode, first, second, ratios, where
        )


@dataclass(frozen=True)
class Written:
    """An export on disk."""

    folder: Path
    batches_done: int
    sizes: dict[str, int]  # sizes of its files in bytes
    new: bool  # False if an export of the same checkpoint was there already
    difference: float | None = None  # largest difference of a pixel in [0, 1] between ONNX and PyTorch, if measured


def plan_exports(places: Sequence[str], out: str | None = None, checkpoint: str = "last") -> list[tuple[Path, Path]]:
    """Return (checkpoint, folder for its export) of everything that `find_trained` finds, with these arguments.

    The folder is `<run>/export` for a run, and `<name>-export` for a checkpoint file, in the file's run or else beside
    the file. With `out` it is that folder for one export, and a subfolder of it for each of several. Raise UserError,
    before anything is written, if a checkpoint is missing, corrupt or unreadable, or a folder cannot be made.
    """
    with _readable(", ".join(places)):
        found = find_trained(places, checkpoint)
        folders = _folders(found, None if out is None else Path(out).expanduser())
        for folder in folders:
            _check_place(folder)
        return [(find_checkpoint(path), folder) for path, folder in zip(found, folders, strict=True)]


@contextmanager
def _readable(what: Path | str) -> Iterator[None]:
    """Turn an OSError into a UserError about the file that it names, or else about `what`."""
    try:
        yield
    except OSError as error:
        place, reason = error.filename or what, error.strerror or type(error).__name__
        hint = "Make it readable (chmod u+rX)" if isinstance(error, PermissionError) else "Check the disk"
        raise UserError(f"{place} cannot be read: {reason}. {hint}, or name another one.") from error


def _folders(found: list[Path], above: Path | None) -> list[Path]:
    """Return the folder for each export. Raise UserError if two exports would share one."""
    folders = []
    for path in found:
        home, name, suffix = path, "export", ""
        if not path.is_dir():
            # Never in `checkpoints`, where the next save deletes files that look like leftovers.
            parent = path.absolute().parent
            home = parent.parent if parent.name == "checkpoints" else path.parent
            name, suffix = f"{path.stem}-export", f"-{path.stem}"
        if above is None:
            folders.append(home / name)
        else:
            folders.append(above / f"{home.absolute().name}{suffix}" if len(found) > 1 else above)
    for folder in folders:
        if folders.count(folder) > 1:
            raise UserError(f"Two exports would be written to {folder}: export one at a time, or leave out --out.")
    return folders


def _check_place(folder: Path) -> None:
    """Raise UserError unless `folder` can be made or holds only an export."""
    check_writable(folder, "--out FOLDER", ours={*FILES, SUMS}, needed={SUMS})


def export_checkpoint(checkpoint: Path, folder: Path, *, onnx: bool = False) -> Written:
    """Write the weights used for inference (their average, if any) to `folder`, atomically.

    An intact export of the same checkpoint is kept, unless `onnx` is set and the export lacks it. Raise UserError if
    the checkpoint is corrupt, foreign, unreadable or replaced meanwhile, the ONNX packages are missing, onnxruntime's
    images differ from PyTorch's, or the folder cannot be written.
    """
    if onnx:
        check_onnx()
    with _readable(checkpoint):
        _check_place(folder)
        clear_staged(folder)
        digest = sha256(checkpoint)
        if (there := _already(folder, digest, onnx)) is not None:
            return there
        model = load_model(checkpoint)
        if sha256(checkpoint) != digest:
            raise UserError(
                f"{checkpoint} was replaced while it was read (its run is training): run the command again."
            )
    about = _about(model, digest)
    difference = None
    try:
        with whole_folder(folder) as staged:
            networks = [*NETWORKS, *(["mixer"] if model.mixer is not None else [])]
            for name in networks:
                state = {key: value.contiguous() for key, value in _network(model, name).state_dict().items()}
                data = safetensors.save(state, metadata=_strings(about) | {"network": name})
                (staged / f"{name}.safetensors").write_bytes(sorted_header(data))
            if onnx:
                latent_dim = model.config.networks.latent_dim
                data = decoder_onnx(_network(model, "decoder"), latent_dim, _strings(about) | {"network": "decoder"})
                (staged / ONNX).write_bytes(data)
                difference = largest_difference(data, model.decode, latent_dim)
            left_out = {*([] if onnx else [ONNX]), *([] if "mixer" in networks else [MIXER])}
            kept = {name: text for name, text in FILES.items() if name not in left_out}
            write_json(staged / CONFIG, about | {"files": kept})
            sums = "".join(f"{sha256(staged / name)}  {name}\n" for name in sorted(kept))
            (staged / SUMS).write_text(sums)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UserError(f"{folder} cannot be written: {reason}. Name another folder with --out.") from error
    return Written(folder, model.batches_done, _sizes(folder), True, difference)


def _already(folder: Path, digest: str, onnx: bool) -> Written | None:
    """Return the export in `folder`; None if it is corrupt, incomplete or of another checkpoint."""
    try:
        about = _read(folder)
    except UserError:
        return None
    sizes = _sizes(folder)
    if about["checkpoint_sha256"] != digest or (onnx and ONNX not in sizes):
        return None
    return Written(folder, about["batches_done"], sizes, False)


def _sizes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in sorted(folder.iterdir())}


def _network(model: TwoPlayerModel, name: str) -> nn.Module:
    return getattr(model, name) if model.averaged is None else model.averaged[name]


def _about(model: TwoPlayerModel, digest: str) -> dict[str, Any]:
    return {
        "package": PACKAGE,
        "package_version": __version__,
        "format_version": FORMAT_VERSION,
        "checkpoint_sha256": digest,
        "batches_done": model.batches_done,
        "seed": model.hparams["seed"],
        "classes": list(model.hparams["classes"]),
        "model": dict(model.hparams["model"]),
    }


def _strings(about: dict[str, Any]) -> dict[str, str]:
    """Return the values as strings, encoded as JSON unless they are strings already."""
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in about.items()}


def load_export(folder: Path | str, device: torch.device | str = "cpu") -> ExportedModel:
    """Return the model of an export, with the same weights as from `load_model`. No code from the files is run.

    Also available as `pegasus_lightning.load_export`. Raise UserError if the export is missing, corrupt, foreign,
    unreadable or of a newer format.
    """
    folder = Path(folder).expanduser()
    with _readable(folder):
        about = _read(folder)
        parts = {name: _shapes(folder / f"{name}.safetensors") for name in [*NETWORKS, "mixer"] if _has(folder, name)}
    found = {f"{name}.{key}": shape for name, shapes in parts.items() for key, shape in shapes.items()}
    model = model_on_meta(folder / CONFIG, about, found, tuple(parts))
    if (model.mixer is None) != ("mixer" not in parts):
        raise UserError(f"{folder} is incomplete: {MIXER} does not fit its {CONFIG}.")
    for name in parts:
        network = getattr(model, name)
        network.load_state_dict(
            _tensors(folder / f"{name}.safetensors", _strings(about) | {"network": name}), assign=True
        )
        # The memory format of the training, so that outputs are bitwise equal.
        network.requires_grad_(False).float().to(memory_format=torch.channels_last).to(device).eval()
    return ExportedModel(model.encoder, model.decoder, model.config, about, model.mixer)


def _has(folder: Path, name: str) -> bool:
    return (folder / f"{name}.safetensors").exists()


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a safetensors file. Raise UserError for any other."""
    check_safetensors(path)
    try:
        with safe_open(path, "pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read as safetensors ({error}).") from error


def _shapes(path: Path) -> dict[str, list[int]]:
    with _opened(path) as file:
        return {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118 (it is no dict)


def _tensors(path: Path, metadata: dict[str, str]) -> dict[str, Tensor]:
    """Return the tensors of a file. Raise UserError unless its metadata are these."""
    with _opened(path) as file:
        found = file.metadata()
        # Copies: the tensors are memory-mapped, and would change with the file.
        tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118 (it is no dict)
    if found != metadata:
        raise UserError(f"{path} and the {CONFIG} beside it come from different exports.")
    return tensors


def _read(folder: Path) -> dict[str, Any]:
    """Return `config.json` without its texts. Raise UserError unless all files agree with SHA256SUMS."""
    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder} is not an export of {PACKAGE}: there is no {CONFIG} in it.")
    content: dict[str, Any] = read_json(folder / CONFIG)
    if content.get("package") != PACKAGE:
        raise UserError(f"{folder} is not an export of {PACKAGE}: its {CONFIG} is something else.")
    version = content.get("format_version")
    if not isinstance(version, int) or version < 1:
        raise UserError(f"{folder / CONFIG} is corrupt: its format_version is {version!r}.")
    if version > FORMAT_VERSION:
        raise UserError(
            f"{folder} was written by {PACKAGE} {content.get('package_version')} in format {version}; this version "
            f"({__version__}) reads up to {FORMAT_VERSION}: update the package."
        )
    _check_sums(folder)
    content.pop("files", None)
    if missing := sorted(ABOUT - content.keys()):
        raise UserError(f"{folder / CONFIG} lacks {', '.join(missing)}: it is corrupt, or not part of an export.")
    if not isinstance(content["batches_done"], int) or not isinstance(content["checkpoint_sha256"], str):
        raise UserError(f"{folder / CONFIG} is corrupt: its batches_done or checkpoint_sha256 is something else.")
    return content


def _check_sums(folder: Path) -> None:
    try:
        lines = read_text(folder / SUMS).splitlines()
        sums = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    except (Unreadable, ValueError) as error:
        raise UserError(f"{folder / SUMS} is missing or cannot be read: the export is incomplete.") from error
    if not NEEDED <= sums.keys() <= FILES.keys():
        raise UserError(f"{folder / SUMS} does not list what an export consists of: {', '.join(sorted(NEEDED))}.")
    for name, digest in sums.items():
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} is missing: the export is incomplete.")
        if sha256(folder / name) != digest:
            raise UserError(f"{folder / name} is corrupt: its SHA-256 is not the one in {SUMS}. Export it again.")
