"""The STFT against torch's own, and what the two representations promise: invertible, one scale per song."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from diffvocsep.config import AudioConfig
from diffvocsep.spectrogram import (
    STFT,
    ComplexSpectrogram,
    MagnitudeSpectrogram,
    Representation,
    make_representation,
    modelled_bins,
)

GEOMETRIES = [(512, 128, 512), (512, 256, 512), (512, 128, 400), (400, 100, 301), (511, 128, 511), (4096, 1024, 4096)]
LENGTHS = [1, 7, 1000, 1024, 12345]
REPRESENTATIONS = {
    "complex 0.1": ComplexSpectrogram(0.1),
    "complex 0.3": ComplexSpectrogram(0.3),
    "complex 0.5": ComplexSpectrogram(0.5),
    "complex 1": ComplexSpectrogram(1.0),
    "log1p 0.1": MagnitudeSpectrogram(0.1),
    "log1p 1": MagnitudeSpectrogram(1.0),
    "log1p 100": MagnitudeSpectrogram(100.0),
    "log1p 1 batch": MagnitudeSpectrogram(1.0, per_batch=True),
}


def waveform(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def music(batch: int = 2, frames: int = 40, seed: int = 0) -> torch.Tensor:
    """A mixture-like STFT `(B, 2, 65, T)`: louder at low frequencies, every item at its own level."""
    generator = torch.Generator().manual_seed(seed)
    spectrum = torch.randn(batch, 2, 65, frames, dtype=torch.complex64, generator=generator)
    tilt = torch.logspace(1, -2, 65)[:, None]
    return spectrum * tilt * 0.1 * 4.0 ** torch.arange(batch).reshape(-1, 1, 1, 1)


def level_db(signal: torch.Tensor, reference: torch.Tensor) -> float:
    return float(10 * torch.log10(signal.abs().double().square().sum() / reference.abs().double().square().sum()))


@pytest.fixture(params=REPRESENTATIONS)
def representation(request) -> Representation:
    return REPRESENTATIONS[request.param]


# STFT


@pytest.mark.parametrize(("n_fft", "hop", "win"), GEOMETRIES)
@pytest.mark.parametrize("length", LENGTHS)
def test_inverse_reconstructs_the_waveform(n_fft, hop, win, length):
    stft, x = STFT(n_fft, hop, win), waveform(2, 2, length)
    spectrum = stft(x)
    assert spectrum.shape == (2, 2, n_fft // 2 + 1, math.ceil(length / hop) + 1)
    torch.testing.assert_close(stft.inverse(spectrum, length), x, rtol=0, atol=5e-6)


@pytest.mark.parametrize(("n_fft", "hop", "win"), GEOMETRIES)
def test_equals_torch_stft_of_a_unit_energy_window(n_fft, hop, win):
    x, window = waveform(1, 2, 12345), torch.hann_window(win)
    options = dict(center=True, pad_mode="constant", return_complex=True)
    reference = torch.stft(x[0], n_fft, hop, win, window, **options) / window.square().sum().sqrt()
    ours = STFT(n_fft, hop, win)(x)[0]
    assert 0 <= ours.shape[-1] - reference.shape[-1] <= 1  # ours has a last frame for the samples that are left over
    torch.testing.assert_close(ours[..., : reference.shape[-1]], reference, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("n_fft", "hop", "win"), GEOMETRIES[:4])
def test_inverse_equals_torch_istft_for_any_spectrum(n_fft, hop, win):
    spectrum = torch.randn(2, n_fft // 2 + 1, 20, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    window, length = torch.hann_window(win), 19 * hop - 3
    scale = window.square().sum().sqrt()
    reference = torch.istft(spectrum * scale, n_fft, hop, win, window, center=True, length=length)
    ours = STFT(n_fft, hop, win).inverse(spectrum[None], length)[0]
    torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("win", [512, 400])
def test_uncentred_frames_are_the_centred_ones_later(win):
    stft, x = STFT(512, 128, win), waveform(1, 2, 128 * 40)
    centred, uncentred = stft(x), stft(x, center=False)
    assert uncentred.shape[-1] == (128 * 40 - 512) // 128 + 1
    torch.testing.assert_close(uncentred, centred[..., 2 : 2 + uncentred.shape[-1]], rtol=1e-5, atol=1e-5)


def test_frame_k_is_centred_at_sample_k_hop():
    impulse = torch.zeros(1, 1, 128 * 20)
    impulse[..., 128 * 7] = 1
    magnitude = STFT(512, 128, 512)(impulse)[0, 0].abs()
    assert magnitude.sum(0).argmax() == 7
    torch.testing.assert_close(magnitude[:, 6], magnitude[:, 8])


def test_overlap_add_is_linear():
    stft = STFT(512, 128, 400)
    a, b = stft(waveform(1, 2, 5000)), stft(waveform(1, 2, 5000, seed=1))
    (sum_a, envelope), (sum_b, _), (sum_both, same) = map(stft.overlap_add, (a, b, 3 * a - 0.5 * b))
    torch.testing.assert_close(sum_both, 3 * sum_a - 0.5 * sum_b, rtol=1e-4, atol=1e-4)
    assert torch.equal(envelope, same)


def test_overlap_add_can_be_done_in_pieces():
    """What streaming needs: tails of one piece add to the heads of the next."""
    stft, x = STFT(512, 128, 512), waveform(1, 2, 5000)
    spectrum = stft(x)
    whole, envelope = stft.overlap_add(spectrum)
    (head, head_envelope), (tail, tail_envelope) = (
        stft.overlap_add(spectrum[..., :13]),
        stft.overlap_add(spectrum[..., 13:]),
    )
    joined, joined_envelope = torch.zeros_like(whole), torch.zeros_like(envelope)
    joined[..., : head.shape[-1]] += head
    joined[..., 13 * 128 :] += tail
    joined_envelope[: len(head_envelope)] += head_envelope
    joined_envelope[13 * 128 :] += tail_envelope
    torch.testing.assert_close(joined, whole, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(joined_envelope, envelope, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("n_fft", "hop", "win"), [(512, 128, 512), (512, 128, 300), (2048, 512, 2048)])
def test_white_noise_has_unit_power_in_every_bin(n_fft, hop, win):
    power = STFT(n_fft, hop, win)(waveform(1, 1, 400_000))[..., 4:-4].abs().square()
    assert power.mean().item() == pytest.approx(1, abs=0.01)
    assert power[0, 0, 0].mean().item() == pytest.approx(1, abs=0.25)  # the real-valued bins at 0 Hz and Nyquist, too
    assert power[0, 0, -1].mean().item() == pytest.approx(1, abs=0.25)


def test_computes_in_the_precision_of_its_input():
    stft, x = STFT(512, 128, 512), waveform(1, 1, 3000).double()
    assert stft(x).dtype == torch.complex128
    torch.testing.assert_close(stft.inverse(stft(x), 3000), x, rtol=0, atol=1e-12)


# Representations


def test_decode_inverts_encode(representation):
    mixture = music()
    statistics = representation.statistics(mixture)
    x = representation.encode(mixture, statistics)
    assert x.shape == (2, 2 * representation.parts, 65, 40) and x.dtype == torch.float32
    back = representation.decode(x, statistics, mixture)
    assert level_db(back - mixture, mixture) < -80


@pytest.mark.parametrize("channels", [1, 2])
def test_spectra_lie_frame_after_frame_in_memory(representation, channels):
    """As `torch.stft` writes them and the network reads them: turning them round would cost a copy each."""
    mixture = music(1)[:, :channels].mT.contiguous().mT
    statistics = representation.statistics(mixture)
    x = representation.encode(mixture, statistics)
    assert x.mT.is_contiguous()
    assert representation.decode(x, statistics, mixture).mT.is_contiguous()


def test_missing_bins_at_the_top_are_zero():
    stft = STFT(128, 32, 128)
    spectrum = stft(waveform(1, 2, 1000))
    whole = torch.cat([spectrum[..., :40, :], torch.zeros_like(spectrum[..., 40:, :])], dim=-2)
    torch.testing.assert_close(stft.inverse(spectrum[..., :40, :], 1000), stft.inverse(whole, 1000))


def test_a_target_uses_the_statistics_of_the_mixture(representation):
    """Complex bins come back as they are; magnitudes come back with the mixture's phase."""
    mixture, target = music(), 0.3 * music(seed=1)
    statistics = representation.statistics(mixture)
    back = representation.decode(representation.encode(target, statistics), statistics, mixture)
    expected = target if representation.parts == 2 else target.abs() * torch.exp(1j * mixture.angle())
    assert level_db(back - expected, target) < -80


