"""What can be written: the formats, and what each of them holds."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path

from ..util.errors import UserError
from .common import quoted


@dataclass(frozen=True)
class Format:
    subtypes: dict[str, str]  # ours -> soundfile's; the first is the default
    sample_rates: Container[int]
    max_channels: int
    limits: str


_MP3_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
FORMATS = {
    ".wav": Format({"float": "FLOAT", "pcm16": "PCM_16", "pcm24": "PCM_24"}, range(1, 1 << 31), 1024, "1024 channels"),
    ".flac": Format(
        {"pcm24": "PCM_24", "pcm16": "PCM_16"}, range(1, 655_351), 8, "8 channels and sample rates up to 655350 Hz"
    ),
    ".mp3": Format(
        {"mp3": "MPEG_LAYER_III"}, _MP3_RATES, 2, f"2 channels and sample rates of {', '.join(map(str, _MP3_RATES))} Hz"
    ),
}
# kbit/s of Layer III in MPEG-1 (32 kHz and above), MPEG-2 and MPEG-2.5 (below 16 kHz): ISO/IEC 11172-3, 13818-3.
MPEG1 = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
MPEG2 = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)


def choose_subtype(path: Path, subtype: str | None = None, bitrate: int | None = None) -> str:
    """How samples are kept in `path`: as `subtype` says, else as the format does by default.

    Raises:
        UserError: the name has another ending, or its format knows no such samples or no bit rate.
    """
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise UserError(f"{quoted(path)} cannot be written: the name must end in {', '.join(FORMATS)}.")
    subtypes = FORMATS[suffix].subtypes
    chosen = subtype or next(iter(subtypes))
    if chosen not in subtypes:
        remedy = "leave --bits out" if suffix == ".mp3" else f"choose from {', '.join(subtypes)}"
        raise UserError(f"{quoted(path)} cannot hold {subtype} samples: {remedy}.")
    if bitrate is not None and suffix != ".mp3":
        raise UserError(f"{quoted(path)} has no bit rate: leave it out, or write an .mp3.")
    return chosen


def require_layout(path: Path, sample_rate: int, channels: int, bitrate: int | None = None) -> None:
    """Raises UserError where the format of `path` has no such sample rate, number of channels or bit rate."""
    suffix = path.suffix.lower()
    kind = FORMATS[suffix]
    if sample_rate not in kind.sample_rates or not 1 <= channels <= kind.max_channels:
        raise UserError(
            f"{quoted(path)} cannot hold {channels} channels at {sample_rate} Hz ({suffix} has at most "
            f"{kind.limits}): write a .wav."
        )
    if bitrate is not None and bitrate not in bitrates(sample_rate):
        possible = ", ".join(map(str, bitrates(sample_rate)))
        raise UserError(f"{quoted(path)} cannot have {bitrate} kbit/s at {sample_rate} Hz: choose from {possible}.")


def bitrates(sample_rate: int) -> tuple[int, ...]:
    """Those of an .mp3, kbit/s, from the lowest to the highest."""
    return MPEG1 if sample_rate >= 32000 else MPEG2 if sample_rate >= 16000 else MPEG2[:8]


def compression_level(bitrate: int, sample_rate: int) -> float:
    """What libsndfile calls a constant bit rate: its share of the way from the highest to the lowest, below 1."""
    lowest, *_, highest = bitrates(sample_rate)
    return min((highest - bitrate) / (highest - lowest), 0.9999)
