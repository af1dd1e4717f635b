"""What depends on how far a run has come: its learning rate, the decay of the EMA, its validations, its end."""

from __future__ import annotations

import math

from ..config import TrainConfig
from .progress import Progress


def learning_rate(step: int, warmup: int, progress: float) -> float:
    """As a share of the peak: a linear rise over `warmup` steps, under half a cosine that falls to zero as `progress`
    goes from 0 to 1."""
    rise = min(1.0, (step + 1) / max(1, warmup))
    return rise * (0.5 + 0.5 * math.cos(math.pi * min(1.0, max(0.0, progress))))


def ema_decay(step: int, decay: float) -> float:
    """The decay of the EMA after `step` steps: min(decay, (1 + n) / (10 + n)), so that it forgets the first weights."""
    return min(decay, (1 + step) / (10 + step))


class Schedule:
    """The schedule of a run: of `train.max_minutes` by the clock, if that is set, else of a number of steps."""

    def __init__(self, train: TrainConfig) -> None:
        self.train = train
        self.steps = train.max_steps or train.epochs * train.steps_per_epoch
        self.timed = train.max_minutes > 0

    def fraction_done(self, progress: Progress) -> float:
        """The share of the run that is done, 1 at the end or more: of the time, or of the steps after the warm-up
        (0 during it)."""
        if self.timed:
            return progress.seconds / (60 * self.train.max_minutes)
        warmup = self._warmup
        return max(0, progress.step - warmup) / max(1, self.steps - warmup)

    @property
    def _warmup(self) -> int:
        """Steps of the warm-up; half of all, where it would last for the whole run: the learning rate falls in any."""
        warmup = self.train.warmup_steps
        return warmup if self.timed or warmup < self.steps else self.steps // 2

    def ended(self, progress: Progress) -> bool:
        return self.fraction_done(progress) >= 1 if self.timed else progress.step >= self.steps

    def validation_due(self, progress: Progress) -> bool:
        """Whether a validation belongs to this step and has not been done."""
        step, train = progress.step, self.train
        regular = step % train.val_every_steps == 0 or step % train.steps_per_epoch == 0
        if train.val_minutes:
            regular = regular or progress.seconds - progress.validated_seconds >= 60 * train.val_minutes
        return progress.validated < step and (regular or self.ended(progress))

    def lr(self, progress: Progress) -> float:
        """The learning rate: a linear rise over the warm-up, under half a cosine that falls to zero."""
        return learning_rate(progress.step, self._warmup, self.fraction_done(progress)) * self.train.lr
