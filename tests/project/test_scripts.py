"""The scripts around the instrument suite: MIDI that a synthesizer reads, and two trainings that are compared."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from printed import tables
from tiny import random_unet, tiny_config

from diffvocsep.checkpoint import load_model, release
from diffvocsep.config import load_config, to_dict
from diffvocsep.data.synthetic.score import random_score
from diffvocsep.util.errors import UserError
from scripts import grow, held_out_family, pseudo_stems, render_soundfont

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("value", "encoded"), [(0, "00"), (0x40, "40"), (0x7F, "7f"), (0x80, "8100"),
                                                (0x2000, "c000"), (0x3FFF, "ff7f"), (0x1FFFFF, "ffff7f")])  # fmt: skip
def test_numbers_are_written_as_the_midi_standard_shows(value, encoded):
    assert render_soundfont.variable_length(value).hex() == encoded


def events(data: bytes) -> list[tuple[int, int, bytes]]:
    """(tick, status, data) of a format 0 file, read anew by the rules of the standard."""
    assert data[:4] == b"MThd" and data[14:18] == b"MTrk"
    track = data[22:]
    assert len(track) == int.from_bytes(data[18:22], "big")
    found, tick, at = [], 0, 0
    while at < len(track):
        delta = 0
        while True:
            byte = track[at]
            at += 1
            delta = delta << 7 | byte & 127
            if byte < 128:
                break
        tick, status = tick + delta, track[at]
        size = 2 if status == 0xFF else 1 if status & 0xF0 == 0xC0 else 2
        found.append((tick, status, track[at + 1 : at + 1 + size]))
        at += 1 + size
    return found


@pytest.mark.parametrize("family", render_soundfont.FAMILIES)
def test_what_a_family_plays_is_a_whole_midi_file(family):
    rng = np.random.default_rng(1)
    score = random_score(rng, 8.0)
    found = events(render_soundfont.midi(rng, score, family))
    sounding, struck = set(), 0
    for _, status, (pitch, *rest) in found[:-1]:
        if status & 0xF0 == 0x90:
            sounding.add(pitch)
            struck += 1
            assert rest[0] > 0
        elif status & 0xF0 == 0x80:
            sounding.discard(pitch)
    assert struck > 10 and not sounding  # every note ends
    assert found[-1][1:] == (0xFF, bytes([0x2F, 0]))
    assert {status & 15 for _, status, _ in found[:-1]} == {9 if family == "drums" else 0}
    kinds = [status & 0xF0 for _, status, _ in found]
    assert family == "drums" or kinds[:2] == [0xC0, 0xE0]  # chosen and tuned before the first note
    programs = [data[0] for _, status, data in found if status & 0xF0 == 0xC0]
    assert all(program in render_soundfont.FAMILIES[family] for program in programs)
    seconds = found[-1][0] / (2 * render_soundfont.TICKS)
    assert 6 < seconds < 14  # the last bar may go on after the song's end


def test_a_missing_synthesizer_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(render_soundfont.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="apt install fluidsynth"):
        render_soundfont.run([str(tmp_path)])


@pytest.mark.slow
@pytest.mark.skipif(
    not (shutil.which("fluidsynth") and any(Path(p).exists() for p in render_soundfont.SOUNDFONTS)),
    reason="needs fluidsynth and a soundfont",
)
def test_a_soundfont_sounds(tmp_path):
    assert render_soundfont.run([str(tmp_path), "--songs", "1"]) == 0
    for family in render_soundfont.FAMILIES:
        samples, rate = soundfile.read(tmp_path / family / "song 00" / "accompaniment.flac")
        assert samples.shape == (8 * 44100, 2) and rate == 44100
        assert 0.003 < samples.std() < 0.5 and np.abs(samples).max() < 1


def test_the_steps_of_two_trainings_are_chosen_once(tmp_path, monkeypatch):
    """On a second start the probes would be finished, and take no time."""
    trained, clock = [], iter([0.0, 30.0, 0.0, 30.0])

    def train(folder: Path, steps: int, overrides: list[str], config: Path, device: str, resume: str) -> float:
        trained.append((steps, resume))
        return 5 + 0.5 * steps

    monkeypatch.setattr(held_out_family, "train", train)
    monkeypatch.setattr(held_out_family.time, "monotonic", lambda: next(clock))
    args = SimpleNamespace(
        output=tmp_path, minutes=10.0, config=Path("config.yaml"), device="cpu", overrides=["train.lr=0.1"]
    )
    steps = held_out_family.choose_steps(args)
    assert steps == (0.8 * 600 - 30 - 2 * 5) / 2 / 0.5  # what a training takes beside its steps, it takes twice
    assert trained == [(10, "none"), (40, "none")]
    assert held_out_family.choose_steps(args) == steps and len(trained) == 2
    args.minutes = 20.0
    with pytest.raises(UserError, match="other settings"):
        held_out_family.choose_steps(args)
    args.minutes, args.output = 1.0, tmp_path / "other"  # 48 s, of which 40 are taken, are 8 steps each
    with pytest.raises(UserError, match="--minutes 1 leaves no time to train here; give at least 2$"):
        held_out_family.choose_steps(args)
    assert not args.output.exists()


@pytest.mark.slow
def test_two_trainings_are_compared(tmp_path):
    tiny = ["audio.sample_rate=8000", "audio.n_fft=512", "audio.hop_length=128", "audio.win_length=512",
            "audio.bandwidth=0", "model.base_channels=4", "data.synthetic_songs=2", "data.segment_seconds=0.5",
            "train.batch_size=1", "train.val_batches=1", "train.val_seconds=1"]  # fmt: skip
    command = [sys.executable, "-m", held_out_family.__name__, "--family", "drums", "--steps", "2", "--songs", "2"]
    done = subprocess.run([*command, "--output", str(tmp_path), *tiny], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (rows,) = tables(done.stdout)
    assert len(rows) == 7 and "drums (held out)" in rows
    assert len(re.findall(r"other families minus drums: -?\d", done.stdout)) == 2 and "2 steps each" in done.stdout
    assert (tmp_path / "held_out.csv").exists()


# --- larger networks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more", [["model.blocks=3"], ["model.attention=[1, 2]"], ["model.blocks=2", "model.attention=[2]"]]
)
def test_a_grown_network_begins_as_the_one_before_and_can_learn(tmp_path, capsys, more):
    config = tiny_config()
    before, after = tmp_path / "before.safetensors", tmp_path / "after.safetensors"
    release({"ema": random_unet(config).state_dict(), "config": to_dict(config), "step": 3}, before)
    assert grow.run([str(before), str(after), *more]) == 0
    (small, _), (large, grown) = load_model(before), load_model(after)
    assert grown == load_config(None, more, base=config)
    size = sum(weight.numel() for weight in large.parameters())
    assert size > sum(weight.numel() for weight in small.parameters())
    assert f"{size / 1e6:.2f} M" in capsys.readouterr().out
    x_t, mixture = torch.randn(2, 2, 4, small.bins, 9)
    t, guessed = torch.tensor([0, 999]), torch.tensor([0.0, 1.0])
    torch.testing.assert_close(large(x_t, mixture, t, guessed), small(x_t, mixture, t, guessed))
    large(x_t, mixture, t, guessed).square().sum().backward()
    silent = [p for name, p in large.named_parameters() if name not in small.state_dict()
              and re.search(r"\.conv2\.weight|\.out\.weight", name)]  # fmt: skip
    assert silent and all(not p.any() and p.grad.abs().max() > 0 for p in silent)


@pytest.mark.parametrize("other", ["model.base_channels=16", "model.frequency_linear=0"])
def test_a_network_of_another_width_is_not_grown(tmp_path, other):
    config, path = tiny_config(), tmp_path / "before.safetensors"
    release({"ema": random_unet(config).state_dict(), "config": to_dict(config), "step": 3}, path)
    with pytest.raises(UserError, match="these settings change or drop '.*'; grow blocks or attention only$"):
        grow.run([str(path), str(tmp_path / "after.safetensors"), other])
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


# --- stems where two separators agree -----------------------------------------------------------------------------


def test_segments_are_labelled_by_agreement_and_by_silence():
    """At 1 s a segment: a voice of power 1 in a song of power 2, and two guesses of it that are `e` apart agree by
    10 log10(1 / e^2) dB."""
    segments = pseudo_stems.RATE
    song, voice = torch.randn(2, 2, 6 * segments, generator=torch.Generator().manual_seed(0))
    ours, theirs = voice.clone(), voice.clone()

    def at(second: int) -> slice:
        return slice(second * segments, (second + 1) * segments)

    rest = song[:, at(0)]
    ours[:, at(0)] += 0.19 * rest  # mean off by 0.19 / 2; apart by 0.19: 14.4 dB
    ours[:, at(1)] += 0.5 * song[:, at(1)]  # 6.3 dB
    ours[:, at(2)] *= 0.01  # neither finds a voice: -43 dB of the song
    theirs[:, at(2)] *= 0.01
    ours[:, at(3)] *= 0.01  # one of them finds one
    ours[:, at(4)], theirs[:, at(4)] = 0.07 * voice[:, at(4)], 0.07 * voice[:, at(4)]  # agreed, but at -26 dB
    expected = ["voice", "drop", "music", "drop", "drop", "voice"]
    mixture = song + voice
    assert pseudo_stems.label(ours, theirs, mixture, 1.0, agree=8.0, silent=-30.0) == expected
    assert pseudo_stems.label(ours, theirs, mixture, 1.0, agree=6.0, silent=-30.0)[1] == "voice"
    assert pseudo_stems.label(ours, theirs, mixture, 1.0, agree=15.0, silent=-30.0)[0] == "drop"
    assert pseudo_stems.label(ours, theirs, mixture, 1.0, agree=8.0, silent=-50.0)[2] == "drop"
    assert len(pseudo_stems.label(ours, theirs, mixture, 4.0, agree=8.0, silent=-30.0)) == 1  # whole segments only
