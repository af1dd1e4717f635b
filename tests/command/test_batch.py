"""Separating files: formats, lengths and names kept, nothing overwritten, memory that does not grow with the song; and
model files, whole and damaged."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import pytest
import soundfile
import torch
from tiny import RATE, audible, nobody_plays, random_separator, random_unet, song, stubbed, tiny_config, worst_db

from diffvocsep import checkpoint
from diffvocsep.audio import read, write
from diffvocsep.audio.songs import Song, find_songs, left_out_note
from diffvocsep.checkpoint import FORMAT, load_checkpoint, load_model, release, save_checkpoint
from diffvocsep.command.batch import separate_file
from diffvocsep.command.jobs import Job, Output, duration, pair_outputs, plan, separate_all
from diffvocsep.config import to_dict
from diffvocsep.plot import middle_excerpt
from diffvocsep.separator import Separator
from diffvocsep.util.errors import UserError

ROOT = Path(__file__).parents[2]


# --- files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "sample_rate"), [(1, RATE), (2, 11025), (5, 16000)])
def test_a_file_becomes_two_that_add_up_to_it(tmp_path, channels, sample_rate):
    mixture = 0.2 * song(1.2, channels, sample_rate)[:, :-3]
    write(tmp_path / "in.wav", mixture, sample_rate)
    separator = random_separator()
    separate_file(separator, tmp_path / "in.wav", tmp_path / "new" / "v.wav", tmp_path / "a.flac", seed=5)
    (vocals, rate), (rest, rest_rate) = read(tmp_path / "new" / "v.wav"), read(tmp_path / "a.flac")
    assert rate == rest_rate == sample_rate
    assert vocals.shape == rest.shape == mixture.shape
    assert worst_db(vocals + rest - mixture, torch.ones(1)) < -130  # the .flac has 24 bits
    assert worst_db(vocals - separator.separate(mixture, sample_rate, seed=5)[0], mixture) < -110


def test_a_long_file_is_what_its_whole_waveform_gives(tmp_path):
    """Longer than two blocks of reading."""
    mixture = audible(song(9.3, 1), RATE)
    write(tmp_path / "in.wav", mixture, RATE)
    separate_file(stubbed(nobody_plays), tmp_path / "in.wav", tmp_path / "v.wav", subtype="pcm24")
    assert worst_db(read(tmp_path / "v.wav")[0] - mixture, mixture) < -100
    assert soundfile.info(tmp_path / "v.wav").subtype == "PCM_24"


def test_the_order_of_files_does_not_matter(tmp_path):
    separator = random_separator()
    for name, seed in [("a", 1), ("b", 2)]:
        write(tmp_path / f"{name}.wav", song(0.5, seed=seed), RATE)
    results = []
    for order in ["ab", "ba"]:
        for name in order:
            separate_file(separator, tmp_path / f"{name}.wav", tmp_path / f"{order}-{name}.wav")
        results.append([(tmp_path / f"{order}-{name}.wav").read_bytes() for name in "ab"])
    assert results[0] == results[1]


def test_an_output_that_is_the_input_is_refused(tmp_path):
    write(tmp_path / "in.wav", song(0.1), RATE)
    before = (tmp_path / "in.wav").read_bytes()
    os.link(tmp_path / "in.wav", tmp_path / "link.wav")
    separator = stubbed(nobody_plays)
    for output in [tmp_path / "in.wav", tmp_path / "x" / ".." / "in.wav", tmp_path / "link.wav"]:
        with pytest.raises(UserError, match="overwritten"):
            separate_file(separator, tmp_path / "in.wav", tmp_path / "v.wav", output)
    with pytest.raises(UserError, match="both"):
        separate_file(separator, tmp_path / "in.wav", tmp_path / "v.wav", tmp_path / "v.wav")
    assert (tmp_path / "in.wav").read_bytes() == before
    assert not (tmp_path / "v.wav").exists()


def test_an_error_in_the_middle_leaves_the_old_output_and_nothing_else(tmp_path):
    write(tmp_path / "in.wav", song(2.0), RATE)
    (tmp_path / "v.wav").write_bytes(b"old")
    calls = []

    def breaks(x_t, mixture, t):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return mixture

    with pytest.raises(KeyboardInterrupt):
        separate_file(stubbed(breaks), tmp_path / "in.wav", tmp_path / "v.wav", tmp_path / "a.wav")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.wav", "v.wav"]
    assert (tmp_path / "v.wav").read_bytes() == b"old"


def test_the_middle_of_a_song(tmp_path):
    mixture = song(10.0)
    write(tmp_path / "in.wav", mixture, RATE)
    excerpt, rate, start = middle_excerpt(tmp_path / "in.wav", 3.0)
    assert (rate, start) == (RATE, 3.5)
    assert torch.equal(excerpt, mixture[:, 28000:52000])
    everything, _, start = middle_excerpt(tmp_path / "in.wav", 20.0)
    assert start == 0
    assert torch.equal(everything, mixture)


# --- names --------------------------------------------------------------------------------------------------------


def test_a_folder_gives_its_songs_by_name_and_no_others(tmp_path):
    for name in ["b.mp3", "a.WAV", "ㄱ.flac", "._a.wav", "cover.jpg", "notes.txt"]:
        (tmp_path / name).touch()
    (tmp_path / "folder.wav").mkdir()
    songs, left_out = find_songs([tmp_path])
    assert [song.path.name for song in songs] == ["a.WAV", "b.mp3", "ㄱ.flac"]
    assert [path.name for path in left_out] == ["cover.jpg", "notes.txt"]
    assert "cover.jpg" in left_out_note(left_out)[0] and not left_out_note([])
    assert find_songs([tmp_path / "notes.txt"])[0] == [Song(tmp_path / "notes.txt")]  # named: to be tried
    with pytest.raises(UserError, match="no audio file"):
        find_songs([tmp_path / "folder.wav"])
    with pytest.raises(UserError, match=r"no file or folder .*gone"):
        find_songs([tmp_path / "gone.wav"])


def test_sub_folders_are_walked_but_not_results_and_a_circle_once(tmp_path):
    for name in ["a.wav", "CD1/b.wav", "CD2/Bonus/c.tta", "out/a_vocals.wav", ".cache/x.wav"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "CD2" / "back").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "CD2" / "up").symlink_to(tmp_path.parent, target_is_directory=True)  # to all that lies beside
    (tmp_path.parent / "beside.wav").touch()
    (tmp_path / "loop.wav").symlink_to(tmp_path / "loop.wav")
    songs, left_out = find_songs([tmp_path], [tmp_path / "out"])
    assert [str(song.path.relative_to(tmp_path)) for song in songs] == ["a.wav", "CD1/b.wav", "CD2/Bonus/c.tta"]
    assert left_out == [tmp_path / "loop.wav"]
    targets = pair_outputs(songs, Output(tmp_path / "out"), "vocals", one=False)
    names = [str(target.relative_to(tmp_path / "out")) for target in targets]
    assert names == ["a_vocals.wav", "CD1/b_vocals.wav", "CD2/Bonus/c_vocals.wav"]


def test_where_results_go(tmp_path):
    a, b = Song(tmp_path / "a.wav"), Song(tmp_path / "b.mp3")
    out, here = Output(tmp_path / "out"), Output(tmp_path)
    assert pair_outputs([a], Output(out.path / "v.wav"), "vocals", one=True) == [out.path / "v.wav"]
    assert pair_outputs([a], here, "vocals", one=True) == [tmp_path / "a_vocals.wav"]
    assert pair_outputs([a, b], out, "vocals", one=False) == [out.path / "a_vocals.wav", out.path / "b_vocals.wav"]
    with pytest.raises(UserError, match="not a folder"):
        pair_outputs([a, b], Output(tmp_path / "v.wav"), "vocals", one=False)
    with pytest.raises(UserError, match="overwritten"):
        plan([a], Output(a.path), None, one=True)
    # What an earlier run put there is an input now.
    problem, _ = plan([a, Song(tmp_path / "a_vocals.wav")], here, None, one=False)
    assert "overwritten" in str(problem.problem)


def test_a_folder_need_not_exist(tmp_path):
    a, out = Song(tmp_path / "a.wav"), tmp_path / "out"
    for text in [str(out), f"{out}/", f"{tmp_path}/../{tmp_path.name}/out"]:
        assert [p.resolve() for p in pair_outputs([a], Output.from_text(text), "vocals", one=True)] == [
            out / "a_vocals.wav"
        ]
    dots = Output.from_text(f"{tmp_path / 'Vol. 2.wav'}/")  # a slash says that it is one, whatever its name
    assert pair_outputs([a], dots, "vocals", one=True, ending=".mp3") == [tmp_path / "Vol. 2.wav" / "a_vocals.mp3"]
    assert pair_outputs([a, Song(tmp_path / "b.wav")], dots, "vocals", one=False)[1].name == "b_vocals.wav"


def test_without_an_output_both_lie_beside_the_song(tmp_path):
    songs = [Song(tmp_path / "a.wav"), Song(tmp_path / "CD1" / "b.mp3", Path("CD1"))]
    found = [job.targets for job in plan(songs, None, None, one=False, ending=".flac", both=True)]
    assert found == [
        [tmp_path / "a_vocals.flac", tmp_path / "a_instrumental.flac"],
        [tmp_path / "CD1" / "b_vocals.flac", tmp_path / "CD1" / "b_instrumental.flac"],
    ]
    (only,) = plan(songs[:1], Output(tmp_path / "v.wav"), None, one=True, both=True)  # a file is for the vocals
    assert only.targets == [tmp_path / "v.wav"]


def test_results_beside_their_songs_are_no_songs(tmp_path):
    for name in ["a.wav", "a_vocals.wav", "a_instrumental.flac", "b.wav", "b.mp3", "b.mp3_vocals.wav", "my_vocals.wav"]:
        (tmp_path / name).touch()
    songs, left_out = find_songs([tmp_path], beside=True)
    assert [song.path.name for song in songs] == ["a.wav", "b.mp3", "b.wav", "my_vocals.wav"]
    assert [path.name for path in left_out] == ["a_instrumental.flac", "a_vocals.wav", "b.mp3_vocals.wav"]
    assert len(find_songs([tmp_path])[0]) == 7


def test_two_songs_of_one_name_get_their_full_names(tmp_path):
    names = ["a.wav", "A.flac", "b.wav", "CD1/a.wav"]
    songs = [Song(tmp_path / name, Path(name).parent) for name in names]
    targets = pair_outputs(songs, Output(tmp_path / "out"), "vocals", one=False)
    written = [str(target.relative_to(tmp_path / "out")) for target in targets]
    assert written == ["a.wav_vocals.wav", "A.flac_vocals.wav", "b_vocals.wav", "CD1/a_vocals.wav"]
    first, second = pair_outputs(
        [Song(tmp_path / "1" / "a.wav"), Song(tmp_path / "2" / "a.wav")], Output(tmp_path / "out"), "vocals", one=False
    )
    assert first == tmp_path / "out" / "a_vocals.wav" and re.search("1/a.wav' and .*2/a.wav' would both", str(second))


def test_whatever_becomes_of_one_song_the_others_are_tried_and_the_end_says_so(capsys):
    def separate(job):
        raise {"b": UserError("b is no song"), "c": RuntimeError("c\nburst"), "d": MemoryError()}.get(job.source.name)

    jobs = [Job(Path(name), Path("v.wav"), None, None) for name in "bcd"]
    jobs.append(Job(Path("e"), Path("v.wav"), None, UserError("e has no place")))
    assert (
        separate_all([*jobs, Job(Path("f"), Path("v.wav"), None, None)], lambda j: j.source.name == "f" or separate(j))
        == 4
    )
    out, err = capsys.readouterr()
    turns = [f"song {number} of 5: {name}" for number, name in enumerate("bcdef", 1)]
    *said, last = out.splitlines()
    assert said == turns and last == "1 of 5 songs separated; failed: b, c, d, e; it took 1 s"
    assert [line.startswith("error: ") for line in err.splitlines()] == [True] * 4


def test_the_time_left_is_told_from_the_bytes_that_are_left(tmp_path, capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    jobs = []
    for name, size in [("a", 1000), ("b", 3000), ("c", 6000), ("d.wav", 36_000)]:  # a WAV counts for a sixth
        (tmp_path / name).write_bytes(bytes(size))
        jobs.append(Job(tmp_path / name, Path("v.wav"), None, None))

    def separate(job):
        now[0] += job.source.stat().st_size / (60 if job.source.suffix == ".wav" else 10)  # s

    assert separate_all(jobs, separate) == 0
    lines = [line.partition(str(tmp_path))[2] for line in capsys.readouterr().out.splitlines()[:4]]
    assert lines == ["/a", "/b, about 25 min left", "/c, about 20 min left", "/d.wav, about 10 min left"]
    assert [duration(seconds) for seconds in (0.2, 42, 200, 6000)] == ["1 s", "42 s", "3 min", "1 h 40 min"]


# --- memory -------------------------------------------------------------------------------------------------------

PEAK = """
import resource, sys
from pathlib import Path
sys.path[:0] = [{root!r}, {tests!r}]
import torch
torch.set_num_threads(1)
from diffvocsep.util.memory import keep_freed_memory
keep_freed_memory()  # as the scripts do, unless the environment says otherwise
from diffvocsep.command.batch import separate_file
from diffvocsep.separator import Separator
from tiny import random_unet, tiny_config
config = tiny_config(*{settings!r})
separator = Separator(random_unet(config), config)
for source in sys.argv[1:]:
    separate_file(separator, Path(source), Path(source).with_suffix(".v.wav"), Path(source).with_suffix(".a.wav"))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def peaks_mib(sources: list[Path], *settings: str, **environment: str) -> list[float]:
    """Peak memory of a process that separates the files one after the other, after each, MiB."""
    program = PEAK.format(root=str(ROOT), tests=str(ROOT / "tests"), settings=settings)
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, sources)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | environment,
    )
    return [float(line) for line in done.stdout.split()]


