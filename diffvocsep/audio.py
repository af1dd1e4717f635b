"""Audio files and sample rates: read, write and resample, whole or as a stream of blocks in constant memory.

A waveform is a float32 tensor `(C, N)` on the CPU, full scale at 1.0. Nothing here clips or rescales it: float files
keep peaks above 1.0, and formats that cannot hold such a peak refuse it.
"""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import tempfile
from collections.abc import Container, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import soundfile
import torch
from torch import Tensor

from .atomic import remove_leftovers, replace_file, temporary_name
from .errors import UserError
from .resampling import rechunk, resample, resample_blocks
from .wavfile import WavSink, data_size

__all__ = ["AudioReader", "AudioWriter", "read", "rechunk", "resample", "resample_blocks", "write"]

SAMPLE_RATES = range(8_000, 192_001)  # Hz
ABANDONED = 24 * 3600.0  # s without a change, after which a temporary file is nobody's
_BLOCK = 1 << 18  # samples of a stream that are worked on at once
_LOSSY = {"OGG", "MP3"}  # formats, by soundfile's names
_LOOSE_END = 0.25  # s that a lossy file may lack of the length it announces; more is damage


def _name(path: Path) -> str:
    """The path as it is shown in a message: a file name that is not valid Unicode must still be printable."""
    return f'"{path}"'.encode(errors="replace").decode()


def _native(path: Path) -> str | bytes:
    """The path for soundfile: bytes on POSIX, where a name need not be UTF-8 (old Korean archives)."""
    return str(path) if os.name == "nt" else os.fsencode(path)


