"""Trained recognisers on disk, each trained once for its images and its recipe.

A file's name ends in a hash of recipe and images, so nothing in the store is ever out of date: other images, another
recipe or another seed give another name. Beside the weights lies a JSON file with their SHA-256 and measured quality.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from pegasus_lightning.data import tensor_cache
from pegasus_lightning.data.batches import ImageSet
from pegasus_lightning.data.compositions import EDGES
from pegasus_lightning.data.kinds import Kinds, load_kinds
from pegasus_lightning.data.module import load_split
from pegasus_lightning.data.parts import LIST
from pegasus_lightning.recognisers import winged
from pegasus_lightning.recognisers.committee import Committee
from pegasus_lightning.recognisers.network import Recogniser, balanced_accuracy, calibration_error, predict
from pegasus_lightning.recognisers.training import (
    RecogniserConfig,
    guiding_recipe,
    hold_out,
    learned_from,
    train_recogniser,
    training_order,
    winged_recipe,
)
from pegasus_lightning.utils.errors import UserError
from pegasus_lightning.utils.files import sha256, write_atomically, write_json
from pegasus_lightning.utils.foreign import read_json
from pegasus_lightning.utils.torch_file import read_torch_file

# Raise it when the same recipe and images train to another recogniser: older files are then ignored.
RECIPE_VERSION = 1
WINGED_VERSION = 1  # likewise, when the pictures that winged judges learn from change
TRAIN_COMPOSITIONS, HELD_COMPOSITIONS, TEST_COMPOSITIONS = 4000, 800, 2000
CPU_SECONDS_AN_IMAGE = 0.0035  # of one core

logger = logging.getLogger(__name__)


class _Lessons(NamedTuple):
    """What a recogniser is trained on, and the file that keeps it."""

    path: Path
    classes: tuple[str, str]
    learn: Callable[[], tuple[Kinds, Kinds | None]]  # training images, and those to calibrate on (None: some of them)
    examine: Callable[[], Kinds]  # test images


class StoredRecogniser(NamedTuple):
    """A frozen recogniser or committee on its device, the file that holds it, and its measured quality.

    `quality`, each figure a list with one number a class, on the source's test split: `balanced_accuracy`,
    `sensitivity`, `specificity`, `calibration_error`, `temperature`; and `both` (share of the test images of each kind
    that are recognised as both classes), `train_images`, `test_images`, `seconds`. A committee has its members'
    qualities, in `members`.
    """

    recogniser: Any  # Recogniser or Committee
    path: Path
    quality: dict[str, Any]

    @property
    def member_hashes(self) -> list[str]:
        """SHA-256 of each member of a committee; empty for a member that could not be saved."""
        return [member.get("sha256", "") for member in self.quality["members"]]


def default_folder() -> Path:
    """Return `recognisers` in the user's cache folder."""
    return (tensor_cache.default_folder() / "recognisers").expanduser()


