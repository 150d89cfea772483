"""What raters see: one offline HTML page, and numbered contact sheets. Neither says where a picture comes from."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image
from torch import Tensor

from pegasus_lightning.panel.letters import COLUMNS, LETTERS, REALISM, meanings
from pegasus_lightning.utils.image_grid import INK, blank_canvas, image_grid, paint, render_text
from pegasus_lightning.utils.tensors import IMAGE_SIZE, to_uint8

SHEET_ROWS, SHEET_COLUMNS, SHEET_SCALE = 5, 8, 5
STRIP = 18  # height in pixels of the strip with the number
ATLAS_COLUMNS = 32


def render(images: Tensor, panel: str, classes: Sequence[str]) -> str:
    """Return the page of a panel's pictures uint8 (N, 3, 32, 32), numbered from 1 in their order."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    content = {
        "panel": panel,
        "count": len(images),
        "size": IMAGE_SIZE,
        "columns": ATLAS_COLUMNS,
        "letters": list(LETTERS),
        "realism": list(REALISM),
        "header": ",".join(COLUMNS),
    }
    return environment.get_template("page.html.jinja").render(
        content=content, meanings=meanings(classes), atlas=_atlas(images)
    )


def _atlas(images: Tensor) -> str:
    """Return all pictures as one PNG, row by row, in base64."""
    rows = -(-len(images) // ATLAS_COLUMNS)
    canvas = np.zeros((rows * IMAGE_SIZE, ATLAS_COLUMNS * IMAGE_SIZE, 3), np.uint8)
    for number, image in enumerate(to_uint8(images)):
        top, left = (IMAGE_SIZE * place for place in divmod(number, ATLAS_COLUMNS))
        canvas[top : top + IMAGE_SIZE, left : left + IMAGE_SIZE] = image
    file = io.BytesIO()
    Image.fromarray(canvas).save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()


def sheets(images: Tensor, panel: str, classes: Sequence[str]) -> Iterator[np.ndarray]:
    """Yield contact sheets (H, W, 3) uint8 of the pictures, enlarged smoothly, each with its number above it."""
    said = "   ".join(f"{letter} {meaning}." for letter, meaning in meanings(classes).items())
    per_sheet = SHEET_ROWS * SHEET_COLUMNS
    for start in range(0, len(images), per_sheet):
        part = images[start : start + per_sheet].float() / 255
        large = F.interpolate(part, scale_factor=SHEET_SCALE, mode="bicubic", antialias=True).clamp(0, 1)
        cells = [_numbered(image, number) for number, image in enumerate(to_uint8(large), start + 1)]
        yield image_grid(
            torch.from_numpy(np.stack(cells)).permute(0, 3, 1, 2),
            columns=min(SHEET_COLUMNS, len(part)),
            scale=1,
            gap=6,
            title=f"Panel {panel}",
            footer=f"{said}   Realism: 1 (not at all) to 5 (a photograph).",
        )


def _numbered(image: np.ndarray, number: int) -> np.ndarray:
    """Return an image (H, W, 3) below a strip with its number."""
    strip = blank_canvas(STRIP, image.shape[1])
    paint(strip, render_text(str(number), 13, image.shape[1]), 1, 0, INK)
    return np.concatenate([strip, image])
