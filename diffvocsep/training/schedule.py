"""How far a step moves the weights, and how far their average follows."""

from __future__ import annotations

import math


def learning_rate(step: int, warmup: int, progress: float) -> float:
    """As a share of the peak: a linear rise over `warmup` steps, under half a cosine that falls to zero as `progress`
    goes from 0 to 1."""
    rise = min(1.0, (step + 1) / max(1, warmup))
    return rise * (0.5 + 0.5 * math.cos(math.pi * min(1.0, max(0.0, progress))))


def ema_decay(step: int, decay: float) -> float:
    """With a warm-up, so that the average forgets the first weights: min(decay, (1 + n) / (10 + n))."""
    return min(decay, (1 + step) / (10 + step))
