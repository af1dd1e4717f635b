"""Elementary streams (AAC, AC-3, DTS, ...): frames in a row, without a header for the whole. Each frame tells its own
length, so all that can be seen of an end that was cut away is whether the last frame is whole."""

from __future__ import annotations

from pathlib import Path

from . import mpeg

# kbit/s by the code of ATSC A/52, table 5.18
_AC3 = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512, 576, 640)


def ends_within_frame(path: Path, codec: str, last: int) -> bool:
    """Whether the frame of `codec`, by ffmpeg's name, that begins at byte `last` reaches beyond the end of the file."""
    if codec in ("mp1", "mp2", "mp3"):
        return mpeg.walk(path).cut
    with path.open("rb") as file:
        file.seek(last)
        head = file.read(8)
    return len(head) == 8 and last + _length(codec, head) > path.stat().st_size


def begins_gsm(path: Path) -> bool:
    """Whether a file begins with frames of GSM full rate (RFC 3551, 4.5.8.1), which ffmpeg goes by the name for."""
    with path.open("rb") as file:
        marks = file.read(33 * 8)[::33]
    return len(marks) > 0 and all(byte >> 4 == 0xD for byte in marks)


def _length(codec: str, head: bytes) -> int:
    """Bytes of the frame; 0 where it is none that is known."""
    word = int.from_bytes(head, "big")  # of 64 bits
    if codec == "aac" and word >> 52 == 0xFFF:  # ADTS (ISO/IEC 13818-7, 6.2)
        return word >> 21 & 0x1FFF
    if codec == "eac3" and word >> 48 == 0x0B77:  # (ATSC A/52, E.1.2)
        return 2 * ((word >> 32 & 0x7FF) + 1)
    if codec == "ac3" and word >> 48 == 0x0B77:
        rate, code = word >> 30 & 3, word >> 24 & 63
        if rate == 3 or code >= 2 * len(_AC3):
            return 0
        kbits = _AC3[code // 2]
        return 2 * (2 * kbits, 320 * kbits // 147 + code % 2, 3 * kbits)[rate]
    if codec == "dts" and word >> 32 == 0x7FFE8001:  # (ETSI TS 102 114, 5.3)
        return (word >> 4 & 0x3FFF) + 1
    return 0
