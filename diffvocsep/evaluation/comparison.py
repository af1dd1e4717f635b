"""Two evaluations of the same clips, clip by clip: what differs between songs takes no part in the difference."""

from __future__ import annotations

import csv
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from ..util.errors import UserError
from . import systems
from .report import paired
from .scores import COLUMNS, Score

FIXED = (systems.SILENCE, systems.MIXTURE, systems.UNTRAINED, *systems.CEILINGS)
Scores = Mapping[str, Mapping[str, float]]  # clip -> metric -> score of the vocals
SAME = 1e-3  # dB between two scores of one mixture, written with five decimals


def read_results(folder: Path, clips: Collection[str]) -> tuple[Scores, Scores]:
    """What an earlier `evaluate.py --output folder` wrote: the scores of its model, and those of the mixture.

    Raises:
        UserError: there is no whole `results.csv`, or none of these clips is in it.
    """
    try:
        with open(folder / "results.csv", encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["target"] == "vocals"]
        scores = [(row["system"], row["clip"], {m: float(row[m]) for m in COLUMNS}) for row in rows]
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        raise UserError(
            f"'{folder}' has no results.csv that can be read; --compare takes the --output of an earlier evaluation"
        ) from None
    model = {clip: values for system, clip, values in scores if system not in FIXED}
    if not set(model) & set(clips):
        raise UserError(f"'{folder}' has scores of other clips; --compare needs the same songs, and the same --seconds")
    return model, {clip: values for system, clip, values in scores if system == systems.MIXTURE}


def compare(scores: Sequence[Score], model: str, earlier: tuple[Scores, Scores]) -> tuple[int, dict[str, list[str]]]:
    """The number of clips that both have, and metric -> mean difference (95 % interval), and how many clips gain.

    Raises:
        UserError: one name stands for two recordings.
    """
    before, mixtures = earlier
    now = {one.clip: one.targets["vocals"] for one in scores if one.system == model and not one.silent}
    mixture = {one.clip: one.targets["vocals"]["global SDR"] for one in scores if one.system == systems.MIXTURE}
    clips = [clip for clip in now if clip in before]
    for clip in clips:
        if not abs(mixture[clip] - mixtures.get(clip, {}).get("global SDR", np.nan)) < SAME:
            raise UserError(f"'{clip}' was another recording in the evaluation to compare with; evaluate both anew")
    rows = {}
    for metric in COLUMNS:
        differences = np.array([now[clip].get(metric, np.nan) - before[clip][metric] for clip in clips])
        differences = np.round(differences[np.isfinite(differences)], 4) + 0.0  # results.csv has five decimals
        if differences.size:
            rows[metric] = [paired(differences)[0], f"{(differences > 0).sum()} of {differences.size}"]
    return len(clips), rows
