"""The page in Gradio: its parts, and what happens when one is used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gradio as gr
import torch
from torch import Tensor

from pegasus_lightning.data.image_folder import SUFFIXES
from pegasus_lightning.demo import markup
from pegasus_lightning.demo.recipes import keep, mask_of, pixels_sha256, read_recipe, recipe, rows_of
from pegasus_lightning.demo.session import ROW, Choice, DemoSession, Parent
from pegasus_lightning.runs.places import path_shown
from pegasus_lightning.utils.errors import UserError
from pegasus_lightning.utils.foreign import read_json

FONT = ["system-ui", "sans-serif"]
RATIOS = [round(ratio, 3) for ratio in torch.linspace(0, 1, ROW).tolist()]
PIXELS, SMOOTH = "pixels", "smooth"
MAX_FILE_SIZE = "100mb"  # of a dropped file


Kept = tuple[tuple[Path, Tensor, dict[str, Any]], ...]  # favourites of one reader: their PNG, picture and recipe


@dataclass(frozen=True)
class Shown:
    """What one reader of the page sees."""

    choice: Choice
    pages: tuple[int, int]  # of the parents that are offered
    offered: tuple[list[Parent], list[Parent]]

    def __deepcopy__(self, memo: dict[int, Any]) -> Shown:
        return self  # nothing in it changes


@dataclass(frozen=True)
class Climbed:
    """How far an improvement has come. Like `Kept`, a state of its own: it overwrites nothing else."""

    start: Choice  # it counts while this is the choice that is shown
    code: Tensor  # (latent_dim,), the best so far


def improved(shown: Shown, climbed: Climbed | None) -> Choice:
    """Return what is shown large: the choice, or its improvement."""
    if climbed is None or climbed.start is not shown.choice:
        return shown.choice
    return replace(shown.choice, code=climbed.code)


class Handlers:
    """What happens on the page. Each method returns the state that it changes first, and then the parts that change."""

    def __init__(self, session: DemoSession, folder: Path) -> None:
        self.session, self.folder = session, folder

    def first_look(self) -> Shown:
        """Return what a new reader sees."""
        offered = (self.session.offered(0, 0), self.session.offered(1, 0))
        return Shown(Choice(offered[0][0], offered[1][0]), (0, 0), offered)

    def parents(self, shown: Shown, label: int) -> str:
        chosen = (shown.choice.first, shown.choice.second)[label]
        return markup.parents(self.session.classes[label], chosen, shown.offered[label])

    def row(self, shown: Shown) -> str:
        return markup.row(self.session.pictures(shown.choice, RATIOS), RATIOS, shown.choice)

    def large(self, choice: Choice, look: str) -> str:
        session = self.session
        image = session.picture(choice)
        content = recipe(session, choice, image)
        smooth = look == SMOOTH
        return markup.large(image, choice, session.classes, content, by_parts=session.by_parts, smooth=smooth)

    def ground(self, shown: Shown) -> list[Any]:
        """Return the picture to paint on and what is painted, as a list of updates: one, or none."""
        if not self.session.by_parts:
            return []
        image, where = self.session.ground(shown.choice.first), shown.choice.where
        rows = None if where is None else rows_of(where)
        return [gr.update(value=markup.uri(markup.png(markup.enlarged(image, 1)), "image/png"), rows=rows)]

    def pick(self, shown: Shown, look: str, label: int, index: int) -> tuple[Any, ...]:
        """Choose one of the parents that are offered."""
        return self._with_parent(shown, look, label, shown.offered[label][index])

    def drop(self, shown: Shown, look: str, label: int, file: str | None) -> tuple[Any, ...]:
        """Choose a picture that was dropped, and clear the place that it was dropped on."""
        parent = (shown.choice.first, shown.choice.second)[label]
        try:
            parent = self.session.read(Path(file or ""))
        except UserError as error:
            gr.Warning(str(error).replace(str(file), Path(file or "").name))
        _remove(file)
        return (*self._with_parent(shown, look, label, parent), None)

    def _with_parent(self, shown: Shown, look: str, label: int, parent: Parent) -> tuple[Any, ...]:
        before = (shown.choice.first, shown.choice.second)[label]
        changes: dict[str, Any] = {"second": parent}
        if label == 0:
            same = torch.equal(parent.pixels, before.pixels)
            changes = {"first": parent, "where": shown.choice.where if same else None}
        shown = replace(shown, choice=shown.choice.with_(**changes))
        return (
            shown,
            self.parents(shown, label),
            self.row(shown),
            self.large(shown.choice, look),
            "",
            *self.ground(shown),
        )

    def open(self, shown: Shown, look: str, file: str) -> tuple[Any, ...]:
        """Take the choice of a recipe."""
        path, status = Path(file), ""
        try:
            shown = replace(shown, choice=read_recipe(self.session, path))
            if read_json(path).get("pixels_sha256") != pixels_sha256(self.session.picture(shown.choice)):
                status = "<p>This picture is not the recipe's, which comes from another model or machine.</p>"
        except UserError as error:
            gr.Warning(str(error).replace(file, path.name))
        _remove(file)
        boxes = (self.parents(shown, 0), self.parents(shown, 1))
        ratio = shown.choice.ratio
        large = self.large(shown.choice, look)
        return (shown, *boxes, self.row(shown), large, status, ratio, *self.ground(shown))

    def others(self, shown: Shown, label: int) -> tuple[Shown, str]:
        """Offer other parents."""
        pages = [*shown.pages]
        pages[label] += 1
        offered = [*shown.offered]
        offered[label] = self.session.offered(label, pages[label])
        shown = replace(shown, pages=(pages[0], pages[1]), offered=(offered[0], offered[1]))
        return shown, self.parents(shown, label)

    def move(self, shown: Shown, look: str, ratio: float) -> tuple[Shown, str, str]:
        """Move the ratio."""
        shown = replace(shown, choice=shown.choice.with_(ratio=min(1.0, max(0.0, float(ratio)))))
        return shown, self.large(shown.choice, look), ""

    def paint(self, shown: Shown, look: str, rows: Any) -> tuple[Shown, str, str, str]:
        """Say where a limb may be."""
        try:
            where = mask_of(rows)
        except ValueError as error:
            gr.Warning(f"What was painted is not understood: {error}.")
            where = None
        shown = replace(shown, choice=shown.choice.with_(where=where))
        return shown, self.row(shown), self.large(shown.choice, look), ""

    def improve(self, shown: Shown, climbed: Climbed | None, look: str) -> Iterator[tuple[Climbed | None, Any, str]]:
        """Climb from the picture that is shown, and show the best so far after each step."""
        if (reason := self.session.why_not_improved()) is not None:
            yield climbed, gr.skip(), f"<p>{markup.text(reason)}</p>"
            return
        yield climbed, gr.skip(), markup.progress(0, 1, "Preparing the judge ...")
        selector = self.session.selector
        judge = "the model's critic" if selector is None else selector.words
        begun: tuple[float, float | None] | None = None
        for at in self.session.improve(improved(shown, climbed)):
            begun = (at.score, at.seen) if begun is None else begun
            climbed = Climbed(shown.choice, at.code)
            words = f"Step {at.step} of {at.steps}. Score: {begun[0]:.2f} at the start, now {at.score:.2f}."
            if at.seen is not None and begun[1] is not None:
                words += f" Probability of '{self.session.sought}': {begun[1]:.0%} at the start, now {at.seen:.0%}."
            words += f" Judged by {judge}."
            large = self.large(improved(shown, climbed), look)
            yield climbed, large, markup.progress(at.step, at.steps, words)

    def keep(self, shown: Shown, climbed: Climbed | None, kept: Kept) -> tuple[Kept, str]:
        """Write a favourite."""
        choice = improved(shown, climbed)
        image = self.session.picture(choice)
        content = recipe(self.session, choice, image)
        try:
            path = keep(self.folder, content, choice, image)
        except OSError as error:
            gr.Warning(f"{self.folder} cannot be written: {error.strerror or error}.")
            return kept, self.favourites(kept)
        kept = (*(one for one in kept if one[0] != path), (path, image, content))
        return kept, self.favourites(kept)

    def favourites(self, kept: Kept) -> str:
        return markup.favourites(kept, path_shown(self.folder))


def _remove(file: str | None) -> None:
    """Remove a dropped file, which has been read: it may be a photograph of a visitor."""
    with suppress(OSError):
        Path(file or "").unlink()


def build(session: DemoSession, folder: Path) -> gr.Blocks:
    """Return the page of a session; favourites are written to `folder`."""
    own = Handlers(session, folder)
    first = own.first_look()
    names = session.classes
    with gr.Blocks(title=f"{names[0]} + {names[1]}", analytics_enabled=False) as page:
        state, climbed, kept = gr.State(first), gr.State(None), gr.State(())
        gr.HTML(_head(session), elem_classes="head", js_on_load=None)
        boxes, drops, others = [], [], []
        with gr.Row():
            for label, name in enumerate(names):
                with gr.Column(min_width=320):
                    gr.Markdown(f"### {'First' if label == 0 else 'Second'} parent: {markup.text(name)}")
                    parent = own.parents(first, label)
                    boxes.append(gr.HTML(parent, js_on_load=markup.PICK, elem_id=f"parents-{label}"))
                    others.append(gr.Button("Draw others", size="sm", elem_id=f"others-{label}"))
                    drops.append(
                        gr.File(
                            label=f"Your own {name}: drop a picture of any size",
                            file_types=[*SUFFIXES],
                            height=80,
                            elem_id=f"drop-{label}",
                            elem_classes="drop",
                        )
                    )
        row = gr.HTML(own.row(first), js_on_load=markup.PICK, elem_id="row")
        ratio = gr.Slider(
            0, 1, value=first.choice.ratio, step=0.01, label="Ratio", elem_id="ratio", info=_about_ratio(session)
        )
        with gr.Row():
            with gr.Column(min_width=320):
                large = gr.HTML(own.large(first.choice, PIXELS), js_on_load=markup.MARK, elem_id="large")
            with gr.Column(min_width=240):
                look = gr.Radio([PIXELS, SMOOTH], value=PIXELS, label="Look", elem_id="look")
                keeping = gr.Button("Keep", elem_id="keep")
                with gr.Row():
                    improve = gr.Button("Improve", variant="primary", min_width=100, elem_id="improve")
                    stop = gr.Button("Stop", min_width=100, elem_id="stop")
                gr.HTML(_about_improving(session), js_on_load=None, elem_classes="hint")
                status = gr.HTML("", js_on_load=None, elem_id="status")
            painter: gr.HTML | None = None
            if session.by_parts:
                with gr.Column(min_width=320):
                    gr.Markdown(f"### Where parts of the {markup.text(names[1])} may be")
                    painter = gr.HTML(
                        own.ground(first)[0]["value"],
                        html_template=markup.PAINTER,
                        js_on_load=markup.PAINT,
                        elem_id="paint",
                        rows=None,
                    )
                    gr.HTML(_about_mask(session), js_on_load=None, elem_classes="hint")
        gr.Markdown("### Favourites")
        opened = gr.UploadButton("Open a recipe (JSON)", file_types=[".json"], size="sm", elem_id="open")
        favourites = gr.HTML(own.favourites(()), js_on_load=None, elem_id="favourites")

        quick: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        newest: dict[str, Any] = quick | {"trigger_mode": "always_last"}
        climb = improve.click(own.improve, [state, climbed, look], [climbed, large, status], **quick)
        grounds = [] if painter is None else [painter]

        def of_parent(label: int) -> None:
            outputs: list[Any] = [state, boxes[label], row, large, status, *grounds]

            def pick(shown: Shown, look: str, event: gr.EventData) -> tuple[Any, ...]:
                return own.pick(shown, look, label, int(event.picked))

            def drop(shown: Shown, look: str, file: str | None) -> tuple[Any, ...]:
                return own.drop(shown, look, label, file)

            boxes[label].select(pick, [state, look], outputs, cancels=[climb], **quick)
            drops[label].upload(drop, [state, look, drops[label]], [*outputs, drops[label]], cancels=[climb], **quick)
            others[label].click(lambda shown: own.others(shown, label), [state], [state, boxes[label]], **quick)

        def jump(event: gr.EventData) -> float:
            return float(event.picked)

        for label in (0, 1):
            of_parent(label)
        ratio.input(own.move, [state, look, ratio], [state, large, status], cancels=[climb], **newest)
        row.select(jump, None, [ratio], **quick).then(
            own.move, [state, look, ratio], [state, large, status], cancels=[climb], **newest
        )

        def again(shown: Shown, climbed: Climbed | None, look: str) -> str:
            return own.large(improved(shown, climbed), look)

        look.input(again, [state, climbed, look], [large], **newest)
        stop.click(None, cancels=[climb], **quick)
        keeping.click(own.keep, [state, climbed, kept], [kept, favourites], **quick)
        everything: list[Any] = [state, *boxes, row, large, status, ratio, *grounds]
        opened.upload(own.open, [state, look, opened], everything, cancels=[climb], **quick)
        if painter is not None:

            def paint(shown: Shown, look: str, event: gr.EventData) -> tuple[Any, ...]:
                return own.paint(shown, look, event.rows)

            painter.input(paint, [state, look], [state, row, large, status], cancels=[climb], **newest)
    return page


def _head(session: DemoSession) -> str:
    first, second = session.classes
    mixing = "mixes by parts" if session.by_parts else "mixes codes linearly"
    return (
        f"<h1>{markup.text(first)} + {markup.text(second)}</h1>"
        f"<p>Model {markup.text(session.name)}, after {session.batches_done:,} batches; it {mixing}. "
        f"Parents are {markup.text(session.offer.words)}.</p>"
    )


def _about_ratio(session: DemoSession) -> str:
    first, second = session.classes
    parts = "; from 0.4 to 0.6 the mix is the chimera" if session.by_parts else ""
    return f"0 is the {first}, 1 the {second}{parts}"


def _about_improving(session: DemoSession) -> str:
    steps = session.guidance.search.steps
    if session.pretrained is not None:
        return f"<p>Improve climbs {steps} steps along the score of the judges that come with the model.</p>"
    if not session.can_improve:
        return "<p>Improve needs the run itself, which has a critic: say run=RUN.</p>"
    train = "<code>python -m pegasus_lightning.generate run=RUN search=guided score.judge=recogniser</code>"
    return (
        f"<p>Improve climbs {steps} steps along the score of a recogniser of these images if one is trained, else of "
        f"the model's critic. {train} trains one, which takes minutes.</p>"
    )


def _about_mask(session: DemoSession) -> str:
    first, second = map(markup.text, session.classes)
    return (
        f"<p>Paint on the {first}, as small as the model makes it. Parts of the {second} then grow from the likeliest "
        "painted place and are cut off outside the paint; encoding softens the border. Nothing painted: anywhere.</p>"
    )
