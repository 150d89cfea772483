"""Health checks of a training: an uninformative critic, a collapsed posterior, collapsed modes.

Each check uses one number, logged after every validation as `health/...`:

critic skill: 1 - L / L_blind of the critic's training loss L in one epoch and the lowest loss L_blind of a critic with
    constant output. 1: no error; 0: as good as constant output; below 0: worse, as for a critic that does not learn.
    A perfect critic raises no alarm.
active dimensions: `losses.active_dimensions` of the posterior means of the validation images.
variety: mean distance between decoded images, as a share of that between images of the data.
"""

from __future__ import annotations

import dataclasses
import logging
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor
from tqdm import tqdm

from pegasus_lightning.data.batches import ImageSet
from pegasus_lightning.models.two_player import TwoPlayerModel
from pegasus_lightning.utils.randomness import Stream, generator
from pegasus_lightning.utils.tensors import to_float

log = logging.getLogger(__name__)

OK, BAD = "ok", "bad"
IMAGES = 64  # compared with each other: 2016 pairs
EPOCHS = 3  # the median skill of these is checked: skill varies by 0.1 between epochs, with spikes


@dataclass(frozen=True)
class Verdict:
    """Outcome of a health check, "ok" or "bad" (`value` below `threshold`), measured after `batch` batches.

    sentence: for the user: the problem, the number, what to try.
    """

    name: str
    verdict: str
    value: float
    threshold: float
    batch: int
    sentence: str


def critic_skill(loss: float, blind: float | None) -> float | None:
    """Return 1 - loss / blind; None if the blind loss is unknown, or 0 (nothing to distinguish)."""
    return 1 - loss / blind if blind else None


def mean_distance(images: Tensor) -> float:
    """Return the RMS difference over pixels and channels, averaged over all pairs of images (N, 3, H, W)."""
    flat = images.flatten(1).float().cpu()
    return (torch.pdist(flat).mean() / flat.shape[1] ** 0.5).item()


def variety(decoded: Tensor, images: Tensor) -> float | None:
    """Return `mean_distance` of decoded images over that of the data; None if the data images do not differ."""
    scale = mean_distance(images) if len(images) > 1 else 0.0
    return mean_distance(decoded) / scale if scale else None


def judge_critic(skill: float, threshold: float, batch: int) -> Verdict:
    """Return the verdict "dominated critic" from the median skill of the last `EPOCHS` epochs."""
    number = f"{skill:.3g}, where 0 is a critic that gives every image the same output (alarm under {threshold:g})"
    good = f"The critic is informative: its skill is {number}."
    bad = (
        f"The critic is uninformative, so the autoencoder learns nothing from it: its skill is {number}. "
        "Try a higher model.critic_optimizer.lr, or smaller adversarial weights in model.weights."
    )
    return _verdict("dominated critic", skill, threshold, batch, good=good, bad=bad)


def judge_posterior(active: float, latent_dim: int, threshold: float, batch: int) -> Verdict:
    """Return the verdict "collapsed posterior" from the active dimensions; the threshold is at most `latent_dim`."""
    threshold = min(threshold, latent_dim)
    number = f"{active:g} of the code's {latent_dim} dimensions vary with the image (alarm under {threshold:g})"
    good = f"The codes carry information about the image: {number}."
    bad = f"The codes carry almost no information about the image: {number}. Try a smaller model.weights.kl."
    return _verdict("collapsed posterior", active, threshold, batch, good=good, bad=bad)


def judge_modes(share: float, threshold: float, batch: int) -> Verdict:
    """Return the verdict "collapsed modes" from the variety."""
    number = f"{share:.2g} of the distance between images of the data (alarm under {threshold:g})"
    good = f"Different codes decode to different images: their distance is {number}."
    bad = (
        f"Different codes decode to nearly the same image: their distance is {number}. "
        "Try smaller adversarial weights or a larger weight of the reconstruction in model.weights."
    )
    return _verdict("collapsed modes", share, threshold, batch, good=good, bad=bad)


def _verdict(name: str, value: float, threshold: float, batch: int, *, good: str, bad: str) -> Verdict:
    fine = value >= threshold  # false for a NaN
    return Verdict(name, OK if fine else BAD, value, threshold, batch, good if fine else bad)


def as_markdown(verdicts: list[Verdict]) -> str:
    """Return the verdicts as a table for TensorBoard."""
    rows = [f"| {v.verdict} | {v.name} | {v.value:.4g} | {v.threshold:g} | {v.sentence} |" for v in verdicts]
    return "\n".join(["| verdict | check | value | alarm under | |", "| --- | --- | --- | --- | --- |", *rows])


