"""What to run on: `trainer.gpus` and `trainer.precision` as what Lightning's Trainer takes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pegasus_lightning.utils.errors import UserError


@dataclass(frozen=True)
class Devices:
    """accelerator and devices for the Trainer, and one line that says so to a person."""

    accelerator: str
    devices: int | list[int]
    sentence: str

    @property
    def count(self) -> int:
        return self.devices if isinstance(self.devices, int) else len(self.devices)

    @property
    def first(self) -> torch.device:
        """Where what is done once is done."""
        return torch.device("cpu") if isinstance(self.devices, int) else torch.device("cuda", self.devices[0])


def choose_devices(gpus: int | Sequence[int] | None, cpu_processes: int = 1, *, key: str = "trainer.gpus") -> Devices:
    """`gpus`: null (one GPU if there is one, else the CPU), 0 (the CPU), N, or a list of indices.

    `key` is what the setting is called in messages.

    Raises:
        UserError: more GPUs, or other ones, than there are. Never a silent fall-back.
    """
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus is None:
        gpus = 1 if there else 0
        reason = "" if there else " (no GPU found)"
    else:
        reason = ""
    wanted = list(gpus) if not isinstance(gpus, int) else list(range(gpus))
    if not wanted:
        threads = torch.get_num_threads()
        return Devices("cpu", cpu_processes, f"the CPU{reason}, {threads} thread{'s' if threads > 1 else ''}")
    missing = [index for index in wanted if index >= there]
    if missing:
        raise UserError(
            f"{key}={gpus} asks for {'GPU ' + str(missing[0]) if there else 'a GPU'}, but PyTorch sees "
            f"{there or 'none'}. Type {key}=0 for the CPU"
            + (f", or at most {key}={there}." if there else f", or leave {key} out to take what there is.")
        )
    names = ", ".join(torch.cuda.get_device_name(index) for index in wanted)
    return Devices("cuda", wanted, f"{len(wanted)} GPU{'s' if len(wanted) > 1 else ''}: {names}")


def hide_gpus() -> None:
    """For a run on the CPU: spare every optimizer step a look for GPUs (60 to 155 microseconds through NVML)."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


def one_device(gpus: int | None) -> torch.device:
    """The device of a command that uses one: `gpus` is null (a GPU if there is one), 0 (the CPU) or 1.

    Raises:
        UserError: a GPU is asked for, and there is none.
    """
    devices = choose_devices(gpus, key="gpus")
    if devices.accelerator == "cpu":
        hide_gpus()
    return torch.device("cuda:0" if devices.accelerator == "cuda" else "cpu")


def has_fast_bf16(accelerator: str) -> bool:
    """Whether bfloat16 runs in hardware: recent GPUs, CPUs with AMX or AVX512-BF16 (elsewhere it is emulated)."""
    if accelerator == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, check, lambda: False)() for check in checks)


def lightning_precision(precision: str, accelerator: str) -> str:
    """`auto`, `32` or `bf16` as the Trainer's `precision`; auto is bf16-mixed where the hardware has it."""
    bf16 = precision == "bf16" or (precision == "auto" and has_fast_bf16(accelerator))
    return "bf16-mixed" if bf16 else "32-true"


def is_first_process() -> bool:
    """False in the further processes that Lightning starts for data parallelism."""
    return int(os.environ.get("LOCAL_RANK", 0)) == 0
