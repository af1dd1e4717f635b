"""evaluate.py: scores equal to museval's own, runs that go on, ceilings, and refusals."""

from __future__ import annotations

import csv
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import matplotlib.image
import museval
import numpy as np
import psutil
import pytest
import soundfile
import torch
from printed import tables

import evaluate
from diffvocsep.checkpoint import save_checkpoint
from diffvocsep.config import load_config, to_dict
from diffvocsep.data import testsets
from diffvocsep.data.synthetic import tracks as synthetic_tracks
from diffvocsep.data.synthetic.song import make_song
from diffvocsep.evaluation import measurements, museval_scores, parallel, scores, systems
from diffvocsep.evaluation.clips import find_excerpts
from diffvocsep.evaluation.metrics import BEYOND_SDR
from diffvocsep.evaluation.parallel import progress_bar
from diffvocsep.separator import Separator
from diffvocsep.unet import UNet
from diffvocsep.util import cli
from diffvocsep.util.errors import UserError, WorkFailed

RATE = 8000
TINY = """audio.sample_rate=8000 audio.channels=1 audio.n_fft=512 audio.hop_length=128 audio.win_length=512
    audio.bandwidth=0 model.base_channels=4 train.amp=none"""
ORDER = ("SDR", "ISR", "SIR", "SAR")  # of what museval returns


def stereo(seed: int, seconds: float = 2.0) -> np.ndarray:
    """(N, 2), with values that 16 bit can hold"""
    samples = np.random.default_rng(seed).uniform(-0.3, 0.3, (round(seconds * RATE), 2))
    return (np.round(samples * 2**15) / 2**15).astype(np.float32)


