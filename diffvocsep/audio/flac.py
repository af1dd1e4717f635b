"""How many samples a FLAC file announces, and how many its last frame ends at (RFC 9639)."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import NamedTuple

_SEARCHED = 1 << 20  # bytes at the end that hold the last frame, of up to 8 channels of 32 bit
_START = b"fLaC\x00\x00\x00\x22"  # the mark, then STREAMINFO of 34 bytes; or the same as the last block of metadata
_ONLY = b"fLaC\x80\x00\x00\x22"


class Length(NamedTuple):
    """Samples per channel."""

    announced: int  # by all headers: there are several where files were joined
    begins: list[int]  # byte of each header
    held: int | None  # where the last frame ends; None: no frame was found


def measure(path: Path) -> Length:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        totals, begins, block = [], [], 0
        for mark in (_START, _ONLY):
            at = data.find(mark)
            while at >= 0:
                begins.append(at)
                info = data[at + 8 : at + 42]
                totals.append(int.from_bytes(info[13:18], "big") & (1 << 36) - 1)
                block = int.from_bytes(info[2:4], "big")  # the largest; of all frames but the last, where it is fixed
                at = data.find(mark, at + 42)
        tail = data[-min(_SEARCHED, len(data)) :]
    return Length(sum(totals), sorted(begins), _last_frame(tail, block))


def _last_frame(tail: bytes, block: int) -> int | None:
    """Sample at which the last frame in these bytes ends."""
    at = tail.rfind(b"\xff")
    while at >= 0:
        if tail[at + 1 : at + 2] in (b"\xf8", b"\xf9") and (end := _frame_end(tail[at : at + 16], block)) is not None:
            return end
        at = tail.rfind(b"\xff", 0, at)
    return None


def _frame_end(head: bytes, block: int) -> int | None:
    """Where the frame ends whose header begins here (RFC 9639, 9.1); None if its checksum says that none does."""
    if len(head) < 16:
        head = head.ljust(16, b"\0")
    size_code, rate_code = head[2] >> 4, head[2] & 15
    if size_code == 0 or rate_code == 15 or head[3] >> 4 > 10 or head[3] & 1:
        return None
    ones = f"{head[4]:08b}".index("0") if head[4] != 0xFF else 8  # the number is coded as a character of UTF-8
    if ones == 1 or ones == 8:
        return None
    length = max(1, ones)
    number = head[4] & (0x7F if ones == 0 else (1 << (7 - ones)) - 1)
    for byte in head[5 : 4 + length]:
        number = number << 6 | byte & 0x3F
    at = 4 + length
    if size_code in (6, 7):
        size = int.from_bytes(head[at : at + size_code - 5], "big") + 1
        at += size_code - 5
    else:
        size = 192 if size_code == 1 else 576 << size_code - 2 if size_code < 6 else 256 << size_code - 8
    at += {12: 1, 13: 2, 14: 2}.get(rate_code, 0)
    if _crc8(head[:at]) != head[at]:
        return None
    return number + size if head[1] & 1 else number * block + size


def _crc8(data: bytes) -> int:
    crc = 0
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc << 1 ^ 0x107 if crc & 0x80 else crc << 1
    return crc
