"""Is it instrument-independent? The same vocals over accompaniments of one instrument family at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..audio import resample
from ..checkpoint import load_weights
from ..data.stems import StemTrack, find_tracks
from ..data.synthetic.song import FAMILIES, make_song
from ..data.synthetic.tracks import SPLITS
from ..util.errors import UserError
from ..util.folders import readable
from .metrics import sdr
from .parallel import parallel_map
from .report import draw_rows, interval, table, write_csv
from .systems import MIXTURE, SILENCE, Model

BALANCE_DB = -3.0  # vocals over accompaniment, for every family the same
SONG_SECONDS = 8.0
RATE = 44100  # Hz, of what is composed here


@dataclass(frozen=True)
class FamilySong:
    """One song: voice number `index` over an accompaniment of one family, composed here or read from a track."""

    family: str
    index: int
    voice: StemTrack | None = None  # None: the synthesizer's voice
    band: StemTrack | None = None  # None: the synthesizer's band

    def waves(self) -> tuple[Tensor, Tensor, int]:
        """Vocals and accompaniment `(2, N)` at the balance that all families have, and their sample rate."""
        rate = int(self.band.source_rate) if self.band else RATE
        seconds = min([SONG_SECONDS, *(t.seconds for t in (self.voice, self.band) if t)])
        if self.voice:
            vocals = loudest(self.voice, "vocals", seconds, rate)
        else:
            vocals = resample(_composed(self.index, FAMILIES, "vocals"), RATE, rate)
        if self.band:
            rest = loudest(self.band, "accompaniment", seconds, rate)
        else:
            rest = _composed(self.index, (self.family,), "accompaniment")
        length = min(vocals.shape[-1], rest.shape[-1])
        vocals, rest = (wave[:, :length].expand(2, -1) for wave in (vocals, rest))
        gain = 10 ** (-BALANCE_DB / 20) * vocals.norm() / rest.norm().clamp_min(1e-9)
        return vocals, rest * gain, rate


def loudest(track: StemTrack, side: str, seconds: float, rate: int) -> Tensor:
    """The loudest stretch `(C, N)` of one side, of those half a length apart: intros are often silent."""
    last = track.seconds - seconds
    starts = np.linspace(0.0, last, math.ceil(2 * last / seconds) + 1)
    return max((track.read(side, start, seconds, rate) for start in starts), key=lambda wave: float(wave.norm()))


def _composed(index: int, families: Sequence[str], side: str) -> Tensor:
    """The same song number has the same chords, tempo and voice, whoever plays."""
    song = make_song(SPLITS["test"], index, SONG_SECONDS, RATE, families=families)
    return torch.from_numpy(getattr(song, side))


def synthetic_parts(songs: int) -> list[FamilySong]:
    """Every synthetic family under the same `songs` voices."""
    return [FamilySong(family, index) for family in FAMILIES for index in range(songs)]


def folder_parts(root: Path, songs: int, vocals: Path | None) -> list[FamilySong]:
    """`<root>/<family>/.../<song>/accompaniment.*`, the first `songs` of each family, under the same voices: those of
    the synthesizer, or of the tracks in `vocals`.

    Raises:
        UserError: not a folder of that kind, or no voices.
    """
    voices = [t for t in find_tracks(vocals, None) if "vocals" in t.stems] if vocals else None
    if voices == []:
        raise UserError(f"nobody sings in '{vocals}': there is no vocals.* in it")
    families: dict[str, list[StemTrack]] = {}
    for track in find_tracks(root, None):
        if "accompaniment" in track.stems and "/" in track.name:
            families.setdefault(readable(track.name.split("/")[0]), []).append(track)
    if not families:
        raise UserError(f"'{root}' is not sorted by family; expected <root>/<family>/<song>/accompaniment.*")
    count = min(songs, *map(len, families.values()))
    return [
        FamilySong(family, index, voices[index % len(voices)] if voices else None, track)
        for family, tracks in families.items()
        for index, track in enumerate(tracks[:count])
    ]


def held_out_of(model: Model) -> tuple[str, ...]:
    """The families that the checkpoint's own config kept out of its training."""
    _, config = load_weights(model.path)
    return config.data.held_out_families if config.data.dataset == "synthetic" else ()


