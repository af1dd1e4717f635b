"""Tables of scores: a model beside silence, the mixture and the untrained network; and the ceilings of the method."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from tqdm.auto import tqdm

from .atomic import write_atomic
from .checkpoint import load_model
from .config import AudioConfig, Config
from .counterfactual import extend_band, subtract
from .data.mixing import Track
from .data.stems import find_tracks
from .data.synthetic_tracks import synthetic_tracks
from .device import resolve_device
from .errors import UserError
from .metrics import sdr
from .separator import Separator
from .spectrogram import STFT, TRUSTED, make_representation, modelled_bins
from .unet import UNet

Scores = dict[str, list[float]]  # name of a row -> one score per clip, dB


@dataclass(frozen=True)
class Clip:
    """One stretch of a song: waveforms `(C, N)` at the file's own sample rate."""

    name: str
    mixture: Tensor
    vocals: Tensor
    accompaniment: Tensor
    sample_rate: int


def test_clips(dataset: str, root: Path | None, seconds: float) -> list[Clip]:
    """The clips of a dataset: the unseen songs of the synthesizer, or every track of a folder with both sides.

    A track is cut into stretches of `seconds` (the rest is dropped), or taken whole with 0. The mixture is
    `mixture.*` where the folder has one, else the sum of the sides. Stretches without vocals are left out: no SDR is
    defined for them.
    """
    if dataset == "synthetic":
        tracks: Sequence[Track] = synthetic_tracks(Config(), "test")
    else:
        tracks = [t for t in find_tracks(root, None) if {"vocals", "accompaniment"} <= set(t.stems)]
        if not tracks:
            raise UserError(f"no track in '{root}' has both vocals and accompaniment")
    clips = []
    for track in tracks:
        rate, length = int(track.source_rate), min(seconds or track.seconds, track.seconds)
        starts = [i * length for i in range(max(1, int(track.seconds / length + 1e-6)))]
        for start in starts:
            vocals, rest = (track.read(side, start, length, rate) for side in ("vocals", "accompaniment"))
            channels = max(len(vocals), len(rest))
            vocals, rest = vocals.expand(channels, -1), rest.expand(channels, -1)
            mixture = track.read("mixture", start, length, rate) if "mixture" in track.stems else vocals + rest
            if vocals.any():
                name = track.name + (f" at {start:g} s" if len(starts) > 1 else "")
                clips.append(Clip(name, mixture, vocals, rest, rate))
    if not clips:
        raise UserError(f"nobody sings in the tracks of '{root}': there is nothing to score")
    return clips


def score_table(model_path: Path, clips: Sequence[Clip], device: str, overrides: Sequence[str]) -> Scores:
    """Global SDR of the vocals: silence, the mixture, the network as initialized, and the model."""
    model, config = load_model(model_path)
    torch.manual_seed(config.train.seed)
    separators = {
        "untrained network": Separator(UNet(config), config, resolve_device(device)).configured(None, overrides),
        str(model_path): Separator(model, config, resolve_device(device)).configured(None, overrides),
    }
    rows: Scores = {
        "silence": [sdr(c.vocals, torch.zeros_like(c.vocals)) for c in clips],
        "mixture": [sdr(c.vocals, c.mixture) for c in clips],
    }
    for name, separator in separators.items():
        rows[name] = [
            sdr(c.vocals, separator.separate(c.mixture, c.sample_rate)[0]) for c in tqdm(clips, name, leave=False)
        ]
    return rows


def oracle_table(clips: Sequence[Clip]) -> Scores:
    """What a perfect generator would score: the true accompaniment goes through each representation, and the vocals are
    taken from the mixture in each way. Also masks made from the truth, and the limit on the modelled band."""
    base = AudioConfig(bandwidth=0)
    stft = STFT(base.n_fft, base.hop_length, base.win_length)
    variants = {"complex, |X|^0.5": base}
    for scale in (10.0, 1.0, 0.1, 0.01):
        variants[f"log1p(|X| * {scale:g})"] = replace(base, representation="magnitude", log1p_scale=scale)
    rows: Scores = {}
    for clip in tqdm(clips, "Oracle", leave=False):
        mixture, rest, vocals = (stft(w[None]) for w in (clip.mixture, clip.accompaniment, clip.vocals))

        def score(name: str, spectrum: Tensor, clip: Clip = clip) -> None:
            estimate = stft.inverse(spectrum, clip.vocals.shape[-1])[0]
            rows.setdefault(name, []).append(sdr(clip.vocals, estimate))

        rows.setdefault("silence", []).append(sdr(clip.vocals, torch.zeros_like(clip.vocals)))
        rows.setdefault("mixture", []).append(sdr(clip.vocals, clip.mixture))
        for name, audio in variants.items():
            representation = make_representation(audio)
            statistics = representation.statistics(mixture)
            x_mixture, x_0 = (representation.encode(x, statistics) for x in (mixture, rest))
            for how in ("normalized", "magnitude", "mask", "complex"):
                if how != "normalized" and audio.representation == "magnitude" and audio.log1p_scale != 1.0:
                    continue  # decoded, the scale is gone
                score(f"{name}, subtract {how}", subtract(how, mixture, x_mixture, x_0, statistics, representation))
        power, rest_power = vocals.abs().square(), rest.abs().square()
        score("ideal ratio mask", mixture * power / (power + rest_power).clamp_min(1e-30))
        cosine = (vocals * mixture.conj()).real / mixture.abs().square().clamp_min(1e-30)
        score("truncated phase-sensitive mask", mixture * cosine.clamp(0, 1))
        limited = replace(base, bandwidth=AudioConfig().bandwidth, sample_rate=clip.sample_rate)
        difference = mixture - rest
        bins = min(modelled_bins(limited), int(TRUSTED * base.n_fft))
        band = extend_band(difference[:, :, :bins], mixture, bins, clip.sample_rate, base.hop_length)
        score(f"complex, only {limited.bandwidth:g} Hz modelled", band)
    return rows


def print_table(rows: Scores, clips: int) -> None:
    """Median and quartiles over clips, one line a row."""
    print(f"global SDR of the vocals in dB over {clips} clips: median (quartiles)")
    width = max(map(len, rows))
    for name, scores in rows.items():
        ordered = sorted(s for s in scores if not math.isnan(s))
        low, high = ordered[len(ordered) // 4], ordered[(3 * len(ordered)) // 4]
        print(f"{name:<{width}}  {median(ordered):7.2f}  ({low:.2f} .. {high:.2f})")


def write_csv(path: Path, rows: Scores, names: Iterable[str]) -> None:
    """One line per clip, one column per row of the table."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["clip", *rows])
    writer.writerows([name, *(f"{s:.4f}" for s in scores)] for name, *scores in zip(names, *rows.values(), strict=True))
    write_atomic(path, lambda part: part.write_text(text.getvalue(), encoding="utf-8"))
