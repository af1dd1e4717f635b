"""Which loudspeaker each channel is for: the mask of WAVE_FORMAT_EXTENSIBLE (Microsoft, "Multiple Channel Audio
Data and WAVE Files")."""

from __future__ import annotations

from pathlib import Path

# Bit by bit, in the order in which the channels stand in a file; names as ffmpeg gives them.
_SPEAKERS = "FL FR FC LFE BL BR FLC FRC BC SL SR TC TFL TFC TFR TBL TBC TBR".split()  # noqa: SIM905
_NAMED = {
    "2.1": "FL FR LFE", "3.0": "FL FR FC", "3.0(back)": "FL FR BC", "4.0": "FL FR FC BC", "quad": "FL FR BL BR",
    "quad(side)": "FL FR SL SR", "3.1": "FL FR FC LFE", "5.0": "FL FR FC BL BR", "5.0(side)": "FL FR FC SL SR",
    "4.1": "FL FR FC LFE BC", "5.1": "FL FR FC LFE BL BR", "5.1(side)": "FL FR FC LFE SL SR",
    "6.0": "FL FR FC BC SL SR", "6.0(front)": "FL FR FLC FRC SL SR", "hexagonal": "FL FR FC BL BR BC",
    "6.1": "FL FR FC LFE BC SL SR", "6.1(back)": "FL FR FC LFE BL BR BC", "6.1(front)": "FL FR LFE FLC FRC SL SR",
    "7.0": "FL FR FC BL BR SL SR", "7.0(front)": "FL FR FC FLC FRC SL SR", "7.1": "FL FR FC LFE BL BR SL SR",
    "7.1(wide)": "FL FR FC LFE BL BR FLC FRC", "7.1(wide-side)": "FL FR FC LFE FLC FRC SL SR",
    "octagonal": "FL FR FC BL BR BC SL SR",
}  # fmt: skip
# The tag of the encoding and the bits of a sample -> soundfile's name.
_ENCODINGS = {
    (1, 8): "PCM_U8", (1, 16): "PCM_16", (1, 24): "PCM_24", (1, 32): "PCM_32",
    (3, 32): "FLOAT", (3, 64): "DOUBLE", (6, 8): "ALAW", (7, 8): "ULAW",
}  # fmt: skip
# What FLAC (RFC 9639, 9.1.3) gives files of this many channels.
_FLAC = {3: "3.0", 4: "quad", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1"}


def mask(speakers: str) -> int:
    """Names of loudspeakers -> the mask."""
    return sum(1 << _SPEAKERS.index(name) for name in speakers.split())


def named_mask(layout: str | None, channels: int) -> int:
    """The mask of a layout by ffmpeg's name, such as "5.1(side)" or "FL+FR+LFE"; 0 where it names none."""
    if not layout or channels <= 2:
        return 0
    names = _NAMED.get(layout, layout.replace("+", " "))
    known = all(name in _SPEAKERS for name in names.split())
    return mask(names) if known and len(names.split()) == channels else 0


def flac_mask(channels: int) -> int:
    return named_mask(_FLAC.get(channels), channels)


def fits_flac(channel_mask: int, channels: int) -> bool:
    """Whether a FLAC of so many channels means these loudspeakers; those behind may stand at the sides."""
    return channels <= 2 or channel_mask == 0 or _behind(channel_mask) == _behind(flac_mask(channels))


def _behind(value: int) -> int:
    """The mask with loudspeakers at the sides put behind, where none is there."""
    sides, behind = mask("SL SR"), mask("BL BR")
    return (value & ~sides) | behind if value & sides and not value & behind else value


def wav_mask(path: Path) -> int:
    """The mask in a RIFF, RF64 or Wave64 file; 0 where there is none."""
    body = _extensible(path)
    if body is None:
        return 0
    channels, value = (int.from_bytes(body[at : at + size], "little") for at, size in ((2, 2), (20, 4)))
    return value if channels > 2 and value.bit_count() == channels else 0


def wave64_subtype(path: Path) -> str | None:
    """How the samples of an extensible Wave64 file are kept, by soundfile's names, for libsndfile takes all of them for
    integers; None for another file."""
    body = _extensible(path)
    with path.open("rb") as file:
        if body is None or file.read(4) != b"riff":
            return None
    bits, tag = (int.from_bytes(body[at : at + 2], "little") for at in (14, 24))
    return _ENCODINGS.get((tag, bits))


def _extensible(path: Path) -> bytes | None:
    """The format of a RIFF, RF64 or Wave64 file, if it is extensible."""
    with path.open("rb") as file:
        start = file.read(1 << 12)
    at = start.find(b"fmt ")
    body = start[at + (24 if start[:4] == b"riff" else 8) :]
    return body if at >= 0 and len(body) >= 26 and body[:2] == b"\xfe\xff" else None
