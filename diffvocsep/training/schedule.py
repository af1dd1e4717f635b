"""How far a step moves the weights, and how far their average follows."""

from __future__ import annotations

import math


def learning_rate(step: int, total: int, warmup: int) -> float:
    """Linear warm-up, then half a cosine to zero, as a share of the peak."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 + 0.5 * math.cos(math.pi * (step - warmup) / max(1, total - warmup))


def ema_decay(step: int, decay: float) -> float:
    """With a warm-up, so that the average forgets the first weights: min(decay, (1 + n) / (10 + n))."""
    return min(decay, (1 + step) / (10 + step))
