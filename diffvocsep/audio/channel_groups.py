"""Songs of many channels are separated one group of channels at a time, each of which lies in a file of its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

GROUP_SIZE = 8  # channels


@dataclass(frozen=True)
class ChannelGroup:
    """Some channels of a song, interleaved float32 samples in `path`."""

    path: Path
    channels: int

    def blocks(self, size: int) -> Iterator[Tensor]:
        """Tensors `(C, n)`, n <= size samples. Every call starts anew."""
        with self.path.open("rb") as file:
            while len(data := np.fromfile(file, "<f4", size * self.channels)):
                yield torch.from_numpy(data.reshape(-1, self.channels)).T.contiguous()

    def write(self, blocks: Iterable[Tensor]) -> ChannelGroup:
        """Fill the file with blocks `(C, n)`. Raises OSError."""
        with self.path.open("wb") as file:
            for block in blocks:
                file.write(block.T.contiguous().numpy().astype("<f4").tobytes())
        return self


def split_channels(blocks: Iterable[Tensor], channels: int, folder: Path) -> list[ChannelGroup]:
    """Write a song of `channels` as groups of up to 8 channels. Raises OSError."""
    sizes = [min(GROUP_SIZE, channels - first) for first in range(0, channels, GROUP_SIZE)]
    groups = [ChannelGroup(folder / f"{index}.f32", size) for index, size in enumerate(sizes)]
    files = [group.path.open("wb") for group in groups]
    try:
        for block in blocks:
            for file, some in zip(files, block.split(GROUP_SIZE), strict=True):
                file.write(some.T.contiguous().numpy().astype("<f4").tobytes())
    finally:
        for file in files:
            file.close()
    return groups


def join_channels(groups: list[ChannelGroup], size: int) -> Iterator[Tensor]:
    """The channels of all groups beside each other, `(C, n)`."""
    for blocks in zip(*(group.blocks(size) for group in groups), strict=True):
        yield torch.cat(blocks)
