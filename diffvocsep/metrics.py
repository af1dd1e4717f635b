"""Scores of a separation, on waveforms."""

from __future__ import annotations

import torch
from torch import Tensor


def sdr(reference: Tensor, estimate: Tensor) -> float:
    """Global SDR in dB of `(C, N)` waveforms: 10 log10(sum s^2 / sum (s - e)^2) over the whole clip.

    Silence as the estimate scores 0 dB. Not museval's SDR, which is a median over one-second frames after projection.
    NaN where the reference is silent.
    """
    reference, estimate = reference.double(), estimate.double()
    signal, error = reference.square().sum(), (reference - estimate).square().sum()
    if signal == 0:
        return float("nan")
    return float(10 * torch.log10(signal / error.clamp_min(1e-12 * signal)))
