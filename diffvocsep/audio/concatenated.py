"""Files joined byte by byte of which players play the first alone: where the second begins.

Streams of frames and Ogg can be joined, and are read to their end elsewhere. In the formats of `second_beginning` the
first file says where it ends, so that what follows would be lost without a word. Players play all of a
joined FLAC or Ogg.
"""

from __future__ import annotations

import mmap
import re
from itertools import pairwise
from pathlib import Path

import soundfile

from ..util.errors import UserError
from .common import no_room, quoted
from .containers import Slice
from .ffmpeg import damaged
from .wav import WavSink

_BLOCK = 1 << 16  # samples per channel that are decoded at once

_INITIAL = b"".join(b"\\x%02x-\\x%02x" % (low, low + 7) for low in range(8, 256, 16))  # bit 3: the first channels

# How a file begins, by format; long enough that no other bytes look like it by chance.
_BEGINNINGS = [
    re.compile(pattern, re.S)
    for pattern in (
        rb"FORM.{4}AIF[FC](?:COMM|FVER|NAME|MARK|ANNO|CHAN)",
        rb"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\x00\x00",  # Wave64
        rb"caff\x00\x01\x00\x00desc",
        rb"\.snd\x00\x00.{6}\x00\x00\x00.\x00[\x00-\x0b].{2}\x00\x00\x00.",  # AU
        rb"\.SoX.{2}\x00\x00.{16}[\x01-\xff]\x00\x00\x00.{2}\x00\x00",
        rb"Creative Voice File\x1a",
        rb"RIFF.{4}AVI LIST",
        rb"FLV\x01.\x00\x00\x00\x09\x00\x00\x00\x00",
        rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9\x00\xaa\x00\x62\xce\x6c",  # ASF: WMA, WMV
        rb"TTA1[\x01-\x03]\x00.\x00.\x00.{2}[\x00-\x0b]\x00",
        rb"wvpk.{4}[\x02-\x10]\x04\x00.{5}\x00\x00\x00\x00.{5}[" + _INITIAL + rb"]",  # the block of index 0
        rb"\x00\x00\x00[\x08-\xff]ftyp[0-9A-Za-z ]{4}",  # MP4, MOV
        rb"\.RMF\x00\x00\x00.\x00[\x00\x01]",
    )
]


def second_beginning(path: Path) -> int | None:
    """The byte at which a second file of the same format begins; None where there is one file."""
    if path.stat().st_size == 0:
        return None
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for beginning in _BEGINNINGS:
            if first := beginning.match(data):
                second = beginning.search(data, first.end())
                return second.start() if second else None
    return None


def decode_concatenated(path: Path, file: Path, begins: list[int], target: Path) -> None:
    """Decode a FLAC or Ogg that holds several, which begin at these bytes, into one WAV; messages call it `path`.

    Raises:
        UserError: one is damaged or of another sample rate or number of channels, or there is no room.
    """
    sink: WavSink | None = None
    try:
        for begin, end in pairwise([*begins, file.stat().st_size]):
            with soundfile.SoundFile(Slice(file, begin, end - begin), closefd=True) as part:
                layout = part.samplerate, part.channels
                if sink is None:
                    sink, first = WavSink(target, *layout, "float"), layout
                elif layout != first:
                    raise UserError(
                        f"{quoted(path)} is joined of several files of different sample rates or channels: cut it "
                        f"into its parts (one begins at byte {begin}) and separate each."
                    )
                _copy(path, part, sink)
    except OSError as error:
        raise no_room(path, target.parent, error) from error
    finally:
        if sink is not None:
            sink.close()


def _copy(path: Path, part: soundfile.SoundFile, sink: WavSink) -> None:
    done = 0
    try:
        while len(block := part.read(_BLOCK, dtype="float32", always_2d=True)):
            sink.write(block)
            done += len(block)
        broken = done < part.frames < 1 << 62  # beyond: it does not say
    except soundfile.LibsndfileError:
        broken = True
    if broken:
        raise damaged(path, done / part.samplerate, part.frames / part.samplerate, ", in one of the several it holds")
