"""Search for the best mixes by a given score: among many candidates (`best_of`), or by gradient ascent on codes
(`guided`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pegasus_lightning.generate.mixing import Mixer, Mixes, Recipes
from pegasus_lightning.generate.scores import Score, total
from pegasus_lightning.utils.bars import bar
from pegasus_lightning.utils.tensors import BATCH


def best_of(
    make: Mixer | Callable[[Recipes], Mixes], candidates: Recipes, score: Score, *, batch_size: int = BATCH
) -> Tensor:
    """Return the score of every candidate, (N,) on the CPU. A progress bar appears on a terminal after two seconds.

    Only the scores are kept: a hundred thousand candidates need the memory of one batch.
    """
    scores = []
    batches = torch.arange(len(candidates)).split(batch_size)
    shown = bar(total=len(candidates), desc="searching", unit="mix")
    with torch.no_grad(), shown:
        for batch in batches:
            scores.append(total(score(make(candidates.take(batch)))).float().cpu())
            shown.update(len(batch))
    return torch.cat(scores)


def keep_best(scores: Tensor, candidates: Recipes, count: int, *, most_per_parent: int | None = None) -> Tensor:
    """Return the indices of the `count` best candidates, best first, no parent in more than `most_per_parent`.

    A pair is taken once. If fewer than `count` remain, the best of the others are added. Of equal scores the earlier
    candidate comes first. NaN counts as the lowest score.
    """
    lowest = torch.where(scores.isnan(), -torch.inf, scores)
    order = torch.sort(lowest, descending=True, stable=True).indices.tolist()
    first, second = candidates.first.tolist(), candidates.second.tolist()
    kept: list[int] = []
    left: list[int] = []
    pairs: set[tuple[int, int]] = set()
    used: dict[tuple[int, int], int] = {}
    for index in order:
        if len(kept) == count:
            break
        pair, parents = (first[index], second[index]), ((0, first[index]), (1, second[index]))
        worn = most_per_parent is not None and any(used.get(parent, 0) >= most_per_parent for parent in parents)
        if pair in pairs or worn:
            left.append(index)
            continue
        kept.append(index)
        pairs.add(pair)
        for parent in parents:
            used[parent] = used.get(parent, 0) + 1
    chosen = {*kept, *left[: count - len(kept)]}
    return torch.tensor([index for index in order if index in chosen], dtype=torch.int64)


@dataclass(frozen=True)
class Ascent:
    """Result of `guided`."""

    mixes: Mixes  # for each candidate, the mix with the highest objective of all steps, start included
    objective: Tensor  # objective of `mixes`, (B,)
    trace: Tensor  # score, a part of the objective, at every step, (steps + 1, B); row 0 is the start
    frames: Tensor  # images (K, F, 3, 32, 32) of the first F candidates at the K steps in `steps`
    steps: list[int]


class Step(NamedTuple):
    """A step of `ascend`. Nothing in it has a gradient."""

    images: Tensor  # (B, 3, 32, 32), at this step
    score: Tensor  # (B,), likewise
    best_codes: Tensor  # (B, latent_dim), those with the highest objective so far
    best: Tensor  # (B,), that objective


def ascend(
    start: Mixes,
    decode: Callable[[Tensor], Tensor],
    score: Score,
    *,
    critic: Callable[[Tensor], Tensor] | None = None,
    prior: tuple[Tensor, Tensor] | None = None,
    steps: int = 80,
    lr: float = 0.06,
    prior_weight: float = 10.0,
    start_weight: float = 0.5,
    critic_weight: float = 0.3,
) -> Iterator[Step]:
    """Improve mixes by gradient ascent (Adam) on their codes: yield the start and each of the steps.

    objective = score + critic_weight * critic(image)
                - prior_weight * max(0, mean(((z - mean) / deviation)^2) - 1) / 2
                - start_weight * mean(((z - start) / deviation)^2) / 2        means over latents

    The third term is how much less likely the code is, in nats a latent, than an average sample of the prior. (The
    full log density of the prior would draw every code to the most likely image.) The last term keeps the mix similar
    to its parents; without it every mix drifts to the highest score.

    Args:
        start: mixes to improve, codes (B, latent_dim).
        decode: codes to images in [0, 1], with gradients.
        score: named terms (B,) of mixes, with gradients.
        critic: images to (B,), higher for more real; None: left out.
        prior: (mean, deviation) of codes, each (latent_dim,); None: the standard normal.
        steps, lr: steps and learning rate of Adam.
    """
    mean, deviation = prior if prior is not None else (torch.zeros(()), torch.ones(()))
    mean, deviation = mean.to(start.codes), deviation.to(start.codes)
    codes = start.codes.detach().clone().requires_grad_(True)
    optimizer = torch.optim.Adam([codes], lr=lr, betas=(0.9, 0.99))
    best_codes, best = codes.detach().clone(), torch.full((len(codes),), -torch.inf, device=codes.device)
    for step in range(steps + 1):
        with torch.enable_grad():
            mixes = dataclasses.replace(start, codes=codes, images=decode(codes))
            value = total(score(mixes))
            beyond = (((codes - mean) / deviation).square().mean(1) - 1).clamp_min(0)
            away = ((codes - start.codes) / deviation).square().mean(1)
            objective = value - prior_weight * beyond / 2 - start_weight * away / 2
            if critic is not None and critic_weight:
                objective = objective + critic_weight * critic(mixes.images)
            if step < steps:
                (codes.grad,) = torch.autograd.grad(-objective.sum(), codes)
        better = objective.detach() > best
        best = torch.where(better, objective.detach(), best)
        best_codes = torch.where(better[:, None], codes.detach(), best_codes)
        yield Step(mixes.images.detach(), value.detach(), best_codes, best)
        if step < steps:
            optimizer.step()


def guided(
    start: Mixes,
    decode: Callable[[Tensor], Tensor],
    score: Score,
    *,
    steps: int = 80,
    frames: int = 9,
    recorded: int = 64,
    **options: Any,
) -> Ascent:
    """Improve mixes by `ascend`, which has the other options.

    The code with the highest objective of all steps, start included, is returned for each candidate.

    Args:
        frames: number of images to keep of each recorded candidate, at least 2, first and last step included.
        recorded: number of candidates whose images are kept.
    """
    shown = sorted({round(step) for step in torch.linspace(0, steps, max(2, min(frames, steps + 1))).tolist()})
    trace: list[Tensor] = []
    strip: list[Tensor] = []
    made = ascend(start, decode, score, steps=steps, **options)
    for number, step in enumerate(bar(made, total=steps + 1, desc="ascending", unit="step")):
        trace.append(step.score)
        if number in shown:
            strip.append(step.images[:recorded].clone())
    with torch.no_grad():
        final = dataclasses.replace(start, codes=step.best_codes, images=decode(step.best_codes))
    return Ascent(final, step.best, torch.stack(trace).cpu(), torch.stack(strip), shown)
