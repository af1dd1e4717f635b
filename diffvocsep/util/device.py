"""Which device computes, and in which precision."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from .errors import UserError
from .strict_yaml import shorten

PIP_INSTALL = 'pip install "torch==2.11.*" "torchaudio==2.11.*" --index-url https://download.pytorch.org/whl/'


class TorchrunEnv(NamedTuple):
    """Which of the processes that `torchrun` started this one is."""

    rank: int
    local_rank: int  # among those of this machine
    world_size: int


def torchrun_env() -> TorchrunEnv:
    """What torchrun's environment variables say; without torchrun, this is the only process."""
    if "RANK" not in os.environ:  # some clusters set WORLD_SIZE alone, and mean their own tasks by it
        return TorchrunEnv(0, 0, 1)
    return TorchrunEnv(*(int(os.environ.get(name, default)) for name, default in
                   (("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", 1))))  # fmt: skip


def resolve_device(name: str = "auto") -> torch.device:
    """`auto` takes a CUDA GPU, else Apple's MPS, else the CPU; of several processes, each takes its own GPU. Asking for
    a device that is not there is an error: there is no silent fall-back.

    Raises:
        UserError: the named device does not exist here.
    """
    asked = name
    if name == "auto":
        mps = torch.backends.mps.is_available() and torchrun_env().world_size == 1
        name = "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(
            f"device '{shorten(name)}' cannot be used here (there is none of that name); use auto, cpu, cuda or mps"
        ) from None
    try:
        if device.type == "cuda" and torchrun_env().world_size > 1:
            device = torch.device("cuda", torchrun_env().local_rank)
        (torch.ones(1, device=device) + 1).item()  # compute something: torch may have no kernels for this GPU
    except (RuntimeError, AssertionError, ImportError) as error:
        why = shorten(str(error).strip().splitlines()[0].partition(". ")[0], 120)  # torch may go on for a page
        raise UserError(f"device '{name}' cannot be used here ({why}); {_remedy(asked, name, why)}") from None
    return device


def _remedy(asked: str, name: str, why: str) -> str:
    """What to do where device `name`, which `asked` led to, cannot be used, and torch says `why`."""
    gpus = torch.cuda.device_count()
    if name.startswith("cuda") and torchrun_env().local_rank >= gpus > 0:
        return (
            f"each process needs a GPU of its own: give torchrun --nproc_per_node={gpus} or less, or use --device cpu"
        )
    if name.startswith("cuda") and not torch.version.hip and ("no kernel image" in why or (not gpus and nvidia_gpu())):
        return f"use --device cpu, or mend this: {_gpu_unused_because()}"
    return "use --device cpu" if asked == "auto" else "use --device auto or --device cpu"


def choose_device(name: str = "auto") -> torch.device:
    """`resolve_device`, and a line on stdout that says what was taken and why."""
    device = resolve_device(name)
    announce_device(name, device)
    return device


def announce_device(name: str, device: torch.device) -> None:
    """Say, once, which device was taken when `name` was asked for, and why."""
    if torchrun_env().rank == 0:
        print(f"device: {device_name(device)}, {device_reason(name, device)}")


def device_name(device: torch.device) -> str:
    """The device, and of a GPU its model: `cuda:0 (NVIDIA ...)`."""
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def device_reason(name: str, device: torch.device) -> str:
    """Why `device` was taken when `name` was asked for; where `auto` overlooks an NVIDIA GPU, how to get at it."""
    if name != "auto":
        return "as asked for"
    if device.type != "cpu":
        return "the fastest that torch can use here"
    if not nvidia_gpu():
        return "for torch finds no GPU here"
    return f"though this computer has an NVIDIA GPU: {_gpu_unused_because()}"


def _gpu_unused_because() -> str:
    """Why torch does not use the NVIDIA GPU of this computer, and how to get one that does."""
    version = torch.__version__
    if torch.version.cuda is None:
        return f"the installed torch {version} is for CPUs only; get one for GPUs with: {install_command()}"
    if torch.cuda.is_available():
        return f"the installed torch {version} has no kernels for it; get one that has with: {install_command()}"
    return (
        f"torch {version}, made for CUDA {torch.version.cuda}, cannot use it; its driver may be too old for that, "
        f"so update it, or get another torch with: {install_command()}"
    )


def install_command() -> str:
    """The command that gets a torch for the NVIDIA GPU of this computer. Of version 2.11, cu126 has kernels for compute
    capabilities 5.0 to 9.0, cu128 for 7.5 to 12.0 (PyTorch's RELEASE.md)."""
    capabilities = re.findall(r"\d+\.\d+", nvidia_smi("--query-gpu=compute_cap", "--format=csv,noheader"))
    return PIP_INSTALL + ("cu128" if any(float(capability) > 9 for capability in capabilities) else "cu126")


def nvidia_gpu() -> bool:
    """Whether NVIDIA's driver lists a GPU, whatever torch can do with it."""
    return "GPU" in nvidia_smi("-L")


def nvidia_smi(*options: str) -> str:
    """What NVIDIA's driver says; nothing, where there is none or it fails."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    try:
        said = subprocess.run([program, *options], capture_output=True, timeout=10, encoding="utf-8", errors="replace")
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return said.stdout if said.returncode == 0 else ""


def fast_bf16(device: torch.device) -> bool:
    """Whether `device` computes bfloat16 in hardware. On a CPU without it, bfloat16 is emulated, an order of magnitude
    slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return device.type == "xla"


def amp_dtype(amp: str, device: torch.device) -> torch.dtype | None:
    """The autocast type for `train.amp`: `auto` is bf16 where the hardware has it, fp16 on older GPUs, else none."""
    if amp == "auto":
        if fast_bf16(device):
            return torch.bfloat16
        return torch.float16 if device.type == "cuda" else None
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "none": None}[amp]


def channels_last(wanted: bool | None, device: torch.device, dtype: torch.dtype | None) -> bool:
    """Whether weights and images lie in memory channels last: as wanted, or where it is faster: on CUDA GPUs and, on
    CPUs, in bf16. XLA arranges its memory itself."""
    if device.type == "xla":
        return False
    return wanted if wanted is not None else device.type == "cuda" or (device.type == "cpu" and dtype is not None)


def move(values: Tensor, device: torch.device) -> Tensor:
    """`values` on `device`. To a CUDA GPU from pinned memory, for only from there a copy waits for nothing; elsewhere
    it must wait, or `values` may be gone before they are copied (on MPS, pytorch issue 139550)."""
    if device.type == "cuda" and values.device.type == "cpu":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


class Constant:
    """A constant tensor, and its copies on the devices and in the dtypes it is needed in: each is made once, for every
    copy waits for the GPU."""

    def __init__(self, values: Tensor) -> None:
        self.values = values
        self.copies: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def on(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        if (device, dtype) not in self.copies:
            # Cast before moving: some devices have no float64.
            self.copies[device, dtype] = self.values.to(dtype).to(device)
        return self.copies[device, dtype]


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager:
    """Mixed precision on `device`, or nothing where `dtype` is None."""
    return torch.autocast(device.type, dtype=dtype) if dtype else nullcontext()
