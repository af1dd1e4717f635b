"""Songs to score: where they are, and one stretch of one song as waveforms."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..data.testsets import songs_to_score
from ..data.tracks import Track
from ..util.folders import readable


@dataclass(frozen=True)
class Clip:
    """Waveforms `(C, N)` at the file's own sample rate. `own_mixture`: the mixture is a file of its own, which lossy
    coding or mastering may have moved away from vocals + accompaniment."""

    name: str
    mixture: Tensor
    vocals: Tensor
    accompaniment: Tensor
    sample_rate: int
    own_mixture: bool = False


@dataclass(frozen=True)
class Excerpt:
    """Where a clip is: a track, from `start` on for `seconds` (s). Small enough to hand to another process."""

    name: str
    track: Track
    start: float
    seconds: float

    def read(self) -> Clip:
        rate = int(self.track.source_rate)
        own = "mixture" in self.track.stems
        sides = ("vocals", "accompaniment", *(["mixture"] if own else []))
        waves = [self.track.read(side, self.start, self.seconds, rate) for side in sides]
        channels = max(map(len, waves))
        vocals, rest, *mixture = (wave.expand(channels, -1) for wave in waves)
        return Clip(self.name, mixture[0] if own else vocals + rest, vocals, rest, rate, own)

    def identity(self) -> list[Any]:
        """What its waveforms depend on: files by name, size and time; a synthetic song by its arguments."""
        stems = self.track.stems
        paths = [p for side in stems.values() for p in side] if isinstance(stems, dict) else []
        files = [[readable(path.name), path.stat().st_size, path.stat().st_mtime_ns] for path in paths]
        return [self.name, self.start, self.seconds, files, repr(getattr(self.track, "_arguments", ""))]


def find_excerpts(dataset: str, root: Path | None, seconds: float = 0.0, split: str = "test") -> list[Excerpt]:
    """The songs, whole (`seconds` = 0) or cut into stretches of `seconds` (the rest is dropped)."""
    excerpts = []
    for track in songs_to_score(dataset, root, split):
        length = min(seconds or track.seconds, track.seconds)
        starts = [i * length for i in range(max(1, int(track.seconds / length + 1e-6)))]
        for start in starts:
            name = readable(track.name) + (f" at {start:g} s" if len(starts) > 1 else "")
            excerpts.append(Excerpt(name, track, start, length))
    return excerpts
