"""Waveform <-> STFT <-> what the diffusion model sees.

`STFT` is the reversible transform. Two representations turn its complex bins into real tensors for the network:

- `ComplexSpectrogram`: power-compressed real and imaginary parts, |X|^p e^{i angle(X)}. Loses nothing.
- `MagnitudeSpectrogram`: log1p of the scaled magnitude, min-max normalized to [-1, 1]. Borrows the mixture's phase.

Both normalize in `encode`, by statistics of the mixture (`statistics`, `level`), which also serve the target and the
inverse, so that mixture and counterfactual have one scale, and a song 12 dB louder comes out 12 dB louder.

Spectra are `(B, C, F, T)`, but in memory they lie frame after frame, as `torch.stft` writes them and the network reads
them: hence the transposed views (`.mT`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .config import AudioConfig
from .registry import REPRESENTATIONS, load
from .util.device import Constant

TRUSTED = 0.45  # share of a recording's sample rate below which its content is real


class STFT:
    """Hann-window STFT; frame k is centred at sample k * hop_length, and white noise of variance 1 has E|X|^2 = 1."""

    def __init__(self, n_fft: int, hop_length: int, win_length: int) -> None:
        self.n_fft, self.hop_length = n_fft, hop_length
        window = torch.hann_window(win_length, dtype=torch.float64, device="cpu")  # wherever the network is built
        left = (n_fft - win_length) // 2
        window = F.pad(window, (left, n_fft - win_length - left))
        self.window = Constant((window / window.square().sum().sqrt()).float())

    def __call__(self, waveform: Tensor, center: bool = True) -> Tensor:
        """Waveform `(B, C, N)` -> complex `(B, C, F, T)`, T = ceil(N / hop) + 1 frames.

        With `center=False` the first frame starts at sample 0 and T = (N - n_fft) // hop + 1: for callers that bring
        the neighbourhood of their frames along.
        """
        if center:
            tail = -waveform.shape[-1] % self.hop_length
            waveform = F.pad(waveform, (self.n_fft // 2, self.n_fft - self.n_fft // 2 + tail))
        batch = waveform.shape[:-1]
        spectrum = torch.stft(
            waveform.reshape(-1, waveform.shape[-1]), self.n_fft, self.hop_length,
            window=self.window.on(waveform.device, waveform.dtype), center=False, return_complex=True,
        )  # fmt: skip
        return spectrum.reshape(*batch, *spectrum.shape[-2:])

    def overlap_add(self, spectrum: Tensor) -> tuple[Tensor, Tensor]:
        """Complex `(B, C, F, T)` -> windowed frames added up `(B, C, N)` and their envelope `(N,)`,
        N = (T - 1) * hop + n_fft; bins missing at the top count as zero. The quotient of the two is the least-squares
        inverse (Griffin & Lim 1984, eq. 6)."""
        window = self.window.on(spectrum.device, spectrum.real.dtype)
        pieces = torch.fft.irfft(spectrum.mT, n=self.n_fft) * window
        return self._add_up(pieces), self._add_up(window.square().expand(spectrum.shape[-1], -1))

    def inverse(self, spectrum: Tensor, length: int) -> Tensor:
        """Complex `(B, C, F, T)` of a centred STFT -> waveform `(B, C, length)`."""
        total, envelope = self.overlap_add(spectrum)
        keep = slice(self.n_fft // 2, self.n_fft // 2 + length)
        return total[..., keep] / envelope[keep]

    def _add_up(self, pieces: Tensor) -> Tensor:
        """Frames `(..., T, n_fft)` added up where they overlap, `(..., N)`. One hop of all frames at a time is several
        times faster than `torch.nn.functional.fold`."""
        *batch, frames, n_fft = pieces.shape
        hops = pieces.split(self.hop_length, dim=-1)
        total = pieces.new_zeros(*batch, frames + len(hops) - 1, self.hop_length)
        for i, hop in enumerate(hops):
            total[..., i : i + frames, : hop.shape[-1]] += hop
        return total.flatten(-2)[..., : (frames - 1) * self.hop_length + n_fft]


class Representation:
    """What the two representations share: statistics of the mixture, `(B, 4)`: sum, count, minimum, maximum.

    Sums and counts add up and extrema combine, so a song of any length can be measured in a stream (`merge`).
    """

    parts: int  # real numbers per complex bin
    exponent: float  # the loudness of a song is the mean of |X|^(2 * exponent)

    @classmethod
    def from_config(cls, audio: AudioConfig) -> Representation:
        """As an `audio` section asks for it."""
        raise NotImplementedError

    def statistics(self, mixture: Tensor) -> Tensor:
        """Complex mixture `(B, C, F, T)` -> `(B, 4)`. Frames of digital silence do not count."""
        magnitude = mixture.abs()
        sounding = (magnitude.amax(dim=(1, 2)) > 0).sum(-1)
        total = magnitude.pow(2 * self.exponent).sum(dim=(1, 2, 3))
        count = sounding * mixture.shape[1] * mixture.shape[2]
        return torch.stack([total, count, magnitude.amin(dim=(1, 2, 3)), magnitude.amax(dim=(1, 2, 3))], dim=1)

    @staticmethod
    def merge(first: Tensor, second: Tensor) -> Tensor:
        """Statistics of two stretches of the same signals, `(B, 4)` each -> `(B, 4)` of both together."""
        low, high = torch.minimum(first[:, 2], second[:, 2]), torch.maximum(first[:, 3], second[:, 3])
        return torch.stack([first[:, 0] + second[:, 0], first[:, 1] + second[:, 1], low, high], dim=1)

    def level(self, statistics: Tensor) -> Tensor:
        """The loudness by which everything is divided, `(B, 1, 1, 1)`; proportional to the amplitude of the mixture."""
        mean = statistics[:, 0] / statistics[:, 1].clamp_min(1)
        return mean.pow(0.5 / self.exponent).reshape(-1, 1, 1, 1)

    def encode(self, spectrum: Tensor, statistics: Tensor) -> Tensor:
        """Complex `(B, C, F, T)` -> real `(B, parts * C, F, T)`."""
        raise NotImplementedError

    def decode(self, x: Tensor, statistics: Tensor, mixture: Tensor) -> Tensor:
        """Real `(B, parts * C, F, T)` -> complex `(B, C, F, T)`; the inverse of `encode`."""
        raise NotImplementedError

    def decode_difference(self, x_mixture: Tensor, x: Tensor, statistics: Tensor, mixture: Tensor) -> Tensor:
        """What is left when `x` is taken from the mixture *in the represented space*, complex `(B, C, F, T)`.

        A difference of normalized values is not a normalized value: the offset has cancelled and must not be added
        again, so "no difference" decodes to silence.
        """
        raise NotImplementedError


class ComplexSpectrogram(Representation):
    """Power-compressed complex STFT, |X|^p e^{i angle(X)}, of unit variance over the mixture: re, im per channel."""

    parts = 2

    def __init__(self, compression: float) -> None:
        self.exponent = compression

    @classmethod
    def from_config(cls, audio: AudioConfig) -> ComplexSpectrogram:
        return cls(audio.compression)

    def encode(self, spectrum: Tensor, statistics: Tensor) -> Tensor:
        scaled = spectrum / self.level(statistics).clamp_min(1e-20)
        compressed = scaled * scaled.abs().clamp_min(1e-20).pow(self.exponent - 1) * 2**0.5  # re and im: variance 1
        compressed = compressed.mT
        return torch.stack([compressed.real, compressed.imag], dim=2).flatten(1, 2).mT

    def decode(self, x: Tensor, statistics: Tensor, mixture: Tensor) -> Tensor:
        compressed = torch.view_as_complex(x.mT.float().unflatten(1, (-1, 2)).movedim(2, -1).contiguous()).mT / 2**0.5
        magnitude = compressed.abs().clamp_min(1e-20)  # keeps the gradient finite at zero
        return compressed * magnitude.pow(1 / self.exponent - 1) * self.level(statistics)

    def decode_difference(self, x_mixture: Tensor, x: Tensor, statistics: Tensor, mixture: Tensor) -> Tensor:
        return self.decode(x_mixture - x, statistics, mixture)


class MagnitudeSpectrogram(Representation):
    """log1p(scale * |X| / level), min-max normalized to [-1, 1] by the mixture's extrema, with the mixture's phase.

    `per_batch` takes one minimum and maximum for the whole batch; otherwise every item has its own.
    """

    parts = 1
    exponent = 0.5

    def __init__(self, scale: float, per_batch: bool = False) -> None:
        self.scale, self.per_batch = scale, per_batch

    @classmethod
    def from_config(cls, audio: AudioConfig) -> MagnitudeSpectrogram:
        return cls(audio.log1p_scale, per_batch=audio.statistics == "batch")

    def _range(self, statistics: Tensor) -> tuple[Tensor, Tensor]:
        level = self.level(statistics).clamp_min(1e-20)
        low = torch.log1p(self.scale * statistics[:, 2].reshape(-1, 1, 1, 1) / level)
        high = torch.log1p(self.scale * statistics[:, 3].reshape(-1, 1, 1, 1) / level)
        if self.per_batch:
            low, high = low.amin().expand_as(low), high.amax().expand_as(high)
        return low, (high - low).clamp_min(1e-6)

    def _expand(self, logarithm: Tensor, statistics: Tensor, mixture: Tensor) -> Tensor:
        """log1p magnitude -> complex with the mixture's phase; what would be negative is silence."""
        magnitude = torch.expm1(logarithm.clamp_min(0)) / self.scale * self.level(statistics)
        return magnitude * torch.sgn(mixture)

    def encode(self, spectrum: Tensor, statistics: Tensor) -> Tensor:
        low, span = self._range(statistics)
        scaled = spectrum.abs() / self.level(statistics).clamp_min(1e-20)
        return (torch.log1p(self.scale * scaled) - low) / span * 2 - 1

    def decode(self, x: Tensor, statistics: Tensor, mixture: Tensor) -> Tensor:
        low, span = self._range(statistics)
        return self._expand((x.float() + 1) / 2 * span + low, statistics, mixture)

    def decode_difference(self, x_mixture: Tensor, x: Tensor, statistics: Tensor, mixture: Tensor) -> Tensor:
        _, span = self._range(statistics)
        return self._expand((x_mixture - x).float() / 2 * span, statistics, mixture)


