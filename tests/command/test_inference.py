"""inference.py: songs in, vocals out; or one sentence that says what is wrong."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import matplotlib.image
import pytest
import soundfile
import torch
from tiny import RATE, song, worst_db

import inference
from diffvocsep.audio import read, write
from diffvocsep.checkpoint import load_checkpoint, release
from diffvocsep.util import cli, released

ROOT = Path(__file__).parents[2]
SCRIPT = [sys.executable, str(ROOT / "inference.py")]


@pytest.fixture
def call(folder, model, capsys):
    """Run the script in this process: exit code, stdout, stderr."""

    def run(*arguments: str, use: Path | None = model) -> tuple[int, str, str]:
        chosen = ["--model_path", str(use)] if use else []
        with pytest.raises(SystemExit) as caught:
            cli.main(lambda: inference.run(["--no-progress", *chosen, *arguments]))
        return caught.value.code, *capsys.readouterr()

    return run


@pytest.fixture
def process(folder, model):
    """Run the script as a process: exit code, stdout, stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        command = [*SCRIPT, "--model_path", str(model), *arguments]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
        done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", env=environment)
        return done.returncode, done.stdout, done.stderr

    return run


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def assert_one_sentence(result: tuple[int, str, str], *words: str) -> None:
    code, out, err = result
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1, err
    assert all(word in err for word in words), err


# --- what works ---------------------------------------------------------------------------------------------------


def test_a_song_becomes_vocals_and_instrumental(call, folder):
    code, out, err = call("--input", "song.wav", "--output", "v.wav", "--instrumental", "sub/karaoke.flac")
    assert (code, err) == (0, "")
    assert out.startswith("device: ") and "\nsong.wav -> v.wav, " in out and "karaoke.flac" in out
    mixture, vocals, rest = (read(name)[0] for name in ("song.wav", "v.wav", "sub/karaoke.flac"))
    assert worst_db(vocals + rest - mixture, torch.ones(1)) < -130
    assert soundfile.info("v.wav").subtype == "FLOAT"
    assert names(folder) == ["song.wav", "sub/karaoke.flac", "v.wav"]


def test_options_reach_the_separator(call):
    def vocals(*options: str) -> bytes:
        assert call("--input", "song.wav", "--output", "v.wav", *options)[0] == 0
        return Path("v.wav").read_bytes()

    reference = vocals("--seed", "1")
    assert vocals("--seed", "1") == reference
    for options in [
        ["--seed", "2"],
        ["--seed", "1", "--steps", "3"],
        ["--seed", "1", "--samples", "2"],
        ["--seed", "1", "--sampler", "ddpm", "--steps", "3"],
        ["--seed", "1", "separation.subtract=mask"],
    ]:
        assert vocals(*options) != reference, options
    assert vocals("--seed", "1", "--steps", "3", "--eta", "1") != vocals("--seed", "1", "--steps", "3", "--eta", "0")
    Path("mine.yaml").write_text("separation: {subtract: mask}\n", encoding="utf-8")
    assert vocals("--seed", "1", "--config", "mine.yaml") == vocals("--seed", "1", "separation.subtract=mask")
    _, _, err = call("--input", "song.wav", "--output", "v.wav", "--config", "mine.yaml", "diffusion.samples=2")
    assert "note: mine.yaml sets separation.subtract to mask; the model came with complex" in err
    assert "samples" not in err  # was asked for
    Path("mine.yaml").write_text("diffusion: {ddim_steps: 5000}\n", encoding="utf-8")
    code, _, err = call("--input", "song.wav", "--output", "v.wav", "--config", "mine.yaml", "diffusion.ddim_steps=2")
    assert code == 0 and "ddim_steps" not in err


def test_16_bits(call):
    assert call("--input", "song.wav", "--output", "v.wav", "--bits", "16")[0] == 0
    assert soundfile.info("v.wav").subtype == "PCM_16"
    assert call("--input", "song.wav", "--output", "v.flac", "--bits", "32")[0] == 2  # a .flac has no floats


def test_a_folder_and_several_files(call, folder):
    songs = folder / "songs"
    for name in ["하나.wav", "🎤 two.flac"]:
        write(songs / name, 0.3 * song(0.3), RATE)
    assert call("--input", "songs", "--output", "out", "--instrumental", "out")[0] == 0
    expected = [f"out/{name}_{part}.wav" for name in ("하나", "🎤 two") for part in ("vocals", "instrumental")]
    assert [name for name in names(folder) if name.startswith("out")] == sorted(expected)
    code, _, _ = call("--input", "song.wav", "songs/하나.wav", "--output", "two")
    assert code == 0
    assert names(folder / "two") == ["song_vocals.wav", "하나_vocals.wav"]
    (folder / "there").mkdir()
    assert call("--input", "song.wav", "--output", "there")[0] == 0
    assert names(folder / "there") == ["song_vocals.wav"]