def instruments(parts: Sequence[FamilySong], model: Model, jobs: int) -> dict[str, dict[str, np.ndarray]]:
    """System -> family -> global SDR of the vocals of each song, dB; song i is sung by the same voice in all.

    A song in which nobody sings, or nobody plays in some family, is left out of every family.
    """
    found = parallel_map(partial(_score_song, model=model), parts, jobs, "Instruments")
    silent = {part.index for part, one in zip(parts, found, strict=True) if np.isnan(one[SILENCE])}
    if silent >= {part.index for part in parts}:
        raise UserError("in every one of these songs nobody sings or nobody plays: there is nothing to score")
    sounding = [(part, one) for part, one in zip(parts, found, strict=True) if part.index not in silent]
    return {
        system: {
            family: np.array([one[system] for part, one in sounding if part.family == family])
            for family in dict.fromkeys(part.family for part in parts)
        }
        for system in (SILENCE, MIXTURE, model.name)
    }


def _score_song(part: FamilySong, model: Model) -> dict[str, float]:
    vocals, rest, rate = part.waves()
    if not (vocals.any() and rest.any()):
        return dict.fromkeys((SILENCE, MIXTURE, model.name), math.nan)
    mixture = vocals + rest
    estimate, _ = model.separator().separate(mixture, rate)
    estimates = {SILENCE: torch.zeros_like(vocals), MIXTURE: mixture, model.name: estimate}
    return {system: sdr(vocals, one) for system, one in estimates.items()}


@dataclass(frozen=True)
class Gap:
    """Mean over families of the median SDR, of those seen in training minus those held out, dB, with 95 % interval."""

    value: float
    low: float
    high: float


def gap(scores: dict[str, np.ndarray], held_out: Sequence[str]) -> Gap | None:
    """None where there is nothing to compare. Songs are resampled together, for they share their voices."""
    rows = np.array(list(scores.values()))
    out = np.array([family in held_out for family in scores])
    if out.all() or not out.any():
        return None

    def difference(values: np.ndarray) -> float:
        medians = np.median(values, axis=1)
        return float(medians[~out].mean() - medians[out].mean())

    return Gap(difference(rows), *interval(rows, difference))


def show_scores(
    scores: dict[str, dict[str, np.ndarray]], model: Model, held_out: Sequence[str], wanted: int, output: Path | None
) -> None:
    """Print the table, how many of the `wanted` songs are not in it, and the gap; write instruments.csv and
    instruments.png."""
    own = scores[model.name]
    songs = len(next(iter(own.values())))
    rows = {}
    for family, values in own.items():
        low, high = interval(values[None], lambda drawn: float(np.median(drawn)))
        others = [f"{np.median(scores[system][family]):.2f}" for system in (SILENCE, MIXTURE)]
        seen = "held out" if family in held_out else "seen" if held_out else ""
        rows[family] = [seen, f"{np.median(values):.2f}", f"{low:.2f} .. {high:.2f}", *others]
    title = f"global SDR of the vocals, dB, median of {songs} songs"
    print(table(title, ["training", "model", "95 % interval", *(SILENCE, MIXTURE)], rows))
    if songs < wanted:
        print(
            f"\n{wanted - songs} of {wanted} songs are left out of all families: nobody sings, or nobody plays in one"
        )
    found = gap(own, held_out)
    if found:
        print(f"\nseen minus held out: {found.value:.2f} dB (95 %: {found.low:.2f} .. {found.high:.2f})")
    if output:
        lines = [[f, i, *(f"{scores[s][f][i]:.4f}" for s in scores)] for f in own for i in range(songs)]
        write_csv(output / "instruments.csv", [["family", "song", *scores], *lines])
        draw_rows(output / "instruments.png", own, "global SDR of the vocals, dB", held_out, zero=SILENCE)