def write_noise(path: Path, minutes: float, sample_rate: int, channels: int) -> Path:
    block = (0.01 * torch.randn(10 * sample_rate, channels, generator=torch.Generator().manual_seed(0))).numpy()
    with soundfile.SoundFile(path, "w", sample_rate, channels, "PCM_16") as file:
        for _ in range(round(6 * minutes)):
            file.write(block)
    return path


on_linux = pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux only")


@on_linux
@pytest.mark.slow
def test_memory_does_not_grow_with_the_song(tmp_path):
    """One process, since the peak can only rise: 40 s, then 200 s, which held would take 10 MiB more for every copy of
    their samples. The allocator is told to give back what is freed, or its fragments alone would grow by 40 MiB."""
    files = [write_noise(tmp_path / f"{s}.wav", s / 60, RATE, 2) for s in (40, 200)]
    small = ["separation.chunk_seconds=1", "model.base_channels=4"]
    short, long = peaks_mib(files, *small, MALLOC_MMAP_THRESHOLD_="65536")
    assert soundfile.info(tmp_path / "200.v.wav").frames == RATE * 200
    assert long - short < 5


@pytest.mark.slow
@on_linux
def test_an_hour_takes_as_little_memory_as_five_minutes(tmp_path):
    """With the default chunks and spectrogram; only the network is small."""
    real = ["audio.sample_rate=44100", "audio.n_fft=4096", "audio.hop_length=1024", "audio.win_length=4096"]
    real += ["audio.bandwidth=8270", "separation.chunk_seconds=12", "separation.margin_seconds=1.5"]
    short, hour = (peaks_mib([write_noise(tmp_path / f"{m}.wav", m, 44100, 2)], *real)[0] for m in (5, 60))
    info = soundfile.info(tmp_path / "60.v.wav")
    assert (info.frames, info.channels, info.samplerate) == (44100 * 3600, 2, 44100)
    print(f"{short:.0f} MiB for 5 minutes, {hour:.0f} MiB for 60")
    assert hour < 1500
    assert hour < 1.1 * short


