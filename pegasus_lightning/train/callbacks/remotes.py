"""One run in another tool: CSV, Weights & Biases, MLflow, Trackio. Their packages are imported when they are used."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

PROJECT = "pegasus_lightning"


class Remote:
    """A run in another tool. Every method may raise; imports happen in `open`."""

    kept = True  # what was sent stays when the run goes on
    buffered = False  # a kill loses the last of what was sent

    def __init__(self, run: Path, identity: str) -> None:
        self.run, self.identity = run, identity

    def open(self) -> None:
        """Begin the run there, or go on with the run `identity`; set `identity`."""

    def values(self, values: Mapping[str, Any]) -> None:
        """Log the settings, flat."""

    def scalars(self, metrics: Mapping[str, float], batch: int) -> None:
        """Log scalars at `batch` batches done."""

    def picture(self, tag: str, picture: np.ndarray, batch: int) -> None:
        """Log a picture, uint8 (H, W, 3)."""

    def close(self, *, done: bool) -> None:
        """End the session; `done`: the training is finished."""


class Csv(Remote):
    """Lightning's CSVLogger: `csv/metrics.csv` in the run's folder, made anew by each session."""

    kept = False

    def open(self) -> None:
        from pytorch_lightning.loggers import CSVLogger

        shutil.rmtree(self.run / "csv", ignore_errors=True)
        self.logger = CSVLogger(self.run, name="", version="csv", flush_logs_every_n_steps=1)

    def values(self, values: Mapping[str, Any]) -> None:
        self.logger.log_hyperparams(dict(values))

    def scalars(self, metrics: Mapping[str, float], batch: int) -> None:
        self.logger.log_metrics(dict(metrics), batch)


class Wandb(Remote):
    """Lightning's WandbLogger. The axis of every chart is `batch`, because W&B's own step only goes forward."""

    buffered = True

    def open(self) -> None:
        from pytorch_lightning.loggers import WandbLogger

        self.logger = WandbLogger(
            name=self.run.name,
            id=self.identity,
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            save_dir=os.environ.get("WANDB_DIR", self.run),
            group=os.environ.get("WANDB_RUN_GROUP", self.run.parent.name),
        )
        self.logger.experiment.define_metric("batch")
        self.logger.experiment.define_metric("*", step_metric="batch")

    def values(self, values: Mapping[str, Any]) -> None:
        self.logger.log_hyperparams(dict(values))

    def scalars(self, metrics: Mapping[str, float], batch: int) -> None:
        self.logger.log_metrics({"batch": batch, **metrics})

    def picture(self, tag: str, picture: np.ndarray, batch: int) -> None:
        from wandb import Image

        self.logger.experiment.log({"batch": batch, tag: Image(picture)})

    def close(self, *, done: bool) -> None:
        self.logger.experiment.finish(exit_code=0 if done else 1)


class Mlflow(Remote):
    """Lightning's MLFlowLogger, by default with a database in the folder of all runs."""

    def open(self) -> None:
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        root = self.run.absolute().parent.parent
        with FileLock(root / ".mlflow.lock"):  # two runs of a sweep would create the same tables
            try:
                self._open(root)
            except Exception as error:
                if not self.identity or "not found" not in str(error):
                    raise
                self.identity, self.kept = "", False  # the store is another, or the run was deleted there
                self._open(root)

    def _open(self, root: Path) -> None:
        from pytorch_lightning.loggers import MLFlowLogger

        place = os.environ.get("MLFLOW_TRACKING_URI")
        self.logger = MLFlowLogger(
            experiment_name=os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT),
            run_name=self.run.name,
            tracking_uri=place or f"sqlite:///{root / 'mlflow.db'}",
            artifact_location=None if place else (root / "mlruns").as_uri(),
            tags={"folder": self.run.parent.name},
            run_id=self.identity or None,
        )
        client = self.logger.experiment
        self.identity = str(self.logger.run_id)
        client.update_run(self.identity, status="RUNNING")

    def values(self, values: Mapping[str, Any]) -> None:
        known = self.logger.experiment.get_run(self.identity).data.params
        self.logger.log_hyperparams({key: value for key, value in values.items() if key not in known})

    def scalars(self, metrics: Mapping[str, float], batch: int) -> None:
        self.logger.log_metrics(dict(metrics), batch)

    def picture(self, tag: str, picture: np.ndarray, batch: int) -> None:
        self.logger.experiment.log_image(self.identity, picture, artifact_file=f"{tag}-batch-{batch:08d}.png")

    def close(self, *, done: bool) -> None:
        self.logger.finalize("FINISHED" if done else "KILLED")


class Trackio(Remote):
    """Trackio, for which Lightning has no logger."""

    buffered = True

    def open(self) -> None:
        import trackio

        self.session = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", PROJECT),
            name=f"{self.run.name}-{self.identity[:4]}",  # trackio has no identity but the name
            group=self.run.parent.name,
            resume="allow",
            embed=False,
            auto_log_cpu=False,
            auto_log_gpu=False,
        )

    def values(self, values: Mapping[str, Any]) -> None:
        self.session.config = {**(self.session.config or {}), **values}

    def scalars(self, metrics: Mapping[str, float], batch: int) -> None:
        self.session.log(dict(metrics), step=batch)

    def picture(self, tag: str, picture: np.ndarray, batch: int) -> None:
        from trackio import Image

        self.session.log({tag: Image(picture)}, step=batch)

    def close(self, *, done: bool) -> None:
        import trackio

        trackio.finish()


REMOTES: dict[str, type[Remote]] = {"csv": Csv, "wandb": Wandb, "mlflow": Mlflow, "trackio": Trackio}