@dataclass(frozen=True)
class RecogniserStore:
    """A folder of trained recognisers. `data` is a `DataConfig` in all its methods."""

    folder: Path | None = None  # None: `recognisers` in the user's cache folder
    device: torch.device | str = "cpu"  # where recognisers are trained and returned
    say: Callable[[str], object] = print  # called with a line before a training and one after it
    # Models whose reconstructions winged judges learn not to take for wings, by a hash of their weights.
    reconstruct: Mapping[str, winged.Reconstruct] = field(default_factory=dict)

    def find(self, data: Any, recipe: RecogniserConfig) -> StoredRecogniser | None:
        """Return the recogniser of a source if it is in the store and intact."""
        folder = self.folder or default_folder()
        if not any(folder.glob(f"{_stem(recipe, data.classes)}-*.pt")):
            return None  # before loading images of every kind, of which there may be many, or none
        return self._load(self._lessons(data, recipe), recipe)

    def get(self, data: Any, recipe: RecogniserConfig) -> StoredRecogniser:
        """Return the recogniser of a source. If it is not in the store, train it, measure it and save it there.

        A second process that wants the same recogniser waits until it is trained. Raise UserError if there are too few
        images, or the folder cannot be written to.
        """
        lessons = self._lessons(data, recipe)
        with _locked(lessons.path, self.say):
            return self._load(lessons, recipe) or self._train(lessons, recipe)

    def test_images(self, data: Any, recipe: RecogniserConfig) -> Kinds:
        """Return the pictures of the test split that a recogniser is measured on."""
        return self._lessons(data, recipe).examine()

    def committee(self, data: Any, architectures: Sequence[str], *, images: int | None = None) -> StoredRecogniser:
        """Return the recognisers that guide searches on a source (see `guiding_recipe`), as one `Committee`.

        Each member lies in its own file. The committee's path is a name made of theirs; no file has it. `architectures`
        are keys of ARCHITECTURES, one for each member; `images` is the number of training images shown to each, repeats
        counted (None: as the recipe says).
        """
        recipes = [guiding_recipe(architecture) for architecture in architectures]
        if images is not None:
            recipes = [dataclasses.replace(recipe, least=images, most=images) for recipe in recipes]
        return self._committee([self.get(data, recipe) for recipe in recipes])

    def winged_guides(self, data: Any, architectures: Sequence[str]) -> StoredRecogniser:
        """Return the winged judges that guide (see `winged_recipe`), as one `Committee`."""
        return self._committee([self.get(data, winged_recipe(name, winged.GUIDES)) for name in architectures])

    def _committee(self, members: Sequence[StoredRecogniser]) -> StoredRecogniser:
        names = [member.path.stem for member in members]
        code = hashlib.sha256("+".join(names).encode()).hexdigest()[:8]
        classes = "-".join(_short(name) for name in members[0].recogniser.classes)
        place = members[0].path.with_name(f"{classes}-committee-{code}.pt")
        quality = {"architecture": "committee", "members": [{"file": m.path.name} | m.quality for m in members]}
        return StoredRecogniser(Committee([member.recogniser for member in members]), place, quality)

    def _lessons(self, data: Any, recipe: RecogniserConfig) -> _Lessons:
        folder = self.folder or default_folder()
        if recipe.third is None:
            kinds = load_kinds(data, "train")
            return _Lessons(
                _place(folder, recipe, kinds), kinds.classes, lambda: (kinds, None), lambda: load_kinds(data, "test")
            )
        images, others = load_split(data, "train"), _others(data, "train")
        classes = (images.classes[0], winged.chimera_name(images.classes))
        path = _winged_place(folder, recipe, images, others, self.reconstruct)
        options: dict[str, Any] = {"seed": recipe.seed, "reconstruct": [*self.reconstruct.values()]}

        def learn() -> tuple[Kinds, Kinds]:
            own = options | {"third": recipe.third, "others": others}
            held = winged.winged_kinds(images, held_out=True, size=HELD_COMPOSITIONS, **own)
            return winged.winged_kinds(images, size=TRAIN_COMPOSITIONS, **own), held

        def examine() -> Kinds:
            edges = [edge for edge in EDGES if edge not in winged.EDGES_OF[recipe.third or 0]]
            own = options | {"edges": edges, "others": _others(data, "test")}
            return winged.winged_kinds(load_split(data, "test"), size=TEST_COMPOSITIONS, **own)

        return _Lessons(path, classes, learn, examine)

    def _load(self, lessons: _Lessons, recipe: RecogniserConfig) -> StoredRecogniser | None:
        """Return the recogniser of these lessons; None if there is none, or a broken one, which is logged."""
        path = lessons.path
        about = path.with_suffix(".json")
        if not path.exists() or not about.exists():  # the JSON is written last: without it the weights may be torn
            return None
        try:
            quality = read_json(about)
            if quality["sha256"] != sha256(path):
                raise ValueError("its SHA-256 is not the one noted beside it")
            weights = read_torch_file(path)
            kinds = len(weights["kinds_head.bias"])
            model = Recogniser(recipe.architecture, lessons.classes, kinds=kinds, seed=recipe.seed)
            model.load_state_dict(weights)
        except Exception as error:  # broken JSON, bytes or keys: a new training replaces it
            reason = str(error).split("\n")[0]
            logger.warning("The recogniser %s is corrupt (%s): another has to be trained.", path, reason)
            return None
        return StoredRecogniser(model.freeze().to(self.device).to(memory_format=torch.channels_last), path, quality)

    def _train(self, lessons: _Lessons, recipe: RecogniserConfig) -> StoredRecogniser:
        path = lessons.path
        test = lessons.examine()  # load it first: an error in it must not cost a training
        kinds, held = lessons.learn()
        first, second = kinds.classes
        own = kept = learned_from(kinds, recipe)
        if held is None:
            _, kept = hold_out(own, recipe.held_out, recipe.seed)
        if not kept.targets.bool().any(0).all():
            raise UserError(f"There are too few training images to learn {first} and {second} from: {len(own)} in all.")
        shown = len(training_order(kept, recipe))
        duration = _duration(shown * (2 if recipe.adversarial else 1), self.device)
        self.say(
            f"Training the {recipe.architecture} recogniser of {first} and {second} on {len(own)} images (once; kept "
            f"in {path.parent}): {duration}."
        )
        started, busy = time.perf_counter(), time.process_time()
        model = train_recogniser(recipe, kinds, held=held, device=self.device)
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - busy
        quality = {"classes": list(kinds.classes), **measure(model, test)}
        quality |= {"train_images": len(own), "images_shown": shown, "seconds": seconds, "cpu_seconds": cpu_seconds}
        quality |= {"temperature": model.temperature.tolist(), "offset": model.offset.tolist()}
        as_json = dataclasses.asdict(recipe) | {"augmentation": [*recipe.augmentation]}
        quality |= {"recipe": as_json, "recipe_version": RECIPE_VERSION}
        try:
            write_atomically(path, lambda file: torch.save(model.state_dict(), file))
            quality["sha256"] = sha256(path)
            write_json(path.with_suffix(".json"), quality)
        except OSError as error:  # a full disk: this run can use it, the next one trains again
            logger.warning("The recogniser cannot be kept (%s): the next run trains it again.", error)
        accuracies = zip(kinds.classes, quality["balanced_accuracy"], strict=True)
        measured = ", ".join(f"{name} or not {accuracy:.1%}" for name, accuracy in accuracies)
        self.say(f"Trained in {seconds / 60:.1f} minutes. Balanced accuracy on test: {measured}.")
        return StoredRecogniser(model, path, quality)


