"""Layers of networks with shapes and parameter counts, recorded in one forward pass, and their diagrams."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from pegasus_lightning.generate.figures.cards import ARROW, CARD, arrow, card
from pegasus_lightning.generate.figures.mixes import caption_lines, framed
from pegasus_lightning.utils.image_grid import ACCENT, FAINT, INK, MARGIN, PAD, blank_canvas, paint, render_text

ACTIVATIONS = (nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Softplus, nn.Identity)
SUM = "Sum"
FUNCTIONS = {"add": SUM, "__add__": SUM, "__radd__": SUM, "add_": SUM, "one_hot": "One place, the largest"}
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
    inputs: names of the inputs, which have one shape. Layers follow -1, the first, -2, the second, and so on.
    """

    name: str
    input_shape: tuple[int, ...]
    layers: tuple[Layer, ...]
    parameters: int
    output: str = ""
    inputs: tuple[str, ...] = ("input",)

    def then(self, *layers: Layer, output: str = "") -> NetworkPlan:
        """Return the plan with further layers at its end, and with `output`."""
        return replace(self, layers=(*self.layers, *layers), output=output)

    def ends(self) -> tuple[int, ...]:
        """Return the indices of the layers that no other layer follows, such as an encoder's two heads."""
        followed = {index for i in range(len(self.layers)) for index in self.sources(i)}
        return tuple(i for i in range(len(self.layers)) if i not in followed)

    def sources(self, index: int) -> tuple[int, ...]:
        """Return what a layer follows, with None replaced by the layer before it."""
        follows = self.layers[index].follows
        return (index - 1,) if follows is None else follows


def plan(
    name: str,
    network: nn.Module,
    *examples: Tensor,
    inputs: tuple[str, ...] = ("input",),
    blocks: Mapping[type[nn.Module], str] | None = None,
) -> NetworkPlan:
    """Return the layers that a forward pass of `examples` (B, ...) executes in eval mode; the network is unchanged.

    Each leaf module is one layer, at its first call or, without parameters, at each. Normalisations and activations
    are merged into the layer they follow, unless another layer reads its output, too. Sums of two layers' maps and the
    choice of one place, which are functions, are layers as well. Reshaping that only undoes a flattening is left out. A
    layer `follows` those whose outputs it reads.

    blocks: modules that are one layer as a whole, by type, with their descriptions.
    """
    described = blocks or {}
    trace = _Trace(examples)
    hooks = []
    for path, module in network.named_modules():
        inside = any(path.startswith(f"{other}.") for other, m in network.named_modules() if type(m) in described)
        if not inside and (type(module) in described or _is_leaf(path, module)):
            text = _part(path) + (described.get(type(module)) or describe(module))
            hooks += [module.register_forward_pre_hook(trace.enter)]
            hooks += [module.register_forward_hook(partial(trace.leave, text))]
    modes = {module: module.training for module in network.modules()}
    try:
        network.eval()  # keeps the statistics of BatchNorm and the vectors of spectral norm
        with torch.no_grad(), trace:
            network(*examples)
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes.items():
            module.training = mode
    parameters = sum(p.numel() for p in network.parameters())
    return NetworkPlan(name, tuple(examples[0].shape[1:]), tuple(trace.layers()), parameters, inputs=inputs)


@dataclass
class _Node:
    """A layer before layers are merged. `sources` are indices of nodes; -1 and below are inputs."""

    layer: Layer
    sources: tuple[int, ...]
    module: nn.Module | None  # None: a function


