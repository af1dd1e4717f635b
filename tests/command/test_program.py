"""The program `diffvocsep`, as somebody with a song types it: where both parts go, in which form, and what is said."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
import soundfile
import torch
from tiny import RATE, song, worst_db

from diffvocsep import __version__
from diffvocsep.audio import read, write
from diffvocsep.command import program
from diffvocsep.util import cli

ROOT = Path(__file__).parents[2]
BOTH = ("vocals", "instrumental")


@pytest.fixture
def call(folder, model, capsys):
    """Run the program in this process: exit code, stdout, stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            cli.main(lambda: program.run(["--model_path", str(model), *arguments]))
        return caught.value.code, *capsys.readouterr()

    return run


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# --- where they go ------------------------------------------------------------------------------------------------


def test_a_song_alone_gives_both_parts_beside_it_and_one_line(call, folder):
    (folder / "music").mkdir()
    shutil.move("song.wav", "music/노래 1.wav")
    code, out, err = call("music/노래 1.wav")
    assert (code, err) == (0, "")
    assert out.splitlines()[1:] == ["music/노래 1.wav -> music/노래 1_vocals.wav, music/노래 1_instrumental.wav"]
    mixture, vocals, rest = (read(f"music/노래 1{end}.wav")[0] for end in ("", "_vocals", "_instrumental"))
    assert worst_db(vocals + rest - mixture, torch.ones(1)) < -130


def test_it_is_the_same_as_with_input_and_output(call):
    assert call("song.wav", "-o", "a", "--seed", "3", "separation.subtract=mask")[0] == 0
    named = ("--input", "song.wav", "--output", "v.wav", "--instrumental", "i.wav")
    assert call(*named, "--seed", "3", "separation.subtract=mask")[0] == 0
    assert Path("a/song_vocals.wav").read_bytes() == Path("v.wav").read_bytes()
    assert Path("a/song_instrumental.wav").read_bytes() == Path("i.wav").read_bytes()


@pytest.mark.parametrize(
    ("words", "written"),
    [
        (["song.wav", "-o", "v.flac"], ["v.flac"]),
        (["-o", "new/v.wav", "song.wav", "--instrumental", "new/i.wav"], ["new/i.wav", "new/v.wav"]),
        (["song.wav", "--output", "new/sub/"], [f"new/sub/song_{part}.wav" for part in sorted(BOTH)]),
        (["song.wav", "-o", "Vol. 1.wav/", "--format", "mp3"], [f"Vol. 1.wav/song_{p}.mp3" for p in sorted(BOTH)]),
        (["song.wav", "--format", "flac"], [f"song_{part}.flac" for part in sorted(BOTH)]),
        (["song.wav", "--instrumental", "i.wav"], ["i.wav", "song_vocals.wav"]),
    ],
)  # fmt: skip
def test_an_output_is_a_file_or_a_folder(call, folder, words, written):
    code, _, err = call(*words)
    assert (code, err) == (0, "")
    assert names(folder) == sorted(["song.wav", *written])


def test_words_between_options_are_songs_and_settings(call, folder):
    write("b.wav", song(0.2), RATE)
    assert call("song.wav", "--seed", "1", "separation.subtract=mask", "-o", "out", "b.wav")[0] == 0
    assert names(folder / "out") == sorted(f"{name}_{part}.wav" for name in ("b", "song") for part in BOTH)


def test_a_folder_says_how_far_it_is_and_may_be_run_again(call, folder):
    for name in ["a.wav", "CD 1/a.flac", "CD 1/a.wav"]:
        write(folder / "songs" / name, 0.3 * song(0.2), RATE)
    expected = [f"CD 1/a{end}_{part}.wav" for end in (".flac", ".wav") for part in BOTH] + [f"a_{p}.wav" for p in BOTH]
    for _ in range(2):  # the results of the first time are no songs
        code, out, err = call("songs")
        assert code == 0
        assert [line.split(":")[0] for line in out.splitlines() if line.startswith("song ")] == [
            f"song {number} of 3" for number in (1, 2, 3)
        ]
        assert out.count(" left\n") == 2 and "3 of 3 songs separated; it took" in out.splitlines()[-1]
        songs = ["CD 1/a.flac", "CD 1/a.wav", "a.wav"]
        assert names(folder / "songs") == sorted([*songs, *expected])
    assert "left out" in err and "a_vocals.wav" in err


