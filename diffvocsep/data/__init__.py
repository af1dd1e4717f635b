"""Where songs come from (sources.py: a synthesizer, folders of stems, MUSDB18), and how they become batches."""

from __future__ import annotations

from .mixing import Segments, Track
from .sources import dev_tracks, train_tracks

__all__ = ["Segments", "Track", "dev_tracks", "train_tracks"]
