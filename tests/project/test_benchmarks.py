"""The programs that measure: their arithmetic, and that they run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import soundfile
import torch
import yaml
from printed import tables
from tiny import random_unet, tiny_config

from benchmarks import ablation, compare_versions, inference, waiting
from benchmarks.diffusers_unet import DiffusersUNet
from diffvocsep import checkpoint
from diffvocsep.checkpoint import release
from diffvocsep.config import load_config, to_dict
from diffvocsep.training.trainer import Trainer
from diffvocsep.unet import UNet
from diffvocsep.util import cli
from diffvocsep.util.errors import UserError


def test_the_table_calls_a_difference_only_what_lies_outside_the_interval():
    rng = np.random.default_rng(0)
    base = rng.normal(3, 2, 50)
    scores = {"base": base, "same": base + rng.normal(0, 1, 50), "up": base + 1, "down": base - 1}
    results = {
        name: {
            "scores": {f"{'ab'[i % 2]}/song {i}": x for i, x in enumerate(values)},
            "parameters": 2e6,
            "steps": 7,
            "seconds": 120.4,
        }
        for name, values in scores.items()
    }
    silence = dict.fromkeys(results["base"]["scores"], 0.0)
    _, _, nothing, first, same, up, down = ablation.compare(results, {"silence": silence}).splitlines()
    assert [cell.strip() for cell in nothing.split("|")[1:-1]] == ["silence", "", "", "", "0.00", "", "0.00", ""]
    cells = [cell.strip() for cell in first.split("|")[2:-1]]
    assert cells == ["2.00 M", "7", "120", f"{base[::2].mean():.2f}", "-", f"{base[1::2].mean():.2f}", "-"]
    assert same.count("tie") == 2
    assert up.count("+1.00 (+1.00 .. +1.00), better") == 2 and down.count("-1.00 (-1.00 .. -1.00), worse") == 2


def test_every_variant_is_a_possible_config():
    variants = yaml.safe_load(ablation.VARIANTS.read_text(encoding="utf-8"))
    assert next(iter(variants.items())) == ("base", [])
    configs = {name: load_config(ablation.PRESET, overrides) for name, overrides in variants.items()}
    assert len(set(map(repr, configs.values()))) == len(configs)  # each differs from the defaults, and from the others


def test_every_optimizer_is_a_possible_config():
    variants = yaml.safe_load(ablation.VARIANTS.with_name("optimizers.yaml").read_text(encoding="utf-8"))
    assert {name.split("_")[0] for name in variants} == {"adamw", "muon"}
    for name, overrides in variants.items():
        train = load_config(ablation.PRESET, overrides).train
        assert name == f"{train.optimizer}_{train.lr:g}"


def test_another_network_is_trained_saved_and_loaded_by_its_name(tmp_path):
    config = load_config(None, [
        "data.synthetic_songs=2", "data.synthetic_seconds=1", "data.segment_seconds=0.5", "train.val_batches=1",
        f"data.cache_dir={tmp_path.as_posix()}", f"log.checkpoint_dir={tmp_path.as_posix()}",
        "model.network=diffusers_unet",
    ])  # fmt: skip
    trainer = Trainer(config, torch.device("cpu"), "none")
    release({"ema": trainer.ema, "config": to_dict(config), "step": 0}, tmp_path / "own.safetensors")
    model, loaded = checkpoint.load_model(tmp_path / "own.safetensors")
    assert type(trainer.model) is type(model) is DiffusersUNet and loaded.model == config.model


def test_an_interrupted_variant_is_not_taken_for_a_finished_one(tmp_path, monkeypatch):
    class Stopped:
        def __init__(self, *_) -> None: ...

        def run(self) -> int:
            return 130

    monkeypatch.setattr(ablation, "Trainer", Stopped)
    with pytest.raises(KeyboardInterrupt):
        ablation.run_variant([], 0, 5, tmp_path, [])


def test_a_variant_that_changes_nothing_is_an_error(tmp_path):
    (tmp_path / "v.yaml").write_text("base: []\ntimeattention: []\n", encoding="utf-8")
    with pytest.raises(UserError, match="'timeattention' .* changes nothing"):
        ablation.run(["--root", "no", "--dev_root", "no", "--variants", str(tmp_path / "v.yaml")])


def test_another_network_takes_the_same_spectrograms():
    config = tiny_config()
    model = DiffusersUNet(config)
    x_t, mixture = torch.randn(2, 2, 4, 37, 21)
    x_t, mixture = x_t[:, :, : model.bins], mixture[:, :, : model.bins]
    output = model(x_t, mixture, torch.tensor([3, 900]))
    assert output.shape == x_t.shape and not torch.equal(output, model(x_t, -mixture, torch.tensor([3, 900])))


@pytest.mark.slow
def test_a_model_is_timed_in_a_process_of_its_own(tmp_path, monkeypatch, capsys):
    config = tiny_config()
    torch.manual_seed(0)
    release({"ema": UNet(config).state_dict(), "config": to_dict(config), "step": 1}, tmp_path / "m.safetensors")
    monkeypatch.setenv("BENCHMARK_SECONDS", "1")
    song = tmp_path / "songs" / "one"
    song.mkdir(parents=True)
    voice, music = np.random.default_rng(0).normal(0, 0.1, (2, 8000))
    soundfile.write(song / "vocals.wav", voice, 16000, "FLOAT")
    soundfile.write(song / "accompaniment.wav", music, 16000, "FLOAT")
    arguments = ["--model_path", str(tmp_path / "m.safetensors"), "--output", str(tmp_path), "--root", str(song.parent)]
    assert inference.run([*arguments, "--steps", "1", "4"]) == 0
    found = json.loads((tmp_path / "inference.json").read_text(encoding="utf-8"))
    one, four = found["Diff-VocSep, 1 step"], found["Diff-VocSep, 4 steps"]
    assert one["parameters"] == sum(p.numel() for p in UNet(config).parameters())
    assert 0 < one["seconds"] < one["cold_seconds"] and four["seconds"] > 0
    assert one["peak_mib"] > 100
    assert one["scores"]["global SDR"] == pytest.approx([0.0], abs=1e-3)  # an untrained network finds no vocals
    assert len(one["scores"]["museval SDR"]) == 1
    assert (tmp_path / "inference.png").stat().st_size > 1000
    assert "| Diff-VocSep, 4 steps |" in capsys.readouterr().out


def test_systems_take_turns_and_each_number_is_their_median(monkeypatch):
    """The second round of a system may fail, a first one that fails is the last; songs are scored once."""
    asked, seconds = [], iter([1.0, 10.0, 5.0, None, 3.0, 40.0])

    def measure(python: str, system: str, clips: Path | None, *arguments: str) -> dict | None:
        asked.append((python + system, clips, *arguments))
        if system == "away" or (now := next(seconds)) is None:
            return None
        return {"name": system, "seconds": now, "cold_seconds": 2 * now, "peak_mib": 100.0}

    monkeypatch.setattr(inference, "measure", measure)
    one, two = inference.measure_in_turns([("p", "one", "x"), ("p", "away"), ("q", "two")], Path("songs"), 3)
    turn = [("pone", None, "x"), ("qtwo", None)]
    assert asked == [("pone", Path("songs"), "x"), ("paway", Path("songs")), ("qtwo", Path("songs")), *turn, *turn]
    assert one == {"name": "one", "seconds": 3.0, "cold_seconds": 6.0, "peak_mib": 100.0}
    assert two["seconds"] == 25.0


def test_vocals_that_a_peer_has_written_are_scored(tmp_path):
    """Half the voice and nothing else: the error is the other half, 6 dB below."""
    mixture, vocals = np.random.default_rng(0).normal(0, 0.1, (2, inference.RATE * 2, 2))
    for name, wave in [("mixture", mixture + vocals), ("vocals", vocals), ("estimate", vocals / 2)]:
        soundfile.write(tmp_path / f"{name}.wav", wave, inference.RATE, "FLOAT")
    found = inference.score(tmp_path / "estimate.wav")
    assert found["global SDR"] == pytest.approx(20 * np.log10(2), abs=1e-3)
    assert found["museval SDR"] == pytest.approx(20 * np.log10(2), abs=0.1)
    assert found["bleedless"] > found["fullness"]


def test_a_peer_that_is_not_there_is_named(tmp_path, capfd):
    left = tmp_path / "one" / "estimate.wav"  # by a system that did not get through its songs
    left.parent.mkdir()
    left.touch()
    assert inference.measure(sys.executable, "no_such_system", tmp_path) is None
    assert "no_such_system: not measured" in capfd.readouterr().err and not left.exists()
    with pytest.raises(UserError, match="--only spleeter needs --peers"):
        inference.run(["--only", "spleeter"])


def test_the_mean_of_models_is_released_with_a_setting(tmp_path):
    """A released file counts like a checkpoint, and one that is named twice counts twice."""
    config, files = tiny_config(), [tmp_path / "a.pt", tmp_path / "b.safetensors"]
    states = [
        {"ema": random_unet(config, seed).state_dict(), "config": to_dict(config), "step": seed} for seed in (3, 4)
    ]
    checkpoint.save_checkpoint(files[0], states[0])
    checkpoint.release(states[1], files[1])
    target = tmp_path / "mean.safetensors"
    assert (
        checkpoint.run([*map(str, [files[1], files[0], files[0], target]), "--set", "separation.batch_chunks=3"]) == 0
    )
    weights, shipped = checkpoint.load_weights(target)
    for name, tensor in weights.items():
        expected = (2 * states[0]["ema"][name] + states[1]["ema"][name]) / 3
        torch.testing.assert_close(tensor, expected)
    assert shipped == replace(config, separation=replace(config.separation, batch_chunks=3))
    with pytest.raises(UserError, match='"model.blocks=1"'):
        checkpoint.run([str(files[0]), str(target), "--set", "model.blocks=2"])


def test_weights_are_released_by_a_command_and_readable_by_all(tmp_path, capsys):
    from diffvocsep.checkpoint import save_checkpoint

    config = tiny_config()
    state = {"ema": UNet(config).state_dict(), "config": to_dict(config), "step": 5}
    save_checkpoint(tmp_path / "best.pt", state)
    command = [sys.executable, "-m", "diffvocsep.checkpoint", str(tmp_path / "best.pt")]
    root = Path(__file__).parents[2]
    done = subprocess.run([*command, str(tmp_path / "m.safetensors")], capture_output=True, text=True, cwd=root)
    assert done.returncode == 0 and "step 5" in done.stdout
    if sys.platform != "win32":
        plain = tmp_path / "plain"
        plain.touch()
        assert (tmp_path / "m.safetensors").stat().st_mode == plain.stat().st_mode
    with pytest.raises(SystemExit) as wrong:
        cli.main(lambda: checkpoint.run([str(tmp_path / "best.pt"), str(tmp_path / "m.pt")]))
    assert wrong.value.code == 2 and "must end in .safetensors" in capsys.readouterr().err


@pytest.mark.slow
def test_versions_take_turns(capsys, tmp_path):
    root = str(Path(__file__).parents[2])
    assert compare_versions.run([root, root + "+keep", "--rounds", "2", "--seconds", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:4]] for line in lines[2:]]
    times = {version: (float(middle), float(least)) for version, middle, least in cells}
    assert set(times) == {root, root + "+keep"}
    assert all(0 < least <= middle < 60 for middle, least in times.values())


def test_a_version_that_cannot_be_timed_is_said(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="is no checkout"):
        compare_versions.run([str(tmp_path)])
    (tmp_path / compare_versions.SHIPPED).parent.mkdir()
    (tmp_path / compare_versions.SHIPPED).touch()
    with pytest.raises(UserError, match="--rounds is at least 1"):
        compare_versions.run([str(tmp_path), "--rounds", "0"])
    for code, words in [("", "before it had separated anything"), ("print('ready')", "ended in the middle")]:
        monkeypatch.setattr(compare_versions, "CHILD", code)
        with pytest.raises(UserError, match=words):
            compare_versions.run([str(tmp_path)])


# --- how threads wait ---------------------------------------------------------------------------------------------


def test_policies_are_compared_with_the_first_in_every_row(capsys, monkeypatch):
    """Passive takes 2 s on a quiet machine and 3 s beside others; the others take as much longer as they do here."""
    factors = {"passive": 1.0, "active": 2.5, "unset": 1.25, "one thread": 0.5}
    named, beside = {id(policy): name for name, policy in waiting.POLICIES.items()}, [0]

    @contextmanager
    def load(processes: int):
        beside[0] = processes
        yield

    monkeypatch.setattr(waiting, "load", load)
    monkeypatch.setattr(waiting, "seconds", lambda _, policy: (3 if beside[0] else 2) * factors[named[id(policy)]])
    assert waiting.run(["--rounds", "3", "--busy", "4", "--steps", "7"]) == 0
    (rows,) = tables(capsys.readouterr().out)
    assert rows.pop(f"s (times passive), {os.cpu_count()} cores, 3 rounds") == list(factors)
    assert list(rows) == ["the demo song, quiet", "7 steps, quiet", "the demo song, 4 busy", "7 steps, 4 busy"]
    assert list(rows["7 steps, quiet"]) == ["2.0 (1.00)", "5.0 (2.50)", "2.5 (1.25)", "1.0 (0.50)"]
    assert list(rows["the demo song, 4 busy"]) == ["3.0 (1.00)", "7.5 (2.50)", "3.8 (1.25)", "1.5 (0.50)"]


def test_the_load_computes_and_ends(monkeypatch):
    with waiting.load(2) as busy:
        deadline = time.monotonic() + 60
        used = [0.0, 0.0]
        while min(used) < 0.2 and time.monotonic() < deadline:
            time.sleep(0.05)
            used = [psutil.Process(process.pid).cpu_times() for process in busy]
            used = [times.user + times.system for times in used]
        assert min(used) >= 0.2 and all(process.poll() is None for process in busy)
    assert all(process.poll() is not None for process in busy)


def test_a_policy_reaches_the_program_alone(monkeypatch, tmp_path):
    """What is set outside does not."""
    said = tmp_path / "said.json"
    (tmp_path / "show.py").write_text(
        "import json, os, sys; json.dump({k: v for k, v in os.environ.items() if k[:4] in ('OMP_', 'GOMP')}, "
        "open(sys.argv[1], 'w'))", encoding="utf-8",
    )  # fmt: skip
    monkeypatch.setattr(waiting, "ROOT", tmp_path)
    for name in waiting.OTHERS:
        monkeypatch.setenv(name, "2")
    for policy in waiting.POLICIES.values():
        assert waiting.seconds(["show.py", str(said)], policy) > 0
        assert json.loads(said.read_text(encoding="utf-8")) == policy
    with pytest.raises(UserError, match=r"none\.py ended with exit code 2"):
        waiting.seconds(["none.py"], {})


@pytest.mark.slow
def test_waiting_measures_the_commands(capsys, monkeypatch):
    monkeypatch.setattr(waiting, "POLICIES", {"one thread": waiting.POLICIES["one thread"]})
    assert waiting.run(["--rounds", "1", "--busy", "1", "--steps", "1"]) == 0
    (rows,) = tables(capsys.readouterr().out)
    header, *cells = (cell for (cell,) in rows.values())
    assert header == "one thread" and len(cells) == 4
    assert all(cell.endswith(" (1.00)") and float(cell.split()[0]) > 1 for cell in cells)
