"""Where training computes. One backend for each kind of hardware, so that the loop (trainer.py) is the same for all.
Which device it is (`--device`) is decided in util/device.py, `resolve_device`.

Backend       one process on one device: CPU, CUDA or MPS
Distributed   several processes, each with a GPU or some cores of a CPU: DistributedDataParallel, started by torchrun
XLA           TPUs, see xla.py
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..data.loader import prefetch
from ..util.device import choose_device, move, torchrun_env
from ..util.errors import SaidByAnother, UserError
from .muon import Muon

# How long a process waits for the step of another. If one is gone, gloo notices at once; NCCL would after this time,
# but torchrun ends all processes 30 s after the first.
TIMEOUT = timedelta(minutes=10)
LONG_TIMEOUT = timedelta(days=7)  # while the first process downloads, decodes or validates


class Backend:
    """One process on one device, and the base of the others.

    Attributes:
        rank, world_size: which of how many processes this is; the first alone validates, logs and writes.
        device, host: where the network is, and where spectrograms, losses and validation are computed.
    """

    rank, world_size = 0, 1

    def __init__(self, device: torch.device) -> None:
        self.device = self.host = device
        if device.type == "cuda":
            torch.set_float32_matmul_precision("high")  # TF32 for what autocast leaves in float32

    @property
    def main(self) -> bool:
        return self.rank == 0

    def __str__(self) -> str:
        return str(self.device) if self.world_size == 1 else f"{self.world_size} x {self.device.type}"

    def optimizer(
        self, name: str, parameters: Iterable[Tensor], lr: float, weight_decay: float
    ) -> torch.optim.Optimizer:
        """The optimizer called `name`, `muon` (hundreds of small kernels a step) or `adamw` (on CUDA one kernel)."""
        if name == "muon":
            return Muon(parameters, lr, weight_decay)
        fused = True if self.device.type == "cuda" else None
        return torch.optim.AdamW(parameters, lr, weight_decay=weight_decay, fused=fused)

    def wrap(self, model: nn.Module) -> nn.Module:
        """The module that is called in training in place of the model, and shares its weights."""
        return model

    def batches(self, made: Iterator[dict[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
        """Batches on `host`, each made while the one before it is used; `index` stays where it is."""
        moved = (
            {name: values if name == "index" else move(values, self.host) for name, values in batch.items()}
            for batch in made
        )
        return prefetch(moved, self.host)

    def accumulating(self, network: nn.Module, last: bool) -> AbstractContextManager:
        """Around the forward and backward pass of one of several batches of a step."""
        return nullcontext()

    def reduce_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        """Make the gradients the mean over all processes, unless the backward pass has."""

    def mean(self, values: Tensor) -> Tensor:
        """Mean of `(N,)` over all processes."""
        return values

    def gather(self, values: Tensor) -> Tensor:
        """The `(N,)` of all processes, concatenated in the order of their ranks."""
        return values

    def update(self, scaler: torch.amp.GradScaler, optimizer: torch.optim.Optimizer) -> None:
        """Let the optimizer change the weights, unless the scaler skips this step."""
        scaler.step(optimizer)

    def finish_step(self) -> None:
        """Called at the end of a step, when the weights and their average have changed."""

    def is_process_lost(self, error: RuntimeError) -> bool:
        """Whether `error` means that another process is gone."""
        return False

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The other processes enter when the first one leaves: it downloads and decodes for all.

        Raises:
            SaidByAnother: the first process has ended; it has printed why.
        """
        if not self.main:
            try:
                self.barrier()
            except RuntimeError as error:
                if not self.is_process_lost(error):
                    raise
                raise SaidByAnother("the first process of this run has ended, and says why") from None
        yield
        if self.main:
            self.barrier()

    def barrier(self) -> None:
        """Wait until all processes are here."""

    def to_host(self, state: Any) -> Any:
        """A nested state with its tensors where any computer can read them: XLA's are copied to the CPU."""
        return state

    def extra_curves(self) -> dict[str, float]:
        """Values for curves that only this hardware has, see `monitor.CURVES`."""
        return {}

    def close(self) -> None:
        """Called last, when a run has ended or was stopped."""


class Distributed(Backend):
    """One of the processes that torchrun started: N of them train as one would with N times the batch."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.rank, _, self.world_size = torchrun_env()
        if device.type not in ("cpu", "cuda"):
            raise UserError(f"several processes cannot share '{device}'; start train.py without torchrun")
        if device.type == "cuda":
            if not dist.is_nccl_available():
                raise UserError("this torch has no NCCL (on Windows none has); start train.py without torchrun")
            torch.cuda.set_device(device)
        if not dist.is_initialized():
            dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
        self.long_timeout_group = dist.new_group(timeout=LONG_TIMEOUT, backend="gloo")

    def wrap(self, model: nn.Module) -> nn.Module:
        return nn.parallel.DistributedDataParallel(model, [self.device] if self.device.type == "cuda" else None)

    def accumulating(self, network: nn.Module, last: bool) -> AbstractContextManager:
        return nullcontext() if last else network.no_sync()

    def mean(self, values: Tensor) -> Tensor:
        values = values.clone()
        dist.all_reduce(values)
        return values / self.world_size

    def gather(self, values: Tensor) -> Tensor:
        parts = [torch.empty_like(values) for _ in range(self.world_size)]
        dist.all_gather(parts, values.contiguous())
        return torch.cat(parts)

    def is_process_lost(self, error: RuntimeError) -> bool:
        text = str(error).lower()
        return isinstance(error, dist.DistError) or any(word in text for word in ("gloo", "nccl", "connection"))

    def barrier(self) -> None:
        dist.all_reduce(torch.zeros(1), group=self.long_timeout_group)

    def close(self) -> None:
        dist.destroy_process_group()


def find_backend(name: str) -> Backend:
    """The backend for `--device name`, alone or under torchrun.

    Raises:
        UserError: that device is not there.
    """
    device = choose_device(name)
    return Distributed(device) if torchrun_env().world_size > 1 else Backend(device)


def wait_for_all_processes() -> None:
    """Under torchrun, wait until all processes have come this far."""
    if torchrun_env().world_size > 1:
        dist.init_process_group("gloo", timeout=LONG_TIMEOUT)
        dist.barrier()
        dist.destroy_process_group()
