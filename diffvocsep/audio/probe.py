"""How a file is to be read: whether libsndfile gives all that the file holds, and what is refused.

One model for all formats: what the header announces, what the file holds and what a decoder gives. Where they agree,
libsndfile reads the file. Where the file holds more, it is read by what it holds. Where it holds less, it is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import soundfile

from ..util.errors import UserError
from . import containers, flac, mpeg, ogg, rare_formats
from .channel_layout import flac_mask, wav_mask, wave64_subtype
from .common import native_path, no_room, quoted
from .concatenated import decode_concatenated, second_beginning
from .ffmpeg import GAP, LOOSE_END, damaged, decode
from .ogg_packets import Stream

_BYTES = {
    "PCM_S8": 1,
    "PCM_U8": 1,
    "PCM_16": 2,
    "PCM_24": 3,
    "PCM_32": 4,
    "FLOAT": 4,
    "DOUBLE": 8,
    "ULAW": 1,
    "ALAW": 1,
}
_CHUNKED = {"WAV", "WAVEX", "RF64", "AIFF", "AU", "W64", "CAF"}  # by soundfile's names
_TAG = 128  # bytes of an ID3v1 tag
_ROUNDING = 0.01  # s by which a rare header may be wrong about its length


@dataclass
class Opening:
    """How a file is opened."""

    open: Callable[[], soundfile.SoundFile]
    mask: int = 0
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Header:
    """What libsndfile says of a file that it opens."""

    format: str
    subtype: str
    sample_rate: int
    channels: int
    frames: int
    log: str

    @property
    def seconds(self) -> float:
        return self.frames / self.sample_rate


def probe(path: Path, file: Path, folder: Callable[[], Path]) -> Opening:
    """Find out how to read `file`, which messages call `path`; `folder` is made where a decoded copy is needed.

    Raises:
        UserError: the file is no audio, is damaged or cut off, or cannot be decoded.
    """
    if mpeg.begins(file):
        header, opening = None, _mp3(path, file)
    else:
        _require_one(path, file)
        header = _header(file)
        opening = _check(path, file, header, folder) if header else _unopened(path, file, folder)
    if isinstance(opening, Opening):
        return opening
    decoded, track = decode(file, folder(), opening, path)
    return Opening(partial(soundfile.SoundFile, native_path(decoded)), track.mask, track.notes)


def _require_one(path: Path, file: Path) -> None:
    if (at := second_beginning(file)) is not None:
        raise UserError(
            f"{quoted(path)} is joined of several files, of which players play the first alone: cut it into its parts "
            f"(the second begins at byte {at}) and separate each."
        )


def _check(path: Path, file: Path, header: _Header, folder: Callable[[], Path]) -> Opening | float | None:
    """Compare the lengths of a file that libsndfile opens: how to open it, or the s of sound that ffmpeg must find."""
    if header.format in _CHUNKED:
        return _chunks(path, file, header)
    if header.format == "FLAC":
        return _flac(path, file, header, folder)
    if header.format == "OGG":
        return _ogg(path, file, header, folder)
    return _mp3(path, file) if header.format == "MP3" else _other(path, file, header)


def _header(file: Path | containers.Slice) -> _Header | None:
    if isinstance(file, Path) and file.suffix.lower() == ".mp3" and not mpeg.walk(file).count:
        file = containers.Slice(file, 0, file.stat().st_size)  # by its name libmpg123 would search it, and tell stderr
    try:
        with soundfile.SoundFile(native_path(file) if isinstance(file, Path) else file, closefd=True) as f:
            if f.format == "RAW":  # any bytes, which libsndfile takes for samples where the name ends in .au or .gsm
                return None
            return _Header(f.format, f.subtype, f.samplerate, f.channels, f.frames, f.extra_info)
    except (soundfile.LibsndfileError, TypeError):  # TypeError: soundfile takes .raw for headerless samples
        return None


def _direct(file: Path, mask: int = 0, notes: list[str] | None = None) -> Opening:
    return Opening(partial(soundfile.SoundFile, native_path(file)), mask, notes or [])


def _chunks(path: Path, file: Path, header: _Header) -> Opening | None:
    """WAV, RF64, AIFF, AU, Wave64, CAF: the size of the samples."""
    extent = _samples(path, file)
    if header.subtype.startswith("MPEG"):
        return None
    mask = wav_mask(file)
    if extent is None:
        return _direct(file, mask)
    if extent.missing and extent.held:
        whole = header.seconds if header.subtype not in _BYTES else extent.held / _rate(header)
        raise damaged(path, whole, whole * extent.announced / extent.held, " or cut off")
    if (subtype := wave64_subtype(file)) != header.subtype and subtype in _BYTES:
        header = replace(header, subtype=subtype, frames=extent.held // (_BYTES[subtype] * header.channels))
        return Opening(partial(_slice, file, extent, header), mask)
    if header.subtype in _BYTES and header.frames != extent.held // _frame(header):
        return Opening(partial(_slice, file, extent, header), mask)
    if header.frames == 0 and extent.held:
        return None
    return _direct(file, mask)


def _samples(path: Path, file: Path) -> containers.Extent | None:
    try:
        return containers.find_samples(file)
    except ValueError as error:
        raise UserError(f"{quoted(path)} is damaged or joined of several, {error}: separate the parts alone.") from None


def _frame(header: _Header) -> int:
    return _BYTES[header.subtype] * header.channels


def _rate(header: _Header) -> int:
    return _frame(header) * header.sample_rate


def _slice(file: Path, extent: containers.Extent, header: _Header) -> soundfile.SoundFile:
    """The samples alone, without the header that is wrong about them."""
    size = extent.held // _frame(header) * _frame(header)
    samples = containers.Slice(file, extent.offset, size)
    endian = "BIG" if extent.big_endian else "LITTLE"
    return soundfile.SoundFile(
        samples, "r", header.sample_rate, header.channels, header.subtype, endian, "RAW", closefd=True
    )


def _flac(path: Path, file: Path, header: _Header, folder: Callable[[], Path]) -> Opening | float | None:
    """FLAC: where its last frame ends, and whether several were joined."""
    length = flac.measure(file)
    if len(length.begins) > 1:
        target = folder() / "joined.wav"
        decode_concatenated(path, file, length.begins, target)
        return Opening(partial(soundfile.SoundFile, native_path(target)), flac_mask(header.channels))
    if header.frames >= 1 << 62 or length.announced == 0:  # a stream
        return None
    if length.held is not None and length.held > header.frames:
        return length.held / header.sample_rate
    return _direct(file, flac_mask(header.channels))


def _unopened(path: Path, file: Path, folder: Callable[[], Path]) -> Opening | float | None:
    """What libsndfile does not open: as `_check`."""
    _samples(path, file)
    if blocks := rare_formats.voc_blocks(file):
        _require_blocks(path, blocks)
    return _ogg(path, file, None, folder)


def _ogg(path: Path, file: Path, header: _Header | None, folder: Callable[[], Path]) -> Opening | float | None:
    """Ogg: its pages, whether one stream follows another, and whether the times of its pages are those of its packets.

    libsndfile goes by those times, and where they are wrong it refuses the file or plays less of it, or later.
    """
    pages = ogg.walk(file)
    if not pages.links:  # no Ogg, or something stands before its first page
        return _direct(file, flac_mask(header.channels)) if header and header.frames < 1 << 62 else None
    stream = pages.sounds[0] if pages.sounds else None
    _require_pages(path, pages, stream.rate if stream else None)
    if pages.others or len(pages.sounds) != pages.links:
        return None
    if any(sound.jump > GAP * sound.rate for sound in pages.sounds):  # recorded with pauses, which ffmpeg keeps
        return None
    if pages.links > 1:
        return _chain(path, file, pages, folder)
    if not (header and stream.plain and _agrees(header, stream)):
        file, _ = _renumbered(path, file, folder)
        header = _header(file)
        if not (header and _agrees(header, stream)):
            return stream.length / stream.rate
    notes = [] if pages.ended else [f"{quoted(path)} has no end mark; all that it holds is separated"]
    return _direct(file, flac_mask(header.channels), notes)


def _chain(path: Path, file: Path, pages: ogg.Pages, folder: Callable[[], Path]) -> Opening | float:
    """Streams that follow each other: libsndfile reads one at a time, and ffmpeg none of another codec."""
    copy, begins = _renumbered(path, file, folder)
    parts = pairwise([*begins, copy.stat().st_size])
    headers = [_header(containers.Slice(copy, begin, end - begin)) for begin, end in parts]
    agree = [header and _agrees(header, sound) for header, sound in zip(headers, pages.sounds, strict=False)]
    whole = len(headers) == pages.links and all(agree)
    same = len({header and (header.sample_rate, header.channels) for header in headers}) == 1
    if not whole or not (same or len({sound.opus for sound in pages.sounds}) > 1):
        return sum(sound.length / sound.rate for sound in pages.sounds)
    target = folder() / "joined.wav"
    decode_concatenated(path, copy, begins, target)
    return _direct(target, flac_mask(headers[0].channels))


def _renumbered(path: Path, file: Path, folder: Callable[[], Path]) -> tuple[Path, list[int]]:
    """A copy with the times of its packets, and where each of its links begins."""
    copy = folder() / "song.ogg"
    try:
        return copy, ogg.renumber(file, copy)
    except OSError as error:
        raise no_room(path, copy.parent, error) from error


def _agrees(header: _Header, stream: Stream) -> bool:
    """Whether libsndfile finds as many samples as the packets hold."""
    return abs(header.frames - stream.length * header.sample_rate / stream.rate) < 1


def _require_pages(path: Path, pages: ogg.Pages, rate: int | None) -> None:
    """`rate`: of the granule positions, Hz; None: unknown."""
    if pages.hole is None and not pages.cut:
        return
    where = f" after {pages.last / rate:.2f} s" if rate else ""
    what = f"a page is missing or broken{where}" if pages.hole is not None else f"it ends within a page{where}"
    raise UserError(
        f"{quoted(path)} is damaged or cut off, {what}: get a whole copy, or repair it with an audio editor."
    )


def _mp3(path: Path, file: Path) -> Opening | float | None:
    """MP3: the frames that it holds against those that its first one announces.

    libsndfile guesses the length of one that announces nothing, and then cuts it off; ffmpeg plays all frames.
    """
    frames = mpeg.walk(file)
    if frames.count == 0 or not frames.announced or min(frames.announced) < 0:
        return frames.seconds or None
    announced = sum(frames.announced)
    seconds = frames.seconds / frames.count
    if (announced - frames.count) * seconds > LOOSE_END:
        raise damaged(path, frames.seconds, announced * seconds - frames.trimmed, " or cut off")
    if frames.headers > 1 or frames.count > announced + 2:
        return frames.seconds
    if file.stat().st_size - frames.end > _TAG:  # mpg123 would warn, on stderr, of every byte that was not announced
        return Opening(lambda: soundfile.SoundFile(containers.Slice(file, 0, frames.end), closefd=True))
    return _direct(file)


def _other(path: Path, file: Path, header: _Header) -> Opening | None:
    """Rare formats; of a VOC, libsndfile takes all behind its first header for samples, even other blocks."""
    if blocks := rare_formats.voc_blocks(file):
        _require_blocks(path, blocks, header.seconds)
        if blocks.sounds != 1:
            return None
        return Opening(lambda: soundfile.SoundFile(containers.Slice(file, 0, blocks.end), closefd=True))
    announced = rare_formats.announced_frames(file, header.frames, header.log) / header.sample_rate
    if announced > header.seconds + _ROUNDING:
        raise damaged(path, header.seconds, announced, " or cut off")
    return _direct(file)


def _require_blocks(path: Path, blocks: rare_formats.Blocks, seconds: float | None = None) -> None:
    """Raise UserError for one that ends within a block; `seconds`: of a single one."""
    if blocks.missing and blocks.sounds == 1 and seconds:
        raise damaged(path, seconds, seconds * (1 + blocks.missing / max(1, blocks.bytes)), " or cut off")
    if blocks.missing:
        share = 100 * blocks.missing / (blocks.missing + blocks.bytes)
        raise UserError(
            f"{quoted(path)} is damaged or cut off, it ends {blocks.missing} bytes before the end of its last block, "
            f"which are {share:.1f} % of its sound, and more may be missing behind them: get a whole copy."
        )
