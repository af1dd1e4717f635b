"""A track: what every source of songs gives, and all that mixing, caches and scores know of it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from torch import Tensor

SIDES = ("vocals", "accompaniment")


class Track(Protocol):
    """One song with its stems, be it a folder of files or a synthesizer's.

    Attributes:
        name: unique in its dataset.
        group: the set of songs that the track belongs to; sets are drawn from as `data.set_weights` says.
        seconds: length in s.
        source_rate: sample rate of the recording in Hz; nothing above half of it is real.
        stems: the sides that there are: vocals, accompaniment or both, perhaps a mixture; from files, a dictionary of
            their paths.
    """

    name: str
    group: str
    seconds: float
    source_rate: int
    stems: Collection[str]

    def read(self, side: str, start: float, seconds: float, sample_rate: int) -> Tensor:
        """Waveform `(C, round(seconds * sample_rate))` of one side from `start` (s) on, zeros past the end."""
        ...

    def loudness(self, side: str, sample_rate: int) -> float:
        """RMS of one side, as it sounds at `sample_rate`."""
        ...


def to_channels(waveform: Tensor, channels: int) -> Tensor:
    """`(C, N)` -> `(channels, N)`: mono is doubled, stereo is averaged, of more channels the first are taken."""
    if len(waveform) == channels:
        return waveform
    if len(waveform) == 1:
        return waveform.expand(channels, -1)
    return waveform.mean(0, keepdim=True) if channels == 1 else waveform[:channels]


def has_both_sides(track: Track) -> bool:
    """Whether there is something to sing and something to sing over: a track to score."""
    return set(SIDES) <= set(track.stems)
