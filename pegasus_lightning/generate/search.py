"""Searching for the best mix: among many (`best_of`), and by gradient ascent on the code (`guided`).

The score is handed in; nothing here knows who judges.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from pegasus_lightning.generate.mixing import Mixer, Mixes, Recipes
from pegasus_lightning.generate.scores import Score, total
from pegasus_lightning.utils.tensors import BATCH


def best_of(
    make: Mixer | Callable[[Recipes], Mixes], candidates: Recipes, score: Score, *, batch_size: int = BATCH
) -> Tensor:
    """The score of every candidate, (N,) on the CPU. A progress bar shows on a terminal after two seconds.

    Nothing but the scores is kept, so a hundred thousand candidates take no more memory than a batch.
    """
    scores = []
    batches = torch.arange(len(candidates)).split(batch_size)
    bar = tqdm(total=len(candidates), desc="searching", unit="mix", delay=2.0, disable=None, leave=False)
    with torch.no_grad(), bar:
        for batch in batches:
            scores.append(total(score(make(candidates.take(batch)))).float().cpu())
            bar.update(len(batch))
    return torch.cat(scores)


def keep_best(scores: Tensor, candidates: Recipes, count: int, *, most_per_parent: int | None = None) -> Tensor:
    """Indices of the `count` best candidates, best first, no parent in more than `most_per_parent` of them.

    A pair is taken once. Where that leaves fewer than `count`, the best of the others join them. Ties: the
    earlier candidate first. NaN counts as the lowest score.
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
    """What `guided` came to.

    Args:
        mixes: the best found on each candidate's way, by the objective, its start included.
        objective: theirs, (B,).
        trace: the score, which is a part of the objective, at every step, (steps + 1, B); row 0 is the start.
        frames: images on the way, (K, F, 3, 32, 32), of the first F candidates at the steps in `steps` (K of them).
    """

    mixes: Mixes
    objective: Tensor
    trace: Tensor
    frames: Tensor
    steps: list[int]


def guided(
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
    frames: int = 9,
    recorded: int = 64,
) -> Ascent:
    """Gradient ascent (Adam) on the codes of mixes towards a higher score.

    objective = score + critic_weight * critic(image)
                - prior_weight * max(0, mean(((z - mean) / deviation)^2) - 1) / 2
                - start_weight * mean(((z - start) / deviation)^2) / 2        means over latents

    The third term is how much less likely the code is, in nats a latent, than what the prior gives on average. (The
    prior's whole log density would draw every code to the one most likely image.) The last keeps the parents in
    sight: without it a mix turns into whatever the score likes best. Of each candidate the code with the highest
    objective on its way is returned, its start included.

    Args:
        start: the mixes to improve, codes (B, latent_dim).
        decode: codes to images in [0, 1], with gradients.
        score: named terms (B,) of mixes, with gradients.
        critic: images to (B,), higher for more real; None: left out.
        prior: (mean, deviation) of codes, (latent_dim,) each; None: the standard normal.
        steps, lr: of Adam.
        frames: how many images of the way to keep, at least 2: first and last are included,
        recorded: of how many candidates.
    """
    mean, deviation = prior if prior is not None else (torch.zeros(()), torch.ones(()))
    mean, deviation = mean.to(start.codes), deviation.to(start.codes)
    codes = start.codes.detach().clone().requires_grad_(True)
    optimizer = torch.optim.Adam([codes], lr=lr, betas=(0.9, 0.99))
    shown = sorted({round(step) for step in torch.linspace(0, steps, max(2, min(frames, steps + 1))).tolist()})
    best_codes, best = codes.detach().clone(), torch.full((len(codes),), -torch.inf, device=codes.device)
    trace: list[Tensor] = []
    strip: list[Tensor] = []
    for step in tqdm(range(steps + 1), desc="ascending", unit="step", delay=2.0, disable=None, leave=False):
        with torch.enable_grad():
            mixes = dataclasses.replace(start, codes=codes, images=decode(codes))
            value = total(score(mixes))
            beyond = (((codes - mean) / deviation).square().mean(1) - 1).clamp_min(0)
            away = ((codes - start.codes) / deviation).square().mean(1)
            objective = value - prior_weight * beyond / 2 - start_weight * away / 2
            if critic is not None:
                objective = objective + critic_weight * critic(mixes.images)
            if step < steps:
                (codes.grad,) = torch.autograd.grad(-objective.sum(), codes)
        trace.append(value.detach())
        if step in shown:
            strip.append(mixes.images[:recorded].detach().clone())
        better = objective.detach() > best
        best = torch.where(better, objective.detach(), best)
        best_codes = torch.where(better[:, None], codes.detach(), best_codes)
        if step < steps:
            optimizer.step()
    with torch.no_grad():
        final = dataclasses.replace(start, codes=best_codes, images=decode(best_codes))
    return Ascent(final, best, torch.stack(trace).cpu(), torch.stack(strip), shown)