@pytest.mark.parametrize("exponent", [0.3, 0.5, 1.0])
def test_complex_encoding_is_the_power_law(exponent):
    representation, mixture = ComplexSpectrogram(exponent), music(1)
    x = representation.encode(mixture, representation.statistics(mixture)).numpy()
    bins = mixture.numpy().astype(np.complex128)
    compressed = np.abs(bins) ** exponent * np.exp(1j * np.angle(bins))
    compressed /= np.sqrt(np.mean(np.abs(compressed) ** 2) / 2)
    expected = np.stack([compressed.real[:, 0], compressed.imag[:, 0], compressed.real[:, 1], compressed.imag[:, 1]], 1)
    np.testing.assert_allclose(x, expected, rtol=1e-3, atol=1e-4)
    assert np.mean(x**2) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("scale", [0.1, 1.0, 100.0])
def test_magnitude_encoding_is_log1p_and_min_max(scale):
    mixture = music(3)
    logarithm = [np.log1p(scale * np.abs(item) / np.abs(item).mean()) for item in mixture.numpy().astype(np.complex128)]

    def normalized(low: list[float], high: list[float]) -> np.ndarray:
        return np.stack([2 * (x - a) / (b - a) - 1 for x, a, b in zip(logarithm, low, high, strict=True)])

    low, high = [x.min() for x in logarithm], [x.max() for x in logarithm]
    for per_batch, expected in [(False, normalized(low, high)), (True, normalized([min(low)] * 3, [max(high)] * 3))]:
        representation = MagnitudeSpectrogram(scale, per_batch)
        x = representation.encode(mixture, representation.statistics(mixture)).numpy()
        np.testing.assert_allclose(x, expected, rtol=1e-4, atol=1e-4)