class _Trace(TorchFunctionMode):
    """Which layer's output each tensor of a forward pass comes from."""

    def __init__(self, examples: Sequence[Tensor]) -> None:
        super().__init__()
        self.nodes: list[_Node] = []
        self.numbers: dict[nn.Module, int] = {}  # of the node of each module
        self.origins: dict[int, tuple[int, ...]] = {id(example): (-1 - i,) for i, example in enumerate(examples)}
        self.kept: list[Tensor] = [*examples]  # kept alive, so that no id is used again
        self.inside = 0  # depth of modules that are one layer
        self.found: list[tuple[int, ...]] = []  # sources of the modules that are being run

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        sources = self.of(tree_leaves((args, kwargs or {})))
        result = func(*args, **(kwargs or {}))
        if self.inside or not sources:
            return result
        name = FUNCTIONS.get(getattr(func, "__name__", ""))
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if name and outputs and outputs[0].ndim > 1 and (len(sources) > 1 or name != SUM):
            self.nodes.append(_Node(Layer(name, tuple(outputs[0].shape[1:]), 0), sources, None))
            sources = (len(self.nodes) - 1,)
        self.note(outputs, sources)
        return result

    def of(self, tensors: Sequence[Any]) -> tuple[int, ...]:
        """Return the sources of tensors, each once."""
        return tuple(dict.fromkeys(s for tensor in tensors for s in self.origins.get(id(tensor), ())))

    def note(self, tensors: Sequence[Tensor], sources: tuple[int, ...]) -> None:
        self.kept += tensors
        self.origins |= {id(tensor): sources for tensor in tensors}

    def enter(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.inside += 1
        self.found.append(self.of(inputs))

    def leave(self, text: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.inside -= 1
        sources = self.found.pop()
        parameters = sum(p.numel() for p in module.parameters())
        if module not in self.numbers or not parameters:
            self.numbers[module] = len(self.nodes)
            self.nodes.append(_Node(Layer(text, tuple(output.shape[1:]), parameters), sources, module))
        self.note([output], (self.numbers[module],))

    def layers(self) -> list[Layer]:
        """Return the layers, small ones merged into those before them."""
        readers = [source for node in self.nodes for source in node.sources]
        into: dict[int, int] = {}  # node to the layer that it is part of
        kept: list[Layer] = []

        def layer_of(source: int) -> int:
            return into.get(source, source)  # inputs are below 0

        for number, node in enumerate(self.nodes):
            before = node.sources[0] if len(node.sources) == 1 else None
            if before is not None and before >= 0:
                if self._is_idle(number):
                    into[number] = layer_of(before)
                    continue
                layer = kept[layer_of(before)]
                small = node.module is not None and _is_small(node.module) and layer.shape == node.layer.shape
                if small and readers.count(before) == 1 and layer_of(before) == len(kept) - 1:
                    name = f"{layer.name} + {node.layer.name.rpartition(': ')[2]}"
                    kept[-1] = replace(layer, name=name, parameters=layer.parameters + node.layer.parameters)
                    into[number] = len(kept) - 1
                    continue
            sources = tuple(dict.fromkeys(map(layer_of, node.sources)))
            into[number] = len(kept)
            # What comes from nothing known counts as the output of the previous layer.
            follows = None if sources in ((), (len(kept) - 1,)) else sources
            kept.append(replace(node.layer, follows=follows))
        return kept

    def _is_idle(self, number: int) -> bool:
        """Return whether a node only restores the shape before a flattening, or is a flattening undone by all."""
        node = self.nodes[number]
        if len(node.sources) != 1 or node.sources[0] < 0:
            return False
        if isinstance(node.module, nn.Flatten):
            readers = [i for i, other in enumerate(self.nodes) if number in other.sources]
            return bool(readers) and all(self._is_idle(i) for i in readers)
        before = self.nodes[node.sources[0]]
        if not isinstance(node.module, nn.Unflatten):
            return False
        if isinstance(before.module, nn.Flatten) and len(before.sources) == 1 and before.sources[0] >= 0:
            before = self.nodes[before.sources[0]]
        return before.layer.shape == node.layer.shape


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


@dataclass(frozen=True)
class _Layout:
    """Where the cards of a network are: their row, and the left edge of each, in pixels."""

    rows: list[int]
    lefts: list[int]
    width: int


def _lay_out(sources: Sequence[tuple[int, ...]], lane: int) -> _Layout:
    """Place cards in rows and lanes: below what they read, branches side by side, a lane used again when it is free.

    A card alone in its row, with no arrow of another lane beside it, is in the middle.
    """
    count = len(sources)
    rows, lanes = [0] * count, [0] * count
    for i in range(count):
        rows[i] = max((rows[parent] + 1 for parent in sources[i]), default=0)
    # The last row that the arrows of a card pass.
    ends = [max([rows[i], *(rows[j] - 1 for j in range(count) if i in sources[j])]) for i in range(count)]
    continued: set[int] = set()  # cards with a card below them in their lane
    for i in range(count):
        if len(sources[i]) > 1:
            lanes[i] = min(lanes[parent] for parent in sources[i])
        elif sources[i] and sources[i][0] not in continued:
            lanes[i] = lanes[sources[i][0]]
            continued.add(sources[i][0])
        else:
            taken = {lanes[j] for j in range(i) if rows[j] <= ends[i] and rows[i] <= ends[j]}
            lanes[i] = next(number for number in range(count) if number not in taken)
    width = lane * (max(lanes) + 1) + MARGIN * max(lanes)
    lefts = []
    for i, row in enumerate(rows):
        alone = not any(j != i and rows[j] <= row <= ends[j] and lanes[j] != lanes[i] for j in range(count))
        lefts.append((width - lane) // 2 if alone else lanes[i] * (lane + MARGIN))
    beside = MARGIN if any(end > row for end, row in zip(ends, rows, strict=True)) else 0  # room for arrows
    return _Layout(rows, [beside + left for left in lefts], width + 2 * beside)


def _network(network: NetworkPlan, lane: int) -> np.ndarray:
    """Draw one network: its name, its cards, `lane` pixels wide, with arrows between them, its output and its total."""
    first = len(network.inputs)  # number of the first layer's card; before it are the inputs
    cards = [_card(Layer(name, network.input_shape, 0), "", lane) for name in network.inputs]
    sources: list[tuple[int, ...]] = [()] * first
    parts = [""] * first  # of the network, that each card is in
    for i, layer in enumerate(network.layers):
        follows = network.sources(i)
        if not follows or not all(-first <= index < i for index in follows):
            said = ", ".join(map(str, follows)) or "nothing"
            raise ValueError(f"{layer.name} of {network.name} must follow -1 or a layer before it, not {said}")
        sources.append(tuple(index + first if index >= 0 else -1 - index for index in follows))
        part_above = parts[sources[-1][0]]
        parts.append(_part_of(layer) or part_above)
        cards.append(_card(layer, part_above, lane))
    place = _lay_out(sources, lane)
    rows, lefts, width = place.rows, place.lefts, place.width
    tallest = [max(cards[i].shape[0] for i, r in enumerate(rows) if r == row) for row in range(max(rows) + 1)]
    name = render_text(network.name, HEAD, width, "center")
    output = f"output: {network.output}" if network.output else ""
    totals = ((output, INK), (f"{network.parameters:,} parameters in all", ACCENT))
    below = [(render_text(text, NAME, lane, "center"), colour) for text, colour in totals if text]
    tops = name.shape[0] + PAD + np.cumsum([0, *(height + ARROW for height in tallest)])
    canvas = blank_canvas(int(tops[-1]) - ARROW + PAD + sum(PAD + ink.shape[0] for ink, _ in below), width)
    for i, (picture, above) in enumerate(zip(cards, sources, strict=True)):
        top, left = int(tops[rows[i]]), lefts[i]
        canvas[top : top + picture.shape[0], left : left + lane] = picture
        for parent in above:
            x, y = lefts[parent] + lane // 2, int(tops[rows[parent]]) + cards[parent].shape[0]
            passed = [j for j, row in enumerate(rows) if rows[parent] < row < rows[i]]
            if any(lefts[j] <= x <= lefts[j] + lane for j in passed):  # a skip connection: around them, on the right
                beside = max(lefts[j] + lane for j in passed if lefts[j] <= x <= lefts[j] + lane) + MARGIN // 2
                turn = int(tops[rows[parent] + 1]) - ARROW // 2 - 2  # where `arrow` turns to the next row
                canvas[y:turn, x - 1 : x + 1] = INK
                canvas[turn : turn + 2, x - 1 : beside + 1] = INK
                x, y = beside, turn
            arrow(canvas, (x, y), (left + lane // 2, top))
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
    new = part.replace("log_variance", "log-variance").replace("_", " ") if part != part_above else ""  # on the first
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
