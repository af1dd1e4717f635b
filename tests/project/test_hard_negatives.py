"""scripts/hard_negatives.py: the music of a seed, who never plays, what stays on the disk."""

from __future__ import annotations

import hashlib
import re
import shutil
from itertools import pairwise
from pathlib import Path
from random import Random

import numpy as np
import pytest
import soundfile

from diffvocsep.util import cli
from scripts import hard_negatives, midi
from scripts.hard_negatives import HELD_OUT, LEADS, ORDER, SOUNDFONTS, compose
from scripts.render_soundfont import FAMILIES
from scripts.singing import BEND_RANGE, Arrangement, Gesture, Note

OTHERS = {*hard_negatives.HARMONY, *hard_negatives.PADS, *hard_negatives.BASSES}  # of the band, beside drums
TRACKS = 19  # of the call in its docstring


def song(number: int, seconds: float = 10.0) -> Arrangement:
    return compose(Random(100_000 + number), LEADS[ORDER[number]], seconds)


def notes(arrangement: Arrangement, channel: int) -> list[dict[str, int]]:
    return [fields for _, kind, fields in arrangement.events if kind == "note_on" and fields["channel"] == channel]


def programs(arrangement: Arrangement) -> dict[int, int]:
    """Channel -> program."""
    return {f["channel"]: f["program"] for _, kind, f in arrangement.events if kind == "program_change"}


# --- the music ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "digest"), [(0, "aee745c0c381ec07"), (6, "950c4153606079c8"), (18, "15a552a01349f872")]
)
def test_the_music_of_a_seed_stays_what_it_was(number, digest):
    """Tempo, instruments and notes of three of the tracks; digests are of the files that were rendered then."""
    track, tick, seen = song(number, 42.0).file().tracks[0], 0, hashlib.sha256()
    for message in track:
        tick += message.time
        if message.type in ("set_tempo", "program_change", "note_on", "note_off"):
            seen.update(f"{tick} {bytes(message.bytes()).hex()}\n".encode())
    assert seen.hexdigest()[:16] == digest


