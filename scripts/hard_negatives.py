"""Hard negatives to train on: instruments that lead a small band as a singer would, without a singer.

    apt install fluidsynth fluid-soundfont-gm musescore-general-soundfont-small timgm6mb-soundfont
    pip install mido
    python -m scripts.hard_negatives OUT --tracks 19 --seconds 42 --seed 1

Writes OUT/<number>_<lead>/accompaniment.ogg (44.1 kHz stereo Vorbis); tracks that stand there are kept. All is composed
at random: the lead plays phrases as long as a breath, scoops, slides and falls off by pitch bend, has a vibrato of 4.5
to 7 Hz that sets in late, and swells. The soundfonts (MIT, MIT, GPL-2+) take turns.

Held out, to test with: viola, contrabass, acoustic bass, bassoon, english horn, string ensembles, choir and voice. The
choir pad (91) is not: it accompanies track 1 of the call above.

The shipped weights heard these tracks: the families of `scripts.render_soundfont` are not new to them. The leads
share with strings 40 42, with brass 56, with reed 65 68 71, with flute 73 75; the band with piano 0 4, with organ
16, with guitar 24 25 27, and its drums. Of these, 25, 27 and 75 are not in the 19 tracks of that call.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np
from tqdm.auto import tqdm

from diffvocsep.data.pack import write_vorbis
from diffvocsep.util.atomic import remove_leftovers, require_folder, write_atomic
from diffvocsep.util.cli import Parser, finite, main
from diffvocsep.util.errors import UserError
from scripts.midi import DRUM_CHANNEL, RATE, play, require_synthesizer
from scripts.singing import BEATS, BEND_RANGE, Arrangement, Lead, melody, sing

SOUNDFONTS = tuple(
    Path("/usr/share/sounds", name)
    for name in ("sf2/FluidR3_GM.sf2", "sf3/MuseScore_General_Lite.sf3", "sf2/TimGM6mb.sf2")
)
INSTALL = "fluidsynth fluid-soundfont-gm musescore-general-soundfont-small timgm6mb-soundfont"
QUALITY = 0.5  # of Vorbis, 0 to 1
PEAK = 0.9  # most of full scale

LEADS = {
    "violin": Lead((40,), 57, 88, 0.35, 0.9),
    "cello": Lead((42,), 38, 69, 0.35, 0.9),
    "strings": Lead((40, 40, 42), 57, 84, 0.2, 0.8),
    "trumpet": Lead((56,), 56, 80, 0.15, 0.5),
    "alto-sax": Lead((65,), 53, 78, 0.4, 0.7),
    "tenor-sax": Lead((66,), 46, 72, 0.4, 0.7),
    "soprano-sax": Lead((64,), 58, 82, 0.4, 0.7),
    "flute": Lead((73,), 62, 91, 0.15, 0.8),
    "oboe": Lead((68,), 59, 84, 0.15, 0.7),
    "clarinet": Lead((71,), 52, 84, 0.25, 0.4),
    "shakuhachi": Lead((77,), 57, 84, 0.6, 0.7),
    "synth-saw": Lead((81,), 48, 84, 0.7, 0.7),
    "synth-square": Lead((80,), 50, 84, 0.7, 0.7),
    "fiddle": Lead((110,), 57, 86, 0.4, 0.7),
    "trombone": Lead((57,), 42, 67, 0.5, 0.5),
    "harmonica": Lead((22,), 57, 84, 0.4, 0.7),
    "pan-flute": Lead((75,), 60, 86, 0.25, 0.6),
    "fretless-lead": Lead((35,), 40, 67, 0.5, 0.6),
}
ORDER = (
    "violin", "alto-sax", "synth-saw", "cello", "flute", "trumpet", "strings", "shakuhachi", "clarinet", "oboe",
    "tenor-sax", "synth-square", "violin", "soprano-sax", "trombone", "cello", "fiddle", "flute", "strings",
    "synth-saw", "alto-sax", "harmonica", "trumpet", "shakuhachi", "oboe", "clarinet", "pan-flute", "synth-square",
    "violin", "fretless-lead",
)  # fmt: skip
HARMONY = (0, 2, 4, 5, 24, 25, 26, 27, 28, 16, 6, 46, 11)  # General MIDI programs: pianos, guitars, organ, harp, ...
PADS = (89, 90, 91, 92, 95, 88)
BASSES = (33, 34, 36, 38, 39, 87)
DRUM_KITS = (0, 0, 8, 16, 25, 32)
# Acoustic bass, viola, contrabass, string ensembles, choirs and voices, english horn, bassoon, the voice among leads.
HELD_OUT = (32, 41, 43, 48, 49, 50, 51, 52, 53, 54, 69, 70, 85)

SCALES = (  # semitones above the key
    (0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 10), (0, 2, 3, 5, 7, 9, 10), (0, 2, 3, 5, 7, 8, 11),
    (0, 2, 4, 5, 7, 9, 10), (0, 1, 3, 5, 7, 8, 10), (0, 2, 4, 7, 9), (0, 3, 5, 7, 10), (0, 2, 3, 7, 8),
)  # fmt: skip
PROGRESSIONS = (  # degrees of the scale, a chord a bar
    (0, 4, 5, 3), (0, 5, 3, 4), (0, 3, 4, 0), (5, 3, 0, 4), (0, 2, 3, 4), (0, 6, 5, 4), (0, 3, 0, 4), (0, 5, 1, 4),
)  # fmt: skip
HARMONY_CHANNEL, PAD_CHANNEL, BASS_CHANNEL = 4, 5, 6  # the desks of the lead come first


class Key(NamedTuple):
    """The tonic (0 is C), the scale of the melody and the seven tones of the chords, in semitones above the tonic."""

    tonic: int
    scale: tuple[int, ...]
    chords: tuple[int, ...]

    @property
    def pitches(self) -> set[int]:
        """Of the melody, in the octave above C."""
        return {(self.tonic + step) % 12 for step in self.scale}


class Band(NamedTuple):
    """Who plays, and how."""

    parts: set[str]
    pattern: str
    groove: str
    walk: list[float]


# --- the lead -----------------------------------------------------------------------------------------------------


def play_lead(song: Arrangement, rng: Random, lead: Lead, key: Key, bars: int) -> None:
    """The melody, and further desks in parallel below it."""
    notes, reverb = melody(rng, lead, key.pitches, bars, rng.uniform(0.3, 1.5)), rng.randint(10, 90)
    for desk, program in enumerate(lead.programs):
        pan = 64 + rng.randint(-20, 20) + (0, 25, -25)[desk]
        song.instrument(desk, program, 92 if desk else 112, pan, reverb)
        for number, value in ((101, 0), (100, 0), (6, BEND_RANGE), (38, 0)):  # registered parameter 0, the wheel's
            song.control(desk, 0, number, value)
        line = notes
        if desk:
            below = (rng.choice([3, 4, 5]), rng.choice([12, 17, 19]))[desk - 1]
            lowest = 38 if program == 42 else 55
            line = [note._replace(pitch=max(lowest, parallel(note.pitch - below, key.pitches))) for note in notes]
        sing(song, rng, desk, lead, line, 1 + desk)


def parallel(pitch: int, pitches: set[int]) -> int:
    """The next tone at or below."""
    while pitch % 12 not in pitches:
        pitch -= 1
    return pitch


# --- the band -----------------------------------------------------------------------------------------------------


def play_harmony(song: Arrangement, rng: Random, at: float, chord: list[int], pattern: str) -> None:
    """A bar that begins `at` quarter notes: block chords, an arpeggio, a strummed guitar, or offbeats."""

    def note(start: float, length: float, pitch: int) -> None:
        song.note(HARMONY_CHANNEL, start, length, pitch, rng.gauss(70, 9))

    if pattern == "block":
        for beat in rng.choice([[0], [0, 2], [0, 1, 2, 3], [0, 1.5, 3]]):
            for pitch in chord:
                note(at + beat + rng.uniform(0, 0.02), 1.0, pitch)
    elif pattern == "arpeggio":
        for i in range(8):
            note(at + i * 0.5, 0.6, chord[i % len(chord)] + 12 * ((i // len(chord)) % 2))
    elif pattern == "strum":
        for beat in (0, 1, 1.5, 2.5, 3, 3.5):
            for i, pitch in enumerate([*chord, chord[0] + 12]):
                note(at + beat + i * 0.02, 0.45, pitch)
    else:
        for beat in (0.5, 1.5, 2.5, 3.5):
            for pitch in chord:
                note(at + beat, 0.3, pitch + 12)


def play_bass(song: Arrangement, rng: Random, at: float, root: int, walk: list[float]) -> None:
    for i, beat in enumerate(walk):
        pitch = 28 + (root - 28) % 12 + rng.choice([0, 0, 0, 7, 12]) * (i > 0)
        song.note(BASS_CHANNEL, at + beat, 0.9 * (BEATS / len(walk)), pitch, rng.gauss(85, 8))


def play_drums(song: Arrangement, rng: Random, bar: int, groove: str) -> None:
    """Hats or a ride, kick and snare; a fill at the end of eight bars, a crash after it."""

    def hit(beat: float, pitch: int, velocity: float) -> None:
        song.note(DRUM_CHANNEL, bar * BEATS + beat, 0.1, pitch, rng.gauss(velocity, 6))

    for i in range(8):
        closed = rng.random() < 0.93
        hit(i * 0.5, (51 if groove == "brush" else 42) if closed else 46, 55 if i % 2 else 72)
    for beat in {"rock": (0, 2, 2.5), "four": (0, 1, 2, 3), "half": (0, 2.75), "brush": (0, 2)}[groove]:
        hit(beat, 36, 96)
    for beat in (2,) if groove == "half" else (1, 3):
        hit(beat, 40 if groove == "brush" else 38, 88)
    if bar % 8 == 7:
        for i in range(4):
            hit(3 + i * 0.25, 50 - i * 2, 90)
    if bar % 8 == 0:
        hit(0, 49, 80)


def seat_band(song: Arrangement, rng: Random) -> Band:
    """Draw the band and its instruments, each part up to 8 dB below its usual loudness."""
    harmony, pad, bass = rng.choice(HARMONY), rng.choice(PADS), rng.choice(BASSES)
    chances = {"harmony": 0.9, "pad": 0.4, "bass": 0.8, "drums": 0.65}
    parts = {part for part, chance in chances.items() if rng.random() < chance}
    volume = int(100 * 10 ** (rng.uniform(-8, 0) / 40))
    song.instrument(HARMONY_CHANNEL, harmony, volume, rng.randint(30, 98), 40)
    song.instrument(PAD_CHANNEL, pad, int(volume * 0.75), 64, 70)
    song.instrument(BASS_CHANNEL, bass, volume, 64, 5)
    song.instrument(DRUM_CHANNEL, rng.choice(DRUM_KITS), volume, 64, 20)
    pattern = rng.choice(["block", "arpeggio", "strum", "offbeat"])
    groove = rng.choice(["rock", "four", "half", "brush"])
    walk = rng.choice([[0, 2], [0, 1, 2, 3], [0, 1.5, 2, 3.5], [0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5]])
    return Band(parts, pattern, groove, walk)


def voicing(rng: Random, key: Key, degree: int) -> list[int]:
    """A triad, or a seventh chord, as MIDI pitches from the C below middle C."""
    degrees = [degree + third for third in ((0, 2, 4) if rng.random() < 0.7 else (0, 2, 4, 6))]
    root, *others = ((key.tonic + key.chords[d % 7]) % 12 for d in degrees)
    return [48 + root, *(48 + tone + (12 if tone < root else 0) for tone in others)]


# --- a track ------------------------------------------------------------------------------------------------------


def compose(rng: Random, lead: Lead, seconds: float) -> Arrangement:
    """A song of about so many seconds."""
    song = Arrangement(tempo=rng.uniform(62, 150))
    bars = max(4, round(seconds * song.tempo / 60 / BEATS))
    tonic, scale = rng.randrange(12), rng.choice(SCALES)
    key = Key(tonic, scale, scale if len(scale) == 7 else rng.choice(SCALES[:3]))
    progression = rng.choice(PROGRESSIONS)
    play_lead(song, rng, lead, key, bars)
    band = seat_band(song, rng)
    for bar in range(bars):
        at, chord = bar * BEATS, voicing(rng, key, progression[bar % len(progression)])
        if "harmony" in band.parts:
            play_harmony(song, rng, at, chord, band.pattern)
        if "pad" in band.parts:
            for pitch in chord:
                song.note(PAD_CHANNEL, at, 3.95, pitch + 12, 60)
        if "bass" in band.parts:
            play_bass(song, rng, at, chord[0], band.walk)
        if "drums" in band.parts:
            play_drums(song, rng, bar, band.groove)
    return song


def level(samples: np.ndarray, decibels: float) -> np.ndarray:
    """Sound brought to so many dB below full scale (root mean square), or as near as its peaks allow."""
    rms, peak = np.sqrt(np.mean(np.square(samples, dtype=np.float64))), np.abs(samples).max()
    return samples * np.float32(min(10 ** (decibels / 20) / rms, PEAK / peak))


def track(number: int, seconds: float, seed: int, soundfonts: Sequence[Path], target: Path) -> None:
    """Compose and render the track of that number, counted from 0.

    Raises:
        UserError: fluidsynth or the soundfont makes no sound.
    """
    rng = Random(seed * 100_000 + number)
    song = compose(rng, LEADS[ORDER[number % len(ORDER)]], seconds)
    soundfont = soundfonts[(number + number // len(ORDER)) % len(soundfonts)]
    samples = play(song, soundfont)
    if not samples.any():
        raise UserError(f"'{soundfont}' makes no sound; name another with --soundfont")
    samples = level(samples, rng.uniform(-22, -15))
    remove_leftovers(target.parent)
    write_atomic(target, lambda part: write_vorbis(part, samples, RATE, QUALITY))


def run(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m scripts.hard_negatives", description=__doc__)
    parser.add_argument("output", type=Path, metavar="OUT", help="gets a folder for each track")
    parser.add_argument("--tracks", type=int, default=len(ORDER), help=f"how many (default: {len(ORDER)})")
    parser.add_argument("--seconds", type=finite, default=42.0, help="length of a track, about (default: 42)")
    parser.add_argument("--seed", type=int, default=1, help="other seeds make other music (default: 1)")
    parser.add_argument("--soundfont", type=Path, action="append", help="instead of Debian's three; several take turns")
    args = parser.parse_args(argv)
    if args.tracks < 1:
        raise UserError(f"--tracks is {args.tracks} but must be at least 1")
    if not 0 < args.seconds <= 3600:
        raise UserError(f"--seconds is {args.seconds:g} but must be above 0 and at most 3600")
    soundfonts = args.soundfont or SOUNDFONTS
    require_synthesizer(soundfonts, INSTALL)
    require_folder(args.output)
    for number in tqdm(range(args.tracks), "Rendering", unit="track"):
        name = f"{number + 1:03d}_{ORDER[number % len(ORDER)]}"
        target = args.output / name / "accompaniment.ogg"
        if not target.exists():
            track(number, args.seconds, args.seed, soundfonts, target)
    print(f"{args.tracks} tracks in '{args.output}'")
    return 0


if __name__ == "__main__":
    main(run)
