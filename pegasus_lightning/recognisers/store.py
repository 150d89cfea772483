"""Recognisers kept between runs: trained once for a source and a recipe, then found again by a hash of both.

The file's name ends in the hash, so nothing in the store is ever out of date: other images, another recipe or another
seed have another name. Beside the weights stands a JSON file with their SHA-256, and how good the recogniser is.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from filelock import FileLock, Timeout

from pegasus_lightning.data import tensor_cache
from pegasus_lightning.data.kinds import Kinds, load_kinds
from pegasus_lightning.recognisers.committee import Committee
from pegasus_lightning.recognisers.network import Recogniser, balanced_accuracy, calibration_error, predict
from pegasus_lightning.recognisers.training import (
    RecogniserConfig,
    guiding_recipe,
    hold_out,
    learned_from,
    standard_recipe,
    train_recogniser,
    training_order,
)
from pegasus_lightning.utils.errors import UserError
from pegasus_lightning.utils.files import sha256, write_atomically, write_json

# Raise when the same config and images train to another recogniser: what was kept before is then left alone.
RECIPE_VERSION = 1
CPU_SECONDS_AN_IMAGE = 0.0035  # of one core

logger = logging.getLogger(__name__)


class StoredRecogniser(NamedTuple):
    """`recogniser` (frozen, on the device asked for), the file it is kept in, and what was measured of it.

    (Of a committee: the members' figures, in `members`.)

    `quality`, each figure a list with one number a class, on the source's test split unless it says otherwise:
    `balanced_accuracy`, `sensitivity`, `specificity`, `calibration_error`, `temperature`; with `both` (share of the
    test images of each kind that are recognised as both classes), `train_images`, `test_images` and `seconds`.
    """

    recogniser: Any  # Recogniser or Committee
    path: Path
    quality: dict[str, Any]


def identity_of(committee: StoredRecogniser) -> list[str]:
    """SHA-256 of each member of a `committee_for`; empty for one that could not be kept."""
    return [member.get("sha256", "") for member in committee.quality["members"]]


def default_folder() -> Path:
    """`recognisers` in the user's cache folder."""
    return (tensor_cache.default_folder() / "recognisers").expanduser()


def find_recogniser(
    data_config: Any,
    architecture: str,
    *,
    device: torch.device | str = "cpu",
    seed: int = 0,
    folder: Path | None = None,
    recipe: RecogniserConfig | None = None,
) -> StoredRecogniser | None:
    """What `recogniser_for` would find in the store, or None where it would have to train, or could not."""
    config = recipe or standard_recipe(architecture, seed)
    if not any((folder or default_folder()).glob(f"{_stem(config, data_config.classes)}-*.pt")):
        return None  # without a look at images of every kind, of which there may be many, or none
    kinds = load_kinds(data_config, "train")
    return _load(_place(folder or default_folder(), config, kinds), config, kinds, device)


def recogniser_for(
    data_config: Any,
    architecture: str,
    *,
    device: torch.device | str = "cpu",
    seed: int = 0,
    folder: Path | None = None,
    say: Callable[[str], object] = print,
    recipe: RecogniserConfig | None = None,
) -> StoredRecogniser:
    """The recogniser of a source (a `DataConfig`): out of the store, or else trained, measured and put there.

    A second process that asks for the same one meanwhile waits, and finds it done.

    Args:
        architecture: a key of ARCHITECTURES.
        seed: of the training.
        folder: the store; None: `recognisers` in the user's cache folder.
        say: is told in one line what is about to be done, and in one how it went.
        recipe: in place of `standard_recipe(architecture, seed)`.
    """
    config = recipe or standard_recipe(architecture, seed)
    kinds = load_kinds(data_config, "train")
    path = _place(folder or default_folder(), config, kinds)
    with _locked(path, say):
        return _load(path, config, kinds, device) or _train(path, config, kinds, data_config, device, say)


def committee_for(
    data_config: Any,
    architectures: Sequence[str],
    *,
    images: int | None = None,
    device: torch.device | str = "cpu",
    folder: Path | None = None,
    say: Callable[[str], object] = print,
) -> StoredRecogniser:
    """The recognisers that guide a model on this source, out of the store, or else trained (see `guiding_recipe`).

    As one `Committee`, under a name made of theirs; each lies in a file of its own.

    Args:
        architectures: keys of ARCHITECTURES, one member each.
        images: shown to each in its training; None: as many as the recipe says.
    """
    members = []
    for architecture in architectures:
        recipe = guiding_recipe(architecture)
        if images is not None:
            recipe = dataclasses.replace(recipe, least=images, most=images)
        members.append(recogniser_for(data_config, architecture, device=device, folder=folder, say=say, recipe=recipe))
    names = [member.path.stem for member in members]
    code = hashlib.sha256("+".join(names).encode()).hexdigest()[:8]
    place = members[0].path.with_name(f"{'-'.join(members[0].recogniser.classes)}-committee-{code}.pt")
    quality = {"architecture": "committee", "members": [{"file": m.path.name} | m.quality for m in members]}
    return StoredRecogniser(Committee([member.recogniser for member in members]), place, quality)


@contextmanager
def _locked(path: Path, say: Callable[[str], object]) -> Iterator[None]:
    """One process at a time; what a killed one left behind is cleared away."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_name(f".{path.name}.lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            say(f"Another process is training the recogniser {path.stem}: waiting for it.")
            lock.acquire()
    except OSError as error:
        raise UserError(
            f"No recogniser can be kept in {path.parent} ({error.strerror or error}). "
            "Set XDG_CACHE_HOME to a folder that can be written to."
        ) from error
    try:
        for leftover in path.parent.glob(f".{path.stem}.*.tmp"):
            leftover.unlink()
        yield
    finally:
        lock.release()


def _place(folder: Path, config: RecogniserConfig, kinds: Kinds) -> Path:
    """<classes>-<architecture>-s<seed>-<8 hex>.pt, the hash being of the recipe and of every image and its kind."""
    digest = hashlib.sha256(json.dumps([RECIPE_VERSION, _identity(config), kinds.names]).encode())
    for values in (kinds.images, kinds.kinds, kinds.targets):
        digest.update(values.contiguous().numpy().data.cast("B"))
    return folder / f"{_stem(config, kinds.classes)}-{digest.hexdigest()[:8]}.pt"


def _identity(config: RecogniserConfig) -> dict[str, Any]:
    """The recipe as the hash sees it: without the fields that came later where they change nothing."""
    later = {"half": None, "augmentation": (), "adversarial": 0.0}
    return {name: value for name, value in dataclasses.asdict(config).items() if later.get(name, ...) != value}


def _stem(config: RecogniserConfig, classes: Sequence[str]) -> str:
    names = "-".join(re.sub(r"[^\w.]+", "_", name)[:24] for name in classes)
    return f"{names}-{config.architecture}-s{config.seed}"


def _empty(config: RecogniserConfig, kinds: Kinds) -> Recogniser:
    return Recogniser(config.architecture, kinds.classes, kinds=len(kinds.names), seed=config.seed)


def _load(path: Path, config: RecogniserConfig, kinds: Kinds, device: torch.device | str) -> StoredRecogniser | None:
    """What is kept at `path`, or None where there is nothing or something broken (which is said)."""
    about = path.with_suffix(".json")
    if not path.exists() or not about.exists():  # the JSON comes last: without it the weights are a torn pair's
        return None
    try:
        quality = json.loads(about.read_text())
        if quality["sha256"] != sha256(path):
            raise ValueError("its SHA-256 is not the one noted beside it")
        model = _empty(config, kinds)
        model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # broken JSON, bytes, keys: whatever it is, training again mends it
        logger.warning("The recogniser %s is corrupt (%s): another has to be trained.", path, str(error).split("\n")[0])
        return None
    return StoredRecogniser(model.freeze().to(device).to(memory_format=torch.channels_last), path, quality)


def measure(model: Recogniser, test: Kinds) -> dict[str, Any]:
    """What `StoredRecogniser.quality` says of the test split."""
    probabilities = predict(model.probabilities, test.images, model.mean.device)
    seen, there = probabilities > 0.5, test.targets > 0.5
    both = seen.all(1)
    return {
        "balanced_accuracy": balanced_accuracy(probabilities, test.targets).tolist(),
        "sensitivity": [seen[there[:, i], i].float().mean().item() for i in range(2)],
        "specificity": [1 - seen[~there[:, i], i].float().mean().item() for i in range(2)],
        "calibration_error": calibration_error(probabilities, test.targets).tolist(),
        "both": {name: both[test.kinds == kind].float().mean().item() for kind, name in enumerate(test.names)},
        "test_images": len(test),
    }


def _duration(shown: int, device: torch.device | str) -> str:
    """About how long training on so many images takes, in words."""
    if torch.device(device).type != "cpu":
        return "a minute or two"
    minutes = shown * CPU_SECONDS_AN_IMAGE / min(torch.get_num_threads(), 4) / 60
    return f"about {max(1, round(minutes))} minute{'s' if round(minutes) > 1 else ''} on the CPU"


def _train(
    path: Path,
    config: RecogniserConfig,
    kinds: Kinds,
    data_config: Any,
    device: torch.device | str,
    say: Callable[[str], object],
) -> StoredRecogniser:
    test = load_kinds(data_config, "test")  # before the training: what is wrong with it is to show now
    first, second = kinds.classes
    own = learned_from(kinds, config)
    _, kept = hold_out(own, config.held_out, config.seed)
    if not kept.targets.bool().any(0).all():
        raise UserError(f"There are too few training images to learn {first} and {second} from: {len(own)} in all.")
    shown = len(training_order(kept, config))
    say(f"Training the {config.architecture} recogniser of {first} and {second} on {len(own)} images (once; kept in "
        f"{path.parent}): {_duration(shown * (2 if config.adversarial else 1), device)}.")  # fmt: skip
    started, busy = time.perf_counter(), time.process_time()
    model = train_recogniser(config, kinds, device=device)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - busy
    quality = {"classes": list(kinds.classes), **measure(model, test)}
    quality |= {"train_images": len(own), "images_shown": shown, "seconds": seconds, "cpu_seconds": cpu_seconds}
    quality |= {"temperature": model.temperature.tolist(), "offset": model.offset.tolist()}
    recipe = dataclasses.asdict(config) | {"augmentation": [*config.augmentation]}  # as JSON gives it back
    quality |= {"recipe": recipe, "recipe_version": RECIPE_VERSION}
    try:
        write_atomically(path, lambda file: torch.save(model.state_dict(), file))
        quality["sha256"] = sha256(path)
        write_json(path.with_suffix(".json"), quality)
    except OSError as error:  # a full disk: it is lost for the next run, not for this one
        logger.warning("The recogniser cannot be kept (%s): the next run trains it again.", error)
    accuracies = zip(kinds.classes, quality["balanced_accuracy"], strict=True)
    said = ", ".join(f"{name} or not {accuracy:.1%}" for name, accuracy in accuracies)
    say(f"Trained in {seconds / 60:.1f} minutes. Balanced accuracy on test: {said}.")
    return StoredRecogniser(model, path, quality)
