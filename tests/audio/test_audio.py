"""Audio files round the world: formats, names, damage, atomic writing, and resampling against analytic sines."""

from __future__ import annotations

import math
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.io.wavfile
import soundfile
import torch
from torch import Tensor

from diffvocsep.audio import AudioReader, AudioWriter, read, rechunk, resample, resample_blocks, resampling, wav, write
from diffvocsep.util.errors import UserError


def noise(channels: int = 2, frames: int = 5003, peak: float = 0.9, seed: int = 0) -> Tensor:
    return (torch.rand(channels, frames, generator=torch.Generator().manual_seed(seed)) * 2 - 1) * peak


def sine(frequency: float, rate: int, frames: int) -> Tensor:
    return torch.sin(2 * math.pi * frequency * torch.arange(frames, dtype=torch.float64) / rate)


def decibels(x: Tensor, reference: Tensor) -> float:
    return 10 * math.log10(float(x.double().square().mean() / reference.double().square().mean()) + 1e-30)


@pytest.fixture
def ffmpeg() -> str:
    program = shutil.which("ffmpeg")
    if program is None:
        assert not os.environ.get("CI"), "CI must have ffmpeg"
        pytest.skip("ffmpeg is not on PATH")
    return program


def encode(ffmpeg: str, source: Path, target: Path, *options: str) -> Path:
    subprocess.run([ffmpeg, "-nostdin", "-v", "error", "-y", "-i", str(source), *options, str(target)], check=True)
    return target


# ----------------------------------------------------------------------------------------------- formats


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize("suffix", [".wav", ".flac"])
@pytest.mark.parametrize("subtype", ["float", "pcm16", "pcm24", None])
def test_lossless_round_trip(tmp_path, suffix, subtype, channels):
    if (suffix, subtype) == (".flac", "float"):
        with pytest.raises(UserError, match="pcm24, pcm16"):
            write(tmp_path / "a.flac", noise(), 44100, "float")
        return
    x = noise(channels)
    write(tmp_path / f"a{suffix}", x, 44100, subtype)
    y, rate = read(tmp_path / f"a{suffix}")
    bits = {"pcm16": 16, "pcm24": 24, "float": None, None: 24 if suffix == ".flac" else None}[subtype]
    assert (rate, y.shape, y.dtype) == (44100, x.shape, torch.float32)
    step = 0.0 if bits is None else 2.0 ** (1 - bits)
    assert (x - y).abs().max() <= step / 2 * 1.001
    write(tmp_path / f"b{suffix}", y, 44100, subtype)  # what has been rounded once is kept bit for bit
    assert torch.equal(read(tmp_path / f"b{suffix}")[0], y)
    if suffix == ".wav":  # another program's reading of our header
        kinds = {None: np.float32, 16: np.int16, 24: np.int32}
        rate, data = scipy.io.wavfile.read(tmp_path / "a.wav")
        data = data.reshape(-1, channels)
        scale = 1.0 if bits is None else 2.0 ** (31 if bits == 24 else 15)
        assert rate == 44100 and data.dtype == kinds[bits]
        assert np.array_equal((data / scale).astype(np.float32).T, y.numpy())
        info = soundfile.info(str(tmp_path / "a.wav"))
        assert (info.format, info.frames, info.channels) == ("WAV", x.shape[1], channels)


def test_float_wav_keeps_peaks_above_full_scale_and_equal_samples_give_equal_bytes(tmp_path):
    x = noise() * 5
    write(tmp_path / "a.wav", x, 48000)
    write(tmp_path / "b.wav", x, 48000)
    assert torch.equal(read(tmp_path / "a.wav")[0], x)
    assert (tmp_path / "a.wav").read_bytes() == (tmp_path / "b.wav").read_bytes()


@pytest.mark.parametrize("subtype", ["pcm16", "pcm24"])
@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_full_scale_fits(tmp_path, suffix, subtype):
    write(tmp_path / f"a{suffix}", torch.tensor([[1.0, -1.0, 0.0]]), 44100, subtype)
    step = 2.0 ** (1 - int(subtype[3:]))
    assert torch.equal(read(tmp_path / f"a{suffix}")[0], torch.tensor([[1 - step, -1.0, 0.0]]))


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000, 96000, 192000])
def test_sample_rates(tmp_path, rate):
    for suffix in (".wav", ".flac", ".mp3"):
        if suffix == ".mp3" and rate > 48000:
            with pytest.raises(UserError, match="44100, 48000 Hz"):
                AudioWriter(tmp_path / "a.mp3", rate, 2)
            continue
        write(tmp_path / f"a{suffix}", noise(1, 3000), rate)
        y, found = read(tmp_path / f"a{suffix}")
        assert (found, y.shape) == (rate, (1, 3000))


