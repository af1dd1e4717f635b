"""SDR and its relatives against their formulas, and at the values that can be told without computing."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from diffvocsep.evaluation.metrics import (
    BEYOND_SDR,
    beyond_sdr,
    bleedless_fullness,
    log_spectral_distance,
    log_wmse,
    sdr,
    si_sdr,
    stft_distance,
)

RATE = 44100


def waves(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


@pytest.mark.parametrize("seed", range(4))
def test_it_is_the_energy_of_the_reference_over_that_of_the_error(seed):
    reference, estimate = waves(seed, 2, 4000), waves(seed + 100, 2, 4000) * (0.1 + seed)
    s, e = reference.numpy().astype(float).ravel(), estimate.numpy().astype(float).ravel()
    assert sdr(reference, estimate) == pytest.approx(10 * np.log10(s @ s / ((s - e) @ (s - e))), abs=1e-9)


def test_channels_are_pooled_not_averaged():
    reference = torch.stack([waves(0, 1000), torch.zeros(1000)])
    estimate = reference.clone()
    estimate[1] = 0.1 * reference[0]  # all of the error is in the silent channel
    assert sdr(reference, estimate) == pytest.approx(20.0, abs=1e-4)


@pytest.mark.parametrize(("factor", "decibels"), [(0.0, 0.0), (0.9, 20.0), (1.1, 20.0), (2.0, 0.0), (-1.0, -6.0206)])
def test_a_scaled_reference_scores_by_what_is_missing(factor, decibels):
    reference = waves(1, 2, 4000)
    assert sdr(reference, reference * factor) == pytest.approx(decibels, abs=1e-3)


def test_the_level_does_not_matter():
    reference, estimate = waves(2, 1, 4000), waves(3, 1, 4000)
    quiet = sdr(reference * 1e-6, estimate * 1e-6)
    assert quiet == pytest.approx(sdr(reference, estimate), abs=1e-4)


def test_a_perfect_estimate_scores_high_and_finite():
    reference = waves(4, 2, 4000)
    assert 100 <= sdr(reference, reference) < math.inf


def test_a_silent_reference_has_no_score():
    assert math.isnan(sdr(torch.zeros(2, 100), waves(5, 2, 100)))


@pytest.mark.parametrize("seed", range(3))
def test_si_sdr_is_the_sdr_of_the_best_scaled_reference(seed):
    reference, estimate = waves(seed, 2, 3000), waves(seed, 2, 3000) + (seed + 0.5) * waves(seed + 50, 2, 3000)
    gains = np.linspace(0.5, 1.5, 20001)
    s, e = (x.numpy().astype(float).ravel() for x in (reference, estimate))
    errors = (e @ e) - 2 * gains * (s @ e) + gains**2 * (s @ s)  # the projection has the smallest error
    gain = gains[errors.argmin()]
    assert si_sdr(reference, estimate) == pytest.approx(10 * np.log10(gain**2 * (s @ s) / errors.min()), abs=1e-3)


@pytest.mark.parametrize("gain", [0.01, 3.0, -2.0])
def test_si_sdr_does_not_hear_the_level(gain):
    reference, estimate = waves(0, 2, 3000), waves(0, 2, 3000) + waves(1, 2, 3000)
    assert si_sdr(reference, gain * estimate) == pytest.approx(si_sdr(reference, estimate), abs=1e-4)
    assert si_sdr(reference, gain * reference) > 100


def test_si_sdr_of_silence_or_of_rounding_errors_is_none():
    reference = waves(0, 2, 3000)
    assert all(math.isnan(si_sdr(*pair)) for pair in [(reference, 0 * reference), (0 * reference, reference)])
    assert math.isnan(si_sdr(reference, 1e-7 * reference))


@pytest.mark.parametrize("decibels", [-12.0, 0.0, 6.0])
def test_the_log_spectral_distance_of_another_level_is_that_level(decibels):
    reference = waves(0, 2, 20000)
    distance = log_spectral_distance(reference, reference * 10 ** (decibels / 20))
    assert distance == pytest.approx(abs(decibels), abs=0.01)


def test_what_lies_80_db_below_the_peak_does_not_count():
    t = torch.arange(20000) / 8000
    tone = torch.sin(2 * torch.pi * 1000 * t)[None]
    noise = waves(1, 1, 20000)
    assert log_spectral_distance(tone, tone + 1e-7 * noise) < 0.1
    assert log_spectral_distance(tone, tone + 1e-2 * noise) > 5


def spectrogram(wave: np.ndarray, n_fft: int, hop: int, length: int, mode: str) -> np.ndarray:
    """Magnitudes `(F, T)` of one channel, frame by frame."""
    window = np.zeros(n_fft)
    first = (n_fft - length) // 2
    window[first : first + length] = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)
    padded = np.pad(wave.astype(float), n_fft // 2, mode=mode)
    frames = np.lib.stride_tricks.sliding_window_view(padded, n_fft)[::hop]
    return np.abs(np.fft.rfft(frames * window)).T


def test_the_stft_distance_is_that_of_its_definition():
    reference, estimate = waves(0, 2, 9000), waves(0, 2, 9000) + 0.5 * waves(1, 2, 9000)
    terms = []
    for n_fft, hop, length in ((512, 50, 240), (1024, 120, 600), (2048, 240, 1200)):
        pairs = [[spectrogram(x[c].numpy(), n_fft, hop, length, "reflect") for x in (reference, estimate)]
                 for c in range(2)]  # fmt: skip
        convergence = np.mean([np.linalg.norm(y - x) / np.linalg.norm(y) for y, x in pairs])
        terms.append(convergence + np.mean([np.abs(np.log(y) - np.log(x)).mean() for y, x in pairs]))
    assert stft_distance(reference, estimate) == pytest.approx(np.mean(terms), rel=2e-3)
    assert stft_distance(reference, reference) == 0
    assert stft_distance(reference, 2 * reference) == pytest.approx(1 + math.log(2), rel=1e-3)
    assert math.isnan(stft_distance(0 * reference, estimate)) and math.isnan(stft_distance(*waves(0, 2, 1, 900)))


def test_log_wmse_counts_the_error_that_is_heard_against_the_mixture():
    reference, rest = waves(0, 2, RATE), waves(1, 2, RATE)
    t = torch.arange(RATE) / RATE

    def score(error: torch.Tensor, gain: float = 1.0, truth: torch.Tensor = reference) -> float:
        return log_wmse(gain * (truth + rest), gain * truth, gain * (truth + error), RATE)

    error = 0.1 * waves(2, 2, RATE)
    assert score(error / 2) - score(error) == pytest.approx(4 * math.log(4), abs=1e-3)
    assert score(error, gain=0.01) == pytest.approx(score(error), abs=1e-3)
    assert score(0 * error) == pytest.approx(-4 * math.log(1e-8), abs=1e-3) and score(error) < 30
    low, middle = (0.1 * torch.sin(2 * torch.pi * hertz * t).expand(2, -1) for hertz in (40, 3000))
    assert score(low) > score(middle) + 10
    assert math.isfinite(score(error, truth=0 * reference))  # what is found in a song without a singer


def slaney(bins: int, n_mels: int) -> np.ndarray:
    """Mel filters as in Slaney's Auditory Toolbox: linear below 1 kHz, logarithmic above, triangles of equal area."""
    step = np.log(6.4) / 27
    points = np.linspace(0, 15 + np.log(RATE / 2 / 1000) / step, n_mels + 2)
    hertz = np.where(points < 15, points * 200 / 3, 1000 * np.exp(step * (points - 15)))
    centres = np.linspace(0, RATE / 2, bins)
    rising = (centres - hertz[:-2, None]) / np.diff(hertz)[:-1, None]
    falling = (hertz[2:, None] - centres) / np.diff(hertz)[1:, None]
    return np.maximum(0, np.minimum(rising, falling)) * (2 / (hertz[2:] - hertz[:-2]))[:, None]


