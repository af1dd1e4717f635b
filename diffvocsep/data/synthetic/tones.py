"""The sound generators shared by voices and instruments: two banks of partials, coloured noise, space and panning.

Frequencies are in Hz, times in s, waveforms float32 arrays (N,) of samples. Slow curves (pitch, spectrum, loudness) are
drawn once per `HOP` samples, "frames", and interpolated in between.
"""

from __future__ import annotations

import numpy as np

from .score import Phrase, Score

HOP = 512
TABLE = 2048
BLOCK, ROWS = 128, 4


def top_frequency(sample_rate: int) -> float:
    """The highest partial worth drawing."""
    return min(12000.0, 0.45 * sample_rate)


def damped_partials(
    frequency: np.ndarray, decay: np.ndarray, amplitude: np.ndarray, length: int, sample_rate: int
) -> np.ndarray:
    """Sum of K damped sinusoids: (K,) Hz, (K,) 1/s and (K,) complex amplitudes -> (length,).

    With n = BLOCK a + b, exp(s n) = exp(s BLOCK a) exp(s b), so the sum over k is a product of two small matrices
    instead of K passes over the waveform. It is taken a few ROWS at a time, which OpenBLAS leaves to one thread:
    threads that wait for each other on a busy machine cost more than the product itself.
    """
    audible = frequency < top_frequency(sample_rate)
    s = (2j * np.pi * frequency[audible] - decay[audible]) / sample_rate
    batches = -(-length // (BLOCK * ROWS))
    coarse = np.exp(np.outer(np.arange(batches * ROWS) * BLOCK, s)) * amplitude[audible]
    fine = np.exp(np.outer(s, np.arange(BLOCK)))
    left = np.concatenate((coarse.real, -coarse.imag), axis=1).astype(np.float32)
    right = np.concatenate((fine.real, fine.imag)).astype(np.float32)
    return (left.reshape(batches, ROWS, -1) @ right).ravel()[:length]


def wavetable(f0: np.ndarray, spectra: np.ndarray, sample_rate: int) -> np.ndarray:
    """A harmonic tone of moving pitch and colour: f0 (F,) Hz and complex amplitudes (F, K) -> ((F - 1) * HOP,).

    Each frame's K harmonics become one period by an inverse FFT; reading the periods by phase, and fading from one
    frame to the next, costs the same however many harmonics there are.
    """
    frames, harmonics = spectra.shape
    bins = np.zeros((frames, TABLE // 2 + 1), np.complex64)
    bins[:, 1 : harmonics + 1] = spectra * (TABLE / 2)
    periods = np.fft.irfft(bins, TABLE).astype(np.float32)
    periods = np.concatenate((periods, periods[:, :1]), axis=1).ravel()  # one more sample: interpolation wraps round

    fade = np.arange(HOP, dtype=np.float32) / HOP
    cycles = np.cumsum((f0[:-1, None] + np.diff(f0)[:, None] * fade) / sample_rate).reshape(-1, HOP)
    position = ((cycles - np.floor(cycles)) * TABLE).astype(np.float32)
    index = np.minimum(position.astype(np.int32), TABLE - 1)
    position -= index
    index += np.arange(frames - 1, dtype=np.int32)[:, None] * (TABLE + 1)

    def read(at: np.ndarray) -> np.ndarray:
        first = periods[at]
        return first + (periods[at + 1] - first) * position

    now = read(index)
    return (now + (read(index + TABLE + 1) - now) * fade).ravel()


def band_noise(rng: np.random.Generator, length: int, low: float, high: float, sample_rate: int) -> np.ndarray:
    """Noise (length,) of unit RMS between `low` and `high` Hz, 12 dB/octave outside, drawn as random phases."""
    size = 1 << max(6, (length - 1).bit_length())
    frequency = np.linspace(0.0, sample_rate / 2, size // 2 + 1, dtype=np.float32)
    frequency[0] = 1e-3
    gain = 1.0 / np.sqrt((1.0 + (low / frequency) ** 4) * (1.0 + (frequency / high) ** 4))
    phase = rng.random(frequency.size, dtype=np.float32) * np.float32(2 * np.pi)
    spectrum = np.empty(frequency.size, np.complex64)
    spectrum.real, spectrum.imag = gain * np.cos(phase), gain * np.sin(phase)
    spectrum[0] = spectrum[-1] = 0.0
    return np.fft.irfft(spectrum, size)[:length].astype(np.float32) * np.float32(size / np.sqrt(2 * np.sum(gain**2)))


def smooth(curve: np.ndarray, frames: int) -> np.ndarray:
    """A curve (F,) or (F, D) averaged along F under a Hann window of `frames` frames, its ends held."""
    window = np.hanning(frames + 2)[1:-1]
    before, after = (frames - 1) // 2, frames // 2
    padded = np.pad(curve, [(before, after)] + [(0, 0)] * (curve.ndim - 1), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, frames, axis=0)
    return windows @ (window / window.sum())


def to_samples(curve: np.ndarray) -> np.ndarray:
    """(F,) frames -> ((F - 1) * HOP,) samples, by straight lines."""
    fade = np.arange(HOP, dtype=np.float32) / HOP
    curve = curve.astype(np.float32)
    return (curve[:-1, None] + np.diff(curve)[:, None] * fade).ravel()


def frame_times(phrase: Phrase, tail: float, sample_rate: int) -> tuple[np.ndarray, np.ndarray]:
    """Times (F,) in s of a phrase's frames, from first onset to `tail` s past its end, and the note (F,) of each."""
    starts = np.array([note.start for note in phrase])
    seconds = phrase[-1].start + phrase[-1].duration + tail - starts[0]
    times = starts[0] + np.arange(int(np.ceil(seconds * sample_rate / HOP)) + 2) * (HOP / sample_rate)
    return times, np.maximum(np.searchsorted(starts, times, side="right") - 1, 0)


def pitch_curve(
    rng: np.random.Generator,
    score: Score,
    phrase: Phrase,
    times: np.ndarray,
    note: np.ndarray,
    glide: int,
    depth: float,
) -> np.ndarray:
    """f0 (F,) in Hz: glides of `glide` frames, a slow drift, jitter, and a vibrato of `depth` semitones.

    The vibrato runs at 4.5 to 7 Hz and grows in after a delay on each note, as in trained voices (Sundberg, "The
    Science of the Singing Voice", 1987, ch. 8).
    """
    pitch = smooth(np.array([n.pitch for n in phrase], float)[note], glide)
    since = times - np.array([n.start for n in phrase])[note]
    vibrato = np.clip((since - rng.uniform(0.1, 0.3)) / 0.25, 0.0, 1.0)
    vibrato *= depth * np.sin(2 * np.pi * (rng.uniform(4.5, 7.0) * times + rng.random()))
    drift = smooth(rng.normal(0.0, 0.5, times.size), 41)
    return score.frequency(pitch + vibrato + drift + rng.normal(0.0, 0.02, times.size))


def add(out: np.ndarray, wave: np.ndarray, start: int) -> None:
    """Add `wave` into `out` (..., N) from sample `start`; what falls outside is dropped."""
    first, last = max(start, 0), min(start + wave.size, out.shape[-1])
    if first < last:
        out[..., first:last] += wave[first - start : last - start]


def pan(mono: np.ndarray, position: float) -> np.ndarray:
    """(N,) -> (2, N) at constant power; `position` from -1 (left) through 0 (centre) to 1 (right)."""
    angle = (position + 1.0) * np.pi / 4
    return np.stack((mono * np.float32(np.cos(angle)), mono * np.float32(np.sin(angle))))


def reverb(rng: np.random.Generator, dry: np.ndarray, seconds: float, level: float, sample_rate: int) -> np.ndarray:
    """Dry (2, N) plus a room of `seconds` (RT60), `level` dB below a source in the centre: sparse random taps of either
    sign, "velvet noise" (Karjalainen & Jarvelainen, AES 30th Conference, 2007)."""
    mono, wet = dry.mean(axis=0), dry.copy()
    times = 0.008 + (np.arange(24) + rng.random((2, 24))) * (0.6 * seconds / 24)
    gains = np.where(rng.random((2, 24)) < 0.5, -1.0, 1.0) * 10.0 ** (-3.0 * times / seconds)
    gains *= 10.0 ** (-level / 20) / np.sqrt(np.sum(gains**2, axis=1, keepdims=True))
    for channel in range(2):
        for time, gain in zip(times[channel], gains[channel], strict=True):
            add(wet[channel], mono * np.float32(gain), int(time * sample_rate))
    return wet
