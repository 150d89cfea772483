"""Translation of `trainer.gpus` and `trainer.precision` into arguments of Lightning's Trainer."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pegasus_lightning.utils.errors import UserError

# Instruction sets with bfloat16, and private functions of PyTorch that look for them; a later release may have others.
BF16_CHECKS = {"AMX": "_is_amx_tile_supported", "AVX512_BF16": "_is_avx512_bf16_supported"}


@dataclass(frozen=True)
class Devices:
    """`accelerator` and `devices` for the Trainer, and a sentence that describes them to the user."""

    accelerator: str
    devices: int | list[int]
    sentence: str

    @property
    def count(self) -> int:
        return self.devices if isinstance(self.devices, int) else len(self.devices)

    @property
    def first(self) -> torch.device:
        """The device for work that is done once."""
        return torch.device("cpu") if isinstance(self.devices, int) else torch.device("cuda", self.devices[0])


def choose_devices(gpus: int | Sequence[int] | None, cpu_processes: int = 1, *, key: str = "trainer.gpus") -> Devices:
    """Return the devices for `gpus`: null (one GPU if available, else the CPU), 0 (the CPU), N, or a list of indices.

    `cpu_processes` is the number of processes on the CPU, `key` the name of the setting in messages. Raise UserError if
    a requested GPU does not exist; there is no silent fallback.
    """
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    reason = " (no GPU found)" if gpus is None and not available else ""
    if gpus is None:
        gpus = 1 if available else 0
    wanted = list(gpus) if not isinstance(gpus, int) else list(range(gpus))
    if not wanted:
        threads = torch.get_num_threads()
        return Devices("cpu", cpu_processes, f"the CPU{reason}, {threads} thread{'s' if threads > 1 else ''}")
    missing = [index for index in wanted if index >= available]
    if missing:
        raise UserError(
            f"{key}={gpus} asks for {'GPU ' + str(missing[0]) if available else 'a GPU'}, but PyTorch sees "
            f"{available or 'none'}. Type {key}=0 for the CPU"
            + (f", or at most {key}={available}." if available else f", or leave {key} out to use what is available.")
        )
    names = ", ".join(torch.cuda.get_device_name(index) for index in wanted)
    return Devices("cuda", wanted, f"{len(wanted)} GPU{'s' if len(wanted) > 1 else ''}: {names}")


LOOK = 0.25  # seconds during which the load is measured
STAT = Path("/proc/stat")


def busy_cpus() -> float | None:
    """Return how many of the CPUs that this process may use are busy now; None where that cannot be told."""
    with contextlib.suppress(OSError, ValueError, IndexError, AttributeError):
        before = _cpu_times()
        time.sleep(LOOK)
        (total, idle) = (after - former for after, former in zip(_cpu_times(), before, strict=True))
        return _own_cpus() * (1 - idle / total) if total > 0 else 0.0
    return None


def _cpu_times() -> tuple[int, int]:
    """Return the time of the CPUs that this process may use, and how much of it they idled or waited for disks."""
    own = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    fields = [line.split() for line in STAT.read_text().splitlines()]
    times = [[int(number) for number in numbers[:8]] for name, *numbers in fields if name in own]
    if not times:
        raise ValueError("no such CPU")
    return sum(map(sum, times)), sum(each[3] + each[4] for each in times)


@functools.cache
def _usual_threads() -> int:
    """Return PyTorch's own number of threads, before a run of this process has taken fewer."""
    return torch.get_num_threads()