def test_another_seed_makes_other_music():
    first, again, other = (compose(Random(seed), LEADS["cello"], 10.0).events for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize("number", [ORDER.index(lead) for lead in LEADS])
def test_every_lead_keeps_to_its_range_and_every_note_ends(number):
    lead, arrangement = LEADS[ORDER[number]], song(number)
    assert min(note["note"] for note in notes(arrangement, 0)) >= lead.low
    assert max(note["note"] for note in notes(arrangement, 0)) <= lead.high
    for desk in range(1, len(lead.programs)):
        pitches = [note["note"] for note in notes(arrangement, desk)]
        assert len(pitches) == len(notes(arrangement, 0)) and min(pitches) >= (38 if desk == 2 else 55)
    sounding = dict.fromkeys(range(16), 0)
    for message in arrangement.file().tracks[0]:
        if message.type in ("note_on", "note_off"):
            sounding[message.channel] += 1 if message.type == "note_on" else -1
    assert set(sounding.values()) == {0}


def test_a_gesture_slides_from_the_note_before_and_wavers_late():
    """Of 60 notes of 2 s, a fifth above the one before: where the pitch begins, and how it moves early and late."""
    lead = LEADS["violin"]._replace(slide=1.0, vibrato=1.0)
    for seed in range(60):
        gesture = Gesture(Random(seed), lead, Note(0, 1, 67, True), 60, 2.0)
        assert gesture.bend(0) == pytest.approx(-7 + gesture.detune)
        assert gesture.bend(0.1) < gesture.detune or gesture.glide < 0.1
        late = [gesture.bend(t) - gesture.detune for t in np.arange(0.7, 2.0, 0.002)]
        assert 0.09 < max(late) <= 0.5 and -0.5 <= min(late) < -0.09
        cycles = sum(a < 0 <= b for a, b in pairwise(late))
        assert 4.5 * 1.3 - 1 <= cycles <= 7 * 1.3 + 1
        assert all(0.45 <= gesture.level(t) <= 1 for t in np.arange(0, 2, 0.02))


def test_the_wheel_reaches_as_far_as_the_file_says():
    arrangement = Arrangement(120)
    for semitones in (-BEND_RANGE - 1, 0, BEND_RANGE):
        arrangement.bend(0, 0, semitones)
    assert [fields["pitch"] for _, _, fields in arrangement.events] == [-8192, 0, 8191]


# --- who plays ----------------------------------------------------------------------------------------------------


def test_who_is_held_out_never_plays():
    assert not set(HELD_OUT) & (OTHERS | {program for lead in LEADS.values() for program in lead.programs})
    for number in range(len(ORDER)):
        chosen = programs(song(number, 1.0))
        chosen.pop(midi.DRUM_CHANNEL)
        assert not set(HELD_OUT) & set(chosen.values())
        assert tuple(chosen.pop(desk) for desk in sorted(chosen) if desk < 4) == LEADS[ORDER[number]].programs
        assert set(chosen.values()) <= OTHERS


def test_the_help_tells_which_families_of_the_suite_are_heard():
    told = re.findall(r"with (\w+)((?: \d+)+)", " ".join(hard_negatives.__doc__.split()))
    used = OTHERS | {program for lead in LEADS.values() for program in lead.programs}
    shared = {family: used & set(numbers) for family, numbers in FAMILIES.items()}
    assert {family: {int(n) for n in numbers.split()} for family, numbers in told} | {"drums": set()} == shared


@pytest.mark.slow
def test_the_help_tells_what_is_in_its_tracks():
    heard, choir = set(), []
    for number in range(TRACKS):
        arrangement = song(number, 42.0)
        playing = {p for channel, p in programs(arrangement).items() if channel != 9 and notes(arrangement, channel)}
        heard |= playing
        choir += [number + 1] * (91 in playing)
    assert choir == [1]
    assert {number for family in FAMILIES.values() for number in family} - heard == {1, 19, 25, 27, 30, 48, 60, 61, 75}


# --- the command --------------------------------------------------------------------------------------------------


@pytest.fixture
def silent_synthesizer(monkeypatch):
    """Noise in the place of fluidsynth's sound."""
    noise = 0.1 * np.random.default_rng(0).standard_normal((midi.RATE // 2, 2)).astype(np.float32)
    monkeypatch.setattr(hard_negatives, "play", lambda *_: noise)
    monkeypatch.setattr(hard_negatives, "require_synthesizer", lambda *_: None)


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as exit_:
        cli.main(lambda: hard_negatives.run([*map(str, arguments), "--seconds", "1"]))
    return exit_.value.code


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_finished_tracks_are_kept(silent_synthesizer, tmp_path, capsys):
    assert call(tmp_path, "--tracks", 2) == 0
    first = files(tmp_path)
    assert set(first) == {f"{name}/accompaniment.ogg" for name in ("001_violin", "002_alto-sax")}
    for name in first:
        samples, rate = soundfile.read(tmp_path / name)
        assert (samples.shape, rate) == ((midi.RATE // 2, 2), midi.RATE)
        assert -22.5 < 20 * np.log10(np.sqrt(np.mean(samples**2))) < -14.5
    (tmp_path / "001_violin" / "accompaniment.ogg").write_bytes(b"mine")
    assert call(tmp_path, "--tracks", 3) == 0
    assert files(tmp_path).items() > (first | {"001_violin/accompaniment.ogg": b"mine"}).items()
    assert len(files(tmp_path)) == 3 and capsys.readouterr().out.endswith(f"3 tracks in '{tmp_path}'\n")


def test_a_half_written_track_is_not_left(silent_synthesizer, tmp_path, monkeypatch, capsys):
    def full(path: Path, *_: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hard_negatives, "write_vorbis", full)
    assert call(tmp_path, "--tracks", 1) == 1
    assert not files(tmp_path)
    assert "No space left on device" in capsys.readouterr().err.splitlines()[-1]


def test_loud_music_is_not_clipped():
    peaks = np.zeros((1000, 2), np.float32)
    peaks[::100] = 0.01
    assert np.abs(hard_negatives.level(peaks, -15.0)).max() == pytest.approx(0.9)


@pytest.mark.parametrize(("arguments", "words"), [
    (["OUT", "--tracks", "0"], "--tracks is 0 but must be at least 1"),
    (["OUT", "--soundfont", "no.sf2"], "there is no soundfont 'no.sf2': apt install fluidsynth fluid-soundfont-gm "),
    (["OUT", "--soundfont", "file"], "'file' is no soundfont; name a .sf2 or .sf3 file with --soundfont"),
    (["file"], "nothing can be written into the folder 'file' "),
    ([], "the following arguments are required: OUT"),
])  # fmt: skip
def test_what_is_wrong_is_one_sentence(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    monkeypatch.setattr(midi.shutil, "which", lambda name: name)
    if arguments == ["file"]:
        monkeypatch.setattr(hard_negatives, "require_synthesizer", lambda *_: None)
    assert call(*arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {words}")
    assert files(tmp_path) == {"file": b""}


def test_a_length_is_above_nothing(tmp_path, capsys):
    for seconds, words in (
        ("0", "--seconds is 0 but must be above 0"),
        ("1e9", "at most 3600"),
        ("nan", "invalid finite value: 'nan'"),
    ):
        with pytest.raises(SystemExit) as exit_:
            cli.main(lambda seconds=seconds: hard_negatives.run([str(tmp_path), "--seconds", seconds]))
        assert exit_.value.code == 2 and words in capsys.readouterr().err


def test_a_missing_synthesizer_is_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(midi.shutil, "which", lambda name: None)
    assert call(tmp_path) == 2
    assert (
        capsys.readouterr().err
        == f"error: this needs fluidsynth and soundfonts: apt install {hard_negatives.INSTALL}\n"
    )


@pytest.mark.slow
@pytest.mark.skipif(
    not (shutil.which("fluidsynth") and any(path.exists() for path in SOUNDFONTS)),
    reason="needs fluidsynth and a soundfont",
)
def test_a_lead_sounds(tmp_path):
    soundfont = next(path for path in SOUNDFONTS if path.exists())
    assert call(tmp_path, "--tracks", 1, "--soundfont", soundfont) == 0
    samples, rate = soundfile.read(tmp_path / "001_violin" / "accompaniment.ogg")
    assert rate == midi.RATE and samples.shape[1] == 2 and len(samples) > 5 * rate  # four bars
    assert -23 < 20 * np.log10(np.sqrt(np.mean(samples**2))) < -14 and np.abs(samples).max() < 1
