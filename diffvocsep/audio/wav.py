"""Streaming WAV files of any length: RIFF/WAVE up to 4 GiB, RF64 beyond.

More than two channels whose places are known get WAVE_FORMAT_EXTENSIBLE with its mask. The header has the same length
in both forms, so the decision falls at the end, when the length is known: a "JUNK" chunk holds the place of the "ds64"
chunk with its 64-bit sizes (EBU Tech 3306, "RF64: an extended file format for audio").
libsndfile is not used here because it decides at the start, and stamps the time of writing into float files, so that
the same samples never give the same bytes.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

_EXTENSIBLE = 0xFFFE
_GUID = bytes.fromhex("000000001000800000aa00389b71")  # behind the tag of the encoding, in an extensible header
_ENCODINGS = {"float": (3, 4), "pcm16": (1, 2), "pcm24": (1, 3)}  # WAVE format tag, bytes per sample
_HEADER = 92  # bytes; 24 more where a mask says which loudspeaker a channel is for
_UNKNOWN = 0xFFFF_FFFF  # a 32-bit size whose true value stands in the ds64 chunk


def data_size(subtype: str, channels: int, frames: int) -> int:
    """Bytes that `frames` samples per channel take, without the header."""
    return frames * channels * _ENCODINGS[subtype][1]


def header(subtype: str, sample_rate: int, channels: int, frames: int, mask: int = 0) -> bytes:
    """What stands before the samples. `sample_rate` in Hz, `frames` in samples per channel, `mask`: channel_layout."""
    tag, width = _ENCODINGS[subtype]
    frame, size = channels * width, data_size(subtype, channels, frames)
    extension = struct.pack("<HHIH", 22, 8 * width, mask, tag) + _GUID if mask else b""
    total = _HEADER - 8 + len(extension) + size + size % 2  # chunks have an even length, an odd one is padded
    layout = (_EXTENSIBLE if mask else tag, channels, sample_rate, sample_rate * frame % (1 << 32), frame, 8 * width)
    fmt = struct.pack("<4sIHHIIHH", b"fmt ", 16 + len(extension), *layout) + extension
    if total < _UNKNOWN:
        start = struct.pack("<4sI4s4sI28x", b"RIFF", total, b"WAVE", b"JUNK", 28)
    else:
        start = struct.pack("<4sI4s4sIQQQI", b"RF64", _UNKNOWN, b"WAVE", b"ds64", 28, total, size, frames, 0)
        frames, size = min(frames, _UNKNOWN), _UNKNOWN
    return start + fmt + struct.pack("<4sII4sI", b"fact", 4, frames, b"data", size)


class WavSink:
    """Write float32 blocks `(n, C)` in [-1, 1] (any range for "float") to `path`. Raises OSError."""

    def __init__(self, path: Path, sample_rate: int, channels: int, subtype: str, mask: int = 0) -> None:
        self._layout, self._mask = (subtype, sample_rate, channels), mask
        self._frames = 0
        self._file = path.open("wb")
        self._file.write(header(*self._layout, frames=0, mask=mask))

    def write(self, block: np.ndarray) -> None:
        """Append a block; PCM is rounded to nearest, and 1.0 becomes the largest integer."""
        width = _ENCODINGS[self._layout[0]][1]
        if self._layout[0] == "float":
            samples = block.astype("<f4")
        else:
            full_scale = 1 << (8 * width - 1)
            samples = np.rint(block * np.float32(full_scale)).clip(-full_scale, full_scale - 1).astype("<i4")
            # The low bytes of a little-endian 32-bit integer are the same number in 16 or 24 bits.
            samples = samples.view(np.uint8).reshape(-1, 4)[:, :width]
        self._file.write(samples.tobytes())
        self._frames += len(block)

    def write_bytes(self, samples: bytes) -> int:
        """Append whole frames that are encoded already; returns how many they are."""
        self._file.write(samples)
        count = len(samples) // data_size(self._layout[0], self._layout[2], 1)
        self._frames += count
        return count

    def write_silence(self, frames: int) -> None:
        block = 1 << 16
        for start in range(0, frames, block):
            self.write_bytes(bytes(data_size(self._layout[0], self._layout[2], min(block, frames - start))))

    def close(self) -> None:
        """Complete the header and close the file."""
        subtype, _, channels = self._layout
        with self._file:
            self._file.write(bytes(data_size(subtype, channels, self._frames) % 2))
            self._file.seek(0)
            self._file.write(header(*self._layout, frames=self._frames, mask=self._mask))
