"""Training and dev songs from folders of stems and MUSDB18, which the `data` section of the config names.

`registry.DATASETS` names a function for each dataset; that of the synthesizer is in synthetic/tracks.py. The songs that
are scored in the end are in testsets.py.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ..config import Config
from ..registry import DATASETS, load
from ..util.errors import UserError
from . import musdbhq
from .download import ensure_musdbhq
from .musdb import decode_musdb
from .stems import StemTrack, find_tracks, track_folders
from .tracks import Track, has_both_sides


def train_tracks(config: Config) -> list[Track]:
    """The tracks that `data.dataset` names for training."""
    return _tracks(config, "train")


def dev_tracks(config: Config) -> list[Track]:
    """The tracks of validation, which chooses the best weights; never a test split."""
    return list(filter(has_both_sides, _tracks(config, "dev")))


def _tracks(config: Config, split: str) -> list[Track]:
    return load(DATASETS[config.data.dataset])(config, split)


def stem_tracks(config: Config, split: str) -> list[Track]:
    """Own folders of stems: `data.root` for training, `data.dev_root` for validation."""
    data, key = config.data, "data.root" if split == "train" else "data.dev_root"
    try:
        tracks = find_tracks(data.root if split == "train" else data.dev_root, _cache(config))
    except UserError as error:  # there are two roots, and the sentence shows one path
        raise UserError(f"{key}: {error}") from None
    if split == "train":
        _require_disjoint(tracks, Path(data.dev_root))
    return tracks


def musdb_tracks(config: Config, split: str) -> list[Track]:
    """The compressed MUSDB18, decoded once into `data.musdb_root`."""
    root = config.data.musdb_root
    return musdbhq.musdbhq_tracks(Path(root) / "decoded", split, _cache(config), only=decode_musdb(root))


def musdbhq_tracks(config: Config, split: str) -> list[Track]:
    """MUSDB18-HQ, which is fetched where `data.download` says so."""
    ensure_musdbhq(config.data)
    return musdbhq.musdbhq_tracks(config.data.musdbhq_root, split, _cache(config))


def _cache(config: Config) -> Path | None:
    return Path(config.data.cache_dir) if config.data.cache != "none" else None


def _require_disjoint(tracks: Sequence[StemTrack], dev_root: Path) -> None:
    """Raise UserError if a file of the training tracks is below `dev_root` too: in a folder within the other, or by a
    link. Weights must not be chosen by songs that they were trained on."""
    # Not Path.resolve: a link that leads to itself, be it no song, would end in a RuntimeError.
    train_files = {os.path.realpath(path) for track in tracks for paths in track.stems.values() for path in paths}
    dev_files = {os.path.realpath(path) for folder in track_folders(dev_root) for path in folder.iterdir()}
    if shared := train_files & dev_files:
        raise UserError(
            f"data.root and data.dev_root '{dev_root}' share '{min(shared)}'; keep apart what trains and what decides"
        )