def test_one_bad_file_does_not_stop_the_others(call, folder):
    write("songs/a.wav", song(0.3), RATE)
    Path("songs/b.wav").write_bytes(b"RIFF" + Random(0).randbytes(2000))
    write("songs/c.wav", song(0.3), RATE)
    code, out, err = call("--input", "songs", "--output", "out")
    assert code == 2
    assert err.count("\n") == 1 and "b.wav" in err
    assert out.count("->") == 2
    assert names(folder / "out") == ["a_vocals.wav", "c_vocals.wav"]


def test_two_songs_of_one_name_are_one_result_and_one_sentence(call, folder):
    for name in ["a/s.wav", "b/s.wav"]:
        write(name, song(0.2), RATE)
    code, out, err = call("--input", "a/s.wav", "b/s.wav", "--output", "out")
    assert code == 2 and "1 of 2 songs separated; failed: b/s.wav" in out
    assert err.count("\n") == 1 and all(word in err for word in ["a/s.wav", "b/s.wav", "s_vocals.wav"])
    assert names(folder / "out") == ["s_vocals.wav"]


def test_a_name_without_room_for_its_ending_does_not_end_the_others(call, folder):
    for name in ["a", "m" * 248, "z"]:
        write(f"songs/{name}.wav", song(0.2), RATE)
    code, out, err = call("--input", "songs", "--output", "out")
    assert code == 2 and "2 of 3 songs separated; failed: " in out and err.count("\n") == 1
    assert names(folder / "out") == ["a_vocals.wav", "z_vocals.wav"]


@pytest.mark.skipif(os.name == "nt", reason="a shell of POSIX")
@pytest.mark.parametrize(
    "how",
    [
        "--input song.wav --output v.wav 2>&-",
        pytest.param("--input <(cat song.wav) --output v.wav", marks=pytest.mark.slow),
    ],
)
def test_a_process_without_stderr_and_one_that_reads_a_pipe(folder, model, how):
    command = " ".join([*(f"'{word}'" for word in SCRIPT), f"--model_path '{model}'", how])
    assert subprocess.run(["bash", "-c", command], capture_output=True).returncode == 0
    assert read("v.wav")[0].shape == read("song.wav")[0].shape


def test_a_song_of_many_channels_is_separated_in_turns(call):
    """Each group of eight as it is alone."""
    mixture = 0.2 * song(0.4, 19)
    write("many.wav", mixture, RATE)
    write("last.wav", mixture[16:], RATE)
    for name in ["many", "last"]:
        assert call("--input", f"{name}.wav", "--output", f"{name}-v.wav", "--instrumental", f"{name}-i.wav")[0] == 0
    vocals, rest = (read(f"many-{kind}.wav")[0] for kind in "vi")
    assert worst_db(vocals + rest - mixture, mixture) < -120
    assert worst_db(vocals[16:] - read("last-v.wav")[0], mixture) < -110


def test_a_picture(call, folder):
    code, _, err = call("--input", "song.wav", "--output", "v.wav", "--plot", "그림.png")
    assert (code, err) == (0, "")
    height, width = matplotlib.image.imread("그림.png").shape[:2]
    assert width > 900 and height > 500
    assert names(folder) == ["song.wav", "v.wav", "그림.png"]


def test_a_picture_that_cannot_be_written_leaves_the_vocals(call, folder):
    code, out, err = call("--input", "song.wav", "--output", "v.wav", "--plot", "song.wav/a.png")
    assert code == 2 and "v.wav" in out
    assert err.count("\n") == 1 and "a.png" in err
    assert names(folder) == ["song.wav", "v.wav"]


def test_a_picture_of_lossy_vocals(call):
    write("song.wav", 0.3 * song(2.0, 2, 44100), 44100)
    assert call("--input", "song.wav", "--output", "v.mp3", "--plot", "a.png")[0] == 0
    assert Path("a.png").stat().st_size > 10_000


