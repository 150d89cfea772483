"""Where the jobs of a sweep may run: the visible GPUs, or shares of the CPU. What a process may use is set before it
starts, in its environment: afterwards it could not be enforced."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

MEMORY_A_JOB = 2 * 2**30  # bytes that a process on the CPU may need: PyTorch, the images, a batch's activations
CONTAINER_MEMORY = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True)
class Slot:
    """A place for one job at a time.

    Args:
        name: as a person calls it, such as "GPU 0" or "CPU 2".
        environment: variables that bind a process to it.
    """

    name: str
    environment: Mapping[str, str]


def gpu_slots(devices: int, visible: str | None, *, jobs_per_gpu: int, threads: int) -> list[Slot]:
    """`jobs_per_gpu` slots on each GPU; the first of every GPU come first, so that few jobs share none.

    Args:
        devices: how many GPUs PyTorch sees.
        visible: the inherited CUDA_VISIBLE_DEVICES, whose entries (indices, or UUIDs of GPUs and MIG slices) are kept
            as they are; None where it is not set.
        threads: of the CPU, to be divided among the slots.
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
    """`count` slots that share `threads` evenly (at least one each) and see no GPU."""
    environment = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": str(max(1, threads // count))}
    return [Slot(f"CPU {index + 1}", environment) for index in range(count)]


def cpu_slots_wanted(jobs: int, threads: int, memory: int | None) -> int:
    """How many slots a CPU gives unasked: one a thread, as far as jobs and memory (bytes; None: not known) go.

    Two processes of one thread train more images a second than one of two.
    """
    limits = [jobs, threads, *([] if memory is None else [memory // MEMORY_A_JOB])]
    return max(1, min(limits))


def physical_memory() -> int | None:
    """Bytes of the machine's memory, or of the container's share of it; None where the system does not tell."""
    limits = []
    with contextlib.suppress(AttributeError, ValueError, OSError):
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with contextlib.suppress(ValueError, OSError):  # no container, or one without a limit
        limits.append(int(CONTAINER_MEMORY.read_text()))
    return min(limits, default=None)


def _shortened(name: str) -> str:
    return name if len(name) <= 12 else name[:12] + "\u2026"
