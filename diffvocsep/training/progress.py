"""How far a run has come."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any


@dataclass
class Progress:
    """All that a checkpoint holds beside tensors and config, under these names; `checkpoint.RUN_FIELDS` says what may
    stand there in a file from elsewhere.

    Attributes:
        step: optimizer steps, those skipped among them.
        samples: segments drawn, by all processes.
        seconds: of training and validations, the mean of the clocks of all processes, so that all have the same.
        validated: the last step that was validated; `validated_seconds`, the value of `seconds` at the end of that.
        skipped: steps whose loss or gradient was not finite.
        best_sdr: the highest dev score, dB; `dev_songs`, the songs it was reached on.
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

    def mark_validated(self) -> None:
        """This step has been validated."""
        self.validated, self.validated_seconds = self.step, self.seconds

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_checkpoint(cls, state: dict[str, Any]) -> Progress:
        """The fields that a checkpoint has; older versions did not save all."""
        return cls(**{part.name: state[part.name] for part in fields(cls) if part.name in state})
