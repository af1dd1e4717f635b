"""Training on TPUs, through torch_xla; with PJRT_DEVICE=CPU the same on any computer.

The network runs on the TPU. Spectrograms and losses are computed on its host: they are complex, and torch_xla 2.9 has
neither an FFT of its own nor gradients through complex numbers.
"""

from __future__ import annotations

import os
import sys
import threading
import traceback
from contextlib import suppress
from typing import Any

import psutil
import torch
import torch_xla
import torch_xla.core.xla_model as xm
import torch_xla.debug.metrics as metrics
import torch_xla.runtime as runtime
from torch import Tensor, nn

from ..config import TrainConfig
from ..util.device import amp_dtype, autocast
from ..util.errors import UserError
from .backends import Backend

COMPILE_LOCK = threading.Lock()  # one thread compiles a graph, the others of its process find it compiled


class XLA(Backend):
    """One of the processes that `torch_xla.launch` started, or a thread of one: each has one device.

    All shapes are the same in every step, so after the first steps nothing is compiled: `extra_curves` counts.
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
        """As `xm.reduce_gradients`, but in a graph of its own and not in place, see `_sum`."""
        sync()
        if self.world_size == 1:
            return
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        for parameter, total in zip(parameters, self._sum([p.grad for p in parameters]), strict=True):
            parameter.grad = total / self.world_size

    def finish_step(self) -> None:
        sync()

    def mean(self, values: Tensor) -> Tensor:
        if self.world_size == 1:
            return values
        return self._sum([values.to(self.device)])[0].to(values.device) / self.world_size

    def gather(self, values: Tensor) -> Tensor:
        """Through a sum of 32 bits: `xm.all_gather` makes a graph of its own for each rank, and TPUs add no int64."""
        if self.world_size == 1:
            return values
        table = torch.zeros(self.world_size, *values.shape, dtype=values.dtype)
        table[self.rank] = values
        table = table if table.is_floating_point() else table.int()
        return self._sum([table.to(self.device)])[0].to(values.device, values.dtype).flatten(0, 1)

    def barrier(self) -> None:
        self.mean(torch.zeros(1))

    def _sum(self, tensors: list[Tensor]) -> list[Tensor]:
        """The sums over all devices of tensors that have been computed.

        Two rules keep the threads of a process from waiting for each other for ever. No input of the sum is freed
        before: XLA's CPU device would wait for the sum to free it, and `sync` hold its lock so long. And the sum is
        read before anything else is computed.
        """
        totals = [xm.all_reduce(xm.REDUCE_SUM, tensor) for tensor in tensors]
        sync()
        totals[-1].cpu()
        return totals

    def to_host(self, state: Any) -> Any:
        if isinstance(state, dict):
            return {key: self.to_host(value) for key, value in state.items()}
        return state.cpu() if isinstance(state, Tensor) else state

    def extra_curves(self) -> dict[str, float]:
        return {"compilations": float(compilations())}


class OnDevice(nn.Module):
    """The model on `device`, for callers on the host."""

    fixed_shapes = True  # another size of batch is compiled anew

    def __init__(self, model: nn.Module, device: torch.device, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.model, self.device, self.dtype = model, device, dtype

    def forward(self, x_t: Tensor, mixture: Tensor, t: Tensor, guessed: Tensor | None = None) -> Tensor:
        inputs = (value if value is None else value.to(self.device) for value in (x_t, mixture, t, guessed))
        with autocast(self.device, self.dtype):
            output = self.model(*inputs).float()
        sync()
        return output.to(x_t.device)


def sync() -> None:
    """Compile and start all that is pending on the device of this thread.

    Call it before a value is read: reading compiles a graph for that value alone, and its inputs would be computed
    once more later. The threads of a process share what one of them has compiled: devices meet in a collective of one
    executable only.
    """
    with COMPILE_LOCK:
        torch_xla.sync()


def compilations() -> int:
    """How many graphs XLA has compiled in this process."""
    data = metrics.metric_data("CompileTime")
    return data[0] if data else 0


def kill_all_processes(error: Exception) -> None:
    """Print the error and kill all processes of this run: the others would wait for this one's next sum for ever, and
    torch_xla.launch for them. A single process does nothing, for its launcher reports the error."""
    if runtime.world_size() == 1:
        return
    message = f"error: {error}" if isinstance(error, UserError | OSError) else traceback.format_exc()
    print(message, file=sys.stderr, flush=True)
    for other in psutil.Process(os.getppid()).children():
        with suppress(psutil.Error):  # it may have ended by itself
            if other.pid != os.getpid() and "--multiprocessing-fork" in other.cmdline():  # not multiprocessing's helper
                other.kill()
    os._exit(1)
