"""What a model measures: averages of its training's loss terms, and figures of the validation and the test split."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pegasus_lightning.models import losses
from pegasus_lightning.models.autoencoder import Autoencoder
from pegasus_lightning.models.averages import Averages
from pegasus_lightning.models.finite import FiniteWatch
from pegasus_lightning.models.networks import as_in_training
from pegasus_lightning.models.settings import DEFAULT_TASK
from pegasus_lightning.utils.errors import NonFiniteLoss


class MeasuredModel(Autoencoder):
    """An autoencoder that logs what its training and its evaluation give. The arguments are those of `Autoencoder`."""

    def __init__(
        self, config: Mapping[str, Any] | None = None, *, seed: int = 0, classes: Sequence[str] = ("horse", "bird")
    ) -> None:
        super().__init__(config, seed=seed, classes=classes)
        self.validated_at = -1  # batches done at the last validation
        self.averages = Averages()
        self.finite = FiniteWatch()
        self.latest: dict[str, float] = {}
        self.term_weights: dict[str, float] = {}  # of the logged terms, by tag
        self._evaluated: list[dict[str, Tensor]] = []
        self._clock = time.perf_counter()
        self._images_since = 0

    def critic_probability(self, critic_outputs: Tensor) -> Tensor:
        """Return the critic's outputs (B,) as they are logged: by default sigmoids, the probabilities of 'real'.

        Under `lsgan` the outputs themselves estimate it, and are only kept within 0 and 1.
        """
        if self.reads_adversarial_loss and self.config.adversarial_loss == "lsgan":
            return critic_outputs.clamp(0, 1)
        return torch.sigmoid(critic_outputs)

    @property
    def reads_adversarial_loss(self) -> bool:
        """Whether `adversarial_loss` means something to the variant: its critic tells real images from fakes."""
        return self.Config.critic_tells == DEFAULT_TASK

    # Logging, with batches done as the only axis.

    def _log_averages(self) -> None:
        metrics = self.averages.flush()
        bad = [name for name, value in metrics.items() if not math.isfinite(value)]
        if bad:  # a gradient norm, for instance; the loss terms are checked batch by batch
            raise NonFiniteLoss(bad, self.batches_done)
        now = time.perf_counter()
        if self._images_since:
            metrics["speed/images_per_second"] = self._images_since / (now - self._clock)
        self._clock, self._images_since = now, 0
        self.publish(metrics | self._schedules(self.batches_done - 1))

    def _schedules(self, batch: int) -> dict[str, float]:
        """Return what changes during this training by a schedule, as it was at a batch."""
        config, critic = self.config, self.critic is not None
        rates = {"autoencoder": config.autoencoder_optimizer} | ({"critic": config.critic_optimizer} if critic else {})
        now = {f"schedule/lr_{player}": adam.lr_at(batch) for player, adam in rates.items() if adam.changes}
        if config.kl_warmup:
            now["schedule/kl"] = config.kl_factor(batch)
        if critic and (config.critic_starts_at or config.critic_ramp):
            now["schedule/adversarial"] = config.adversarial_factor(batch)
        return now

    def publish(self, metrics: dict[str, float]) -> None:
        """Log metrics at the present batch, and keep them as `latest`."""
        self.latest |= metrics
        if self.logger is not None:
            self.logger.log_metrics(metrics, step=self.batches_done)

    def on_train_epoch_start(self) -> None:
        self._clock, self._images_since = time.perf_counter(), 0

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.finite.check(wait=True)  # a checkpoint holds nothing that was learnt from a NaN
        state = [tensor for tensor in self.state_dict().values() if tensor.is_floating_point()]
        finite = torch.stack([tensor.isfinite().all() for tensor in state]).all().float()
        if self._world_size > 1:
            torch.distributed.all_reduce(finite, op=torch.distributed.ReduceOp.MIN)
        if not finite.item():
            raise NonFiniteLoss(["a weight"], self.batches_done)
        checkpoint["batches_done"] = self.batches_done
        checkpoint["logged"] = {
            "latest": dict(self.latest),
            "validated_at": self.validated_at,
            "averages": self.averages.state(),
            "term_weights": dict(self.term_weights),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.batches_done = checkpoint["batches_done"]
        logged = checkpoint.get("logged")
        if logged is not None:  # the first checkpoints of 0.1 have none
            self.latest, self.validated_at = dict(logged["latest"]), logged["validated_at"]
            if "term_weights" in logged:
                self.averages.restore(logged["averages"])
                self.term_weights = dict(logged["term_weights"])
            else:  # of 0.1, which logged terms with their weights: the two do not add up
                kept = ("validation", "test", "final", "health")
                self.latest = {tag: value for tag, value in self.latest.items() if tag.partition("/")[0] in kept}

    # Evaluation, the same on the validation and the test split.

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._evaluated.append(self.evaluate_batch(batch[0]))

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._evaluated.append(self.evaluate_batch(batch[0]))

    def evaluate_batch(self, images: Tensor) -> dict[str, Tensor]:
        """Return figures of each image (B,), and the posterior means (B, latent_dim)."""
        posterior = self.encode(images)
        logits = self.decode_logits(posterior.mean)
        reconstructions = torch.sigmoid(logits.float())
        figures = {
            "psnr": losses.psnr(reconstructions, images),
            "excess_bce": losses.excess_bce(logits, images),
            "kl": losses.kl_per_image(posterior.mean, posterior.log_variance),
            "means": posterior.mean,
        }
        if self.critic is not None:
            with as_in_training(self.critic):
                figures["critic_real"] = self.critic_probability(self.critic(images))
                figures["critic_fake"] = self.critic_probability(self.critic(reconstructions))
        return figures

    def _publish_evaluation(self, split: str) -> None:
        columns = {name: torch.cat([part[name] for part in self._evaluated]) for name in self._evaluated[0]}
        self._evaluated = []
        active = losses.active_dimensions(columns.pop("means"))
        metrics = {f"{split}/{name}": values.float().mean().item() for name, values in columns.items()}
        if self.config.sample_codes:
            metrics[f"{split}/active_dimensions"] = float(active)
        else:  # a plain autoencoder has no posterior
            del metrics[f"{split}/kl"]
        self.publish(metrics)

    def on_validation_epoch_end(self) -> None:
        self._publish_evaluation("validation")
        self.validated_at = self.batches_done

    def on_test_epoch_end(self) -> None:
        self._publish_evaluation("test")
