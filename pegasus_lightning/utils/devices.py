"""Translation of `trainer.gpus` and `trainer.precision` into arguments of Lightning's Trainer."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pegasus_lightning.utils.errors import UserError


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
    checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, check, lambda: False)() for check in checks)


def lightning_precision(precision: str, accelerator: str) -> str:
    """Return the Trainer's `precision` for `auto`, `32` or `bf16`; auto is bf16-mixed where hardware supports it."""
    bf16 = precision == "bf16" or (precision == "auto" and has_fast_bf16(accelerator))
    return "bf16-mixed" if bf16 else "32-true"


def is_first_process() -> bool:
    """Return False in the additional processes that Lightning starts for data parallelism."""
    return int(os.environ.get("LOCAL_RANK", 0)) == 0
