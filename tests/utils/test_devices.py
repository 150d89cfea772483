"""`trainer.gpus` and `trainer.precision`, with simulated GPUs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pegasus_lightning.utils import devices
from pegasus_lightning.utils.devices import (
    Devices,
    choose_devices,
    has_fast_bf16,
    hide_gpus,
    lightning_precision,
    one_device,
    set_threads,
)
from pegasus_lightning.utils.errors import UserError


def pretend(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"Card {index}")


@pytest.mark.parametrize(
    ("there", "gpus", "accelerator", "wanted", "said"),
    [
        (0, None, "cpu", 1, "no GPU found"),
        (0, 0, "cpu", 1, "the CPU"),
        (1, None, "cuda", [0], "1 GPU: Card 0"),
        (2, None, "cuda", [0], "1 GPU: Card 0"),
        (2, 0, "cpu", 1, "the CPU"),
        (2, 1, "cuda", [0], "1 GPU: Card 0"),
        (2, 2, "cuda", [0, 1], "2 GPUs: Card 0, Card 1"),
        (2, [1], "cuda", [1], "1 GPU: Card 1"),
        (2, [1, 0], "cuda", [1, 0], "2 GPUs: Card 1, Card 0"),
    ],
)
def test_what_is_taken(
    monkeypatch: pytest.MonkeyPatch, there: int, gpus: object, accelerator: str, wanted: object, said: str
) -> None:
    pretend(monkeypatch, there)
    chosen = choose_devices(gpus)  # type: ignore[arg-type]
    assert (chosen.accelerator, chosen.devices) == (accelerator, wanted)
    assert chosen.count == (len(wanted) if isinstance(wanted, list) else wanted)
    assert said in chosen.sentence


def test_the_cpu_is_not_said_to_be_a_fall_back_when_it_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, 0)
    assert "no GPU" not in choose_devices(0).sentence


def test_several_processes_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, 0)
    chosen = choose_devices(0, cpu_processes=2)
    assert (chosen.accelerator, chosen.devices, chosen.count) == ("cpu", 2, 2)


@pytest.mark.parametrize(
    ("there", "gpus", "parts"),
    [
        (0, 1, ["trainer.gpus=1", "a GPU", "none", "Type trainer.gpus=0", "leave trainer.gpus out"]),
        (0, [1], ["trainer.gpus=[1]", "none", "Type trainer.gpus=0"]),
        (1, 3, ["trainer.gpus=3", "GPU 1", "sees 1", "Type trainer.gpus=0", "at most trainer.gpus=1"]),
        (1, [1], ["trainer.gpus=[1]", "GPU 1", "sees 1", "at most trainer.gpus=1"]),
        (2, 3, ["trainer.gpus=3", "GPU 2", "sees 2", "at most trainer.gpus=2"]),
        (2, [0, 5], ["GPU 5", "sees 2"]),
    ],
)
@pytest.mark.promise(10)
def test_more_than_there_are_is_an_error_that_says_what_to_type(
    monkeypatch: pytest.MonkeyPatch, there: int, gpus: object, parts: list[str]
) -> None:
    pretend(monkeypatch, there)
    with pytest.raises(UserError) as error:
        choose_devices(gpus)  # type: ignore[arg-type]
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize("accelerator", ["cpu", "cuda"])
@pytest.mark.parametrize(
    ("asked", "fast", "precision"),
    [("auto", True, "bf16-mixed"), ("auto", False, "32-true"), ("32", True, "32-true"), ("bf16", False, "bf16-mixed")],
)
def test_precision(monkeypatch: pytest.MonkeyPatch, accelerator: str, asked: str, fast: bool, precision: str) -> None:
    monkeypatch.setattr(devices, "has_fast_bf16", lambda _: fast)
    assert lightning_precision(asked, accelerator) == precision


@pytest.mark.parametrize(("amx", "avx512", "fast"), [(False, False, False), (True, False, True), (False, True, True)])
def test_fast_bf16_on_a_cpu_is_amx_or_avx512(
    monkeypatch: pytest.MonkeyPatch, amx: bool, avx512: bool, fast: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    assert has_fast_bf16("cpu") is fast


def test_fast_bf16_on_a_gpu_does_not_count_emulation(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(
        torch.cuda,
        "is_bf16_supported",
        lambda including_emulation=True: bool(asked.append(including_emulation)) or True,
    )
    assert has_fast_bf16("cuda") is True
    assert asked == [False]


def test_hidden_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    hide_gpus()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


@pytest.mark.parametrize(
    ("there", "gpus", "device", "visible"),
    [(0, None, "cpu", ""), (0, 0, "cpu", ""), (2, None, "cuda:0", "2,3"), (2, 1, "cuda:0", "2,3"), (2, 0, "cpu", "")],
)
def test_the_one_device_of_a_command(
    monkeypatch: pytest.MonkeyPatch, there: int, gpus: int | None, device: str, visible: str
) -> None:
    pretend(monkeypatch, there)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert one_device(gpus) == torch.device(device)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == visible


def test_a_command_that_is_to_have_a_gpu_is_told_by_its_own_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, 0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(UserError) as error:
        one_device(1)
    assert str(error.value).startswith("gpus=1 asks for a GPU")
    assert "Type gpus=0" in str(error.value)
    assert "trainer" not in str(error.value)


def test_what_is_done_once_is_done_on_the_first_device() -> None:
    assert Devices("cpu", 2, "").first == torch.device("cpu")
    assert Devices("cuda", [3, 1], "").first == torch.device("cuda", 3)


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The numbers of threads that are set, on a machine with four CPUs of which PyTorch takes four."""
    chosen: list[int] = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    devices._usual_threads.cache_clear()
    yield chosen
    devices._usual_threads.cache_clear()


