"""Audio files and sample rates: read, write and resample, whole or as a stream of blocks in constant memory.

A waveform is a float32 tensor `(C, N)` on the CPU, full scale at 1.0. Nothing here clips or rescales it: float files
keep peaks above 1.0, and formats that cannot hold such a peak refuse it.

reader.py, writer.py      an audio file as blocks of samples
input_formats.py          which files are songs, and what ffmpeg may open; songs.py: the songs of a folder
output_formats.py         the formats to write, and what each can hold
probe.py                  how a file is opened, by what containers.py, flac.py, mpeg.py, ogg.py (ogg_packets.py),
                          rare_formats.py and concatenated.py find in it; else by ffmpeg.py (elementary_streams.py)
resampling.py, rumble.py  sample rates; what lies below 20 Hz
channel_layout.py         which loudspeaker each channel is for; channel_groups.py: songs of many channels
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .reader import AudioReader, read
    from .resampling import rechunk, resample, resample_blocks
    from .writer import AudioWriter, write

__all__ = ["AudioReader", "AudioWriter", "read", "rechunk", "resample", "resample_blocks", "write"]
_HOMES = {"reader": ("AudioReader", "read"), "resampling": ("rechunk", "resample", "resample_blocks"),
          "writer": ("AudioWriter", "write")}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Whoever asks for a name waits for torch; who only looks which files are songs, does not."""
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f".{module}", __name__), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
