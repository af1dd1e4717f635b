"""How far a run has come, and by what it is measured: steps, or the clock."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from ..config import TrainConfig
from .schedule import learning_rate


@dataclass
class Progress:
    """All that a checkpoint says about its run beside tensors and config; these are the names it is saved under.

    Attributes:
        step: optimizer steps, those skipped among them.
        samples: segments drawn, by all processes.
        seconds: of training, by the mean of the clocks of all processes; all know it.
        validated: the last step that was, and `validated_seconds`, when.
        skipped: steps whose loss or gradient was not finite.
        best_sdr: the highest score, dB, and `dev_songs`, on which it was reached.
        run_id: names the folder of the run.
    """

    step: int = 0
    samples: int = 0
    seconds: float = 0.0
    validated: int = 0
    validated_seconds: float = 0.0
    skipped: int = 0
    best_sdr: float = -math.inf
    dev_songs: list[str] = field(default_factory=list)
    run_id: str = ""

    def scored(self) -> None:
        """This step has been validated."""
        self.validated, self.validated_seconds = self.step, self.seconds

    def saved(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def loaded(cls, state: dict[str, Any]) -> Progress:
        """What a checkpoint has of it; older versions did not save all."""
        return cls(**{part.name: state[part.name] for part in fields(cls) if part.name in state})


class Course:
    """The way of a run from its first step to its last: `train.max_minutes` by the clock, else so many steps."""

    def __init__(self, train: TrainConfig) -> None:
        self.train = train
        self.steps = train.max_steps or train.epochs * train.steps_per_epoch
        self.timed = train.max_minutes > 0

    def share(self, progress: Progress) -> float:
        """How much of the way from the peak of the learning rate to zero is done: of the time, or of the steps after
        the warm-up; 1 at the end, or more."""
        if self.timed:
            return progress.seconds / (60 * self.train.max_minutes)
        warmup = self.train.warmup_steps
        return (progress.step - warmup) / max(1, self.steps - warmup)

    def ended(self, progress: Progress) -> bool:
        return self.share(progress) >= 1 if self.timed else progress.step >= self.steps

    def due(self, progress: Progress) -> bool:
        """Whether a validation belongs to this step and has not been done."""
        step, train = progress.step, self.train
        regular = step % train.val_every_steps == 0 or step % train.steps_per_epoch == 0
        if train.val_minutes:
            regular = regular or progress.seconds - progress.validated_seconds >= 60 * train.val_minutes
        return progress.validated < step and (regular or self.ended(progress))

    def rate(self, progress: Progress) -> float:
        """The learning rate: a linear rise over the warm-up, under half a cosine that falls to zero."""
        train = self.train
        return learning_rate(progress.step, train.warmup_steps, self.share(progress)) * train.lr
