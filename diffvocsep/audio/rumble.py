"""What lies below 20 Hz: nobody hears it, but a DC offset or a rumble can be louder than the music above it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from .resampling import rechunk

_CUTOFF, _TRANSITION = 20.0, 10.0  # Hz
_STOPBAND = 80.0  # dB
_SILENCE = 0.005  # seconds to each side without a sample that is not zero: digital silence
SHARE = 0.15  # of a channel's energy, 0.7 dB of its loudness: a larger offset or rumble is removed


class Rumble:
    """Takes an offset and what lies below 20 Hz from streams of one sample rate (Hz), after it has measured them.

    A song that has little is left as it is, to the bit: recordings of voices have offsets of their own, and the network
    has learnt whose they are.

    The offset is the mean; a linear-phase low-pass filter finds the rest (a sinc under a window of Kaiser, 1974, as in
    `resampling.py`). Before its beginning and after its end, a stream is continued as its own mirror image, so that it
    has no edge there.
    """

    def __init__(self, sample_rate: int) -> None:
        self.sample_rate = sample_rate
        self.count, self.total, self.energy, self.low = (torch.zeros(1, dtype=torch.float64) for _ in range(4))

    def measure(self, blocks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Pass the blocks `(C, n)` on, in other sizes, and measure them."""
        for block, low, sounding in self._split(blocks):
            self.count, self.total = self.count + sounding.sum(), self.total + block.double().sum(-1)
            self.energy = self.energy + block.double().square().sum(-1)
            self.low = self.low + low.double().square().sum(-1)
            yield block

    def is_significant(self) -> tuple[bool, bool]:
        """Whether any channel has an offset, and whether any has other energy below 20 Hz, worth removing."""
        if self.count * _CUTOFF < self.sample_rate:  # shorter than one period
            return False, False
        offset = self.total.square() / self.count
        beside = (self.low - offset) > SHARE * (self.energy - offset)
        return bool((offset > SHARE * self.energy).any()), bool(beside.any())

    def remove(self, blocks: Iterable[Tensor]) -> Iterable[Tensor]:
        """The blocks `(C, n)`, perhaps in other sizes, without what is worth taking away; silence stays silent."""
        offset, below = self.is_significant()
        if not (offset or below):
            return blocks
        mean = (self.total / self.count).float()[:, None]
        return (block - (low if below else mean * sounding) for block, low, sounding in self._split(blocks))

    def _split(self, blocks: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Blocks, what lies below 20 Hz in them, both `(C, n)`, and where they are no digital silence, `(n,)`."""
        reach = len(_low_pass(self.sample_rate)) // 2
        window = None  # (C, n): what the filter sees before a sample, and what is not yet done
        for block in rechunk(blocks, 4 * reach):
            window = _mirrored(block, reach) if window is None else torch.cat([window, block], dim=-1)
            if (ready := window.shape[-1] - 2 * reach) > 0:
                yield self._filtered(window, reach)
                window = window[:, ready:]
        if window is not None:
            yield self._filtered(_mirrored(window.flip(-1), reach).flip(-1), reach)

    def _filtered(self, window: Tensor, reach: int) -> tuple[Tensor, Tensor, Tensor]:
        """What `_split` says of the samples of a window that the filter sees all of."""
        near = round(_SILENCE * self.sample_rate)
        loud = window[:, reach - near : window.shape[-1] - reach + near].any(0)
        before = F.pad(loud.cumsum(0), (1, 0))  # how many samples before this one are not zero
        sounding = before[2 * near + 1 :] > before[: -2 * near - 1]
        return window[:, reach : window.shape[-1] - reach], _convolve(window, self.sample_rate) * sounding, sounding


@lru_cache(maxsize=8)
def _low_pass(sample_rate: int) -> Tensor:
    """An odd number of taps, `(n,)`, whose sum is 1."""
    reach = math.ceil((_STOPBAND - 7.95) / (2.285 * 2 * math.pi * _TRANSITION / sample_rate) / 2)
    window = torch.kaiser_window(2 * reach + 1, periodic=False, beta=0.1102 * (_STOPBAND - 8.7), dtype=torch.float64)
    kernel = window * torch.sinc(torch.arange(-reach, reach + 1).double() * 2 * _CUTOFF / sample_rate)
    return (kernel / kernel.sum()).float()


def _mirrored(block: Tensor, reach: int) -> Tensor:
    """The block with its mirror image before it, `(C, reach + n)`; where it is shorter, its farthest sample goes on."""
    part = min(reach, block.shape[-1] - 1)
    before = block[:, 1 : 1 + part].flip(-1)
    return F.pad(torch.cat([before, block], dim=-1), (reach - part, 0), mode="replicate")


def _convolve(window: Tensor, sample_rate: int) -> Tensor:
    """What the low-pass filter makes of the samples that it sees all of, `(C, n - taps + 1)`."""
    size = 1 << (window.shape[-1] - 1).bit_length()  # what goes round falls on the samples that are cut off
    product = torch.fft.rfft(window, size) * _transformed(sample_rate, size)
    return torch.fft.irfft(product, size)[:, len(_low_pass(sample_rate)) - 1 : window.shape[-1]]


@lru_cache(maxsize=8)
def _transformed(sample_rate: int, size: int) -> Tensor:
    """The low-pass filter's Fourier transform of `size` samples."""
    return torch.fft.rfft(_low_pass(sample_rate), size)