# --- model files --------------------------------------------------------------------------------------------------


@pytest.fixture
def trained(tmp_path) -> Path:
    config = tiny_config("separation.chunk_seconds=0.5", "diffusion.ddim_steps=2")
    save_checkpoint(
        tmp_path / "best.pt", {"ema": random_unet(config).state_dict(), "config": to_dict(config), "step": 7}
    )
    return tmp_path / "best.pt"


def test_a_checkpoint_and_its_release_separate_alike(trained):
    released = trained.with_name("모델 🎤.safetensors")
    release(load_checkpoint(trained), released)
    mixture = song(0.7)
    separators = [Separator.from_checkpoint(path, "cpu") for path in (trained, released)]
    vocals = [separator.separate(mixture, RATE)[0] for separator in separators]
    assert torch.equal(*vocals)
    config = separators[0].config
    expected = Separator(random_unet(config), config).separate(mixture, RATE)[0]
    assert torch.equal(vocals[0], expected)
    assert config.separation.chunk_seconds == 0.5 and config.diffusion.ddim_steps == 2 and config.audio.n_fft == 64
    assert separators[1].config == config
    assert sorted(path.name for path in trained.parent.iterdir()) == ["best.pt", released.name]


def test_half_the_bytes_separate_alike(trained, capsys):
    files = [trained.with_name(f"{name}.safetensors") for name in ("whole", "half")]
    for file, options in zip(files, ([], ["--half"]), strict=True):
        assert checkpoint.run([*options, str(trained), str(file)]) == 0
        assert f"{file}: step 7" in capsys.readouterr().out
    header = [int.from_bytes(file.read_bytes()[:8], "little") + 8 for file in files]
    whole, half = (file.stat().st_size - size for file, size in zip(files, header, strict=True))
    assert whole == 2 * half > 0
    mixture = song(0.7)
    exact, rounded = (Separator.from_checkpoint(file, "cpu").separate(mixture, RATE)[0] for file in files)
    error = (exact - rounded).square().sum() / exact.square().sum()
    assert 0 < error < 1e-5  # 11 significant bits: -66 dB a weight


