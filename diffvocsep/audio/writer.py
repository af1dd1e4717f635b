"""Write .wav, .flac and .mp3 files, whole or block by block; nothing is clipped, and a file appears only when whole."""

from __future__ import annotations

import math
import os
import shutil
from contextlib import suppress
from pathlib import Path

import soundfile
import torch
from torch import Tensor

from ..util.atomic import flush, remove_leftovers, replace_file, resolve_target, temporary_name
from ..util.errors import UserError, size
from .channel_layout import fits_flac
from .common import native_path, quoted, require_finite
from .output_formats import FORMATS, bitrates, choose_subtype, compression_level, require_layout
from .wav import WavSink, data_size

ABANDONED = 24 * 3600.0  # s without a change, after which a temporary file is nobody's


class AudioWriter:
    """Write a .wav, .flac or .mp3 file block by block; the target appears, whole, when the `with` block ends well.

    `subtype` is "float" (default), "pcm16" or "pcm24" for .wav, "pcm24" (default) or "pcm16" for .flac, and "mp3" for
    .mp3, of `bitrate` kbit/s, by default the highest: 320 from 32 kHz on. PCM is rounded to nearest, without dither.
    `frames` is the length to come, in samples: where it is known, a disk too small for the .wav is refused before any
    work. `mask` says which loudspeaker each channel is for (channel_layout.py; 0: unknown).
    Raises UserError for what the format cannot hold, a peak above 1.0 (0 dBFS) outside float .wav, samples that are
    not finite, and a path that cannot be written. An error removes the unfinished file and leaves the old one alone.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        sample_rate: int,
        channels: int,
        subtype: str | None = None,
        frames: int | None = None,
        mask: int = 0,
        bitrate: int | None = None,
    ) -> None:
        self.path, self.mask = Path(path), mask
        self.sample_rate, self.channels, self.frames = sample_rate, channels, frames
        self._suffix = self.path.suffix.lower()
        self.subtype = choose_subtype(self.path, subtype, bitrate)
        require_layout(self.path, sample_rate, channels, bitrate)
        if self._suffix == ".flac" and not fits_flac(mask, channels):
            raise UserError(
                f"{quoted(self.path)} cannot tell for which loudspeaker each of {channels} channels is: write a .wav."
            )
        self._bitrate = bitrate or bitrates(sample_rate)[-1]
        self._target = resolve_target(self.path)
        self._part = temporary_name(self._target)
        self._done = 0

    def __enter__(self) -> AudioWriter:
        try:
            self._target.parent.mkdir(parents=True, exist_ok=True)
            remove_leftovers(self._target.parent, ABANDONED)
            with suppress(FileNotFoundError):  # a name that the system cannot hold is refused now, not after the work
                self._target.stat()
            if self._suffix == ".wav" and self.frames is not None:
                needed = data_size(self.subtype, self.channels, self.frames)
                if needed > shutil.disk_usage(self._target.parent).free:
                    raise UserError(
                        f"{quoted(self.path)} needs {size(needed)}, more than the disk has free: make room."
                    )
            self._sink = self._open_sink()
        except (OSError, ValueError, soundfile.LibsndfileError) as error:
            self._discard()
            raise UserError(
                f"{quoted(self.path)} cannot be written ({error}): choose another name or place."
            ) from error
        return self

    def _open_sink(self) -> WavSink | soundfile.SoundFile:
        if self._suffix == ".wav":
            return WavSink(self._part, self.sample_rate, self.channels, self.subtype, self.mask)
        self._part.touch()  # fails with a reason, where libsndfile would only say "System error"
        level = compression_level(self._bitrate, self.sample_rate)
        rate = {"compression_level": level, "bitrate_mode": "CONSTANT"} if self._suffix == ".mp3" else {}
        subtype = FORMATS[self._suffix].subtypes[self.subtype]
        layout = (self.sample_rate, self.channels, subtype, None, self._suffix[1:].upper())
        return soundfile.SoundFile(native_path(self._part), "w", *layout, **rate)

    def write(self, block: Tensor) -> None:
        """Append `block` (C, n)."""
        if block.ndim != 2 or block.shape[0] != self.channels:
            raise ValueError(f"expected ({self.channels}, n), got {tuple(block.shape)}")
        if block.shape[1] == 0:
            return
        block = block.detach().to("cpu", torch.float32)
        require_finite(block, self._done, self.sample_rate, quoted(self.path), "it is not written, check the input")
        peak, at = (x.item() for x in block.abs().amax(0).max(0))
        if peak > 1.0 and self.subtype != "float":
            raise UserError(
                f"{quoted(self.path)} cannot hold the peak of {20 * math.log10(peak):+.2f} dBFS at "
                f"{(self._done + at) / self.sample_rate:.3f} s without clipping: write a float .wav, or use --rescale."
            )
        try:
            self._sink.write(block.T.contiguous().numpy())
        except (OSError, soundfile.LibsndfileError, AssertionError) as error:  # AssertionError: soundfile's short write
            raise UserError(f"{quoted(self.path)} cannot be written ({error}): is the disk full?") from error
        self._done += block.shape[1]

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        try:
            if kind is None:
                self._sink.close()
                flush(self._part)
                replace_file(self._part, self._target)
            else:
                with suppress(OSError, soundfile.LibsndfileError):
                    self._sink.close()
        except (OSError, soundfile.LibsndfileError) as error:
            raise UserError(
                f"{quoted(self.path)} cannot be written ({error}): close programs that use it and check the disk."
            ) from error
        finally:
            self._discard()

    def _discard(self) -> None:
        with suppress(OSError, ValueError):  # in a folder that cannot be, there is nothing to remove
            self._part.unlink(missing_ok=True)


def write(path: str | os.PathLike, waveform: Tensor, sample_rate: int, subtype: str | None = None) -> None:
    """Write a whole `waveform` (C, N) at `sample_rate` Hz. Raises UserError as `AudioWriter` does."""
    with AudioWriter(path, sample_rate, waveform.shape[0], subtype, waveform.shape[1]) as writer:
        writer.write(waveform)