# --- in which form ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "subtype"),
    [
        (["--bits", "16"], "PCM_16"), (["--bits", "24"], "PCM_24"), ([], "FLOAT"),
        (["--format", "flac"], "PCM_24"), (["--format", "flac", "--bits", "16"], "PCM_16"),
    ],
)  # fmt: skip
def test_form_of_both_in_a_folder(call, folder, words, subtype):
    assert call("song.wav", "-o", "out/", *words)[0] == 0
    assert {soundfile.info(path).subtype for path in (folder / "out").iterdir()} == {subtype}


def test_bit_rate_of_an_mp3(call):
    write("song.wav", 0.3 * song(4.0, 2, 44100), 44100)
    sizes = {}
    for rate in ("64", "128", "320"):
        assert call("song.wav", "--format", "mp3", "--bitrate", rate, "-o", rate)[0] == 0
        sizes[rate] = [Path(rate, f"song_{part}.mp3").stat().st_size * 8 / 4.0 / 1000 for part in BOTH]  # kbit/s
    assert all(size == pytest.approx(int(rate), rel=0.05) for rate, both in sizes.items() for size in both)
    assert call("song.wav", "--format", "mp3", "-o", "default")[0] == 0
    assert Path("default/song_vocals.mp3").read_bytes() == Path("320/song_vocals.mp3").read_bytes()


def test_a_peak_that_does_not_fit_is_an_error_or_rescaled_by_one_factor(call):
    loud = song(0.8)
    write("song.wav", 2.5 * loud / loud.abs().max(), RATE)
    assert call("song.wav", "-o", "float")[0] == 0
    code, _, err = call("song.wav", "-o", "pcm", "--bits", "16")
    assert code == 2 and err.count("\n") == 1 and "--rescale" in err and not list(Path("pcm").iterdir())
    code, _, err = call("song.wav", "-o", "pcm", "--bits", "16", "--rescale")
    assert code == 0 and err.startswith("note: ") and " dB below the song" in err and err.count("\n") == 1
    there, here = ([read(f"{home}/song_{part}.wav")[0] for part in BOTH] for home in ("float", "pcm"))
    peak = max(part.abs().max() for part in there)
    assert max(part.abs().max() for part in here) == pytest.approx(1.0, abs=1e-4)
    for before, after in zip(there, here, strict=True):
        assert (after - before / peak).abs().max() < 1.1 * 2**-15
    assert f"{20 * torch.log10(peak):.2f} dB" in err
    assert call("song.wav", "-o", "again", "--rescale")[0] == 0  # floats hold it
    assert Path("again/song_vocals.wav").read_bytes() == Path("float/song_vocals.wav").read_bytes()


def test_what_fits_is_not_rescaled(call):
    assert call("song.wav", "-o", "a", "--bits", "24", "--rescale")[2] == ""
    assert call("song.wav", "-o", "b", "--bits", "24")[0] == 0
    assert all(Path("a", name).read_bytes() == Path("b", name).read_bytes() for name in names(Path("a")))


# --- what is refused ----------------------------------------------------------------------------------------------

WITHOUT_TORCH = [
    ([], "no song is named"),
    (["gone.wav"], "'gone.wav'"),
    (["song.wav", "--sampler", "best"], "--sampler"),
    (["song.wav", "--steps", "0"], "diffusion.ddim_steps is 0"),
    (["song.wav", "--eta", "nan"], "diffusion.eta"),
    (["song.wav", "-o", "song.wav"], "overwritten"),
    (["song.wav", "-o", "v.xyz"], ".wav, .flac, .mp3"),
    (["song.wav", "-o", "v.wav", "--format", "mp3"], "'v.wav' is no .mp3"),
    (["song.wav", "-o", "song.wav/v.wav"], "'song.wav' is a file; name a folder with --output"),
    (["song.wav", "-o", "song.npz/"], "'song.npz' is a file; name a folder with --output"),
    (["song.wav", "--format", "flac", "--bits", "32"], "float"),
    (["song.wav", "--format", "mp3", "--bits", "16"], "leave --bits out"),
    (["song.wav", "--bitrate", "128"], "bit rate"),
    (["song.wav", "--format", "mp3", "--bitrate", "100"], "--bitrate"),
    (["song.wav", "--model_path", "gone.pt"], "'gone.pt'"),
    (["song.wav", "--uncertainty", "a.png"], ".npz"),
    (["song.npz", "--uncertainty", "song.npz"], "overwritten"),
    (["--no-such-option"], "--help"),
]  # fmt: skip


