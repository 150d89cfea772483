"""Tests of whole runs, interrupted and continued: files, logged values, weights.

76 images in batches of 16 are 4 batches an epoch. With a log entry every 3 batches and at the end of an
epoch, 3 epochs log at batches 3 4 | 6 8 | 9 12.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from running import SETTINGS, at_batch, checkpoint_of, digest, logged, run, status_of, tensorboard, the_run
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from pegasus_lightning.models.adversarial_vae import AdversarialVAE
from pegasus_lightning.models.losses import Term
from pegasus_lightning.models.two_player import TwoPlayerModel

BATCHES_PER_EPOCH = 4
PICTURES = ("reconstructions", "interpolations", "mixes", "prior")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of three epochs without interruption."""
    folder = tmp_path_factory.mktemp("whole")
    session = run(folder, "trainer.max_epochs=3")
    assert session.code == 0
    assert "Done:" in session.out
    return the_run(folder)


# Files of a run.


def test_a_run_folder_is_complete(whole: Path) -> None:
    found = {path.name for path in whole.iterdir() if not path.name.startswith("events.out.tfevents.")}
    assert found == {"config.yaml", "status.json", "checkpoints", "images", "metrics.jsonl", "train.log", ".lock"}
    names = {path.name for path in (whole / "checkpoints").iterdir()}
    assert names == {f"{name}.ckpt{end}" for name in ("last", "previous", "best") for end in ("", ".sha256")}
    status = status_of(whole)
    assert (status["status"], status["exit_code"], status["reason"]) == ("finished", 0, None)
    assert (status["epochs"], status["batches"]) == (3, 12)
    assert whole.name == f"adversarial_vae,silhouettes,{_overridden()}-s0-{status['config_hash'][:8]}"


def _overridden() -> str:
    return "train_per_class=40,test_per_class=10,batch_size=16,channels=4,latent_dim=8"


@pytest.mark.promise(12)
def test_scalars_lie_on_one_axis_of_batches_done(whole: Path) -> None:
    board = tensorboard(whole)
    steps = {tag: [event.step for event in board.Scalars(tag)] for tag in board.Tags()["scalars"]}
    in_training, per_epoch, at_end = [3, 4, 6, 8, 9, 12], [4, 8, 12], [12]
    expected = {
        **dict.fromkeys([f"1-main/{name}" for name in ("Loss_reconstruction", "KL", "critic_real")], in_training),
        **dict.fromkeys(["1-main/critic_fake", "loss/adversarial"], in_training),
        **dict.fromkeys(["critic_loss/real", "critic_loss/fake"], in_training),
        "speed/images_per_second": in_training,
        "gradient_norm/autoencoder": [3, 6, 9, 12],
        "gradient_norm/critic": [3, 6, 9, 12],
        **dict.fromkeys(["health/active_dimensions", "health/critic_skill", "health/variety"], per_epoch),
    }
    figures = ["psnr", "excess_bce", "kl", "active_dimensions", "critic_real", "critic_fake"]
    for split, when in (("validation", per_epoch), ("test", at_end), ("final", at_end)):
        expected |= dict.fromkeys([f"{split}/{name}" for name in figures], when)
    expected["1-main/PSNR"] = expected.pop("validation/psnr")
    assert steps == expected


@pytest.mark.promise(12)
def test_metrics_jsonl_says_what_tensorboard_says(whole: Path) -> None:
    board, values = tensorboard(whole), logged(whole)
    back = {
        "1-main/KL": "loss/kl",
        "1-main/PSNR": "validation/psnr",
        "1-main/Loss_reconstruction": "loss/reconstruction",
    }
    back |= {f"1-main/critic_{name}": f"critic/{name}" for name in ("real", "fake")}
    shown = {back.get(tag, tag): tag for tag in board.Tags()["scalars"]}
    assert values.keys() == shown.keys()
    for tag, by_batch in values.items():
        events = board.Scalars(shown[tag])
        assert list(by_batch) == [event.step for event in events]
        assert [event.value for event in events] == pytest.approx(list(by_batch.values()), rel=1e-6)
        assert all(math.isfinite(value) for value in by_batch.values())


