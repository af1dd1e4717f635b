"""SDR and its relatives against their formulas, and at the values that can be told without computing."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from diffvocsep.evaluation.metrics import log_spectral_distance, sdr, si_sdr


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