def sides(i: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vocals, accompaniment and mixture of song i: in song 0 the singer rests in the second second, song 1 has a
    mixture of its own, in song 2 nobody sings."""
    vocals, rest = stereo(i) * (0 if i == 2 else 1), 2 * stereo(i + 10)
    if i == 0:
        vocals[RATE:] = 0
    return vocals, rest, vocals + rest + (0.1 * stereo(20) if i == 1 else 0)


@pytest.fixture(scope="module")
def songs(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("songs")
    for i, name in enumerate(("a", "b", "silent")):
        (root / name).mkdir()
        vocals, rest, mixture = sides(i)
        soundfile.write(root / name / "vocals.wav", vocals, RATE, "FLOAT")
        soundfile.write(root / name / "accompaniment.wav", rest, RATE, "FLOAT")
        if name == "b":
            soundfile.write(root / name / "mixture.wav", mixture, RATE, "FLOAT")
    (root / "a solo").mkdir()
    soundfile.write(root / "a solo" / "vocals.wav", stereo(30), RATE, "FLOAT")
    return root


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A checkpoint whose weights are not those of a new network."""
    config = load_config(None, TINY.split())
    torch.manual_seed(3)
    weights = {name: tensor + 0.1 * torch.randn_like(tensor) for name, tensor in UNet(config).state_dict().items()}
    path = tmp_path_factory.mktemp("model") / "best.pt"
    save_checkpoint(path, {"config": to_dict(config), "ema": weights, "step": 1})
    return path


@pytest.fixture(scope="module")
def results(songs, model, tmp_path_factory) -> tuple[Path, str]:
    """The folder that a run wrote, and what it printed."""
    folder = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        printed: list[str] = []
        patch.setattr("builtins.print", lambda *words, **_: printed.append(" ".join(map(str, words))))
        assert evaluate.run([*arguments(songs, model), "--output", str(folder)]) == 0
    return folder, "\n".join(printed)


def arguments(songs: Path, model: Path) -> list[str]:
    return ["--model_path", str(model), "--dataset", "stems", "--root", str(songs), "--device", "cpu", "--jobs", "1"]


def rows(folder: Path) -> dict[tuple[str, str, str], dict[str, str]]:
    with open(folder / "results.csv", encoding="utf-8", newline="") as file:
        return {(line["clip"], line["system"], line["target"]): line for line in csv.DictReader(file)}


def db(reference: np.ndarray, estimate: np.ndarray) -> float:
    return 10 * np.log10(np.sum(reference.astype(float) ** 2) / np.sum((reference - estimate).astype(float) ** 2))


# --- scores -------------------------------------------------------------------------------------------------------


def test_every_number_is_museval_s_own(songs, model, results):
    """museval is called here on the same files, with the estimates of the same model."""
    separator, found = Separator.from_checkpoint(model, "cpu"), rows(results[0])
    for i, name in enumerate("ab"):
        vocals, rest, mixture = sides(i)
        references = [soundfile.read(songs / name / f"{side}.wav")[0] for side in ("vocals", "accompaniment")]
        own = [x.numpy().T for x in separator.separate(torch.from_numpy(mixture.T.copy()), RATE)]
        for system, estimates in ((str(model), own), ("mixture", [mixture, mixture])):
            expected = dict(zip(ORDER, museval.evaluate(references, estimates, win=RATE, hop=RATE), strict=True))
            for t, target in enumerate(("vocals", "accompaniment")):
                line = found[name, Path(system).as_posix(), target]
                for metric in ORDER:
                    assert float(line[metric]) == pytest.approx(np.nanmedian(expected[metric][t]), abs=2e-3), metric
                assert float(line["global SDR"]) == pytest.approx(db((vocals, rest)[t], estimates[t]), abs=1e-3)
        assert np.isnan(expected["SDR"][0]).any() == (name == "a")  # the second in which nobody sings


def test_museval_reads_the_files_and_aggregates_to_the_printed_numbers(model, results):
    folder, printed = results
    for target, table in zip(("vocals", "accompaniment"), tables(printed)[:2], strict=True):
        header = next(iter(table.values()))
        for system, place in ((model.as_posix(), "model"), ("mixture", "mixture")):
            store = museval.EvalStore()
            store.add_eval_dir(folder / "museval" / place)
            expected = store.agg_frames_tracks_scores()
            for metric in ORDER:
                cell = float(table[system][header.index(metric)])
                assert cell == pytest.approx(expected[target][metric], abs=0.0051)
            of_tracks = store.agg_frames_scores()
            assert set(of_tracks.index.get_level_values("track")) == {"a", "b", "silent"}
            for name in "ab":
                value = float(rows(folder)[name, system, target]["SDR"])
                assert value == pytest.approx(of_tracks[name][target]["SDR"], abs=1e-5)


def test_the_seconds_that_museval_leaves_out_are_counted():
    vocals, rest = (torch.from_numpy(stereo(i, 4.5).T.copy()) for i in (0, 1))
    vocals[:, :RATE] = 0
    rest[:, RATE : 2 * RATE] = 1e-6  # silent in 16 bit
    estimates = {"vocals": rest + vocals, "accompaniment": rest.clone()}
    estimates["accompaniment"][1, 2 * RATE : 3 * RATE] = -rest[0, 2 * RATE : 3 * RATE]
    estimates["accompaniment"][0, 2 * RATE : 3 * RATE] = rest[0, 2 * RATE : 3 * RATE]
    references = {"vocals": vocals, "accompaniment": rest}
    found = scores.silent_seconds(references.values(), estimates.values(), RATE)
    by_frame = museval_scores.bsseval(references, estimates, RATE)["vocals"]["SDR"]
    assert found == np.isnan(by_frame).tolist() == [True, True, True, False]


def test_what_is_known_without_computing(model, results):
    folder, printed = results
    vocals, accompaniment, *beyond = tables(printed)
    systems_ = ["silence", "mixture", "untrained network", "ideal ratio mask", "true accompaniment", model.as_posix()]
    assert list(vocals)[1:] == list(accompaniment)[1:] == systems_
    assert next(iter(vocals)) == "vocals, dB, 2 clips" and next(iter(accompaniment)) == "accompaniment, dB, 3 clips"
    for table in beyond:
        assert list(table)[1:] == systems_ and next(iter(table.values())) == list(BEYOND_SDR)
    ideal, nothing = (float(beyond[0][system][0]) for system in ("ideal ratio mask", "silence"))
    assert 73 > ideal > nothing  # logWMSE
    assert vocals["silence"][0] == "0.00 (0.00 .. 0.00)" and set(vocals["silence"][1:]) == {"-"}
    assert vocals["untrained network"][0].startswith(("0.00", "-0.00"))  # it changes nothing: no vocals
    assert "1 of 3 clips have silent vocals" in printed and "museval leaves out 3 of 6 seconds" in printed
    found = rows(folder)
    assert ("a", "true accompaniment", "vocals") not in found  # exact, where the mixture is a sum
    lossy = found["b", "true accompaniment", "vocals"]
    assert float(lossy["global SDR"]) == pytest.approx(db(sides(1)[0], sides(1)[0] + 0.1 * stereo(20)), abs=1e-3)
    assert found["silent", "mixture", "vocals"]["global SDR"] == "nan"
    assert found["a", "mixture", "vocals"]["frames without a score"] == "1"
    height, width = matplotlib.image.imread(folder / "summary.png").shape[:2]
    assert width > 900 and height > 500


@pytest.mark.slow
def test_a_second_run_computes_nothing_and_a_changed_song_is_computed_again(songs, model, results, monkeypatch, capsys):
    folder, _ = results
    before = (folder / "results.csv").read_bytes()
    scored, score_clip = [], scores.score_clip

    def counted(clip, system, *rest):
        scored.append((clip.name, system))
        return score_clip(clip, system, *rest)

    monkeypatch.setattr(scores, "score_clip", counted)
    monkeypatch.setattr(measurements, "draw_summary", lambda *_: None)
    evaluate.run([*arguments(songs, model), "--output", str(folder)])
    assert scored == [] and (folder / "results.csv").read_bytes() == before
    assert "museval leaves out" in capsys.readouterr().out
    os.utime(songs / "b" / "vocals.wav", (1, 1))
    evaluate.run([*arguments(songs, model), "--output", str(folder), "--no-museval"])
    assert "museval" not in capsys.readouterr().out
    changed = {pair for pair in scored if pair[0] == "b"}
    assert len(changed) == 6
    scored.clear()
    evaluate.run([*arguments(songs, model), "--output", str(folder), "--no-museval", "diffusion.ddim_steps=2"])
    assert {system for _, system in scored} == {"untrained network", model.as_posix()}
    (folder / "scores" / "mixture" / "a.json").write_text("{", encoding="utf-8")  # damaged
    scored.clear()
    evaluate.run([*arguments(songs, model), "--output", str(folder), "--no-museval", "diffusion.ddim_steps=2"])
    assert scored == [("a", "mixture")]
    monkeypatch.setattr(scores, "COLUMNS", (*scores.COLUMNS, "a new metric"))
    scored.clear()
    evaluate.run([*arguments(songs, model), "--output", str(folder), "--no-museval", "diffusion.ddim_steps=2"])
    assert {("a", "mixture"), ("b", model.as_posix())} <= set(scored)


def test_two_evaluations_are_compared_clip_by_clip(songs, model, results, tmp_path, capsys):
    earlier, command = results[0], [*arguments(songs, model), "--no-museval"]
    before = {clip: float(rows(earlier)[clip, model.as_posix(), "vocals"]["global SDR"]) for clip in "ab"}
    command += ["--compare", str(earlier)]
    evaluate.run(command)
    same = tables(capsys.readouterr().out)[-1]
    assert same[f"vocals against {earlier.as_posix()}, 2 clips"] == ["mean difference (95 %)", "higher on"]
    assert same["global SDR"] == ["+0.00 (+0.00 .. +0.00)", "0 of 2"] and "SAR" not in same  # without museval
    evaluate.run([*command, "diffusion.ddim_steps=4", "--output", str(tmp_path)])
    now = {clip: float(rows(tmp_path)[clip, model.as_posix(), "vocals"]["global SDR"]) for clip in "ab"}
    differences = [now[clip] - before[clip] for clip in "ab"]
    printed, higher = tables(capsys.readouterr().out)[-1]["global SDR"]
    mean, low, high = map(float, re.findall(r"[-+][0-9.]+", printed))
    assert mean == pytest.approx(np.mean(differences), abs=0.006) and mean != 0
    assert (low, high) == pytest.approx((min(differences), max(differences)), abs=0.006)  # of two clips
    assert higher == f"{sum(d > 0 for d in differences)} of 2"


def test_other_clips_are_not_compared(songs, model, results, tmp_path):
    command = [*arguments(songs, model), "--no-museval"]
    with pytest.raises(UserError, match="has scores of other clips"):
        evaluate.run([*command, "--seconds", "1", "--compare", str(results[0])])
    with pytest.raises(UserError, match=r"no results\.csv that can be read"):
        evaluate.run([*command, "--compare", str(tmp_path)])
    text = (results[0] / "results.csv").read_text(encoding="utf-8")
    lines = [line.replace(",-", ",-1") if line.startswith("a,mixture,vocals") else line for line in text.splitlines()]
    (tmp_path / "results.csv").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(UserError, match="'a' was another recording"):
        evaluate.run([*command, "--compare", str(tmp_path)])


def test_museval_finds_no_clips_of_an_earlier_run(songs, model, tmp_path, monkeypatch):
    def bsseval(references: dict, estimates: dict, rate: int) -> dict:  # it is the files that are looked at
        frames = references["vocals"].shape[-1] // rate
        return {target: dict.fromkeys(museval_scores.NAMES, np.zeros(frames)) for target in references}

    monkeypatch.setattr(museval_scores, "bsseval", bsseval)

    def found(seconds: float) -> set[str]:
        excerpts = find_excerpts("stems", songs, seconds)[: 2 if seconds else 1]
        scores.score(excerpts, systems.Model(model, "cpu"), tmp_path, 1, frames=True)
        (tmp_path / "museval" / "mine.json").touch()
        folders = [tmp_path / "museval" / name / "test" for name in ("mixture", "ideal ratio mask", "model")]
        first, *others = [{path.stem for path in folder.glob("*.json")} for folder in folders]
        assert all(other == first for other in others)
        return first

    assert found(0) == {"a"}
    assert found(1) == {"a at 0 s", "a at 1 s"}
    assert found(0) == {"a"}  # its records were still there, its museval files were not
    assert (tmp_path / "museval" / "mine.json").exists()


def test_different_songs_have_different_files_with_names_that_every_system_takes():
    names = ["A - B", "A/B", "A?B", "A*B", "A_B", "A_B.", "A_B ", "곡" * 60, "곡" * 61, "곡" * 62, "..", "???", "/"]
    files = [scores.file_name(name) for name in names]
    assert len(set(files)) == len(names)
    assert files[0] == names[0] and files[7] == names[7]  # what needs no change keeps its name
    for file in files:
        assert 0 < len(file.encode()) < 200 and not file.endswith((" ", ".")) and not set(file) & set('<>:"/\\|?*')


def named_songs(root: Path, songs: Path) -> Path:
    """A song with a Korean name, and one whose name is no text in UTF-8."""
    for name in ("노래", os.fsdecode(b"song \xff")):
        try:
            shutil.copytree(songs / "b", root / name)
        except OSError:
            pytest.skip("a file system that takes UTF-8 only")
    return root


NAMED = {"노래", r"song \xff"}


def test_songs_whose_names_are_no_text_are_scored(songs, model, tmp_path, monkeypatch):
    command = [*arguments(named_songs(tmp_path / "songs", songs), model), "--no-museval", "--output", str(tmp_path)]
    assert evaluate.run(command) == 0
    assert {clip for clip, _, _ in rows(tmp_path)} == NAMED
    monkeypatch.setattr(scores, "score_clip", lambda *_: pytest.fail("these scores are there"))
    assert evaluate.run([*command, "--compare", str(tmp_path)]) == 0


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no such encoding")
def test_where_only_ascii_is_known_the_same_songs_are_scored(songs, model, tmp_path):
    command = [*arguments(named_songs(tmp_path / "songs", songs), model), "--no-museval", "--output", str(tmp_path)]
    ascii_only = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, evaluate.__file__, *command], capture_output=True, env=os.environ | ascii_only
    )
    assert done.returncode == 0, done.stderr
    assert {clip for clip, _, _ in rows(tmp_path)} == NAMED


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL on Windows")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_is_ended_goes_on_where_it_stopped(how, songs, model, tmp_path):
    """Real processes: the first run is ended once a song is done, the second keeps that song and finishes."""
    command = [sys.executable, evaluate.__file__, *arguments(songs, model)[:-2], "--jobs", "2"]
    command += ["--output", str(tmp_path), "--seconds", "1", "--no-museval"]  # six clips
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               start_new_session=True)  # fmt: skip
    try:
        deadline = time.monotonic() + 300
        while not (done := list(tmp_path.glob("scores/mixture/*.json"))) and time.monotonic() < deadline:
            time.sleep(0.02)
        if how == signal.SIGKILL:
            process.kill()
        else:
            os.killpg(process.pid, how)  # as a terminal does
        process.communicate(timeout=300)  # returns when its children have ended too: they hold the pipes
    finally:
        process.kill()
    assert process.returncode == (-9 if how == signal.SIGKILL else 130)
    assert done and len(list(tmp_path.glob("scores/model/*.json"))) < 6
    kept = {path: path.stat().st_mtime_ns for path in done}
    for path in tmp_path.glob("scores/*/*.json"):
        json.loads(path.read_text(encoding="utf-8"))  # never half a file
    assert subprocess.run(command, env=environment, capture_output=True, timeout=600).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in done} == kept
    assert len({line["clip"] for line in rows(tmp_path).values()}) == 6


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C of a terminal")
@pytest.mark.parametrize("chunks", [False, True], ids=["while they import", "while they separate"])
def test_ctrl_c_with_several_processes_is_one_word(songs, model, tmp_path, chunks):
    """Its children begin with seconds of imports, and their bars must leave nothing to clean up."""
    command = [sys.executable, evaluate.__file__, *arguments(songs, model)[:-2], "--jobs", "2", "--no-museval"]
    process = subprocess.Popen([*command, "--output", str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True, start_new_session=True)  # fmt: skip
    while len(psutil.Process(process.pid).children()) < 3:  # the tracker of resources is one
        time.sleep(0.01)
    if chunks:
        while not list(tmp_path.glob("scores/untrained network/*.json")):
            time.sleep(0.01)
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode in (0, 130)  # three songs may have been scored meanwhile
    assert error in ("Scoring: 3 songs\n", "Scoring: 3 songs\ninterrupted\n")


@pytest.mark.slow
def test_a_process_that_the_system_ends_is_work_that_failed():
    with pytest.raises(WorkFailed, match="ended by the system.*smaller --jobs"):
        parallel.parallel_map(os._exit, [9, 9], 2, "Scoring")


def test_where_no_bar_can_be_watched_a_line_says_what_has_begun(capsys):
    assert list(progress_bar(iter("ab"), "Scoring", 2)) == ["a", "b"]
    assert capsys.readouterr().err == "Scoring: 2 songs\n"


def test_processes_share_any_kind_of_gpu(monkeypatch):
    monkeypatch.setattr(parallel.os, "cpu_count", lambda: 12)
    assert parallel.processes(0, 100, "cpu") == 12
    assert parallel.processes(7, 100, "cpu") == 7 and parallel.processes(0, 5, "cpu") == 5
    for kind in ("cuda", "mps"):
        monkeypatch.setattr(parallel, "resolve_device", lambda name, kind=kind: torch.device(kind))
        assert parallel.processes(0, 100, "auto") == parallel.PROCESSES_PER_GPU


def test_without_museval_the_other_scores_remain(songs, model, monkeypatch, capsys):
    monkeypatch.setattr(museval_scores, "find_spec", lambda name: None)
    assert evaluate.run(arguments(songs, model)) == 0
    out, err = capsys.readouterr()
    assert out.startswith("device: cpu, as asked for\n")
    assert err.splitlines()[0] == f"note: {museval_scores.MISSING}" and "pip install museval" in err
    assert next(iter(tables(out)[0].values())) == ["global SDR", "SI-SDR"]


def test_settings_can_be_changed_but_not_the_network(songs, model):
    clip = find_excerpts("stems", songs)[0].read()

    def vocals(*overrides: str) -> torch.Tensor:
        return systems.estimate("the model", clip, systems.Model(model, "cpu", overrides))[0]

    assert torch.equal(vocals(), vocals("diffusion.ddim_steps=1"))
    assert not torch.equal(vocals(), vocals("diffusion.ddim_steps=4"))
    with pytest.raises(UserError, match=r"audio\.n_fft"):
        vocals("audio.n_fft=1024")


# --- songs --------------------------------------------------------------------------------------------------------


def test_tracks_are_cut_into_clips(songs):
    excerpts = find_excerpts("stems", songs, 0.75)
    assert [e.name for e in excerpts[:4]] == ["a at 0 s", "a at 0.75 s", "b at 0 s", "b at 0.75 s"]
    clip = excerpts[1].read()
    assert clip.vocals.shape == clip.mixture.shape == clip.accompaniment.shape == (2, 6000)
    assert np.array_equal(clip.vocals.numpy(), sides(0)[0][6000:12000].T)
    whole = find_excerpts("stems", songs, 60.0)
    assert [e.name for e in whole] == ["a", "b", "silent"] and whole[0].read().vocals.shape == (2, 16000)
    assert [e.read().own_mixture for e in whole] == [False, True, False]


def test_the_synthetic_songs_are_those_of_the_test_split(monkeypatch):
    monkeypatch.setattr(synthetic_tracks, "DEV_AND_TEST_SONGS", 1)
    made = []
    monkeypatch.setattr(
        synthetic_tracks, "make_song", lambda *args: made.append(args) or make_song(*args[:2], 1, 44100)
    )
    clip = find_excerpts("synthetic", None, 0.5)[0].read()
    assert made[0][0] == synthetic_tracks.SPLITS["test"] and len(set(synthetic_tracks.SPLITS.values())) == 3
    assert clip.sample_rate == 44100 and torch.equal(clip.mixture, clip.vocals + clip.accompaniment)
    find_excerpts("synthetic", None, 0.5, "valid")[0].read()
    assert made[-1][0] == synthetic_tracks.SPLITS["dev"]


def test_musdbhq_takes_the_half_that_was_asked_for(tmp_path):
    for half, name in (("test", "A - B"), ("train", "Leaf - Summerghost"), ("train", "C - D")):
        folder = tmp_path / half / name
        folder.mkdir(parents=True)
        for i, side in enumerate(("vocals", "drums", "bass", "other", "mixture")):
            soundfile.write(folder / f"{side}.wav", stereo(i, 0.5), RATE, "FLOAT")
    soundfile.write(tmp_path / "test" / "A - B" / "linear_mixture.wav", stereo(9, 0.5), RATE, "FLOAT")  # no stem
    (test,) = find_excerpts("musdbhq", tmp_path)
    (valid,) = find_excerpts("musdbhq", tmp_path, split="valid")
    assert (test.name, valid.name) == ("A - B", "Leaf - Summerghost")
    clip = test.read()
    assert clip.own_mixture and np.array_equal(clip.mixture.numpy(), stereo(4, 0.5).T)
    assert np.allclose(clip.accompaniment.numpy(), sum(stereo(i, 0.5) for i in (1, 2, 3)).T, atol=1e-6)


@pytest.mark.slow
def test_musdb_gives_what_the_package_gives(tmp_path):
    """The real stem file that `stempeg` ships, as the only song of the test half."""
    import musdb
    import stempeg

    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "A - B.stem.mp4").symlink_to(stempeg.example_stem_path())
    (excerpt,) = find_excerpts("musdb", tmp_path)
    clip, track = excerpt.read(), musdb.DB(root=str(tmp_path), subsets="test").tracks[0]
    for side, waveform in (("vocals", clip.vocals), ("accompaniment", clip.accompaniment)):
        assert np.array_equal(waveform.numpy(), track.targets[side].audio.T.astype(np.float32))
    assert np.array_equal(clip.mixture.numpy(), track.audio.T.astype(np.float32)) and clip.own_mixture


