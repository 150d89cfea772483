"""Slots for the jobs of a sweep: the visible GPUs, or shares of the CPU. Limits are environment variables, as they must
be set before a process starts."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

MEMORY_A_JOB = 2 * 2**30  # bytes for a process on the CPU: PyTorch, the images, activations of a batch
CONTAINER_MEMORY = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True)
class Slot:
    """A slot for one job at a time."""

    name: str  # display name, such as "GPU 0" or "CPU 2"
    environment: Mapping[str, str]  # variables that bind a process to the slot


def gpu_slots(devices: int, visible: str | None, *, jobs_per_gpu: int, threads: int) -> list[Slot]:
    """Return `jobs_per_gpu` slots a GPU, in rounds over the GPUs, so that few jobs do not share a GPU.

    Args:
        devices: number of GPUs visible to PyTorch.
        visible: the inherited CUDA_VISIBLE_DEVICES, None if not set. Its entries (indices, or UUIDs of GPUs and MIG
            slices) are kept unchanged.
        threads: CPU threads, divided among the slots.
    """
    entries = [entry.strip() for entry in visible.split(",")] if visible is not None else []
    names = entries[:devices] if entries else [str(index) for index in range(devices)]
    each = str(max(1, threads // (len(names) * jobs_per_gpu)))
    return [
        Slot(
            f"GPU {_shortened(name)}" + (f" ({turn + 1})" if jobs_per_gpu > 1 else ""),
            {"CUDA_VISIBLE_DEVICES": name, "OMP_NUM_THREADS": each},
        )
        for turn in range(jobs_per_gpu)
        for name in names
    ]


def cpu_slots(count: int, threads: int) -> list[Slot]:
    """Return `count` slots without GPU that share `threads` evenly (at least one each)."""
    environment = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": str(max(1, threads // count))}
    return [Slot(f"CPU {index + 1}", environment) for index in range(count)]


def cpu_slots_wanted(jobs: int, threads: int, memory: int | None) -> int:
    """Return the default number of CPU slots: one a thread, limited by jobs and memory (bytes; None: unknown).

    Two processes of one thread train more images a second than one process of two threads.
    """
    limits = [jobs, threads, *([] if memory is None else [memory // MEMORY_A_JOB])]
    return max(1, min(limits))


def physical_memory() -> int | None:
    """Return the memory of the machine, or of the container if less, in bytes; None if unknown."""
    limits = []
    with contextlib.suppress(AttributeError, ValueError, OSError):
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with contextlib.suppress(ValueError, OSError):  # no container, or no limit
        limits.append(int(CONTAINER_MEMORY.read_text()))
    return min(limits, default=None)


def _shortened(name: str) -> str:
    return name if len(name) <= 12 else name[:12] + "\u2026"
