"""Songs to score, as they lie on disk: a function for each name in `registry.TEST_SETS`.

Those that train are in sources.py. Where a new layout is to do both, it has a function in each.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import Config
from ..registry import TEST_SETS, load
from ..util.errors import UserError
from .musdb import damaged, open_musdb
from .musdbhq import musdbhq_tracks
from .stems import find_tracks
from .synthetic.tracks import synthetic_tracks
from .tracks import Track, has_both_sides

_musdb = lru_cache(maxsize=2)(open_musdb)  # each half of MUSDB18 is opened once in every process


def songs_to_score(dataset: str, root: Path | None, split: str = "test") -> Sequence[Track]:
    """Tracks with both vocals and accompaniment: the songs of `split`, `test` or `valid`, of a dataset that lies in
    `root`.

    Raises:
        UserError: no such folder, nothing usable in it, or a package or program that is missing.
    """
    if root is None and dataset != "synthetic":
        raise UserError(f"--dataset {dataset} needs --root DIR, a folder of tracks")
    return load(TEST_SETS[dataset])(root, split)


def synthetic_songs(root: None, split: str) -> Sequence[Track]:
    """Songs of the synthesizer from other seeds than those it trains on."""
    return synthetic_tracks(Config(), "test" if split == "test" else "dev")


def musdb_songs(root: Path, split: str) -> Sequence[Track]:
    """The test half of MUSDB18, or the 14 songs that the `musdb` package names for validation, as it decodes them."""
    subset, part = ("test", None) if split == "test" else ("train", "valid")
    if not any((root / subset).glob("*.stem.mp4")):
        raise UserError(f"there is no {subset}/*.stem.mp4 in '{root}'; give the folder of MUSDB18")
    return musdb_tracks(root, subset, part)


def musdb_tracks(root: Path, subset: str, part: str | None) -> list[MusdbTrack]:
    """The songs of a half of MUSDB18, `train` or `test`, or of a `part` of the first, `train` or `valid`."""
    tracks = enumerate(_musdb(root, subset, part).tracks)
    return [MusdbTrack(root, subset, part, index, track) for index, track in tracks]


def musdbhq_songs(root: Path, split: str) -> Sequence[Track]:
    """The same songs from the folder of MUSDB18-HQ."""
    return musdbhq_tracks(root, "dev" if split == "valid" else split, None)


def stem_songs(root: Path, split: str) -> Sequence[Track]:
    """All songs of a folder of stems, whatever the split."""
    both = list(filter(has_both_sides, find_tracks(root, None)))
    if not both:
        raise UserError(f"no track in '{root}' has both vocals and accompaniment")
    return both


class MusdbTrack:
    """A track of the `musdb` package (`*.stem.mp4`), decoded by it when read; see `Track` for the attributes."""

    group = "musdb"

    def __init__(self, root: Path, subset: str, split: str | None, index: int, track: Any) -> None:
        self._address = (root, subset, split, index)
        self.name, self.seconds, self.source_rate = track.name, float(track.duration), int(track.rate)
        self.stems = {side: [Path(track.path)] for side in ("vocals", "accompaniment", "mixture")}

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_multitrack"}  # it holds its own audio

    @cached_property
    def _multitrack(self) -> Any:
        root, subset, split, index = self._address
        return _musdb(root, subset, split).tracks[index]

    def read(self, side: str, start: float, seconds: float, sample_rate: int) -> Tensor:
        """Waveform `(2, round(seconds * sample_rate))`, as the package decodes it; `sample_rate` is the file's."""
        import ffmpeg  # comes with musdb

        track = self._multitrack
        whole = start == 0 and seconds >= self.seconds
        track.chunk_start, track.chunk_duration = (0, None) if whole else (start, seconds)
        try:
            samples = track.audio if side == "mixture" else track.targets[side].audio
        except (ffmpeg.Error, Warning) as error:
            raise damaged(self.name, error) from None
        waveform = torch.from_numpy(samples.T.copy()).float()
        return waveform if whole else waveform[:, : round(seconds * sample_rate)]

    def loudness(self, side: str, sample_rate: int) -> float:
        return float(self.read(side, 0, self.seconds, sample_rate).square().mean()) ** 0.5
