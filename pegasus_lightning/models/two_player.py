"""The alternating training of autoencoder and critic, for all variants.

Each batch takes one forward pass of encoder and decoder, then two steps: the autoencoder's loss terms, their backward
pass and the optimizer step, with the critic frozen; then the critic's terms on the same reconstructions, detached. A
variant may run the critic once over fakes that both players need (`OnePass`). With `critic_steps` the critic takes
several steps on the same images and fakes; before batch `critic_starts_at` it takes none.
A variant defines the terms in `autoencoder_losses` and `critic_losses`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from pegasus_lightning.data.augmentation import NUMBERS, augment
from pegasus_lightning.models import losses
from pegasus_lightning.models.autoencoder import PARTS
from pegasus_lightning.models.averages import average_over_processes
from pegasus_lightning.models.latent import Posterior
from pegasus_lightning.models.losses import Term
from pegasus_lightning.models.measured import MeasuredModel
from pegasus_lightning.models.networks import frozen
from pegasus_lightning.models.one_pass import OnePass
from pegasus_lightning.utils.randomness import Stream

BALANCE_EVERY, R1_EVERY = 8, 4  # batches


@dataclass
class Step:
    """A batch and its forward pass, shared by both players."""

    images: Tensor  # (B, 3, 32, 32) in [0, 1]
    posterior: Posterior  # q(z|x), (B, latent_dim)
    codes: Tensor  # samples of it, (B, latent_dim)
    logits: Tensor  # of the reconstructions, (B, 3, 32, 32)
    labels: Tensor | None = None  # (B,), 0 the first class, 1 the second
    extra_images: dict[str, Tensor] = field(default_factory=dict)  # other decoded images that a variant uses, by name
    ratios: Tensor | None = None  # mixing ratios of the mixes among them, (M,)
    real: Tensor | None = None  # the critic's outputs for real images, with a graph, where both players need them
    fakes: OnePass | None = None  # the critic's outputs for fakes, where one pass serves both players

    @cached_property
    def reconstructions(self) -> Tensor:
        """sigmoid(logits), computed once, gradients attached."""
        return torch.sigmoid(self.logits)

    def detached(self) -> Step:
        """Return the step without the autoencoder's graph, as the critic's further steps need it."""
        images = {name: images.detach() for name, images in self.extra_images.items()}
        return replace(self, logits=self.logits.detach(), extra_images=images, real=None, fakes=None)


class TwoPlayerModel(MeasuredModel):
    """An autoencoder and its critic, trained in turns. The arguments are those of `Autoencoder`."""

    def __init__(
        self, config: Mapping[str, Any] | None = None, *, seed: int = 0, classes: Sequence[str] = ("horse", "bird")
    ) -> None:
        super().__init__(config, seed=seed, classes=classes)
        self.automatic_optimization = False
        if self.config.adaptive_adversarial:
            self.adversarial_scale: Tensor
            self.register_buffer("adversarial_scale", torch.ones(()))
        self._logged_means: dict[str, Tensor] = {}

    def __init_subclass__(cls, **keywords: Any) -> None:
        """Insist on a word about the critic: the settings that only DEFAULT_TASK reads are refused by others."""
        super().__init_subclass__(**keywords)
        if "critic_losses" in cls.__dict__ and "critic_tells" not in cls.Config.__dict__:
            raise TypeError(
                f"{cls.__name__} has losses of its own for the critic. Say in {cls.Config.__name__} what it tells "
                'apart, such as critic_tells: ClassVar[str | None] = "1 from 0", or models.settings.DEFAULT_TASK if '
                "it reads model.adversarial_loss and model.adaptive_adversarial."
            )

    # A variant implements these.

    def autoencoder_losses(self, step: Step) -> dict[str, Term]:
        """Return loss terms by name. The autoencoder minimises their weighted sum unless `routes` says otherwise.

        The critic is frozen meanwhile.
        """
        raise NotImplementedError

    def critic_losses(self, step: Step) -> dict[str, Term]:
        """Return loss terms by name, whose weighted sum the critic minimises. Its inputs must be detached."""
        raise NotImplementedError

    def show_critic(self, step: Step) -> None:
        """Run the critic on what both players need, and keep its outputs in the step; by default nothing.

        A variant that overrides it calls it at the end of its `forward_batch`. Further steps of the critic call it
        again.
        """

    def routes(self, terms: dict[str, Term]) -> list[tuple[Tensor, list[nn.Parameter]]]:
        """Return (loss, parameters that get its gradient) pairs; by default the weighted sum and all parameters.

        Adversarial terms pass through `balance_adversarial`, which knows their schedule.
        """
        adversarial = [term.weighted for name, term in terms.items() if name.startswith("adversarial")]
        others = [term.weighted for name, term in terms.items() if not name.startswith("adversarial")]
        return [(self.balance_adversarial(others, adversarial), self.autoencoder_parameters)]

    def blind_critic_loss(self) -> float | None:
        """Return the smallest sum of `critic_losses` that a critic with a constant output can reach.

        None: unknown, or no critic. Override it together with `critic_losses`.
        """
        return None

    # Helpers for the variants.

    def augment_for_critic(self, images: Tensor, part: int) -> Tensor:
        """Return `images` (B, 3, 32, 32) with the configured augmentation; the same `part` gives the same draws."""
        policy = self.config.critic_augmentation
        if not policy:
            return images
        uniforms = self.draw(Stream.AUGMENTATION, len(images), NUMBERS, uniform=True, part=part)
        return augment(images, uniforms, policy)

    def one_pass(self, fakes: dict[str, Tensor], critic_loss: Callable[[dict[str, Tensor]], Tensor]) -> OnePass:
        """Return the critic's outputs for fakes by kind, augmented already; `critic_loss` is its weighted loss of them.

        Call it in `show_critic`: later the critic is frozen.
        """
        falls = self.config.adversarial_loss == "lsgan"  # the loss of a fake, where the output is below 0
        return OnePass(self.critic, fakes, None if falls or self.config.networks.critic_batch_norm else critic_loss)

    def balance_adversarial(self, others: list[Tensor], adversarial: list[Tensor]) -> Tensor:
        """Return the sum of all terms, with the adversarial ones scaled if `adaptive_adversarial` is set.

        The scale is |gradient of the others| / |gradient of the adversarial terms| at the decoder's last weight (Esser
        et al. 2021, arXiv 2012.09841, eq. 7), measured every BALANCE_EVERY batches and smoothed. `critic_starts_at` and
        `critic_ramp` multiply the adversarial terms with `adversarial_factor`; at 0 they are left out.
        """
        total, factor = torch.stack(others).sum(), self.config.adversarial_factor(self.batches_done)
        if not adversarial or factor == 0:
            return total
        wanted = torch.stack(adversarial).sum()
        if not self.config.adaptive_adversarial:
            return total + (wanted if factor == 1 else factor * wanted)
        batches = self.batches_done - self.config.critic_starts_at
        if batches % BALANCE_EVERY == 0:
            weight = self.decoder.last_weight
            norms = [torch.autograd.grad(loss, weight, retain_graph=True)[0].norm() for loss in (total, wanted)]
            ratio = (norms[0] / (norms[1] + 1e-6)).clamp(max=1e4)
            if self._world_size > 1:
                average_over_processes([ratio])
            self.adversarial_scale.lerp_(ratio, 1.0 if batches == 0 else 0.2)
        self.log_mean("adversarial_scale", self.adversarial_scale)
        return total + self.adversarial_scale.clone() * (wanted if factor == 1 else factor * wanted)

    def log_mean(self, name: str, values: Tensor) -> None:
        """Log the mean of `values`, detached, beside the losses."""
        self._logged_means[name] = values.detach().float().mean()

    def vae_terms(self, step: Step, *, pixels: bool = True) -> dict[str, Term]:
        """Return the terms of a VAE: `reconstruction`, unless `pixels` is false, and `kl`.

        A plain autoencoder (`sample_codes=false`) has no `kl`, unless it has a weight: |mean|^2 / 2 is then minimised.
        """
        weights = self.config.weights
        terms = {"reconstruction": Term(self.pixel_term(step), weights.reconstruction)} if pixels else {}
        if self.config.sample_codes or weights.kl:
            terms["kl"] = Term(self.kl_term(step), weights.kl * self.config.kl_factor(self.batches_done))
        return terms

    def pixel_term(self, step: Step) -> Tensor:
        """Return the unweighted error an image: BCE_sum(D(z), x), or the summed squared or absolute error."""
        if self.config.reconstruction == "bce":
            return losses.binary_cross_entropy(step.logits, step.images)
        error = losses.absolute_error if self.config.reconstruction == "l1" else losses.squared_error
        return error(step.reconstructions, step.images)

    def kl_term(self, step: Step) -> Tensor:
        """Return the unweighted KL(q(z|x) || N(0, I)), in nats an image."""
        return losses.kl_divergence(step.posterior.mean, step.posterior.log_variance)

    # Training.

    def forward_batch(self, images: Tensor, labels: Tensor | None = None) -> Step:
        """Return the batch with its forward pass through encoder and decoder."""
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
        logged = self._logged("loss", terms)
        routes = self.routes(terms)
        autoencoder_optimizer.zero_grad()
        for index, (loss, parameters) in enumerate(routes):
            self.manual_backward(loss, inputs=parameters, retain_graph=index + 1 < len(routes))
        self._step_player(autoencoder_optimizer, "autoencoder", self.autoencoder_parameters, measure_norms)

        if self.critic is not None and self.batches_done >= self.config.critic_starts_at:
            logged |= self._step_critic(others[0], step, measure_norms)
            means = dict(self._logged_means)
            for _ in range(self.config.critic_steps - 1):
                again = step.detached()
                self.show_critic(again)
                self._step_critic(others[0], again, False)
            self._logged_means = means  # as the critic was before it trained on this batch

        self.update_average()
        self.averages.add(logged | self._logged_means)
        self._logged_means = {}
        self.batches_done += 1
        self._images_since += len(images) * self._world_size
        if measure_norms or self.trainer.is_last_batch:
            self._log_averages()

    def _step_critic(self, optimizer: Any, step: Step, measure_norms: bool) -> dict[str, Tensor]:
        """Take one step of the critic, and return what to log."""
        terms = self.critic_losses(step)
        logged = self._logged("critic_loss", terms)
        penalties: list[Tensor] = []
        if (self.config.r1 or self.config.r2) and self.batches_done % R1_EVERY == 0:
            penalty_terms = self.critic_penalties(step)
            logged |= self._logged("critic_penalty", penalty_terms)
            # As if at every batch (lazy regularisation, Karras et al. 2020, sec. 3.1).
            penalties += [R1_EVERY * term.weighted for term in penalty_terms.values()]
        if self.reads_adversarial_loss and self.config.adversarial_loss == "wgan_gp":
            slope = {"slope": Term(self.slope_penalty(step), self.config.gradient_penalty)}
            logged |= self._logged("critic_penalty", slope)
            penalties.append(slope["slope"].weighted)
        optimizer.zero_grad()
        total = torch.stack([*(term.weighted for term in terms.values()), *penalties]).sum()
        self.manual_backward(total, inputs=self.critic_parameters)
        if step.fakes is not None:
            step.fakes.add_gradients()
        self._step_player(optimizer, "critic", self.critic_parameters, measure_norms)
        return logged

    def critic_penalties(self, step: Step) -> dict[str, Term]:
        """Return the gradient penalties that have a weight: `r1` at the real images, `r2` at the reconstructions."""
        at = {"r1": step.images, "r2": step.reconstructions}
        weights = {"r1": self.config.r1, "r2": self.config.r2}
        return {name: Term(self.gradient_penalty(at[name]), weight) for name, weight in weights.items() if weight}

    def gradient_penalty(self, images: Tensor) -> Tensor:
        """Return the unweighted gradient penalty of the critic at images (B, 3, 32, 32), augmented."""
        images = self.augment_for_critic(images, PARTS - 1).detach().float().requires_grad_(True)
        # `forward` stays eager under trainer.compile: a compiled network cannot be differentiated twice.
        return losses.gradient_penalty(self.critic.forward(images), images)

    def slope_penalty(self, step: Step) -> Tensor:
        """Return the unweighted penalty of WGAN-GP (`losses.distance_from_slope_one`).

        Its images are at random places between an image and a fake: the reconstruction of the batch's image before it,
        or another fake of the variant, all kinds in turn.
        """
        places = self.draw(Stream.PENALTY, len(step.images), uniform=True)[:, None, None, None]
        fakes = step.reconstructions.detach().float().roll(1, 0)
        kinds = len(step.extra_images) + 1
        for number, images in enumerate(step.extra_images.values(), 1):
            mine = torch.arange(number, len(fakes), kinds, device=fakes.device)
            fakes = fakes.index_copy(0, mine, images.detach().float()[mine % len(images)])
        between = self.augment_for_critic(torch.lerp(fakes, step.images.float(), places), PARTS - 1)
        between = between.detach().requires_grad_(True)
        return losses.distance_from_slope_one(self.critic.forward(between), between)

    def _logged(self, section: str, terms: dict[str, Term]) -> dict[str, Tensor]:
        """Return the values of terms by tag, and watch that they are finite."""
        values = {f"{section}/{name}": term.value.detach() for name, term in terms.items()}
        self.term_weights |= {f"{section}/{name}": term.weight for name, term in terms.items()}
        self.finite.look(values, self.batches_done + 1)
        return values

    def _step_player(self, optimizer: Any, player: str, parameters: list[nn.Parameter], measure_norm: bool) -> None:
        """Average the gradients over the processes, clip them, and step."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        if self._world_size > 1:
            average_over_processes(gradients)
        adam = getattr(self.config, f"{player}_optimizer")
        for group in optimizer.param_groups:
            group["lr"] = adam.lr_at(self.batches_done)
        clip = adam.clip
        if clip is not None or measure_norm:
            norm = torch.nn.utils.get_total_norm(gradients, foreach=True)
            if measure_norm:
                self._logged_means[f"gradient_norm/{player}"] = norm
            if clip is not None:
                torch.nn.utils.clip_grads_with_norm_(parameters, clip, norm, foreach=True)
        optimizer.step()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        players = [(self.autoencoder_parameters, self.config.autoencoder_optimizer)]
        if self.critic is not None:
            players.append((self.critic_parameters, self.config.critic_optimizer))
        return [_adam(parameters, config) for parameters, config in players]


def _adam(parameters: list[nn.Parameter], config: Any) -> torch.optim.Optimizer:
    """Return Adam, or with a weight decay AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101, algorithm 2).

    Biases and the weights of normalisations, which have one dimension, do not decay.
    """
    settings = {"lr": config.lr, "betas": (config.beta1, config.beta2), "fused": True}
    if not config.weight_decay:
        return torch.optim.Adam(parameters, **settings)
    decays = {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay}
    stays = {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0}
    return torch.optim.AdamW([decays, stays], **settings)
