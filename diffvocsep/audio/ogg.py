"""The pages of an Ogg file (RFC 3533): whether one is missing, damaged or cut, and how long each of its links is.

A page has a checksum, a number that counts up in its stream, and the time (granule position) at its end. Nothing
announces the length; a page marked as the last says that the stream is whole.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_FIRST, _LAST = 2, 4  # flags of a page


@dataclass
class Pages:
    """What a walk found."""

    links: int = 0  # groups of streams that follow each other ("chained")
    first: int = 0  # granule position of the first page with sound
    last: int = 0  # and of the last page
    total: int = 0  # sum of the last ones of all links
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
    found, counts, opened, sounding = Pages(), {}, set(), False
    with path.open("rb") as file:
        while head := file.read(27):
            if head[:4] != b"OggS":
                if opened and head.strip(b"\0"):
                    rest = head + file.read(1 << 16)
                    found.hole = found.last if b"OggS" in rest or len(rest) > 1 << 16 else None
                    found.cut = found.hole is None
                elif opened:
                    found.hole = found.last
                break
            table = file.read(head[26]) if len(head) == 27 else b""
            body = file.read(sum(table))
            if len(head) < 27 or len(table) < head[26] or len(body) < sum(table):
                found.cut = True
                break
            flags, granule, serial, count = struct.unpack("<BqII", head[5:22])
            broken = checksum(head + table + body) != int.from_bytes(head[22:26], "little")
            if flags & _FIRST and not broken:
                if not opened:
                    found.links += 1
                    found.total += found.last
                opened.add(serial)
                counts[serial] = count - 1
            if broken or count != counts.get(serial, -1) + 1:
                found.hole = found.last
                break
            counts[serial] = count
            if granule > 0:
                found.first = found.first if sounding else granule
                found.last, sounding = granule, True
            if flags & _LAST:
                opened.discard(serial)
    found.ended, found.total = not opened, found.total + found.last
    return found
