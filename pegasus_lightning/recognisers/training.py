"""Training of recognisers on all kinds of a source, and their calibration on held-out images."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pegasus_lightning.data.augmentation import NUMBERS, augment
from pegasus_lightning.data.kinds import Kinds
from pegasus_lightning.recognisers.network import Recogniser, class_weights, predict
from pegasus_lightning.recognisers.winged import GUIDES
from pegasus_lightning.utils.bars import bar
from pegasus_lightning.utils.randomness import Stream, generator
from pegasus_lightning.utils.tensors import to_float

Watch = Callable[[int, int, Recogniser, Tensor], object]
INPUT_SAMPLE = 5000  # images that the input statistics are computed on


@dataclass(frozen=True)
class RecogniserConfig:
    """Settings of a recogniser and its training."""

    architecture: str  # a key of ARCHITECTURES
    seed: int = 0  # of the weights and of every draw in training
    epochs: int = 7  # number of times that each image of the two classes is used
    negatives: float = 2.0  # images of other kinds in an epoch, as a multiple of those; they take turns
    least: int = 40_000  # least and most training images, with repeats; they override `epochs`
    most: int = 250_000
    batch_size: int = 250
    matrix_lr: float = 0.085  # learning rate of convolutions, relative to the weights' norm; falls linearly to 0
    momentum: float = 0.85
    lr: float = 0.01  # learning rate of biases and heads; falls linearly to 0
    smoothing: float = 0.2  # label smoothing
    shift: int = 2  # largest random shift in pixels, with reflection at the edge
    held_out: float = 0.05  # share of the images used for calibration
    half: int | None = None  # 0 or 1: use only this half of the images (`half_of`); None: use all
    augmentation: tuple[str, ...] = ()  # operations of `augmentation.OPERATIONS`, in addition to mirroring and shifts
    adversarial: float = 0.0  # largest change of a pixel in adversarial training (`fgsm`); 0: none
    third: int | None = None  # of the compositions that a winged judge learns from (`winged`); None: no winged judge


def standard_recipe(architecture: str, seed: int = 0) -> RecogniserConfig:
    """Return the default recipe: under 15 minutes on one CPU core for the ten classes of CIFAR-10."""
    return RecogniserConfig(architecture, seed)


def guiding_recipe(architecture: str, seed: int = 0) -> RecogniserConfig:
    """Return the recipe of a recogniser that guides a search, from the first half of the images.

    Augmentation and weak adversarial training make images optimised for one network transfer better to others (Springer
    et al. 2021, arXiv 2106.02105, "A little robustness goes a long way").
    """
    policy = ("brightness", "saturation", "contrast", "translation", "cutout")
    return RecogniserConfig(architecture, seed, epochs=10, half=0, augmentation=policy, adversarial=2 / 255)


def independent_recipe(architecture: str, seed: int = 0) -> RecogniserConfig:
    """Return the recipe of a recogniser that knows only the half of the images that `guiding_recipe` does not use."""
    return RecogniserConfig(architecture, seed, epochs=10, half=1)


def winged_recipe(architecture: str, third: int, seed: int = 0) -> RecogniserConfig:
    """Return the recipe of a winged judge (`winged_kinds`) that knows one third of the compositions' parts.

    Those that guide are trained against small changes of pixels too, as `guiding_recipe` does it. Cutout, which would
    hide the limb, and large shifts are left out.
    """
    policy = ("brightness", "saturation", "contrast")
    adversarial = 1 / 255 if third == GUIDES else 0.0
    return RecogniserConfig(
        architecture, seed, epochs=10, most=100_000, augmentation=policy, adversarial=adversarial, third=third
    )


def orthogonalised(matrix: Tensor, steps: int = 5) -> Tensor:
    """Return (n, m) `matrix` made approximately semi-orthogonal: its singular values become about 1 (0.7 to 1.2).

    The quintic Newton-Schulz iteration of Jordan et al. 2024 (Muon), X <- a X + (b A + c A^2) X with A = X X^T. Its
    coefficients raise small singular values fast rather than converge to 1.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonalised updates: K. Jordan et al. 2024, "Muon: an optimizer for hidden layers".

    For convolutions followed by a norm. A filter bank is an (outputs, rest) matrix, kept at the norm sqrt(outputs), so
    `lr` is about the relative step. (torch.optim.Muon accepts only matrices.)
    """

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, momentum: float) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for weight in group["params"]:
                state = self.state[weight]
                average = state.setdefault("average", torch.zeros_like(weight))
                average.mul_(group["momentum"]).add_(weight.grad)
                direction = weight.grad + group["momentum"] * average  # Nesterov
                weight.mul_(len(weight) ** 0.5 / weight.norm())
                weight.sub_(orthogonalised(direction.flatten(1)).reshape(weight.shape), alpha=group["lr"])


def training_order(kinds: Kinds, config: RecogniserConfig) -> Tensor:
    """Return the order of the training images, indices (S,).

    An epoch is a shuffle of all images of the two classes and a share of the others, which the epochs use in turn.
    """
    shows = kinds.targets.amax(1) > 0
    wanted, rest = torch.nonzero(shows).flatten(), torch.nonzero(~shows).flatten()
    share = min(len(rest), round(config.negatives * len(wanted)))
    size = len(wanted) + share
    total = min(max(config.epochs * size, config.least), config.most)
    epochs = -(-total // size)
    source = generator(config.seed, Stream.ORDER)
    rounds = -(-epochs * share // max(1, len(rest)))
    others = [rest[torch.randperm(len(rest), generator=source)] for _ in range(rounds)]
    shares = torch.cat([*others, rest[:0]])[: epochs * share].view(epochs, share)
    order = [torch.cat([wanted, shares[epoch]]) for epoch in range(epochs)]
    return torch.cat([images[torch.randperm(size, generator=source)] for images in order])[:total]


def hold_out(kinds: Kinds, share: float, seed: int) -> tuple[Kinds, Kinds]:
    """Return (held out, kept) images. A share of each kind is held out, and of the two classes at least one image."""
    shuffled = torch.randperm(len(kinds), generator=generator(seed, Stream.SPLIT))
    held = torch.zeros(len(kinds), dtype=torch.bool)
    for kind in range(len(kinds.names)):
        own = shuffled[kinds.kinds[shuffled] == kind]
        held[own[: max(int(kind < 2), round(share * len(own)))]] = True
    return kinds.take(shuffled[held[shuffled]]), kinds.take(shuffled[~held[shuffled]])


def half_of(kinds: Kinds, half: int) -> Kinds:
    """Return the first (0) or second (1) half of the images of each kind, in a fixed random split."""
    shuffled = torch.randperm(len(kinds), generator=generator(0, Stream.SPLIT, 1))
    own = [shuffled[kinds.kinds[shuffled] == kind] for kind in range(len(kinds.names))]
    parts = [part[: len(part) // 2] if half == 0 else part[len(part) // 2 :] for part in own]
    return kinds.take(torch.cat(parts).sort().values)


def learned_from(kinds: Kinds, config: RecogniserConfig) -> Kinds:
    """Return the images that a recogniser is trained and calibrated on."""
    return kinds if config.half is None else half_of(kinds, config.half)


def fgsm(images: Tensor, size: float, loss: Callable[[Tensor], Tensor], source: torch.Generator) -> Tensor:
    """Return images (B, 3, H, W) changed by at most `size` a pixel to raise `loss(images)`.

    One step along the sign of the gradient, 1.25 * size long, from a random start drawn on the CPU by `source` (Wong et
    al. 2020, arXiv 2001.03994, algorithm 3).
    """
    change = (2 * torch.rand(images.shape, generator=source) - 1).to(images) * size
    change = change.requires_grad_(True)
    (slope,) = torch.autograd.grad(loss(images + change), change)
    return images + (change.detach() + 1.25 * size * slope.sign()).clamp(-size, size)


def random_shift(images: Tensor, shift: int, source: torch.Generator) -> Tensor:
    """Return each image moved by up to `shift` pixels in both axes, reflected at the edge; channels_last."""
    count, _, height, width = images.shape
    moves = torch.randint(0, 2 * shift + 1, (2, count), generator=source)
    rows = (torch.arange(height) + moves[0, :, None]).to(images.device)
    columns = (torch.arange(width) + moves[1, :, None]).to(images.device)
    padded = F.pad(images, [shift] * 4, mode="reflect").permute(0, 2, 3, 1)
    index = torch.arange(count, device=images.device)[:, None, None]
    return padded[index, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def train_recogniser(
    config: RecogniserConfig,
    kinds: Kinds,
    *,
    held: Kinds | None = None,
    device: torch.device | str = "cpu",
    watch: Watch | None = None,
) -> Recogniser:
    """Return a trained recogniser, frozen and calibrated on `held`, or else on images held out of `kinds`.

    The loss, a mean over the batch, is the sum of the binary cross-entropies of the two classes and the cross-entropy
    of the kind, which improves the features. `watch` is called after each step with the step, the number of steps, the
    model and the loss.
    """
    kept = learned_from(kinds, config)
    if held is None:
        held, kept = hold_out(kept, config.held_out, config.seed)
    model = Recogniser(config.architecture, kinds.classes, kinds=len(kinds.names), seed=config.seed)
    model.fit_input(to_float(kept.images[:INPUT_SAMPLE]))
    model = model.to(device).to(memory_format=torch.channels_last)
    trained = [p for p in model.parameters() if p.requires_grad]
    muon = Muon([p for p in trained if p.ndim == 4], config.matrix_lr, config.momentum)
    adam = torch.optim.Adam([p for p in trained if p.ndim != 4], lr=config.lr, betas=(0.9, 0.95))
    order = training_order(kept, config)
    # The first mirroring is random, later ones alternate (Jordan 2024, arXiv 2404.00498, sec. 3.6).
    sides = torch.rand(len(kept), generator=generator(config.seed, Stream.FLIPS)) < 0.5
    steps = len(order) // config.batch_size
    images, labels, targets = (t.to(device) for t in (kept.images, kept.kinds, kept.targets))
    model.train()
    for step in bar(range(steps), desc="recogniser", unit="batch"):
        batch = order[step * config.batch_size : (step + 1) * config.batch_size]
        mirrored = sides[batch].to(device)
        sides[batch] = ~sides[batch]
        batch = batch.to(device)
        seen = to_float(images[batch])
        seen = torch.where(mirrored[:, None, None, None], seen.flip(3), seen)
        seen = random_shift(seen, config.shift, generator(config.seed, Stream.NOISE, step))
        if config.augmentation:
            numbers = torch.rand(len(seen), NUMBERS, generator=generator(config.seed, Stream.AUGMENTATION, step))
            seen = augment(seen, numbers.to(device), config.augmentation)
        truth = targets[batch] * (1 - config.smoothing / 2) + config.smoothing / 4
        of_images = partial(_loss, model, truth=truth, labels=labels[batch], smoothing=config.smoothing)
        if config.adversarial:
            seen = fgsm(seen, config.adversarial, of_images, generator(config.seed, Stream.MIXING, step))
        loss = of_images(seen)
        model.zero_grad()
        loss.backward()
        for optimizer, peak in ((muon, config.matrix_lr), (adam, config.lr)):
            optimizer.param_groups[0]["lr"] = peak * (1 - step / steps)
            optimizer.step()
        if watch is not None:
            watch(step, steps, model, loss)
    return calibrate(model.freeze(), held)


def _loss(model: Recogniser, images: Tensor, *, truth: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    features = model.features(images)
    loss = F.binary_cross_entropy_with_logits(model.head(features), truth, reduction="sum") / len(images)
    return loss + F.cross_entropy(model.kinds_head(features), labels, label_smoothing=smoothing)


def calibrate(model: Recogniser, held: Kinds) -> Recogniser:
    """Set temperature and offset of each output to minimise the cross-entropy on `held`.

    Guo et al. 2017 (arXiv 1706.04599, sec. 4.2), separately for each output, with equal weight for the images with and
    without the class, and with an offset, because their proportion in training differs. The targets are Platt's (1999,
    sec. 2.2), (n + 1) / (n + 2) and 1 / (n + 2) for n images: with 1 and 0 outputs without errors would become certain.
    """
    there = held.targets.double()
    raw = predict(model, held.images, model.mean.device).double()
    raw = (raw - model.offset.cpu()) * model.temperature.cpu()
    truth = there * (1 - 1 / (there.sum(0) + 2)) + (1 - there) / ((1 - there).sum(0) + 2)
    log_slope = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    offset = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_slope, offset], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        fitted = raw * log_slope.exp() + offset
        loss = F.binary_cross_entropy_with_logits(fitted, truth, weight=class_weights(there), reduction="sum")
        loss.backward()
        return loss

    optimizer.step(closure)
    model.temperature.copy_((-log_slope).exp().detach())
    model.offset.copy_(offset.detach())
    return model
