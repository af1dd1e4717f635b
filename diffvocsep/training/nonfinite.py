"""Steps whose loss or gradient is not finite. They change no weights; too many in a row end the run."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..data import Segments, Track
from ..util.errors import UserError

BAD_STEPS = 20  # so many in a row end a run


class NonFiniteSteps:
    """Counts such steps and names the songs of their segments.

    Attributes:
        in_a_row: how many the last steps were; the trainer sets it to 0 after a good one.
    """

    def __init__(self, segments: Segments) -> None:
        self.segments, self.in_a_row = segments, 0

    def count(self, step: int, indices: Sequence[int], losses: Tensor) -> str:
        """One more, of the segments `indices` with the losses `(N,)`; returns their songs.

        Raises:
            UserError: it is one too many.
        """
        self.in_a_row += 1
        finite = losses.isfinite().tolist()
        spoilt = [index for index, good in zip(indices, finite, strict=True) if not good] or indices
        songs = "; ".join(dict.fromkeys(_title(*self.segments.songs(index)) for index in spoilt))
        if self.in_a_row >= BAD_STEPS:
            raise UserError(
                f"the loss or its gradient was not finite for {BAD_STEPS} steps in a row ("
                f"steps {step - BAD_STEPS + 1} to {step}, the last with the songs {songs}): "
                "lower train.lr, set train.amp to none, or look into these songs; no weights were changed by them"
            )
        return songs


def _title(singer: Track, band: Track) -> str:
    return f"'{singer.name}'" if singer is band else f"'{singer.name}' over '{band.name}'"
