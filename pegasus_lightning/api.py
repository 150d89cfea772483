"""The package in Python: `load` a model, `train` one, `make_pegasi` of pictures. See `pegasus_lightning`."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor

from pegasus_lightning.data.module import load_split
from pegasus_lightning.data.own_images import read_images
from pegasus_lightning.data.settings import data_settings, validate_data
from pegasus_lightning.export.model_files import CONFIG, SUMS, ExportedModel, load_export
from pegasus_lightning.generate.pretrained import PRETRAINED, open_pretrained
from pegasus_lightning.generate.settings import SPLITS
from pegasus_lightning.launch.planning import check_jobs, plan, readable_name
from pegasus_lightning.models.two_player import TwoPlayerModel
from pegasus_lightning.recognisers.network import REPORTS, predict
from pegasus_lightning.recognisers.store import RecogniserStore
from pegasus_lightning.recognisers.training import standard_recipe
from pegasus_lightning.runs.checkpoints import load_model
from pegasus_lightning.runs.trained import find_trained, open_run
from pegasus_lightning.train.settings import TRAIN
from pegasus_lightning.utils.devices import choose_devices
from pegasus_lightning.utils.errors import Interrupted, UserError, did_you_mean, listing
from pegasus_lightning.utils.program import quieten
from pegasus_lightning.utils.tensors import BATCH, to_float

__all__ = ["LabelledImages", "TrainedModel", "judge", "load", "load_export", "load_images", "load_model", "make_pegasi"]
__all__ += ["read_images", "train"]

Model = TwoPlayerModel | ExportedModel


@dataclass(frozen=True)
class TrainedModel:
    """What `train` returns: the run's folder, and its model in eval mode on the CPU."""

    folder: Path
    model: TwoPlayerModel


class LabelledImages(NamedTuple):
    """What `load_images` returns: images float32 (N, 3, 32, 32) in [0, 1], labels int64 (N,), names of the classes."""

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]


def load(source: str | Path, device: torch.device | str = "cpu") -> Model:
    """Return a trained model in eval mode. No code from a file is run.

    Images are float (B, 3, 32, 32) in [0, 1], codes float (B, latent_dim), ratios float (B,): 0 is the first parent, 1
    the second. The model has

        encode(images).mean                 codes (B, latent_dim); encode_images(pictures) takes those of any size
        decode(codes)                       images (B, 3, 32, 32)
        reconstruct(images)                 the same
        mix(first, second, ratios)          codes (B, latent_dim)
        interpolate(first, second, ratios)  images (B, R, 3, 32, 32), at all ratios (R,)

    Args:
        source: "pegasus", the model that comes with the package; a run's folder; a folder with one run in it, such as
            "runs/first_run"; a checkpoint file; or the folder of an export.
        device: such as "cpu" or "cuda".

    Raises:
        UserError: there is no such model, there are several, or its files are corrupt or foreign.
    """
    path = Path(source).expanduser()
    if str(source) in PRETRAINED and not path.exists():
        return open_pretrained(str(source), device).run.model
    if not path.exists():
        hint = did_you_mean(str(source), PRETRAINED) or f" The package has: {', '.join(PRETRAINED)}."
        raise UserError(f"There is no run, checkpoint or export {source}.{hint if os.sep not in str(source) else ''}")
    if (path / SUMS).exists() and (path / CONFIG).exists():
        return load_export(path, device)
    if path.is_file():
        return load_model(path, device)
    found = find_trained([str(path)])
    if len(found) > 1:
        raise UserError(f"{path} holds {len(found)} runs: name one of {listing([str(run) for run in found])}.")
    return load_model(found[0], device)


def train(*settings: str, **more: Any) -> TrainedModel:
    """Train a model as the command line does, and return its run's folder and its model.

    A run that is there already is continued, or loaded if it is finished. Progress is printed. In a thread other than
    the main one, signals are left alone.

    Args:
        settings: as on the command line, such as "model=acai", "data=silhouettes", "trainer.max_epochs=20".
        more: the same as keywords: train("model=vae", seed=1), or train(**{"trainer.gpus": 0}).

    Raises:
        UserError: a setting is wrong, or the data is missing. Nothing was written.
        NonFiniteLoss: a loss became NaN or infinite. The last good checkpoint stays.
        KeyboardInterrupt: Ctrl-C, or the notebook's button. Everything is saved; the same call goes on.
    """
    from pegasus_lightning.train.trainer import train as train_run  # TensorBoard is slow to import

    words = [
        *settings,
        *(f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in more.items()),
    ]
    if strange := [word for word in words if word.startswith("-") or "=" not in word]:
        raise UserError(f"'{strange[0]}' is no setting: write key=value. Sweeps (-m) are for the command line.")
    overrides = TRAIN.parse_arguments(words).overrides
    before, threads = os.environ.get("CUDA_VISIBLE_DEVICES"), torch.get_num_threads()
    quieten()
    try:
        check_jobs(overrides, False)
        composed = TRAIN.compose(overrides, with_hydra=True)
        name = readable_name(composed, dict(composed.hydra.runtime.choices), overrides)
        config = plan(composed, overrides).config
        if config.trainer.dry_run or choose_devices(config.trainer.gpus, config.trainer.cpu_processes).count > 1:
            raise UserError("A dry run, and a training on several devices, are for the command line.")
        folder = train_run(config, name)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(TRAIN.explain(error, overrides)) from error
    except Interrupted as error:
        if error.number == signal.SIGINT:
            raise KeyboardInterrupt("stopped; everything is saved, and the same call goes on") from error
        raise
    finally:  # a training on the CPU hides the GPUs, and takes the threads that are free
        torch.set_num_threads(threads)
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)
        os.environ.update({} if before is None else {"CUDA_VISIBLE_DEVICES": before})
    return TrainedModel(folder, load_model(folder))