def _own_cpus() -> int:
    """Return how many CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def set_threads(wanted: int | None, former: int | None) -> str:
    """Set PyTorch's CPU threads for a training, and return a sentence if it takes fewer than it could; else "".

    Two threads beside other programs are many times slower than one: each waits for the other at every operation. A
    continued run keeps the number it had, `former`, because other numbers give other bits.
    """
    usual = _usual_threads()
    asked = "OMP_NUM_THREADS" in os.environ  # by the user, or by the slot of a sweep
    if wanted or (not asked and former in range(1, _own_cpus() + 1)):
        torch.set_num_threads(wanted or former or usual)
        return ""
    if usual == 1 or asked:
        return ""
    busy = busy_cpus()
    free = max(1, min(usual, round(_own_cpus() - busy))) if busy is not None else usual
    torch.set_num_threads(free)
    if free == usual:
        return ""
    return (
        f"Other programs keep {busy:.1f} of {_own_cpus()} CPUs busy: this run takes {free} of {usual} threads "
        f"(trainer.threads={usual} takes them all)."
    )


def hide_gpus() -> None:
    """Hide GPUs from a run on the CPU: looking for them costs each optimizer step 60 to 155 microseconds (NVML)."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


def one_device(gpus: int | None) -> torch.device:
    """Return the device of a command that uses one: `gpus` is null (a GPU if available), 0 (the CPU) or 1.

    Raise UserError if a GPU is requested, but none is available.
    """
    devices = choose_devices(gpus, key="gpus")
    if devices.accelerator == "cpu":
        hide_gpus()
    return torch.device("cuda:0" if devices.accelerator == "cuda" else "cpu")


def has_fast_bf16(accelerator: str) -> bool:
    """Return whether bfloat16 runs in hardware (recent GPUs, CPUs with AMX or AVX512-BF16) and is not emulated."""
    if accelerator == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(_bf16_instructions())


def lightning_precision(precision: str, accelerator: str) -> str:
    """Return the Trainer's `precision` for `auto`, `32` or `bf16`; auto is bf16-mixed where hardware supports it."""
    bf16 = precision == "bf16" or (precision == "auto" and has_fast_bf16(accelerator))
    return "bf16-mixed" if bf16 else "32-true"


def machine(accelerator: str, devices: int | Sequence[int], precision: str) -> dict[str, Any]:
    """Return the kind of machine that a result depends on to the last bits, for `status.json` and scorecards.

    `precision` is what `auto` became, `cpu_flags` the instruction sets of which PyTorch chooses its CPU kernels.
    """
    gpus = [] if isinstance(devices, int) else [torch.cuda.get_device_name(index) for index in devices]
    return {
        "precision": precision,
        "device": accelerator if not gpus else ", ".join(dict.fromkeys(gpus)),
        "processes": devices if isinstance(devices, int) else len(devices),
        "threads": torch.get_num_threads(),
        "cpu": _cpu_name(),
        "cpu_flags": [torch.backends.cpu.get_cpu_capability(), *_bf16_instructions()],
    }


def _bf16_instructions() -> list[str]:
    return [name for name, check in BF16_CHECKS.items() if getattr(torch.cpu, check, lambda: False)()]


def _cpu_name() -> str:
    with contextlib.suppress(OSError):  # not Linux
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


STARTED_BY = "PEGASUS_LIGHTNING_STARTED_BY"  # process number of the one that starts others for data parallelism


@contextlib.contextmanager
def starting_processes() -> Iterator[None]:
    """Let the processes that Lightning starts know that LOCAL_RANK is from this one, and clear it afterwards."""
    before = {name: os.environ.get(name) for name in (STARTED_BY, "LOCAL_RANK")}
    os.environ[STARTED_BY] = str(os.getpid())
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def check_ranks() -> None:
    """Raise UserError if LOCAL_RANK is set by another program that started several processes.

    They would write to one run side by side.
    """
    if "LOCAL_RANK" not in os.environ or os.environ.get("WORLD_SIZE") == "1":
        return
    if os.environ.get(STARTED_BY) != str(os.getppid()):
        raise UserError(
            f"LOCAL_RANK={os.environ['LOCAL_RANK']} is set, as torchrun does. Start the command once and without "
            "torchrun: trainer.gpus=2 starts both processes. If it was left behind, type `unset LOCAL_RANK`."
        )


def is_first_process() -> bool:
    """Return False in the additional processes that Lightning starts for data parallelism."""
    return int(os.environ.get("LOCAL_RANK", 0)) == 0
