"""Which device computes, and in which precision."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from .errors import UserError


def resolve_device(name: str = "auto") -> torch.device:
    """`auto` takes a CUDA GPU, else Apple's MPS, else the CPU. Asking for a device that is not there is an error:
    there is no silent fall-back.

    Raises:
        UserError: the named device does not exist here.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"device '{name}' cannot be used here ({reason}); use --device auto or --device cpu") from None
    return device


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


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager:
    """Mixed precision on `device`, or nothing where `dtype` is None."""
    return torch.autocast(device.type, dtype=dtype) if dtype else nullcontext()
