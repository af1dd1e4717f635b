"""BSSEval v4 (Stoter, Liutkus and Ito 2018) as the package `museval` computes it, and its files.

SDR, SIR, SAR and ISR of frames of 1 s, one after the other. A frame in which a source or an estimate is silent has no
score; the score of a track is the median of its other frames, that of a data set the median of its tracks.
"""

from __future__ import annotations

import warnings
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from torch import Tensor

from ..util.atomic import write_atomic

NAMES = ("SDR", "SIR", "ISR", "SAR")
MISSING = "SDR, SIR, ISR and SAR by frames need the package museval; install it with: pip install museval"


def available() -> str | None:
    """The version of museval, or None where it is not installed."""
    return version("museval") if find_spec("museval") else None


def bsseval(
    references: dict[str, Tensor], estimates: dict[str, Tensor], sample_rate: int
) -> dict[str, dict[str, np.ndarray]]:
    """Scores of every frame, dB: target -> metric -> `(frames,)`; waveforms `(C, N)`.

    The sources are rounded to 16 bit, which changes nothing where they come from 16-bit files, as MUSDB18's do. Decoded
    to float, lossy files hold nothing in their highest band, and BSSEval's 512-tap filters have no unique solution:
    an ideal ratio mask then gets an SIR of -6 dB, where rounding gives 19 (docs/evaluation.md).

    museval refuses a source or an estimate that is silent from end to end. Such a track has no scores: all are NaN.
    """
    import museval

    first = [np.round(wave.T.double().numpy() * 2**15) / 2**15 for wave in references.values()]
    second = [estimates[target].T.double().numpy() for target in references]
    frames = max(1, (first[0].shape[0] - sample_rate) // sample_rate + 1)
    if any(not wave.sum(axis=1).any() for wave in (*first, *second)):  # summed over channels, as museval judges it
        return {target: {name: np.full(frames, np.nan) for name in NAMES} for target in references}
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        sdr, isr, sir, sar = museval.evaluate(first, second, win=sample_rate, hop=sample_rate, mode="v4")
    scores = {"SDR": sdr, "SIR": sir, "ISR": isr, "SAR": sar}
    return {target: {name: scores[name][i] for name in NAMES} for i, target in enumerate(references)}


def write_track(path: Path, scores: dict[str, dict[str, np.ndarray]]) -> None:
    """One track as `museval.EvalStore.add_eval_dir` reads it: `<folder>/test/<track>.json`."""
    import museval

    store = museval.TrackStore(win=1.0, hop=1.0, track_name=path.stem)
    for target, values in scores.items():
        store.add_target(target, {name: value.tolist() for name, value in values.items()})
    store.validate()
    write_atomic(path, lambda part: part.write_text(store.json, encoding="utf-8"))


def median_of_frames(scores: np.ndarray) -> float:
    """As museval's `TrackStore` and `EvalStore` have it: to five decimals, without frames that have no finite score."""
    finite = np.round(scores[np.isfinite(scores)], 5)
    return float(np.median(finite)) if finite.size else float("nan")