def test_what_can_be_known_without_torch_is_said_without_it(folder):
    """In one process, for each takes a second: torch and other large libraries are not in it afterwards."""
    code = """
import json, sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from diffvocsep.command import program
from diffvocsep.util import cli
said = []
for words in json.loads(sys.argv[1]):
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            cli.main(lambda: program.run(words))
        except SystemExit as exit:
            said.append((exit.code, out.getvalue(), err.getvalue()))
heavy = "torch torchaudio numpy scipy soundfile matplotlib tensorboard museval tqdm unittest asyncio".split()
print(json.dumps([said, [name for name in heavy if name in sys.modules]]))
"""
    Path("song.npz").write_bytes(Path("song.wav").read_bytes())
    asked = [words for words, _ in WITHOUT_TORCH] + [["--version"], ["--help"]]
    command = [sys.executable, "-c", code, json.dumps(asked)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    said, imported = json.loads(done.stdout)
    assert imported == []
    for (words, expected), (code, out, err) in zip(WITHOUT_TORCH, said, strict=False):
        assert (code, out) == (2, ""), words
        assert err.startswith("error: ") and err.count("\n") == 1 and expected in err, err
    assert said[-2][:2] == [0, f"diffvocsep {__version__}\n"]
    assert said[-1][0] == 0 and "song.mp3" in said[-1][1]
    assert names(folder) == ["song.npz", "song.wav"]


def test_a_song_waits_for_no_library_that_it_does_not_need(folder, model):
    """Statistics, plots and tables take longer to import than a short song to separate."""
    heavy = "scipy.stats scipy.signal matplotlib tensorboard museval pandas joblib hypothesis"
    code = f"""
import sys
from diffvocsep.command import program
assert program.run(sys.argv[1:]) == 0
print(*[name for name in {heavy.split()} if name in sys.modules], file=sys.stderr)
"""
    command = [sys.executable, "-c", code, "song.wav", "--model_path", str(model), "--no-progress"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    assert not set(done.stderr.split()) & set(heavy.split())
    assert names(folder) == ["song.wav", "song_instrumental.wav", "song_vocals.wav"]


def test_a_song_that_the_format_cannot_hold_is_refused_before_the_model_is_loaded(call, monkeypatch):
    monkeypatch.setattr("diffvocsep.separator.load_model_and_head", lambda path: pytest.fail("the model was loaded"))
    write("six.wav", 0.1 * song(0.2, 6), RATE)
    for words in (["six.wav", "--format", "mp3"], ["song.wav", "--format", "mp3", "--bitrate", "320"]):
        code, out, err = call(*words)
        assert (code, out) == (2, "") and err.count("\n") == 1
    write("song.wav", torch.zeros(2, 0), RATE)
    assert call("song.wav")[:2] == (2, "")


# --- installed ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_installed_it_runs_from_any_folder_with_its_own_weights(tmp_path):
    """A real `pip install .`; what it depends on is taken from here, for it takes gigabytes."""
    venv.create(tmp_path / "venv", with_pip=True)
    home = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin")
    source = tmp_path / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".git*", "build", "*.egg-info", "logs", "docs"))
    install = [str(home / "python"), "-m", "pip", "install", "-q", "--no-deps", str(source)]
    subprocess.run(install, check=True, timeout=500)
    shutil.rmtree(source)
    (site,) = (tmp_path / "venv").rglob("site-packages")
    (site / "here.pth").write_text(str(Path(torch.__file__).parents[1]), encoding="utf-8")
    (tmp_path / "music").mkdir()
    shutil.copy(ROOT / "data" / "demo" / "song.ogg", tmp_path / "music")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [str(home / "diffvocsep"), "song.ogg"]
    done = subprocess.run(command, cwd=tmp_path / "music", env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert "song.ogg -> song_vocals.wav, song_instrumental.wav" in done.stdout
    assert str(site / "diffvocsep") in done.stderr  # whose weights
    mixture, vocals, rest = (
        read(tmp_path / "music" / f"song{e}")[0] for e in (".ogg", "_vocals.wav", "_instrumental.wav")
    )
    assert worst_db(vocals + rest - mixture, torch.ones(1)) < -130
    assert 0.01 < vocals.square().sum() / mixture.square().sum() < 0.9
