"""Real instruments for `evaluate.py --instruments`: the synthesizer's scores, played by a soundfont.

    apt install fluidsynth fluid-soundfont-gm
    python -m scripts.render_soundfont DIR
    python evaluate.py --instruments --model_path PATH --dataset stems --root DIR

Writes DIR/<family>/song 00/accompaniment.flac. Song i has the chords, tempo and tuning of the synthesizer's song i, so
its voice fits.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import soundfile
from tqdm.auto import tqdm

from diffvocsep.data.synthetic.score import Score, melody, random_score, voicing
from diffvocsep.data.synthetic.tracks import SPLITS
from diffvocsep.evaluation.families import RATE, SONG_SECONDS
from diffvocsep.util.atomic import write_atomic
from diffvocsep.util.cli import Parser, main
from diffvocsep.util.errors import UserError

# General MIDI programs of each family; drums are a channel, not a program.
FAMILIES: dict[str, tuple[int, ...]] = {
    "piano": (0, 1, 4),
    "organ": (16, 19),
    "guitar": (24, 25, 27, 30),
    "strings": (40, 42, 48),
    "brass": (56, 60, 61),
    "reed": (65, 68, 71),
    "flute": (73, 75),
    "drums": (),
}
SOUNDFONTS = ("/usr/share/sounds/sf2/FluidR3_GM.sf2", "/usr/share/sounds/sf2/TimGM6mb.sf2")
TICKS = 480  # per quarter note, at 120 quarter notes a minute: 960 a second
DRUM_CHANNEL = 9
KICK, SNARE, HAT = 36, 38, 42

Event = tuple[float, bytes]  # time in s, MIDI message


def notes(rng: np.random.Generator, score: Score) -> list[tuple[float, float, int, int]]:
    """Chords on the beats and a melody above: (start in s, duration in s, MIDI pitch, velocity 1 to 127)."""
    out = []
    hit = rng.random(8) < 0.5
    hit[0] = True
    for start, chord in score.bars():
        for beat in range(score.beats_per_bar):
            if hit[beat]:
                out += [(start + beat * score.beat, 0.9 * score.beat, pitch, int(rng.integers(60, 90)))
                        for pitch in voicing(chord, 52)]  # fmt: skip
    for phrase in melody(rng, score, 60, 79, activity=0.85):
        out += [(note.start, 0.95 * note.duration, note.pitch, int(60 + 60 * note.velocity)) for note in phrase]
    return out


def beats(rng: np.random.Generator, score: Score) -> list[tuple[float, float, int, int]]:
    """Kick, snare and hats, like `notes`."""
    out = []
    for start, _ in score.bars():
        for eighth in range(2 * score.beats_per_bar):
            time, velocity = start + eighth * score.beat / 2, int(rng.integers(70, 110))
            out.append((time, 0.1, HAT, velocity))
            if eighth % 4 == 0 or rng.random() < 0.15:
                out.append((time, 0.1, KICK, velocity))
            if eighth % 4 == 2:
                out.append((time, 0.1, SNARE, velocity))
    return out


def midi(rng: np.random.Generator, score: Score, family: str) -> bytes:
    """A Standard MIDI File, format 0, of one family playing the score in its tuning."""
    programs = FAMILIES[family]
    channel = 0 if programs else DRUM_CHANNEL
    events: list[Event] = []
    if programs:
        bend = 8192 + round(score.tuning / 2 * 8192)  # the wheel reaches two semitones
        events += [(0.0, bytes([0xC0, int(rng.choice(programs))])), (0.0, bytes([0xE0, bend & 127, bend >> 7]))]
    for start, duration, pitch, velocity in (notes if programs else beats)(rng, score):
        events.append((start, bytes([0x90 | channel, pitch, min(127, velocity)])))
        events.append((start + duration, bytes([0x80 | channel, pitch, 0])))
    track, clock = bytearray(), 0
    order = (0x80, 0xC0, 0xE0, 0x90)  # at one moment: notes end, the instrument is chosen and tuned, notes begin
    for time, message in sorted(events, key=lambda event: (event[0], order.index(event[1][0] & 0xF0))):
        tick = round(time * 2 * TICKS)
        track += variable_length(tick - clock) + message
        clock = tick
    track += bytes([0, 0xFF, 0x2F, 0])
    return b"MThd" + struct.pack(">IHHH", 6, 0, 1, TICKS) + b"MTrk" + struct.pack(">I", len(track)) + bytes(track)


def variable_length(value: int) -> bytes:
    """Seven bits a byte, the highest first."""
    out = [value & 127]
    while value := value >> 7:
        out.append(128 | (value & 127))
    return bytes(reversed(out))


def render(score: bytes, soundfont: Path, target: Path) -> None:
    """Play a MIDI file into `target` (.flac), as long as the synthesizer's songs."""
    with tempfile.TemporaryDirectory() as folder:
        source, wav = Path(folder) / "a.mid", Path(folder) / "a.wav"
        source.write_bytes(score)
        command = ["fluidsynth", "-ni", "-r", str(RATE), "-g", "0.5", "-F", str(wav), str(soundfont), str(source)]
        done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", errors="replace")
        if done.returncode or not wav.exists():
            raise UserError(f"fluidsynth failed: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}")
        samples, _ = soundfile.read(wav, always_2d=True, dtype="float32")
    length = round(SONG_SECONDS * RATE)
    samples = np.pad(samples, ((0, max(0, length - len(samples))), (0, 0)))[:length]
    write_atomic(target, lambda part: soundfile.write(part, samples, RATE, "PCM_16", format="FLAC"))


def run(argv: list[str] | None = None) -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("output", type=Path, metavar="DIR")
    parser.add_argument("--soundfont", type=Path, help="a .sf2 file (default: the one that Debian installs)")
    parser.add_argument("--songs", type=int, default=30, help="songs of each family")
    args = parser.parse_args(argv)
    soundfont = args.soundfont or next((p for p in map(Path, SOUNDFONTS) if p.exists()), None)
    if shutil.which("fluidsynth") is None or soundfont is None:
        raise UserError("this needs fluidsynth and a soundfont: apt install fluidsynth fluid-soundfont-gm")
    if not soundfont.exists():
        raise UserError(f"there is no soundfont '{soundfont}'")
    jobs = [(family, index) for family in FAMILIES for index in range(args.songs)]
    for family, index in tqdm(jobs, "Rendering", unit="song"):
        target = args.output / family / f"song {index:02d}" / "accompaniment.flac"
        if not target.exists():
            score = random_score(np.random.default_rng(np.random.SeedSequence([SPLITS["test"], index])), SONG_SECONDS)
            rng = np.random.default_rng([index, list(FAMILIES).index(family)])
            render(midi(rng, score, family), soundfont, target)
    return 0


if __name__ == "__main__":
    main(run)
