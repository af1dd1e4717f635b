"""Ten minutes on a rented GPU, rehearsed on the CPU with a tiny network: the commands of docs/training.md, in order."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from trainers import ROOT, TINY

import inference
import train
from benchmarks import gpu
from diffvocsep.checkpoint import load_weights
from diffvocsep.config import load_config
from diffvocsep.data import pack

RATE = 8000
SHRUNK = [setting for setting in TINY.split() if not setting.startswith(("train.max", "train.val_every"))] + [
    "data.segment_seconds=0.3", "train.compile=false", "train.steps_per_epoch=1000", "train.max_minutes=1.1",
    "train.val_minutes=0.5", "log.release_minutes=0.0001",
]  # fmt: skip


@pytest.fixture
def songs(tmp_path: Path) -> Path:
    """Two songs to train on, and one that decides, of tones in noise."""
    rng = np.random.default_rng(0)
    for song in ("train/one", "train/two", "dev/three"):
        (tmp_path / "songs" / song).mkdir(parents=True)
        for i, side in enumerate(("vocals", "accompaniment")):
            wave = 0.2 * np.sin(600 * (i + 1) * np.arange(2 * RATE) / RATE) + rng.normal(0, 0.02, 2 * RATE)
            soundfile.write(tmp_path / "songs" / song / f"{side}.wav", wave, RATE)
    return tmp_path / "songs"


@pytest.fixture
def released(tmp_path: Path) -> Path:
    """Tiny released weights."""
    from diffvocsep.checkpoint import release
    from diffvocsep.config import to_dict
    from diffvocsep.unet import make_network

    torch.manual_seed(0)
    config = load_config(ROOT / "configs" / "gpu.yaml", SHRUNK)
    model = make_network(config)
    release({"ema": model.state_dict(), "config": to_dict(config), "step": 0}, tmp_path / "released.safetensors")
    return tmp_path / "released.safetensors"


@pytest.mark.slow
def test_from_songs_and_released_weights_to_weights_that_separate(songs, released, tmp_path, monkeypatch, clock):
    monkeypatch.chdir(tmp_path)
    config, packed = str(ROOT / "configs" / "gpu.yaml"), tmp_path / "packed"
    assert pack.run([str(songs), str(packed), "--rate", str(RATE)]) == 0
    roots = [f"data.{key}='{(packed / part).as_posix()}'" for key, part in (("root", "train"), ("dev_root", "dev"))]
    arguments = ["--config", config, "--device", "cpu", "--resume", str(released), *roots, *SHRUNK]
    assert train.run(arguments) == 0
    folder = tmp_path / "checkpoints" / "gpu"
    assert {"best.pt", "last.pt", "best.safetensors", "last.safetensors"} <= {path.name for path in folder.iterdir()}
    for name in ("best", "last"):
        assert (folder / f"{name}.safetensors").stat().st_size < 0.2 * (folder / f"{name}.pt").stat().st_size
    weights, settings = load_weights(folder / "last.safetensors")
    before, _ = load_weights(released)
    assert settings.model.blocks == 2 and any(not torch.equal(weights[name], before[name]) for name in weights)
    assert settings.data.root == load_config().data.root, "where songs lie here is nobody else's business"
    history = next((tmp_path / "logs").rglob("history.csv")).read_text(encoding="utf-8").splitlines()
    scored = [line for line in history[1:] if line.split(",")[history[0].split(",").index("sdr_median")]]
    assert [line.split(",")[0] for line in scored] == ["3", "6", "7"], "each half minute, and at the end"
    song = str(packed / "dev" / "three" / "vocals.ogg")
    assert inference.run(["--input", song, "--output", "v.wav", "--model_path", str(folder / "last.safetensors"),
                          "--device", "cpu"]) == 0  # fmt: skip
    assert soundfile.info("v.wav").frames == 2 * RATE


@pytest.mark.slow
def test_what_is_measured_before_is_printed_and_kept(released, tmp_path, monkeypatch, capsys):
    compiled = []
    monkeypatch.setattr(gpu, "WARM_UP", 1)
    monkeypatch.setattr(torch, "compile", lambda network: compiled.append(1) or network)
    monkeypatch.setattr("benchmarks.train_step.SIZES", (16,))
    output = tmp_path / "gpu.json"
    config, small = str(ROOT / "configs" / "gpu.yaml"), [*TINY.split(), "data.segment_seconds=0.3"]
    options = ["--rounds", "1", "--seconds", "1", "--model_path", str(released), "--output", str(output)]
    assert gpu.run(["--config", config, "--device", "cpu", *options, *small]) == 0
    numbers, printed = json.loads(output.read_text(encoding="utf-8")), capsys.readouterr().out
    assert numbers["parity"] == {"largest difference": 0.0, "dB": pytest.approx(-400, abs=100)}
    assert "cores" in numbers["machine"] and numbers["machine"] in printed
    assert list(numbers["training"]) == list(gpu.WAYS) and len(compiled) == 1
    for row in numbers["training"].values():
        assert list(row) == list(gpu.COLUMNS) and row["s of audio / s"] > 0 and row["TFLOP/s"] > 0
        assert row["of a matrix product"] == pytest.approx(row["TFLOP/s"] * 1e12 / numbers["matrix_product"])
    assert set(numbers["separation"]) == {"float32", "bf16"} and "batch of 2 x 0.3 s" in printed


def test_what_does_not_fit_is_said_and_the_rest_is_measured(tmp_path, monkeypatch):
    def training(config, *_):
        if config.train.amp == "none":
            raise torch.OutOfMemoryError("CUDA out of memory")
        if config.train.compile:
            raise RuntimeError("no C compiler\nwas found")
        return dict.fromkeys(gpu.COLUMNS, 1.0)

    monkeypatch.setattr(gpu, "training", training)
    found = dict(gpu.rows(load_config(), gpu.Backend(torch.device("cpu")), 1, 1.0))
    assert found == {"float32": "does not fit into memory", "bf16": dict.fromkeys(gpu.COLUMNS, 1.0),
                     "bf16, compile": "RuntimeError: no C compiler was found"}  # fmt: skip
    same = {"dB": -100.0, "largest difference": 1e-6}
    numbers = {"machine": "m", "parity": same, "song_seconds": 60, "separation": {"bf16": 0.5}}
    lines = gpu.report(numbers | {"matrix_product": 8e14, "batch": "b", "training": found})
    assert "800 TFLOP/s" in lines and "no C compiler was found" in lines and "100%" in lines