def test_a_damaged_stem_file_is_one_sentence_and_each_process_looks_once(tmp_path, monkeypatch):
    import musdb
    import stempeg

    opened, database = [], musdb.DB
    monkeypatch.setattr(musdb, "DB", lambda **where: opened.append(where) or database(**where))
    (tmp_path / "test").mkdir()
    whole, damaged = (tmp_path / "test" / f"{name}.stem.mp4" for name in ("A - B", "C - D"))
    shutil.copyfile(stempeg.example_stem_path(), whole)
    excerpts = pickle.loads(pickle.dumps(find_excerpts("musdb", tmp_path, 1.0)[:2]))  # as another process gets them
    assert [excerpt.read().vocals.shape for excerpt in excerpts] == [(2, 44100)] * 2 and len(opened) == 1
    whole.write_bytes(b"no music")
    with pytest.raises(UserError, match=r"A - B, cannot be decoded \(.*replace it"):
        excerpts[0].read()
    damaged.write_bytes(b"no music")
    testsets._musdb.cache_clear()
    with pytest.raises(UserError, match=r"cannot be decoded \(.*replace it"):
        find_excerpts("musdb", tmp_path)


# --- ceilings -----------------------------------------------------------------------------------------------------


def test_a_perfect_generator_is_limited_by_the_representation_only(tmp_path, capsys):
    for i in range(2):
        song = make_song(9, i, 1.0, 44100)
        (tmp_path / str(i)).mkdir()
        for side in ("vocals", "accompaniment"):
            soundfile.write(tmp_path / str(i) / f"{side}.wav", getattr(song, side).T, 44100, "FLOAT")
    noise = 0.01 * stereo(0, 1.0).repeat(6, axis=0)[:44100]
    soundfile.write(tmp_path / "1" / "mixture.wav", (song.vocals + song.accompaniment).T + noise, 44100, "FLOAT")
    run = ["--oracle", "--dataset", "stems", "--root", str(tmp_path), "--jobs", "1", "--output", str(tmp_path / "out")]
    assert evaluate.run(run) == 0
    (table,) = tables(capsys.readouterr().out)
    medians = {name: float(cells[0].split()[0]) for name, cells in list(table.items())[1:]}
    assert medians["silence"] == 0
    assert medians["complex abs(X)^0.5, subtract complex"] > 40
    pattern = re.compile(r"log1p\(([\d.]+) abs\(X\)\), subtract normalized")
    scales = {float(match[1]): medians[match[0]] for match in map(pattern.fullmatch, medians) if match}
    normalized = [scales[scale] for scale in sorted(scales, reverse=True)]
    assert len(scales) >= 3 and normalized == sorted(normalized)  # the smaller the scale, the more linear, the better
    assert normalized[0] < normalized[-1] - 3
    names = "complex abs(X)^0.5, subtract mask", "ideal ratio mask", "truncated phase-sensitive mask"
    masks = [medians[name] for name in names]
    assert medians["mixture"] < masks[0] < masks[2] < 30 and masks[1] < masks[2]
    carried, cut = (
        medians[f"complex, bandwidth 8270 Hz ({how})"] for how in ("gain carried upward", "no vocals above")
    )
    assert masks[2] < carried < medians["complex abs(X)^0.5, subtract complex"] and masks[2] < cut
    (lossy,) = (value for name, value in medians.items() if "lossy" in name)  # of the one song that has a mixture
    assert lossy == pytest.approx(db(song.vocals.T, song.vocals.T + noise), abs=0.01)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"oracle.csv", "oracle.png"}