def test_the_released_model_is_preferred_and_a_newer_own_one_is_named(call, model, tmp_path, monkeypatch):
    shipped = tmp_path / "elsewhere" / "pretrained.safetensors"
    monkeypatch.setattr(released, "CHECKOUT", shipped.parent)
    assert_one_sentence(call("--input", "song.wav", "--output", "v.wav", use=None), "best.pt", "--model_path")
    Path("checkpoints").mkdir()
    shutil.copy(model, "checkpoints/best.pt")
    code, _, err = call("--input", "song.wav", "--output", "v.wav", use=None)
    assert code == 0 and "best.pt" in err
    own = Path("v.wav").read_bytes()
    release(load_checkpoint(model), Path("checkpoints/pretrained.safetensors"))
    os.utime("checkpoints/best.pt", (time.time() + 60,) * 2)
    code, _, err = call("--input", "song.wav", "--output", "v.wav", use=None)
    assert code == 0 and "model: " in err and "pretrained.safetensors" in err and "newer" in err
    assert Path("v.wav").read_bytes() == own

    Path("checkpoints/pretrained.safetensors").unlink()  # called from another folder
    shutil.rmtree("checkpoints")
    (tmp_path / "elsewhere").mkdir()
    release(load_checkpoint(model), shipped)
    code, _, err = call("--input", "song.wav", "--output", "v.wav", use=None)
    assert code == 0 and f"model: {shipped}" in err
    assert Path("v.wav").read_bytes() == own


def test_a_process_takes_strange_names_and_an_mp3(process, folder):
    write("-x.wav", song(0.4), RATE)
    write("노래 🎵.mp3", 0.3 * song(0.6, 2, 22050), 22050)
    code, out, err = process("--input", "./-x.wav", "노래 🎵.mp3", "--output", "결과 🎤", "--steps", "2")
    assert (code, err) == (0, "")  # no progress bar where nobody looks at it
    assert "-x.wav -> 결과 🎤" in out
    assert names(folder / "결과 🎤") == ["-x_vocals.wav", "노래 🎵_vocals.wav"]
    vocals, rate = read("결과 🎤/노래 🎵_vocals.wav")
    assert rate == 22050 and vocals.shape == read("노래 🎵.mp3")[0].shape


# --- what does not ------------------------------------------------------------------------------------------------


def test_a_process_says_what_is_missing_in_one_sentence(process, folder):
    assert_one_sentence(process("--input", "없다 🎵.wav", "--output", "v.wav"), "없다 🎵.wav")
    assert names(folder) == ["song.wav"]


@pytest.mark.skipif(os.name == "nt", reason="no such names there")
def test_a_name_that_a_terminal_would_obey_is_shown_escaped(call, folder):
    """It may clear the screen, or look like a line of the program's own."""
    Path("in").mkdir()
    for name in ("a\x1b[2J\nerror: b.wav", "c\x1bd.txt", "e\x9bf.mp3"):
        (Path("in") / name).write_bytes(Path("song.wav").read_bytes() if name.endswith("wav") else b"lyrics")
    code, out, err = call("--input", "in", "--output", "out")
    assert code == 2 and "in/a\\x1b[2J\\nerror: b.wav -> " in out
    assert "c\\x1bd.txt" in err and "e\\x9bf.mp3" in err
    assert not {"\x1b", "\x9b"} & {*out, *err} and sum(line.startswith("error") for line in err.splitlines()) == 1
    code, out, err = call("--input", "gone\x1b[2J\n.wav", "--output", "v.wav")
    assert (code, out, err) == (2, "", "error: there is no file or folder 'gone\\x1b[2J\\n.wav'\n")


