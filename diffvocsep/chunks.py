"""A song of any length through a network of bounded memory: cut into chunks, stitched again, lined up with the song.

Chunks lie on a grid that starts at the song's first sample. Each includes a margin of its neighbours, which the
separator throws away after the network (separator.py). Kept frames are overlap-added as if the song had been
transformed at once, so joints are crossfaded by the STFT's own window. Waveforms come and go in blocks: nothing here
grows with the song.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .config import Config
from .spectrogram import STFT
from .util.errors import UserError


@dataclass(frozen=True)
class Grid:
    """Where a song is cut, in frames of the STFT; the network takes multiples of `stride` frames."""

    n_fft: int  # samples
    hop_length: int  # samples
    stride: int
    kept: int  # frames kept of a chunk
    margin: int  # frames of its neighbours, on each side

    @classmethod
    def from_config(cls, config: Config, stride: int) -> Grid:
        """The grid of the `separation` section, in whole strides and at least one."""
        audio = config.audio

        def frames(seconds: float) -> int:
            return max(1, round(seconds * audio.sample_rate / audio.hop_length / stride)) * stride

        kept, margin = frames(config.separation.chunk_seconds), frames(config.separation.margin_seconds)
        return cls(audio.n_fft, audio.hop_length, stride, kept, margin)

    def frames(self, samples: float) -> int:
        """How many frames a song of so many samples has."""
        return int(-(-samples // self.hop_length)) + 1

    def chunks(self, samples: float) -> int:
        """How many chunks."""
        return -(-self.frames(samples) // self.kept)

    def window(self, kept: int) -> int:
        """Samples under `kept` frames and the margins around them."""
        return (kept + 2 * self.margin - 1) * self.hop_length + self.n_fft


@dataclass(frozen=True)
class Chunk:
    first: int  # frame of the song, the first that is kept
    kept: int  # frames
    samples: Tensor  # (G, C, n), those under the kept frames and their margins; zero outside the song


def to_groups(block: Tensor, channels: int) -> Tensor:
    """`(C, n)` -> `(G, channels, n)` for a model of `channels`: mono is doubled for a stereo model, more channels are
    taken pair by pair (an odd last one is doubled)."""
    if len(block) % channels:
        block = torch.cat([block, block[-1:]])
    return block.unflatten(0, (-1, channels))


def cut(blocks: Iterable[Tensor], grid: Grid) -> Iterator[Chunk]:
    """Chunks of a song that comes in blocks `(G, C, n)`. The last one keeps what is left, in whole strides."""
    step = grid.kept * grid.hop_length
    buffer, length, first = None, 0, 0
    for block in blocks:
        if buffer is None:  # frame 0 is centred at sample 0
            buffer = block.new_zeros(*block.shape[:2], grid.margin * grid.hop_length + grid.n_fft // 2)
        buffer, length = torch.cat([buffer, block], dim=-1), length + block.shape[-1]
        while buffer.shape[-1] >= (size := grid.window(grid.kept)):
            yield Chunk(first, grid.kept, buffer[..., :size])
            buffer, first = buffer[..., step:], first + grid.kept
    end = grid.frames(length)
    while length and first < end:
        kept = min(grid.kept, end - first)
        size = grid.window(-(-kept // grid.stride) * grid.stride)
        yield Chunk(first, kept, F.pad(buffer, (0, max(0, size - buffer.shape[-1])))[..., :size])
        buffer, first = buffer[..., step:], first + grid.kept


def batches(chunks: Iterable[Chunk], size: int) -> Iterator[list[Chunk]]:
    """Lists of up to `size` chunks of the same length."""
    batch: list[Chunk] = []
    for chunk in chunks:
        if batch and (len(batch) == size or chunk.samples.shape != batch[0].samples.shape):
            yield batch
            batch = []
        batch.append(chunk)
    if batch:
        yield batch


def stitch(spectra: Iterable[Tensor], stft: STFT) -> Iterator[Tensor]:
    """A song's frames in order, complex `(G, C, F, T)` -> its waveform in blocks `(G * C, n)`.

    It goes from the centre of the first frame, which is sample 0, to the centre of the last, which is the song's end or
    after: what is outside lies under the edge of one window alone, and dividing by that would blow up.
    """
    hop, half = stft.hop_length, stft.n_fft // 2
    drop, rest = half, None
    for spectrum in spectra:
        total, envelope = stft.overlap_add(spectrum.flatten(0, 1))
        if rest is not None:
            total[..., : rest[0].shape[-1]] += rest[0]
            envelope[: len(rest[1])] += rest[1]
        ready = spectrum.shape[-1] * hop
        rest = total[..., ready:], envelope[ready:]
        yield total[..., drop:ready] / envelope[drop:ready]
        drop = max(0, drop - ready)
    if rest is not None:
        yield rest[0][..., drop : half - hop] / rest[1][drop : half - hop]


def line_up(vocals: Iterable[Tensor], song: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Vocals and accompaniment `(C, n)` block by block of the song; the accompaniment is what the vocals leave.

    The vocals may come in blocks of other sizes, with more samples at the end, and with a channel that `to_groups`
    doubled, which becomes the mean of its two estimates.

    Raises:
        UserError: the vocals end before the song.
    """
    stream, buffer = iter(vocals), None
    for block in song:
        channels, need = block.shape
        while buffer is None or buffer.shape[-1] < need:
            piece = next(stream, None)
            if piece is None:
                raise UserError("the song became longer while it was read; separate a copy that nothing writes to")
            buffer = piece if buffer is None else torch.cat([buffer, piece], dim=-1)
        part, buffer = buffer[..., :need], buffer[..., need:]
        if len(part) > channels:
            part = torch.cat([part[: channels - 1], part[channels - 1 :].mean(0, keepdim=True)])
        yield part.to(block), block - part.to(block)