def test_bleedless_and_fullness_are_those_of_their_definition():
    reference, estimate = waves(0, 2, 12000), 0.8 * waves(0, 2, 12000) + 0.3 * waves(1, 2, 12000)
    filters, decibels = slaney(2049, 512), []
    for wave in (reference, estimate):
        mel = np.stack([filters @ spectrogram(channel.numpy(), 4096, 1024, 4096, "constant") for channel in wave])
        level = 20 * np.log10(np.maximum(mel, 1e-10))
        decibels.append(np.maximum(level, level.max() - 80))
    excess = decibels[1] - decibels[0]
    expected = [100 / (1 + excess[excess > 0].mean()), 100 / (1 - excess[excess < 0].mean())]
    assert bleedless_fullness(reference, estimate, RATE) == pytest.approx(expected, rel=2e-3)


def test_what_is_added_is_bleed_and_what_lacks_is_not_full():
    reference, level = waves(0, 2, 12000), 20 * math.log10(2)
    assert bleedless_fullness(reference, reference, RATE) == (100, 100)
    assert bleedless_fullness(reference, 2 * reference, RATE) == pytest.approx((100 / (1 + level), 100), abs=0.01)
    assert bleedless_fullness(reference, reference / 2, RATE) == pytest.approx((100, 100 / (1 + level)), abs=0.01)
    assert all(map(math.isnan, bleedless_fullness(0 * reference, reference, RATE)))


def test_all_of_them_have_their_names():
    reference, rest, estimate = waves(0, 2, 9000), waves(1, 2, 9000), waves(0, 2, 9000) + 0.1 * waves(2, 2, 9000)
    found = beyond_sdr(reference + rest, reference, estimate, RATE)
    assert tuple(found) == BEYOND_SDR
    assert found["STFT distance"] == stft_distance(reference, estimate)
    assert (found["bleedless"], found["fullness"]) == bleedless_fullness(reference, estimate, RATE)
    silent = beyond_sdr(rest, 0 * rest, 0.1 * rest, RATE)
    assert math.isfinite(silent.pop("log-WMSE")) and all(map(math.isnan, silent.values()))
