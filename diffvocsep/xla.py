"""Training on TPUs, through torch_xla; with PJRT_DEVICE=CPU the same on any computer.

The network runs on the TPU. Spectrograms and losses are computed on its host: they are complex, and torch_xla 2.9 has
neither an FFT of its own nor gradients through complex numbers.
"""

from __future__ import annotations

from typing import Any

import torch
import torch_xla
import torch_xla.core.xla_model as xm
import torch_xla.debug.metrics as metrics
import torch_xla.runtime as runtime
from torch import Tensor, nn

from .backends import Backend
from .config import TrainConfig
from .device import amp_dtype, autocast
from .errors import UserError


class XLA(Backend):
    """One of the processes that `torch_xla.launch` started, or a thread of one: each has one device.

    All shapes are the same in every step, so after the first steps nothing is compiled: `report` counts.
    """

    def __init__(self, train: TrainConfig) -> None:
        super().__init__(torch_xla.device())
        self.host = torch.device("cpu")
        self.rank, self.world_size = runtime.global_ordinal(), runtime.world_size()
        if train.amp == "fp16" or train.compile:
            raise UserError("on a TPU train.amp must be auto, bf16 or none, and train.compile false (XLA compiles)")
        self.dtype = amp_dtype(train.amp, self.device)

    def __str__(self) -> str:
        return f"{self.world_size} x XLA on {runtime.device_type()}"

    def wrap(self, model: nn.Module) -> nn.Module:
        return OnDevice(model, self.device, self.dtype)

    def reduce_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        """The first half of `xm.optimizer_step`; the norm of the mean gradient is needed before the second."""
        xm.reduce_gradients(optimizer)

    def finish_step(self) -> None:
        torch_xla.sync()

    def mean(self, values: Tensor) -> Tensor:
        if self.world_size == 1:
            return values
        return xm.all_reduce(xm.REDUCE_SUM, values.to(self.device), scale=1 / self.world_size).cpu()

    def gather(self, values: Tensor) -> Tensor:
        return values if self.world_size == 1 else xm.all_gather(values.to(self.device)).cpu()

    def wait(self) -> None:
        if self.world_size > 1:
            xm.rendezvous("wait")

    def to_host(self, state: Any) -> Any:
        if isinstance(state, dict):
            return {key: self.to_host(value) for key, value in state.items()}
        return state.cpu() if isinstance(state, Tensor) else state

    def report(self) -> dict[str, float]:
        return {"compilations": float(compilations())}


class OnDevice(nn.Module):
    """The model on `device`, for callers on the host."""

    def __init__(self, model: nn.Module, device: torch.device, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.model, self.device, self.dtype = model, device, dtype

    def forward(self, x_t: Tensor, mixture: Tensor, t: Tensor) -> Tensor:
        with autocast(self.device, self.dtype):
            output = self.model(*(value.to(self.device) for value in (x_t, mixture, t)))
        return output.float().to(x_t.device)


def compilations() -> int:
    """How many graphs XLA has compiled in this process."""
    data = metrics.metric_data("CompileTime")
    return data[0] if data else 0