@pytest.mark.parametrize("rate", [7999, 192001])
def test_sample_rates_outside_the_range_are_refused(tmp_path, rate):
    write(tmp_path / "a.wav", noise(), rate)
    with pytest.raises(UserError, match=f"{rate} Hz"):
        AudioReader(tmp_path / "a.wav")


def test_mp3_and_ogg(tmp_path):
    x = torch.stack([sine(440, 44100, 44100), sine(1000, 44100, 44100)]).float() * 0.5
    write(tmp_path / "a.mp3", x, 44100)
    soundfile.write(tmp_path / "a.ogg", x.T.numpy(), 44100, format="OGG", subtype="VORBIS")
    for suffix, error in ((".mp3", -50), (".ogg", -25)):
        y, rate = read(tmp_path / f"a{suffix}")
        assert (rate, y.shape) == (44100, x.shape)
        assert decibels((y - x)[:, 2000:-2000], x) < error
    assert (tmp_path / "a.mp3").stat().st_size == pytest.approx(320_000 / 8, rel=0.1)


@pytest.mark.parametrize("suffix, channels", [(".mp3", 3), (".flac", 9), (".wav", 0)])
def test_too_many_channels(tmp_path, suffix, channels):
    with pytest.raises(UserError, match=f"{channels} channels"):
        AudioWriter(tmp_path / f"a{suffix}", 44100, channels)


@pytest.mark.parametrize("name", ["a.ogg", "a.m4a", "a", ".wav", "a.wav.txt"])
def test_other_endings_are_refused(tmp_path, name):
    with pytest.raises(UserError, match=r"\.wav, \.flac, \.mp3"):
        write(tmp_path / name, noise(), 44100)
    assert not list(tmp_path.iterdir())


# ----------------------------------------------------------------------------------------------- ffmpeg


def test_m4a_goes_through_ffmpeg_twice_over_and_leaves_nothing_behind(tmp_path, ffmpeg, monkeypatch):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    x = torch.stack([sine(440, 48000, 48000), sine(1000, 48000, 48000)]).float() * 0.5
    write(tmp_path / "a.wav", x, 48000)
    monkeypatch.chdir(tmp_path)
    song = encode(ffmpeg, tmp_path / "a.wav", tmp_path / "a.m4a", "-c:a", "aac", "-b:a", "256k")
    song = song.rename("-노래 [live] 🎤 1%.m4a" if os.name == "nt" else "concat:-노래 [live] 🎤 1%.m4a")
    with AudioReader(song.name) as reader:
        assert (reader.sample_rate, reader.channels) == (48000, 2)
        passes = [torch.cat(list(reader.blocks(7000)), -1) for _ in range(2)]
        assert list(scratch.iterdir())
    assert not list(scratch.iterdir())
    assert torch.equal(*passes) and passes[0].shape[1] == reader.frames >= 48000
    assert decibels((passes[0][:, :48000] - x)[:, 2000:-2000], x) < -25


def test_half_an_m4a_is_refused(tmp_path, ffmpeg):
    write(tmp_path / "a.wav", noise(2, 100_000), 44100)
    song = encode(ffmpeg, tmp_path / "a.wav", tmp_path / "a.m4a", "-c:a", "aac", "-movflags", "+faststart")
    song.write_bytes(song.read_bytes()[: song.stat().st_size // 2])
    with pytest.raises(UserError, match=r"a\.m4a.*damaged"):
        read(song)


def test_an_mp3_without_length_header_is_not_cut_off(tmp_path, ffmpeg, monkeypatch):
    """libsndfile guesses the length of such a file, here as half of it."""
    quiet_then_loud = torch.cat([noise(1, 44100, 0.5), sine(440, 44100, 88200)[None].float() * 0.1], -1)
    write(tmp_path / "a.wav", quiet_then_loud, 44100)
    song = encode(ffmpeg, tmp_path / "a.wav", tmp_path / "a.mp3", "-q:a", "3", "-write_xing", "0")
    assert soundfile.info(str(song)).frames < 120_000
    assert read(song)[0].shape[1] >= quiet_then_loud.shape[1]
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="ffmpeg"):
        read(song)


def test_a_streamed_flac_of_unknown_length(tmp_path, ffmpeg):
    write(tmp_path / "a.wav", noise(), 44100, "pcm16")
    command = [ffmpeg, "-nostdin", "-v", "error", "-i", str(tmp_path / "a.wav"), "-f", "flac", "-"]
    (tmp_path / "a.flac").write_bytes(subprocess.run(command, check=True, capture_output=True).stdout)
    assert torch.equal(read(tmp_path / "a.flac")[0], read(tmp_path / "a.wav")[0])


def test_missing_ffmpeg_is_named_with_the_way_to_get_it(tmp_path, monkeypatch):
    (tmp_path / "song.m4a").write_bytes(b"\0\0\0\x20ftypM4A " + bytes(1000))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"song\.m4a.*needs ffmpeg.*install"):
        AudioReader(tmp_path / "song.m4a")


