"""Layers of networks with shapes and parameter counts, recorded in one forward pass, and their diagrams."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _SpectralNorm

from pegasus_lightning.generate.figures.cards import ARROW, CARD, arrow, card
from pegasus_lightning.generate.figures.mixes import caption_lines, framed
from pegasus_lightning.utils.image_grid import ACCENT, FAINT, INK, MARGIN, PAD, blank_canvas, paint, render_text

ACTIVATIONS = (nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Softplus, nn.Identity)
TEXT, GLYPH = 180, 58  # pixels: widths of a card's text and drawing
LANE = GLYPH + TEXT + 3 * PAD
FRONT, TOP = (250, 217, 194), (226, 168, 128)
HEAD, NAME, DETAIL = 18, 13, 12  # pixels: sizes of text
LEGEND = "Under each layer: the shape of its output (channels x height x width, or its length) and its parameters."


@dataclass(frozen=True)
class Layer:
    """One layer of a network, or a step after it that is no module, such as a sigmoid.

    name: description after the part of the network that contains the layer: "mean: Linear 2048 -> 128".
    shape: output shape without the batch. parameters: their number, including those of merged layers.
    follows: indices of the layers whose outputs are the inputs, each before this layer; -1: the network's input;
        None: the previous layer alone. Two layers that follow one are branches; a layer that follows two joins them.
    """

    name: str
    shape: tuple[int, ...]
    parameters: int
    follows: tuple[int, ...] | None = None


@dataclass(frozen=True)
class NetworkPlan:
    """Layers in order of execution; `input_shape` is without the batch, `parameters` counts each parameter once.

    output: what the last layer's output is, in words; empty: not said.
    """

    name: str
    input_shape: tuple[int, ...]
    layers: tuple[Layer, ...]
    parameters: int
    output: str = ""

    def then(self, *layers: Layer, output: str = "") -> NetworkPlan:
        """Return the plan with further layers at its end, and with `output`."""
        return replace(self, layers=(*self.layers, *layers), output=output)

    def ends(self) -> tuple[int, ...]:
        """Return the indices of the layers that no other layer follows, such as an encoder's two heads."""
        before = (range(i - 1, i) if layer.follows is None else layer.follows for i, layer in enumerate(self.layers))
        followed = {index for indices in before for index in indices}
        return tuple(i for i in range(len(self.layers)) if i not in followed)


