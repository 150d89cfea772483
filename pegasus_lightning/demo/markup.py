"""The parts of the page as HTML. Pictures are data: the page fetches nothing."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from pegasus_lightning.demo.recipes import enlarged, png, title
from pegasus_lightning.demo.session import Choice, Parent
from pegasus_lightning.models.mixing_network import CHIMERA, SMALL

FOLDER = Path(__file__).parent
STYLE, PAINT, PICK, MARK = ((FOLDER / name).read_text() for name in ("style.css", "paint.js", "pick.js", "mark.js"))
PAINTER = """<div class="painter">
<canvas width="32" height="32" aria-label="Picture to paint on"></canvas>
<div class="tools">
<button type="button" data-do="paint" aria-pressed="true">Paint</button>
<button type="button" data-do="erase" aria-pressed="false">Erase</button>
<button type="button" data-do="left">Left half</button>
<button type="button" data-do="right">Right half</button>
<button type="button" data-do="clear">Anywhere</button>
</div></div>"""


def text(words: str) -> str:
    """Return text for HTML, also where the page's template engine reads it."""
    return html.escape(words).replace("{", "&#123;").replace("$", "&#36;")


def uri(data: bytes, kind: str) -> str:
    """Return data as a `data:` address."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def picture(image: Tensor, words: str, scale: int = 1) -> str:
    """Return an image (3, H, W) as an <img> whose alternative text is `words`."""
    return f'<img src="{uri(png(enlarged(image, scale)), "image/png")}" alt="{text(words)}" draggable="false">'


def parents(name: str, chosen: Parent, offered: Sequence[Parent]) -> str:
    """Return the chosen parent beside those that are offered, each a button."""
    buttons = []
    for index, parent in enumerate(offered):
        pressed = "true" if parent.origin == chosen.origin else "false"
        words = picture(parent.pixels, f"{name} {parent.origin['index']}")
        buttons.append(f'<button type="button" data-pick="{index}" aria-pressed="{pressed}">{words}</button>')
    origin = chosen.origin
    told = origin.get("file") or f"number {origin['index']}"
    figure = (
        f"<figure>{picture(chosen.pixels, f'the chosen {name}')}<figcaption>{text(str(told))}</figcaption></figure>"
    )
    return f'<div class="parents">{figure}<div class="offered">{"".join(buttons)}</div></div>'


def row(images: Tensor, ratios: Sequence[float], choice: Choice) -> str:
    """Return pictures (R, 3, 32, 32) at ratios, each a button; the nearest to the chosen ratio is marked."""
    nearest = min(ratios, key=lambda ratio: abs(ratio - choice.ratio))
    buttons = []
    for image, ratio in zip(images, ratios, strict=True):
        pressed = "true" if ratio == nearest else "false"
        shown = f"{picture(image, f'mix at ratio {ratio:.2f}')}<span>{ratio:.2f}</span>"
        buttons.append(f'<button type="button" data-pick="{ratio}" aria-pressed="{pressed}">{shown}</button>')
    return f'<div class="strip">{"".join(buttons)}</div>'


def phase(ratio: float, names: tuple[str, str], by_parts: bool) -> str:
    """Return what a ratio means, in words."""
    first, second = names
    low, high = CHIMERA
    if not by_parts or ratio in (0, 1):
        return f"{1 - ratio:.0%} {first}, {ratio:.0%} {second}"
    if ratio < SMALL:
        return f"the {first} makes room"
    if ratio < low:
        return f"parts of the {second} appear"
    return "the chimera" if ratio <= high else f"on to the {second}"


def large(
    image: Tensor, choice: Choice, names: tuple[str, str], recipe: dict[str, Any], *, by_parts: bool, smooth: bool
) -> str:
    """Return the picture of the choice, large, with links that download it and its recipe."""
    data = uri(png(enlarged(image, smooth=smooth)), "image/png")
    content = uri((json.dumps(recipe, indent=2) + "\n").encode(), "application/json")
    improved = ", improved" if choice.code is not None else ""
    words = f"ratio {choice.ratio:.2f}: {phase(choice.ratio, names, by_parts)}{improved}"
    name, alternative = text(title(choice, names)), text(f"mix of {names[0]} and {names[1]}, {words}")
    return (
        f'<figure class="pegasus" data-ratio="{choice.ratio}"><img src="{data}" alt="{alternative}">'
        f'<figcaption>{text(words)}</figcaption><div class="links">'
        f'<a class="png" download="{name}.png" href="{data}">Download PNG</a>'
        f'<a class="json" download="{name}.json" href="{content}">Download recipe (JSON)</a></div></figure>'
    )


def progress(step: int, steps: int, words: str) -> str:
    """Return the progress of a search."""
    return f'<div class="climb"><progress value="{step}" max="{steps}"></progress><p>{text(words)}</p></div>'


def favourites(kept: Sequence[tuple[Path, Tensor, dict[str, Any]]], folder: str) -> str:
    """Return the favourites of this session, newest first: path of the PNG, picture and recipe of each."""
    if not kept:
        return '<p class="hint">Nothing is kept yet.</p>'
    figures = []
    for path, image, content in reversed(kept):
        data = uri((json.dumps(content, indent=2) + "\n").encode(), "application/json")
        large_png = uri(png(enlarged(image)), "image/png")
        figures.append(
            f"<figure>{picture(image, path.stem)}<figcaption>ratio {content['ratio']:.2f}</figcaption>"
            f'<div class="links"><a download="{text(path.name)}" href="{large_png}">PNG</a>'
            f'<a download="{text(path.stem)}.json" href="{data}">JSON</a></div></figure>'
        )
    where = f'<p class="hint">Written to {text(folder)}</p>'
    return f'<div class="favourites">{"".join(figures)}</div>{where}'