def test_logged_values_are_plausible(whole: Path) -> None:
    values = logged(whole)
    untrained = 3 * 32 * 32 * math.log(2)  # nats: the cross-entropy if every pixel is predicted as 1/2
    assert 0.5 * untrained < values["loss/reconstruction"][3] < 1.1 * untrained
    assert values["loss/reconstruction"][12] < values["loss/reconstruction"][3]
    assert all(0 < value < 1 for value in values["critic/real"].values())
    assert all(value > 0 for value in values["gradient_norm/critic"].values())
    assert all(0 <= value <= 8 for value in values["validation/active_dimensions"].values())
    assert all(value > 1 for value in values["speed/images_per_second"].values())
    final = {tag.partition("/")[2]: value for tag, value in values.items() if tag.startswith("final/")}
    test = {tag.partition("/")[2]: value for tag, value in values.items() if tag.startswith("test/")}
    assert final == test


def test_pictures_in_tensorboard_are_the_png_files(whole: Path) -> None:
    board = tensorboard(whole)
    assert set(board.Tags()["images"]) == {f"images/{name}" for name in PICTURES}
    files = {path.name for path in (whole / "images").iterdir()}
    assert files == {f"{name}-epoch-{epoch:04d}.png" for name in PICTURES for epoch in (1, 3)}
    for name in PICTURES:
        events = board.Images(f"images/{name}")
        assert [event.step for event in events] == [4, 12]
        for event, epoch in zip(events, (1, 3), strict=True):
            png = Image.open(whole / "images" / f"{name}-epoch-{epoch:04d}.png")
            assert (event.width, event.height) == png.size
            shown = Image.open(io.BytesIO(event.encoded_image_string))
            assert np.array_equal(np.asarray(shown.convert("RGB")), np.asarray(png.convert("RGB")))


@pytest.mark.promise(12)
def test_the_hparams_row_is_whole(whole: Path) -> None:
    board = tensorboard(whole)
    contents = {tag: HParamsPluginData.FromString(data) for tag, data in board.PluginTagToContent("hparams").items()}
    assert set(contents) == {"_hparams_/experiment", "_hparams_/session_start_info", "_hparams_/session_end_info"}
    row = contents["_hparams_/session_start_info"].session_start_info.hparams
    assert row["model.networks.latent_dim"].number_value == 8
    assert row["Model"].string_value == "adversarial_vae"
    assert row["model.weights.adversarial"].number_value == 1
    assert row["data.batch_size"].number_value == 16
    assert row["model.networks.batch_norm"].number_value == 1
    assert row["Seed"].string_value == "0"
    columns = contents["_hparams_/experiment"].experiment.hparam_infos
    first = sorted(column.name for column in columns if column.differs)  # as TensorBoard sorts them
    assert first == ["Model", "Seed", "data.source", "model.networks.channels", "model.networks.latent_dim"]
    measured = {info.name.tag for info in contents["_hparams_/experiment"].experiment.metric_infos}
    final = {tag for tag in board.Tags()["scalars"] if tag.startswith("final/")}
    assert len(final) == 6
    judged = ("recognised", "chimera", "kid", "density", "coverage", "memorised", "variety", "linearity")
    assert measured == final | {f"evaluation/{name}" for name in judged}  # `evaluate` fills the others


