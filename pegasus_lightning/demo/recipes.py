"""What is written of a mix: a PNG, and the recipe that makes it again."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pegasus_lightning import __version__
from pegasus_lightning.demo.session import Choice, DemoSession, Parent
from pegasus_lightning.runs.places import digest, origin_told, path_told
from pegasus_lightning.utils.errors import UserError
from pegasus_lightning.utils.files import write_atomically, write_json
from pegasus_lightning.utils.foreign import read_json
from pegasus_lightning.utils.tensors import IMAGE_SIZE, to_uint8

MAX_NUMBER = 2**40  # of a parent
SCALE = 12  # side in pixels of one pixel of a large picture


def enlarged(image: Tensor, scale: int = SCALE, *, smooth: bool = False) -> np.ndarray:
    """Return an image (3, H, W) in [0, 1] as uint8 (scale H, scale W, 3): each pixel a square, or bicubic if smooth."""
    pixels = to_uint8(image)
    if smooth:
        height, width = pixels.shape[:2]
        size = (width * scale, height * scale)
        return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))
    return pixels.repeat(scale, axis=0).repeat(scale, axis=1)


def png(pixels: np.ndarray) -> bytes:
    """Return uint8 (H, W, 3) as the bytes of a PNG."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG", compress_level=3)
    return file.getvalue()


def recipe(session: DemoSession, choice: Choice, image: Tensor) -> dict[str, Any]:
    """Return what makes the picture of a choice again, with the fields of `pegasi.json` where these have a meaning.

    A parent is told by its index in `parents`, or, if it was dropped, by its file's name and its 32 x 32 pixels (a PNG
    in base64). Parents' codes are the means of their posteriors. `where` has a number a row of pixels, in hexadecimal,
    whose highest bit is the left pixel. `code` is that of an improved mix, which the parents alone do not give.
    """
    names = session.classes
    return {
        "version": __version__,
        "run": path_told(session.path),
        "batches": session.batches_done,
        "classes": list(names),
        "parents": origin_told(session.offer.origin),
        "settings": {"mixing": "learned" if session.by_parts else "lerp", "codes": "mean"},
        "first": {"class": names[0]} | _told(choice.first),
        "second": {"class": names[1]} | _told(choice.second),
        "ratio": round(choice.ratio, 6),
        "where": None if choice.where is None else rows_of(choice.where),
        "code": None if choice.code is None else choice.code.tolist(),
        "pixels_sha256": pixels_sha256(image),
    }


def pixels_sha256(image: Tensor) -> str:
    """Return the SHA-256 of the 32 x 32 x 3 bytes of a picture."""
    return hashlib.sha256(to_uint8(image).tobytes()).hexdigest()


def read_recipe(session: DemoSession, path: Path) -> Choice:
    """Return the choice of a recipe that `keep` wrote. Raise UserError if it is none, or of other classes or parents.

    Another model makes another picture of it: compare `pixels_sha256`.
    """
    content = read_json(path)
    if content.get("classes") != list(session.classes):
        raise UserError(f"{path.name} is no recipe of {' and '.join(session.classes)}.")
    parents = []
    for label, place in enumerate(("first", "second")):
        told = content.get(place)
        if not isinstance(told, dict):
            raise UserError(f"{path.name} is no recipe: it does not tell the {place} parent.")
        if "png" not in told and content.get("parents") != origin_told(session.offer.origin):
            raise UserError(f"{path.name} has parents from elsewhere: start the demo with the same model and data.")
        try:
            if "png" in told:
                parents.append(_parent_of(told))
            else:
                number = told["index"]
                if type(number) is not int or not 0 <= number < MAX_NUMBER:
                    raise ValueError(number)
                parents += session.numbered(label, [number])
        except (KeyError, IndexError, ValueError, TypeError, OSError) as error:
            raise UserError(f"{path.name} is damaged: its {place} parent is not understood.") from error
    ratio, code = content.get("ratio"), content.get("code")
    try:
        if type(ratio) not in (int, float) or not 0 <= ratio <= 1:
            raise ValueError("its ratio is not from 0 to 1")
        where = None if content.get("where") is None else mask_of(content["where"])
        found = None if code is None else torch.tensor(code, dtype=torch.float32)
        latent_dim = session.model.config.networks.latent_dim
        if found is not None and (found.shape != (latent_dim,) or not found.isfinite().all()):
            raise ValueError("its code is of another model")
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"{path.name} is damaged: {error}.") from error
    return Choice(parents[0], parents[1], float(ratio), where, found)


def _parent_of(told: dict[str, Any]) -> Parent:
    """Return a parent whose pixels are in the recipe. Raise ValueError or OSError for any others."""
    with Image.open(io.BytesIO(base64.b64decode(told["png"], validate=True)), formats=("PNG",)) as opened:
        if opened.size != (IMAGE_SIZE, IMAGE_SIZE) or opened.mode != "RGB":
            raise ValueError(opened.size)
        pixels = torch.tensor(np.asarray(opened)).permute(2, 0, 1).contiguous()
    return Parent(pixels, {"file": str(told.get("file"))[:100]})


def _told(parent: Parent) -> dict[str, Any]:
    if "file" not in parent.origin:
        return parent.origin
    return parent.origin | {"png": base64.b64encode(png(to_uint8(parent.pixels))).decode()}


def rows_of(mask: Tensor) -> list[str]:
    """Return a mask, bool (32, 32), as 32 hexadecimal numbers of 8 digits."""
    return [f"{int(''.join('1' if on else '0' for on in row), 2):08x}" for row in mask.tolist()]


def title(choice: Choice, names: tuple[str, str]) -> str:
    """Return the name of a picture's files without an ending: classes and ratio."""
    first, second = (re.sub(r"[^\w-]+", "_", name)[:24] for name in names)
    return f"{first}-{second}-{choice.ratio:.2f}"


def keep(folder: Path, content: dict[str, Any], choice: Choice, image: Tensor) -> Path:
    """Write a favourite, PNG and JSON, each atomically and the PNG last. Return the path of the PNG.

    The PNG is enlarged by `SCALE`, each pixel a square. The same recipe always has the same name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    first, second = content["classes"]
    path = folder / f"{title(choice, (first, second))}-{digest(content)}.png"
    write_json(path.with_suffix(".json"), content)
    data = png(enlarged(image))
    write_atomically(path, lambda file: file.write(data))
    return path


def mask_of(rows: Any) -> Tensor | None:
    """Return the mask (32, 32) of `rows_of`; None if no pixel is set. Raise ValueError for anything else."""

    if not isinstance(rows, list) or len(rows) != IMAGE_SIZE:
        raise ValueError("a mask has 32 rows")
    if not all(isinstance(row, str) and re.fullmatch(r"[0-9a-f]{8}", row) for row in rows):
        raise ValueError("a row of a mask is 8 hexadecimal digits")
    mask = torch.tensor([[bit == "1" for bit in f"{int(row, 16):032b}"] for row in rows])
    return mask if mask.any() else None
