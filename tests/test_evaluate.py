"""evaluate.py: what stands beside the model's score, what any model could reach, and refusals."""

from __future__ import annotations

import csv
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import evaluate
from diffvocsep import cli, evaluation
from diffvocsep.checkpoint import save_checkpoint
from diffvocsep.config import load_config, to_dict
from diffvocsep.data import synthetic_tracks
from diffvocsep.data.synthetic import make_song
from diffvocsep.errors import UserError
from diffvocsep.separator import Separator
from diffvocsep.unet import UNet

RATE = 8000
TINY = """audio.sample_rate=8000 audio.channels=1 audio.n_fft=512 audio.hop_length=128 audio.win_length=512
    audio.bandwidth=0 model.base_channels=4 train.amp=none"""


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def stereo(seed: int, seconds: float = 2.0) -> np.ndarray:
    """(N, 2)"""
    return np.random.default_rng(seed).uniform(-0.3, 0.3, (round(seconds * RATE), 2)).astype(np.float32)


@pytest.fixture(scope="module")
def songs(tmp_path_factory) -> Path:
    """Three songs of noise: one as stems, one with a mixture of its own, one without singing."""
    root = tmp_path_factory.mktemp("songs")
    for i, name in enumerate(("a", "b", "silent")):
        (root / name).mkdir()
        vocals, rest = stereo(i) * (0 if name == "silent" else 1), 2 * stereo(i + 10)
        soundfile.write(root / name / "vocals.wav", vocals, RATE, "FLOAT")
        soundfile.write(root / name / "accompaniment.wav", rest, RATE, "FLOAT")
        if name == "b":
            soundfile.write(root / name / "mixture.wav", vocals + rest + 0.1 * stereo(20), RATE, "FLOAT")
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


def db(reference: np.ndarray, estimate: np.ndarray) -> float:
    return 10 * np.log10(np.sum(reference.astype(float) ** 2) / np.sum((reference - estimate).astype(float) ** 2))


def table(output: str) -> dict[str, list[float]]:
    """Rows of the printed table: median and quartiles."""
    rows = {}
    for line in output.strip().splitlines()[1:]:
        name, values = line.split("  ", 1)
        rows[name] = [float(v) for v in re.findall(r"-?\d+\.\d+", values)]
    return rows


def test_the_model_stands_beside_silence_the_mixture_and_the_untrained_network(songs, model, tmp_path, capsys):
    arguments = ["--model_path", str(model), "--dataset", "stems", "--root", str(songs), "--device", "cpu"]
    assert evaluate.run([*arguments, "--output", str(tmp_path / "new")]) == 0
    out = capsys.readouterr().out
    assert "over 2 clips" in out  # neither the solo nor the song without singing
    rows = table(out)
    assert list(rows) == ["silence", "mixture", "untrained network", str(model)]
    assert rows["silence"] == [0.0] * 3

    with open(tmp_path / "new" / "results.csv", encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["clip"] for line in lines] == ["a", "b"] and list(lines[0]) == ["clip", *rows]
    separator = Separator.from_checkpoint(model, "cpu")
    for i, line in enumerate(lines):
        vocals, rest = stereo(i), 2 * stereo(i + 10)
        mixture = vocals + rest + (0.1 * stereo(20) if i == 1 else 0)  # of b, the mixture is a file
        estimate = separator.separate(torch.from_numpy(mixture.T.copy()), RATE)[0].numpy().T
        assert float(line["silence"]) == 0
        assert float(line["mixture"]) == pytest.approx(db(vocals, mixture), abs=1e-3)
        assert abs(float(line["untrained network"])) < 1e-3  # a new network changes nothing: no vocals
        assert float(line[str(model)]) == pytest.approx(db(vocals, estimate), abs=1e-2)
        assert abs(db(vocals, estimate)) > 0.05
    for name, (median, low, high) in rows.items():
        scores = [float(line[name]) for line in lines]
        assert median == pytest.approx(np.mean(scores), abs=0.006)
        assert [low, high] == pytest.approx([min(scores), max(scores)], abs=0.006)


def test_settings_can_be_changed_but_not_the_network(songs, model):
    clips = evaluation.test_clips("stems", songs, 0)[:1]

    def score(*overrides: str) -> float:
        return evaluation.score_table(model, clips, "cpu", overrides)[str(model)][0]

    assert score("diffusion.ddim_steps=4") != score() == score("diffusion.ddim_steps=1")
    with pytest.raises(UserError, match=r"audio\.n_fft"):
        score("audio.n_fft=1024")