def _require_finite(block: Tensor, done: int, sample_rate: int, name: str, remedy: str) -> None:
    """Raise UserError if `block` (C, n), which starts at sample `done`, holds a NaN or an infinity."""
    bad = ~block.isfinite().all(0)
    if bad.any():
        seconds = (done + int(bad.nonzero()[0])) / sample_rate
        raise UserError(f"{name} has a sample that is not a finite number at {seconds:.3f} s: {remedy}.")


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
                raise UserError(f"{_name(self.path)} holds no samples: give a file with sound in it.")
            if self.sample_rate not in SAMPLE_RATES:
                raise UserError(
                    f"{_name(self.path)} has a sample rate of {self.sample_rate} Hz, outside 8000 to 192000 Hz: "
                    "resample it first."
                )
        except BaseException:
            self.close()
            raise

    def raw(self) -> soundfile.SoundFile:
        """The samples, as they are, for what needs more than `blocks` gives."""
        return soundfile.SoundFile(_native(self._source))

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
                    _require_finite(block, done, self.sample_rate, _name(self.path), "repair or export the file again")
                    done += len(data)
                    yield block
        except soundfile.LibsndfileError:
            pass  # the same to the user as an early end
        missing = stop - done
        if 0 < missing <= self._loose_end:
            yield torch.zeros(self.channels, missing)
        elif missing > 0:
            raise UserError(
                f"{_name(self.path)} is damaged, it can be read for {done / self.sample_rate:.2f} s of the "
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
            raise UserError(f"{_name(path)} is a folder: give an audio file.")
        if not path.is_file():
            raise UserError(f"There is no file {_name(path)}: check the path.")
        with path.open("rb") as file:
            if not file.read(1):
                raise UserError(f"{_name(path)} is empty (0 bytes): give a file with sound in it.")
    except (OSError, ValueError) as error:
        raise UserError(f"{_name(path)} cannot be opened ({error}): check the path and its permissions.") from error


def _soundfile_can_read(path: Path) -> bool:
    """Whether libsndfile opens the file and knows how long it is.

    It does not know for a streamed FLAC, and guesses (then cuts the song off) for an MP3 without a Xing, Info or VBRI
    header in its first frame.
    """
    try:
        with soundfile.SoundFile(_native(path)) as file:
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
            f"{_name(path)} is not audio or has a format that needs ffmpeg, which is not on PATH: install it "
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
        raise UserError(f"{_name(path)} needs ffmpeg, which does not start ({error}): install it again.") from error
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[0]
        raise UserError(f"{_name(path)} is damaged or not audio, ffmpeg says ({reason}): give another file.")
    return target


@dataclass(frozen=True)
class _Format:
    subtypes: dict[str, str]  # ours -> soundfile's; the first is the default
    sample_rates: Container[int]
    max_channels: int
    limits: str


_MP3_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
_FORMATS = {
    ".wav": _Format({"float": "FLOAT", "pcm16": "PCM_16", "pcm24": "PCM_24"}, range(1, 1 << 31), 1024, "1024 channels"),
    ".flac": _Format(
        {"pcm24": "PCM_24", "pcm16": "PCM_16"}, range(1, 655_351), 8, "8 channels and sample rates up to 655350 Hz"
    ),
    ".mp3": _Format(
        {"mp3": "MPEG_LAYER_III"}, _MP3_RATES, 2, f"2 channels and sample rates of {', '.join(map(str, _MP3_RATES))} Hz"
    ),
}


class AudioWriter:
    """Write a .wav, .flac or .mp3 file block by block; the target appears, whole, when the `with` block ends well.

    `subtype` is "float" (default), "pcm16" or "pcm24" for .wav, "pcm24" (default) or "pcm16" for .flac, and "mp3"
    (320 kbit/s where the rate allows it) for .mp3. PCM is rounded to nearest, without dither. `frames` is the length
    to come, in samples: where it is known, a disk too small for the .wav is refused before any work.
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
    ) -> None:
        self.path = Path(path)
        self.sample_rate, self.channels, self.frames = sample_rate, channels, frames
        self._suffix = self.path.suffix.lower()
        if self._suffix not in _FORMATS:
            raise UserError(f"{_name(self.path)} cannot be written: the name must end in {', '.join(_FORMATS)}.")
        kind = _FORMATS[self._suffix]
        if sample_rate not in kind.sample_rates or not 1 <= channels <= kind.max_channels:
            raise UserError(
                f"{_name(self.path)} cannot hold {channels} channels at {sample_rate} Hz ({self._suffix} has at most "
                f"{kind.limits}): write a .wav."
            )
        self.subtype = subtype or next(iter(kind.subtypes))
        if self.subtype not in kind.subtypes:
            raise UserError(
                f"{_name(self.path)} cannot hold {self.subtype} samples: choose from {', '.join(kind.subtypes)}."
            )
        self._part = temporary_name(self.path)
        self._done = 0

    def __enter__(self) -> AudioWriter:
        try:
            if self.path.is_dir():
                raise UserError(f"{_name(self.path)} is a folder: give a file name.")
            self.path.parent.mkdir(parents=True, exist_ok=True)
            remove_leftovers(self.path.parent, ABANDONED)
            with suppress(FileNotFoundError):  # a name that the system cannot hold is refused now, not after the work
                self.path.stat()
            if self._suffix == ".wav" and self.frames is not None:
                needed = data_size(self.subtype, self.channels, self.frames)
                if needed > shutil.disk_usage(self.path.parent).free:
                    raise UserError(
                        f"{_name(self.path)} needs {needed / 1e9:.2f} GB, more than the disk has free: make room."
                    )
            self._sink = self._open_sink()
        except (OSError, ValueError, soundfile.LibsndfileError) as error:
            self._discard()
            raise UserError(f"{_name(self.path)} cannot be written ({error}): choose another name or place.") from error
        return self

    def _open_sink(self) -> WavSink | soundfile.SoundFile:
        if self._suffix == ".wav":
            return WavSink(self._part, self.sample_rate, self.channels, self.subtype)
        self._part.touch()  # fails with a reason, where libsndfile would only say "System error"
        best = {"compression_level": 0.0, "bitrate_mode": "CONSTANT"} if self._suffix == ".mp3" else {}
        subtype = _FORMATS[self._suffix].subtypes[self.subtype]
        layout = (self.sample_rate, self.channels, subtype, None, self._suffix[1:].upper())
        return soundfile.SoundFile(_native(self._part), "w", *layout, **best)

    def write(self, block: Tensor) -> None:
        """Append `block` (C, n)."""
        if block.ndim != 2 or block.shape[0] != self.channels:
            raise ValueError(f"expected ({self.channels}, n), got {tuple(block.shape)}")
        if block.shape[1] == 0:
            return
        block = block.detach().to("cpu", torch.float32)
        _require_finite(block, self._done, self.sample_rate, _name(self.path), "it is not written, check the input")
        peak, at = (x.item() for x in block.abs().amax(0).max(0))
        if peak > 1.0 and self.subtype != "float":
            raise UserError(
                f"{_name(self.path)} cannot hold the peak of {20 * math.log10(peak):+.2f} dBFS at "
                f"{(self._done + at) / self.sample_rate:.3f} s without clipping: write a float .wav."
            )
        try:
            self._sink.write(block.T.contiguous().numpy())
        except (OSError, soundfile.LibsndfileError, AssertionError) as error:  # AssertionError: soundfile's short write
            raise UserError(f"{_name(self.path)} cannot be written ({error}): is the disk full?") from error
        self._done += block.shape[1]

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        try:
            if kind is None:
                self._sink.close()
                replace_file(self._part, self.path)
            else:
                with suppress(OSError, soundfile.LibsndfileError):
                    self._sink.close()
        except (OSError, soundfile.LibsndfileError) as error:
            raise UserError(
                f"{_name(self.path)} cannot be written ({error}): close programs that use it and check the disk."
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