def test_the_charts_of_custom_scalars_show_what_was_logged(whole: Path) -> None:
    board = tensorboard(whole)
    assert board.Tags()["tensors"] == ["custom_scalars__config__"]
    layout = Layout.FromString(board.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    shown = {
        chart.title: {tag for tag in board.Tags()["scalars"] for wanted in chart.multiline.tag if re.match(wanted, tag)}
        for category in layout.category
        for chart in category.chart
    }
    assert all(shown.values())
    assert shown["C(real), C(fake) and other outputs of the critic"] == {"1-main/critic_real", "1-main/critic_fake"}
    assert shown["Loss terms"] == {"1-main/Loss_reconstruction", "1-main/KL", "loss/adversarial"}
    assert shown["KL in training and validation"] == {"1-main/KL", "validation/kl"}


@pytest.mark.promise(11)
def test_a_checkpoint_is_plain_data(whole: Path) -> None:
    content = checkpoint_of(whole)  # weights_only=True

    def types(node: Any) -> set[type]:
        children = node.values() if type(node) is dict else node if type(node) is list else ()
        return {type(node)}.union(*(types(child) for child in children))

    assert types(content["hyper_parameters"]) <= {dict, list, str, int, float, bool, type(None)}
    assert content["hyper_parameters"]["model"]["networks"]["latent_dim"] == 8
    assert content["hyper_parameters"]["classes"] == ["horse", "bird"]
    assert content["batches_done"] == 12


def test_status_is_up_to_date_after_every_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr(TwoPlayerModel, "training_step", at_batch(4, lambda: seen.append(status_of(the_run(tmp_path)))))
    run(tmp_path, "trainer.max_epochs=2", "callbacks.images=false")
    (status,) = seen
    assert (status["status"], status["epochs"], status["batches"]) == ("running", 1, 4)
    values = logged(the_run(tmp_path))
    for tag in ("validation/psnr", "loss/reconstruction"):
        assert status["metrics"][tag] == values[tag][4]


# Interrupted and continued.


@pytest.mark.promise(1)
def test_a_run_continued_with_more_epochs_has_the_weights_of_an_unbroken_one(whole: Path, tmp_path: Path) -> None:
    assert run(tmp_path, "trainer.max_epochs=1").code == 0
    first = the_run(tmp_path)
    assert checkpoint_of(first)["batches_done"] == 4
    assert digest(first) != digest(whole)
    session = run(tmp_path, "trainer.max_epochs=3")
    assert session.code == 0
    assert "Continuing from last.ckpt" in session.out
    assert "conditions" not in session.out
    assert len(status_of(first)["machines"]) == 1
    assert the_run(tmp_path) == first
    assert digest(first) == digest(whole)
    assert logged(first)["validation/psnr"] == logged(whole)["validation/psnr"]
    assert logged(first)["loss/kl"] == logged(whole)["loss/kl"]
    board = tensorboard(first)
    assert [event.step for event in board.Scalars("1-main/KL")] == [3, 4, 6, 8, 9, 12]
    assert [event.step for event in board.Scalars("final/psnr")] == [12]  # the final figures at 4 are gone
    assert set(board.PluginTagToContent("hparams")) == {
        "_hparams_/experiment", "_hparams_/session_start_info", "_hparams_/session_end_info"
    }  # fmt: skip


@pytest.mark.slow
def test_a_run_that_continues_on_another_kind_of_machine_says_so(tmp_path: Path) -> None:
    assert run(tmp_path, "trainer.max_epochs=1").code == 0
    folder = the_run(tmp_path)
    status = status_of(folder)
    (here,) = status["machines"]
    assert (here["precision"], here["device"], here["processes"]) == ("32-true", "cpu", 1)
    assert here["threads"] == torch.get_num_threads()
    assert here["cpu"] and here["cpu_flags"][0] == torch.backends.cpu.get_cpu_capability()
    former = here | {"threads": 64, "precision": "bf16-mixed"}
    (folder / "status.json").write_text(json.dumps(status | {"machines": [former]}))
    session = run(tmp_path, "trainer.max_epochs=2")
    changes = f"precision 32-true (before: bf16-mixed), threads {here['threads']} (before: 64)."
    assert f"The run continues under other conditions: {changes}" in session.out
    status = status_of(folder)
    assert status["machines"] == [former, here]
    assert status["weights"]["loss/kl"] == 1
    for foreign in (None, {}, ["here"], [None]):  # of no release
        (folder / "status.json").write_text(json.dumps(status | {"machines": foreign}))
        epochs = status_of(folder)["epochs"] + 1
        session = run(tmp_path, f"trainer.max_epochs={epochs}")
        assert session.code == 0 and "conditions" not in session.out
        status = status_of(folder)
        assert status["machines"] == [{"cpu": "unknown"}, here]


@pytest.mark.slow
def test_a_run_with_lessons_is_continued_to_the_weights_of_an_unbroken_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The lessons, the average of the mixing and the penalties at every fourth batch depend on the batch number.
    ours = ("model=pegasus", "model.networks.latent_dim=64", "model.lessons=20")
    folders = [tmp_path / name for name in ("whole", "broken")]
    for folder in folders:
        folder.mkdir()
    session = run(folders[0], *ours, "trainer.max_epochs=2")
    assert session.code == 0, session.err
    monkeypatch.setattr(TwoPlayerModel, "training_step", at_batch(6, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    assert run(folders[1], *ours, "trainer.max_epochs=2").code == 143
    monkeypatch.undo()
    session = run(folders[1], *ours, "trainer.max_epochs=2")
    assert session.code == 0, session.err
    whole, broken = (the_run(folder) for folder in folders)
    assert digest(broken) == digest(whole)
    names = ("loss/alpha", "loss/adversarial_mix", "critic_penalty/r1", "critic_penalty/r2")
    for name in names:
        assert logged(broken)[name] == logged(whole)[name]


def test_a_finished_run_is_left_alone_and_says_so(whole: Path) -> None:
    def snapshot() -> dict[Path, tuple[int, int]]:
        files = [path for path in whole.parent.rglob("*") if path.is_file()]
        return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in files}

    before = snapshot()
    for epochs in (3, 2):
        session = run(whole.parent.parent.parent, f"trainer.max_epochs={epochs}")
        assert session.code == 0
        assert "Already trained" in session.out
        assert whole.name in session.out
    assert snapshot() == before


@pytest.mark.slow
@pytest.mark.promise(4)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_in_mid_epoch_and_the_run_goes_on_to_the_same_weights(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    monkeypatch.setattr(TwoPlayerModel, "training_step", at_batch(4, lambda: os.kill(os.getpid(), number)))
    session = run(tmp_path, "trainer.max_epochs=3")
    monkeypatch.undo()
    assert session.code == 128 + number
    assert "Run the same command again" in session.out
    broken = the_run(tmp_path)
    status = status_of(broken)
    assert (status["status"], status["exit_code"]) == ("interrupted", 128 + number)
    assert number.name in status["reason"]
    assert status["batches"] == 5
    assert checkpoint_of(broken)["batches_done"] == 5  # the batch in which the signal came was finished

    assert run(tmp_path, "trainer.max_epochs=3").code == 0
    assert the_run(tmp_path) == broken
    assert status_of(broken)["status"] == "finished"
    assert digest(broken) == digest(whole)
    assert list(logged(broken)["loss/kl"]) == [3, 4, 6, 8, 9, 12]
    board = tensorboard(broken)
    entries = {tag: list(by_batch) for tag, by_batch in logged(broken).items()}
    for tag in board.Tags()["scalars"]:
        steps = [event.step for event in board.Scalars(tag)]
        assert steps == sorted(set(steps))
        assert tag.startswith("1-main/") or steps == entries[tag]


KILLED = """
import os, signal, sys
from pegasus_lightning.launch.command import run_command
from pegasus_lightning.models.two_player import TwoPlayerModel
step = TwoPlayerModel.training_step
def killed(self, batch, batch_idx):
    if self.batches_done == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    step(self, batch, batch_idx)
TwoPlayerModel.training_step = killed
run_command(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was killed after 7 batches (saved after 4) and then run again to its end."""
    folder = tmp_path_factory.mktemp("killed")
    arguments = [*SETTINGS, "trainer.max_epochs=3"]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.run(
        [sys.executable, "-c", KILLED, *arguments], cwd=folder, env=environment, capture_output=True, check=False
    )
    assert process.returncode == -signal.SIGKILL
    assert status_of(the_run(folder))["status"] == "running"
    assert list(logged(the_run(folder))["loss/kl"]) == [3, 4, 6]
    assert run(folder, "trainer.max_epochs=3").code == 0
    return the_run(folder)


@pytest.mark.slow
@pytest.mark.promise(1)
def test_kill_9_and_again_gives_the_weights_of_an_unbroken_run(whole: Path, killed: Path) -> None:
    assert digest(killed) == digest(whole)
    assert status_of(killed)["status"] == "finished"
    assert logged(killed)["loss/kl"] == logged(whole)["loss/kl"]  # values logged twice are kept once


@pytest.mark.slow
@pytest.mark.promise(12)
def test_kill_9_loses_nothing_that_was_logged_before_the_checkpoint(whole: Path, killed: Path) -> None:
    before, after = tensorboard(whole), tensorboard(killed)
    assert set(after.PluginTagToContent("hparams")) == set(before.PluginTagToContent("hparams"))
    for tag in before.Tags()["scalars"]:
        assert [event.step for event in after.Scalars(tag)] == [event.step for event in before.Scalars(tag)]


def test_resume_never_refuses_a_used_folder(whole: Path) -> None:
    before = (whole / "status.json").read_bytes()
    session = run(whole.parent.parent.parent, "trainer.max_epochs=3", "resume=never")
    assert session.code == 2
    assert "resume=never" in session.err
    assert whole.name in session.err
    assert (whole / "status.json").read_bytes() == before


def test_resume_must_takes_a_run_that_was_begun(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole.parent.parent, tmp_path / "runs")
    session = run(tmp_path, "trainer.max_epochs=4", "resume=must")
    assert session.code == 0
    assert checkpoint_of(the_run(tmp_path))["batches_done"] == 16
    empty = tmp_path / "empty"
    empty.mkdir()
    session = run(empty, "trainer.max_epochs=4", "resume=must")
    assert session.code == 2
    assert "resume=must" in session.err
    assert list(empty.iterdir()) == []


@pytest.mark.promise(8)
def test_a_changed_configuration_is_another_run(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole.parent.parent, tmp_path / "runs")
    changed = ["trainer.max_epochs=1", "model.weights.kl=2", "callbacks.images=false", "trainer.evaluate_test=false"]
    assert run(tmp_path, *changed).code == 0
    runs = list((tmp_path / "runs" / "single").iterdir())
    assert len(runs) == 2
    (other,) = [path for path in runs if path.name != whole.name]
    assert checkpoint_of(other)["batches_done"] == 4
    assert not any(tag.startswith("test/") for tag in logged(other))
    assert "final/psnr" in logged(other)  # of the validation split


@pytest.mark.promise(8)
def test_a_checkpoint_of_another_configuration_is_refused(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole.parent.parent, tmp_path / "runs")
    path = the_run(tmp_path) / "status.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"config_hash": "0" * 64}))
    session = run(tmp_path, "trainer.max_epochs=4")
    assert session.code == 2
    assert "another configuration" in session.err


def test_a_run_ends_when_its_time_is_over_and_stays_ended(tmp_path: Path) -> None:
    limits = ["trainer.max_epochs=50", "trainer.max_time=0.001s", "callbacks.images=false"]
    ended = run(tmp_path, *limits)
    assert ended.code == 0
    assert (
        "Stopped after 1 of 50 epochs (trainer.max_time=0.001s). The same command with more time goes on:" in ended.out
    )
    assert "Done" not in ended.out
    status = status_of(the_run(tmp_path))
    assert (status["status"], status["epochs"], status["batches"]) == ("finished", 1, 4)
    assert status["reason"] == "trainer.max_time=0.001s: 1 of 50 epochs"
    assert checkpoint_of(the_run(tmp_path))["batches_done"] == 4
    assert "Already trained until trainer.max_time=0.001s: 1 of 50 epochs" in run(tmp_path, *limits).out
    longer = run(tmp_path, "trainer.max_epochs=2", "trainer.max_time=1h", "callbacks.images=false")
    assert longer.code == 0 and "Done: " in longer.out
    assert status_of(the_run(tmp_path)).get("reason") is None


@pytest.mark.slow
@pytest.mark.promise(2)
def test_the_last_epoch_is_saved_whatever_the_cadence(tmp_path: Path) -> None:
    overrides = ["trainer.max_epochs=2", "trainer.checkpoint_every_n_epochs=5", "callbacks.images=false"]
    assert run(tmp_path, *overrides).code == 0
    assert checkpoint_of(the_run(tmp_path))["batches_done"] == 8


# Failures.


def _burn() -> None:
    raise RuntimeError("the machine is on fire")


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that failed after 2 batches of the first epoch, each logged."""
    folder = tmp_path_factory.mktemp("failed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TwoPlayerModel, "training_step", at_batch(2, _burn))
        with pytest.raises(RuntimeError, match="on fire"):
            run(folder, "trainer.max_epochs=1", "trainer.log_every_n_steps=1")
    return folder


def test_a_failed_run_says_why(failed: Path) -> None:
    status = status_of(the_run(failed))
    assert (status["status"], status["exit_code"]) == ("failed", 1)
    assert status["reason"] == "RuntimeError: the machine is on fire"
    log = (the_run(failed) / "train.log").read_text()
    assert "Traceback" in log
    assert "_burn" in log
    assert list(logged(the_run(failed))["loss/kl"]) == [1, 2]


def test_a_run_that_failed_before_its_first_checkpoint_starts_its_log_anew(failed: Path, tmp_path: Path) -> None:
    shutil.copytree(failed / "runs", tmp_path / "runs")
    assert run(tmp_path, "trainer.max_epochs=1", "trainer.log_every_n_steps=1").code == 0
    assert status_of(the_run(tmp_path))["status"] == "finished"
    assert list(logged(the_run(tmp_path))["loss/kl"]) == [1, 2, 3, 4]
    assert [event.step for event in tensorboard(the_run(tmp_path)).Scalars("1-main/KL")] == [1, 2, 3, 4]


@pytest.mark.promise(13)
@pytest.mark.parametrize("every", [1, 50])
def test_a_loss_that_is_not_finite_fails_the_run_and_spares_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    losses = AdversarialVAE.autoencoder_losses

    def poisoned(self: AdversarialVAE, step: Any) -> dict[str, Term]:
        terms = losses(self, step)
        return terms | {"kl": Term(terms["kl"].value * math.nan)} if self.batches_done == 5 else terms

    monkeypatch.setattr(AdversarialVAE, "autoencoder_losses", poisoned)
    overrides = ["trainer.max_epochs=3", f"trainer.log_every_n_steps={every}", "callbacks.images=false"]
    session = run(tmp_path, *overrides)
    assert session.code == 1
    assert "loss/kl became NaN or infinite at batch 6." in session.err
    assert "Traceback" not in session.err
    status = status_of(the_run(tmp_path))
    assert (status["status"], status["exit_code"]) == ("failed", 1)
    assert "loss/kl" in status["reason"]
    assert "at batch 6." in status["reason"]
    content = checkpoint_of(the_run(tmp_path))
    assert content["batches_done"] == 4
    assert all(torch.isfinite(value.float()).all() for value in content["state_dict"].values())


@pytest.mark.slow
def test_a_failure_reaches_the_shell(tmp_path: Path) -> None:
    script = (
        "import pegasus_lightning.train.trainer as t\nimport pegasus_lightning.__main__ as m\nt.fit = None\nm.main()"
    )
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.run(
        [sys.executable, "-c", script, *SETTINGS, "trainer.max_epochs=1"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert process.returncode == 1
    assert "TypeError" in process.stderr
    assert status_of(the_run(tmp_path))["status"] == "failed"


# Two processes.


@pytest.mark.slow
def test_two_processes_train_as_one_does(tmp_path: Path) -> None:
    overrides = [
        "model.networks.batch_norm=false",  # its statistics are of one process's share of the batch
        "model.networks.critic_batch_norm=false",
        "trainer.log_every_n_steps=1",
        "trainer.max_epochs=2",
    ]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    two = subprocess.run(
        [sys.executable, "-m", "pegasus_lightning", *SETTINGS, *overrides, "trainer.cpu_processes=2", "runs_dir=two"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert two.returncode == 0, two.stderr
    assert "MEMBER: 2/2" in two.stderr  # there were two
    assert two.stdout.count("Run folder:") == 1
    assert run(tmp_path, *overrides, "runs_dir=one").code == 0
    single, double = the_run(tmp_path, "one"), the_run(tmp_path, "two")
    assert single.name == double.name
    assert len(list(double.glob("events.*[!l]"))) == 1  # and the file of the final figures
    expected, values = logged(single), logged(double)
    assert values.keys() == expected.keys()
    for tag in expected:
        if not tag.startswith("speed/"):
            assert values[tag] == pytest.approx(expected[tag], rel=1e-4, abs=1e-6), tag
    assert list(values["loss/kl"]) == list(range(1, 9))
    ours, theirs = checkpoint_of(single)["state_dict"], checkpoint_of(double)["state_dict"]
    assert ours.keys() == theirs.keys()
    for name, weights in ours.items():
        torch.testing.assert_close(theirs[name], weights, rtol=1e-3, atol=1e-4, msg=name)
    moved = max((ours[name] - theirs[name]).abs().max().item() for name in ours)
    assert moved < 1e-3


@pytest.mark.slow
@pytest.mark.promise(1)
def test_pegasus_in_two_processes_goes_on_to_the_weights_of_the_unbroken_run(tmp_path: Path) -> None:
    """BatchNorm statistics differ between processes until they are shared; only one process saves them."""
    overrides = ["model=pegasus", *FEW_LESSONS, "model.networks.batch_norm=true", "trainer.cpu_processes=2"]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(tmp_path)}

    def train(runs: str, epochs: int) -> None:
        subprocess.run(
            [sys.executable, "-m", "pegasus_lightning", *SETTINGS, *overrides]
            + [f"trainer.max_epochs={epochs}", f"runs_dir={runs}"],
            cwd=tmp_path, env=environment, capture_output=True, timeout=240, check=True,
        )  # fmt: skip

    train("unbroken", 2)
    train("broken", 1)
    half = checkpoint_of(the_run(tmp_path, "broken"))
    train("broken", 2)
    whole, resumed = (checkpoint_of(the_run(tmp_path, runs))["state_dict"] for runs in ("unbroken", "broken"))
    assert half["batches_done"] == BATCHES_PER_EPOCH
    assert whole.keys() == resumed.keys()
    assert any("running_mean" in name for name in whole)
    assert any(not torch.equal(half["state_dict"][name], whole[name]) for name in whole)
    assert [name for name in whole if not torch.equal(resumed[name], whole[name])] == []


FEW_LESSONS = ["model.networks.latent_dim=64", "model.lessons=20"]
ADAPTIVE = ["model.adaptive_adversarial=true", "model.r1=0.1", "model.networks.critic_batch_norm=false"]
ADAPTIVE += ["model.networks.critic_patches=true", "model.networks.residual_blocks=1"]
PRESETS = sorted(path.stem for path in (Path(__file__).parents[2] / "conf" / "model").glob("*.yaml"))


@pytest.mark.slow
@pytest.mark.parametrize("preset", [*PRESETS, "adaptive"])
def test_compiled_networks_have_the_losses_and_gradients_of_eager_ones(tmp_path: Path, preset: str) -> None:
    """R1 needs a second derivative; the adaptive weight and the learned mixing differentiate one graph repeatedly.

    The first batch is compared: Adam turns rounding errors of small gradients into steps of the learning rate.
    """
    overrides = ADAPTIVE if preset == "adaptive" else [f"model={preset}", *(FEW_LESSONS if preset == "pegasus" else [])]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(tmp_path)}
    first = []
    for runs, compiled in (("eager", "false"), ("compiled", "true")):
        done = subprocess.run(
            [sys.executable, "-m", "pegasus_lightning", *SETTINGS, *overrides, "trainer.max_epochs=1"]
            + ["trainer.log_every_n_steps=1", f"trainer.compile={compiled}", f"runs_dir={runs}"],
            cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=400,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        values = logged(the_run(tmp_path, runs))
        first.append({tag: of[1] for tag, of in values.items() if 1 in of and not tag.startswith("speed")})
    eager, compiled_ones = first
    assert "gradient_norm/autoencoder" in eager
    assert ("critic_penalty/r1" in eager) == (preset in ("pegasus", "adaptive"))
    assert compiled_ones == pytest.approx(eager, rel=1e-3, abs=1e-5)