def load_images(source: str | Path, *settings: str, split: str = "test") -> LabelledImages:
    """Return the images of a run, or of settings, on the CPU.

    Args:
        source: a run's folder, or the first setting, such as "data=silhouettes" or "data=cifar10".
        settings: more of them, as on the command line, such as "data.root=photos".
        split: "train" or "test".

    Raises:
        UserError: a setting is wrong, or the images are missing.
    """
    if split not in SPLITS:
        raise UserError(f"There is no split '{split}'. Choose from: {', '.join(SPLITS)}.")
    images = load_split(_data_of(source, settings), split)
    return LabelledImages(to_float(images.images), images.labels, images.classes)


def judge(images: Tensor, source: str | Path, *settings: str) -> Tensor:
    """Return how sure a recogniser is to see each class: probabilities (N, 2), on the CPU; an image may show both.

    The recogniser is the one that `evaluate` reports with. It is trained now if it is not in the user's cache folder:
    minutes for CIFAR-10. What it takes for both classes need not look like a pegasus to a person.

    Args:
        images: float (N, 3, 32, 32) in [0, 1].
        source, settings: the images that the recogniser is trained on, as for `load_images`.

    Raises:
        UserError: a setting is wrong, or the images are missing.
    """
    stored = RecogniserStore().get(_data_of(source, settings), standard_recipe(REPORTS))
    return predict(stored.recogniser.probabilities, images)


def _data_of(source: str | Path, settings: Sequence[str]) -> Any:
    """Return the `data` section of a run's configuration, or of settings, validated."""
    if "=" in str(source) and not Path(source).exists():
        settings, saved = [str(source), *settings], None
    else:
        found = find_trained([str(source)])
        config = open_run(found[0]).config
        if len(found) > 1 or config is None:
            raise UserError(f"{source} is not the folder of one run: name that, or settings such as data=silhouettes.")
        saved = config.data
    try:
        data = data_settings(saved, settings)
    except HydraException as error:
        raise UserError(TRAIN.explain(error, settings)) from error
    if data is None:
        raise UserError(f"Which images? {source} names none: say for example data=silhouettes.")
    validate_data(data)
    return data


def make_pegasi(
    model: Model | str | Path,
    first: Any,
    second: Any,
    ratio: float | Sequence[float] | Tensor = 0.5,
    *,
    seed: int | None = None,
) -> Tensor:
    """Return pegasi: the decoded mixes of pictures, float32 (N, 3, 32, 32) in [0, 1], on the CPU.

    Args:
        model: of `load`, or what `load` takes.
        first, second: pictures of the first class (horses) and of the second (birds), one or N each: paths, pictures of
            Pillow, arrays or tensors of any size, see `read_images`.
        ratio: one number or N: 0 is the first picture, 1 the second.
        seed: draws the codes of the pictures from their posteriors; None: the means.

    Raises:
        UserError: a picture cannot be used, or the numbers of pictures and ratios do not fit.
    """
    if isinstance(model, (str, Path)):
        model = load(model)
    posteriors = [model.encode_images(pictures) for pictures in (first, second)]
    ratios = torch.as_tensor(ratio, dtype=torch.float32).flatten()
    counts = [*(len(posterior.mean) for posterior in posteriors), len(ratios)]
    count = max(counts)
    if not set(counts) <= {1, count}:
        told = f"{counts[0]} first pictures, {counts[1]} second ones and {counts[2]} ratios"
        raise UserError(f"There are {told}: give one or {count} of each.")
    if not (ratios.isfinite() & (ratios >= 0) & (ratios <= 1)).all():
        raise UserError(f"The ratios {ratios.tolist()} are out of range: 0 is the first picture, 1 the second.")
    codes = [p.mean.expand(count, -1) for p in posteriors]
    if seed is not None:
        source = torch.Generator().manual_seed(seed)
        places = [torch.arange(count, device=p.mean.device) % len(p.mean) for p in posteriors]
        every = [p.take(place) for p, place in zip(posteriors, places, strict=True)]
        codes = [p.sample_with(torch.randn(p.mean.shape, generator=source).to(p.mean)) for p in every]
    start, end = codes
    ratios = ratios.to(start).expand(count)
    with torch.no_grad():
        parts = [
            model.decode(model.mix(*(each[part] for each in (start, end, ratios)))).cpu()
            for part in torch.arange(count).split(BATCH)
        ]
    return torch.cat(parts)
