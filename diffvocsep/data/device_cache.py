"""All songs on the training device as 16 bit: a batch is cut out, altered and mixed there, and nothing has to load.

An hour of stereo at 44.1 kHz takes 1.3 GB (vocals and accompaniment). The segments are those of `Segments`: the same
draws, carried out by the same `render`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ..util.device import move
from ..util.errors import UserError, size
from ..util.threads import results_in_threads
from .augment import source_length
from .mixing import Cut, Draw, Segments, assemble, render, scalars
from .stems import FULL_SCALE
from .tracks import SIDES, to_channels


class DeviceCache:
    """The stems of `segments.tracks` on `device`.

    Raises:
        UserError: they do not fit.
    """

    def __init__(self, segments: Segments, device: torch.device) -> None:
        self.segments, self.device = segments, device
        config = segments.config
        self.rate = config.audio.sample_rate
        fastest = 2 ** (config.data.speed_semitones / 12)
        self.longest = max(source_length(segments.length, speed) for speed in (1, fastest))
        self.samples: dict[str, Tensor] = {}  # of each side, (N, C) int16, all tracks in a row
        self.first: dict[str, np.ndarray] = {}  # where a track begins
        self.scale: dict[str, Tensor] = {}  # (tracks,), value of the integer 1
        for side in SIDES:
            self._load(side)

    def _load(self, side: str) -> None:
        tracks, channels = self.segments.tracks, self.segments.config.audio.channels
        # A crop may end a sample late, where its start is rounded, and a track may be shorter than a segment.
        sizes = [max(round(t.seconds * self.rate) + 1, self.longest) if side in t.stems else 0 for t in tracks]
        self.first[side] = np.cumsum([0, *sizes[:-1]])
        total = sum(sizes) + self.longest  # so that no crop reads past the end
        try:
            samples = torch.zeros(total, channels, dtype=torch.int16, device=self.device)
        except (RuntimeError, MemoryError):
            raise UserError(
                f"data.cache device needs {size(2 * total * channels * 2)} that {self.device} has not free; "
                "use data.cache=memory with data.workers=4"
            ) from None
        scale = torch.zeros(len(tracks))

        def read(i: int) -> tuple[Tensor, float]:
            track = tracks[i]
            waveform = to_channels(track.read(side, 0.0, sizes[i] / self.rate, self.rate), channels)
            track.loudness(side, self.rate)  # measured once; better now than while the clock of a training runs
            step = max(1 / FULL_SCALE, float(waveform.abs().max()) / 32767)
            return (waveform / step).round().to(torch.int16).T, step

        there = [i for i, size in enumerate(sizes) if size]
        stems = results_in_threads(read, [(i,) for i in there], f"{side.capitalize()} to {self.device}", "stem")
        for i, (stem, step) in zip(there, stems, strict=True):
            first, scale[i] = self.first[side][i], step
            samples[first : first + len(stem)] = stem.to(self.device)
        self.samples[side], self.scale[side] = samples, scale.to(self.device)

    def batch(self, draws: list[Draw]) -> dict[str, Tensor]:
        """The segments of `draws`, as `Segments` and a loader would make them; `index` stays on the CPU."""
        batch = {name: move(values, self.device) if name != "index" else values
                 for name, values in scalars(draws).items()}  # fmt: skip
        return batch | assemble(draws, self._render, self.segments.config)

    def _render(self, side: str, cuts: list[Cut]) -> Tensor:
        return render(self._crops(side, cuts), cuts, self.segments.length, self.segments.config)

    def _crops(self, side: str, cuts: list[Cut]) -> Tensor:
        """What `cuts` take out of the songs, `(B, C, N)`."""
        tracks = [cut.track for cut in cuts]
        within = torch.arange(self.longest, device=self.device)
        starts = self.first[side][tracks] + [round(cut.start * self.rate) for cut in cuts]
        starts, tracks = move(torch.stack([torch.from_numpy(starts), torch.tensor(tracks)]), self.device)
        crops = self.samples[side][starts[:, None] + within]  # (B, N, C)
        return crops.transpose(1, 2) * self.scale[side][tracks][:, None, None]


def device_batches(
    segments: Segments, indices: Sequence[int], batch_size: int, device: torch.device
) -> Iterator[dict[str, Tensor]]:
    """Batches of the segments `indices`, made on `device`, where the songs are when this returns."""
    songs = DeviceCache(segments, device)
    starts = range(0, len(indices), batch_size)
    return (songs.batch([segments.draw(i) for i in indices[start : start + batch_size]]) for start in starts)