@contextmanager
def _locked(path: Path, say: Callable[[str], object]) -> Iterator[None]:
    """Let one process at a time train the recogniser at `path`, and remove what a killed one left."""
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


def _place(folder: Path, recipe: RecogniserConfig, kinds: Kinds) -> Path:
    """Return <classes>-<architecture>-s<seed>-<8 hex>.pt; the hash is of the recipe, every image and its kind."""
    digest = hashlib.sha256(json.dumps([RECIPE_VERSION, _identity(recipe), kinds.names]).encode())
    for values in (kinds.images, kinds.kinds, kinds.targets):
        digest.update(values.contiguous().numpy().data.cast("B"))
    return folder / f"{_stem(recipe, kinds.classes)}-{digest.hexdigest()[:8]}.pt"


def _winged_place(
    folder: Path, recipe: RecogniserConfig, images: ImageSet, others: Tensor | None, models: Iterable[str]
) -> Path:
    """Return the same for a winged judge; the hash is of what its pictures are made from."""
    content = [WINGED_VERSION, RECIPE_VERSION, _identity(recipe), [*images.classes], sorted(models), sha256(LIST)]
    digest = hashlib.sha256(json.dumps(content).encode())
    for values in (images.images, images.labels, *([] if others is None else [others])):
        digest.update(values.contiguous().numpy().data.cast("B"))
    return folder / f"{_stem(recipe, images.classes)}-{digest.hexdigest()[:8]}.pt"


def _identity(recipe: RecogniserConfig) -> dict[str, Any]:
    # Fields that a later version added count only if they are set, so that older files keep their names.
    later = {"half": None, "augmentation": (), "adversarial": 0.0, "third": None}
    return {name: value for name, value in dataclasses.asdict(recipe).items() if later.get(name, ...) != value}


def _others(data: Any, split: str) -> Tensor | None:
    """Return the images of the source's other classes; None if it has none."""
    kinds = load_kinds(data, split)
    others = kinds.images[kinds.targets.amax(1) == 0]
    return others if len(others) else None


def _short(name: str) -> str:
    return re.sub(r"[^\w.]+", "_", name)[:24]


def _stem(recipe: RecogniserConfig, classes: Sequence[str]) -> str:
    kind = "" if recipe.third is None else "winged-"
    return f"{'-'.join(_short(name) for name in classes)}-{kind}{recipe.architecture}-s{recipe.seed}"


def measure(model: Recogniser, test: Kinds) -> dict[str, Any]:
    """Return the figures of `StoredRecogniser.quality` that are measured on the test split."""
    probabilities = predict(model.probabilities, test.images, model.mean.device)
    recognised, there = probabilities > 0.5, test.targets > 0.5
    both = recognised.all(1)
    return {
        "balanced_accuracy": balanced_accuracy(probabilities, test.targets).tolist(),
        "sensitivity": [recognised[there[:, i], i].float().mean().item() for i in range(2)],
        "specificity": [1 - recognised[~there[:, i], i].float().mean().item() for i in range(2)],
        "calibration_error": calibration_error(probabilities, test.targets).tolist(),
        "both": {name: both[test.kinds == kind].float().mean().item() for kind, name in enumerate(test.names)},
        "test_images": len(test),
    }


def _duration(shown: int, device: torch.device | str) -> str:
    if torch.device(device).type != "cpu":
        return "a minute or two"
    minutes = shown * CPU_SECONDS_AN_IMAGE / min(torch.get_num_threads(), 4) / 60
    return f"about {max(1, round(minutes))} minute{'s' if round(minutes) > 1 else ''} on the CPU"
