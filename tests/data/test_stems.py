"""Songs from folders: what is found, what is read, what is kept, and what is said when something is wrong."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from tracks import message, names, need
from trainers import make

from diffvocsep.config import load_config
from diffvocsep.data import check, dev_tracks, stems, train_tracks
from diffvocsep.data.stems import StemTrack, fill_cache, find_tracks
from diffvocsep.data.synthetic.song import FAMILIES, VOICES, make_song
from diffvocsep.util import threads
from diffvocsep.util.errors import UserError

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
RATE = 8000


def noise(seed: int, seconds: float = 1.0, channels: int = 2, rate: int = RATE) -> np.ndarray:
    """(N, C), at most +-0.3."""
    return np.random.default_rng(seed).uniform(-0.3, 0.3, (round(seconds * rate), channels)).astype(np.float32)


def tone(hertz: float, rate: int, seconds: float = 1.0) -> np.ndarray:
    """(N,), quiet at both ends."""
    t = np.arange(round(seconds * rate)) / rate
    return (0.3 * np.sin(np.pi * t / seconds) * np.sin(2 * np.pi * hertz * t)).astype(np.float32)


def write(path: Path, samples: np.ndarray, rate: int = RATE, subtype: str | None = "FLOAT") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, subtype if path.suffix.lower() == ".wav" else None)
    return path


def song(folder: Path, seed: int = 0, seconds: float = 1.0) -> Path:
    for i, side in enumerate(("vocals", "accompaniment")):
        write(folder / f"{side}.wav", noise(seed + 1000 * i, seconds))
    return folder


# ---- what is found -------------------------------------------------------------------------------------------------


def test_tracks_are_found_at_any_depth_and_under_any_name(tmp_path):
    names = ["Set [A]/Ava's Song (live)", "한국어/가수/노래 제목", "中文歌曲", "plain"]
    names += ["Set [A]/it*s?"] if os.name != "nt" else []
    for i, name in enumerate(names):
        song(tmp_path / "[root]" / name, i)
    tracks = find_tracks(tmp_path / "[root]", tmp_path / "cache")
    assert sorted(t.name for t in tracks) == sorted(names)
    assert {t.name: t.group for t in tracks} == {name: Path(name).parent.as_posix() for name in names}
    for i, name in enumerate(names):
        (track,) = (t for t in tracks if t.name == name)
        got = track.read("vocals", 0, 1, RATE).numpy()
        assert np.abs(got - noise(i).T).max() < 1e-4


def test_instruments_are_added_up_unless_there_is_an_accompaniment(tmp_path):
    folder = tmp_path / "song"
    parts = {name: noise(i) for i, name in enumerate(("drums", "bass", "other"))}
    for name, samples in parts.items():
        write(folder / f"{name}.wav", samples)
    write(folder / "Vocals.WAV", noise(8))
    write(folder / "mixture.wav", noise(9))
    (track,) = find_tracks(tmp_path, None)
    assert set(track.stems) == {"vocals", "accompaniment", "mixture"}
    assert np.allclose(track.read("accompaniment", 0, 1, RATE).numpy(), sum(parts.values()).T, atol=1e-6)
    assert np.array_equal(track.read("vocals", 0, 1, RATE).numpy(), noise(8).T)
    assert np.array_equal(track.read("mixture", 0, 1, RATE).numpy(), noise(9).T)

    write(folder / "accompaniment.flac", noise(10))
    (track,) = find_tracks(tmp_path, None)
    assert np.abs(track.read("accompaniment", 0, 1, RATE).numpy() - noise(10).T).max() < 1e-4


@pytest.mark.parametrize("name, better", [
    *((name, "vocals") for name in ("lead_vocals", "vocal", "Voice 2", "LeadVox", "piano_vocal", "보컬", "메인보컬")),
    *((name, "mixture") for name in ("mix", "01 Song", "full_mix", "믹스")),
    *((name, None) for name in ("no_vocals", "minus vocals", "vocoder", "Love Song_drums", "drum_mix")),
])  # fmt: skip
def test_a_voice_or_a_whole_song_does_not_become_an_instrument(tmp_path, name, better):
    write(tmp_path / "song" / "drums.wav", noise(0))
    write(tmp_path / "song" / f"{name}.wav", noise(1))
    if better:
        with pytest.raises(UserError, match=rf"{name}\.wav.*count as accompaniment; .*name it {better}\.wav"):
            find_tracks(tmp_path, None)
        write(tmp_path / "song" / "accompaniment.wav", noise(2))  # then no other file counts
    if better == "vocals":
        with pytest.raises(UserError, match=rf"{name}\.wav.*not be used; .*name it vocals\.wav"):
            find_tracks(tmp_path, None)
        write(tmp_path / "song" / "vocals.wav", noise(3))  # then it is one voice of several
        assert [path.name for path in find_tracks(tmp_path, None)[0].stems["vocals"]] == ["vocals.wav"]
        (tmp_path / "song" / "vocals.wav").unlink()
        (tmp_path / "song" / f"{name}.wav").unlink()
    (track,) = find_tracks(tmp_path, None)
    assert set(track.stems) == {"accompaniment"} and len(track.stems["accompaniment"]) == (1 if better else 2)


def test_tracks_may_have_one_side(tmp_path):
    write(tmp_path / "solo" / "vocals.ogg", noise(0))
    write(tmp_path / "band" / "guitar.wav", noise(1))
    assert {t.name: set(t.stems) for t in find_tracks(tmp_path, None)} == {
        "solo": {"vocals"},
        "band": {"accompaniment"},
    }


def test_hidden_files_and_other_files_are_no_stems(tmp_path):
    song(tmp_path / "song")
    for name in ("._vocals.wav", "cover.jpg", "notes.txt"):
        (tmp_path / "song" / name).write_bytes(b"not audio")
    (tmp_path / ".trash" / "song").mkdir(parents=True)
    (tmp_path / ".trash" / "song" / "vocals.wav").write_bytes(b"not audio")
    (track,) = find_tracks(tmp_path, None)
    assert [p.name for p in track.stems["vocals"]] == ["vocals.wav"]


def doubled(folder: Path) -> Path:
    for name in ("bass.wav", "drums.flac", "Drums.wav"):
        write(folder / "song" / name, noise(0))
    return folder


def broken(folder: Path) -> Path:
    song(folder / "good")
    (folder / "bad").mkdir()
    (folder / "bad" / "vocals.wav").write_bytes(b"this is no audio")
    return folder


def without_samples(folder: Path) -> Path:
    write(folder / "song" / "vocals.wav", np.zeros((0, 1), np.float32))
    return folder


def empty(folder: Path) -> Path:
    (folder / "song").mkdir(parents=True)
    return folder


def loose(folder: Path) -> Path:
    return song(folder)


WRONG = {"missing": (lambda folder: folder / "nowhere", "nowhere"), "empty": (empty, "no track was found"),
         "loose": (loose, "<track>/vocals.wav"), "broken": (broken, "vocals.wav"),
         "doubled": (doubled, "drums.flac"), "samples": (without_samples, "vocals.wav")}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said_in_a_sentence(tmp_path, case):
    make, part = WRONG[case]
    assert part in message(find_tracks, make(tmp_path), None)


# ---- what is read --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cache", [True, False])
def test_rates_and_channels_may_differ_within_a_track(tmp_path, cache):
    folder = tmp_path / "songs" / "song"
    write(folder / "vocals.wav", tone(300, 16000), 16000)
    write(folder / "drums.wav", tone(500, 8000)[:, None].repeat(2, 1), 8000)
    write(folder / "bass.wav", np.stack([tone(200, 48000), tone(700, 48000)], 1), 48000)
    write(folder / "other.wav", tone(900, 22050)[:, None] * np.array([1, 2, 5, 5, 5, 5]), 22050)
    (track,) = find_tracks(tmp_path / "songs", tmp_path / "cache" if cache else None)
    assert track.source_rate == 8000 and track.seconds == pytest.approx(1)
    for rate in (16000, 44100):
        t = {hertz: tone(hertz, rate) for hertz in (200, 300, 500, 700, 900)}
        expected = np.stack([t[500] + t[200] + t[900], t[500] + t[700] + 2 * t[900]])
        got = track.read("accompaniment", 0, 1, rate).numpy()
        assert got.shape == (2, rate) and np.abs(got - expected).max() < 5e-4
        got = track.read("vocals", 0.25, 0.5, rate).numpy()
        inner = slice(rate // 20, -rate // 20)  # a crop that is converted alone has silence around it
        expected = t[300][rate // 4 : rate // 4 + rate // 2]
        assert got.shape == (1, rate // 2) and np.abs(got[0] - expected)[inner].max() < 5e-4


@pytest.mark.parametrize("cache", [True, False])
def test_the_shortest_stem_ends_a_track_and_beyond_the_end_is_silence(tmp_path, cache):
    write(tmp_path / "songs" / "song" / "vocals.wav", noise(0, 0.5))
    write(tmp_path / "songs" / "song" / "accompaniment.wav", noise(1, 0.8))
    (track,) = find_tracks(tmp_path / "songs", tmp_path / "cache" if cache else None)
    assert track.seconds == 0.5
    got = track.read("vocals", 0.4, 0.3, RATE)
    assert got.shape == (2, 2400) and got[:, :800].any() and not got[:, 800:].any()
    assert not track.read("vocals", 2.0, 0.1, RATE).any()


@pytest.mark.parametrize("cache", [True, False])
def test_an_mp3_without_a_length_header_sounds_to_its_end(tmp_path, cache):
    """libsndfile takes the 30 s for 16: what is read of it must come from the same decoder as its length."""
    need(shutil.which("ffmpeg") is not None, "ffmpeg")
    folder = tmp_path / "songs" / "song"
    rate, levels = 44100, np.repeat([0.3, 0.03], 15 * 44100)
    wav = write(tmp_path / "fading.wav", levels * np.random.default_rng(0).uniform(-1, 1, 30 * rate), rate)
    folder.mkdir(parents=True)
    command = ["ffmpeg", "-v", "error", "-i", str(wav), "-q:a", "3", "-write_xing", "0", str(folder / "vocals.mp3")]
    subprocess.run(command, check=True)
    assert soundfile.info(folder / "vocals.mp3").duration < 29
    (track,) = find_tracks(tmp_path / "songs", tmp_path / "cache" if cache else None)
    assert track.seconds == pytest.approx(30, abs=0.1)
    assert track.read("vocals", 28, 1, rate).std() == pytest.approx(0.03 / 3**0.5, rel=0.1)


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="file names there are always Unicode")
def test_names_in_an_old_korean_encoding(tmp_path):
    folder = song(tmp_path / "songs" / "song")
    samples = soundfile.read(folder / "vocals.wav")[0].T
    folder.rename(tmp_path / "songs" / os.fsdecode("노래".encode("cp949")))
    for cache in (None, tmp_path / "cache"):
        tracks = find_tracks(tmp_path / "songs", cache)
        fill_cache(tracks, RATE)
        assert np.abs(tracks[0].read("vocals", 0, 1, RATE).numpy() - samples).max() < 1e-4
        assert list(check.problems(tracks[0])) == []


def test_loudness_is_that_of_the_sounding_parts(tmp_path):
    samples = np.concatenate([noise(0, 5), np.zeros((5 * RATE, 2), np.float32)])
    write(tmp_path / "song" / "vocals.wav", samples)
    write(tmp_path / "song" / "accompaniment.wav", np.zeros((10 * RATE, 2), np.float32))
    (track,) = find_tracks(tmp_path, None)
    assert track.loudness("vocals", RATE) == pytest.approx(np.sqrt(np.mean(noise(0, 5) ** 2)), rel=0.1)
    assert track.loudness("accompaniment", RATE) == 0


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("share", [0.5, 0.99])
def test_a_file_that_was_cut_short_is_named(tmp_path, cache, share):
    path = write(tmp_path / "songs" / "song" / "vocals.flac", noise(0, 20))
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    (track,) = find_tracks(tmp_path / "songs", tmp_path / "cache" if cache else None)
    assert track.seconds == 20  # it says
    text = message(track.read, "vocals", 19, 1, RATE)
    assert "vocals.flac" in text and "damaged" in text
    if not cache:
        assert np.abs(track.read("vocals", 2, 1, RATE).numpy() - noise(0, 20).T[:, 2 * RATE : 3 * RATE]).max() < 1e-4


# ---- what is kept --------------------------------------------------------------------------------------------------


def test_the_cache_changes_nothing_but_the_last_bit(tmp_path):
    song(tmp_path / "songs" / "song", seconds=3)
    (kept,), (direct,) = (find_tracks(tmp_path / "songs", cache) for cache in (tmp_path / "cache", None))
    for start in np.random.default_rng(0).uniform(0, 2, 10):
        for side in ("vocals", "accompaniment"):
            difference = kept.read(side, start, 0.7, RATE) - direct.read(side, start, 0.7, RATE)
            assert difference.abs().max() <= 0.5 / 16384 + 1e-7
    assert kept.read("vocals", 0, 1, RATE).std() > 0.1


def test_a_file_is_decoded_once_and_again_when_it_changes(tmp_path, monkeypatch):
    path = song(tmp_path / "songs" / "song") / "vocals.wav"
    decoded, read = [], stems.read
    monkeypatch.setattr(stems, "read", lambda path: (decoded.append(path), read(path))[1])

    def vocals(rate: int = RATE) -> np.ndarray:
        (track,) = find_tracks(tmp_path / "songs", tmp_path / "cache")
        return track.read("vocals", 0, 1, rate).numpy()

    first = vocals()
    assert np.array_equal(vocals(), first) and decoded == [path]
    write(path, noise(7))
    os.utime(path, ns=(1, 1))
    assert np.abs(vocals() - noise(7).T).max() < 1e-4 and decoded == [path] * 2
    assert vocals(16000).shape == (2, 16000) and decoded == [path] * 3  # another rate is another file


@pytest.mark.parametrize("damage", ["cut", "empty", "text"])
def test_a_damaged_cache_is_made_anew(tmp_path, damage):
    song(tmp_path / "songs" / "song")
    (track,) = find_tracks(tmp_path / "songs", tmp_path / "cache")
    whole = track.read("vocals", 0, 1, RATE)
    (file,) = (tmp_path / "cache").iterdir()
    content = file.read_bytes()
    file.unlink()
    file.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "text": b"nothing of the kind"}[damage])
    assert torch.equal(track.read("vocals", 0, 1, RATE), whole)
    assert file.read_bytes() == content


@pytest.mark.parametrize(
    "other", [lambda x: x.astype(np.float64), lambda x: x[:, 0], lambda x: x[None]], ids=["type", "mono", "batch"]
)
def test_what_lies_in_the_cache_and_is_not_ours_is_not_heard(tmp_path, other):
    song(tmp_path / "songs" / "song")
    (track,) = find_tracks(tmp_path / "songs", tmp_path / "cache")
    whole = track.read("vocals", 0, 1, RATE)
    (file,) = (tmp_path / "cache").iterdir()
    np.save(file, other(np.load(file)))
    assert torch.equal(track.read("vocals", 0, 1, RATE), whole)


@pytest.mark.parametrize("rate", [RATE, 7001])
@pytest.mark.parametrize("other", [lambda x: x[:-1], lambda x: np.roll(x, 1, 0)[:, :1]], ids=["shorter", "one channel"])
def test_before_training_the_cache_holds_what_the_songs_hold(tmp_path, monkeypatch, rate, other):
    song(tmp_path / "songs" / "song")
    tracks = find_tracks(tmp_path / "songs", tmp_path / "cache")
    fill_cache(tracks, rate)
    whole, decoded = tracks[0].read("vocals", 0, 1, rate), decodings(monkeypatch)
    fill_cache(tracks, rate)
    assert not decoded
    for file in (tmp_path / "cache").iterdir():
        np.save(file, other(np.load(file)))
    fill_cache(tracks, rate)
    assert len(decoded) == 2 and torch.equal(tracks[0].read("vocals", 0, 1, rate), whole)


def decodings(monkeypatch) -> list[str]:
    """The names of the files that are decoded from now on."""
    names, read = [], stems.read
    monkeypatch.setattr(stems, "read", lambda path: (names.append(path.name), read(path))[1])
    return names


@pytest.mark.parametrize("cache", ["memory", pytest.param("device", marks=pytest.mark.slow)])
def test_a_trainer_decodes_everything_before_it_trains_and_nothing_twice(tmp_path, monkeypatch, capsys, cache):
    for i in range(3):
        song(tmp_path / "songs" / f"song {i}", i)
        write(tmp_path / "songs" / f"song {i}" / "mixture.wav", noise(9))  # nobody trains on it
    song(tmp_path / "dev" / "song", 5)
    settings = [*stems_settings(tmp_path / "songs", tmp_path / "dev"), f"data.cache={cache}"]
    settings.append(f"data.cache_dir='{(tmp_path / 'cache').as_posix()}'")
    decoded = decodings(monkeypatch)
    trainer = make(tmp_path, *settings)
    assert sorted(decoded) == ["accompaniment.wav"] * 4 + ["vocals.wav"] * 4
    assert "Decoding songs" in capsys.readouterr().err
    assert trainer.run() == 0
    make(tmp_path, *settings)
    assert len(decoded) == 8 and "Decoding songs" not in capsys.readouterr().err


@pytest.mark.parametrize("settings", [["data.dataset=synthetic"], ["data.cache=none"]])
def test_where_there_is_no_cache_nothing_is_decoded(tmp_path, monkeypatch, settings):
    song(tmp_path / "songs" / "song", 0)
    song(tmp_path / "dev" / "song", 1)
    decoded = decodings(monkeypatch)
    cache = f"data.cache_dir='{(tmp_path / 'cache').as_posix()}'"
    make(tmp_path, *stems_settings(tmp_path / "songs", tmp_path / "dev"), cache, *settings)
    assert not decoded and not (tmp_path / "cache").exists()


def test_filling_the_cache_goes_on_where_it_stopped(tmp_path, monkeypatch):
    for i in range(3):
        song(tmp_path / "songs" / f"song {i}", i)
    tracks = find_tracks(tmp_path / "songs", tmp_path / "cache")
    save, decoded = stems._save, decodings(monkeypatch)

    def interrupted(part: Path, samples: np.ndarray) -> None:
        save(part, samples)
        if len(decoded) >= 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(stems, "_save", interrupted)
        patch.setattr(threads, "cpu_count", lambda: 1)
        fill_cache(tracks, RATE)
    assert len(list((tmp_path / "cache").iterdir())) == 2  # whole ones
    before = len(decoded)
    fill_cache(tracks, RATE)
    assert len(decoded) == before + 4 and len(list((tmp_path / "cache").iterdir())) == 6


def test_what_does_not_fit_or_is_damaged_is_said_before_training(tmp_path, monkeypatch):
    for i in range(2):
        song(tmp_path / "songs" / f"song {i}", i)
    tracks = find_tracks(tmp_path / "songs", tmp_path / "cache")
    fill_cache(tracks[:1], RATE)
    usage = namedtuple("usage", "total used free")
    needed = 2 * 2 * 2 * 2 * RATE  # two stems of the second song, two channels, 16 bit, twice the rate: 0.0001 GB
    monkeypatch.setattr(stems.shutil, "disk_usage", lambda path: usage(10**9, 10**9 - needed, needed))
    fill_cache(tracks[1:], 2 * RATE)
    assert "need another 256.0 kB" in message(fill_cache, tracks, 2 * RATE + 1)
    write(tmp_path / "songs" / "song 1" / "vocals.wav", np.where(noise(1) > 0.299, np.nan, noise(1)))
    text = message(fill_cache, find_tracks(tmp_path / "songs", tmp_path / "cache"), RATE)
    assert "song 1" in text and "vocals.wav" in text and "not a finite number" in text


def test_a_limit_that_decoded_songs_reach_is_said_with_its_file(tmp_path):
    """NumPy would say how many samples it could not write."""
    resource = pytest.importorskip("resource")
    song(tmp_path / "songs" / "song")
    tracks, before = find_tracks(tmp_path / "songs", tmp_path / "cache"), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))
    try:
        with pytest.raises(OSError) as error:
            fill_cache(tracks, RATE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert error.value.errno == errno.EFBIG and str(tmp_path / "cache") in error.value.filename


def test_a_song_that_is_gone_after_training_began_is_named(tmp_path):
    song(tmp_path / "songs" / "song")
    tracks = find_tracks(tmp_path / "songs", tmp_path / "cache")
    shutil.rmtree(tmp_path / "songs")
    assert "cannot be read any more" in message(fill_cache, tracks, RATE)


def test_a_cache_that_is_no_folder_is_said_before_training(tmp_path):
    song(tmp_path / "songs" / "song")
    (tmp_path / "cache").write_text("a file")
    assert "nothing can be written into the folder" in message(
        fill_cache, find_tracks(tmp_path / "songs", tmp_path / "cache"), RATE
    )


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names")
def test_a_pipe_is_no_stem(tmp_path):
    """It was waited for, for ever; a stem is read many times."""
    folder = song(tmp_path / "song")
    (folder / "vocals.wav").unlink()
    os.mkfifo(folder / "vocals.wav")
    assert "vocals.wav' is a pipe" in message(find_tracks, tmp_path, None)


# ---- what data.dataset names ---------------------------------------------------------------------------------------


def test_stems_have_a_root_each_for_training_and_deciding(tmp_path):
    song(tmp_path / "a" / "train song")
    song(tmp_path / "b" / "dev song")
    write(tmp_path / "b" / "solo" / "vocals.wav", noise(0))
    config = stems_config(tmp_path / "a", tmp_path / "b")
    assert names(train_tracks(config)) == ["train song"]
    assert names(dev_tracks(config)) == ["dev song"]  # the solo cannot be scored


def synthetic(*overrides: str):
    return load_config(
        None, ["audio.sample_rate=8000", "data.synthetic_songs=5", "data.synthetic_seconds=1.5", *overrides]
    )


def test_synthetic_songs_are_those_of_the_synthesizer_and_never_in_two_splits():
    train, dev = train_tracks(synthetic()), dev_tracks(synthetic())
    assert len(train) == 5 and len(dev) == 32
    made = make_song(0, 3, 1.5, 8000)
    for side in ("vocals", "accompaniment"):
        assert np.abs(train[3].read(side, 0, 1.5, 8000).numpy() - getattr(made, side)).max() < 1e-4
        whole, part = train[3].read(side, 0, 1.5, 8000), train[3].read(side, 1.25, 1, 8000)
        assert torch.equal(part[:, :2000], whole[:, 10000:]) and not part[:, 2000:].any()
        assert train[3].loudness(side, 8000) == pytest.approx(np.sqrt(np.mean(getattr(made, side) ** 2)), rel=1e-3)

    def drawn(make, seed: int) -> set[tuple[int, int]]:
        return {track._arguments[:2] for track in make(synthetic(f"train.seed={seed}"))}

    first, second, dev = drawn(train_tracks, 0), drawn(train_tracks, 1), drawn(dev_tracks, 1)
    assert not first & second and not (first | second) & dev
    assert dev == drawn(dev_tracks, 0)  # what decides is the same under every seed


def test_what_is_held_out_is_absent_from_training_only(monkeypatch):
    from diffvocsep.data.synthetic import tracks as synthetic_tracks

    played = []
    monkeypatch.setattr(synthetic_tracks, "make_song", lambda *args: played.append(make_song(*args)) or played[-1])
    config = synthetic("data.held_out_voices=[bass,child,alto,tenor]", "data.held_out_families=[drums,pads,keys,bowed]",
                       "data.synthetic_seconds=1")  # fmt: skip
    for track in train_tracks(config):
        track.read("vocals", 0, 1, 8000)
    assert {song.voice for song in played} == {"baritone", "soprano"}
    assert {family for song in played for family in song.families} == {"plucked", "bass"}
    assert all(t._arguments[-2:] == (VOICES, FAMILIES) for t in dev_tracks(config))


@pytest.mark.parametrize(("key", "name"), [("held_out_voices", "tenro"), ("held_out_families", "drum")])
def test_an_unknown_name_is_not_held_out_in_silence(key, name):
    assert name in message(train_tracks, synthetic(f"data.{key}=[{name}]"))


# ---- real songs ----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not (SHARED / "dev").is_dir(), reason="no real songs here")
def test_real_songs(tmp_path):
    tracks: list[StemTrack] = find_tracks(SHARED / "dev", None)
    assert {t.group: len([x for x in tracks if x.group == t.group]) for t in tracks} == {"musdb18_7s": 12, "mir1k": 2}
    for track in tracks:
        assert track.source_rate == (16000 if track.group == "mir1k" else 44100)
        for side in ("vocals", "accompaniment"):
            crop = track.read(side, track.seconds / 2, 0.5, 44100)
            assert crop.shape == (1 if track.group == "mir1k" else 2, 22050) and crop.isfinite().all()
    short = min(tracks, key=lambda t: t.seconds)
    (kept,) = (t for t in find_tracks(SHARED / "dev", tmp_path) if t.name == short.name)
    difference = kept.read("vocals", 2, 1, 44100) - short.read("vocals", 2, 1, 44100)
    assert difference.abs().max() < 1e-4


def stems_settings(root: Path, dev_root: Path) -> list[str]:
    return ["data.dataset=stems", f"data.root='{root.as_posix()}'", f"data.dev_root='{dev_root.as_posix()}'"]


def stems_config(root: Path, dev_root: Path):
    return load_config(None, stems_settings(root, dev_root))


def test_dev_songs_among_the_training_songs_are_refused(tmp_path):
    """Weights must not be chosen by songs that they were trained on."""
    song(tmp_path / "songs" / "train" / "a")
    song(tmp_path / "songs" / "dev" / "b", 1)
    for root, dev in (("songs", "songs/dev"), ("songs", "songs"), ("songs/train", "songs")):
        assert "keep apart" in message(train_tracks, stems_config(tmp_path / root, tmp_path / dev))
    assert names(train_tracks(stems_config(tmp_path / "songs" / "train", tmp_path / "songs" / "dev"))) == ["a"]


@pytest.mark.parametrize("shared", ["song", "song/vocals.wav"])
def test_dev_songs_that_are_training_songs_by_a_link_are_refused(tmp_path, shared):
    need(_can_link(tmp_path), "symbolic links")
    song(tmp_path / "train" / "song")
    dev = song(tmp_path / "dev" / "another", 1)
    config = stems_config(tmp_path / "train", tmp_path / "dev")
    assert names(train_tracks(config)) == ["song"]
    (dev.with_name("linked") if shared == "song" else dev / "mixture.wav").symlink_to(tmp_path / "train" / shared)
    text = message(train_tracks, config)
    assert "keep apart" in text and (tmp_path / "train" / "song").resolve().as_posix() in text


def test_a_link_to_itself_beside_a_dev_song_is_nothing(tmp_path):
    song(tmp_path / "train" / "song")
    dev = song(tmp_path / "dev" / "another", 1)
    need(_can_link(tmp_path), "symbolic links")
    (dev / "cover.jpg").symlink_to(dev / "cover.jpg")
    assert names(train_tracks(stems_config(tmp_path / "train", tmp_path / "dev"))) == ["song"]


def test_links_are_followed_once(tmp_path):
    """Sets in several places can be put together by links, and a link back does not send the search round and round."""
    song(tmp_path / "elsewhere" / "Song", 1)
    song(tmp_path / "sets" / "here" / "Song", 2)
    need(_can_link(tmp_path), "symbolic links")
    (tmp_path / "sets" / "there").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "sets" / "here" / "back").symlink_to(tmp_path / "sets", target_is_directory=True)
    assert names(find_tracks(tmp_path / "sets", None)) == ["here/Song", "there/Song"]


def test_a_link_to_a_folder_above_does_not_bring_in_what_lies_beside(tmp_path):
    """From / on, the search went through the whole disk."""
    song(tmp_path / "sets" / "Song", 1)
    song(tmp_path / "beside" / "Song", 2)
    need(_can_link(tmp_path), "symbolic links")
    (tmp_path / "sets" / "up").symlink_to(tmp_path, target_is_directory=True)
    assert names(find_tracks(tmp_path / "sets", None)) == ["Song"]
    (tmp_path / "root").symlink_to(tmp_path / "sets", target_is_directory=True)  # the root may be a link itself
    assert names(find_tracks(tmp_path / "root", None)) == ["Song"]


def _can_link(folder: Path) -> bool:
    try:
        (folder / "link").symlink_to(folder)
        (folder / "link").unlink()
    except OSError:  # Windows without developer mode
        return False
    return True