class Health(pl.Callback):
    """Run the health checks after every validation and at the end of training, and report changed verdicts.

    The callback reads logged values, uses its own random generator and decodes in `model.inference()`, so it does not
    affect the training. Checkpoints include the last verdicts and the skill of the last epochs.

    Args:
        data: validation split; its first images are compared with decoded images.
        report: function that takes fields of `status.json`; here `health`, the verdicts as dicts.
        min_critic_skill, min_active_dimensions, min_variety: thresholds; values below are bad.
        warmup_epochs, warmup_batches: no verdict before both are done.
    """

    def __init__(
        self,
        data: ImageSet,
        report: Callable[..., None],
        *,
        min_critic_skill: float,
        min_active_dimensions: int,
        min_variety: float,
        warmup_epochs: int,
        warmup_batches: int,
    ) -> None:
        self.images, self.report = data.images[:IMAGES], report
        self.min_critic_skill, self.min_active_dimensions = min_critic_skill, min_active_dimensions
        self.min_variety = min_variety
        self.warmup_epochs, self.warmup_batches = warmup_epochs, warmup_batches
        self.verdicts: list[Verdict] = []
        self.skills: list[float] = []  # of the last epochs
        self._skill_at = self._measured_at = self._written_at = -1
        self._begin_epoch()

    # The critic's loss comes from the averages that the model logs, without further transfers from the device.

    def _begin_epoch(self) -> None:
        self._loss_sum, self._batches, self._unlogged = 0.0, 0, 0

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        self._unlogged += 1
        log_every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if not trainer.is_last_batch and pl_module.batches_done % log_every:
            return
        # `latest` is now the mean over the batches since the previous log.
        weights, latest = pl_module.term_weights, pl_module.latest
        terms = [name for name in weights if name.startswith("critic_loss/")]
        self._loss_sum += sum(weights[name] * latest[name] for name in terms) * self._unlogged
        self._batches += self._unlogged if terms else 0  # a critic may start late
        self._unlogged = 0
        starts_at = pl_module.config.critic_starts_at
        late = starts_at and pl_module.batches_done < starts_at + self.warmup_batches
        if trainer.is_last_batch and (late or not self._batches):
            self._begin_epoch()
        elif trainer.is_last_batch:
            skill = critic_skill(self._loss_sum / self._batches, pl_module.blind_critic_loss())
            self.skills = [] if skill is None else [*self.skills, skill][-EPOCHS:]
            self._skill_at = pl_module.batches_done
            self._begin_epoch()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self.measure(trainer, pl_module, trainer.current_epoch + 1, validated=True)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.measure(trainer, pl_module, trainer.current_epoch, validated=False)
        self._write(trainer, pl_module.batches_done)

    def measure(self, trainer: pl.Trainer, model: TwoPlayerModel, epochs: int, *, validated: bool) -> None:
        """Log the current numbers after `epochs` epochs, and update the verdicts if the warm-up is over.

        Checks without a new number (the active dimensions, unless `validated`) keep their last verdict.
        """
        batch = model.batches_done
        if not trainer.is_global_zero or self._measured_at == batch:
            return
        self._measured_at = batch
        metrics = {"health/variety": self._variety(model)}
        if self.skills and self._skill_at == batch:
            metrics["health/critic_skill"] = self.skills[-1]
        if validated and model.config.sample_codes:
            metrics["health/active_dimensions"] = model.latest["validation/active_dimensions"]
        known = {name: value for name, value in metrics.items() if value is not None}
        model.publish(known)
        if epochs >= self.warmup_epochs and batch >= self.warmup_batches:
            self._announce(trainer, self._judge(known, model.config.networks.latent_dim, batch))

    def _variety(self, model: TwoPlayerModel) -> float | None:
        images = to_float(self.images.to(model.device))
        with model.inference():
            if model.config.sample_codes:
                decoded = model.sample_prior(IMAGES, generator(0, Stream.PICTURES, 2, model.device))
            else:  # codes of a plain autoencoder follow no prior
                decoded = model.reconstruct(images)
        return variety(decoded, images)

    def _judge(self, metrics: dict[str, float], latent_dim: int, batch: int) -> list[Verdict]:
        new = []
        if "health/critic_skill" in metrics and len(self.skills) == EPOCHS:
            new.append(judge_critic(statistics.median(self.skills), self.min_critic_skill, batch))
        if "health/active_dimensions" in metrics:
            active = metrics["health/active_dimensions"]
            new.append(judge_posterior(active, latent_dim, self.min_active_dimensions, batch))
        if "health/variety" in metrics:
            new.append(judge_modes(metrics["health/variety"], self.min_variety, batch))
        return list(({verdict.name: verdict for verdict in [*self.verdicts, *new]}).values())

    # Changes go to the console and the log, all verdicts to status.json, and to TensorBoard on changes and at the end.

    def _announce(self, trainer: pl.Trainer, verdicts: list[Verdict]) -> None:
        before = {verdict.name: verdict.verdict for verdict in self.verdicts}
        changed = [verdict for verdict in verdicts if verdict.verdict != before.get(verdict.name)]
        for verdict in changed:
            if verdict.verdict == BAD or verdict.name in before:
                turn = f"Alarm, {verdict.name}" if verdict.verdict == BAD else f"No longer: {verdict.name}"
                line = f"{turn} (batch {verdict.batch}): {verdict.sentence}"
                tqdm.write(line, file=sys.stderr)  # above a progress bar, if any
                log.log(logging.WARNING if verdict.verdict == BAD else logging.INFO, line)
        self.verdicts = verdicts
        self.report(health=[dataclasses.asdict(verdict) for verdict in verdicts])
        if changed:
            self._write(trainer, changed[0].batch)

    def _write(self, trainer: pl.Trainer, batch: int) -> None:
        if self.verdicts and trainer.logger is not None and self._written_at != batch:
            self._written_at = batch
            trainer.logger.log_text("health", as_markdown(self.verdicts), batch)  # type: ignore[attr-defined]

    # A continued run keeps its verdicts and needs no new warm-up.

    def state_dict(self) -> dict[str, Any]:
        verdicts = [dataclasses.asdict(verdict) for verdict in self.verdicts]
        epoch = [self._loss_sum, self._batches, self._unlogged]  # of the unfinished epoch
        return {"skills": self.skills, "verdicts": verdicts, "epoch": epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skills = list(state_dict["skills"])
        self._loss_sum, self._batches, self._unlogged = state_dict["epoch"]
        self.verdicts = [Verdict(**fields) for fields in state_dict["verdicts"]]

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if self.verdicts:
            self.report(health=[dataclasses.asdict(verdict) for verdict in self.verdicts])
