"""Where songs come from (sources.py: a synthesizer, folders of stems, MUSDB18), and how they become batches."""

from __future__ import annotations

from .mixing import Segments
from .sources import dev_tracks, train_tracks
from .tracks import Track

__all__ = ["Segments", "Track", "dev_tracks", "train_tracks"]
