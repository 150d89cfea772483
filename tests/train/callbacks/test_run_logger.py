"""Tests of the logs of a run: one axis, and no repeated entries in continued runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing import plugin_event_accumulator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.summary.writer import event_file_writer

from pegasus_lightning.train.callbacks.run_logger import RunLogger


@pytest.fixture(autouse=True)
def event_files_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give event file counters equal numbers of digits: files of one second are read in the order of their names."""
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(100))


def read(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0}).Reload()


def lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def picture(value: int) -> np.ndarray:
    return np.full((6, 9, 3), value, dtype=np.uint8)


def write(folder: Path, batches: list[int], resumed_at: int | None = None) -> None:
    logger = RunLogger(folder, resumed_at)
    for batch in batches:
        logger.log_metrics({"loss/kl": batch / 10}, batch)
        logger.log_picture("images/prior", picture(batch), batch)
    logger.close()


def test_a_value_stands_at_its_batch_in_both_places(tmp_path: Path) -> None:
    write(tmp_path, [2, 4, 5])
    assert lines(tmp_path) == [{"batch": 2, "loss/kl": 0.2}, {"batch": 4, "loss/kl": 0.4}, {"batch": 5, "loss/kl": 0.5}]
    board = read(tmp_path)
    assert [(event.step, round(event.value, 6)) for event in board.Scalars("1-main/KL")] == [
        (2, 0.2),
        (4, 0.4),
        (5, 0.5),
    ]
    pictures = board.Images("images/prior")
    assert [(event.step, event.width, event.height) for event in pictures] == [(2, 9, 6), (4, 9, 6), (5, 9, 6)]


def test_a_text_stands_at_its_batch_and_in_tensorboard_alone(tmp_path: Path) -> None:
    logger = RunLogger(tmp_path)
    logger.log_text("health", "| all | well |", 4)
    logger.log_text("health", "**alarm**", 8)
    logger.close()
    again = RunLogger(tmp_path, resumed_at=4)
    again.log_text("health", "well again", 6)
    again.close()
    # Read as TensorBoard does: the other accumulator never purges texts.
    board = plugin_event_accumulator.EventAccumulator(str(tmp_path)).Reload()
    found = board.Tensors("health/text_summary")
    assert [(event.step, event.tensor_proto.string_val) for event in found] == [
        (4, [b"| all | well |"]),
        (6, [b"well again"]),
    ]
    assert not (tmp_path / "metrics.jsonl").exists()


def test_the_epoch_that_lightning_adds_is_left_out(tmp_path: Path) -> None:
    logger = RunLogger(tmp_path)
    logger.log_metrics({"epoch": 3}, 8)
    logger.log_metrics({"epoch": 3, "loss/kl": 1.0}, 4)
    logger.close()
    assert lines(tmp_path) == [{"batch": 4, "loss/kl": 1.0}]
    assert read(tmp_path).Tags()["scalars"] == ["1-main/KL"]


@pytest.mark.promise(12)
def test_going_on_takes_back_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    write(tmp_path, [2, 4, 6, 8])
    write(tmp_path, [6, 10], resumed_at=4)
    assert [line["batch"] for line in lines(tmp_path)] == [2, 4, 6, 10]
    board = read(tmp_path)
    assert [event.step for event in board.Scalars("1-main/KL")] == [2, 4, 6, 10]
    assert [event.step for event in board.Images("images/prior")] == [2, 4, 6, 10]


@pytest.mark.promise(12)
def test_going_on_twice(tmp_path: Path) -> None:
    write(tmp_path, [2, 4, 6])
    write(tmp_path, [6, 8], resumed_at=4)
    write(tmp_path, [10], resumed_at=6)
    assert [line["batch"] for line in lines(tmp_path)] == [2, 4, 6, 10]
    assert [event.step for event in read(tmp_path).Scalars("1-main/KL")] == [2, 4, 6, 10]


@pytest.mark.parametrize("torn", ['{"batch": 3, "loss', "", "null", '{"loss/kl": 1}'])
def test_a_torn_last_line_is_taken_back_too(tmp_path: Path, torn: str) -> None:
    write(tmp_path, [2])
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write(torn)
    write(tmp_path, [6], resumed_at=4)
    assert [line["batch"] for line in lines(tmp_path)] == [2, 6]


@pytest.mark.promise(12)
def test_the_hparams_row_is_opened_once_and_closed_with_the_metrics(tmp_path: Path) -> None:
    logger = RunLogger(tmp_path)
    values = {"seed": 3, "model.batch_norm": True, "classes": ["horse", "bird"], "clip": None}
    logger.open_hparams(values, ["final/psnr"])
    logger.log_metrics({"loss/kl": 1.0}, 2)
    logger.close()
    again = RunLogger(tmp_path, resumed_at=2)
    again.open_hparams({"seed": 3}, ["final/psnr"])
    again.close_hparams({"final/psnr": 21.5}, 4)
    again.close()
    board = read(tmp_path)
    contents = {tag: HParamsPluginData.FromString(data) for tag, data in board.PluginTagToContent("hparams").items()}
    row = contents["_hparams_/session_start_info"].session_start_info.hparams
    assert row["Seed"].string_value == "3"
    assert row["model.batch_norm"].number_value == 1
    assert row["classes"].string_value == "['horse', 'bird']"
    assert row["clip"].string_value == "None"
    assert [info.name.tag for info in contents["_hparams_/experiment"].experiment.metric_infos] == ["final/psnr"]
    assert contents["_hparams_/session_end_info"].HasField("session_end_info")
    assert [(event.step, event.value) for event in board.Scalars("final/psnr")] == [(4, 21.5)]
    assert lines(tmp_path)[-1] == {"batch": 4, "final/psnr": 21.5}


def test_nothing_is_made_before_there_is_something_to_log(tmp_path: Path) -> None:
    logger = RunLogger(tmp_path)
    logger.save()
    logger.finalize("success")
    logger.log_hyperparams({"seed": 0})
    logger.close()
    assert list(tmp_path.iterdir()) == []
    assert (logger.name, logger.version) == (tmp_path.name, "")


def test_what_is_final_is_written_at_once_and_taken_back_by_a_run_that_goes_on(tmp_path: Path) -> None:
    logger = RunLogger(tmp_path)
    logger.open_hparams({"seed": 3}, ["final/psnr"])
    logger.log_metrics({"validation/psnr": 20.0}, 4)
    logger.begin_closing()
    logger.log_metrics({"test/psnr": 21.5}, 4)
    assert [entry["batch"] for entry in lines(tmp_path)] == [4]
    logger.close_hparams({"final/psnr": 21.5}, 4)
    logger.close()
    assert lines(tmp_path)[1:] == [{"batch": 4, "test/psnr": 21.5, "final/psnr": 21.5}]
    assert [event.step for event in read(tmp_path).Scalars("test/psnr")] == [4]

    again = RunLogger(tmp_path, resumed_at=4)
    again.log_metrics({"loss/kl": 1.0}, 8)
    again.close()
    assert lines(tmp_path) == [{"batch": 4, "validation/psnr": 20.0}, {"batch": 8, "loss/kl": 1.0}]
    board = read(tmp_path)
    assert sorted(board.Tags()["scalars"]) == ["1-main/KL", "1-main/PSNR"]
