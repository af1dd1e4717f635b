"""Where songs end: rare formats cut in half, streams of frames that end within one, files joined byte by byte, and Ogg
whose pages tell other times than their packets."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from diffvocsep.audio import AudioReader, ogg, read
from diffvocsep.util.errors import UserError

RATE = 16000
X = (0.1 * np.random.default_rng(0).standard_normal((2 * RATE, 1))).astype(np.float32)
needs_ffmpeg = pytest.mark.skipif(not shutil.which("ffprobe") and not os.environ.get("CI"), reason="needs ffmpeg")


def heard(path: Path) -> tuple[np.ndarray, list[str]]:
    """What is read of a file, (N,), and the notes about it."""
    with AudioReader(path) as reader:
        return np.concatenate([block[0].numpy() for block in reader.blocks(1 << 14)]), reader.notes


def refusal(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        heard(path)
    assert "\n" not in str(caught.value) and path.name in str(caught.value)
    return str(caught.value)


def written(path: Path, format: str, subtype: str = "PCM_16", rate: int = RATE) -> bytes:
    soundfile.write(path, X, rate, subtype, format=format)
    return path.read_bytes()


def encoded(folder: Path, name: str, *options: str) -> bytes:
    soundfile.write(folder / "song.wav", X, RATE, "PCM_16")
    command = ["ffmpeg", "-nostdin", "-v", "error", "-y", "-i", str(folder / "song.wav"), *options, str(folder / name)]
    subprocess.run(command, check=True)
    return (folder / name).read_bytes()


@pytest.mark.parametrize("format", ["VOC", "SVX", "NIST", "MAT4", "MAT5", "AVR", "MPC2K", "WVE"])
def test_a_rare_format_cut_off_says_how_much_there_is(tmp_path, format):
    subtype, rate = ("ALAW", 8000) if format == "WVE" else ("PCM_16", RATE)
    content = written(tmp_path / "a.x", format, subtype, rate)
    assert len(heard(tmp_path / "a.x")[0]) == len(X)
    for share in (0.5, 0.9):
        said = refusal(tmp_path / "a.x", content[: int(share * len(content))])
        assert "damaged or cut off" in said and f"of the {len(X) / rate:.2f} s" in said


@needs_ffmpeg
def test_a_voc_of_many_blocks(tmp_path):
    content = encoded(tmp_path, "a.voc")
    assert len(heard(tmp_path / "a.voc")[0]) == len(X)
    assert "more may be missing" in refusal(tmp_path / "a.voc", content[: len(content) // 2])


def test_what_stands_behind_the_blocks_of_a_voc_is_no_sound(tmp_path):
    (tmp_path / "a.voc").write_bytes(written(tmp_path / "a.voc", "VOC") + bytes(3000))
    assert len(heard(tmp_path / "a.voc")[0]) == len(X)


@needs_ffmpeg
@pytest.mark.parametrize(
    "kind, options",
    [("ac3", []), ("eac3", []), ("aac", []), ("mp2", []), ("dts", ["-strict", "-2"]), ("mp3", ["-write_xing", "0"])],
)
def test_a_stream_that_ends_within_a_frame_is_read_and_that_is_said(tmp_path, kind, options):
    content, path = encoded(tmp_path, f"a.{kind}", "-ar", "48000", *options), tmp_path / f"a.{kind}"
    assert heard(path)[1] == []
    path.write_bytes(content[: len(content) // 2 + 37])
    sound, notes = heard(path)
    assert 0.8 * 48000 < len(sound) < 1.2 * 48000 and "within a frame" in notes[-1]


def test_joined_flacs_are_read_to_the_end(tmp_path):
    content, path = written(tmp_path / "a.flac", "FLAC"), tmp_path / "a.flac"
    one = heard(path)[0]
    path.write_bytes(3 * content)
    assert np.array_equal(heard(path)[0], np.tile(one, 3))
    assert "of the 2.00 s" in refusal(path, content + content[: len(content) // 2])
    other = written(tmp_path / "b.flac", "FLAC", rate=2 * RATE)
    assert "different sample rates" in refusal(path, content + other)


@needs_ffmpeg
@pytest.mark.parametrize("kind", ["aiff", "au", "w64", "caf", "voc", "tta", "wv", "wma", "m4a", "flv", "avi", "mov"])
def test_joined_files_of_which_players_play_the_first_are_refused(tmp_path, kind):
    content = encoded(tmp_path, f"a.{kind}", "-ar", "44100")
    assert heard(tmp_path / f"a.{kind}")[0].size
    said = refusal(tmp_path / f"a.{kind}", 2 * content)
    assert "joined of several" in said and f"byte {len(content)}" in said


def timed(content: bytes, times: Callable[[int, int], int]) -> bytes:
    """An Ogg file with other times: `times` of the number and the time of each page with sound."""
    pages, at, number = [], 0, 0
    while at < len(content):
        end = at + 27 + content[at + 26] + sum(content[at + 27 : at + 27 + content[at + 26]])
        page, time = bytearray(content[at:end]), struct.unpack("<q", content[at + 6 : at + 14])[0]
        if time > 0:
            page[6:14] = struct.pack("<q", times(number, time))
            page[22:26] = ogg.checksum(bytes(page)).to_bytes(4, "little")
            number += 1
        pages.append(bytes(page))
        at = end
    return b"".join(pages)


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
@pytest.mark.parametrize("silent", [slice(0, 24 * RATE), slice(2 * RATE, 26 * RATE), slice(None)])
def test_an_ogg_of_long_silences_needs_no_ffmpeg(tmp_path, monkeypatch, subtype, silent):
    """Its packets are so small that the first page holds six seconds and more."""
    monkeypatch.setenv("PATH", str(tmp_path))
    song = np.tile(X, (14, 1))
    song[silent] = 0
    soundfile.write(tmp_path / "a.ogg", song, RATE, format="OGG", subtype=subtype)
    sound, notes = heard(tmp_path / "a.ogg")
    assert len(sound) == len(song) and notes == []
    assert np.array_equal(sound, soundfile.read(tmp_path / "a.ogg", dtype="float32")[0])


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
@pytest.mark.parametrize(
    "times",
    [
        lambda number, time: time + 448 * (number == 0),  # ffmpeg's Opus, cut with -ss
        lambda number, time: time + 10**7,  # taken from a station
        lambda number, time: time - 700,  # ffmpeg -ss -c copy: it begins at a packet before the cut
        lambda number, time: time + 448 * (number % 2),
    ],
)
def test_an_ogg_whose_pages_tell_other_times_is_read_by_its_packets(tmp_path, monkeypatch, subtype, times):
    monkeypatch.setenv("PATH", str(tmp_path))
    path = tmp_path / "a.ogg"
    soundfile.write(path, np.tile(X, (3, 1)), RATE, format="OGG", subtype=subtype)
    whole, content = heard(path)[0], path.read_bytes()
    path.write_bytes(timed(content, times))
    sound, notes = heard(path)
    assert notes == [] and np.abs(len(sound) - len(whole)) <= 448
    assert np.array_equal(sound[: len(whole)], whole[: len(sound)])


@needs_ffmpeg
@pytest.mark.parametrize("kind, codec", [("ogg", "libvorbis"), ("opus", "libopus")])
@pytest.mark.parametrize("copied", [True, False])
@pytest.mark.parametrize("channels", [1, 6])
def test_an_ogg_cut_by_ffmpeg_is_what_ffmpeg_plays(tmp_path, monkeypatch, kind, codec, copied, channels):
    encoded(tmp_path, f"whole.{kind}", "-ar", "48000", "-ac", str(channels), "-c:a", codec)
    command = ["ffmpeg", "-v", "error", "-ss", "0.61", "-t", "0.83", "-i", str(tmp_path / f"whole.{kind}")]
    codecs = ["-c", "copy"] if copied else ["-c:a", codec]
    subprocess.run([*command, *codecs, str(tmp_path / f"a.{kind}")], check=True)
    played = ["ffmpeg", "-v", "error", "-i", str(tmp_path / f"a.{kind}"), "-f", "f32le", "-"]
    true = np.frombuffer(subprocess.run(played, check=True, capture_output=True).stdout, "<f4")[::channels]
    monkeypatch.setenv("PATH", str(tmp_path))
    sound, _ = heard(tmp_path / f"a.{kind}")
    if kind == "ogg" and not copied:  # whose end is cut off to the sample, which this ffmpeg leaves to others
        assert len(true) - 128 < len(sound) == 0.83 * 48000
        true = true[: len(sound)]
    assert len(sound) == len(true) > 0.8 * 48000 and np.abs(sound - true).max() < 1e-3


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_a_chained_ogg_is_its_links_one_after_another(tmp_path, monkeypatch, subtype):
    """The second begins at a time above 0, which is no pause between them."""
    monkeypatch.setenv("PATH", str(tmp_path))
    path, other = tmp_path / "a.ogg", "OPUS" if subtype == "VORBIS" else "VORBIS"
    content = written(path, "OGG", subtype)
    one = heard(path)[0]
    path.write_bytes(content + timed(content, lambda number, time: time + 48_000) + content)
    assert np.array_equal(heard(path)[0], np.tile(one, 3)) and len(one) == len(X)
    mixed = written(path, "OGG", other)
    part = heard(path)[0]
    path.write_bytes(content + mixed)
    assert np.array_equal(heard(path)[0], np.concatenate([one, part]))
    said = refusal(path, content + written(path, "OGG", other, 8000))
    assert "different sample rates" in said and f"byte {len(content)}" in said


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16"])
@pytest.mark.parametrize("tail", [b"", b"LIST\x04\0\0\0INFO"])
def test_a_short_wav_behind_another_is_not_left_out(tmp_path, subtype, tail):
    """Few bytes behind the samples may be anything, but a second song."""
    song = X[:10001]
    soundfile.write(tmp_path / "a.wav", song, RATE, subtype)
    content = (tmp_path / "a.wav").read_bytes() + tail
    content = content[:4] + struct.pack("<I", len(content) - 8) + content[8:]
    (tmp_path / "a.wav").write_bytes(content)
    assert len(heard(tmp_path / "a.wav")[0]) == len(song)
    assert "second file" in refusal(tmp_path / "a.wav", 2 * content)


@needs_ffmpeg
@pytest.mark.parametrize(
    "name, codec", [("a.mka", "alac"), ("a.mka", "wavpack"), ("a.caf", "alac"), ("a.caf", "flac"), ("a.mov", "alac")]
)
def test_a_last_packet_need_not_say_how_long_it_is(tmp_path, name, codec):
    content = encoded(tmp_path, name, "-c:a", codec)
    pcm = soundfile.read(tmp_path / "song.wav", dtype="float32")[0]
    assert np.abs(heard(tmp_path / name)[0] - pcm).max() < 1e-4
    assert refusal(tmp_path / name, content[: int(0.9 * len(content))])


@needs_ffmpeg
@pytest.mark.parametrize("codec", ["pcm_s16le", "pcm_s24le", "pcm_f32le", "pcm_f64le", "pcm_mulaw"])
@pytest.mark.parametrize("channels", [1, 6])
def test_an_extensible_wave64_is_read_as_it_is_kept(tmp_path, codec, channels):
    """libsndfile takes the samples of all of them for integers."""
    same = "|".join(f"c{i}=c0" for i in range(channels))
    encoded(tmp_path, "a.w64", "-c:a", codec, "-af", f"pan={channels}c|{same}")
    error = np.abs(heard(tmp_path / "a.w64")[0] - X[:, 0]).max()
    assert error < (0.02 if codec == "pcm_mulaw" else 1e-4)


@needs_ffmpeg
def test_a_sox_file_says_how_long_it_is(tmp_path):
    content = encoded(tmp_path, "a.sox")
    assert len(heard(tmp_path / "a.sox")[0]) == len(X)
    assert "of the 2.00 s" in refusal(tmp_path / "a.sox", content[: len(content) // 2])
    assert "joined of several" in refusal(tmp_path / "a.sox", 2 * content)


@pytest.mark.parametrize("ending", ["au", "snd", "vox", "gsm"])
def test_bytes_are_no_song_because_of_their_ending(tmp_path, ending):
    """libsndfile, and of .gsm ffmpeg too, takes any file with such a name for headerless samples of 8 kHz."""
    assert refusal(tmp_path / f"a.{ending}", b"no song, but a letter " * 500)


@needs_ffmpeg
def test_frames_of_gsm_are_a_song(tmp_path):
    """As soundfile encodes them, without a header."""
    tone = 0.5 * np.sin(2 * np.pi * 300 * np.arange(16000) / 8000)
    soundfile.write(tmp_path / "a.gsm", tone, 8000, "GSM610", format="RAW")
    found, notes = heard(tmp_path / "a.gsm")
    assert notes == [] and len(found) == 16000
    assert np.corrcoef(found[800:15000].ravel(), tone[800:15000])[0, 1] > 0.8


def test_text_that_is_called_an_mp3_is_one_sentence(tmp_path, capfd):
    """libmpg123, which libsndfile asks because of the name, would search it for frames, and tell stderr."""
    (tmp_path / "a.mp3").write_text("no song, but a text of some length\n" * 40, encoding="utf-8")
    with pytest.raises(UserError, match=r"a\.mp3. is damaged or not audio"):
        read(tmp_path / "a.mp3")
    assert capfd.readouterr().err == ""
