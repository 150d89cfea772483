"""Tests of slots: the devices and threads of their processes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pegasus_lightning.launch import slots as slots_module
from pegasus_lightning.launch.slots import cpu_slots, cpu_slots_wanted, gpu_slots, physical_memory


def seen(slots: list) -> list[tuple[str, str]]:
    return [(slot.name, slot.environment["CUDA_VISIBLE_DEVICES"]) for slot in slots]


def test_a_slot_on_each_gpu() -> None:
    slots = gpu_slots(3, None, jobs_per_gpu=1, threads=16)
    assert seen(slots) == [("GPU 0", "0"), ("GPU 1", "1"), ("GPU 2", "2")]
    assert [slot.environment["OMP_NUM_THREADS"] for slot in slots] == ["5", "5", "5"]


@pytest.mark.promise(6)
def test_an_inherited_list_is_divided_and_its_entries_kept() -> None:
    assert seen(gpu_slots(2, "5, 2", jobs_per_gpu=1, threads=4)) == [("GPU 5", "5"), ("GPU 2", "2")]
    uuids = ["GPU-8932f937-d72c-4106-c12f-20bd9faed9f6", "MIG-GPU-8932f937-d72c/1/0"]
    slots = gpu_slots(2, ",".join(uuids), jobs_per_gpu=1, threads=4)
    assert [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in slots] == uuids
    assert [slot.name for slot in slots] == ["GPU GPU-8932f937…", "GPU MIG-GPU-8932…"]


def test_entries_that_cuda_does_not_see_are_left_out() -> None:
    assert seen(gpu_slots(1, "1,7", jobs_per_gpu=1, threads=1)) == [("GPU 1", "1")]


def test_several_jobs_on_a_gpu_come_after_one_on_each() -> None:
    slots = gpu_slots(2, "3,4", jobs_per_gpu=2, threads=6)
    assert seen(slots) == [("GPU 3 (1)", "3"), ("GPU 4 (1)", "4"), ("GPU 3 (2)", "3"), ("GPU 4 (2)", "4")]
    assert {slot.environment["OMP_NUM_THREADS"] for slot in slots} == {"1"}


def test_the_cpus_threads_are_divided() -> None:
    assert [dict(slot.environment) for slot in cpu_slots(3, 8)] == [
        {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "2"}
    ] * 3
    assert [slot.name for slot in cpu_slots(2, 2)] == ["CPU 1", "CPU 2"]
    assert cpu_slots(4, 2)[0].environment["OMP_NUM_THREADS"] == "1"


@pytest.mark.parametrize(
    ("jobs", "threads", "memory", "wanted"),
    [(6, 2, None, 2), (1, 8, None, 1), (100, 64, 16 * 2**30, 8), (3, 4, 2**30, 1), (5, 4, 64 * 2**30, 4)],
)
def test_how_many_slots_a_cpu_gives_unasked(jobs: int, threads: int, memory: int | None, wanted: int) -> None:
    assert cpu_slots_wanted(jobs, threads, memory) == wanted


@pytest.mark.parametrize(("content", "wanted"), [("1048576\n", 2**20), ("max\n", 50), (None, 50), ("99", 50)])
def test_a_containers_share_of_the_memory_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None, wanted: int
) -> None:
    pages = 10 if wanted == 50 else 2**20
    monkeypatch.setattr(os, "sysconf", lambda name: pages if name == "SC_PHYS_PAGES" else 5)
    monkeypatch.setattr(slots_module, "CONTAINER_MEMORY", tmp_path / "memory.max")
    if content is not None:
        (tmp_path / "memory.max").write_text(content)
    assert physical_memory() == wanted