# ----------------------------------------------------------------------------------------------- names


NAMES = ["노래 (라이브)", "🎤🎶", "[demo] 100% #1", "-dash", "é" * 100, "한" * 80]


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".mp3"])
@pytest.mark.parametrize("name", NAMES)
def test_any_name_in_a_new_folder(tmp_path, monkeypatch, name, suffix):
    monkeypatch.chdir(tmp_path)
    path = Path("새 폴더", "안") / f"{name}{suffix}"
    write(path, noise(), 44100)
    assert read(path)[0].shape == noise().shape
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="file names there are always Unicode")
def test_a_name_in_an_old_korean_encoding(tmp_path):
    path = tmp_path / os.fsdecode("노래.flac".encode("cp949"))
    write(path, noise(), 44100)
    assert read(path)[0].shape == noise().shape
    path.write_bytes(b"garbage")
    with pytest.raises(UserError) as error:
        read(path)
    str(error.value).encode("utf-8")  # can be printed


# ----------------------------------------------------------------------------------------------- bad input


def bad_files(folder: Path) -> dict[str, Path | str]:
    write(folder / "good.wav", noise(), 44100)
    write(folder / "good.flac", noise(2, 50_000), 44100)
    write(folder / "good.mp3", noise(2, 50_000), 44100)
    x = noise(2, 30_000)
    for name, value in (("nan.wav", math.nan), ("inf.wav", -math.inf)):
        bad = x.clone()
        bad[1, 22050] = value
        soundfile.write(folder / name, bad.T.numpy(), 44100, "FLOAT")
    soundfile.write(folder / "none.wav", np.zeros((0, 2)), 44100)
    contents = {
        "garbage.wav": np.random.default_rng(0).bytes(50_000),
        "garbage.mp3": np.random.default_rng(1).bytes(50_000),
        "headerless.raw": bytes(1000),
        "zero.wav": b"",
        "one.flac": b"f",
        "text.txt": "노래\n".encode() * 100,
        "list.m3u8": b"#EXTM3U\n#EXTINF:10,\nhttp://127.0.0.1:9/a.ts\n",
        "riff.wav": (folder / "good.wav").read_bytes()[:30],
        "half.flac": (folder / "good.flac").read_bytes()[:60_000],
        "half.mp3": (folder / "good.mp3").read_bytes()[:20_000],
        "tag.mp3": b"ID3\x04\0\0\x7f\x7f\x7f\x7f",
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    paths = {name: folder / name for name in (*contents, "nan.wav", "inf.wav", "none.wav", "missing.wav")}
    (folder / "folder.wav").mkdir()
    paths |= {"folder.wav": folder / "folder.wav", "long": folder / f"{'x' * 300}.wav", "null": "a\0b.wav", "": ""}
    return paths


@pytest.mark.parametrize("with_ffmpeg", [True, False])
def test_bad_input_raises_one_clear_user_error(tmp_path, monkeypatch, request, with_ffmpeg):
    paths = bad_files(tmp_path)
    if with_ffmpeg:
        request.getfixturevalue("ffmpeg")
    else:
        monkeypatch.setenv("PATH", str(tmp_path))
    messages = {}
    for name, path in paths.items():
        with pytest.raises(UserError) as error:
            read(path)
        messages[name] = str(error.value)
        assert "\n" not in messages[name]
        assert str(Path(path)) in messages[name]
    assert "0.500 s" in messages["nan.wav"] and "0.500 s" in messages["inf.wav"]
    assert "folder" in messages["folder.wav"] and "no file" in messages["missing.wav"]
    assert "empty" in messages["zero.wav"] and "no samples" in messages["none.wav"]
    assert "of the 1.13 s" in messages["half.flac"] and "of the 1.13 s" in messages["half.mp3"]


def test_random_damage_raises_nothing_but_user_errors(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    rng = np.random.default_rng(0)
    refused = 0
    for suffix in (".wav", ".flac", ".mp3"):
        write(tmp_path / f"a{suffix}", noise(2, 20_000), 44100, "pcm16" if suffix == ".wav" else None)
        good = np.frombuffer((tmp_path / f"a{suffix}").read_bytes(), np.uint8)
        for _ in range(20):
            bad = good.copy()
            bad[rng.integers(0, 200, 6)] = rng.integers(0, 256, 6)
            (tmp_path / f"b{suffix}").write_bytes(bad[: rng.integers(20, len(bad))].tobytes())
            try:
                read(tmp_path / f"b{suffix}")
            except UserError:
                refused += 1
    assert refused > 20


# ----------------------------------------------------------------------------------------------- reading in blocks


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".mp3"])
def test_blocks_join_to_the_whole_on_every_pass(tmp_path, suffix):
    write(tmp_path / f"a{suffix}", noise(), 44100)
    whole, _ = read(tmp_path / f"a{suffix}")
    with AudioReader(str(tmp_path / f"a{suffix}")) as reader:
        assert (reader.frames, reader.channels) == (5003, 2)
        next(reader.blocks(10))  # a pass that was left early does not disturb the next
        for size in (1000, 777):
            blocks = list(reader.blocks(size))
            assert [b.shape[1] for b in blocks[:-1]] == [size] * (5003 // size)
            assert torch.equal(torch.cat(blocks, -1), whole)


# ----------------------------------------------------------------------------------------------- writing


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".mp3"])
def test_an_exception_keeps_the_old_file_and_leaves_nothing_else(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), AudioWriter(path, 44100, 2) as writer:
        writer.write(noise())
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == [path.name] and path.read_bytes() == b"old"
    write(path, noise(), 44100)
    assert os.listdir(tmp_path) == [path.name] and read(path)[0].shape == (2, 5003)


