"""Promises 8 and 12: one folder a job, with one TensorBoard run on one step axis, complete after a kill."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from pegasus_lightning.runs.folder import run_name
from pegasus_lightning.train.callbacks.tensorboard import shown
from pegasus_lightning.train.settings import TRAIN
from pegasus_lightning.utils.compose import plain


def hparams_of(run: Path) -> list[HParamsPluginData]:
    """All HParams records in the run's event files, in order."""
    found = []
    for path in sorted(run.glob("events.*"), key=lambda path: path.stat().st_mtime_ns):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if value.metadata.plugin_data.plugin_name == "hparams":
                    found.append(HParamsPluginData.FromString(value.metadata.plugin_data.content))
    return found


@pytest.mark.promise(12)
@pytest.mark.parametrize(
    "point",
    [
        None,
        pytest.param("TwoPlayerModel.training_step before 3", marks=pytest.mark.slow),
        pytest.param("TwoPlayerModel.training_step before 11", marks=pytest.mark.slow),
    ],
)
def test_a_job_is_one_run_on_one_axis_with_a_whole_row_of_hparams(
    command: Any, left: Callable[[Path], Any], unbroken: Any, tmp_path: Path, point: str | None
) -> None:
    if point is not None:
        assert command(tmp_path, strike=point).code == -signal.SIGKILL
        assert command(tmp_path).code == 0
    run = unbroken if point is None else left(tmp_path)
    steps = run.steps
    for tag, at in steps.items():
        assert at == sorted(set(at)), tag
        assert set(at) <= {3, 4, 6, 8, 9, 12}, tag  # batches done, not the 24 optimizer steps
    by_file = {shown(tag): [batch for batch, other, _ in run.metrics if other == tag] for _, tag, _ in run.metrics}
    assert by_file == {tag: at for tag, at in steps.items() if not tag.startswith(("images/", "speed/"))}

    kinds = [data.WhichOneof("data") for data in hparams_of(run.run)]
    assert sorted(kinds) == ["experiment", "session_end_info", "session_start_info"]
    (experiment,) = [data.experiment for data in hparams_of(run.run) if data.WhichOneof("data") == "experiment"]
    final = {info.name.tag for info in experiment.metric_infos if info.name.tag.startswith("final/")}
    assert final == {tag for tag in steps if tag.startswith("final/")}
    assert len(final) == 6
    assert all(steps[tag] == [12] for tag in final)


@pytest.mark.slow
@pytest.mark.promise(8)
def test_jobs_that_differ_have_folders_of_their_own_with_short_names(command: Any, tmp_path: Path) -> None:
    short = ["trainer.max_epochs=1", "callbacks=quiet", "trainer.evaluate_test=false"]
    long = [f"model.networks.{key}" for key in ("fc_layers=1", "fc_width=512", "batch_norm=true", "conv_layers=3")]
    long += [f"model.{player}_optimizer.beta2=0.99912345678901" for player in ("autoencoder", "critic")]
    jobs = [
        ["seed=1"],
        ["seed=2"],
        [*long, "model.weights.kl=1.00000000001"],
        [*long, "model.weights.kl=1.00000000002"],
    ]
    jobs += [["run_name=same"], ["run_name=same", "model.weights.kl=2"]]
    folders: set[str] = set()
    for count, job in enumerate(jobs, start=1):
        ended = command(tmp_path, *short, *job)
        assert ended.code == 0, ended.err
        assert "Training" in ended.out  # not reported as already trained
        folders = {path.name for path in (tmp_path / "runs" / "single").iterdir()}
        assert len(folders) == count
    assert max(map(len, folders)) == 120
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["single"]  # only run folders, one level deep


@pytest.mark.promise(8)
@pytest.mark.parametrize("readable", ["馬" * 200, "x" * 500, "a/b\\c:d*e?f"])
def test_a_name_can_be_a_folder_whatever_was_typed(tmp_path: Path, readable: str) -> None:
    name = run_name(plain(TRAIN.compose(["data=silhouettes"])), readable)
    assert len(name) <= 120
    assert not set(name) & set('/\\:*?"<>|')
    (tmp_path / name).mkdir()