@pytest.mark.parametrize(("busy", "chosen"), [(0.2, 4), (0.6, 3), (2.1, 2), (4.0, 1), (None, 4)])
def test_a_new_run_takes_the_threads_that_are_free(
    threads: list[int], monkeypatch: pytest.MonkeyPatch, busy: float | None, chosen: int
) -> None:
    monkeypatch.setattr(devices, "busy_cpus", lambda: busy)
    said = set_threads(None, None)
    assert threads == [chosen]
    expected = f"keep {busy:.1f} of 4 CPUs busy: this run takes {chosen} of 4 threads" if chosen < 4 else ""
    assert expected in said and bool(said) == (chosen < 4)


def test_the_number_of_threads_that_was_asked_for_or_is_kept(
    threads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "busy_cpus", lambda: 4.0)
    assert set_threads(3, None) == set_threads(None, 2) == set_threads(3, 2) == ""
    assert threads == [3, 2, 3]
    assert "1 of 4" in set_threads(None, 5)  # of a machine where it could use more CPUs
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    del threads[:]
    assert set_threads(None, 2) == "" and threads == []


def test_the_load_is_the_share_of_time_that_is_not_idle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stat = tmp_path / "stat"
    others = "cpu0 0 0 0 0 0 0 0 0 0 0\n"
    stat.write_text(f"cpu  1 2 3 4 5 6 7 8 9 0\n{others}cpu2 50 0 25 400 25 0 0 0 7 0\ncpu3 50 0 25 400 25 0 0 0 0 0\n")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {2, 3}, raising=False)
    monkeypatch.setattr(devices, "STAT", stat)
    # 40 of 100 ticks of the two are neither idle (50) nor waiting for a disk (10): .8 CPUs. A third is not its own.
    later = "cpu0 99 0 0 0 0 0 0 0 0 0\ncpu2 80 0 25 420 25 0 0 0 9 0\ncpu3 50 0 35 430 35 0 0 0 0 0\n"
    monkeypatch.setattr(devices.time, "sleep", lambda seconds: stat.write_text(later))
    assert devices.busy_cpus() == pytest.approx(0.8)
    stat.write_text("")
    assert devices.busy_cpus() is None