@pytest.mark.parametrize("name, subtype", [("a.wav", "pcm16"), ("a.wav", "pcm24"), ("a.flac", None), ("a.mp3", None)])
def test_a_peak_that_does_not_fit_is_refused_with_its_level(tmp_path, name, subtype):
    x = noise(2, 44100)
    x[0, 22050] = np.nextafter(np.float32(1), np.float32(2)).item()
    with pytest.raises(UserError, match=r"\+0\.00 dBFS"):
        write(tmp_path / name, x, 44100, subtype)
    x[1, 22050] = -2.0
    with pytest.raises(UserError, match=r"\+6\.02 dBFS at 0\.500 s.*float \.wav"):
        write(tmp_path / name, x, 44100, subtype)
    assert not list(tmp_path.iterdir())


def test_samples_that_are_not_finite_are_not_written(tmp_path):
    with pytest.raises(UserError, match=r"0\.200 s"), AudioWriter(tmp_path / "a.wav", 10_000, 1) as writer:
        writer.write(torch.zeros(1, 1500))
        writer.write(torch.tensor([[0.0] * 500 + [math.nan]]))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".mp3"])
def test_unwritable_places(tmp_path, suffix):
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / f"folder{suffix}").mkdir()
    names = [f"file/a{suffix}", f"folder{suffix}", f"a\0b{suffix}", f"{'x' * 300}{suffix}"]
    for name in names:
        with pytest.raises(UserError), AudioWriter(tmp_path / name, 44100, 2):
            pytest.fail("the work has begun")
    assert sorted(os.listdir(tmp_path)) == ["file", f"folder{suffix}"]


