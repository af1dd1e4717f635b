"""What subtraction can reach with a perfect generator, on synthetic songs, and what happens above the modelled band."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from diffvocsep.counterfactual import extend_band, subtract
from diffvocsep.data.synthetic.song import make_song
from diffvocsep.spectrogram import STFT, ComplexSpectrogram, MagnitudeSpectrogram, Representation

RATE, BINS, LIMIT = 22050, 1025, 600  # Hz; bins of the STFT; how many of them are modelled, up to 6460 Hz
HOW = ("normalized", "magnitude", "mask", "complex")


@pytest.fixture(scope="module")
def stft() -> STFT:
    return STFT(2048, 512, 2048)  # in seconds, the default at 44.1 kHz


@pytest.fixture(scope="module")
def songs(stft) -> dict[str, Tensor]:
    """Twelve songs of 3 s: the waveform of the vocals `(12, 2, N)`, and the STFTs of mixture and accompaniment."""
    made = [make_song(7, index, 3.0, RATE) for index in range(12)]
    vocals = torch.from_numpy(np.stack([song.vocals for song in made]))
    accompaniment = torch.from_numpy(np.stack([song.accompaniment for song in made]))
    return {"vocals": vocals, "mixture": stft(vocals + accompaniment), "accompaniment": stft(accompaniment)}


def median_sdr(vocals: Tensor, estimate: Tensor) -> float:
    """Median over songs of the SDR in dB; silence scores 0."""
    vocals, error = vocals.double(), vocals.double() - estimate.double()
    return float((10 * torch.log10(vocals.square().sum((1, 2)) / error.square().sum((1, 2)))).median())


def encoded(songs: dict[str, Tensor], representation: Representation) -> tuple[Tensor, Tensor, Tensor]:
    statistics = representation.statistics(songs["mixture"])
    x_mixture, x_0 = (representation.encode(songs[name], statistics) for name in ("mixture", "accompaniment"))
    return x_mixture, x_0, statistics


def oracle(how: str, songs: dict[str, Tensor], representation: Representation, stft: STFT) -> float:
    """Median SDR of the separation that is given the true accompaniment."""
    x_mixture, x_0, statistics = encoded(songs, representation)
    estimate = subtract(how, songs["mixture"], x_mixture, x_0, statistics, representation)
    return median_sdr(songs["vocals"], stft.inverse(estimate, songs["vocals"].shape[-1]))


# What each subtraction can reach


def test_oracle_values_in_the_complex_representation(songs, stft):
    values = {how: oracle(how, songs, ComplexSpectrogram(0.5), stft) for how in HOW}
    print("\ncomplex, median SDR with the true accompaniment:", {k: f"{v:.1f} dB" for k, v in values.items()})
    assert values["complex"] > 60
    assert 8 < values["mask"] < 13
    assert 8 < values["magnitude"] < 13
    assert 6 < values["normalized"] < 11


def test_oracle_values_in_the_magnitude_representation(songs, stft):
    values = {how: oracle(how, songs, MagnitudeSpectrogram(1.0), stft) for how in HOW}
    print("\nlog1p, median SDR with the true accompaniment:", {k: f"{v:.1f} dB" for k, v in values.items()})
    assert 8 < values["mask"] < 13
    assert 8 < values["magnitude"] < 13
    assert 8 < values["complex"] < 13  # the phase is the mixture's, so nothing is exact here
    assert 1 < values["normalized"] < 5


def test_subtracting_logarithms_approaches_magnitudes_as_the_scale_falls(songs, stft):
    scales = (100.0, 1.0, 0.1, 0.001)
    values = [oracle("normalized", songs, MagnitudeSpectrogram(scale), stft) for scale in scales]
    print("\nnormalized, by log1p scale:", {s: f"{v:.1f} dB" for s, v in zip(scales, values, strict=True)})
    assert values == sorted(values)
    assert -0.5 < values[0] < 1.5  # next to silence
    assert values[-1] == pytest.approx(oracle("magnitude", songs, MagnitudeSpectrogram(1.0), stft), abs=0.5)


def test_the_naive_reading_is_far_worse_than_silence(songs, stft):
    """'Min-max to [-1, 1], subtract, denormalize the difference' adds the offset of the range a second time."""
    representation = MagnitudeSpectrogram(1.0)
    x_mixture, x_0, _ = encoded(songs, representation)
    logarithm = torch.log1p(songs["mixture"].abs() / songs["mixture"].abs().mean(dim=(1, 2, 3), keepdim=True))
    low, high = (edge(logarithm, dim=(1, 2, 3), keepdim=True) for edge in (torch.amin, torch.amax))
    naive = torch.expm1(((x_mixture - x_0 + 1) / 2 * (high - low) + low).clamp_min(0))
    naive = naive * songs["mixture"].abs().mean(dim=(1, 2, 3), keepdim=True) * torch.sgn(songs["mixture"])
    value = median_sdr(songs["vocals"], stft.inverse(naive, songs["vocals"].shape[-1]))
    ours = oracle("normalized", songs, representation, stft)
    print(f"\nnaive {value:.1f} dB, without the offset {ours:.1f} dB")
    assert value < -10 < 0 < ours


# The formulas


@pytest.mark.parametrize("representation", [ComplexSpectrogram(0.5), MagnitudeSpectrogram(1.0)])
def test_subtractions_equal_their_formulas(songs, representation):
    songs = {name: signal[:2] for name, signal in songs.items()}
    x_mixture, x_0, statistics = encoded(songs, representation)
    m, a = (songs[name].numpy().astype(np.complex128) for name in ("mixture", "accompaniment"))
    if representation.parts == 1:
        a = np.abs(a) * np.exp(1j * np.angle(m))
    ratio = np.abs(a) / np.maximum(np.abs(m), 1e-20)
    expected = {
        "complex": m - a,
        "mask": m * np.maximum(1 - ratio**2, 0),
        "magnitude": np.maximum(np.abs(m) - np.abs(a), 0) * np.exp(1j * np.angle(m)),
    }
    for how, value in expected.items():
        estimate = subtract(how, songs["mixture"], x_mixture, x_0, statistics, representation).numpy()
        np.testing.assert_allclose(estimate, value, rtol=0, atol=2e-4 * np.abs(m).max(), err_msg=how)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("representation", [ComplexSpectrogram(0.5), MagnitudeSpectrogram(1.0)])
def test_no_accompaniment_gives_the_mixture_and_no_vocals_give_silence(songs, how, representation):
    mixture = songs["mixture"][:1]
    statistics = representation.statistics(mixture)
    x_mixture = representation.encode(mixture, statistics)
    nothing = representation.encode(torch.zeros_like(mixture), statistics)
    everything = subtract(how, mixture, x_mixture, nothing, statistics, representation)
    assert (everything - mixture).abs().max() < 1e-3 * mixture.abs().max()
    silence = subtract(how, mixture, x_mixture, x_mixture.clone(), statistics, representation)
    assert silence.abs().max() < 1e-5 * mixture.abs().max()


# Above the modelled band


def reference_gain(vocals: np.ndarray, mixture: np.ndarray, hop: int) -> np.ndarray:
    """`(C, T)`: clamp(sum |V|^2 / sum |M|^2, 0, 1) over the top 1 kHz and +-0.15 s, frame by frame."""
    width, half = round(1000 / (RATE / 2048)), round(0.15 * RATE / hop)
    top = slice(LIMIT - width, LIMIT)
    gain = np.zeros((len(mixture), mixture.shape[-1]))
    for channel, frame in np.ndindex(*gain.shape):
        near = slice(max(0, frame - half), frame + half + 1)
        share = np.sum(np.abs(vocals[channel, top, near]) ** 2) / np.sum(np.abs(mixture[channel, top, near]) ** 2)
        gain[channel, frame] = np.clip(share, 0, 1)
    return gain


def test_the_gain_is_the_vocal_share_of_the_top_band(songs, stft):
    mixture = songs["mixture"][:4]
    vocals = (mixture - songs["accompaniment"][:4])[:, :, :LIMIT]
    extended = extend_band(vocals, mixture, LIMIT, RATE, stft.hop_length)
    assert extended.shape == mixture.shape
    assert torch.equal(extended[:, :, :LIMIT], vocals)
    gains = [reference_gain(v.numpy(), m.numpy(), stft.hop_length) for v, m in zip(vocals, mixture, strict=True)]
    assert max(map(np.ptp, gains)) > 0.1
    for item, gain in enumerate(gains):
        expected = mixture[item, :, LIMIT:].numpy() * gain[:, None]  # real: the phase is the mixture's
        np.testing.assert_allclose(extended[item, :, LIMIT:].numpy(), expected, rtol=1e-3, atol=1e-6)


def test_an_estimate_louder_than_the_mixture_takes_no_more_than_everything(songs, stft):
    mixture = songs["mixture"][:1]
    extended = extend_band(3 * mixture[:, :, :LIMIT], mixture, LIMIT, RATE, stft.hop_length)
    torch.testing.assert_close(extended[:, :, LIMIT:], mixture[:, :, LIMIT:])


def test_vocals_equal_to_the_mixture_below_are_so_above(songs, stft):
    mixture = songs["mixture"][:1]
    extended = extend_band(mixture[:, :, :LIMIT], mixture, LIMIT, RATE, stft.hop_length)
    torch.testing.assert_close(extended, mixture)


@pytest.mark.parametrize("sung", [False, True], ids=["alone", "with vocals below 3 kHz"])
def test_a_15_khz_sine_above_an_empty_band_stays_with_the_accompaniment(sung):
    """Even where the estimate calls everything below the limit vocals: in an empty band that says nothing."""
    rate, limit, stft = 44100, 768, STFT(4096, 1024, 4096)
    vocals = torch.from_numpy(make_song(7, 0, 2.0, rate).vocals).double()
    spectrum = torch.fft.rfft(vocals)
    spectrum[:, 2 * 3000 :] = 0  # 2 s: 2 bins per Hz
    vocals = torch.fft.irfft(spectrum, n=2 * rate) * sung
    sine = 0.3 * torch.sin(2 * math.pi * 15000 / rate * torch.arange(2 * rate).double())
    mixture = stft((vocals + sine).float()[None])
    estimate = extend_band(mixture[:, :, :limit], mixture, limit, rate, stft.hop_length)

    steady = slice(rate // 2, 3 * rate // 2)  # away from the clicks at both ends
    leaked = stft.inverse(estimate, 2 * rate)[0] - vocals
    assert 10 * torch.log10(leaked[:, steady].square().mean() / sine[steady].square().mean()) < -100


def test_channels_and_items_have_their_own_gain(songs, stft):
    mixture = songs["mixture"][:2]
    vocals = torch.zeros_like(mixture)
    vocals[0, 1] = mixture[0, 1]
    treble = extend_band(vocals, mixture, LIMIT, RATE, stft.hop_length)[:, :, LIMIT:]
    assert (treble[0, 0] == 0).all() and (treble[1] == 0).all()
    torch.testing.assert_close(treble[0, 1], mixture[0, 1, LIMIT:])


@pytest.mark.parametrize("limit", [BINS, 2000])
def test_nothing_to_extend(songs, stft, limit):
    mixture = songs["mixture"][:1]
    assert torch.equal(extend_band(0.5 * mixture, mixture, limit, RATE, stft.hop_length), 0.5 * mixture)


def test_one_frame_and_a_narrow_band_are_enough(songs, stft):
    mixture = songs["mixture"][:1, :, :, 50:51]
    extended = extend_band(0.5 * mixture[:, :, :10], mixture, 10, RATE, stft.hop_length)
    torch.testing.assert_close(extended[:, :, 10:], 0.25 * mixture[:, :, 10:])


def test_silence_stays_silence():
    silence = torch.zeros(1, 2, BINS, 20, dtype=torch.complex64)
    assert (extend_band(silence, silence, LIMIT, RATE, 512) == 0).all()