def test_merged_statistics_are_those_of_the_whole(representation):
    mixture = music(frames=50)
    mixture[..., 20:25] = 0
    parts = [representation.statistics(part) for part in mixture.split([7, 1, 14, 28], dim=-1)]
    merged = parts[0]
    for part in parts[1:]:
        merged = representation.merge(merged, part)
    torch.testing.assert_close(merged, representation.statistics(mixture), rtol=1e-5, atol=0)


def test_digital_silence_does_not_lower_the_level(representation):
    mixture = music()
    padded = torch.cat([mixture, torch.zeros_like(mixture)], dim=-1)
    levels = [representation.level(representation.statistics(x)) for x in (mixture, padded)]
    torch.testing.assert_close(levels[0], levels[1], rtol=1e-5, atol=0)


@pytest.mark.parametrize("gain_db", [-12.0, 12.0])
def test_loudness_leaves_the_network_alone_and_scales_the_output(representation, gain_db):
    gain, mixture, target = 10 ** (gain_db / 20), music(), 0.5 * music(seed=1)
    before, after = (representation.statistics(x) for x in (mixture, gain * mixture))
    torch.testing.assert_close(representation.level(after), gain * representation.level(before), rtol=1e-5, atol=0)
    x = representation.encode(target, before)
    torch.testing.assert_close(representation.encode(gain * target, after), x, rtol=1e-4, atol=1e-4)
    quiet, loud = representation.decode(x, before, mixture), representation.decode(x, after, gain * mixture)
    torch.testing.assert_close(loud, gain * quiet, rtol=1e-4, atol=1e-5)


