"""The second decoder: what libsndfile does not open, or not to its end, goes through ffprobe and ffmpeg.

Three lengths are compared: what the header announces, what the packets hold and what was decoded. A track that is
shorter than announced, has a hole or cannot be decoded is refused with a sentence that says how much is missing.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import struct
import subprocess
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from ..util.errors import UserError
from .channel_layout import named_mask
from .common import no_room, quoted
from .containers import announced_size
from .elementary_streams import begins_gsm, ends_within_frame
from .input_formats import BROADCAST, FFMPEG, FRAMES, LOSSLESS
from .wav import WavSink

LOOSE_END = 0.25  # s that a lossy file may lack of the length it announces; more is damage
_EXACT = 0.02  # s, for lossless files: containers round the time to ms
GAP = 0.1  # s without a packet that are a gap
_LONGEST = 8.0  # s of sound in a packet
_CHUNK = 1 << 18  # bytes
_CUT = re.compile(r"ended prematurely|partial file|truncated", re.I)
_WHITELISTS = ["-protocol_whitelist", "file", "-format_whitelist", FFMPEG]


@dataclass
class Track:
    """The audio track that is decoded, by ffprobe. Times in s."""

    index: int
    format: str
    codec: str
    sample_rate: int
    channels: int
    mask: int
    offset: float  # the sound begins so much later than the picture
    announced: float | None  # where the header says that it ends
    start: float = 0.0  # of its first packet
    end: float = 0.0  # of its last packet
    held: float = 0.0  # sum of its packets
    whole: float = 0.0  # end of the last packet of any track
    untold: float = 0.0  # s, at most, of a last packet that does not say how long it is
    last: int | None = None  # byte where its last packet begins
    alone: bool = True  # the announced length is that of this track
    gap: tuple[float, float] | None = None  # where, how long
    complaints: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def lossless(self) -> bool:
        return self.codec.startswith(LOSSLESS)

    @property
    def length(self) -> float | None:
        """s of sound that the header announces of this track alone."""
        return None if self.announced is None or not self.alone else self.announced - max(0.0, self.start)

    @property
    def tolerance(self) -> float:
        if self.lossless and self.alone:  # a CAF counts its last packet as if it were a whole one
            return _EXACT + (self.untold if self.format == "caf" else 0.0)
        return LOOSE_END if self.alone else 1.0


def decode(file: Path, folder: Path, expected: float | None, path: Path) -> tuple[Path, Track]:
    """Decode the default audio track of `file`, which messages call `path`, to a float32 WAV in `folder`.

    Args:
        expected: s of sound that the file is known to hold; None: what ffprobe finds.

    Raises:
        UserError: the file is damaged or no audio, ffmpeg is missing, or the folder has no room.
    """
    for program in ("ffmpeg", "ffprobe"):
        if shutil.which(program) is None:
            raise UserError(
                f"{quoted(path)} is not audio or has a format that needs {program}, which is not on PATH: install "
                "ffmpeg (https://ffmpeg.org, 'apt install ffmpeg', 'brew install ffmpeg' or 'winget install ffmpeg'), "
                "or convert the file to .wav."
            )
    track = _probe(file, path)
    if track.format == "gsm" and not begins_gsm(file):
        raise UserError(f"{quoted(path)} is damaged or not audio, it begins with no frame of GSM: give another file.")
    _measure(file, track)
    if expected is None:
        _require_whole(file, path, track)
    target = folder / "decoded.wav"
    frames, complaints = _run_ffmpeg(file, path, track, target, folder)
    _require_decoded(path, track, frames / max(1, track.sample_rate), complaints, expected)
    if track.format in FRAMES and track.last is not None and ends_within_frame(file, track.codec, track.last):
        track.notes.append(f"{quoted(path)} ends within a frame; more may have been cut off, which nothing else tells")
    return target, track


def damaged(path: Path, readable: float, announced: float | None = None, why: str = "") -> UserError:
    """The sentence for a file of which only `readable` s of `announced` s can be had."""
    of = f" of the {announced:.2f} s it announces" if announced is not None else ""
    return UserError(
        f"{quoted(path)} is damaged{why}, it can be read for {readable:.2f} s{of}: get a whole copy, or save the "
        "readable part with an audio editor."
    )


def _probe(file: Path, path: Path) -> Track:
    entries = "format=format_name,duration,start_time:stream=index,codec_type,codec_name,sample_rate,channels"
    entries += (
        ",channel_layout,start_time,duration:stream_disposition=default,attached_pic:stream_tags=DURATION,language"
    )
    with _ffprobe(file, "-show_entries", entries, "-of", "json") as (lines, complaints):
        text = "".join(lines)
    try:
        found = json.loads(text or "{}")
    except ValueError:
        found = {}
    streams = [s for s in found.get("streams", []) if not s.get("disposition", {}).get("attached_pic")]
    sounds = [s for s in streams if s.get("codec_type") == "audio" and _number(s.get("sample_rate"))]
    if not sounds:
        raise UserError(_no_audio(path, streams, complaints))
    chosen = next((s for s in sounds if s.get("disposition", {}).get("default")), sounds[0])
    form = found.get("format", {})
    name = form.get("format_name", "").split(",")[0]
    channels = int(chosen.get("channels", 0))
    start, pictures = _number(chosen.get("start_time")) or 0.0, [s for s in streams if s.get("codec_type") == "video"]
    first = min([_number(s.get("start_time")) or 0.0 for s in pictures], default=start)
    track = Track(
        int(chosen["index"]), name, chosen.get("codec_name", ""), int(chosen["sample_rate"]), channels,
        named_mask(chosen.get("channel_layout"), channels), max(0.0, start - first), _announced(chosen, form, name),
        start=start, alone=len(streams) == 1 or _own_length(chosen, name) is not None, complaints=complaints,
    )  # fmt: skip
    if len(sounds) > 1:
        language = chosen.get("tags", {}).get("language")
        named = f"track {sounds.index(chosen) + 1}" + (f" ({language})" if language else "")
        track.notes.append(f"{quoted(path)} has {len(sounds)} audio tracks; {named}, the default one, is separated")
    if track.offset >= 0.001:
        track.notes.append(
            f"in {quoted(path)} the sound begins {track.offset:.3f} s after the picture, with which the outputs begin"
        )
    return track


def _no_audio(path: Path, streams: list, complaints: list[str]) -> str:
    said = " ".join(complaints)
    if "not on whitelist" in said:
        return (
            f"{quoted(path)} is no song but a list or a description that names other files, or of a kind that is not "
            "read here: give the songs themselves."
        )
    if streams:
        return f"{quoted(path)} has no audio track: give a file with sound in it."
    return _not_audio(path, complaints)


def _not_audio(path: Path, complaints: list[str]) -> str:
    return f"{quoted(path)} is damaged or not audio, ffmpeg says ({_reason(complaints)}): give another file."


def _own_length(stream: dict, name: str) -> float | None:
    """Where the header says that this track ends, s."""
    if name == "matroska":
        match = re.fullmatch(r"(\d+):(\d+):([\d.]+)", stream.get("tags", {}).get("DURATION", ""))
        return int(match[1]) * 3600 + int(match[2]) * 60 + float(match[3]) if match else None
    length = _number(stream.get("duration"))
    return None if length is None else (_number(stream.get("start_time")) or 0.0) + length


def _announced(stream: dict, form: dict, name: str) -> float | None:
    if name in FRAMES | BROADCAST | {"asf"}:  # ffprobe estimates theirs from the size of the file
        return None
    return _own_length(stream, name) or _number(form.get("duration"))


def _measure(file: Path, track: Track) -> None:
    """Read all packets, without decoding: how far they reach, and whether one is missing."""
    entries = "packet=stream_index,pts_time,duration_time,pos"
    previous = begun = None
    with _ffprobe(file, "-show_entries", entries, "-of", "csv=p=0") as (lines, complaints):
        for line in lines:
            index, *times = line.strip().split(",")[:4]
            time, duration = (_number(value) for value in [*times, "", ""][:2])
            if index == str(track.index) and times[2:] and times[2].isdigit():
                track.last = int(times[2])
            if not index.isdigit() or time is None:
                if index == str(track.index) and duration is not None:
                    track.held += duration
                continue
            end = time + (duration or 0.0)
            track.whole = max(track.whole, end)
            if int(index) != track.index:
                continue
            spacing = _LONGEST if begun is None else max(0.0, min(_LONGEST, time - begun))
            track.untold, begun = spacing if duration is None else 0.0, time
            if previous is not None and time - previous > (GAP if duration is not None else 0.5) and track.gap is None:
                track.gap = (previous, time - previous)
            previous = end
            track.end, track.held = max(track.end, end), track.held + (duration or 0.0)
    track.end += track.untold
    track.whole = max(track.whole, track.end)
    track.complaints += complaints


def _require_whole(file: Path, path: Path, track: Track) -> None:
    """The header against the packets."""
    if track.announced is not None:
        reached = track.end if track.alone else track.whole
        if reached < track.announced - track.tolerance:
            raise damaged(path, reached, track.announced, " or cut off")
    announced, size = announced_size(file), file.stat().st_size
    if announced > size + 1:
        raise damaged(path, track.end, track.end * announced / size, " or cut off")
    if any(_CUT.search(line) for line in track.complaints):
        raise damaged(path, track.end, track.announced, " or cut off")
    if track.gap and track.complaints:
        at, length = track.gap
        raise damaged(path, at, track.announced, f", {length:.2f} s are missing in its middle")


def _run_ffmpeg(file: Path, path: Path, track: Track, target: Path, folder: Path) -> tuple[int, list[str]]:
    """Decode to `target`, silence in front where the sound begins later: samples of sound, and what ffmpeg said."""
    command = ["ffmpeg", "-nostdin", "-v", "error", "-err_detect", "crccheck+bitstream+buffer", *_WHITELISTS]
    command += ["-i", f"file:{file}", "-map", f"0:{track.index}"]  # "file:" protects names with a dash or a colon
    if track.gap:  # recorded with pauses: what comes after one keeps its time
        command += ["-af", f"aresample=async=1:min_hard_comp={GAP / 2}"]
    command += ["-c:a", "pcm_f32le", "-f", "wav", "-bitexact", "pipe:1"]
    count = 0
    with _program(command) as (process, complaints):
        if not _read_layout(process.stdout, track):
            return 0, complaints
        frame = 4 * track.channels
        try:
            sink = WavSink(target, track.sample_rate, track.channels, "float", track.mask)
            try:
                sink.write_silence(round(track.offset * track.sample_rate))
                while data := process.stdout.read(_CHUNK * frame):
                    count += sink.write_bytes(data[: len(data) // frame * frame])
            finally:
                sink.close()
        except OSError as error:
            raise no_room(path, folder, error) from error
    return count, complaints


def _read_layout(stream: BinaryIO, track: Track) -> bool:
    """Take channels and rate from the WAV header that ffmpeg writes, which are those of the decoder, up to its samples;
    False where it wrote none."""
    stream.read(12)
    while len(head := stream.read(8)) == 8:
        name, size = struct.unpack("<4sI", head)
        if name == b"data":
            return True
        body = stream.read(size + size % 2)
        if name == b"fmt ":
            channels, track.sample_rate = struct.unpack("<HI", body[2:8])
            track.mask = track.mask if channels == track.channels else 0
            track.channels = channels
    return False


def _require_decoded(path: Path, track: Track, seconds: float, complaints: list[str], expected: float | None) -> None:
    """The packets, or what is `expected`, against what was decoded."""
    if seconds == 0:
        raise UserError(_not_audio(path, complaints))
    tolerance, length = track.tolerance, expected if expected is not None else track.length
    if length is None:
        length, tolerance = track.held, LOOSE_END
    if seconds < length - tolerance:
        raise damaged(path, seconds, length)
    errors = [line for line in complaints if "Error while decoding" in line or _of_codec(line, track)]
    if errors and expected is None and (track.gap or track.format not in FRAMES | BROADCAST):
        raise damaged(path, seconds, None, f" ({_reason(errors)})")
    if errors:
        track.notes.append(f"{quoted(path)} has parts that are no sound; they are passed over, as players do")


def _of_codec(line: str, track: Track) -> bool:
    return track.lossless and line.startswith(f"[{track.codec} ")


def _number(value: object) -> float | None:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _reason(complaints: list[str]) -> str:
    return re.sub(r" @ 0x[0-9a-f]+", "", complaints[0]) if complaints else "no reason given"


@contextmanager
def _ffprobe(file: Path, *arguments: str) -> Iterator[tuple[Iterator[str], list[str]]]:
    command = ["ffprobe", "-v", "error", *_WHITELISTS, *arguments, f"file:{file}"]
    with _program(command) as (process, complaints):
        yield (line.decode(errors="replace") for line in process.stdout), complaints


@contextmanager
def _program(command: list[str]) -> Iterator[tuple[subprocess.Popen, list[str]]]:
    """A process whose stdout is read by the caller; the first and the last lines of its stderr are there at the end."""
    try:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    except (OSError, ValueError) as error:
        raise UserError(f"{command[0]} does not start ({error}): install it again.") from error
    complaints: list[str] = []
    last: deque[str] = deque(maxlen=50)

    def listen() -> None:
        for line in process.stderr:
            (complaints if len(complaints) < 50 else last).append(line.decode(errors="replace").strip()[:300])

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    try:
        yield process, complaints
        process.stdout.close()
        process.wait()
    finally:
        process.kill()
        process.wait()
        thread.join()
        complaints += last
        process.stdout.close()
        process.stderr.close()
