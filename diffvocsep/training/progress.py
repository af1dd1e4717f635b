"""How far a run has come."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any


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