def test_tracks_are_cut_into_clips(songs):
    clips = evaluation.test_clips("stems", songs, 0.75)
    assert [clip.name for clip in clips] == ["a at 0 s", "a at 0.75 s", "b at 0 s", "b at 0.75 s"]
    assert all(clip.vocals.shape == clip.mixture.shape == clip.accompaniment.shape == (2, 6000) for clip in clips)
    assert np.array_equal(clips[1].vocals.numpy(), stereo(0)[6000:12000].T)
    whole = evaluation.test_clips("stems", songs, 60.0)
    assert [clip.name for clip in whole] == ["a", "b"] and whole[0].vocals.shape == (2, 16000)


def test_the_synthetic_songs_are_those_of_the_test_split(monkeypatch):
    monkeypatch.setattr(synthetic_tracks, "DECIDING_SONGS", 1)
    made = []
    monkeypatch.setattr(
        synthetic_tracks, "make_song", lambda *args: made.append(args) or make_song(*args[:2], 1, 44100)
    )
    (clip, *_) = evaluation.test_clips("synthetic", None, 0.5)
    assert made[0][0] == synthetic_tracks.SPLITS["test"] and len(set(synthetic_tracks.SPLITS.values())) == 3
    assert clip.sample_rate == 44100 and torch.equal(clip.mixture, clip.vocals + clip.accompaniment)


def test_a_perfect_generator_is_limited_by_the_representation_only(tmp_path, capsys):
    for i in range(2):
        song = make_song(9, i, 1.0, 44100)
        (tmp_path / str(i)).mkdir()
        for side in ("vocals", "accompaniment"):
            soundfile.write(tmp_path / str(i) / f"{side}.wav", getattr(song, side).T, 44100, "FLOAT")
    assert evaluate.run(["--oracle", "--dataset", "stems", "--root", str(tmp_path)]) == 0
    rows = {name: median for name, (median, *_) in table(capsys.readouterr().out).items()}
    assert all(math.isfinite(score) for score in rows.values())
    assert rows["silence"] == 0
    assert rows["complex, |X|^0.5, subtract complex"] > 60
    pattern = re.compile(r"log1p\(\|X\| \* ([\d.]+)\), subtract normalized")
    scales = {float(match[1]): rows[match[0]] for match in map(pattern.fullmatch, rows) if match}
    normalized = [scales[scale] for scale in sorted(scales, reverse=True)]
    assert len(scales) >= 3 and normalized == sorted(normalized)  # the smaller the scale, the more linear, the better
    assert normalized[0] < normalized[-1] - 3
    masks = rows["complex, |X|^0.5, subtract mask"], rows["ideal ratio mask"], rows["truncated phase-sensitive mask"]
    assert rows["mixture"] < masks[0] < masks[2] < 30 and masks[1] < masks[2]
    assert masks[2] < rows["complex, only 8270 Hz modelled"] < rows["complex, |X|^0.5, subtract complex"]


def test_nobody_sings(tmp_path):
    (tmp_path / "song").mkdir()
    soundfile.write(tmp_path / "song" / "accompaniment.wav", stereo(0), RATE)
    with pytest.raises(UserError, match="no track in .* has both"):
        evaluation.test_clips("stems", tmp_path, 0)
    soundfile.write(tmp_path / "song" / "vocals.wav", 0 * stereo(0), RATE)
    with pytest.raises(UserError, match="nobody sings"):
        evaluation.test_clips("stems", tmp_path, 0)


def test_a_missing_root_is_refused_at_once(tmp_path):
    script = Path(evaluate.__file__)
    process = subprocess.run([sys.executable, str(script), "--dataset", "stems"], cwd=tmp_path, capture_output=True,
                             text=True, encoding="utf-8", timeout=300)  # fmt: skip
    assert process.returncode == 2 and not process.stdout
    assert process.stderr.splitlines() == ["error: --dataset stems needs --root DIR, a folder of tracks"]


@pytest.mark.parametrize("arguments", [["--root", "nowhere"], ["--root", ".", "--model_path", "none.pt"]])
def test_what_is_missing_is_named(arguments, songs, monkeypatch, capsys):
    monkeypatch.chdir(songs)
    with pytest.raises(SystemExit) as exit_:
        cli.main(lambda: evaluate.run(["--dataset", "stems", *arguments]))
    error = capsys.readouterr().err.strip().splitlines()
    assert exit_.value.code == 2 and len(error) == 1 and arguments[-1] in error[0]