def test_silence_is_finite_and_stays_silence(representation):
    silence = torch.zeros(2, 2, 65, 10, dtype=torch.complex64)
    statistics = representation.statistics(silence)
    x = representation.encode(silence, statistics)
    assert x.isfinite().all()
    assert (representation.decode(x, statistics, silence) == 0).all()
    anything = waveform(*x.shape)  # whatever a network makes of silence
    assert (representation.decode(anything, statistics, silence) == 0).all()
    assert (representation.decode_difference(x, anything, statistics, silence) == 0).all()


def test_gradients_are_finite_at_silence_and_zero(representation):
    mixture = music()
    mixture[0], mixture[1, ..., 5:] = 0, 0
    statistics = representation.statistics(mixture)
    x = representation.encode(mixture, statistics)
    for point in (x, torch.zeros_like(x)):
        point = point.clone().requires_grad_()
        representation.decode(point, statistics, mixture).abs().sum().backward()
        assert point.grad.isfinite().all()


def test_no_difference_decodes_to_silence(representation):
    mixture = music()
    statistics = representation.statistics(mixture)
    x = representation.encode(mixture, statistics)
    assert (representation.decode_difference(x, x.clone(), statistics, mixture) == 0).all()


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_the_naive_difference_of_normalized_magnitudes_is_not_silence(scale):
    """Denormalizing a difference as if it were a normalized value adds the offset once more: 'nothing' comes out in the
    middle of the range, the same in every bin, which is louder than most of the mixture."""
    representation, mixture = MagnitudeSpectrogram(scale), music(1)
    statistics = representation.statistics(mixture)
    x = representation.encode(mixture, statistics)
    naive = representation.decode(x - x, statistics, mixture).abs()
    torch.testing.assert_close(naive, naive.mean().expand_as(naive), rtol=1e-4, atol=0)
    assert naive.mean() > mixture.abs().median()


def test_difference_of_log1p_is_the_quotient_of_magnitudes():
    representation, mixture, target = MagnitudeSpectrogram(2.0), music(1), 0.5 * music(1, seed=1)
    statistics = representation.statistics(mixture)
    x_mixture, x = (representation.encode(s, statistics) for s in (mixture, target))
    vocals = representation.decode_difference(x_mixture, x, statistics, mixture).numpy()
    m, a = np.abs(mixture.numpy().astype(np.complex128)), np.abs(target.numpy().astype(np.complex128))
    factor = 2.0 / m.mean()
    expected = np.maximum((1 + factor * m) / (1 + factor * a) - 1, 0) / factor
    np.testing.assert_allclose(np.abs(vocals), expected, rtol=2e-3, atol=1e-4 * m.mean())


# Choices from the configuration


def test_make_representation_follows_the_configuration():
    made = make_representation(AudioConfig(compression=0.3))
    assert isinstance(made, ComplexSpectrogram) and made.exponent == 0.3
    magnitude = AudioConfig(representation="magnitude", log1p_scale=10.0)
    for statistics, per_batch in [("item", False), ("batch", True)]:
        made = make_representation(replace(magnitude, statistics=statistics))
        assert isinstance(made, MagnitudeSpectrogram) and (made.scale, made.per_batch) == (10.0, per_batch)


@pytest.mark.parametrize(
    ("sample_rate", "n_fft", "bandwidth", "bins"),
    [
        (44100, 4096, 8270.0, 768),
        (44100, 4096, 0.0, 2049),
        (48000, 4096, 8270.0, 705),
        (32000, 2048, 8000.0, 512),
        (22050, 1024, 11025.0, 512),
        (16000, 1024, 8270.0, 513),  # more than the rate holds
        (8000, 512, 8270.0, 257),
        (44100, 16, 1500.0, 1),  # less than one bin
    ],
)
def test_modelled_bins(sample_rate, n_fft, bandwidth, bins):
    audio = AudioConfig(sample_rate=sample_rate, n_fft=n_fft, bandwidth=bandwidth)
    assert modelled_bins(audio) == bins
