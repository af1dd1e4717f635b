"""The programs that measure: their arithmetic, and that they run."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import soundfile
import torch
import yaml
from tiny import Stub, random_unet, tiny_config

from benchmarks import ablation, cheap_gains, in_turns, inference
from benchmarks.diffusers_unet import DiffusersUNet
from benchmarks.ema_lengths import averages
from benchmarks.other_networks import (
    BANDS,
    Bands,
    BandSplitUNet,
    MidSideSpectrogram,
    TimeAttention,
    TimeAttentionUNet,
)
from diffvocsep import checkpoint
from diffvocsep.checkpoint import release
from diffvocsep.config import load_config, to_dict
from diffvocsep.separator import Separator
from diffvocsep.spectrogram import make_representation
from diffvocsep.training.trainer import Trainer
from diffvocsep.unet import UNet
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
    assert not any(variants.pop(name) for name in ablation.REPLACED.keys() & variants)
    configs = {name: load_config(ablation.PRESET, overrides) for name, overrides in variants.items()}
    assert len(set(map(repr, configs.values()))) == len(configs)  # each differs from the defaults, and from the others


def test_every_optimizer_is_a_possible_config():
    variants = yaml.safe_load(ablation.VARIANTS.with_name("optimizers.yaml").read_text(encoding="utf-8"))
    assert {name.split("_")[0] for name in variants} == {"adamw", "muon"}
    for name, overrides in variants.items():
        train = load_config(ablation.PRESET, overrides).train
        assert name == f"{train.optimizer}_{train.lr:g}"


def test_every_structure_is_a_possible_config_or_a_class_of_its_own():
    variants = yaml.safe_load(ablation.VARIANTS.with_name("structures.yaml").read_text(encoding="utf-8"))
    configs = {name: repr(load_config(ablation.PRESET, overrides)) for name, overrides in variants.items()}
    ours = [config for name, config in configs.items() if name not in ablation.REPLACED]
    assert len(set(ours)) == len(ours) == len(configs) - 3


@pytest.mark.parametrize("name", ablation.REPLACED)
def test_a_class_of_its_own_takes_the_place_of_ours_everywhere(tmp_path, name):
    config = load_config(None, [
        "data.synthetic_songs=2", "data.synthetic_seconds=1", "data.segment_seconds=0.5", "train.val_batches=1",
        f"data.cache_dir={tmp_path.as_posix()}", f"log.checkpoint_dir={tmp_path.as_posix()}",
    ])  # fmt: skip
    own, _ = ablation.REPLACED[name]
    with ablation.replaced(name):
        trainer = Trainer(config, torch.device("cpu"), "none")
        trainer._save("last.pt")
        model, _ = checkpoint.load_model(tmp_path / "last.pt")
        used = [trainer.model, model] if issubclass(own, torch.nn.Module) else [
            trainer.objective.representation, Separator(model, config).representation,
        ]  # fmt: skip
    assert all(type(one) is own for one in used)
    assert own not in (type(UNet(config)), type(Separator(UNet(config), config).representation))


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
    with pytest.raises(UserError, match="'timeattention' .* changes nothing; .* are diffusers_unet, time_attention"):
        ablation.run(["--root", "no", "--dev_root", "no", "--variants", str(tmp_path / "v.yaml")])


def test_attention_along_time_starts_as_nothing_and_then_hears_far_frames_of_its_row_only():
    layer = TimeAttention(8, heads=2)
    x = torch.randn(2, 8, 40, 5)
    assert torch.equal(layer(x), x)
    torch.nn.init.normal_(layer.out.weight)
    layer.norm = torch.nn.Identity()  # which would carry a change to the other rows of its frame
    changed = x.clone()
    changed[:, 0, 39, 3] += 5
    difference = (layer(changed) - layer(x)).abs().amax(dim=(0, 1))  # (T, F)
    assert (difference[0, 3] > 1e-5) and (difference[:39, :3] == 0).all()


def test_attention_along_time_is_in_the_two_coarsest_scales():
    config = tiny_config()
    model = TimeAttentionUNet(config)
    found = [name for name, module in model.named_modules() if isinstance(module, TimeAttention)]
    scales = len(config.model.channels_mult)
    assert found == [f"down.{scales - 2}.attention", f"down.{scales - 1}.attention", f"up.{scales - 2}.attention"]


def test_a_band_hears_its_own_bins_and_gives_them_back():
    bins = sum(number * width for number, width in BANDS)
    split, merge = Bands(3, 4, split=True), Bands(4, 3, split=False)
    x = torch.randn(2, 3, 6, bins)
    rows = split(x)
    assert rows.shape == (2, 4, 6, sum(number for number, _ in BANDS)) and merge(rows).shape == x.shape
    x[:, 1, 2, 130] += 1  # the first 64 bands have two bins each, so bins 128 to 131 are band 64
    changed = (split(x) != rows).any(1)
    assert changed.nonzero()[:, 1:].unique(dim=0).tolist() == [[2, 64]]
    back = merge(rows)
    rows[:, :, 2, 64] += 1
    assert (merge(rows) != back).any(1).nonzero()[:, 1:].unique(dim=0).tolist() == [[2, i] for i in range(128, 132)]


def test_the_network_of_bands_starts_like_ours_and_learns():
    config = load_config(ablation.PRESET)
    model = BandSplitUNet(config)
    x_t, mixture = torch.randn(2, 1, 4, model.bins, 21)
    out = model(x_t, mixture, torch.tensor([999]))
    assert out.shape == mixture.shape and not out.any()
    (out - mixture).square().mean().backward()
    assert all(layer.weight.grad.any() for layers in model.head[-1].layers for layer in layers)


def test_middle_and_side_return_to_left_and_right_and_a_mono_song_has_no_side():
    config = load_config(ablation.PRESET)
    spectrum = torch.randn(2, 2, 30, 9, dtype=torch.complex64)
    with patch("diffvocsep.spectrogram.ComplexSpectrogram", MidSideSpectrogram):
        representation = make_representation(config.audio)
    statistics = representation.statistics(spectrum)
    x = representation.encode(spectrum, statistics)
    torch.testing.assert_close(representation.decode(x, statistics, spectrum), spectrum, atol=1e-4, rtol=1e-4)
    mono = spectrum[:, :1].expand(-1, 2, -1, -1)
    middle = representation.encode(mono, representation.statistics(mono))
    assert float(middle.square().mean()) == pytest.approx(1, abs=0.01)
    assert representation.encode(mono, statistics)[:, 2:].abs().max() < 1e-6 < x[:, 2:].abs().max()


def test_another_network_takes_the_same_spectrograms():
    config = tiny_config()
    model = DiffusersUNet(config)
    x_t, mixture = torch.randn(2, 2, 4, 37, 21)
    x_t, mixture = x_t[:, :, : model.bins], mixture[:, :, : model.bins]
    output = model(x_t, mixture, torch.tensor([3, 900]))
    assert output.shape == x_t.shape and not torch.equal(output, model(x_t, -mixture, torch.tensor([3, 900])))


def test_averages_are_those_of_the_steps_that_were_trained(tmp_path):
    config = tiny_config(
        "data.synthetic_songs=2", "data.synthetic_seconds=1", "data.segment_seconds=0.5", "train.max_steps=5",
        f"data.cache_dir={tmp_path.as_posix()}", f"log.checkpoint_dir={tmp_path.as_posix()}",
    )  # fmt: skip
    trainer = Trainer(config, torch.device("cpu"), "none")
    raw = []
    optimize = trainer.optimize
    trainer.optimize = lambda batches: (optimize(batches), raw.append(copy.deepcopy(trainer.model.state_dict())))
    found = averages(trainer, 3, [0.0, 0.1, 0.6, 0.9])
    for name in raw[0]:
        first, second, third = (weights[name] for weights in raw)
        torch.testing.assert_close(found[0.0][name], third)
        torch.testing.assert_close(found[0.1][name], 0.01 * first + 0.09 * second + 0.9 * third)
        torch.testing.assert_close(found[0.9][name], (first + second + third) / 3)
        torch.testing.assert_close(found[0.6][name], 0.3 * first + 0.3 * second + 0.4 * third)  # after a mean of two
    assert any(not torch.equal(raw[0][name], raw[2][name]) for name in raw[0])


def test_a_model_is_timed_in_a_process_of_its_own(tmp_path, monkeypatch, capsys):
    config = tiny_config()
    torch.manual_seed(0)
    release({"ema": UNet(config).state_dict(), "config": to_dict(config), "step": 1}, tmp_path / "m.safetensors")
    monkeypatch.setattr(inference, "STEPS", (1, 4))
    monkeypatch.setenv("BENCHMARK_SECONDS", "1")
    song = tmp_path / "songs" / "one"
    song.mkdir(parents=True)
    voice, music = np.random.default_rng(0).normal(0, 0.1, (2, 8000))
    soundfile.write(song / "vocals.wav", voice, 16000, "FLOAT")
    soundfile.write(song / "accompaniment.wav", music, 16000, "FLOAT")
    arguments = ["--model_path", str(tmp_path / "m.safetensors"), "--output", str(tmp_path), "--root", str(song.parent)]
    assert inference.run(arguments) == 0
    found = json.loads((tmp_path / "inference.json").read_text(encoding="utf-8"))
    one, four = found["Diff-VocSep, 1 step"], found["Diff-VocSep, 4 steps"]
    assert one["parameters"] == sum(p.numel() for p in UNet(config).parameters())
    assert 0 < one["seconds"] < one["cold_seconds"] and four["seconds"] > 0
    assert one["peak_mib"] > 100
    assert one["sdr"] == pytest.approx([0.0], abs=1e-3)  # an untrained network finds no vocals
    assert (tmp_path / "inference.png").stat().st_size > 1000
    assert "| Diff-VocSep, 4 steps |" in capsys.readouterr().out


def test_a_peer_that_is_not_there_is_named(capfd):
    assert inference.measure(sys.executable, "no_such_system", None) is None
    assert "no_such_system: not measured" in capfd.readouterr().err


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
    with pytest.raises(UserError, match="model.blocks = 1"):
        checkpoint.run([str(files[0]), str(target), "--set", "model.blocks=2"])


def test_weights_are_released_by_a_command_and_readable_by_all(tmp_path):
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
    wrong = subprocess.run([*command, str(tmp_path / "m.pt")], capture_output=True, text=True, cwd=root)
    assert wrong.returncode == 2 and "must end in .safetensors" in wrong.stderr


def test_a_trick_is_compared_clip_by_clip(tmp_path, capsys):
    torch.manual_seed(0)
    config = tiny_config()
    release({"ema": UNet(config).state_dict(), "config": to_dict(config), "step": 1}, tmp_path / "m.safetensors")
    noise = np.random.default_rng(0)
    for name in ("a/one", "b/two"):
        (tmp_path / "songs" / name).mkdir(parents=True)
        for stem in ("vocals", "accompaniment"):
            soundfile.write(tmp_path / "songs" / name / f"{stem}.wav", noise.normal(0, 0.1, (8000, 2)), 8000)
    arguments = ["--root", str(tmp_path / "songs"), "--model_path", str(tmp_path / "m.safetensors")]
    assert cheap_gains.run(arguments) == 0
    lines = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()]
    assert [cell.strip() for cell in lines[0]][1:] == ["times as long", "a", "b"]
    silence, mixture, untrained, plain = ([cell.strip() for cell in line] for line in lines[2:6])
    assert silence == ["silence", "", "0.00", "0.00"] and untrained == ["untrained network", "", "0.00", "0.00"]
    assert mixture[0] == "mixture" and all(abs(float(mean)) < 0.5 for mean in mixture[2:]), "equally loud noises"
    assert plain == ["as it is", "1.0", "0.00", "0.00"]  # untrained: vocals are silence


def test_every_trick_gives_the_song_back_where_the_model_is_an_honest_identity():
    config = tiny_config()
    separator = Separator(Stub(lambda x_t, mixture, t: mixture), config)  # residual: everything is voice
    mixture = torch.from_numpy(np.random.default_rng(0).normal(0, 0.1, (2, 9000))).float()
    for name, way in cheap_gains.ways(separator).items():
        assert torch.allclose(way(mixture, 8000), mixture, atol=1e-5), name


def test_differences_of_a_trick_are_those_of_its_clips():
    scores = {"as it is": np.array([1.0, 2.0, 5.0]), "better": np.array([2.0, 3.0, 4.0])}
    lines = cheap_gains.rows(scores, {"as it is": 2.0, "better": 5.0}, ["a", "a", "b"])
    assert lines["as it is"] == ["1.0", "1.50", "5.00"]
    assert lines["better"] == ["2.5", "2.50 +1.00 (+1.00 .. +1.00)", "4.00 -1.00 (-1.00 .. -1.00)"]


def test_versions_take_turns(capsys, tmp_path):
    root = str(Path(__file__).parents[2])
    assert in_turns.run([root, root + "+keep", "--rounds", "2", "--seconds", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:4]] for line in lines[2:]]
    times = {version: (float(middle), float(least)) for version, middle, least in cells}
    assert set(times) == {root, root + "+keep"}
    assert all(0 < least <= middle < 60 for middle, least in times.values())
    with pytest.raises(UserError, match="is no checkout"):
        in_turns.run([str(tmp_path)])
