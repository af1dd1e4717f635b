"""Real instruments for `evaluate.py --instruments`: the synthesizer's scores, played by a soundfont.

    apt install fluidsynth fluid-soundfont-gm && pip install mido
    python -m scripts.render_soundfont DIR
    python evaluate.py --instruments --model_path PATH --dataset stems --root DIR

Writes DIR/<family>/song 00/accompaniment.flac. Song i has the chords, tempo and tuning of the synthesizer's song i, so
its voice fits.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile
from tqdm.auto import tqdm

from diffvocsep.data.synthetic.score import Score, melody, random_score, voicing
from diffvocsep.data.synthetic.tracks import SPLITS
from diffvocsep.evaluation.families import SONG_SECONDS
from diffvocsep.util.atomic import write_atomic
from diffvocsep.util.cli import Parser, main
from scripts.midi import DRUM_CHANNEL, RATE, Song, play, require_synthesizer

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
QUARTERS = 2  # quarter notes a second, where a file names no tempo
BEND_RANGE = 2  # semitones that the pitch wheel reaches to each side, where nothing else is said
KICK, SNARE, HAT = 36, 38, 42


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


def compose(rng: np.random.Generator, score: Score, family: str) -> Song:
    """One family plays the score in its tuning."""
    programs = FAMILIES[family]
    channel, song = (0 if programs else DRUM_CHANNEL), Song()
    if programs:
        song.add(0, "program_change", program=int(rng.choice(programs)))
        song.add(0, "pitchwheel", pitch=round(score.tuning / BEND_RANGE * 8192))
    for start, duration, pitch, velocity in (notes if programs else beats)(rng, score):
        song.note(channel, QUARTERS * start, QUARTERS * duration, pitch, velocity)
    return song


def render(song: Song, soundfont: Path, target: Path) -> None:
    """Play into `target` (.flac), as long as the synthesizer's songs."""
    samples, length = play(song, soundfont), round(SONG_SECONDS * RATE)
    samples = np.pad(samples, ((0, max(0, length - len(samples))), (0, 0)))[:length]
    write_atomic(target, lambda part: soundfile.write(part, samples, RATE, "PCM_16", format="FLAC"))


def run(argv: list[str] | None = None) -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("output", type=Path, metavar="DIR")
    parser.add_argument("--soundfont", type=Path, help="a .sf2 file (default: the one that Debian installs)")
    parser.add_argument("--songs", type=int, default=30, help="songs of each family")
    args = parser.parse_args(argv)
    soundfont = args.soundfont or next((p for p in map(Path, SOUNDFONTS) if p.exists()), Path(SOUNDFONTS[0]))
    require_synthesizer([soundfont], "fluidsynth fluid-soundfont-gm")
    jobs = [(family, index) for family in FAMILIES for index in range(args.songs)]
    for family, index in tqdm(jobs, "Rendering", unit="song"):
        target = args.output / family / f"song {index:02d}" / "accompaniment.flac"
        if not target.exists():
            score = random_score(np.random.default_rng(np.random.SeedSequence([SPLITS["test"], index])), SONG_SECONDS)
            rng = np.random.default_rng([index, list(FAMILIES).index(family)])
            render(compose(rng, score, family), soundfont, target)
    return 0


if __name__ == "__main__":
    main(run)
