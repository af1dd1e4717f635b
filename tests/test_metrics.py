"""SDR against its formula, and at the values that can be told without computing."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from diffvocsep.metrics import sdr


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
