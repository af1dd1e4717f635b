"""Songs as they are met in life: cut, joined, with wrong headers, or made to do harm. What the header announces, what
the file holds and what is decoded are compared: all of it is read, or one sentence says what is missing.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diffvocsep.audio import AudioReader, AudioWriter, channel_layout, containers, mpeg, ogg, read, write
from diffvocsep.audio.channel_groups import join_channels, split_channels
from diffvocsep.audio.input_formats import FFMPEG, SONGS
from diffvocsep.util import atomic
from diffvocsep.util.atomic import remove_leftovers, temporary_folder, temporary_name
from diffvocsep.util.errors import UserError

RATE, SECONDS = 44100, 3

pytestmark = pytest.mark.skipif(not shutil.which("ffprobe") and not os.environ.get("CI"), reason="needs ffmpeg")


def sound(seconds: float = SECONDS, seed: int = 0, channels: int = 2, rate: int = RATE) -> torch.Tensor:
    noise = np.random.default_rng(seed).standard_normal((channels, round(seconds * rate)))
    return torch.from_numpy(0.1 * noise).float()


def encode(source: Path, target: Path, *options: str) -> Path:
    command = ["ffmpeg", "-nostdin", "-v", "error", "-y", "-i", str(source), *options, str(target)]
    subprocess.run(command, check=True)
    return target


CODECS = {
    "wav": [], "aiff": [], "au": [], "w64": [], "caf": [], "flac": [], "wma": [], "wv": [], "tta": [],
    "mp3": ["-q:a", "4"], "ogg": ["-c:a", "libvorbis"], "opus": ["-c:a", "libopus"], "oga": ["-c:a", "flac"],
    "webm": ["-c:a", "libopus"], "mka": ["-c:a", "flac"], "flv": ["-c:a", "aac"], "avi": ["-c:a", "mp3"],
    "m4a": ["-c:a", "aac", "-movflags", "+faststart"], "mov": ["-c:a", "alac", "-movflags", "+faststart"],
}  # fmt: skip
STREAMS = {"aac": [], "ac3": [], "mp2": [], "ts": ["-c:a", "aac"]}  # nothing announces their length


@pytest.fixture(scope="module")
def songs(tmp_path_factory) -> dict[str, Path]:
    """One song in every format."""
    folder = tmp_path_factory.mktemp("songs")
    soundfile.write(folder / "song.wav", sound().T.numpy(), RATE, "PCM_16")
    made = {kind: encode(folder / "song.wav", folder / f"a.{kind}", *how) for kind, how in (CODECS | STREAMS).items()}
    soundfile.write(folder / "a.rf64", sound().T.numpy(), RATE, "PCM_16", format="RF64")
    return made | {"rf64": folder / "a.rf64"}


def length(path: Path) -> float:
    """s that are read."""
    with AudioReader(path) as reader:
        return sum(block.shape[1] for block in reader.blocks(1 << 16)) / reader.sample_rate


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        length(path)
    text = str(caught.value)
    assert "\n" not in text and path.name in text and len(text) < 600
    return text


# --- a song never becomes shorter without a word --------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    [
        *list(CODECS)[::2],
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in [*list(CODECS)[1::2], *STREAMS, "rf64"]),
    ],
)
def test_a_healthy_song_is_read_to_its_end_and_so_with_bytes_behind_it(songs, tmp_path, kind):
    assert length(songs[kind]) == pytest.approx(SECONDS, abs=0.06)
    padded = tmp_path / f"a.{kind}"
    padded.write_bytes(songs[kind].read_bytes() + bytes(3000))
    assert length(padded) == pytest.approx(length(songs[kind]), abs=0.06)


@pytest.mark.parametrize("kind", [*CODECS, "rf64"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_song_cut_off_is_refused(songs, tmp_path, kind, share):
    cut = tmp_path / f"a.{kind}"
    content = songs[kind].read_bytes()
    cut.write_bytes(content[: int(share * len(content))])
    assert "damaged" in refusal(cut)


@pytest.mark.parametrize(
    "kind", ["flac", "mp3", "ogg", "opus", "oga", "webm", "mka", "m4a", "mov", "wma", "flv", "wv", "tta"]
)
@pytest.mark.parametrize("filled", [True, False])
def test_a_hole_in_the_middle_is_refused(songs, tmp_path, kind, filled):
    content, path = songs[kind].read_bytes(), tmp_path / f"a.{kind}"
    size = len(content)
    path.write_bytes(content[: size // 2] + bytes(size // 5 if filled else 0) + content[size // 2 + size // 5 :])
    assert "damaged" in refusal(path)


@pytest.mark.parametrize("kind", ["mp3", "ogg", "opus", "aac", "ac3", "mp2"])
def test_files_joined_byte_by_byte_are_read_to_the_end(songs, tmp_path, kind):
    both = tmp_path / f"both.{kind}"
    both.write_bytes(2 * songs[kind].read_bytes())
    assert length(both) == pytest.approx(2 * SECONDS, abs=0.3)


def test_joined_wavs_are_refused(songs, tmp_path):
    """Players play the first alone; joined FLACs and other formats: test_ends.py."""
    both = tmp_path / "both.wav"
    both.write_bytes(2 * songs["wav"].read_bytes())
    assert "second file" in refusal(both)


def test_a_flac_whose_header_says_less_than_it_holds_is_read_whole(songs, tmp_path):
    content = bytearray(songs["flac"].read_bytes())
    content[21:26] = (int.from_bytes(content[21:26], "big") - 2 * RATE).to_bytes(5, "big")
    path = tmp_path / "a.flac"
    path.write_bytes(content)
    assert length(path) == SECONDS


def sized(content: bytes, whole: int, data: int) -> bytes:
    at = content.index(b"data")
    return content[:4] + struct.pack("<I", whole) + content[8 : at + 4] + struct.pack("<I", data) + content[at + 8 :]


SIZES = {
    "zero": (0, 0),
    "pipe": (0xFFFFFFFF, 0xFFFFFFFF),
    "sox": (0x7FFFF024, 0x7FFFF000),
    "arecord": (0x80000024, 1 << 31),
}


@pytest.mark.parametrize("sizes", SIZES)
def test_a_wav_of_a_pipe_or_of_a_recorder_without_power_is_read_whole(songs, tmp_path, sizes):
    path = tmp_path / "a.wav"
    path.write_bytes(sized(songs["wav"].read_bytes(), *SIZES[sizes]))
    assert torch.equal(read(path)[0], read(songs["wav"])[0])


@pytest.mark.parametrize("kind, at, size", [("au", 8, 4), ("w64", 96, 8)])
def test_sizes_of_zero_elsewhere(songs, tmp_path, kind, at, size):
    content = bytearray(songs[kind].read_bytes())
    content[at : at + size] = bytes(size)
    path = tmp_path / f"a.{kind}"
    path.write_bytes(content)
    assert torch.equal(read(path)[0], read(songs["wav"])[0])


@pytest.mark.skipif(sys.platform == "win32", reason="would allocate the holes of the file")
def test_a_size_that_went_round_at_4_gib(tmp_path):
    frames = (1 << 32) // 8 + 5 * RATE
    size, path = frames * 8, tmp_path / "a.wav"
    fmt = struct.pack("<IHHIIHH", 16, 3, 2, RATE, RATE * 8, 8, 32)
    with path.open("wb") as file:
        file.write(b"RIFF" + struct.pack("<I", (36 + size) % (1 << 32)) + b"WAVEfmt " + fmt)
        file.write(b"data" + struct.pack("<I", size % (1 << 32)) + np.float32([0.5, -0.5]).tobytes())
        file.truncate(44 + size - 8)
        file.seek(44 + size - 8)
        file.write(np.float32([0.25, -0.25]).tobytes())
    with AudioReader(path) as reader:
        assert reader.frames == frames
        assert next(reader.blocks(1)).flatten().tolist() == [0.5, -0.5]
        assert next(reader.blocks(1, frames - 1)).flatten().tolist() == [0.25, -0.25]


# --- what players play is read --------------------------------------------------------------------------------------


def test_an_mp3_without_numbers_with_something_between_and_behind_its_frames(songs, tmp_path):
    bare = encode(songs["wav"], tmp_path / "bare.mp3", "-q:a", "4", "-write_xing", "0").read_bytes()
    tag = b"LYRICSBEGIN" + b"la la la\n" * 200 + b"001811LYRICS200"
    for number, content in enumerate([bare + bytes(3000), bare + tag, bare[:20000] + b"\x11" * 700 + bare[20000:]]):
        path = tmp_path / f"{number}.mp3"
        path.write_bytes(content)
        assert length(path) == pytest.approx(SECONDS, abs=0.1)


def test_mp3_in_a_wav_and_under_its_name(songs, tmp_path):
    shutil.copy(songs["mp3"], tmp_path / "named.wav")
    encode(songs["wav"], tmp_path / "inside.wav", "-c:a", "mp3")
    assert [length(tmp_path / n) for n in ("named.wav", "inside.wav")] == pytest.approx([SECONDS] * 2, abs=0.1)


@pytest.mark.parametrize(
    "subtype, kind", [("G721_32", "AU"), ("G723_24", "AU"), ("GSM610", "WAV"), ("NMS_ADPCM_16", "WAV")]
)
def test_encodings_that_cannot_be_sought(tmp_path, subtype, kind):
    path = tmp_path / f"a.{kind.lower()}"
    soundfile.write(path, sound(1, 0, 1, 8000).T.numpy(), 8000, subtype, format=kind)
    with AudioReader(path) as reader:
        whole = torch.cat(list(reader.blocks(999)), -1)
        assert whole.shape[1] == reader.frames
        assert torch.equal(torch.cat(list(reader.blocks(999, 4000)), -1), whole[:, 4000:])


def test_a_full_folder_for_temporary_files_is_named(songs, monkeypatch):
    def full(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("diffvocsep.audio.wav.WavSink.write_bytes", full)
    text = refusal(songs["m4a"])
    assert "temporary files" in text and "TMPDIR" in text and "damaged" not in text


def test_a_file_that_changes_while_it_is_read(songs, tmp_path):
    path = Path(shutil.copy(songs["wav"], tmp_path / "a.wav"))
    with AudioReader(path) as reader:
        list(reader.blocks(4096))
        with path.open("r+b") as file:
            file.seek(5000)
            file.write(b"xx")
        os.utime(path, ns=(1, 1))
        with pytest.raises(UserError, match="changed while"):
            list(reader.blocks(4096))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_a_named_pipe_is_a_song(songs, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    thread = threading.Thread(target=lambda: (tmp_path / "pipe").write_bytes(songs["wav"].read_bytes()))
    thread.start()
    with AudioReader(tmp_path / "pipe") as reader:
        for _ in range(2):
            assert torch.equal(torch.cat(list(reader.blocks(4096)), -1), read(songs["wav"])[0])
    thread.join()


def test_a_file_named_dash(songs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(songs["wav"], "-")
    assert length(Path("-")) == SECONDS


# --- video and loudspeakers -----------------------------------------------------------------------------------------


def video(tmp_path: Path, name: str, *options: str) -> Path:
    for n in range(2):
        soundfile.write(tmp_path / f"{n}.wav", sound(1, n).T.numpy(), RATE, "PCM_16")
    picture = ["-f", "lavfi", "-i", "testsrc=s=64x64:r=10:d=2"]
    command = [
        "ffmpeg",
        "-nostdin",
        "-v",
        "error",
        "-y",
        *picture,
        *options,
        "-c:v",
        "mpeg4",
        "-c:a",
        "flac",
        tmp_path / name,
    ]
    subprocess.run(list(map(str, command)), check=True)
    return tmp_path / name


def test_the_default_track_is_taken_and_said(tmp_path):
    inputs = ["-i", tmp_path / "0.wav", "-i", tmp_path / "1.wav", "-map", "0", "-map", "1", "-map", "2"]
    path = video(tmp_path, "two.mkv", *inputs, "-disposition:a:0", "0", "-disposition:a:1", "default")
    with AudioReader(path) as reader:
        assert torch.equal(torch.cat(list(reader.blocks(4096)), -1), read(tmp_path / "1.wav")[0])
        assert "track 2" in reader.notes[0]


def test_sound_that_starts_later_comes_out_in_its_place(tmp_path):
    path = video(tmp_path, "late.mkv", "-itsoffset", "0.5", "-i", tmp_path / "0.wav", "-map", "0", "-map", "1")
    with AudioReader(path) as reader:
        found = torch.cat(list(reader.blocks(4096)), -1)
        assert not found[:, : RATE // 2].any() and torch.equal(found[:, RATE // 2 :], read(tmp_path / "0.wav")[0])
        assert "0.500 s after the picture" in reader.notes[0]


@pytest.mark.parametrize("name, channels", [("5.1", 6), ("quad", 4), ("3.1", 4), ("7.1", 8)])
def test_the_places_of_channels_are_kept(tmp_path, name, channels):
    mask = channel_layout.named_mask(name, channels)
    with AudioWriter(tmp_path / "a.wav", RATE, channels, mask=mask) as writer:
        writer.write(sound(0.1, 0, channels))
    found = subprocess.run(
        ["ffprobe", "-v", "error", "-show_entries", "stream=channel_layout", "-of", "csv=p=0", str(tmp_path / "a.wav")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert found.stdout.strip() == name
    with AudioReader(tmp_path / "a.wav") as reader:
        assert reader.mask == mask
    with AudioReader(encode(tmp_path / "a.wav", tmp_path / "a.mka", "-c:a", "pcm_f32le")) as reader:
        assert torch.equal(torch.cat(list(reader.blocks(4096)), -1), sound(0.1, 0, channels))
        assert reader.mask in (mask, 0)


def test_a_flac_that_would_change_the_places_is_refused(tmp_path):
    with pytest.raises(UserError, match="loudspeaker"):
        AudioWriter(tmp_path / "a.flac", RATE, 4, mask=channel_layout.named_mask("3.1", 4))
    AudioWriter(tmp_path / "a.flac", RATE, 6, mask=channel_layout.named_mask("5.1(side)", 6))


@pytest.mark.parametrize("channels", [9, 20])
def test_many_channels_are_split_and_joined(tmp_path, channels):
    x = sound(0.3, 0, channels)
    parts = split_channels(x.split(1000, -1), channels, tmp_path)
    assert [part.channels for part in parts] == [8] * (channels // 8) + [channels % 8]
    assert torch.equal(torch.cat(list(join_channels(parts, 777)), -1), x)


# --- nothing is let in ----------------------------------------------------------------------------------------------

LISTS: dict[str, Callable[[Path], bytes]] = {
    "hls": lambda song: f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:3,\n{song}\n#EXT-X-ENDLIST\n".encode(),
    "ffconcat": lambda song: f"ffconcat version 1.0\nfile {song}\n".encode(),
    "dash": lambda song: (
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
        'mediaPresentationDuration="PT3S" profiles="urn:mpeg:dash:profile:isoff-on-demand:2011"><Period>'
        '<AdaptationSet mimeType="audio/mp4"><Representation id="1" bandwidth="1000">'
        f"<BaseURL>{song}</BaseURL></Representation></AdaptationSet></Period></MPD>"
    ).encode(),
    "sdp": lambda song: b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\n",
}  # fmt: skip


@pytest.mark.parametrize("ending", ["mp3", "wav", "m4a", "m3u8", "mpd", "ffconcat", "txt"])
@pytest.mark.parametrize("kind", LISTS)
@pytest.mark.parametrize("relative", [True, False])
def test_a_list_of_other_files_is_not_followed(songs, tmp_path, kind, ending, relative):
    secret = Path(shutil.copy(songs["m4a"], tmp_path / "secret.m4a"))
    path = tmp_path / f"song.{ending}"
    path.write_bytes(LISTS[kind](Path(secret.name) if relative else secret))
    refusal(path)


def test_the_whitelist_holds_no_format_that_names_other_files():
    named = ["hls", "dash", "concat", "sdp", "rtsp", "rtp", "image2", "lavfi", "imf", "mpsub", "vobsub", "libopenmpt"]
    assert not set(named) & set(FFMPEG.split(","))
    assert {".wv", ".mkv", ".mov", ".ac3", ".mp2", ".tta", ".m4b", ".aifc"} <= SONGS


# --- outputs --------------------------------------------------------------------------------------------------------


def test_a_link_is_written_through_and_a_protected_file_is_left_alone(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link.wav").symlink_to(tmp_path / "disk" / "v.wav")
    write(tmp_path / "link.wav", sound(0.1), RATE)
    assert (tmp_path / "link.wav").is_symlink() and length(tmp_path / "disk" / "v.wav") == pytest.approx(0.1)
    (tmp_path / "keep.wav").write_text("precious")
    (tmp_path / "keep.wav").chmod(0o444)
    (tmp_path / "loop.wav").symlink_to(tmp_path / "loop.wav")
    for name in ("keep.wav", "loop.wav"):
        with pytest.raises(UserError, match=name):
            write(tmp_path / name, sound(0.1), RATE)
    assert (tmp_path / "keep.wav").read_text() == "precious"
    assert sorted(os.listdir(tmp_path)) == ["disk", "keep.wav", "link.wav", "loop.wav"]


def test_data_is_on_the_disk_before_the_name(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda number: (calls.append("fsync"), fsync(number)))
    monkeypatch.setattr(os, "replace", lambda *names: (calls.append("replace"), replace(*names)))
    for name in ("a.wav", "a.flac", "a.mp3"):
        write(tmp_path / name, sound(0.1), RATE)
    assert calls == ["fsync", "replace"] * 3


@pytest.mark.skipif(os.name == "nt", reason="processes are not asked there")
def test_leftovers_of_the_dead_are_removed_and_of_the_living_never(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    mine = temporary_name(tmp_path / "a.wav")
    mine.touch()
    os.utime(mine, (1, 1))  # the clock was set, or it was silent for long
    begun = f"-{os.getpid()}-{atomic._start_time(os.getpid())}-"
    reused = tmp_path / temporary_name(tmp_path / "a.wav").name.replace(begun, f"-{os.getpid()}-7-")
    reused.touch()  # of one that had the number of this process before it
    born = atomic._start_time(os.getpid())
    monkeypatch.setattr(atomic, "_start_time", lambda pid: born)
    monkeypatch.setattr(atomic.os, "getpid", lambda: dead.pid)
    theirs, folder = temporary_name(tmp_path / "a.wav"), temporary_folder()
    theirs.touch()
    os.utime(theirs, (1, 1))
    monkeypatch.undo()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    remove_leftovers(tmp_path, seconds=0)
    assert mine.exists() and not theirs.exists() and not reused.exists()
    temporary_folder().cleanup()
    assert not Path(folder.name).exists()


# --- fuzzing --------------------------------------------------------------------------------------------------------


def mutate(content: bytes, changes: list[tuple[int, int]], cut: int) -> bytes:
    mutated = bytearray(content)
    for at, value in changes:
        mutated[at % min(len(mutated), 400)] = value
    return bytes(mutated[: max(1, len(mutated) * cut // 1000)])


CHANGES = st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=8)
SHORT = ["wav", "aiff", "au", "w64", "caf", "rf64", "flac", "mp3", "ogg", "opus"]
FUZZ = settings(deadline=None, database=None, suppress_health_check=list(HealthCheck))


def fuzz(songs: dict[str, Path], path: Path, kind: str, changes: list[tuple[int, int]], cut: int) -> None:
    """A header changed anywhere: the walkers end, and a file is read whole or refused with one sentence."""
    path.write_bytes(mutate(songs[kind].read_bytes()[: 1 << 16], changes, cut))
    for walk in (containers.find_samples, mpeg.walk, ogg.walk):
        try:
            walk(path)
        except ValueError:
            assert walk is containers.find_samples
    try:
        with AudioReader(path) as reader:
            assert sum(block.shape[1] for block in reader.blocks(1 << 16)) == reader.frames
    except UserError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("kind", SHORT)
def test_changed_headers(songs, tmp_path, monkeypatch, kind):
    monkeypatch.setenv("PATH", str(tmp_path))  # the second decoder is a process: it has its share in the slow tier
    settings(FUZZ, max_examples=20)(given(CHANGES, st.integers(1, 1000))(
        lambda changes, cut: fuzz(songs, tmp_path / f"a.{kind}", kind, changes, cut)
    ))()  # fmt: skip


@pytest.mark.parametrize("size", [2**44, 2**47, 2**48])
def test_a_size_that_no_disk_has_is_damage(songs, tmp_path, size):
    """Bytes 28 to 35 of an RF64 are the size of its samples; what follows them would lie where no file has a place."""
    whole = songs["rf64"].read_bytes()
    assert whole[:4] == b"RF64" and whole[12:16] == b"ds64"
    (tmp_path / "a.wav").write_bytes(whole[:28] + struct.pack("<Q", size) + whole[36:])
    with pytest.raises(UserError, match="cut off|damaged"), AudioReader(tmp_path / "a.wav") as reader:
        sum(block.shape[1] for block in reader.blocks(1 << 16))


@pytest.mark.fuzz
@pytest.mark.parametrize("kind", SHORT)
def test_many_changed_headers(songs, tmp_path, monkeypatch, kind):
    """5,000 in all without the second decoder, 100 with it."""
    for count, with_ffmpeg in ((500, False), (10, True)):
        with monkeypatch.context() as patch:
            if not with_ffmpeg:
                patch.setenv("PATH", str(tmp_path))
            settings(FUZZ, max_examples=count)(given(CHANGES, st.integers(1, 1000))(
                lambda changes, cut: fuzz(songs, tmp_path / f"a.{kind}", kind, changes, cut)
            ))()  # fmt: skip
