"""The picture of a separation: mixture, counterfactual, vocals; the truth and the uncertainty, where they are known."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .audio import AudioReader
from .separator import BLOCK_SECONDS
from .spectrogram import STFT
from .uncertainty import load_uncertainty
from .util.atomic import write_atomic
from .util.cli import Parser, finite, main
from .util.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURES = (".png", ".jpg", ".svg", ".pdf")
RANGE_DB = 80.0
N_FFT, HOP = 2048, 512


def middle_excerpt(song: Path | AudioReader, seconds: float) -> tuple[Tensor, int, float]:
    """The middle of a file, open or not: waveform `(C, n)`, sample rate, and where it begins in s."""
    if not isinstance(song, AudioReader):
        with AudioReader(song) as reader:
            return middle_excerpt(reader, seconds)
    length = round(seconds * song.sample_rate)
    first = max(0, (song.frames - length) // 2)
    parts = list(song.blocks(round(BLOCK_SECONDS * song.sample_rate), first, first + length))
    return torch.cat(parts, dim=-1), song.sample_rate, first / song.sample_rate


def require_picture(path: Path) -> None:
    """Check, before any work, that a picture can be written there.

    Raises:
        UserError: a name that does not end like a picture, or matplotlib is missing.
    """
    if path.suffix.lower() not in PICTURES:
        raise UserError(f"'{path}' is not the name of a picture; it must end in one of {', '.join(PICTURES)}")
    if find_spec("matplotlib") is None:
        raise UserError("pictures need matplotlib; install it with: pip install matplotlib")


def spectrogram_db(waveform: Tensor) -> Tensor:
    """Power of `(C, N)` in dB, `(F, T)`, averaged over channels."""
    power = STFT(N_FFT, HOP, N_FFT)(waveform[None])[0].abs().square().mean(0)
    return 10 * torch.log10(power.clamp_min(1e-12))


def draw_separation(
    mixture: Tensor,
    vocals: Tensor,
    sample_rate: int,
    start: float = 0.0,
    true_vocals: Tensor | None = None,
    top: float = 8000.0,
    uncertainty: Mapping[str, np.ndarray] | None = None,
) -> Figure:
    """A figure with one panel each; time in s, frequency in Hz, level in dB below the loudest point.

    Args:
        mixture, vocals, true_vocals: waveforms `(C, N)`; the counterfactual is mixture - vocals.
        start: where the excerpt begins in its song, s.
        top: highest frequency shown, Hz.
        uncertainty: what `Uncertainty.values` gives for the whole song; its scale becomes the last panel.
    """
    from matplotlib.figure import Figure

    panels = {"mixture": mixture, "counterfactual: nobody sings": mixture - vocals, "vocals": vocals}
    if true_vocals is not None:
        panels["true vocals"] = true_vocals
    images = {title: spectrogram_db(waveform) for title, waveform in panels.items()}
    loudest = max(float(image.max()) for image in images.values())
    stop = start + mixture.shape[-1] / sample_rate
    drawings = {title: (image.numpy(), (start, stop, 0.0, sample_rate / 2)) for title, image in images.items()}
    if uncertainty is not None:
        drawings["uncertainty: how far the vocals may be wrong"] = scale_db(uncertainty, start, stop)
    figure = Figure(figsize=(10, 1.9 * len(drawings) + 0.6), layout="constrained")
    axes = figure.subplots(len(drawings), 1, sharex=True)
    for axis, (title, (image, extent)) in zip(axes, drawings.items(), strict=True):
        drawn = axis.imshow(
            image - loudest, origin="lower", aspect="auto", extent=extent, vmin=-RANGE_DB, vmax=0, cmap="magma"
        )
        axis.set_xlim(start, stop)
        axis.set_ylim(0, min(top, sample_rate / 2))
        axis.set_title(title, loc="left", fontsize=10)
        axis.set_ylabel("Hz")
    axes[-1].set_xlabel("s")
    figure.colorbar(drawn, ax=list(axes), label="dB (0: the loudest point of the panels)", aspect=40)
    return figure


def plot_separation(path: Path, *args, **kwargs) -> None:
    """Write the picture of `draw_separation`, which the other arguments are for.

    Raises:
        UserError: see `require_picture`; or the file cannot be written.
    """
    require_picture(path)
    figure = draw_separation(*args, **kwargs)
    try:
        write_atomic(path, lambda part: figure.savefig(part, dpi=110, format=path.suffix[1:].lower()))
    except OSError as error:
        raise UserError(f"the picture '{path}' cannot be written ({error.strerror}); name another place") from None


def scale_db(values: Mapping[str, np.ndarray], start: float, stop: float) -> tuple[np.ndarray, tuple[float, ...]]:
    """The scale of the error between `start` and `stop` (s) in dB, `(F, T)`, and where its edges lie: (s, s, Hz, Hz).

    Raises:
        UserError: the song ends before `start`.
    """
    edges = []
    for centres in (values["time"], values["frequency"]):
        width = float(centres[1] - centres[0]) if len(centres) > 1 else 2 * max(float(centres[0]), 1e-3)
        edges.append((centres - width / 2, centres + width / 2))
    (left, right), (bottom, top) = edges
    inside = (right > start) & (left < stop)
    if not inside.any():
        raise UserError(
            f"the uncertainty ends at {right[-1]:.1f} s, before the excerpt of {start:.1f} to {stop:.1f} s; "
            "give the .npz that was written for this song"
        )
    power = np.square(values["scale"][..., inside], dtype=np.float32).mean(0)
    image = 10 * np.log10(np.maximum(power, 1e-12))
    return image, (float(left[inside][0]), float(right[inside][-1]), float(bottom[0]), float(top[-1]))


def run(argv: list[str] | None = None) -> int:
    """`python -m diffvocsep.plot mixture.wav vocals.wav [--truth vocals.wav] [--uncertainty PATH.npz]`"""
    parser = Parser(prog="python -m diffvocsep.plot", description="Draw a separation.")
    parser.add_argument("mixture", type=Path)
    parser.add_argument("vocals", type=Path, help="separated from the mixture")
    parser.add_argument("--truth", type=Path, metavar="VOCALS", help="the true vocals, where they are known")
    parser.add_argument("--uncertainty", type=Path, metavar="PATH.npz", help="from inference.py --uncertainty")
    parser.add_argument("--output", type=Path, default=Path("separation.png"), metavar="PATH.png")
    parser.add_argument("--seconds", type=finite, default=20.0, help="length of the excerpt, from the middle")
    args = parser.parse_args(argv)
    if args.seconds <= 0:
        raise UserError("--seconds must be more than 0")
    require_picture(args.output)
    mixture, rate, start = middle_excerpt(args.mixture, args.seconds)
    others = [middle_excerpt(path, args.seconds)[:2] for path in (args.vocals, args.truth) if path]
    for path, (waveform, other) in zip((args.vocals, args.truth), others, strict=False):
        if other != rate or waveform.shape[-1] != mixture.shape[-1]:
            raise UserError(f"'{path}' has not the length and sample rate of '{args.mixture}'; it is no part of it")
    vocals, *truth = (waveform.expand(len(mixture), -1) for waveform, _ in others)
    numbers = load_uncertainty(args.uncertainty) if args.uncertainty else None
    plot_separation(args.output, mixture, vocals, rate, start, truth[0] if truth else None, uncertainty=numbers)
    return 0


if __name__ == "__main__":
    main(run)
