"""Batches of training segments, wherever they are made: in this process, in loader processes, or on the GPU."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from ..util.rng import DRAWING, generator, normal
from .device_cache import device_batches
from .mixing import Segments

T = TypeVar("T")


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
        return device_batches(segments, indices, config.train.batch_size, device)
    loader = DataLoader(
        Subset(segments, indices),
        batch_size=config.train.batch_size,
        num_workers=config.data.workers,
        pin_memory=device.type == "cuda",
        worker_init_fn=_ignore_interrupt,
    )
    return iter(loader)


def with_noise(batches: Iterator[dict[str, Tensor]], shape: tuple[int, ...], seed: int) -> Iterator[dict[str, Tensor]]:
    """The batches, and with each what decides the timesteps of its items and which of them see a guess, `uniform`
    `(B, 2)` in [0, 1), and their `noise` `(B, C, F, T)`: functions of an item's global index, like the item."""
    with ThreadPoolExecutor(DRAWING, "noise") as threads:
        for batch in batches:
            indices = batch["index"].tolist()
            uniform = torch.tensor([generator(seed, "timestep", i).random(2) for i in indices], dtype=torch.float32)
            noise = torch.stack(list(threads.map(lambda i: normal(shape, seed, "noise", i), indices)))
            yield batch | {"uniform": uniform, "noise": noise}


def prefetch(items: Iterator[T], device: torch.device | None = None) -> Iterator[T]:
    """The same items, each made in a thread while the one before it is used; errors come where the item would.

    On a GPU, `device` is that thread's current one, too: threads begin on the first, and would pin memory there.
    """
    begin = torch.cuda.set_device if device is not None and device.type == "cuda" and device.index else None
    with ThreadPoolExecutor(1, "prefetch", begin, (device,)) as thread:
        coming = thread.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, items, None)
            yield item


def _ignore_interrupt(worker: int) -> None:
    """Ctrl-C reaches all processes of a terminal, as torchrun's SIGTERM does; the main one decides when to stop."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
