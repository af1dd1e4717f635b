"""The frames of an MP3 (or MP2) file, walked one by one: how much sound it holds, whatever its header says.

A frame begins with 11 ones and tells its own length (ISO/IEC 11172-3, 2.4.2.3). Encoders put a frame of numbers before
the first, marked "Xing", "Info" or "VBRI", which announces how many follow. Files joined byte by byte have several.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass, field
from pathlib import Path

_BITRATES = {  # kbit/s by (MPEG-1?, layer)
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}  # Hz, by the version's bits


@dataclass
class Frames:
    """What a walk found."""

    seconds: float = 0.0  # of sound, without the frames of numbers
    count: int = 0
    announced: list[int] = field(default_factory=list)  # frames, by each frame of numbers; -1: it does not say
    trimmed: float = 0.0  # s of them that are delay and padding of the encoder
    headers: int = 0  # frames of numbers
    end: int = 0  # byte behind the last frame
    cut: bool = False  # the file ends within one


def walk(path: Path) -> Frames:
    """Count the frames of a file; what stands between them is passed over, as players do."""
    found = Frames()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at, end, sure = _behind_tag(data, 0), len(data), False
        while at + 4 <= end:
            frame = _frame(data, at)
            if frame is None or not (sure or _leads_on(data, at + frame[0])):
                sure = False
                at = _behind_tag(data, at) if data[at : at + 3] == b"ID3" else data.find(b"\xff", at + 1)
                if at < 0:
                    break
                continue
            size, samples, rate = frame
            if at + size > end:  # its last bytes are missing
                found.cut = sure
                break
            sure = True
            numbers = _numbers(data, at)
            if numbers is None:
                found.count += 1
                found.seconds += samples / rate
            else:
                found.headers += 1
                found.announced.append(numbers[0])
                found.trimmed += numbers[1] / rate
            at = found.end = at + size
    return found


def begins(path: Path) -> bool:
    """Whether the file begins with a frame, behind a tag or not."""
    if path.stat().st_size == 0:
        return False
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at = _behind_tag(data, 0)
        frame = _frame(data, at)
        return frame is not None and _leads_on(data, at + frame[0])


def _frame(data: mmap.mmap, at: int) -> tuple[int, int, int] | None:
    """Bytes, samples and rate of the frame that begins at `at`, if one does."""
    head = data[at : at + 4]
    if len(head) < 4 or head[0] != 0xFF or head[1] < 0xE0:
        return None
    version, layer, index = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3), head[2] >> 4
    if version == 1 or layer == 4 or index in (0, 15) or head[2] >> 2 & 3 == 3:
        return None
    rate = _RATES[version][head[2] >> 2 & 3]
    bits = _BITRATES[version == 3, layer][index - 1] * 1000
    padding = head[2] >> 1 & 1
    if layer == 1:
        return (12 * bits // rate + padding) * 4, 384, rate
    samples = 576 if layer == 3 and version != 3 else 1152
    return samples * bits // 8 // rate + padding, samples, rate


def _leads_on(data: mmap.mmap, at: int) -> bool:
    """Whether a frame begins at `at` too, or the file ends: four bytes alone may look like a frame by chance."""
    return at == len(data) or _frame(data, at) is not None


def _numbers(data: mmap.mmap, at: int) -> tuple[int, int] | None:
    """How many frames the frame of numbers at `at` announces (-1: it does not say), and how many samples of them are
    delay and padding (LAME's extension); None for a frame of sound."""
    head = data[at : at + 192]
    if head[36:40] == b"VBRI":
        return int.from_bytes(head[50:54], "big"), 0
    mono, mpeg1 = head[3] >> 6 == 3, head[1] >> 3 & 3 == 3
    side = (17 if mono else 32) if mpeg1 else (9 if mono else 17)  # bytes of side information
    for skip in (4, 6):  # without and with a checksum
        tag = head[skip + side :]
        if tag[:4] in (b"Xing", b"Info"):
            trim = int.from_bytes(tag[141:144], "big") if tag[120:123] in (b"LAM", b"Lav") else 0
            return int.from_bytes(tag[8:12], "big") if tag[7] & 1 else -1, (trim >> 12) + (trim & 0xFFF)
    return None


def _behind_tag(data: mmap.mmap, at: int) -> int:
    """Behind the ID3v2 tags at `at`: "ID3", version (2), flags (1), then the size in 4 bytes of 7 bits."""
    while data[at : at + 3] == b"ID3" and at + 10 <= len(data):
        size = sum((byte & 127) << shift for byte, shift in zip(data[at + 6 : at + 10], (21, 14, 7, 0), strict=True))
        at += 10 + size
    return at
