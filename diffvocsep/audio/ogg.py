"""The pages of an Ogg file (RFC 3533): whether one is missing, damaged or cut, and how long each of its links is.

A page has a checksum, a number that counts up in its stream, and the time (granule position) at its end. Nothing
announces the length; a page marked as the last says that the stream is whole.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

from .ogg_packets import Stream

_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_FIRST, _LAST = 2, 4  # flags of a page
_SKELETON = b"fishead\0"  # a stream that only describes the others


class Page(NamedTuple):
    """One page, as it stands in the file."""

    head: bytes  # 27 bytes
    table: bytes
    body: bytes
    flags: int
    granule: int
    serial: int
    count: int

    @property
    def broken(self) -> bool:
        return checksum(self.head + self.table + self.body) != int.from_bytes(self.head[22:26], "little")

    def moved(self, granule: int) -> bytes:
        """The page with another time."""
        page = self.head[:6] + struct.pack("<q", granule) + self.head[14:] + self.table + self.body
        return page[:22] + checksum(page).to_bytes(4, "little") + page[26:]


@dataclass
class Pages:
    """What a walk found."""

    links: int = 0  # groups of streams that follow each other ("chained")
    sounds: list[Stream] = field(default_factory=list)  # Vorbis and Opus, of all links
    others: int = 0  # streams of another kind: Speex, FLAC, pictures
    last: int = 0  # granule position of the last page
    ended: bool = False  # the last page of each stream is marked as such
    hole: int | None = None  # granule position before the first page that is missing or damaged
    cut: bool = False  # the file ends within a page


def checksum(page: bytes) -> int:
    """CRC-32 of a page, its checksum taken as 0 (RFC 3533, 6: polynomial 0x04c11db7, not reflected, from 0).

    zlib's is the reflected one, of reflected bits the same.
    """
    reflected = zlib.crc32((page[:22] + bytes(4) + page[26:]).translate(_REVERSED), 0xFFFF_FFFF) ^ 0xFFFF_FFFF
    return int(f"{reflected:032b}"[::-1], 2)


def walk(path: Path) -> Pages:
    """Read all pages, a few kB each."""
    found, counts, opened, streams = Pages(), {}, set(), {}
    with path.open("rb") as file:
        while page := _read(file, found, bool(opened)):
            serial = page.serial
            if page.flags & _FIRST and not page.broken:
                found.links += not opened
                opened.add(serial)
                counts[serial] = page.count - 1
                _open(page, streams, found)
            if page.broken or page.count != counts.get(serial, -1) + 1:
                found.hole = found.last
                break
            counts[serial] = page.count
            if serial in streams and not page.flags & _FIRST:
                streams[serial].add(page.flags, page.granule, page.table, page.body)
            if page.granule > 0:
                found.last = page.granule
            if page.flags & _LAST:
                opened.discard(serial)
    found.ended = not opened
    return found


def renumber(path: Path, target: Path) -> list[int]:
    """Write `path` to `target`, its Vorbis or Opus with the times that its packets have, which begin at 0 in each link;
    returns the byte at which each link begins.

    Raises:
        OSError: there is no room.
    """
    streams, begins, beginning = {}, [], False
    with path.open("rb") as file, target.open("wb") as out:
        while page := _read(file, Pages(), False):
            if page.flags & _FIRST:
                if not beginning:
                    begins.append(out.tell())
                _open(page, streams, Pages())
            beginning, time = bool(page.flags & _FIRST), page.granule
            if page.serial in streams:
                stream = streams[page.serial]
                sounds = not beginning and stream.add(page.flags, time, page.table, page.body)
                time = stream.held if sounds else min(time, 0)
            out.write(page.moved(time))
    return begins


def _open(page: Page, streams: dict[int, Stream], found: Pages) -> None:
    streams.pop(page.serial, None)
    if Stream.begins(page.body):
        streams[page.serial] = Stream(page.body)
        found.sounds.append(streams[page.serial])
    elif not page.body.startswith(_SKELETON):
        found.others += 1


def _read(file: BinaryIO, found: Pages, within: bool) -> Page | None:
    """The next page; None at the end and where there is none, which is damage `within` a stream."""
    head = file.read(27)
    if not head:
        return None
    if head[:4] != b"OggS":
        if within and head.strip(b"\0"):
            rest = head + file.read(1 << 16)
            found.hole = found.last if b"OggS" in rest or len(rest) > 1 << 16 else None
            found.cut = found.hole is None
        elif within:
            found.hole = found.last
        return None
    table = file.read(head[26]) if len(head) == 27 else b""
    body = file.read(sum(table))
    if len(head) < 27 or len(table) < head[26] or len(body) < sum(table):
        found.cut = True
        return None
    return Page(head, table, body, *struct.unpack("<BqII", head[5:22]))
