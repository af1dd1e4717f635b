"""MUSDB18 and MUSDB18-HQ: which songs are found, in which split, what is decoded and when, and what is left out."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from tracks import message, names, need

from diffvocsep.config import Config, load_config
from diffvocsep.data import check, dev_tracks, musdb, train_tracks
from diffvocsep.data.musdb_songs import DEV_SONGS, TEST_SONGS
from diffvocsep.data.musdbhq import musdbhq_tracks
from diffvocsep.data.testsets import songs_to_score
from scripts import previews

RATE = 8000
STEMS = ("vocals", "drums", "bass", "other")


def noise(seed: int, seconds: float = 0.2, rate: int = RATE) -> np.ndarray:
    """(N, 2), at most +-0.3."""
    return np.random.default_rng(seed).uniform(-0.3, 0.3, (round(seconds * rate), 2)).astype(np.float32)


def song(folder: Path, seed: int = 0) -> Path:
    folder.mkdir(parents=True)
    for i, name in enumerate((*STEMS, "mixture")):
        soundfile.write(folder / f"{name}.wav", noise(10 * seed + i), RATE, "PCM_16")
    return folder


def hq(root: Path) -> Config:
    root = f"data.musdbhq_root='{root.as_posix()}'"
    return load_config(None, ["data.dataset=musdbhq", root, "data.cache=none", "data.download=false"])


# ---- MUSDB18-HQ ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inner", ["train", "TRAIN", ".", "musdb18hq/Train"])
def test_musdbhq_is_split_as_its_package_splits_it(tmp_path, inner):
    for i, name in enumerate(("A - B", "leaf - Summerghost", "Actions - One Minute smile", "C - D")):
        song(tmp_path / inner / name, i)
    traps = [tmp_path / inner / "Zeno - signs"]  # of the test half, wherever it lies
    if inner != ".":
        traps.append((tmp_path / inner).with_name("test") / "E - F")
    for trap in traps:
        trap.mkdir(parents=True)
        (trap / "vocals.wav").write_bytes(b"whoever reads this names it")
    assert names(train_tracks(hq(tmp_path))) == ["A - B", "C - D"]
    assert names(dev_tracks(hq(tmp_path))) == ["Actions - One Minute smile", "leaf - Summerghost"]
    got = train_tracks(hq(tmp_path))[0].read("accompaniment", 0, 0.2, RATE).numpy()
    assert np.abs(got - sum(noise(i).T for i in (1, 2, 3))).max() < 1e-3


def test_files_are_found_whatever_the_case_and_others_are_no_stems(tmp_path):
    folder = song(tmp_path / "train" / "A - B")
    for name in STEMS:
        (folder / f"{name}.wav").rename(folder / f"{name.title()}.WAV")
    soundfile.write(folder / "linear_mixture.wav", noise(9), RATE)
    (folder / "._drums.wav").write_bytes(b"of macOS")
    (track,) = musdbhq_tracks(tmp_path, "train", None)
    got = track.read("accompaniment", 0, 0.2, RATE).numpy()
    assert np.abs(got - sum(noise(i).T for i in (1, 2, 3))).max() < 1e-3
    assert set(track.stems) == {"vocals", "accompaniment", "mixture"}


def remove(folder: Path) -> None:
    (folder / "bass.wav").unlink()


def garble(folder: Path) -> None:
    (folder / "drums.wav").write_bytes(b"no sound at all")


def empty(folder: Path) -> None:
    (folder / "vocals.wav").write_bytes(b"")


def truncate(folder: Path) -> None:
    content = (folder / "other.wav").read_bytes()
    (folder / "other.wav").write_bytes(content[: len(content) // 2])


def cut(folder: Path) -> None:
    (folder / "bass.wav").unlink()
    soundfile.write(folder / "bass.flac", noise(2), RATE)
    content = (folder / "bass.flac").read_bytes()
    (folder / "bass.flac").write_bytes(content[: int(0.9 * len(content))])


def double(folder: Path) -> None:
    soundfile.write(folder / "Drums.flac", noise(1), RATE)


def shorten(folder: Path) -> None:
    soundfile.write(folder / "mixture.wav", noise(0, 0.19), RATE)


@pytest.mark.parametrize(("spoil", "reason"), [
    (remove, "bass missing"), (garble, 'drums.wav" is'), (empty, 'vocals.wav" is empty'),
    (truncate, "can be read for 0.10 s of the 0.20 s it announces"), (shorten, "mixture 0.190 s"),
    (cut, 'bass.flac" is damaged'), (double, "Drums.flac beside another file"),
])  # fmt: skip
def test_a_bad_song_is_named_in_one_line_and_left_out(tmp_path, capsys, monkeypatch, spoil, reason):
    for i in range(10):
        song(tmp_path / "train" / f"A - {i}", i)
    spoil(tmp_path / "train" / "A - 7")
    assert len(train_tracks(hq(tmp_path))) == 9
    (line,) = capsys.readouterr().err.splitlines()
    assert "'A - 7' is left out" in line and reason in line
    monkeypatch.setenv("RANK", "1")  # of several processes, one says so
    assert len(train_tracks(hq(tmp_path))) == 9 and not capsys.readouterr().err


def test_another_sample_rate_is_converted(tmp_path):
    folder = song(tmp_path / "A - B")
    t = np.arange(3200) / 16000
    sine = 0.3 * np.sin(2 * np.pi * 500 * t) * np.sin(np.pi * t / 0.2)
    soundfile.write(folder / "vocals.wav", sine, 16000, "PCM_16")
    (track,) = musdbhq_tracks(tmp_path, "train", None)
    assert np.abs(track.read("vocals", 0, 0.2, RATE).numpy()[0] - sine[::2]).max() < 1e-3


def test_more_than_a_tenth_bad_ends_the_run(tmp_path):
    for i in range(10):
        song(tmp_path / "train" / f"A - {i}", i)
    remove(tmp_path / "train" / "A - 3")
    remove(tmp_path / "train" / "A - 4")
    text = message(train_tracks, hq(tmp_path))
    assert "2 of 10 songs" in text and "'A - 3' (bass missing)" in text
    assert "{mixture,drums,bass,vocals,other}.wav" in text and "10 entries, such as A - 0/" in text


def test_musdbhq_without_songs_is_refused_with_what_was_expected_and_found(tmp_path):
    assert "nowhere" in message(musdbhq_tracks, tmp_path / "nowhere", "train", None)
    song(tmp_path / "half" / "test" / "A - B")
    text = message(musdbhq_tracks, tmp_path / "half", "train", None)
    assert (
        "no train song" in text
        and "{mixture,drums,bass,vocals,other}.wav" in text
        and "1 entries, such as test/" in text
    )
    song(tmp_path / "whole" / "train" / "A - B")
    assert "no dev song" in message(musdbhq_tracks, tmp_path / "whole", "dev", None)
    (tmp_path / "stems" / "train").mkdir(parents=True)
    (tmp_path / "stems" / "train" / "A - B.stem.mp4").touch()
    assert "data.dataset musdb" in message(musdbhq_tracks, tmp_path / "stems", "train", None)


# ---- MUSDB18 -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stem_file() -> Path:
    need(shutil.which("ffmpeg") is not None and shutil.which("ffprobe") is not None, "ffmpeg")
    try:
        import musdb
        import stempeg
    except ImportError:
        need(False, "the packages musdb and stempeg")
    assert musdb
    return Path(stempeg.example_stem_path())


@pytest.fixture(scope="module")
def preview(stem_file, tmp_path_factory) -> Path:
    """The first half second of it, all streams as they are."""
    target = tmp_path_factory.mktemp("preview") / "short.stem.mp4"
    command = ["ffmpeg", "-v", "error", "-i", str(stem_file), "-map", "0:a", "-c", "copy", "-t", "0.5", str(target)]
    subprocess.run(command, check=True)
    return target


def mus(root: Path) -> Config:
    root = f"data.musdb_root='{root.as_posix()}'"
    return load_config(None, ["data.dataset=musdb", root, "data.cache=none"])


def put(root: Path, *songs: str, source: Path, half: str = "train") -> None:
    (root / half).mkdir(parents=True, exist_ok=True)
    for name in songs:
        shutil.copy(source, root / half / f"{name}.stem.mp4")


def test_the_dev_songs_are_those_of_the_package(stem_file):
    import musdb as package
    import yaml

    setup = Path(package.__path__[0]) / "configs" / "mus.yaml"
    listed = yaml.safe_load(setup.read_text(encoding="utf-8"))["validation_tracks"]
    assert {name.lower() for name in listed} == DEV_SONGS and len(DEV_SONGS) == 14
    assert len(TEST_SONGS) == 50 and not DEV_SONGS & TEST_SONGS
    assert stem_file.name.removesuffix(".stem.mp4").lower() in TEST_SONGS


def test_musdb_is_decoded_once_and_exactly(tmp_path, stem_file, monkeypatch):
    import stempeg

    put(tmp_path, "A - B", source=stem_file)
    (track,) = train_tracks(mus(tmp_path))
    assert track.name == "A - B" and track.source_rate == 44100
    assert sorted(p.name for p in (tmp_path / "decoded").rglob("*")) == [
        ".source", "A - B", "bass.flac", "drums.flac", "mixture.flac", "other.flac", "vocals.flac",
    ]  # fmt: skip

    streams, _ = stempeg.read_stems(str(stem_file), ffmpeg_format="s16le")  # mixture, drums, bass, other, vocals
    seconds = streams.shape[1] / 44100
    assert track.seconds == pytest.approx(seconds)
    assert np.abs(track.read("mixture", 0, seconds, 44100).numpy() - streams[0].T).max() < 1e-6
    assert np.abs(track.read("vocals", 0, seconds, 44100).numpy() - streams[4].T).max() < 1e-6
    rest = track.read("accompaniment", 0, seconds, 44100).numpy()
    assert np.abs(rest - streams[1:4].sum(0).T).max() < 1e-6
    assert np.abs(rest).max() > 0.1

    monkeypatch.setattr(musdb, "open_musdb", lambda *what: pytest.fail("decoded twice"))
    assert names(train_tracks(mus(tmp_path))) == ["A - B"]


@pytest.mark.slow
def test_the_layout_of_the_previews_trains_as_it_is(tmp_path, preview):
    """`musdb.DB(download=True)` unpacks to `train/` and `test/` with a stem file for each song."""
    put(tmp_path, "A - B", "C - D", "Leaf - Summerghost", "BKS - Too Much", source=preview)  # the last: a test song
    put(tmp_path, "Zeno - Signs", source=preview, half="test")
    (tmp_path / "test" / "Mu - Too Bright.stem.mp4").write_bytes(b"whoever reads this fails")
    assert names(train_tracks(mus(tmp_path))) == ["A - B", "C - D"]
    assert names(dev_tracks(mus(tmp_path))) == ["Leaf - Summerghost"]
    assert not (tmp_path / "decoded" / "Zeno - Signs").exists()


def test_the_report_counts_the_test_songs_where_they_lie(tmp_path, preview, capsys):
    put(tmp_path, "A - B", "Leaf - Summerghost", source=preview)
    put(tmp_path, "Zeno - Signs", "Mu - Too Bright", source=preview, half="test")
    settings = ["--config", "config.yaml", "data.dataset=musdb", f"data.musdb_root='{tmp_path.as_posix()}'"]
    assert check.run(settings) == 0
    rows = [line.split()[:2] for line in capsys.readouterr().out.splitlines()[-3:]]
    assert rows == [["train", "1"], ["dev", "1"], ["test", "2"]]
    assert sorted(f.name for f in (tmp_path / "decoded").iterdir()) == ["A - B", "Leaf - Summerghost"]


def test_an_interrupted_decoding_goes_on_and_a_changed_or_vanished_file_counts(tmp_path, preview, monkeypatch, capsys):
    put(tmp_path, "A - A", "B - B", "Leaf - Summerghost", source=preview)
    done, decode = [], musdb._decode

    def interrupted(track, *rest) -> None:
        if len(done) == 1:
            raise KeyboardInterrupt
        done.append(track.name)
        decode(track, *rest)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(musdb, "_decode", interrupted)
        train_tracks(mus(tmp_path))
    again = []
    monkeypatch.setattr(musdb, "_decode", lambda track, *rest: (again.append(track.name), decode(track, *rest)))
    assert len(train_tracks(mus(tmp_path))) == 2
    assert (done, again) == (["A - A"], ["B - B", "Leaf - Summerghost"])
    assert "Decoding MUSDB18" in capsys.readouterr().err

    os.utime(tmp_path / "train" / "B - B.stem.mp4", ns=(1, 1))
    (tmp_path / "train" / "A - A.stem.mp4").unlink()
    assert names(train_tracks(mus(tmp_path))) == ["B - B"]
    assert again[2:] == ["B - B"]
    assert not list((tmp_path / "decoded").glob(".*"))


def test_what_a_killed_run_left_is_swept_when_it_is_old(tmp_path, preview):
    put(tmp_path, "A - B", source=preview)
    old, new = (tmp_path / "decoded" / f".{name}.1.part" for name in ("old", "new"))
    for folder in (old, new):
        folder.mkdir(parents=True)
        (folder / "vocals.flac").write_bytes(b"half")
    os.utime(old, (1, 1))
    assert names(train_tracks(mus(tmp_path))) == ["A - B"]
    assert not old.exists() and new.exists()


def test_a_damaged_stem_file_leaves_nothing_half_done(tmp_path, stem_file):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "A - B.stem.mp4").write_bytes(b"not an mp4")
    assert "A - B" in message(musdb.decode_musdb, tmp_path)
    assert not (tmp_path / "decoded").exists()


def test_a_decoding_that_fails_leaves_nothing_half_done(tmp_path, preview, monkeypatch):
    def fail(path: Path, *_) -> None:
        path.write_bytes(b"half")
        raise OSError("disk full")

    put(tmp_path, "A - B", source=preview)
    monkeypatch.setattr(musdb.soundfile, "write", fail)
    assert "disk full" in message(musdb.decode_musdb, tmp_path)
    assert not list((tmp_path / "decoded").iterdir())


def test_musdb_says_what_it_lacks(tmp_path, monkeypatch):
    text = message(musdb.decode_musdb, tmp_path)
    assert "train/*.stem.mp4" in text and "download=True" in text
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "A - B.stem.mp4").write_bytes(b"never opened")
    (tmp_path / "ffmpeg.py").write_text("", encoding="utf-8")
    monkeypatch.setitem(sys.modules, "musdb", None)
    assert "pip install musdb" in message(musdb.decode_musdb, tmp_path)

    monkeypatch.delitem(sys.modules, "musdb")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "musdb.py").write_text("raise RuntimeError('as stempeg without ffmpeg')", encoding="utf-8")
    assert "install ffmpeg" in message(musdb.decode_musdb, tmp_path)


def test_without_ffmpeg_one_sentence_says_so(tmp_path, preview):
    """In a real process, with the real packages and an empty PATH."""
    put(tmp_path, "A - B", source=preview)
    code = "import sys; from diffvocsep.util import cli; from diffvocsep.data import musdb as m; "
    code += "cli.main(lambda: m.decode_musdb(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], env={**os.environ, "PATH": ""}, text=True,
                          capture_output=True, cwd=Path(__file__).parents[2], encoding="utf-8")  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.strip() == "error: MUSDB18's stem files need the programs ffmpeg and ffprobe; install ffmpeg"


# ---- its previews --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_previews_of_the_validation_songs_become_folders_of_stems(tmp_path, preview, monkeypatch, capsys):
    """The package's own download is a copy here."""
    import musdb as package
    import stempeg

    root, out, wanted = tmp_path / "musdb18", tmp_path / "valid", ("Leaf - Summerghost", "Meaxic - Take A Step")
    fetched = []

    def fetch(db) -> None:
        fetched.append(db.root)
        put(root, "A - B", *wanted, source=preview)
        put(root, "Zeno - Signs", source=preview, half="test")

    monkeypatch.setattr(package.DB, "download", fetch)
    for _ in range(2):
        assert previews.run([str(out), "--root", str(root)]) == 0
    assert fetched == [str(root)]
    assert capsys.readouterr().out.splitlines() == 2 * [f"2 songs in '{out}'"]
    files = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    assert files == [f"{song}/{side}.wav" for song in wanted for side in ("accompaniment", "mixture", "vocals")]
    streams, rate = stempeg.read_stems(str(preview), ffmpeg_format="s16le")  # mixture, drums, bass, other, vocals
    expected = {"mixture": streams[0], "vocals": streams[4], "accompaniment": streams[1:4].sum(0)}
    for side, samples in expected.items():
        got, got_rate = soundfile.read(out / wanted[1] / f"{side}.wav", always_2d=True)
        assert got_rate == rate and np.abs(got - samples).max() < 1e-6
    assert names(songs_to_score("stems", out)) == list(wanted)
    put(root, "Giselle - Moss", source=preview)
    assert previews.run([str(tmp_path / "dev"), "--songs", "dev", "--root", str(root)]) == 0
    assert names(songs_to_score("stems", tmp_path / "dev")) == ["Giselle - Moss"]


def test_previews_that_do_not_come_are_one_sentence(tmp_path, stem_file, monkeypatch):
    import musdb as package

    def fail(db) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(package.DB, "download", fail)
    text = message(previews.run, [str(tmp_path / "valid"), "--root", str(tmp_path / "musdb18")])
    assert "do not come (no route to host)" in text and "--root" in text


def test_songs_that_are_none_of_the_validation_songs_are_no_previews(tmp_path, preview):
    put(tmp_path, "A - B", source=preview)
    text = message(previews.run, [str(tmp_path / "valid"), "--root", str(tmp_path)])
    assert "none of MUSDB18's validation songs" in text and str(tmp_path) in text
    text = message(previews.run, [str(tmp_path / "dev"), "--songs", "dev", "--root", str(tmp_path)])
    assert "none of MUSDB18's dev songs" in text and str(tmp_path) in text
