"""One song of the page: its stems and its picture, with word of how far it is, and a way to stop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor

from ..audio import AudioReader
from ..command.batch import separate_reader, uncertainty_for_picture
from ..plot import plot_separation
from ..separator import Separator

STEMS = ("vocals", "instrumental")
PICTURE = "picture.png"
PICTURE_SECONDS = 20.0


class WatchedSeparator(Separator):
    """A separator that calls `watch(share)` before each pass of the network: how much of the song is done, 0 to 1. What
    `watch` raises ends the separation."""

    watch: Callable[[float], None] | None = None

    def separate_stream(
        self, blocks: Callable[[], Iterable[Tensor]], sample_rate: int, length: int | None = None, **options
    ) -> Iterator[tuple[Tensor, Tensor]]:
        settings = self.settings(**{key: options[key] for key in ("sampler", "steps", "samples") if key in options})
        passes = settings.diffusion.samples * settings.diffusion.ddim_steps  # of the network, for each batch of chunks
        seconds = settings.separation.batch_chunks * settings.separation.chunk_seconds
        pass_length, done, since, most = seconds * sample_rate / passes, 0, 0, 0.0

        def watched(*_: object) -> None:
            nonlocal since, most
            if self.watch is not None and length:
                most = max(most, min(1.0, (done + since * pass_length) / length))
                self.watch(most)
            since += 1

        hook = self.model.register_forward_pre_hook(watched)
        try:
            for pair in super().separate_stream(blocks, sample_rate, length, **options):
                done, since = done + pair[0].shape[-1], 0
                yield pair
        finally:
            hook.remove()


def separate_song(
    separator: WatchedSeparator, source: Path, folder: Path, steps: int, samples: int, watch: Callable[[float], None]
) -> dict[str, int]:
    """Write the stems and the picture of `source` into `folder`; rate (Hz), frames and channels of the stems.

    Several samples are drawn by ddpm, whose samples differ. The picture shows how far the vocals may be wrong, if the
    model knows.

    Raises:
        UserError: a song that cannot be read, a disk that is full.
    """
    options = {"steps": steps, "samples": samples, **({"sampler": "ddpm"} if samples > 1 else {})}
    vocals, instrumental = (folder / f"{stem}.wav" for stem in STEMS)
    separator.watch = watch
    try:
        with AudioReader(source) as song:
            uncertainty = uncertainty_for_picture(separator, song.channels, **options)
            separate_reader(separator, song, vocals, instrumental, progress=False, uncertainty=uncertainty, **options)
    finally:
        separator.watch = None
    facts = soundfile.info(str(vocals))
    length = round(PICTURE_SECONDS * facts.samplerate)
    first = max(0, (facts.frames - length) // 2)
    voice, rest = torch.from_numpy(stems(folder, first, length))
    plot_separation(
        folder / PICTURE, voice + rest, voice, facts.samplerate, first / facts.samplerate,
        uncertainty=uncertainty.values() if uncertainty else None,
    )  # fmt: skip
    return {"rate": facts.samplerate, "frames": facts.frames, "channels": facts.channels}


def stems(folder: Path, start: int, count: int) -> np.ndarray:
    """Samples `start` to `start + count` of both stems: float32 `(2, C, n)`."""
    parts = [
        soundfile.read(str(folder / f"{stem}.wav"), count, start, dtype="float32", always_2d=True)[0] for stem in STEMS
    ]
    return np.stack([part.T for part in parts])
