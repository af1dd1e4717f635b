"""Where songs come from: a synthesizer, folders of stems, MUSDB18."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..config import Config
from ..util.errors import UserError
from .download import provide
from .mixing import Track
from .musdb import decoded
from .musdbhq import musdbhq_tracks
from .stems import StemTrack, find_tracks, track_folders
from .synthetic.tracks import synthetic_tracks


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
        return synthetic_tracks(config, split)
    if data.dataset == "stems":
        tracks = find_tracks(data.root if split == "train" else data.dev_root, cache)
        if split == "train":
            _keep_apart(tracks, Path(data.dev_root))
        return tracks
    if data.dataset == "musdbhq":
        provide(data)
        return musdbhq_tracks(data.musdbhq_root, split, cache)
    return musdbhq_tracks(Path(data.musdb_root) / "decoded", split, cache, only=decoded(data.musdb_root))


def _keep_apart(tracks: Sequence[StemTrack], dev_root: Path) -> None:
    """Raise UserError if a file of the training tracks is below `dev_root` too: in a folder within the other, or by a
    link. Weights must not be chosen by songs that they were trained on."""
    trains = {path.resolve() for track in tracks for paths in track.stems.values() for path in paths}
    decides = {path.resolve() for folder in track_folders(dev_root) for path in folder.iterdir()}
    if shared := trains & decides:
        raise UserError(
            f"data.root and data.dev_root '{dev_root}' share '{min(shared)}'; keep apart what trains and what decides"
        )
