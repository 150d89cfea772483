"""The user's own images, one folder per class: root/{train,test}/<class>/*.{png,jpg,...}, see `FORMATS`.

Decoding applies the EXIF orientation, composites transparency on white, converts palettes, grey (8 or 16 bits) and CMYK
to RGB, and takes the first picture of an animation. Images of another size are cropped to the central square and
resized to 32 x 32 with (antialiased) Lanczos. Images of 32 x 32 keep their pixels exactly.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import unicodedata
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import Image, ImageOps
from torch import Tensor

from pegasus_lightning.data import tensor_cache
from pegasus_lightning.data.common import SPLITS, check_split, index_classes
from pegasus_lightning.utils.bars import bar
from pegasus_lightning.utils.errors import UserError, did_you_mean, listing
from pegasus_lightning.utils.files import sha256
from pegasus_lightning.utils.tensors import IMAGE_SIZE

log = logging.getLogger(__name__)

# Pillow's formats that are opened, and their endings. Others, such as EPS, would start further programs.
FORMATS = {
    "PNG": (".png",),
    "JPEG": (".jpg", ".jpeg", ".jfif"),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "GIF": (".gif",),
}
SUFFIXES = tuple(suffix for endings in FORMATS.values() for suffix in endings)
MIN_SIDE = 8
MAX_ASPECT_RATIO = 4
MAX_FILES_NAMED = 5
BYTES_WORTH_A_THREAD = 1 << 15
# What may be decoded at once in each of eight threads. A JPEG may have 64 times as many: it is decoded at reduced size.
MAX_PIXELS = 50_000_000
Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit knows no reduced size, and takes a photograph for an attack
# Increment when `decode` changes its pixels: cached images are then decoded again.
DECODING_VERSION = 1


def load(root: Path, classes: Sequence[str], split: str, cache_dir: Path | None = None) -> tuple[Tensor, Tensor]:
    """Return images uint8 (N, 3, 32, 32) and labels int64 (N,), indices into `classes`.

    Images are ordered by class as given, then by file name. The decoded pixels are cached in `cache_dir` (by default
    the user's cache folder) until a file changes. Raise UserError if a folder is missing or empty, or files cannot be
    used (the message names them).
    """
    root, files_by_class, place = _listed(root, classes, split)
    files = [file for files_of_class in files_by_class for file in files_of_class]
    images = tensor_cache.load_or_build(
        (cache_dir or tensor_cache.default_folder()) / f"images-{place}.safetensors",
        _fingerprint(files),
        (len(files), 3, IMAGE_SIZE, IMAGE_SIZE),
        lambda: _decode_all(root, files),
    )
    counts = torch.tensor([len(files_of_class) for files_of_class in files_by_class])
    return torch.from_numpy(images), torch.repeat_interleave(torch.arange(len(counts)), counts)


def contents(
    root: Path, classes: Sequence[str], split: str, cache_dir: Path | None = None
) -> tuple[np.ndarray, Tensor]:
    """Return the SHA-256 of each file's bytes, uint8 (N, 32), and the labels, as `load` does; cached as its pixels are.

    Unlike pixels they do not depend on the version of a decoder. Raise UserError as `load` does.
    """
    root, files_by_class, place = _listed(root, classes, split)
    files = [file for files_of_class in files_by_class for file in files_of_class]

    def build() -> np.ndarray:
        try:
            hashes = [bytes.fromhex(sha256(file)) for file in bar(files, desc="hashing images", unit="img")]
            return np.frombuffer(b"".join(hashes), dtype=np.uint8).reshape(len(files), 32)
        except OSError as error:
            raise UserError(f"{error.filename} cannot be read ({error.strerror}).") from error

    path = (cache_dir or tensor_cache.default_folder()) / f"contents-{place}.safetensors"
    counts = torch.tensor([len(files_of_class) for files_of_class in files_by_class])
    labels = torch.repeat_interleave(torch.arange(len(counts)), counts)
    return tensor_cache.load_or_build(path, _fingerprint(files), (len(files), 32), build), labels


def _listed(root: Path, classes: Sequence[str], split: str) -> tuple[Path, list[list[Path]], str]:
    """Return the root, the image files of each class, and a name for what is cached of them."""
    check_split(split)
    root = Path(root).expanduser()
    try:
        files_by_class = [_image_files(folder) for folder in class_folders(root, classes, split)]
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read ({error.strerror}).") from error
    place = hashlib.sha256(json.dumps([str(root.resolve()), split, list(classes)]).encode()).hexdigest()[:16]
    return root, files_by_class, place


def class_folders(root: Path, classes: Sequence[str], split: str) -> list[Path]:
    """Return the folder of each class; raise UserError if one is missing, with the existing ones and the layout."""
    layout = f"The expected layout is {root}/{{{','.join(SPLITS)}}}/<class>/*.{{png,jpg,...}}."
    if not root.is_dir():
        raise UserError(f"There is no folder {root}. {layout}")
    if not (root / split).is_dir():
        present = _folders_in(root)
        hint = did_you_mean(split, present)
        raise UserError(f"There is no folder '{split}' in {root}.{hint} Its folders: {listing(present)}. {layout}")
    # macOS stores accents as characters of their own.
    folders = _folders_in(root / split)
    named = {unicodedata.normalize("NFC", name): name for name in folders}
    try:
        wanted = [unicodedata.normalize("NFC", name) for name in classes]
        index_classes(classes if isinstance(classes, str) else wanted, list(named), str(root / split))
    except UserError as error:
        raise UserError(f"{error} {layout}") from None
    exact = [typed if typed in folders else named[name] for typed, name in zip(classes, wanted, strict=True)]
    return [root / split / name for name in exact]


def _folders_in(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir())


def _image_files(folder: Path) -> list[Path]:
    """Return the image files sorted by name, and say what is left out.

    Hidden files are passed over: macOS writes `._x.png` that are not images.
    """
    names = sorted(entry.name for entry in os.scandir(folder) if not entry.name.startswith(".") and not entry.is_dir())
    images = [folder / name for name in names if name.lower().endswith(SUFFIXES)]
    if not images:
        deeper = sorted({file.parent.name for file in folder.glob("*/*") if file.name.lower().endswith(SUFFIXES)})
        where = f" There are images one folder deeper, in {listing(deeper)}: move them up." if deeper else ""
        raise UserError(f"There is no {', '.join(SUFFIXES)} file in {folder}. Its files: {listing(names)}.{where}")
    if len(images) < len(names):
        others = {Path(name).suffix.lower() or name for name in names} - set(SUFFIXES)
        _say_once(
            f"{len(names) - len(images)} of {len(names)} files in {folder} are left out: {listing(sorted(others))}."
        )
    return images


@lru_cache(maxsize=1000)
def _say_once(text: str) -> None:
    log.warning(text)


def _fingerprint(files: list[Path]) -> bytes:
    """Return a SHA-256 of the names, sizes and times of the files and of the version of the decoder."""
    entries: list[list[str | int]] = []
    for file in files:
        try:
            status = file.stat()
        except OSError:  # such as a broken link: decoding reports it
            continue
        # A copy that keeps the modification time still has a new change time.
        entries.append([f"{file.parent.name}/{file.name}", status.st_size, status.st_mtime_ns, status.st_ctime_ns])
    return hashlib.sha256(json.dumps([DECODING_VERSION, PIL.__version__, entries]).encode()).digest()


def _decode_all(root: Path, files: list[Path]) -> np.ndarray:
    """Return the pixels of the files, uint8 (N, 3, 32, 32); raise UserError naming the files that cannot be used."""
    images = np.empty((len(files), 3, IMAGE_SIZE, IMAGE_SIZE), dtype=np.uint8)

    def decode_one(index: int) -> str | None:
        try:
            images[index] = decode(files[index])
        # Pillow may raise any exception for a broken file, and each such file must be reported.
        except Exception as error:
            return f"{files[index].relative_to(root)}: {_reason(error)}"
        return None

    # Threads speed up photographs but slow down thumbnails, where Python itself takes most of the time
    # (10,000 JPEGs of 32 x 32: 2.4 s in one thread, 5.5 s in eight).
    mean_bytes = sum(file.stat().st_size for file in files if file.exists()) / len(files)
    workers = min(8, os.cpu_count() or 1) if mean_bytes > BYTES_WORTH_A_THREAD else 1
    with ThreadPoolExecutor(workers) as pool:
        results = (map if workers == 1 else pool.map)(decode_one, range(len(files)))
        progress = bar(results, total=len(files), desc="decoding images", unit="img")
        bad = [reason for reason in progress if reason]
    if bad:
        left_out = f"\n  and {len(bad) - MAX_FILES_NAMED} more" if len(bad) > MAX_FILES_NAMED else ""
        named = "\n  ".join(bad[:MAX_FILES_NAMED])
        raise UserError(
            f"{len(bad)} of {len(files)} images in {root} cannot be used:\n  {named}{left_out}\nRepair or remove them."
        )
    return images


class _MisshapenError(Exception):
    """The image is too small, too large, or too elongated to be cropped to a square."""


def _reason(error: Exception) -> str:
    if isinstance(error, _MisshapenError):
        return str(error)
    if isinstance(error, PIL.UnidentifiedImageError):  # its own message repeats the path
        return f"not an image that can be read ({', '.join(FORMATS)})"
    if isinstance(error, ValueError) and "MAX_TEXT" in str(error):
        return "it holds more text than an image should: save it again without"
    # The message of an OSError repeats the path too; its `strerror` does not.
    return f"cannot be read ({getattr(error, 'strerror', None) or error})"


def read_image(path: Path) -> np.ndarray:
    """Return the decoded image uint8 (3, 32, 32) at `path`; raise UserError if it is missing or cannot be used."""
    if not path.is_file():
        raise UserError(f"There is no image {path}.")
    try:
        return decode(path)
    except Exception as error:  # see `_decode_all`
        raise UserError(f"{path} cannot be used: {_reason(error)}.") from error


def decode(path: Path) -> np.ndarray:
    """Return the pixels of one file, uint8 (3, 32, 32); raise _MisshapenError or any exception of Pillow."""
    with Image.open(path, formats=tuple(FORMATS)) as opened:
        _check_sides(opened)
        # Much faster: a large JPEG is decoded at reduced size, but at least at 4 * IMAGE_SIZE.
        opened.draft(None, (4 * IMAGE_SIZE, 4 * IMAGE_SIZE))
        if opened.width * opened.height > MAX_PIXELS:
            width, height = opened.size
            raise _MisshapenError(f"{width} x {height} pixels, too large: above {MAX_PIXELS // 1_000_000} megapixels")
        ImageOps.exif_transpose(opened, in_place=True)
        return _squared(opened)


def from_pillow(picture: Image.Image) -> np.ndarray:
    """Return the pixels of a picture of Pillow as `decode` does, uint8 (3, 32, 32). Raise UserError if it cannot."""
    try:
        _check_sides(picture)
        return _squared(ImageOps.exif_transpose(picture))
    except Exception as error:  # see `_decode_all`
        raise UserError(f"A picture cannot be used: {_reason(error)}.") from error


def _check_sides(picture: Image.Image) -> None:
    width, height = picture.size
    if min(width, height) < MIN_SIDE:
        raise _MisshapenError(f"{width} x {height} pixels, a side is shorter than {MIN_SIDE}")
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise _MisshapenError(f"{width} x {height} pixels, an aspect ratio above {MAX_ASPECT_RATIO}:1")


def _squared(opened: Image.Image) -> np.ndarray:
    picture = _as_rgb(opened)
    if picture.size != (IMAGE_SIZE, IMAGE_SIZE):
        side = min(picture.size)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        square = picture.crop((left, top, left + side, top + side))
        picture = square.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.LANCZOS)
    return np.asarray(picture).transpose(2, 0, 1)


def _as_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode == "F" or (picture.mode == "I" and int(np.asarray(picture).max()) >= 1 << 16):
        raise ValueError("its pixels have more than 16 bits")
    if picture.mode.startswith("I"):  # 16-bit grey, which Pillow's own conversion would clip to white
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8)).convert("RGB")
    if picture.has_transparency_data:
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture.convert("RGBA")).convert("RGB")
    return picture.convert("RGB")
