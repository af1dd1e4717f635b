"""Audio files and sample rates: read, write and resample, whole or as a stream of blocks in constant memory.

A waveform is a float32 tensor `(C, N)` on the CPU, full scale at 1.0. Nothing here clips or rescales it: float files
keep peaks above 1.0, and formats that cannot hold such a peak refuse it.
"""

from __future__ import annotations

from .reader import AudioReader, read
from .resampling import rechunk, resample, resample_blocks
from .writer import AudioWriter, write

__all__ = ["AudioReader", "AudioWriter", "read", "rechunk", "resample", "resample_blocks", "write"]
