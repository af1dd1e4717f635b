"""Read audio files of any kind, whole or as a stream of blocks in constant memory."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import soundfile
import torch
from torch import Tensor

from ..util.errors import UserError
from .common import native_path, require_finite, shown

SAMPLE_RATES = range(8_000, 192_001)  # Hz
_BLOCK = 1 << 18  # samples of a stream that are worked on at once
_LOSSY = {"OGG", "MP3"}  # formats, by soundfile's names
_LOOSE_END = 0.25  # s that a lossy file may lack of the length it announces; more is damage


class AudioReader:
    """An audio file as blocks of samples: what libsndfile opens is read directly, the rest through ffmpeg.

    Attributes: `sample_rate` in Hz, `channels`, and `frames`, the exact length in samples per channel.
    Raises UserError for a path that is no readable audio file, for one without samples, for a sample rate outside
    8 to 192 kHz and, while reading, for a damaged file or a sample that is not finite.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        self._folder: tempfile.TemporaryDirectory | None = None
        _require_file(self.path)
        self._source = self.path
        try:
            if not _soundfile_can_read(self.path):
                self._folder = tempfile.TemporaryDirectory(prefix="diffvocsep-", ignore_cleanup_errors=True)
                self._source = _decode_with_ffmpeg(self.path, Path(self._folder.name))
            with self.raw() as file:
                self.sample_rate: int = file.samplerate
                self.channels: int = file.channels
                self.frames: int = file.frames
                self._loose_end = _LOOSE_END * file.samplerate if file.format in _LOSSY else 0  # samples
            if self.frames == 0:
                raise UserError(f"{shown(self.path)} holds no samples: give a file with sound in it.")
            if self.sample_rate not in SAMPLE_RATES:
                raise UserError(
                    f"{shown(self.path)} has a sample rate of {self.sample_rate} Hz, outside 8000 to 192000 Hz: "
                    "resample it first."
                )
        except BaseException:
            self.close()
            raise

    def raw(self) -> soundfile.SoundFile:
        """The samples, as they are, for what needs more than `blocks` gives."""
        return soundfile.SoundFile(native_path(self._source))

    def blocks(self, size: int, start: int = 0, stop: int | None = None) -> Iterator[Tensor]:
        """Yield the file from sample `start` up to `stop` (its end) as tensors `(C, n)`, n <= size samples; every call
        starts a new pass."""
        done, stop = start, self.frames if stop is None else min(stop, self.frames)
        try:
            with self.raw() as file:
                file.seek(start)
                while done < stop:
                    data = file.read(min(size, stop - done), dtype="float32", always_2d=True)
                    if len(data) == 0:
                        break
                    block = torch.from_numpy(data).T.contiguous()
                    require_finite(block, done, self.sample_rate, shown(self.path), "repair or export the file again")
                    done += len(data)
                    yield block
        except soundfile.LibsndfileError:
            pass  # the same to the user as an early end
        missing = stop - done
        if 0 < missing <= self._loose_end:
            yield torch.zeros(self.channels, missing)
        elif missing > 0:
            raise UserError(
                f"{shown(self.path)} is damaged, it can be read for {done / self.sample_rate:.2f} s of the "
                f"{self.frames / self.sample_rate:.2f} s it announces: get a whole copy, or save the readable part "
                "with an audio editor."
            )

    def part(self, start: float, seconds: float) -> Tensor:
        """Samples `(C, n)` from `start` (s) on for at least `seconds`, or to the end."""
        first = min(self.frames, max(0, round(start * self.sample_rate)))
        parts = list(self.blocks(_BLOCK, first, first + round(seconds * self.sample_rate) + 1))
        return torch.cat(parts, dim=-1) if parts else torch.zeros(self.channels, 0)

    def close(self) -> None:
        """Remove what ffmpeg decoded; no file stays open between passes."""
        if self._folder is not None:
            self._folder.cleanup()

    def __enter__(self) -> AudioReader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def read(path: str | os.PathLike) -> tuple[Tensor, int]:
    """Read a whole file: the waveform `(C, N)` and its sample rate in Hz. Raises UserError as `AudioReader` does."""
    with AudioReader(path) as reader:
        return torch.cat(list(reader.blocks(_BLOCK)), dim=-1), reader.sample_rate


def _require_file(path: Path) -> None:
    try:
        if path.is_dir():
            raise UserError(f"{shown(path)} is a folder: give an audio file.")
        if not path.is_file():
            raise UserError(f"There is no file {shown(path)}: check the path.")
        with path.open("rb") as file:
            if not file.read(1):
                raise UserError(f"{shown(path)} is empty (0 bytes): give a file with sound in it.")
    except (OSError, ValueError) as error:
        raise UserError(f"{shown(path)} cannot be opened ({error}): check the path and its permissions.") from error


def _soundfile_can_read(path: Path) -> bool:
    """Whether libsndfile opens the file and knows how long it is.

    It does not know for a streamed FLAC, and guesses (then cuts the song off) for an MP3 without a Xing, Info or VBRI
    header in its first frame.
    """
    try:
        with soundfile.SoundFile(native_path(path)) as file:
            if file.frames >= 1 << 62:
                return False
            is_mp3 = file.format == "MP3"
    except (soundfile.LibsndfileError, TypeError):  # TypeError: soundfile takes .raw for headerless samples
        return False
    if not is_mp3:
        return True
    with path.open("rb") as file:
        tag = file.read(10)  # ID3v2: "ID3", version (2), flags (1), then the size in 4 bytes of 7 bits
        size = sum(byte << shift for byte, shift in zip(tag[6:], (21, 14, 7, 0), strict=False))
        file.seek(10 + size if tag[:3] == b"ID3" else 0)
        start = file.read(4096)
    return any(header in start for header in (b"Xing", b"Info", b"VBRI"))


def _decode_with_ffmpeg(path: Path, folder: Path) -> Path:
    """Decode the first audio track to a float32 WAV in `folder` and return its path."""
    ffmpeg = shutil.which("ffmpeg")
    if ffmpeg is None:
        raise UserError(
            f"{shown(path)} is not audio or has a format that needs ffmpeg, which is not on PATH: install it "
            "(https://ffmpeg.org, 'apt install ffmpeg', 'brew install ffmpeg' or 'winget install ffmpeg'), or "
            "convert the file to .wav."
        )
    target = folder / "decoded.wav"
    command = [ffmpeg, "-nostdin", "-v", "error", "-xerror"]  # -xerror: a damaged file must not turn into a short song
    # "file:" protects names with a leading dash or a colon; the whitelist keeps playlists from reaching the network.
    command += ["-protocol_whitelist", "file", "-i", f"file:{path}", "-map", "0:a:0"]
    command += ["-c:a", "pcm_f32le", "-rf64", "auto", str(target)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"{shown(path)} needs ffmpeg, which does not start ({error}): install it again.") from error
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[0]
        raise UserError(f"{shown(path)} is damaged or not audio, ffmpeg says ({reason}): give another file.")
    return target
