"""Batches of training segments, wherever they are made: in this process, in loader processes, or on the GPU."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from .mixing import Segments
from .resident import resident_batches


def load_segments(
    segments: Segments, first: int, device: torch.device, rank: int = 0, world_size: int = 1
) -> Iterator[dict[str, Tensor]]:
    """Batches of `train.batch_size` segments, from the global index `first` on, for process `rank` of `world_size`.

    Processes take turns, segment by segment: no two draw the same one, and after k batches each, exactly the segments
    `first .. first + k * batch_size * world_size` are drawn. From there on, any number of processes can go on.
    """
    config = segments.config
    indices = range(first + rank, len(segments), world_size)
    if config.data.cache == "device":
        return resident_batches(segments, indices, config.train.batch_size, device)
    loader = DataLoader(
        Subset(segments, indices),
        batch_size=config.train.batch_size,
        num_workers=config.data.workers,
        pin_memory=device.type == "cuda",
        worker_init_fn=_ignore_interrupt,
    )
    return iter(loader)


def _ignore_interrupt(worker: int) -> None:
    """Ctrl-C reaches all processes of a terminal; the main one decides when the loaders stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
