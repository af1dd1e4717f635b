"""Where songs come from, and how they become batches.

sources.py     training and dev songs: synthetic/, folders of stems (stems.py), MUSDB18 (musdb.py, musdbhq.py,
               download.py); testsets.py: songs to score
mixing.py      which voice is mixed over which music; augment.py and voice_effects.py alter them
loader.py      batches, from loader processes or the GPU's memory (device_cache.py)
check.py, pack.py    programs: what is wrong with a dataset; a smaller copy of one
"""

from __future__ import annotations

from .mixing import Segments
from .sources import dev_tracks, train_tracks
from .tracks import Track

__all__ = ["Segments", "Track", "dev_tracks", "train_tracks"]
