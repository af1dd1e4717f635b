"""Sample-rate conversion with a Kaiser-windowed sinc, whole or as a stream of blocks in constant memory.

The filter is designed with the formulas of Kaiser (1974) as given by Oppenheim and Schafer, "Discrete-Time Signal
Processing", section 7.5: 120 dB of stopband, so that its error lies below that of 16-bit audio and near that of
24-bit audio, and a cutoff that puts the whole transition band below the lower Nyquist frequency, so that nothing
aliases. With 128 zero crossings on each side the passband ends at 0.94 of that frequency (20.7 kHz at 44.1 kHz).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..util.errors import UserError

if TYPE_CHECKING:
    from torchaudio.transforms import Resample

_ZERO_CROSSINGS = 128
_STOPBAND = 120.0  # dB
_BETA = 0.1102 * (_STOPBAND - 8.7)
_ROLLOFF = 1 / (1 + (_STOPBAND - 7.95) / (28.72 * _ZERO_CROSSINGS))  # cutoff in units of the lower Nyquist frequency
_LARGEST_KERNEL = 4_000_000  # taps, 16 MB
_HOP = 1 << 18  # samples that a stream converts at once, at least


def resample(waveform: Tensor, from_rate: int, to_rate: int) -> Tensor:
    """Convert `waveform` (..., N) float32 from `from_rate` to `to_rate` Hz: (..., ceil(N * to_rate / from_rate)).

    Outside the waveform there is silence. Equal rates return the waveform itself. Raises UserError if torchaudio is
    needed and cannot be imported.
    """
    if from_rate == to_rate or waveform.numel() == 0:
        return waveform
    flat = waveform.reshape(-1, waveform.shape[-1])
    return torch.cat(list(resample_blocks([flat], from_rate, to_rate)), dim=-1).reshape(*waveform.shape[:-1], -1)


def resample_blocks(blocks: Iterable[Tensor], from_rate: int, to_rate: int) -> Iterator[Tensor]:
    """Convert a stream of blocks (C, n) of any sizes; the outputs, joined, are `resample` of the inputs, joined."""
    if from_rate == to_rate:
        yield from blocks
        return
    divisor = math.gcd(from_rate, to_rate)
    q, p = from_rate // divisor, to_rate // divisor  # the filter's phases repeat every q inputs, which give p outputs
    context = q * math.ceil(_width(q, p) / q)  # what an output sees on each side, in whole periods
    lead = context // q * p
    window = None  # (C, n): the context, then what is not yet converted
    for block in rechunk(blocks, context * max(math.ceil(_HOP / context), 32)):
        if window is None:
            window = block.new_zeros(block.shape[0], context)
        window = torch.cat([window, block], dim=-1)
        periods = (window.shape[-1] - 2 * context) // q
        if periods > 0:
            yield _convert(window[:, : 2 * context + periods * q], q, p)[:, lead : lead + periods * p]
            window = window[:, periods * q :]
    if window is not None:
        rest = window.shape[-1] - context
        window = F.pad(window, (0, -rest % q))
        yield _convert(window, q, p)[:, lead : lead + -(-rest * p // q)]


def rechunk(blocks: Iterable[Tensor], size: int) -> Iterator[Tensor]:
    """Regroup a stream of blocks (C, n) into blocks of exactly `size` samples; the last may be shorter."""
    pending, held = [], 0
    for block in blocks:
        pending.append(block)
        held += block.shape[-1]
        if held >= size:
            joined = torch.cat(pending, dim=-1)
            whole = held - held % size
            yield from joined[..., :whole].split(size, dim=-1)
            pending, held = [joined[..., whole:]], held - whole
    if held:
        yield torch.cat(pending, dim=-1)


def _width(q: int, p: int) -> int:
    """Samples of input that the filter reaches on each side of an output."""
    return math.ceil(_ZERO_CROSSINGS * q / (min(q, p) * _ROLLOFF))


def _convert(x: Tensor, q: int, p: int) -> Tensor:
    """Whole periods (C, K * q) to (C, K * p).

    torchaudio keeps all p phases in one dense kernel of p * (q + 2 * width) taps, fast as one convolution but of
    billions of taps for a ratio such as 44101:44100. Such ratios are rare; they are computed a few phases at a time,
    which is as exact, but takes about a fifth of the sound's duration.
    """
    if p * (q + 2 * _width(q, p)) <= _LARGEST_KERNEL:
        return _dense(q, p)(x)
    return _few_phases(x, q, p)


@lru_cache(maxsize=8)
def _dense(q: int, p: int) -> Resample:
    try:
        from torchaudio.transforms import Resample
    except (ImportError, RuntimeError, OSError) as error:
        raise UserError(
            f"Changing the sample rate needs torchaudio, which cannot be imported ({error}): install the pair "
            "'torch==2.11.*' and 'torchaudio==2.11.*'."
        ) from error
    # float64 while the kernel is made: in float32, torchaudio rounds the phases and loses 20 dB.
    return Resample(q, p, "sinc_interp_kaiser", _ZERO_CROSSINGS, _ROLLOFF, _BETA, dtype=torch.float64).float()


def _few_phases(x: Tensor, q: int, p: int) -> Tensor:
    """The same filter without most of the zeros of the dense kernel, made anew for every few phases."""
    width, cutoff = _width(q, p), min(q, p) / q * _ROLLOFF
    padded = F.pad(x, (width, width + 1))
    out = x.new_empty(x.shape[0], x.shape[-1] // q, p)
    for phases in torch.arange(p).split(64):
        first, last = int(phases[0]) * q // p, int(phases[-1]) * q // p + 2 * width + 2
        windows = padded[:, first:].unfold(-1, last - first, q)[:, : out.shape[1]]  # (C, K, taps)
        t = (torch.arange(first, last) - width - phases[:, None].double() * q / p) * cutoff  # in zero crossings
        t = t.clamp(-_ZERO_CROSSINGS, _ZERO_CROSSINGS)
        kaiser = torch.i0(_BETA * (1 - (t / _ZERO_CROSSINGS) ** 2).sqrt().float()) / torch.i0(torch.tensor(_BETA))
        kernel = (torch.sinc(t) * cutoff).float() * kaiser  # (phases, taps)
        out[:, :, phases] = windows @ kernel.T
    return out.flatten(1)
