"""Read audio files of any kind, whole or as a stream of blocks in constant memory."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import soundfile
import torch
from torch import Tensor

from ..util.atomic import temporary_folder
from ..util.errors import UserError
from .common import no_room, quoted, require_finite
from .ffmpeg import LOOSE_END, damaged
from .probe import Opening, probe

SAMPLE_RATES = range(8_000, 192_001)  # Hz
_BLOCK = 1 << 18  # samples of a stream that are worked on at once
_LOSSY = {"OGG", "MP3"}  # formats, by soundfile's names


class AudioReader:
    """An audio file as blocks of samples: what libsndfile opens whole is read directly, the rest through ffmpeg.

    Attributes: `sample_rate` in Hz, `channels`, `frames`, the exact length in samples per channel, `mask`, which
    loudspeaker each channel is for (0: unknown), and `notes`, what is worth knowing of how the file is read.
    Raises UserError for a path that is no readable audio file, for one without samples, for a sample rate outside
    8 to 192 kHz, for a file that holds less than it announces and, while reading, for a damaged file, one that is
    changed meanwhile, or a sample that is not finite.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        self._folder: tempfile.TemporaryDirectory | None = None
        self._file: Path = self.path
        try:
            if _require_file(self.path):
                self._file = _copy_pipe(self.path, self._temporary_folder() / "song")
            self._print = _fingerprint(self._file)
            self._opening: Opening = probe(self.path, self._file, self._temporary_folder)
            with self.raw() as file:
                self.sample_rate: int = file.samplerate
                self.channels: int = file.channels
                self.frames: int = file.frames
                self._loose_end = LOOSE_END * file.samplerate if file.format in _LOSSY else 0  # samples
            self.mask, self.notes = self._opening.mask, self._opening.notes
            self._require_unchanged()
            if self.frames == 0:
                raise UserError(f"{quoted(self.path)} holds no samples: give a file with sound in it.")
            if self.sample_rate not in SAMPLE_RATES:
                raise UserError(
                    f"{quoted(self.path)} has a sample rate of {self.sample_rate} Hz, outside 8000 to 192000 Hz: "
                    "resample it first."
                )
        except soundfile.LibsndfileError as error:
            self.close()
            raise UserError(f"{quoted(self.path)} is damaged or not audio ({error}): give another file.") from error
        except BaseException:
            self.close()
            raise

    def raw(self) -> soundfile.SoundFile:
        """The samples, as they are, for what needs more than `blocks` gives."""
        return self._opening.open()

    def blocks(self, size: int, start: int = 0, stop: int | None = None) -> Iterator[Tensor]:
        """Yield the file from sample `start` up to `stop` (its end) as tensors `(C, n)`, n <= size samples; every call
        starts a new pass."""
        done, stop = start, self.frames if stop is None else min(stop, self.frames)
        self._require_unchanged()
        try:
            with self.raw() as file:
                _skip(file, start)
                while done < stop:
                    data = file.read(min(size, stop - done), dtype="float32", always_2d=True)
                    if len(data) == 0:
                        break
                    block = torch.from_numpy(data).T.contiguous()
                    require_finite(block, done, self.sample_rate, quoted(self.path), "repair or export the file again")
                    done += len(data)
                    if done == stop:
                        self._require_unchanged()
                    yield block
        except soundfile.LibsndfileError:
            self._require_unchanged()  # else the same to the user as an early end
        missing = stop - done
        if 0 < missing <= self._loose_end:
            yield torch.zeros(self.channels, missing)
        elif missing > 0:
            raise damaged(self.path, done / self.sample_rate, self.frames / self.sample_rate)

    def _require_unchanged(self) -> None:
        if _fingerprint(self._file) != self._print:
            raise UserError(f"{quoted(self.path)} was changed while it was read: start again when it is complete.")

    def _temporary_folder(self) -> Path:
        if self._folder is None:
            try:
                self._folder = temporary_folder()
            except OSError as error:
                raise no_room(self.path, Path(os.environ.get("TMPDIR", "/tmp")), error) from error
        return Path(self._folder.name)

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


def _require_file(path: Path) -> bool:
    """See that something can be read there; returns whether it is a pipe, which can be read only once."""
    try:
        if path.is_dir():
            raise UserError(f"{quoted(path)} is a folder: give an audio file.")
        mode = path.stat().st_mode
        if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or (stat.S_ISCHR(mode) and str(path) == "/dev/stdin"):
            return True
        if not stat.S_ISREG(mode):
            raise UserError(f"{quoted(path)} is a device: give an audio file.")
        with path.open("rb") as file:
            if not file.read(1):
                raise UserError(f"{quoted(path)} is empty (0 bytes): give a file with sound in it.")
    except FileNotFoundError as error:
        raise UserError(f"There is no file {quoted(path)}: check the path.") from error
    except NotADirectoryError as error:
        raise UserError(
            f"There is no file {quoted(path)}, for a part of its path is a file: check the path."
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(f"{quoted(path)} cannot be opened ({error}): check the path and its permissions.") from error
    return False


def _copy_pipe(path: Path, target: Path) -> Path:
    """What comes out of a pipe, as a file: a song is read twice."""
    try:
        pipe = path.open("rb")
    except OSError as error:
        raise UserError(f"{quoted(path)} cannot be opened ({error}): check the path and its permissions.") from error
    try:
        with pipe, target.open("wb") as file:
            shutil.copyfileobj(pipe, file, 1 << 20)
            size = file.tell()
    except OSError as error:
        raise no_room(path, target.parent, error) from error
    if size == 0:
        raise UserError(f"{quoted(path)} is empty (0 bytes): see that the program before the pipe writes a song.")
    return target


def _fingerprint(path: Path) -> tuple[int, ...]:
    """What changes when a file is written or replaced."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _skip(file: soundfile.SoundFile, frames: int) -> None:
    """Go to a sample; some encodings (GSM, G.721) can only be read from their beginning."""
    if frames > 0 and file.seekable():
        file.seek(frames)
        return
    while frames > 0 and len(data := file.read(min(frames, _BLOCK), always_2d=True)):
        frames -= len(data)
