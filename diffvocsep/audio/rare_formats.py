"""Rare formats, each with its own way to say how long it is: what the header announces against what the file holds.

Where libsndfile reads one, its log tells what the header says.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

_FRAMES = re.compile(r"\b(?:Frames|Samples|Sample Count|Cols)\s*: (\d+)$", re.M)  # AVR, MPC2K, HTK, MAT4, MAT5
_CORRECTED = [  # announced, held
    re.compile(r"(?:data|body).*?(\d+) \(?should be (\d+)", re.I),  # 8SVX, WVE
    re.compile(r"truncated\. +(?=\d+ <--> (\d+))(\d+)"),  # MAT4
]
_NIST = re.compile(rb"^sample_count -i (\d+)", re.M)
_VOC = b"Creative Voice File\x1a"


def announced_frames(path: Path, frames: int, log: str) -> float:
    """Samples that the header of a file announces of which libsndfile found `frames`, going by its `log`.

    libsndfile corrects a size that reaches beyond the end of the file, and goes on in silence.
    """
    shares = [int(one) / max(1, int(other)) for pattern in _CORRECTED for one, other in pattern.findall(log)]
    with path.open("rb") as file:
        counts = [*_FRAMES.findall(log), *_NIST.findall(file.read(1024))]
    return max([frames, *(frames * share for share in shares), *map(float, counts)])


class Blocks(NamedTuple):
    """The blocks of a VOC file."""

    sounds: int  # that hold samples
    bytes: int  # of samples that are there
    missing: int  # bytes that the last block announces and the file does not hold
    end: int  # byte behind the last block


def voc_blocks(path: Path) -> Blocks | None:
    """Walk the blocks of a VOC file (type, size in 3 bytes, content; 0 ends them); None for another file."""
    end, sounds, held = path.stat().st_size, 0, 0
    with path.open("rb") as file:
        head = file.read(26)
        if head[:20] != _VOC or len(head) < 26:
            return None
        at = int.from_bytes(head[20:22], "little")
        while at + 4 <= end:
            file.seek(at)
            block = file.read(4)
            if block[0] == 0:
                break
            size, content = int.from_bytes(block[1:], "little"), {1: 2, 2: 0, 9: 12}.get(block[0])
            if content is not None:
                sounds += 1
                held += max(0, min(size, end - at - 4) - content)
            at += 4 + size
        return Blocks(sounds, held, max(0, at - end), min(at + 1, end))
