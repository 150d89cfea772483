"""Shared by all tests: a quiet machine, tiny models, a bare trainer, a witness of every optimizer step."""

import os
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from headless import CHROMIUM, MISSING, Browser
from omegaconf import OmegaConf
from tensorboard.summary.writer import event_file_writer
from torch import Tensor

from pegasus_lightning.models import model_class
from pegasus_lightning.models.two_player import TwoPlayerModel

if not torch.cuda.is_available():
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # for the processes that tests start
torch.set_num_threads(min(2, torch.get_num_threads()))
# TensorBoard reads a run's files by name, which ends in the number of the writer in its process: a tenth writer, which
# only tests have, would come before the ninth of the same second.
event_file_writer._global_uid = event_file_writer.AtomicCounter(1000)

TINY = {"networks": {"channels": 4, "latent_dim": 6, "fc_width": 8}}


class Loader:
    """Ready-made (images, labels) batches; a bare list would be taken for several loaders by Lightning.

    Images without labels are all of the first class.
    """

    def __init__(self, batches: list[Tensor | tuple[Tensor, Tensor]]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in self.batches:
            yield batch if isinstance(batch, tuple) else (batch, torch.zeros(len(batch), dtype=torch.int64))


class _AfterBatch(pl.Callback):
    def __init__(self, look: Callable[[TwoPlayerModel], Any]) -> None:
        self.look, self.seen = look, []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:  # type: ignore[no-untyped-def]
        self.seen.append(self.look(pl_module))


@pytest.fixture
def images() -> Tensor:
    """Four images of noise, (4, 3, 32, 32) in [0, 1]."""
    return torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def tiny() -> Callable[..., TwoPlayerModel]:
    """tiny(name, overrides, seed=0): a variant on 4 channels and 6 latents."""

    def build(name: str, overrides: dict[str, Any] | None = None, seed: int = 0) -> TwoPlayerModel:
        config = OmegaConf.to_container(OmegaConf.merge(TINY, overrides or {}))
        return model_class(name)(config, seed=seed)

    return build


@pytest.fixture
def fit() -> Callable[..., list[Any]]:
    """fit(model, [images or (images, labels), ...], look): train on these; what `look(model)` gave after each.

    By default the metrics of that batch.
    """

    def run(
        model: TwoPlayerModel,
        batches: list[Tensor | tuple[Tensor, Tensor]],
        look: Callable[[TwoPlayerModel], Any] | None = None,
    ) -> list[Any]:
        witness = _AfterBatch(look or (lambda model: dict(model.latest)))
        trainer = pl.Trainer(
            max_epochs=1,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            log_every_n_steps=1,
            callbacks=[witness],
        )
        trainer.fit(model, Loader(batches))
        return witness.seen

    return run


@pytest.fixture
def optimizer_steps() -> Callable[[TwoPlayerModel], list[SimpleNamespace]]:
    """optimizer_steps(model): call before `fit`; a list that fills with every step's `player` and `gradients`.

    `gradients` are those of all parameters of the model, by name, None where there is none, as the step began.
    """

    def attach(model: TwoPlayerModel) -> list[SimpleNamespace]:
        steps: list[SimpleNamespace] = []
        configure = model.configure_optimizers

        def configured() -> list[torch.optim.Optimizer]:
            optimizers = configure()
            for player, optimizer in zip(("autoencoder", "critic"), optimizers, strict=False):

                def record(*_: Any, player: str = player) -> None:
                    gradients = {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}
                    steps.append(SimpleNamespace(player=player, gradients=gradients))

                optimizer.register_step_pre_hook(record)
            return optimizers

        model.configure_optimizers = configured  # type: ignore[method-assign]
        return steps

    return attach


@pytest.fixture
def assert_gradients() -> Callable[..., None]:
    """assert_gradients(step, name, network, loss): what the step held is the gradient of `loss`, by autograd."""

    def check(step: SimpleNamespace, name: str, network: torch.nn.Module, loss: Tensor) -> None:
        named = dict(network.named_parameters())
        wanted = torch.autograd.grad(loss, list(named.values()), retain_graph=True)
        for key, gradient in zip(named, wanted, strict=True):
            torch.testing.assert_close(step.gradients[f"{name}.{key}"], gradient, rtol=1e-3, atol=1e-5, msg=key)

    return check


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Headless Chromium without network."""
    if CHROMIUM is None:
        pytest.skip(MISSING)
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()