def test_an_option_without_effect_is_named_or_refused(call):
    arguments = ["--input", "song.wav", "--output", "v.wav"]
    code, _, err = call(*arguments, "--sampler", "ddpm", "--steps", "2", "--eta", "0.5")
    assert (code, err) == (0, "note: diffusion.eta = 0.5 is ignored: diffusion.sampler is ddpm\n")
    code, _, err = call(*arguments, "--sampler", "dpmpp")  # one step is the same by every sampler
    assert (code, err) == (0, "note: diffusion.sampler = dpmpp is ignored: diffusion.ddim_steps is 1\n")
    assert_one_sentence(call(*arguments, "train.lr=0.1"), "train.lr has no effect")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--input", "garbage.wav", "--output", "v.wav"], ["garbage.wav"]),
        (["--input", "garbage.txt", "--output", "v.wav"], ["garbage.txt"]),
        (["--input", "song.wav", "--output", "v.wav", "--instrumental", "v.wav"], ["both", "v.wav"]),
        (["--input", "song.wav", "--output", "v.xyz"], ["v.xyz", ".wav"]),
        (["--input", "song.wav", "--output", "song.wav/v.wav"], ["song.wav"]),
        (["--input", "gone.wav", "--output", "v.wav"], ["gone.wav"]),
        (["--input", "song.wav", "--output", "song.wav"], ["song.wav", "overwritten"]),
        (["--input", "song.wav", "--output", "v.wav", "--instrumental", "song.wav"], ["song.wav", "overwritten"]),
        (["--input", "song.wav", "--output", "v.wav", "--steps", "0"], ["ddim_steps", "0"]),
        (["--input", "song.wav", "--output", "v.wav", "--steps", "9999"], ["ddim_steps", "9999"]),
        (["--input", "song.wav", "--output", "v.wav", "--seed", "-1"], ["seed", "-1"]),
        (["--input", "song.wav", "--output", "v.wav", "--eta", "nan"], ["eta"]),
        (["--input", "song.wav", "--output", "v.wav", "--plot", "v.wav"], ["v.wav", ".png"]),
        (["--input", "song.png", "--output", "v.wav", "--plot", "song.png"], ["song.png", "overwritten"]),
        (["--input", "song.wav", "--output", "v.wav", "diffusion.stepz=3"], ["stepz"]),
        (["--input", "song.wav", "--output", "v.wav", "steps"], ["steps", "section.key=value"]),
        (["--input", "song.wav", "--output", "v.wav", "audio.n_fft=128"], ["audio.n_fft"]),
        (["--input", "song.wav", "--output", "v.wav", "--config", "gone.yaml"], ["gone.yaml"]),
        (["--input", "song.wav", "--output", "v.wav", "--model_path", "gone.pt"], ["gone.pt"]),
        (["--input", "song.wav", "--output", "v.wav", "--model_path", "song.wav"], ["song.wav"]),
        (["--input", "song.wav", "--output", "v.wav", "--model_path", "."], ["."]),
        (["--input", "song.wav", "--output", "v.wav", "--device", "toaster"], ["toaster", "cpu"]),
        (["--input", "", "--output", "v.wav"], ["empty"]),
        (["--input", "-", "--output", "v.wav"], ["'-'", "/dev/stdin"]),
        (["--input", "song.wav", "a/s.wav", "--output", "v.wav"], ["v.wav", "folder"]),
        (["--input", "a", "--output", "song.wav"], ["song.wav", "folder"]),
        (["--input", "empty", "--output", "out"], ["empty"]),
        (["--input", "song.wav", "a", "--output", "out", "--plot", "a.png"], ["--plot"]),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence_and_leaves_nothing(call, folder, arguments, words):
    Path("garbage.wav").write_bytes(Random(0).randbytes(5000))
    Path("garbage.txt").write_text("lyrics", encoding="utf-8")
    Path("song.png").write_bytes(Path("song.wav").read_bytes())
    Path("empty").mkdir()
    for name in ["a/s.wav", "b/s.wav"]:
        write(name, song(0.1), RATE)
    before = {name: Path(name).read_bytes() for name in names(folder)}
    assert_one_sentence(call(*arguments), *words)
    assert {name: Path(name).read_bytes() for name in names(folder)} == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_not_replaced_silently(call):
    assert_one_sentence(call("--input", "song.wav", "--output", "v.wav", "--device", "cuda"), "cuda", "--device")


def test_wrong_usage_exits_2(call, capsys):
    assert_one_sentence(call("--input", "song.wav"), "--output")
    assert_one_sentence(call("--input", "song.wav", "--output", "v.wav", "--steps", "many"), "--steps", "many")
    assert_one_sentence(call(), "song.mp3")


@pytest.mark.skipif(os.name == "nt", reason="no SIGINT for one process on Windows")
@pytest.mark.parametrize(  # Ctrl-C; `timeout` and clusters
    "how", ["SIGINT", pytest.param("SIGTERM", marks=pytest.mark.slow)]
)
def test_ctrl_c_leaves_nothing_behind(folder, model, how):
    write("long.wav", song(60.0), RATE)
    command = [*SCRIPT, "--input", "long.wav", "--output", "out/v.wav", "--instrumental", "out/a.wav"]
    process = subprocess.Popen(
        [*command, "--model_path", str(model), "--steps", "100"],
        stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 300
        while not (parts := list(folder.glob("out/.*.part"))) and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.5)
        assert parts, "nothing was begun"
        process.send_signal(getattr(signal, how))
        _, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130
    assert err == "interrupted\n"
    assert names(folder / "out") == []
