"""Files of many channels, a few channels at a time: each few lie in a file of their own meanwhile, as float32."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

AT_ONCE = 8  # channels


@dataclass(frozen=True)
class Part:
    """Some channels of a song, in `path`."""

    path: Path
    channels: int

    def blocks(self, size: int) -> Iterator[Tensor]:
        """Tensors `(C, n)`, n <= size samples. Every call starts anew."""
        with self.path.open("rb") as file:
            while len(data := np.fromfile(file, "<f4", size * self.channels)):
                yield torch.from_numpy(data.reshape(-1, self.channels)).T.contiguous()

    def write(self, blocks: Iterable[Tensor]) -> Part:
        """Fill the file with blocks `(C, n)`. Raises OSError."""
        with self.path.open("wb") as file:
            for block in blocks:
                file.write(block.T.contiguous().numpy().astype("<f4").tobytes())
        return self


def split(blocks: Iterable[Tensor], channels: int, folder: Path) -> list[Part]:
    """Write a song of `channels` as parts of up to 8 channels. Raises OSError."""
    sizes = [min(AT_ONCE, channels - first) for first in range(0, channels, AT_ONCE)]
    parts = [Part(folder / f"{index}.f32", size) for index, size in enumerate(sizes)]
    files = [part.path.open("wb") for part in parts]
    try:
        for block in blocks:
            for file, some in zip(files, block.split(AT_ONCE), strict=True):
                file.write(some.T.contiguous().numpy().astype("<f4").tobytes())
    finally:
        for file in files:
            file.close()
    return parts


def join(parts: list[Part], size: int) -> Iterator[Tensor]:
    """The channels of all parts beside each other, `(C, n)`."""
    for blocks in zip(*(part.blocks(size) for part in parts), strict=True):
        yield torch.cat(blocks)
