"""Tests of the loggers of other tools: what they are sent, through interruptions and failures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from pegasus_lightning.train import settings
from pegasus_lightning.train.callbacks import loggers
from pegasus_lightning.train.callbacks.remotes import REMOTES, Remote
from pegasus_lightning.train.callbacks.run_logger import RunLogger, clear
from pegasus_lightning.utils.errors import UserError

PICTURE = np.zeros((2, 3, 3), dtype=np.uint8)


class Fake(Remote):
    """A tool in memory: by identity, the entries (tag, batch, value) in order."""

    store: ClassVar[dict[str, list[tuple[str, int, float]]]] = {}
    fails_at = 10**9

    def open(self) -> None:
        self.identity = self.identity or f"run{len(self.store)}"
        self.entries = self.store.setdefault(self.identity, [])

    def values(self, values: Mapping[str, Any]) -> None:
        self.entries.append(("seed", 0, values["seed"]))

    def scalars(self, metrics: Mapping[str, float], batch: int) -> None:
        if batch >= self.fails_at:
            raise ConnectionError("no route\nto host")
        self.entries += [(tag, batch, value) for tag, value in metrics.items()]

    def picture(self, tag: str, picture: np.ndarray, batch: int) -> None:
        self.entries.append((tag, batch, 0.0))

    def close(self, *, done: bool) -> None:
        self.entries.append(("done", 0, float(done)))


@pytest.fixture(params=["mlflow", "wandb"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A tool without and with a buffer, each replaced by `Fake`."""
    monkeypatch.setattr(Fake, "store", {})
    monkeypatch.setattr(Fake, "buffered", REMOTES[request.param].buffered)
    monkeypatch.setitem(REMOTES, request.param, Fake)
    return request.param


def session(
    folder: Path, batches: list[int], kinds: list[str], resumed: int | None = None, *, end: bool = True
) -> None:
    """Log at `batches`; without `end`, as if killed."""
    logger = RunLogger(folder, resumed, None, kinds)
    for batch in batches:
        logger.log_metrics({"loss/kl": batch / 10}, batch)
        logger.log_picture("images/prior", PICTURE, batch)
    if end:
        logger.close()


def sent(tag: str = "loss/kl") -> list[int]:
    (entries,) = Fake.store.values()
    return [batch for other, batch, _ in entries if other == tag]


def test_a_run_has_the_entries_of_metrics_jsonl_its_settings_and_its_end(tmp_path: Path, kind: str) -> None:
    logger = RunLogger(tmp_path, kinds=[kind])
    logger.open_hparams({"seed": 3}, [])
    logger.log_metrics({"loss/kl": 0.5, "epoch": 1}, 2)
    logger.begin_closing()
    logger.log_metrics({"test/psnr": 20.0}, 4)
    logger.close_hparams({"final/psnr": 20.0}, 4)
    logger.close()
    (entries,) = Fake.store.values()
    assert entries == [
        ("seed", 0, 3), ("loss/kl", 2, 0.5), ("test/psnr", 4, 20.0), ("final/psnr", 4, 20.0), ("done", 0, 1.0)
    ]  # fmt: skip
    assert not list(tmp_path.glob("events.*"))  # TensorBoard was not chosen


def test_a_run_that_goes_on_does_so_there_and_sends_only_what_is_new(tmp_path: Path, kind: str) -> None:
    session(tmp_path, [2, 4, 6], [kind])
    session(tmp_path, [6, 8], [kind], resumed=4)
    assert sent() == sent("images/prior") == [2, 4, 6, 8]


def test_after_two_kills_nothing_is_missing_and_only_a_tool_with_a_buffer_gets_entries_again(
    tmp_path: Path, kind: str
) -> None:
    session(tmp_path, [2, 4, 6, 8], [kind], end=False)
    session(tmp_path, [6], [kind], resumed=4, end=False)
    session(tmp_path, [6, 8, 10], [kind], resumed=4)
    if Fake.buffered:  # the first two sessions may not have been stored
        assert sent() == [2, 4, 6, 8, 2, 4, 6, 2, 4, 6, 8, 10]
    else:
        assert sent() == sent("images/prior") == [2, 4, 6, 8, 10]