@pytest.mark.skipif(sys.platform == "win32", reason="no RLIMIT_FSIZE")
@pytest.mark.parametrize("suffix", [".wav", ".flac", ".mp3"])
def test_a_disk_that_fills_up_while_writing(tmp_path, suffix):
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(UserError, match="disk"):
            write(tmp_path / f"a{suffix}", noise(2, 200_000), 44100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


def test_a_disk_too_small_is_refused_before_the_work(tmp_path):
    with (
        pytest.raises(UserError, match="more than the disk has free"),
        AudioWriter(tmp_path / "a.wav", 44100, 2, frames=1 << 55),
    ):
        pytest.fail("the work has begun")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("failures", [3, 1000])
def test_a_target_held_by_a_player(tmp_path, monkeypatch, failures):
    """On Windows, os.replace fails while another program has the target open."""
    path = tmp_path / "a.wav"
    path.write_bytes(b"old")
    real, calls = os.replace, []

    def replace(*args):
        calls.append(args)
        if len(calls) <= failures:
            raise PermissionError(13, "in use")
        real(*args)

    monkeypatch.setattr(os, "replace", replace)
    if failures == 3:
        write(path, noise(), 44100)
        assert read(path)[0].shape == (2, 5003)
    else:
        with pytest.raises(UserError, match="close programs that use it"):
            write(path, noise(), 44100)
        assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.wav"]


def test_odd_sizes_are_padded(tmp_path):
    write(tmp_path / "a.wav", noise(1, 5), 44100, "pcm24")
    content = (tmp_path / "a.wav").read_bytes()
    assert len(content) == 92 + 16 and struct.unpack("<I", content[4:8])[0] == len(content) - 8
    assert struct.unpack("<I", content[88:92])[0] == 15


# ----------------------------------------------------------------------------------------------- RF64


def test_rf64_begins_exactly_where_32_bits_end():
    most = (0xFFFF_FFFF - 1 - 84) // 8  # float32 stereo frames whose RIFF size stays under the "see ds64" mark
    small, large = (wav.header("float", 44100, 2, frames) for frames in (most, most + 1))
    assert len(small) == len(large) == 92
    assert small[:4] == b"RIFF" and struct.unpack("<I", small[88:92])[0] == most * 8
    assert large[:4] == b"RF64" and struct.unpack("<QQQ", large[20:44]) == (84 + most * 8 + 8, most * 8 + 8, most + 1)


@pytest.mark.skipif(sys.platform == "win32", reason="would allocate the holes of the file")
@pytest.mark.parametrize("subtype, width", [("float", 4), ("pcm16", 2), ("pcm24", 3)])
@pytest.mark.parametrize("gigabytes", [3, 5])
def test_libsndfile_reads_a_file_beyond_4_gib(tmp_path, subtype, width, gigabytes):
    """A file with a hole in the middle: the true size, a few kilobytes on the disk."""
    frames, path = gigabytes * 10**9 // (2 * width), tmp_path / "a.wav"
    with AudioWriter(path, 44100, 2, subtype) as writer:
        writer.write(torch.full((2, 4), 0.5))
        sink = writer._sink
        hole = (frames - 8) * 2 * width
        sink._file.seek(hole, os.SEEK_CUR)
        sink._frames += frames - 8
        writer.write(torch.full((2, 4), -0.25))
    with AudioReader(path) as reader:
        assert reader.frames == frames
        assert torch.equal(next(reader.blocks(5)), torch.tensor([[0.5] * 4 + [0.0]] * 2))
    with soundfile.SoundFile(path) as file:
        assert file.format == ("RF64" if gigabytes == 5 else "WAV")
        file.seek(frames - 5)
        assert file.read(100).tolist() == [[0.0] * 2] + [[-0.25] * 2] * 4


# ----------------------------------------------------------------------------------------------- resampling


# The last pair is odd, 2001:2002, and too large for the dense kernel.
RATES = [(44100, 48000), (48000, 44100), (96000, 44100), (44100, 22050), (11025, 44100), (192000, 44100), (8004, 8008)]


@pytest.mark.parametrize("rates", RATES)
def test_a_resampled_sine_is_the_analytic_sine(rates):
    low = min(rates) / 2
    n = rates[0] // 2
    m = -(-n * rates[1] // rates[0])
    edge = m // 8
    for frequency in (0.01 * low, 0.5 * low, 0.93 * low):
        y = resample(sine(frequency, rates[0], n).float(), *rates)
        expected = sine(frequency, rates[1], m)
        assert y.shape == expected.shape
        assert decibels((y - expected)[edge:-edge], expected) < -110


@pytest.mark.parametrize("rates", [r for r in RATES if r[0] > r[1]])
def test_nothing_above_the_new_nyquist_frequency_comes_through(rates):
    old, new = rates[0] / 2, rates[1] / 2
    for frequency in (new * 1.001, (old + new) / 2, 0.97 * old):
        x = sine(frequency, rates[0], rates[0] // 2).float()
        y = resample(x, *rates)
        assert decibels(y[len(y) // 8 : -len(y) // 8], x) < -110


@pytest.mark.parametrize("rates", RATES)
@pytest.mark.parametrize("frames", [1, 7, 1000, 50_001])
def test_streaming_equals_the_whole(rates, frames, monkeypatch):
    x = noise(2, frames)
    whole = resample(x, *rates)
    assert whole.shape == (2, -(-frames * rates[1] // rates[0]))
    monkeypatch.setattr(resampling, "_HOP", 5000)  # many hops in a short signal
    sizes = np.random.default_rng(0).integers(1, 3001, 10_000).tolist()
    pieces, start = [], 0
    while start < frames:
        pieces.append(x[:, start : start + (size := sizes.pop())])
        start += size
    streamed = torch.cat(list(resample_blocks(iter(pieces), *rates)), -1)
    assert streamed.shape == whole.shape
    assert (streamed - whole).abs().max() < 1e-6


@pytest.mark.parametrize("q, p", [(147, 160), (320, 147), (1, 4), (2, 1)])
def test_the_two_ways_to_resample_agree(q, p):
    x = noise(2, q * (20_000 // q))
    assert (resampling._dense(q, p)(x) - resampling._few_phases(x, q, p)).abs().max() < 3e-6


def test_streaming_gives_sound_before_the_song_ends_and_takes_any_leading_shape():
    taken = []
    blocks = (taken.append(i) or torch.zeros(1, 44100) for i in range(1000))
    next(resample_blocks(blocks, 44100, 48000))
    assert len(taken) < 60
    x = noise(6, 999).reshape(3, 2, 999)
    assert torch.allclose(resample(x, 48000, 44100)[1, 1], resample(x[1, 1], 48000, 44100), atol=1e-6)
    assert resample(torch.zeros(2, 0), 48000, 44100).shape == (2, 0)
    assert list(resample_blocks([], 48000, 44100)) == []


def test_lengths_are_exact_where_float32_would_round(monkeypatch):
    """torchaudio computes the length in float32, wrong from 2**24 samples on."""
    monkeypatch.setattr(resampling, "_convert", lambda x, q, p: x.new_empty(x.shape[0], x.shape[1] // q * p))
    assert resample(torch.empty(1, 40_000_001), 48000, 44100).shape[1] == 36_750_001


def test_equal_rates_change_nothing():
    x = noise()
    assert torch.equal(resample(x, 44100, 44100), x)
    assert [b.shape for b in resample_blocks(x.split(1000, -1), 8000, 8000)] == [b.shape for b in x.split(1000, -1)]


def test_a_missing_torchaudio_names_the_pair_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchaudio.transforms", None)
    resampling._dense.cache_clear()
    with pytest.raises(UserError, match=r"torch==2\.11\.\*.*torchaudio==2\.11\.\*"):
        resample(noise(), 44100, 48000)


@pytest.mark.parametrize("size", [1, 7, 100, 5003, 9999])
def test_rechunk(size):
    x = noise()
    pieces = [x[:, :1], x[:, 1:1], x[:, 1:2500], x[:, 2500:2503], x[:, 2503:]]
    chunks = list(rechunk(pieces, size))
    assert torch.equal(torch.cat(chunks, -1), x)
    assert all(c.shape[1] == size for c in chunks[:-1]) and 0 < chunks[-1].shape[1] <= size


@pytest.mark.parametrize("name", ["a.ogg", "a.mp3"])
def test_a_lossy_file_may_lack_a_few_samples_of_what_it_announces(tmp_path, name):
    """Seen in an Ogg file of a Debian package: 104 samples short. They are filled with silence; half a second is
    damage."""
    path = tmp_path / name
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal((8000, 2)), 8000)
    for missing in (104, 4000):
        with AudioReader(path) as reader:
            reader.frames += missing
            if missing == 4000:
                with pytest.raises(UserError, match="damaged"):
                    list(reader.blocks(4096))
            else:
                waveform = torch.cat(list(reader.blocks(4096)), dim=-1)
                assert waveform.shape == (2, 8104)
                assert waveform[:, :8000].abs().max() > 0 and not waveform[:, 8000:].any()


def test_a_lossless_file_lacks_nothing(tmp_path):
    """What is lost here is less than a lossy file may lack."""
    path = tmp_path / "a.flac"
    write(path, noise(2, 44100), 44100)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with AudioReader(path) as reader, pytest.raises(UserError, match=r"a\.flac.*damaged") as error:
        for _ in reader.blocks(4096):
            pass
    assert 0.75 < float(re.search(r"read for (\S+) s of the 1\.00 s", str(error.value))[1]) < 1.0
    path.write_bytes(whole)
    assert read(path)[0].shape == (2, 44100)