def make_representation(audio: AudioConfig) -> Representation:
    """The representation that `audio.representation` names, one of `registry.REPRESENTATIONS`."""
    return load(REPRESENTATIONS[audio.representation]).from_config(audio)


def modelled_bins(audio: AudioConfig) -> int:
    """How many STFT bins the network models, from the lowest: as many bin widths as `audio.bandwidth` has (0: all)."""
    everything = audio.n_fft // 2 + 1
    below = int(audio.bandwidth * audio.n_fft / audio.sample_rate) or 1
    return min(everything, below) if audio.bandwidth else everything


class Frontend:
    """What stands between a waveform and the network, as an `audio` section asks for it.

    Attributes:
        stft: the transform, of all bins.
        representation: what turns its bins into the network's numbers and back.
        bins: how many bins the network models, from the lowest.
        channels: of a tensor in the represented space: those of the audio times `representation.parts`.
    """

    def __init__(self, audio: AudioConfig) -> None:
        self.audio = audio
        self.stft = STFT(audio.n_fft, audio.hop_length, audio.win_length)
        self.representation = make_representation(audio)
        self.bins = modelled_bins(audio)
        self.channels = audio.channels * self.representation.parts

    def modelled(self, waveform: Tensor, center: bool = True) -> Tensor:
        """Waveform `(B, C, N)` -> STFT of the modelled bins, complex `(B, C, F, T)`; `center` as for `STFT`."""
        return self.stft(waveform, center)[:, :, : self.bins]

    def trusted(self, source_rate: Tensor) -> Tensor:
        """Which modelled bins hold something of recordings of these sample rates (Hz), `(B,)`: bool `(B, F)`. Near the
        Nyquist frequency of a recording and above, resampling leaves nothing. Of recordings that have the model's own
        rate or more, all bins hold something."""
        hertz = torch.arange(self.bins, device=source_rate.device) * (self.audio.sample_rate / self.audio.n_fft)
        rates = source_rate[:, None]
        return (rates >= self.audio.sample_rate) | (hertz <= TRUSTED * rates)

    def shape(self, samples: int) -> tuple[int, int, int]:
        """`(C, F, T)` in the represented space of a waveform of so many samples."""
        return self.channels, self.bins, -(-samples // self.stft.hop_length) + 1
