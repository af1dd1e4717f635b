"""Where songs come from: a synthesizer, folders of stems, MUSDB18."""

from __future__ import annotations

from pathlib import Path

from ..config import Config
from ..errors import UserError
from .mixing import Segments, Track

__all__ = ["Segments", "Track", "dev_tracks", "train_tracks"]


def train_tracks(config: Config) -> list[Track]:
    """The tracks that `data.dataset` names for training."""
    return _tracks(config, "train")


def dev_tracks(config: Config) -> list[Track]:
    """The tracks that decide (stopping, best weights); never a test split."""
    return [t for t in _tracks(config, "dev") if {"vocals", "accompaniment"} <= set(t.stems)]


def _tracks(config: Config, split: str) -> list[Track]:
    data = config.data
    cache = Path(data.cache_dir) if data.cache != "none" else None
    if data.dataset == "synthetic":
        from .synthetic_tracks import synthetic_tracks

        return synthetic_tracks(config, split)
    if data.dataset == "stems":
        from .stems import find_tracks, track_folders

        root, dev_root = Path(data.root), Path(data.dev_root)
        one, other = root.resolve(), dev_root.resolve()
        if one.is_relative_to(other) or other.is_relative_to(one):
            raise UserError(
                f"data.root '{root}' and data.dev_root '{dev_root}' share songs; keep apart what trains and decides"
            )
        both = {f.resolve() for f in track_folders(root)} & {f.resolve() for f in track_folders(dev_root)}
        if both:  # by a link
            raise UserError(
                f"data.root and data.dev_root share the song '{min(both)}'; keep apart what trains and decides"
            )
        return find_tracks(root if split == "train" else dev_root, cache)
    from .musdbhq import musdbhq_tracks

    if data.dataset == "musdbhq":
        from .download import provide

        provide(data)
        return musdbhq_tracks(data.musdbhq_root, split, cache)
    from .musdb import decoded

    return musdbhq_tracks(Path(data.musdb_root) / "decoded", split, cache, only=decoded(data.musdb_root))