def plan(name: str, network: nn.Module, example: Tensor) -> NetworkPlan:
    """Return the layers that a forward pass of `example` (B, ...) executes in eval mode; the network is unchanged.

    Each leaf module is one layer, at its first call; normalisations and activations are merged into the layer they
    follow. Layers with the same input are branches, recorded in `follows`.
    """
    leaves = {module: path for path, module in network.named_modules() if _is_leaf(path, module)}
    lines: list[Layer] = []
    made_by = {_storage(example): -1}  # storage to the index of the layer that wrote it
    known = {id(example): -1}  # tensor to the same; a view shares its storage with the tensor that it is a view of
    kept: list[Tensor] = [example]  # kept alive, so that no storage is reused
    sources: dict[nn.Module, int] = {}

    def before(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        kept.append(inputs[0])
        # A tensor that no layer produced (a flattened copy) counts as the output of the previous layer.
        source = made_by.setdefault(_storage(inputs[0]), len(lines) - 1)
        sources[module] = known.setdefault(id(inputs[0]), source)

    def after(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        kept.append(output)
        path = leaves.pop(module, None)
        if path is not None:
            shape, parameters = tuple(output.shape[1:]), sum(p.numel() for p in module.parameters())
            last = lines[-1] if lines else None
            if _is_small(module) and last and sources[module] == len(lines) - 1 and last.shape == shape:
                name = f"{last.name} + {describe(module)}"
                lines[-1] = Layer(name, shape, last.parameters + parameters, last.follows)
            else:
                follows = None if sources[module] == len(lines) - 1 else (sources[module],)
                lines.append(Layer(_part(path) + describe(module), shape, parameters, follows))
        made_by[_storage(output)] = known[id(output)] = len(lines) - 1

    modes = {module: module.training for module in network.modules()}
    hooks = [module.register_forward_pre_hook(before) for module in leaves]
    hooks += [module.register_forward_hook(after) for module in leaves]
    try:
        network.eval()  # keeps the statistics of BatchNorm and the vectors of spectral norm
        with torch.no_grad():
            network(example)
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes.items():
            module.training = mode
    parameters = sum(p.numel() for p in network.parameters())
    return NetworkPlan(name, tuple(example.shape[1:]), tuple(lines), parameters)


def describe(module: nn.Module) -> str:
    """Return a short description of a layer: "Conv 4x4, stride 2, 3 -> 32"."""
    kind = parametrize.type_before_parametrizations(module).__name__
    if isinstance(module, _ConvNd):
        kernel, stride = "x".join(map(str, module.kernel_size)), "x".join(map(str, dict.fromkeys(module.stride)))
        words = "Transposed conv" if isinstance(module, _ConvTransposeNd) else "Conv"
        strided = "" if stride == "1" else f", stride {stride}"
        text = f"{words} {kernel}{strided}, {module.in_channels} -> {module.out_channels}"
    elif isinstance(module, nn.Linear):
        text = f"Linear {module.in_features} -> {module.out_features}"
    elif isinstance(module, nn.Upsample) and module.scale_factor is not None:
        text = f"Upsample x{module.scale_factor:g}, {module.mode}"
    else:
        named = {"Unflatten": "Reshape"}
        text = "BatchNorm" if isinstance(module, _BatchNorm) else named.get(kind, kind)
    if parametrize.is_parametrized(module):
        inside = module.parametrizations.modules()  # type: ignore[union-attr]
        text += " (spectral norm)" if any(isinstance(m, _SpectralNorm) for m in inside) else " (parametrized)"
    return text


def diagram_figure(plans: Sequence[NetworkPlan], *, title: str, footer: str = "") -> np.ndarray:
    """Draw networks side by side, each from its input down to its output and total, as (H, W, 3) uint8.

    One card a layer: a drawing of the output (a block scaled by the side of the maps and the number of channels; a bar
    for a vector), name, output shape and parameters. Branches are side by side. Raise ValueError if there is no plan,
    or a layer follows one that is not before it.
    """
    if not plans:
        raise ValueError("plans must contain at least one plan")
    texts = [text for each in plans for text in (each.name, *(layer.name for layer in each.layers))]
    lane = LANE - TEXT + max([TEXT, *(render_text(text, HEAD, 1).shape[1] for text in texts)])  # fits the longest word
    networks = [_network(each, lane) for each in plans]
    gap = 2 * MARGIN
    width = sum(each.shape[1] for each in networks) + gap * (len(networks) - 1)
    body = blank_canvas(max(each.shape[0] for each in networks) + 2 * MARGIN, width + 2 * MARGIN)
    left = MARGIN
    for each in networks:
        body[MARGIN : MARGIN + each.shape[0], left : left + each.shape[1]] = each
        left += each.shape[1] + gap
    return framed(body, title, caption_lines(LEGEND, footer))


def _is_leaf(path: str, module: nn.Module) -> bool:
    """Return whether a module has no submodules but parametrizations, and is not part of one."""
    below = {name for name, _ in module.named_children()}
    return below <= {"parametrizations"} and "parametrizations" not in path.split(".")


def _is_small(module: nn.Module) -> bool:
    return isinstance(module, (_BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.modules.dropout._DropoutNd, *ACTIVATIONS))


def _part(path: str) -> str:
    """Return the part of the network that contains a module: "mean: " for "mean.0", "" for a bare number."""
    part = path.partition(".")[0]
    return "" if not part or part.isdigit() else f"{part}: "


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _network(network: NetworkPlan, lane: int) -> np.ndarray:
    """Draw one network: its name, its cards, `lane` pixels wide, with arrows between them, its output and its total."""
    cards = [_card(Layer("input", network.input_shape, 0), "", lane)]  # index 0 is the input, here and below
    sources: list[tuple[int, ...]] = [()]
    rows, lanes = [0], [0]
    for i, layer in enumerate(network.layers):
        follows = (i - 1,) if layer.follows is None else layer.follows
        if not follows or not all(-1 <= index < i for index in follows):
            said = ", ".join(map(str, follows)) or "nothing"
            raise ValueError(f"{layer.name} of {network.name} must follow -1 or a layer before it, not {said}")
        above = tuple(index + 1 for index in follows)
        part_above = _part_of(network.layers[follows[0]]) if follows[0] >= 0 else ""
        cards.append(_card(layer, part_above, lane))
        rows.append(max(rows[parent] for parent in above) + 1)
        branches = len(above) == 1 and any(above[0] in others for others in sources)
        lanes.append(max(lanes) + 1 if branches else lanes[above[0]])
        sources.append(above)
    tallest = [max(cards[i].shape[0] for i, r in enumerate(rows) if r == row) for row in range(max(rows) + 1)]
    name = render_text(network.name, HEAD, lane)
    output = f"output: {network.output}" if network.output else ""
    totals = ((output, INK), (f"{network.parameters:,} parameters in all", ACCENT))
    below = [(render_text(text, NAME, lane), colour) for text, colour in totals if text]
    tops = name.shape[0] + PAD + np.cumsum([0, *(height + ARROW for height in tallest)])
    width = lane * (max(lanes) + 1) + MARGIN * max(lanes)
    canvas = blank_canvas(int(tops[-1]) - ARROW + PAD + sum(PAD + ink.shape[0] for ink, _ in below), width)
    middle = (width - lane) // 2  # of a card alone in its row
    step = lane + MARGIN
    lefts = [number * step if rows.count(row) > 1 else middle for row, number in zip(rows, lanes, strict=True)]
    for i, (picture, above) in enumerate(zip(cards, sources, strict=True)):
        top, left = int(tops[rows[i]]), lefts[i]
        canvas[top : top + picture.shape[0], left : left + lane] = picture
        for parent in above:
            start = (lefts[parent] + lane // 2, int(tops[rows[parent]]) + cards[parent].shape[0])
            arrow(canvas, start, (left + lane // 2, top))
    paint(canvas, name, 0, (width - name.shape[1]) // 2, INK)
    top = int(tops[-1]) - ARROW + 2 * PAD
    for ink, colour in below:
        paint(canvas, ink, top, (width - ink.shape[1]) // 2, colour)
        top += ink.shape[0] + PAD
    return canvas


def _part_of(layer: Layer) -> str:
    return layer.name.rpartition(": ")[0]


def _card(layer: Layer, part_above: str, lane: int) -> np.ndarray:
    """Draw a panel `lane` pixels wide: the output on the left, the text on the right."""
    part, words = _part_of(layer), layer.name.rpartition(": ")[2]
    new = part if part != part_above else ""  # only on the first card of a part
    sign = " (" if " (" in words else " + "
    first = words.partition(sign)[0]
    words = words.replace(sign, f"\n{sign[1:]}", 1)  # break lines between phrases
    room = lane - LANE + TEXT
    if render_text(first, NAME, 10 * room).shape[1] > room:
        words = words.replace(", ", ",\n", 1)
    shape = " x ".join(map(str, layer.shape))
    counted = f"\n{layer.parameters:,} parameters" if layer.parameters else ""
    texts = [(new, DETAIL, ACCENT), (words, NAME, INK), (shape + counted, DETAIL, FAINT)]
    canvas = card(texts, lane, left=GLYPH + 2 * PAD, height=GLYPH + 2 * PAD)
    middle = (canvas.shape[0] - GLYPH) // 2
    canvas[middle : middle + GLYPH, PAD : PAD + GLYPH] = _glyph(layer.shape)
    return canvas


def _glyph(shape: tuple[int, ...]) -> np.ndarray:
    """Draw (GLYPH, GLYPH, 3): for maps (C, H, W) a block, front sqrt(H) by sqrt(W), depth log C; else a bar."""
    image = Image.new("RGB", (GLYPH, GLYPH), CARD)
    pen = ImageDraw.Draw(image)
    if len(shape) == 3:
        tall, wide = (min(max(round(6.2 * math.sqrt(side)), 5), 36) for side in shape[1:])
        depth = min(round(2.2 * math.log2(max(shape[0], 1))), GLYPH - 4 - max(tall, wide))
    else:
        tall, wide, depth = min(round(5 * math.log2(max(math.prod(shape), 2))), GLYPH - 4), 8, 0
    left, top = (GLYPH - wide - depth) // 2, (GLYPH - tall + depth) // 2
    right, bottom = left + wide, top + tall
    if depth:
        back = [(left + depth, top - depth), (right + depth, top - depth), (right + depth, bottom - depth)]
        pen.polygon([(left, top), back[0], back[1], (right, top)], TOP, INK)
        pen.polygon([(right, top), back[1], back[2], (right, bottom)], TOP, INK)
    pen.rectangle([left, top, right, bottom], FRONT, INK)
    return np.asarray(image)
