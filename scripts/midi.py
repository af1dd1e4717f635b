"""Music as a Standard MIDI File, by the package mido, and its sound, by fluidsynth and a soundfont."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import soundfile

from diffvocsep.util.atomic import temporary_folder
from diffvocsep.util.errors import UserError

if TYPE_CHECKING:
    from mido import MidiFile

RATE = 44100  # Hz, of what is played
TICKS = 480  # per quarter note
DRUM_CHANNEL = 9  # of General MIDI, counted from 0
RANK = {"note_off": 0, "note_on": 2}  # at one moment notes end, then controls move, then notes begin


def import_mido() -> ModuleType:
    """The package.

    Raises:
        UserError: it is not installed.
    """
    try:
        import mido
    except ImportError:
        raise UserError("MIDI files need the package mido; install it with: pip install mido") from None
    return mido


class Song:
    """Messages for a synthesizer, at moments counted in quarter notes.

    Args:
        tempo: quarter notes a minute; without it the file names none, which by the standard means 120.
    """

    def __init__(self, tempo: float | None = None) -> None:
        self.tempo = tempo
        self.events: list[tuple[float, str, dict[str, int]]] = []

    def add(self, moment: float, kind: str, **fields: int) -> None:
        """One message, by mido's names: `program_change`, `control_change`, `pitchwheel`, ..."""
        self.events.append((moment, kind, fields))

    def note(self, channel: int, start: float, length: float, pitch: int, velocity: float) -> None:
        """A note of `length` quarter notes; its MIDI pitch is 0 to 127, its velocity is brought into 1 to 127."""
        velocity = max(1, min(127, int(velocity)))
        self.add(start, "note_on", channel=channel, note=pitch, velocity=velocity)
        self.add(start + length, "note_off", channel=channel, note=pitch, velocity=0)

    def file(self) -> MidiFile:
        """A file of format 0."""
        mido = import_mido()
        track, clock = mido.MidiTrack(), 0
        if self.tempo is not None:
            track.append(mido.MetaMessage("set_tempo", tempo=round(60e6 / self.tempo)))
        for moment, kind, fields in sorted(self.events, key=lambda event: (event[0], RANK.get(event[1], 1))):
            tick = round(moment * TICKS)
            track.append(mido.Message(kind, time=tick - clock, **fields))
            clock = tick
        return mido.MidiFile(type=0, ticks_per_beat=TICKS, tracks=[track])


def require_synthesizer(soundfonts: Iterable[Path], install: str) -> None:
    """See before any work that everything is there; `install` names Debian's packages.

    Raises:
        UserError: mido, fluidsynth or a soundfont is missing, or a soundfont is something else.
    """
    import_mido()
    if shutil.which("fluidsynth") is None:
        raise UserError(f"this needs fluidsynth and soundfonts: apt install {install}")
    for path in soundfonts:
        if not path.is_file():
            raise UserError(f"there is no soundfont '{path}': apt install {install}, or name another with --soundfont")
        with path.open("rb") as file:
            start = file.read(12)
        if (start[:4], start[8:]) != (b"RIFF", b"sfbk"):  # fluidsynth would play by the system's own instead
            raise UserError(f"'{path}' is no soundfont; name a .sf2 or .sf3 file with --soundfont")


def play(song: Song, soundfont: Path) -> np.ndarray:
    """The sound, until the last note has faded: float32 `(N, 2)` at 44.1 kHz.

    Raises:
        UserError: fluidsynth cannot.
    """
    with temporary_folder() as folder:
        source, wav = Path(folder) / "a.mid", Path(folder) / "a.wav"
        song.file().save(source)
        command = ["fluidsynth", "-ni", "-r", str(RATE), "-g", "0.5", "-F", str(wav), str(soundfont), str(source)]
        done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", errors="replace")
        if done.returncode or not wav.exists():
            raise UserError(f"fluidsynth failed: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}")
        return soundfile.read(wav, always_2d=True, dtype="float32")[0]
