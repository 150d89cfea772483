"""The alternation of autoencoder and critic, once, for every variant.

A batch goes so: one forward of encoder and decoder; the autoencoder's terms (the critic frozen), their
backward and step; the critic's terms on the same, detached, reconstructions, their backward and step.
A variant says what the terms are, in `autoencoder_losses` and `critic_losses`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from pegasus_lightning.data.augmentation import NUMBERS, augment
from pegasus_lightning.models import losses
from pegasus_lightning.models.autoencoder import PARTS, Autoencoder
from pegasus_lightning.models.averages import Averages, average_over_processes
from pegasus_lightning.models.finite import FiniteWatch
from pegasus_lightning.models.latent import Posterior
from pegasus_lightning.models.networks import as_in_training, frozen
from pegasus_lightning.models.settings import AdamConfig
from pegasus_lightning.utils.errors import NonFiniteLoss
from pegasus_lightning.utils.randomness import Stream

BALANCE_EVERY, R1_EVERY = 8, 4  # batches


@dataclass
class Step:
    """One batch on its way through the autoencoder; both players read it.

    images (B, 3, 32, 32) in [0, 1]; codes (B, latent_dim); logits (B, 3, 32, 32) of the reconstructions;
    labels (B,), 0 the first class, 1 the second; further, decoded with the same forward: a variant's own images.
    """

    images: Tensor
    posterior: Posterior
    codes: Tensor
    logits: Tensor
    labels: Tensor | None = None
    extra_images: dict[str, Tensor] = field(default_factory=dict)

    @cached_property
    def reconstructions(self) -> Tensor:
        """sigmoid(logits), computed once, gradients attached."""
        return torch.sigmoid(self.logits)


class TwoPlayerModel(Autoencoder):
    """An autoencoder and its critic, trained in turns: the arguments are those of `Autoencoder`."""

    def __init__(
        self, config: Mapping[str, Any] | None = None, *, seed: int = 0, classes: Sequence[str] = ("horse", "bird")
    ) -> None:
        super().__init__(config, seed=seed, classes=classes)
        self.automatic_optimization = False
        self.validated_at = -1  # batches done then
        if self.config.adaptive_adversarial:
            self.adversarial_scale: Tensor
            self.register_buffer("adversarial_scale", torch.ones(()))
        self.averages = Averages()
        self.finite = FiniteWatch()
        self.latest: dict[str, float] = {}
        self._watched: dict[str, Tensor] = {}
        self._evaluated: list[dict[str, Tensor]] = []
        self._clock = time.perf_counter()
        self._images_since = 0

    # What a variant gives.

    def autoencoder_losses(self, step: Step) -> dict[str, Tensor]:
        """Named terms, weighted, whose sum the autoencoder minimises (or as `routes` has it); the critic is frozen."""
        raise NotImplementedError

    def critic_losses(self, step: Step) -> dict[str, Tensor]:
        """Named terms, weighted, whose sum the critic minimises; what it is shown must be detached."""
        raise NotImplementedError

    def routes(self, terms: dict[str, Tensor]) -> list[tuple[Tensor, list[nn.Parameter]]]:
        """Which loss reaches which parameters of the autoencoder; by default the sum of all terms reaches all."""
        adversarial = [value for name, value in terms.items() if name.startswith("adversarial")]
        others = [value for name, value in terms.items() if not name.startswith("adversarial")]
        return [(self.balance_adversarial(others, adversarial), self.autoencoder_parameters)]

    def critic_probability(self, critic_outputs: Tensor) -> Tensor:
        """The critic's outputs (B,) as they are logged: by default the probability of 'real'."""
        return torch.sigmoid(critic_outputs)

    def blind_critic_loss(self) -> float | None:
        """The least that the sum of `critic_losses` can be for a critic that gives every image the same output.

        None: not known (or there is no critic). Who overrides `critic_losses` overrides this.
        """
        return None

    # Randomness and bookkeeping for the variants.

    def augment_for_critic(self, images: Tensor, part: int) -> Tensor:
        """`images` (B, 3, 32, 32) as the critic is shown them: augmented where the config says so; the same `part`
        alters two batches in the same way."""
        policy = self.config.critic_augmentation
        if not policy:
            return images
        uniforms = self.draw(Stream.AUGMENTATION, len(images), NUMBERS, uniform=True, part=part)
        return augment(images, uniforms, policy)

    def balance_adversarial(self, others: list[Tensor], adversarial: list[Tensor]) -> Tensor:
        """The sum of all terms, the adversarial ones scaled where `adaptive_adversarial` says so.

        The scale is |gradient of the others| / |gradient of the adversarial ones|, at the weight that makes the
        logits (Esser et al. 2021, arXiv 2012.09841, eq. 7), measured every BALANCE_EVERY batches and smoothed.
        """
        total = torch.stack(others).sum()
        if not adversarial:
            return total
        wanted = torch.stack(adversarial).sum()
        if not self.config.adaptive_adversarial:
            return total + wanted
        if self.batches_done % BALANCE_EVERY == 0:
            weight = self.decoder.last_weight
            norms = [torch.autograd.grad(loss, weight, retain_graph=True)[0].norm() for loss in (total, wanted)]
            ratio = (norms[0] / (norms[1] + 1e-6)).clamp(max=1e4)
            if self._world_size > 1:
                average_over_processes([ratio])
            self.adversarial_scale.lerp_(ratio, 1.0 if self.batches_done == 0 else 0.2)
        self.log_mean("adversarial_scale", self.adversarial_scale)
        return total + self.adversarial_scale.clone() * wanted

    def log_mean(self, name: str, values: Tensor) -> None:
        """Log the mean of `values` (detached) beside the losses."""
        self._watched[name] = values.detach().float().mean()

    def pixel_term(self, step: Step) -> Tensor:
        """The reconstruction error, unweighted: BCE_sum(D(z), x), or the summed squared error, an image."""
        if self.config.reconstruction == "bce":
            return losses.binary_cross_entropy(step.logits, step.images)
        return losses.squared_error(step.reconstructions, step.images)

    def kl_term(self, step: Step) -> Tensor:
        """KL(q(z|x) || N(0, I)) in nats an image, unweighted."""
        return losses.kl_divergence(step.posterior.mean, step.posterior.log_variance)

    # The alternation.

    def forward_batch(self, images: Tensor, labels: Tensor | None = None) -> Step:
        """The batch's one forward of encoder and decoder."""
        posterior = self.encode(images)
        codes = posterior.sample_with(self.draw(Stream.NOISE, *posterior.mean.shape))
        return Step(images, posterior, codes, self.decode_logits(codes), labels)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        measure_norms = (self.batches_done + 1) % self.trainer.log_every_n_steps == 0  # type: ignore[attr-defined]
        optimizers = self.optimizers()
        autoencoder_optimizer, *others = optimizers if isinstance(optimizers, list) else [optimizers]

        step = self.forward_batch(images, labels)
        with frozen(self.critic) if self.critic is not None else nullcontext():
            terms = self.autoencoder_losses(step)
            logged = {f"loss/{name}": value for name, value in terms.items()}
            self.finite.look(logged, self.batches_done + 1)
            routes = self.routes(terms)
            autoencoder_optimizer.zero_grad()
            for index, (loss, parameters) in enumerate(routes):
                self.manual_backward(loss, inputs=parameters, retain_graph=index + 1 < len(routes))
        self._step_player(autoencoder_optimizer, "autoencoder", self.autoencoder_parameters, measure_norms)

        if self.critic is not None:
            critic_terms = self.critic_losses(step)
            critic_logged = {f"critic_loss/{name}": value for name, value in critic_terms.items()}
            self.finite.look(critic_logged, self.batches_done + 1)
            logged |= critic_logged
            penalties = {}
            if self.config.r1 and self.batches_done % R1_EVERY == 0:
                images = self.augment_for_critic(images, PARTS - 1).detach().requires_grad_(True)
                penalty = self.config.r1 * losses.gradient_penalty(self.critic(images), images)
                self.finite.look({"critic_penalty/r1": penalty}, self.batches_done + 1)
                penalties["r1"] = R1_EVERY * penalty  # as if at every batch (Karras et al. 2020, sec. 3.1: lazily)
                self.log_mean("critic/r1", penalty)
            others[0].zero_grad()
            total = torch.stack([*critic_terms.values(), *penalties.values()]).sum()
            self.manual_backward(total, inputs=self.critic_parameters)
            self._step_player(others[0], "critic", self.critic_parameters, measure_norms)

        self.update_average()
        self.averages.add(logged | self._watched)
        self._watched = {}
        self.batches_done += 1
        self._images_since += len(images) * self._world_size
        if measure_norms or self.trainer.is_last_batch:
            self._log_averages()

    def _step_player(self, optimizer: Any, player: str, parameters: list[nn.Parameter], measure_norm: bool) -> None:
        """Average the gradients over the processes, clip, step."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        if self._world_size > 1:
            average_over_processes(gradients)
        clip = getattr(self.config, f"{player}_optimizer").clip
        if clip is not None or measure_norm:
            norm = torch.nn.utils.get_total_norm(gradients, foreach=True)
            if measure_norm:
                self._watched[f"gradient_norm/{player}"] = norm
            if clip is not None:
                torch.nn.utils.clip_grads_with_norm_(parameters, clip, norm, foreach=True)
        optimizer.step()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        players = [(self.autoencoder_parameters, self.config.autoencoder_optimizer)]
        if self.critic is not None:
            players.append((self.critic_parameters, self.config.critic_optimizer))
        return [_adam(parameters, config) for parameters, config in players]

    # Logging: on the one axis of batches done.

    def _log_averages(self) -> None:
        metrics = self.averages.flush()
        bad = [name for name, value in metrics.items() if not math.isfinite(value)]
        if bad:  # a gradient's norm, say: the terms themselves are watched batch by batch
            raise NonFiniteLoss(bad, self.batches_done)
        now = time.perf_counter()
        if self._images_since:
            metrics["speed/images_per_second"] = self._images_since / (now - self._clock)
        self._clock, self._images_since = now, 0
        self.publish(metrics)

    def publish(self, metrics: dict[str, float]) -> None:
        """Hand metrics to the logger at the present batch, and keep them as `latest`."""
        self.latest |= metrics
        if self.logger is not None:
            self.logger.log_metrics(metrics, step=self.batches_done)

    def on_train_epoch_start(self) -> None:
        self._clock, self._images_since = time.perf_counter(), 0

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.finite.check(wait=True)  # nothing that was learnt from a NaN is kept
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
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.batches_done = checkpoint["batches_done"]
        logged = checkpoint.get("logged")
        if logged is not None:  # older checkpoints have none
            self.latest, self.validated_at = dict(logged["latest"]), logged["validated_at"]
            self.averages.restore(logged["averages"])

    # Evaluation: the same figures on the validation and on the test split.

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._evaluated.append(self.evaluate_batch(batch[0]))

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._evaluated.append(self.evaluate_batch(batch[0]))

    def evaluate_batch(self, images: Tensor) -> dict[str, Tensor]:
        """Per-image figures (B,) of one batch, and its posterior means (B, latent_dim)."""
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
        else:  # a plain autoencoder has no posterior to measure
            del metrics[f"{split}/kl"]
        self.publish(metrics)

    def on_validation_epoch_end(self) -> None:
        self._publish_evaluation("validation")
        self.validated_at = self.batches_done

    def on_test_epoch_end(self) -> None:
        self._publish_evaluation("test")


def _adam(parameters: list[nn.Parameter], config: AdamConfig) -> torch.optim.Adam:
    return torch.optim.Adam(parameters, lr=config.lr, betas=(config.beta1, config.beta2), fused=True)
