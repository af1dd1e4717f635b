"""Scores of every song by every system, kept in files as they come, so that an interrupted run goes on.

`<output>/scores/<system>/<song>.json` holds the numbers of one song and a key made of all they depend on;
`<output>/museval/<system>/test/<song>.json` is what `museval.EvalStore` reads.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor

from ..util.atomic import write_atomic
from . import museval_scores, systems
from .clips import Clip, Excerpt
from .metrics import BEYOND_SDR, beyond_sdr, sdr, si_sdr
from .parallel import parallel_map

TARGETS = ("vocals", "accompaniment")
METRICS = ("global SDR", "SI-SDR", *museval_scores.NAMES)  # dB
COLUMNS = (*METRICS, *BEYOND_SDR)
WITHOUT_FRAMES = (systems.SILENCE, systems.UNTRAINED)  # museval has no score for silence


@dataclass(frozen=True)
class Score:
    """One song by one system: target -> metric -> score (NaN: none), and how many frames museval gives no
    scores, because a source or an estimate is silent in them."""

    clip: str
    system: str
    targets: dict[str, dict[str, float]]
    frames: int
    silent_frames: int
    silent: bool


def systems_of(model: systems.Model) -> list[str]:
    """The rows of the table."""
    return [systems.SILENCE, systems.MIXTURE, systems.UNTRAINED, *systems.CEILINGS, model.name]


def score(
    excerpts: Sequence[Excerpt], model: systems.Model, output: Path | None, jobs: int, frames: bool
) -> list[Score]:
    """Every song by every system, in the order of the songs; `frames`: with museval's scores."""
    if output and frames:
        _delete_others(output / "museval", {f"{file_name(excerpt.name)}.json" for excerpt in excerpts})
    work = partial(_score_song, model=model, fingerprint=model.fingerprint(), output=output, frames=frames)
    return [one for song in parallel_map(work, excerpts, jobs, "Scoring") for one in song]


def _delete_others(museval: Path, names: set[str]) -> None:
    """Delete what earlier runs left of other songs and clips: `museval.EvalStore` would count them in."""
    for system in (systems.MIXTURE, *systems.CEILINGS, "model"):
        for path in (museval / system / "test").glob("*.json"):
            if path.name not in names:
                path.unlink()


def _score_song(
    excerpt: Excerpt, model: systems.Model, fingerprint: str, output: Path | None, frames: bool
) -> list[Score]:
    """One song; what an earlier run has left in `output` is not computed again."""
    found, clip = [], None
    for system in systems_of(model):
        own = fingerprint if system in (systems.UNTRAINED, model.name) else ""
        with_frames = frames and system not in WITHOUT_FRAMES
        key = _key(excerpt, system, own, museval_scores.available() if with_frames else None)
        folder = "model" if system == model.name else system
        name = file_name(excerpt.name)
        record = output / "scores" / folder / f"{name}.json" if output else None
        museval_file = output / "museval" / folder / "test" / f"{name}.json" if output and with_frames else None
        one = _read(record, key) if record else None
        if one is None or (museval_file and not museval_file.exists()):
            if system == systems.TRUE_ACCOMPANIMENT and "mixture" not in excerpt.track.stems:
                continue  # it is exact
            clip = clip or excerpt.read()
            one = score_clip(clip, system, model, with_frames, museval_file)
            if record:
                text = json.dumps({"key": key, **asdict(one)}, indent=1, ensure_ascii=False)
                write_atomic(record, lambda part, text=text: part.write_text(text, encoding="utf-8"))
        found.append(one)
    return found


def score_clip(clip: Clip, system: str, model: systems.Model | None, frames: bool, museval_file: Path | None) -> Score:
    """The numbers of one clip; with `museval_file`, those of its frames are written there."""
    references = dict(zip(TARGETS, (clip.vocals, clip.accompaniment), strict=True))
    estimates = dict(zip(TARGETS, systems.estimate(system, clip, model), strict=True))
    targets = {
        target: {
            "global SDR": sdr(references[target], estimates[target]),
            "SI-SDR": si_sdr(references[target], estimates[target]),
            **beyond_sdr(clip.mixture, references[target], estimates[target], clip.sample_rate),
        }
        for target in TARGETS
    }
    if frames:
        by_frame = museval_scores.bsseval(references, estimates, clip.sample_rate)
        if museval_file:
            museval_scores.write_track(museval_file, by_frame)
        for target, values in by_frame.items():
            targets[target] |= {name: museval_scores.median_of_frames(value) for name, value in values.items()}
    silent = silent_seconds(references.values(), estimates.values(), clip.sample_rate)
    return Score(clip.name, system, targets, len(silent), sum(silent), not clip.vocals.any())


def silent_seconds(references: Iterable[Tensor], estimates: Iterable[Tensor], sample_rate: int) -> list[bool]:
    """Which seconds museval gives no scores: a source (as 16 bit) or an estimate is silent in them."""
    waves = [wave.sum(0) for wave in (*((wave * 2**15).round() for wave in references), *estimates)]
    count = max(1, len(waves[0]) // sample_rate)  # museval leaves out the rest of a second
    return [any(not wave[i * sample_rate :][:sample_rate].any() for wave in waves) for i in range(count)]


def medians(scores: Sequence[Score], system: str, target: str) -> dict[str, np.ndarray]:
    """Metric -> the scores of all songs that have one."""
    own = [one.targets[target] for one in scores if one.system == system]
    columns = {name: np.array([values.get(name, np.nan) for values in own]) for name in COLUMNS}
    return {name: column[np.isfinite(column)] for name, column in columns.items()}


def result_rows(scores: Sequence[Score]) -> Iterator[list[object]]:
    """The rows of results.csv, its header first."""
    yield ["clip", "system", "target", *COLUMNS, "frames", "frames without a score"]
    for one in scores:
        for target, values in one.targets.items():
            numbers = [values.get(name, np.nan) for name in COLUMNS]
            yield [one.clip, one.system, target, *(f"{n:.5f}" for n in numbers), one.frames, one.silent_frames]


def file_name(name: str) -> str:
    """A song's name as that of a file: folders are joined, what Windows forbids is replaced, what is too long is cut,
    and so is what the file system cannot spell. Where that changes it, a hash keeps different songs apart."""
    plain = re.sub(r'[<>:"|?*\\]', "_", name.replace("/", " - ")).strip(" .")
    coding = sys.getfilesystemencoding()  # of LC_ALL=POSIX it is ASCII
    plain = plain.encode(coding, "ignore")[:180].decode(coding, "ignore")
    return plain if plain == name else f"{plain} {hashlib.sha256(name.encode()).hexdigest()[:8]}".strip()


def _key(excerpt: Excerpt, system: str, fingerprint: str, version: str | None) -> str:
    text = json.dumps([COLUMNS, excerpt.identity(), system, fingerprint, version])
    return hashlib.sha256(text.encode()).hexdigest()


def _read(record: Path, key: str) -> Score | None:
    """What an earlier run left for exactly this question."""
    try:
        values = json.loads(record.read_text(encoding="utf-8"))
        return Score(**values) if values.pop("key") == key else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