def test_a_buffer_is_taken_as_stored_after_enough_entries(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loggers, "BUFFER", 3)
    session(tmp_path, list(range(1, 9)), [kind], end=False)
    session(tmp_path, [9], [kind], resumed=8)
    again = [4, 5, 6, 7, 8] if Fake.buffered else []  # after 6 entries those before the last 3 are stored
    assert sent() == [*range(1, 9), *again, 9]


def test_a_logger_that_is_new_or_was_left_out_gets_the_figures_that_it_lacks(tmp_path: Path, kind: str) -> None:
    session(tmp_path, [2, 4], ["tensorboard"])
    session(tmp_path, [6], [kind], resumed=4)
    session(tmp_path, [8], ["csv"], resumed=6)
    session(tmp_path, [10], [kind, "csv"], resumed=8)
    assert sent() == [2, 4, 6, 8, 10]
    rows = (tmp_path / "csv" / "metrics.csv").read_text().split()
    assert rows == ["loss/kl,step", "0.2,2", "0.4,4", "0.6,6", "0.8,8", "1.0,10"]


def test_a_logger_that_fails_ends_nothing_and_catches_up(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Fake, "fails_at", 4)
    session(tmp_path, [2, 4, 6], [kind])
    assert capsys.readouterr().out.count(f"logger={kind} failed (ConnectionError: no route).") == 1
    assert [json.loads(line)["batch"] for line in (tmp_path / "metrics.jsonl").open()] == [2, 4, 6]
    monkeypatch.setattr(Fake, "fails_at", 10**9)
    session(tmp_path, [8], [kind], resumed=6)
    wanted = [2, 2, 4, 6, 8] if Fake.buffered else [2, 4, 6, 8]
    assert sent() == wanted


def test_an_attempt_without_a_checkpoint_leaves_nothing_behind(tmp_path: Path, kind: str) -> None:
    session(tmp_path, [2], [kind, "tensorboard"], end=False)
    clear(tmp_path)
    assert list(tmp_path.iterdir()) == []
    session(tmp_path, [2], [kind])
    assert len(Fake.store) == 2  # a run of its own


@pytest.mark.parametrize("content", ["{", "[]", '{"wandb": 3}', '{"wandb": {"id": "../x", "sent": {}}}'])
def test_a_record_that_is_not_believed_begins_a_new_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    monkeypatch.setattr(Fake, "store", {})
    monkeypatch.setitem(REMOTES, "wandb", Fake)
    (tmp_path / "loggers.json").write_text(content)
    session(tmp_path, [2], ["wandb"])
    assert sent() == [2] and "x" not in "".join(Fake.store)


def test_a_missing_package_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "find_spec", lambda name: None)
    assert settings.chosen_loggers(["tensorboard", "csv", "csv"]) == ("tensorboard", "csv")
    with pytest.raises(UserError, match=r"logger=trackio needs .* pip install -e '\.\[trackio\]'\.$"):
        settings.chosen_loggers("trackio")


def test_mlflow_keeps_figures_settings_and_pictures_through_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run = tmp_path / "runs" / "single" / "vae-s0"
    run.mkdir(parents=True)
    session(run, [2, 4, 6], ["mlflow"], end=False)
    session(run, [6, 8], ["mlflow"], resumed=4)
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}")
    (found,) = client.search_runs([client.get_experiment_by_name("pegasus_lightning").experiment_id])
    history = client.get_metric_history(found.info.run_id, "loss/kl")
    assert [(entry.step, entry.value) for entry in history] == [(2, 0.2), (4, 0.4), (6, 0.6), (8, 0.8)]
    assert [file.path for file in client.list_artifacts(found.info.run_id, "images")] == [
        f"images/prior-batch-{batch:08d}.png" for batch in (2, 4, 6, 8)
    ]
