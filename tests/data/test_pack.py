"""Packed songs: the same ones, small, in the same layout, and a training reads them as it reads the others."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from diffvocsep.data import pack
from diffvocsep.data.stems import find_tracks
from diffvocsep.util.errors import UserError

SECONDS = 4


@pytest.fixture
def songs(tmp_path: Path) -> Path:
    """Two songs of two sides, a tone of 1 kHz in noise below 5 kHz, and a note that is no song."""
    root = tmp_path / "songs"
    rng = np.random.default_rng(0)
    for song in ("a/one", "b/둘"):
        (root / song).mkdir(parents=True)
        for i, side in enumerate(("vocals", "accompaniment")):
            tone = 0.3 * np.sin(2 * np.pi * 1000 * (i + 1) * np.arange(SECONDS * 44100) / 44100)
            hiss = np.repeat(rng.normal(0, 0.02, SECONDS * 4410), 10)
            soundfile.write(root / song / f"{side}.wav", np.stack([tone + hiss, tone - hiss], axis=1), 44100)
    (root / "LICENSE").write_text("free", encoding="utf-8")
    return root


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_songs_keep_their_layout_length_and_sound(songs, tmp_path, capsys):
    out = tmp_path / "packed"
    assert pack.run([str(songs), str(out), "--rate", "22050", "--quality", "0.7"]) == 0
    assert files(out) == sorted(
        f"{song}/{side}.ogg" for song in ("a/one", "b/둘") for side in ("vocals", "accompaniment")
    )
    size = [sum(path.stat().st_size for path in folder.rglob("*.*")) for folder in (songs, out)]
    assert size[1] < size[0] / 8 and "4 files" in capsys.readouterr().out
    samples, rate = soundfile.read(out / "a/one/vocals.ogg")
    assert (
        rate == 22050
        and samples.shape == (SECONDS * rate, 2)
        and soundfile.info(out / "a/one/vocals.ogg").subtype == "VORBIS"
    )
    expected = soundfile.read(songs / "a/one/vocals.wav")[0][::2]  # no energy above 11 kHz worth the name
    assert ((samples - expected) ** 2).sum() < 0.01 * (expected**2).sum()  # 20 dB, in phase
    assert [(t.name, set(t.stems), round(t.seconds)) for t in find_tracks(out, None)] == [
        (t.name, set(t.stems), round(t.seconds)) for t in find_tracks(songs, None)
    ]


@pytest.mark.skipif(os.name == "nt", reason="symbolic links")
def test_the_songs_of_a_training_are_packed_those_behind_links_too_and_hidden_files_never(songs, tmp_path):
    (songs / "c").mkdir()
    (songs / "b" / "둘").rename(tmp_path / "elsewhere")
    (songs / "c" / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (songs / "a" / "one" / "._vocals.wav").write_bytes(b"macOS leaves these on foreign disks")
    found = [path.relative_to(songs).as_posix() for path in pack.places(songs, tmp_path / "packed")]
    assert found == [f"{song}/{side}.wav" for song in ("a/one", "c/linked") for side in ("accompaniment", "vocals")]


def test_a_second_start_goes_on_where_the_first_ended(songs, tmp_path):
    out = tmp_path / "packed"
    pack.run([str(songs), str(out)])
    kept, missing = out / "a/one/vocals.ogg", out / "b/둘/vocals.ogg"
    before = kept.stat().st_mtime_ns
    missing.unlink()
    pack.run([str(songs), str(out)])
    assert kept.stat().st_mtime_ns == before and missing.exists()


def test_a_lower_rate_is_not_raised(songs, tmp_path):
    soundfile.write(songs / "a/one/vocals.wav", np.zeros(8000), 8000)
    pack.run([str(songs), str(tmp_path / "packed")])
    assert soundfile.info(tmp_path / "packed/a/one/vocals.ogg").samplerate == 8000


def test_what_cannot_be_packed_is_one_sentence(songs, tmp_path):
    out = tmp_path / "packed"
    for arguments, sentence in (
        ([str(tmp_path / "nothing"), str(out)], "there is no audio file below"),
        ([str(songs), str(songs / "packed")], "would be packed itself"),
        ([str(songs), str(out), "--rate", "10"], "--rate is 10 but must be between 8000 and 192000"),
        ([str(songs), str(out), "--quality", "2"], "--quality is 2.0 but must be between 0 and 1"),
    ):
        with pytest.raises(UserError, match=sentence):
            pack.run(arguments)
    soundfile.write(songs / "a/one/vocals.flac", np.zeros(8000), 8000)
    with pytest.raises(UserError, match="would both become"):
        pack.run([str(songs), str(out)])
    (songs / "a/one/vocals.flac").unlink()
    (songs / "a/one/vocals.wav").write_bytes(b"RIFF, but no song")
    with pytest.raises(UserError, match=r"vocals\.wav"):
        pack.run([str(songs), str(out)])
    assert "a/one/vocals.ogg" not in files(out)
