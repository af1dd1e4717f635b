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
from scripts import grow_network, hard_negatives, held_out_family, midi, pseudo_stems, render_soundfont

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("family", render_soundfont.FAMILIES)
def test_what_a_family_plays_is_a_whole_midi_file(family):
    rng = np.random.default_rng(1)
    score = random_score(rng, 8.0)
    file, ticks = render_soundfont.compose(rng, score, family).file(), 0
    assert (file.type, len(file.tracks)) == (0, 1)
    sounding, struck, programs = set(), 0, []
    for message in file.tracks[0]:
        assert message.channel == (9 if family == "drums" else 0)
        ticks += message.time
        if message.type == "note_on":
            sounding.add(message.note)
            struck += 1
            assert message.velocity > 0
        elif message.type == "note_off":
            sounding.discard(message.note)
        elif message.type == "program_change":
            programs.append(message.program)
    assert struck > 10 and not sounding  # every note ends
    kinds = [message.type for message in file.tracks[0]]
    assert family == "drums" or kinds[:2] == ["program_change", "pitchwheel"]  # before the first note
    assert len(programs) == (family != "drums") and set(programs) <= set(render_soundfont.FAMILIES[family])
    assert 6 < ticks / 960 < 14  # s; the last bar may go on after the song's end


def test_a_song_is_written_as_the_midi_standard_says(tmp_path):
    """At one moment notes end, then the instrument is chosen, then notes begin; times are differences of ticks."""
    song = midi.Song(tempo=100)
    song.note(1, 1, 1, 60, 300.7)
    song.note(1, 0, 1, 64, 80.2)
    song.add(1, "program_change", channel=1, program=40)
    song.file().save(tmp_path / "a.mid")
    track = "00 ff5103 0927c0  00 914050  8360 814000  00 c128  00 913c7f  8360 813c00  00 ff2f00"  # 600,000 us; 480
    header = "4d546864 00000006 0000 0001 01e0 4d54726b 00000020"
    assert (tmp_path / "a.mid").read_bytes().hex() == (header + track).replace(" ", "")


def test_a_missing_synthesizer_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(midi.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="apt install fluidsynth"):
        render_soundfont.run([str(tmp_path)])


@pytest.mark.parametrize("script", [render_soundfont, hard_negatives])
def test_a_missing_package_is_one_sentence(tmp_path, monkeypatch, script):
    monkeypatch.setitem(sys.modules, "mido", None)
    with pytest.raises(UserError, match="pip install mido$"):
        script.run([str(tmp_path)])


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
    assert grow_network.run([str(before), str(after), *more]) == 0
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


def test_a_network_grown_to_refine_does_one_step_as_before_and_a_second_as_good(tmp_path):
    """New blocks beside it can learn all of their weights, too."""
    config, before, after = tiny_config(), tmp_path / "before.safetensors", tmp_path / "after.safetensors"
    release({"ema": random_unet(config).state_dict(), "config": to_dict(config), "step": 3}, before)
    assert grow_network.run([str(before), str(after), "model.refine_rank=2", "model.blocks=2"]) == 0
    (small, _), (large, _) = load_model(before), load_model(after)
    x_t, mixture = torch.randn(2, 2, 4, small.bins, 9)
    last = torch.full((2,), config.diffusion.timesteps - 1)
    t, guessed = last // 3, torch.ones(2)
    torch.testing.assert_close(large(x_t, mixture, t), small(x_t, mixture, t))
    torch.testing.assert_close(large(x_t, mixture, t, guessed), small(torch.zeros_like(x_t), mixture, last))
    optimizer = torch.optim.SGD(large.parameters(), 0.1)
    for _ in range(2):  # in the first step only what is zero has a gradient
        optimizer.zero_grad()
        large(x_t, mixture, t, guessed).square().mean().backward()
        optimizer.step()
    new = [p for name, p in large.named_parameters() if "refine_" in name]
    assert new and all(p.grad.abs().max() > 0 for p in new)


def test_songs_without_stems_are_found_through_links_too(tmp_path):
    """Nothing is labelled here: what is missing next is the model."""
    songs, elsewhere = tmp_path / "songs", tmp_path / "elsewhere"
    (elsewhere / "song").mkdir(parents=True)
    songs.mkdir()
    (elsewhere / "song" / "mixture.ogg").touch()
    arguments = [str(songs), str(tmp_path / "out"), "--model", str(tmp_path / "none.safetensors")]
    with pytest.raises(UserError, match=r"there is no mixture\.\* below"):
        pseudo_stems.run(arguments)
    (songs / "link").symlink_to(elsewhere, target_is_directory=True)
    with pytest.raises(UserError, match="none.safetensors"):
        pseudo_stems.run(arguments)


@pytest.mark.parametrize("other", ["model.base_channels=16", "model.frequency_linear=0"])
def test_a_network_of_another_width_is_not_grown(tmp_path, other):
    config, path = tiny_config(), tmp_path / "before.safetensors"
    release({"ema": random_unet(config).state_dict(), "config": to_dict(config), "step": 3}, path)
    with pytest.raises(UserError, match="these settings change or drop '.*'; only .*model.refine_rank grow it$"):
        grow_network.run([str(path), str(tmp_path / "after.safetensors"), other])
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
