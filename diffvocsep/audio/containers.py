"""Where the samples of an uncompressed file lie: what its header announces of them, and what the file holds.

RIFF, RF64, AIFF, Wave64, CAF and AU are chains of chunks. A size in them may be false in four ways: the file was cut,
it is a mark for "until it ends" (pipes), 0 (a recorder that lost power) or, beyond 4 GiB, 32 bits that went round.
libsndfile corrects or believes such sizes in silence; here they are compared with the length of the file.
"""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path
from typing import BinaryIO, NamedTuple

_RIFF = (b"RIFF", b"RIFX", b"RF64", b"BW64")
_ROUND = 1 << 32  # where a 32-bit size begins anew
_SLACK = 1 << 20  # bytes of other chunks that may stand behind samples of more than 4 GiB
_TAIL = 1 << 16  # bytes behind the samples that may be anything: tags, lyrics, padding
_HEADER = 128  # bytes; some programs announce the size of the whole file as that of its samples


class Extent(NamedTuple):
    """The samples of one file, in bytes."""

    offset: int  # of the first
    announced: int | None  # by the header; None: until the file ends
    held: int  # from `offset` on: what is there of those announced, or all of them
    big_endian: bool

    @property
    def missing(self) -> int:
        return max(0, (self.announced or 0) - self.held)


class Slice(io.RawIOBase):
    """The bytes of a file from `offset` on, `size` of them, as a file of its own."""

    def __init__(self, path: Path, offset: int, size: int) -> None:
        self._file, self._offset, self._size, self._at = path.open("rb"), offset, size, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: memoryview) -> int:
        self._file.seek(self._offset + self._at)
        count = self._file.readinto(memoryview(buffer)[: max(0, self._size - self._at)])
        self._at += count
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def find_samples(path: Path) -> Extent | None:
    """The samples of a RIFF, RF64, AIFF, Wave64, CAF or AU file; None for another file, or one without any."""
    end = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(40)
        if start[:4] in (b".snd", b"dns."):
            big = start[:4] == b".snd"
            offset, size = struct.unpack(">II" if big else "<II", start[4:12])
            return _extent(offset, size, end, big) if offset <= end else None
        if start[:4] in _RIFF and start[8:12] == b"WAVE":
            return _riff(file, start, end)
        if start[:4] == b"FORM" and start[8:12] in (b"AIFF", b"AIFC"):
            return _aiff(file, end)
        if start[:4] == b"caff":
            return _caf(file, end)
        if start[:4] == b"riff" and start[24:28] == b"wave":
            return _wave64(file, end)
    return None


def announced_size(path: Path) -> int:
    """Bytes that the header gives the whole file; 0 where nothing does."""
    if samples := find_samples(path):
        return path.stat().st_size + samples.missing
    with path.open("rb") as file:
        head = file.read(1 << 14)
    if head[:3] == b"FWS":  # Flash
        return struct.unpack("<I", head[4:8])[0]
    if head[:4] in (b".SoX", b"XoS."):
        size, samples_held = struct.unpack("<IQ" if head[:1] == b"." else ">IQ", head[4:16])
        return 4 + size + 4 * samples_held if samples_held < 1 << 60 else 0
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        size = struct.unpack("<I", head[4:8])[0]
        return size + 8 if 0 < size < 0x7FFF_0000 else 0
    at = head.find(bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365"))  # the file properties of ASF
    if head[:4] == b"\x30\x26\xb2\x75" and 0 <= at <= len(head) - 92:
        size, flags = struct.unpack("<Q", head[at + 40 : at + 48])[0], head[at + 88]
        return 0 if flags & 1 else size  # a broadcast does not know
    return 0


def _riff(file: BinaryIO, start: bytes, end: int) -> Extent | None:
    big, long = start[:4] == b"RIFX", None
    whole = struct.unpack(">I" if big else "<I", start[4:8])[0] + 8
    at = 12
    while at + 8 <= end:
        name, size = _chunk(file, at, ">4sI" if big else "<4sI")
        if name == b"ds64":
            file.seek(at + 16)
            long = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))[0]
        elif name == b"data":
            if size == 0xFFFF_FFFF and long is not None:
                extent = _extent(at + 8, long, end, big, bits=64)
            else:
                extent = _extent(at + 8, size, end, big)
            return _unannounced(file, extent, whole, end)
        at += 8 + size + size % 2
    return None