# --- refusals -----------------------------------------------------------------------------------------------------


def test_nobody_sings(tmp_path, model):
    (tmp_path / "song").mkdir()
    soundfile.write(tmp_path / "song" / "accompaniment.wav", stereo(0), RATE)
    with pytest.raises(UserError, match="no track in .* has both"):
        find_excerpts("stems", tmp_path)
    soundfile.write(tmp_path / "song" / "vocals.wav", 0 * stereo(0), RATE)
    of_model = ["--model_path", str(model), "--device", "cpu"]
    for mode in (["--no-museval", *of_model], ["--oracle"], ["--sweep", *of_model], ["--counterfactual", *of_model]):
        with pytest.raises(UserError, match="sings"):
            evaluate.run(["--dataset", "stems", "--root", str(tmp_path), *mode])


@pytest.mark.parametrize("dataset", ["stems", "musdb", "musdbhq"])
def test_a_missing_root_is_refused_at_once(tmp_path, dataset, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(lambda: evaluate.run(["--dataset", dataset]))
    out, err = capsys.readouterr()
    assert exit_.value.code == 2 and not out
    assert err.splitlines() == [f"error: --dataset {dataset} needs --root DIR, a folder of tracks"]
    with pytest.raises(UserError, match=re.escape(str(tmp_path))):
        find_excerpts(dataset, tmp_path)


def test_clips_too_short_to_be_counted_are_refused_at_once():
    with pytest.raises(UserError, match=r"--seconds is at least 0\.1, or 0"):
        evaluate.run(["--oracle", "--seconds", "1e-9"])


@pytest.mark.parametrize(("arguments", "ignored"), [
    ("--grid steps=1,2 --songs 3", "--grid, --songs"),
    ("--oracle --model_path x.pt --jobs 2", "--model_path"),
    ("--oracle --dataset synthetic diffusion.eta=1", "diffusion.eta=1"),
    ("--sweep --no-museval", "--no-museval"),
    ("--uncertainty --samples 8 --held_out bass", "--held_out"),
    ("--counterfactual --samples 8", "--samples"),
    ("--instruments --seconds 3 --split valid", "--split, --seconds"),
    ("--root somewhere", "--root"),
    ("--instruments --vocals somewhere", "--vocals"),
])  # fmt: skip
def test_options_that_would_have_no_effect_are_refused(arguments, ignored, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(lambda: evaluate.run(arguments.split()))
    (error,) = capsys.readouterr().err.strip().splitlines()
    assert exit_.value.code == 2 and ignored in error
    assert "--jobs" not in error, "it has an effect"


@pytest.mark.parametrize(("overrides", "words"), [
    ("train.lr=1", "train.lr has no effect"),
    ("diffusion.eta=0.5 data.root=x", "data.root has no effect"),
    ("diffusion.terminal_share=1", "diffusion.terminal_share has no effect"),
    ("--sweep diffusion.ddim_steps=2", "diffusion.ddim_steps has no effect here, --grid"),
])  # fmt: skip
def test_overrides_that_would_have_no_effect_are_refused(overrides, words, songs, model):
    with pytest.raises(UserError, match=words):
        evaluate.run([*arguments(songs, model)[:-2], *overrides.split()])


def test_overrides_that_others_make_useless_are_named(model, capsys):
    overrides = ["diffusion.sampler=ddpm", "diffusion.ddim_steps=2", "diffusion.eta=0.5"]
    measurements._model(Namespace(model_path=model, device="cpu", overrides=overrides, sweep=False))
    assert capsys.readouterr().err == "note: diffusion.eta = 0.5 is ignored: diffusion.sampler is ddpm\n"


@pytest.mark.parametrize("arguments", [["--root", "nowhere"], ["--root", ".", "--model_path", "none.pt"]])
def test_what_is_missing_is_named(arguments, songs, monkeypatch, capsys):
    monkeypatch.chdir(songs)
    with pytest.raises(SystemExit) as exit_:
        cli.main(lambda: evaluate.run(["--dataset", "stems", *arguments]))
    error = capsys.readouterr().err.strip().splitlines()
    assert exit_.value.code == 2 and len(error) == 1 and arguments[-1] in error[0]


def test_an_output_that_cannot_be_is_said_before_any_work(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(measurements, "oracle", lambda args: pytest.fail("it has begun"))
    with pytest.raises(UserError, match="nothing can be written into the folder"):
        evaluate.run(["--oracle", "--output", str(tmp_path / "file" / "x")])