def test_a_checkpoint_is_data_and_never_code(trained):
    state = torch.load(trained, weights_only=True)
    assert state["step"] == 7
    torch.save({"format": 1, "ema": {}, "config": Path("x")}, trained)
    with pytest.raises(UserError, match="cannot be read"):
        load_model(trained)


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "text":
        path.write_text("<html>404: not found</html>", encoding="utf-8")
    else:
        path.write_bytes(b"RIFF" + Random(0).randbytes(3000))


@pytest.mark.parametrize("how", ["truncated", "empty", "text", "noise"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_damaged_model_is_named(trained, how, suffix):
    path = trained.with_suffix(suffix)
    if suffix == ".safetensors":
        release(load_checkpoint(trained), path)
    damage(path, how)
    with pytest.raises(UserError, match=path.name) as caught:
        load_model(path)
    assert "\n" not in str(caught.value)


def test_a_foreign_model_is_refused(trained):
    torch.save({"state_dict": {}}, trained)
    with pytest.raises(UserError, match="not a checkpoint"):
        load_model(trained)
    from safetensors.torch import save_file

    foreign = trained.with_suffix(".safetensors")
    ours = {"format": str(FORMAT)}
    for metadata, problem in [
        (None, "not a released model"),
        ({"format": "pt"}, "not a model of this version"),
        ({**ours, "config": "{"}, "not a released model"),
        ({**ours, "config": json.dumps({"audio": 3})}, "audio"),
    ]:
        save_file({"x": torch.zeros(1)}, foreign, metadata)
        with pytest.raises(UserError, match=problem):
            load_model(foreign)
    shutil.rmtree(trained.parent / "gone", ignore_errors=True)
    for name in ["gone.pt", "gone.safetensors"]:
        with pytest.raises(UserError, match=name):
            load_model(trained.parent / name)


@pytest.mark.parametrize(
    ("section", "key", "stayed", "gone"),
    [
        ("train", "loss", "l1_l2", "l1"),
        ("separation", "contrast", 1.0, 1.5),
        ("diffusion", "start", "noise", "mixture"),
        ("diffusion", "loss_weighting", "none", "min_snr"),
    ],
)
def test_a_setting_that_is_gone_is_forgotten_if_it_had_the_value_that_stayed(trained, section, key, stayed, gone):
    """`train.loss` could be l1, l2 or l1_l2 once, `separation.contrast` any number."""
    state = load_checkpoint(trained)
    state["config"][section][key] = stayed
    save_checkpoint(trained, state)
    _, config = load_model(trained)
    assert not hasattr(getattr(config, section), key)
    state["config"][section][key] = gone
    save_checkpoint(trained, state)
    with pytest.raises(UserError, match=f"saved with {section}.{key} = {gone}, which this version no longer has"):
        load_model(trained)


def test_settings_that_only_counted_with_one_that_is_gone_are_forgotten(trained):
    state = load_checkpoint(trained)
    state["config"]["diffusion"] |= {"loss_weighting": "none", "min_snr_gamma": 3.0, "start": "noise", "start_step": 7}
    save_checkpoint(trained, state)
    _, config = load_model(trained)
    assert not {"min_snr_gamma", "start_step"} & vars(config.diffusion).keys()


def test_weights_that_do_not_fit_their_config_are_refused(trained):
    state = load_checkpoint(trained)
    state["config"]["model"]["base_channels"] = 16
    save_checkpoint(trained, {key: state[key] for key in ("ema", "config", "step")})
    with pytest.raises(UserError, match="do not fit"):
        load_model(trained)