def _aiff(file: BinaryIO, end: int) -> Extent | None:
    at = 12
    little = False
    while at + 16 <= end:
        name, size = _chunk(file, at, ">4sI")
        if name == b"COMM":
            file.seek(at + 26)
            little = size >= 22 and file.read(4) == b"sowt"
        elif name == b"SSND":
            file.seek(at + 8)
            skip = struct.unpack(">I", file.read(4))[0]
            return _extent(at + 16 + skip, max(0, size - 8 - skip), end, not little)
        at += 8 + size + size % 2
    return None


def _caf(file: BinaryIO, end: int) -> Extent | None:
    at, little = 8, False
    while at + 12 <= end:
        name, size = _chunk(file, at, ">4sq")
        if name == b"desc":
            file.seek(at + 12 + 12)
            little = bool(struct.unpack(">I", file.read(4).ljust(4, b"\0"))[0] & 2)
        elif name == b"data":
            return _extent(at + 16, size - 4 if size > 0 else 0, end, not little, bits=64)
        if size < 0:
            break
        at += 12 + size
    return None


def _wave64(file: BinaryIO, end: int) -> Extent | None:
    at = 40
    while at + 24 <= end:
        name, size = _chunk(file, at, "<4s12xQ")
        if name == b"data":
            return _extent(at + 24, max(0, size - 24), end, False, bits=64)
        at += max(24, -(-size // 8) * 8)
    return None


def _begins_wave(file: BinaryIO, at: int) -> bool:
    name, form = _chunk(file, at, "<4s4x4s")
    return name in _RIFF and form == b"WAVE"


def _chunk(file: BinaryIO, at: int, layout: str) -> tuple[bytes, int]:
    size = struct.calcsize(layout)
    try:
        file.seek(at)
        found = file.read(size)
    except (OSError, OverflowError):  # a damaged size leads to where no file has a place
        found = b""
    return struct.unpack(layout, found.ljust(size, b"\0"))


def _extent(offset: int, size: int, end: int, big_endian: bool, bits: int = 32) -> Extent:
    held = max(0, end - offset)
    if size == 0 or (size > held and _is_mark(size, bits)):
        return Extent(offset, None, held, big_endian)
    if bits == 32 and held - size >= _ROUND - _SLACK:  # more than 4 GiB: the true size has the same low 32 bits
        return Extent(offset, None, size + (held - size) // _ROUND * _ROUND, big_endian)
    if held < size <= end and size >= end - _HEADER:  # the header counted itself
        size = held
    return Extent(offset, size, min(size, held), big_endian)


def _is_mark(size: int, bits: int) -> bool:
    """Whether a size is what programs write that do not know it: all ones, or 2 GiB (SoX, arecord), less a header."""
    near = (1 << bits, 1 << (bits - 1), 1 << 31, 1 << 32)
    return any(-(1 << 13) <= size - mark <= 256 for mark in near) or size >= 1 << 62


def _unannounced(file: BinaryIO, extent: Extent, whole: int, end: int) -> Extent:
    """A header that was never brought up to date: behind the samples that it announces no chunk stands, but more.

    Raises ValueError where a second file stands there, or something that cannot be told from samples.
    """
    if extent.announced is None:
        if whole < end - _SLACK or extent.held > _TAIL:
            return extent
        name = _chunk(file, extent.offset, "<4sI")[0]  # size 0, and a chunk behind it: it has no samples
        return extent if not (name.isalnum() and name.islower()) and name != b"LIST" else extent._replace(held=0)
    last = extent.offset + extent.announced
    behind = last + extent.announced % 2
    if any(_begins_wave(file, at) for at in (last, behind, whole, whole + whole % 2)):
        raise ValueError("a second file stands behind its samples")
    if end - behind <= _TAIL or extent.missing:
        return extent
    name, size = _chunk(file, behind, "<4sI")
    if name.isascii() and name.decode("ascii").isprintable() and behind + size <= end:
        return extent
    if whole >= end - _TAIL:
        raise ValueError("what stands behind its samples is neither samples nor a chunk")
    return extent._replace(announced=None, held=end - extent.offset)
