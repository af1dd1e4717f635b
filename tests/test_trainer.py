"""Training: a run is a function of its config, whatever interrupts it; and it learns."""

from __future__ import annotations

import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import diffvocsep.trainer as trainer_module
from diffvocsep import checkpoint, cli
from diffvocsep.config import Config, load_config, save_config
from diffvocsep.data import dev_tracks
from diffvocsep.errors import UserError
from diffvocsep.separator import Separator
from diffvocsep.trainer import BAD_STEPS, Trainer, dev_clips, learning_rate

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
TINY = """audio.sample_rate=8000 audio.channels=1 audio.n_fft=512 audio.hop_length=128 audio.win_length=512
    audio.bandwidth=0 data.synthetic_songs=2 data.synthetic_seconds=2 data.segment_seconds=0.5
    model.base_channels=4 train.batch_size=2 train.max_steps=6 train.steps_per_epoch=3 train.val_every_steps=2
    train.val_batches=2 train.val_seconds=1 train.warmup_steps=2 train.amp=none log.every_steps=1"""


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tiny(folder: Path, *overrides: str) -> Config:
    logs = [f"log.checkpoint_dir='{(folder / 'ck').as_posix()}'", f"log.tb_log_dir='{(folder / 'tb').as_posix()}'"]
    return load_config(None, [*TINY.split(), *logs, *overrides])


def make(folder: Path, *overrides: str, resume: str = "none") -> Trainer:
    return Trainer(tiny(folder, *overrides), CPU, resume)


def run(folder: Path, *overrides: str, resume: str = "none") -> Trainer:
    trainer = make(folder, *overrides, resume=resume)
    assert trainer.run() == 0
    return trainer


def flat(value: object, name: str = "") -> dict[str, object]:
    """A nested state as one dictionary of leaves."""
    if isinstance(value, dict):
        return {k: v for key, part in value.items() for k, v in flat(part, f"{name}/{key}").items()}
    if isinstance(value, list | tuple):
        return flat(dict(enumerate(value)), name)
    return {name: value}


def assert_same_run(one: Trainer, other: Trainer) -> None:
    """Weights, their average and the optimizer, bit by bit."""
    for part in ("model", "ema", "optimizer", "step", "best_sdr"):
        first, second = flat(one.state()[part]), flat(other.state()[part])
        assert first.keys() == second.keys()
        for name, value in first.items():
            equal = torch.equal(value, second[name]) if isinstance(value, torch.Tensor) else value == second[name]
            assert equal, f"{part}{name}"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Trainer:
    return run(tmp_path_factory.mktemp("undisturbed"))


def at_step(monkeypatch, step: int, action) -> None:
    """Call `action` when a trainer begins the step that follows `step` steps."""
    optimize = Trainer._optimize

    def disturbed(self, batches):
        if self.step == step:
            action()
        return optimize(self, batches)

    monkeypatch.setattr(Trainer, "_optimize", disturbed)


# ---- a real process ------------------------------------------------------------------------------------------------


def start(folder: Path, *arguments: str) -> subprocess.Popen:
    save_config(tiny(folder), folder / "tiny.yaml")
    command = [sys.executable, str(ROOT / "train.py"), "--config", "tiny.yaml", "--device", "cpu", *arguments]
    return subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8",
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}, start_new_session=True,
    )  # fmt: skip


def test_train_py_trains_validates_logs_and_saves(tmp_path, undisturbed):
    process = start(tmp_path)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    validated = re.findall(r"step (\d+): median SDR .* (-?\d+\.\d+) dB", out)
    assert [int(step) for step, _ in validated] == [2, 3, 4, 6]  # every 2 steps, every epoch of 3, and at the end
    assert {p.name for p in (tmp_path / "ck").iterdir()} == {"last.pt", "best.pt"}
    last, best = (checkpoint.load_checkpoint(tmp_path / "ck" / name) for name in ("last.pt", "best.pt"))
    assert last["step"] == 6
    assert f"{best['best_sdr']:.2f}" == max((score for _, score in validated), key=float)

    (events,) = (tmp_path / "tb").iterdir()
    log = EventAccumulator(str(events)).Reload()
    assert [e.step for e in log.Scalars("dev/sdr_median")] == [2, 3, 4, 6]
    for name in ("loss", "diffusion", "vocals", "gradient_norm", "learning_rate", "seconds_per_step"):
        assert [e.step for e in log.Scalars(f"train/{name}")] == [1, 2, 3, 4, 5, 6], name

    for name, tensor in undisturbed.model.state_dict().items():  # the process drew what this one drew
        assert torch.equal(tensor, last["model"][name]), name


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="POSIX signals")
def test_ctrl_c_stops_train_py_and_its_loaders_with_everything_saved(tmp_path):
    process = start(tmp_path, "train.max_steps=100000", "train.val_every_steps=100000", "train.steps_per_epoch=2",
                    "data.workers=2")  # fmt: skip
    for line in process.stdout:
        if line.startswith("step 2:"):
            break
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does it: to the loader processes, too
    out, err = process.communicate(timeout=600)
    assert process.returncode == 130, err
    step = checkpoint.load_checkpoint(tmp_path / "ck" / "last.pt")["step"]
    assert step >= 2
    assert f"stopped at step {step}; the same command goes on" in out
    assert (out + err).count("stopping after this step") == 1 and "Traceback" not in err


def test_another_architecture_is_refused_in_one_sentence(undisturbed, capsys):
    import train

    config = undisturbed.folder / "config.yaml"
    save_config(undisturbed.config, config)
    with pytest.raises(SystemExit) as exit_:
        cli.main(lambda: train.run(["--config", str(config), "--device", "cpu", "model.base_channels=8"]))
    error = capsys.readouterr().err.strip()
    assert exit_.value.code == 2
    assert error.startswith("error: ") and "model.base_channels = 4" in error and len(error.splitlines()) == 1


# ---- going on ------------------------------------------------------------------------------------------------------


def test_a_run_that_ctrl_c_stopped_goes_on_as_if_nothing_had_happened(tmp_path, monkeypatch, undisturbed, capsys):
    with monkeypatch.context() as patch:
        at_step(patch, 2, lambda: signal.raise_signal(signal.SIGINT))
        assert make(tmp_path).run() == 130
    assert checkpoint.load_checkpoint(tmp_path / "ck" / "last.pt")["step"] == 3
    assert "stopped at step 3; the same command goes on from" in capsys.readouterr().out
    assert_same_run(run(tmp_path, resume="auto"), undisturbed)


def test_a_run_that_crashed_goes_on_from_its_last_validation(tmp_path, monkeypatch, undisturbed):
    def crash():
        raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        at_step(patch, 5, crash)
        with pytest.raises(RuntimeError, match="power cut"):
            make(tmp_path).run()
    assert checkpoint.load_checkpoint(tmp_path / "ck" / "last.pt")["step"] == 4
    resumed = run(tmp_path, resume=str(tmp_path / "ck" / "last.pt"))
    assert_same_run(resumed, undisturbed)
    (events,) = (tmp_path / "tb").iterdir()  # one curve, not two
    log = EventAccumulator(str(events)).Reload()
    assert [e.step for e in log.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]
    assert [e.step for e in log.Scalars("dev/sdr_median")] == [2, 3, 4, 6]


def test_ctrl_c_twice_during_a_validation_loses_nothing(tmp_path, monkeypatch):
    def interrupt(*_):
        signal.raise_signal(signal.SIGINT)
        return [0.0]

    with monkeypatch.context() as patch:
        at_step(patch, 1, lambda: signal.raise_signal(signal.SIGINT))
        patch.setattr(trainer_module, "score_clips", interrupt)
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path).run()
    assert checkpoint.load_checkpoint(tmp_path / "ck" / "last.pt")["step"] == 2
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_resume_none_starts_anew_and_auto_says_when_nothing_is_left(tmp_path, capsys, undisturbed):
    run(tmp_path, "train.max_steps=2", "train.seed=5")
    again = make(tmp_path, "train.max_steps=2", "train.seed=5", resume="auto")
    assert again.run() == 0
    assert "has all its 2 steps; --resume none starts anew" in capsys.readouterr().out
    assert make(tmp_path).step == 0
    assert_same_run(run(tmp_path), undisturbed)


def test_learning_rate_and_weight_decay_may_change(tmp_path):
    run(tmp_path, "train.max_steps=2")
    resumed = run(tmp_path, "train.max_steps=3", "train.lr=0.5", "train.weight_decay=0.25", resume="auto")
    (group,) = resumed.optimizer.param_groups
    assert group["lr"] == pytest.approx(0.5 * learning_rate(2, 3, 2)) and group["weight_decay"] == 0.25


def test_precision_may_change(tmp_path):
    run(tmp_path, "train.max_steps=2")
    resumed = run(tmp_path, "train.max_steps=3", "train.amp=fp16", resume="auto")
    assert resumed.state()["scaler"] and resumed.step == 3


@pytest.mark.parametrize("damage", ["missing", "empty", "text", "cut", "foreign", "older"])
def test_a_bad_checkpoint_is_named(tmp_path, undisturbed, damage):
    path, whole = tmp_path / "bad.pt", (undisturbed.folder / "last.pt").read_bytes()
    if damage in ("foreign", "older"):
        torch.save({"weights": torch.zeros(3)} if damage == "foreign" else {"format": 0, "ema": {}}, path)
    elif damage != "missing":
        path.write_bytes({"empty": b"", "text": b"not a checkpoint", "cut": whole[: len(whole) // 2]}[damage])
    with pytest.raises(UserError) as error:
        make(tmp_path, resume=str(path))
    assert "bad.pt" in str(error.value) and "\n" not in str(error.value)


def test_a_file_is_whole_or_as_it_was(tmp_path):
    path = tmp_path / "new" / "file"
    checkpoint.write_atomic(path, lambda part: part.write_text("first", encoding="utf-8"))

    def fail(part: Path) -> None:
        part.write_text("half", encoding="utf-8")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        checkpoint.write_atomic(path, fail)
    assert [p.name for p in path.parent.iterdir()] == ["file"] and path.read_text(encoding="utf-8") == "first"


def test_two_processes_may_write_one_file(tmp_path, monkeypatch):
    path, us = tmp_path / "file", os.getpid()

    def write(part: Path) -> None:
        with part.open("w", encoding="utf-8") as file:
            file.write("one ")
            file.flush()
            monkeypatch.setattr(os, "getpid", lambda: us + 1)
            checkpoint.write_atomic(path, lambda part: part.write_text("the other", encoding="utf-8"))
            assert path.read_text(encoding="utf-8") == "the other"
            file.write("process")

    checkpoint.write_atomic(path, write)
    assert [p.name for p in tmp_path.iterdir()] == ["file"] and path.read_text(encoding="utf-8") == "one process"


# ---- the same draws, however they are made -------------------------------------------------------------------------


def test_loader_processes_do_not_change_the_run(tmp_path, undisturbed):
    assert_same_run(run(tmp_path, "data.workers=2"), undisturbed)


def test_validation_does_not_change_the_run(tmp_path, undisturbed):
    often = run(tmp_path / "often", "train.val_every_steps=1")
    never = run(tmp_path / "never", "train.val_every_steps=1000", "train.steps_per_epoch=1000")
    for name, tensor in often.model.state_dict().items():
        assert torch.equal(tensor, never.model.state_dict()[name]), name
        assert torch.equal(often.ema[name], never.ema[name]), name


def test_accumulated_batches_are_one_large_batch(tmp_path):
    steps = []
    for overrides in (["train.batch_size=4"], ["train.batch_size=2", "train.accumulate=2"]):
        trainer = make(tmp_path, "train.grad_clip=0", *overrides)
        with torch.no_grad():  # where the head is zero, most gradients are zero
            trainer.model.head[-1].weight.normal_(generator=torch.Generator().manual_seed(1))
        terms = trainer._optimize(next(trainer._steps()))
        steps.append((terms, {name: p.grad for name, p in trainer.model.named_parameters()}))
    (whole, expected), (accumulated, got) = steps
    assert whole.keys() == accumulated.keys() == {"loss", "diffusion", "vocals", "gradient_norm"}
    for name in whole:
        assert float(accumulated[name]) == pytest.approx(float(whole[name]), rel=1e-5), name
    for name, gradient in expected.items():
        assert torch.allclose(got[name], gradient, rtol=1e-4, atol=1e-6 * float(whole["gradient_norm"])), name


# ---- one step ------------------------------------------------------------------------------------------------------


def test_the_average_forgets_slowly_and_the_sooner_the_newer_it_is(tmp_path):
    trainer = make(tmp_path, "train.ema_decay=0.3")
    average = {name: tensor.double().numpy() for name, tensor in trainer.ema.items()}
    for n, batches in zip(range(1, 6), trainer._steps(), strict=False):
        trainer._optimize(batches)
        decay = min(0.3, (1 + n) / (10 + n))  # 0.18, 0.25, then 0.3
        for name, tensor in trainer.model.state_dict().items():
            average[name] = decay * average[name] + (1 - decay) * tensor.double().numpy()
            assert np.allclose(trainer.ema[name].numpy(), average[name], rtol=1e-5, atol=1e-7), name
    assert not torch.equal(trainer.ema["stem.weight"], trainer.model.stem.weight)


def test_the_learning_rate_rises_linearly_then_falls_along_half_a_cosine(tmp_path):
    rates = [learning_rate(step, 100, 20) for step in range(100)]
    assert rates[:20] == pytest.approx(np.arange(1, 21) / 20)
    assert rates[20:] == pytest.approx((1 + np.cos(np.pi * np.arange(80) / 80)) / 2)
    assert learning_rate(0, 10, 0) == 1.0 and max(learning_rate(s, 5, 50) for s in range(5)) == 0.1

    trainer = make(tmp_path, "train.lr=0.01")
    for step, batches in enumerate(trainer._steps()):
        trainer._optimize(batches)
        assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0.01 * learning_rate(step, 6, 2))


def test_gradients_are_clipped_to_a_norm_and_reported_as_they_were(tmp_path):
    norms = {}
    for clip in ("0", "0.001"):
        trainer = make(tmp_path, f"train.grad_clip={clip}")
        reported = float(trainer._optimize(next(trainer._steps()))["gradient_norm"])
        squares = [p.grad.double().square().sum() for p in trainer.model.parameters()]
        norms[clip] = reported, math.sqrt(sum(squares))
    assert norms["0"][0] == pytest.approx(norms["0"][1], rel=1e-5)
    assert norms["0.001"][0] == pytest.approx(norms["0"][0], rel=1e-5)
    assert norms["0.001"][1] == pytest.approx(0.001, rel=1e-3)


# ---- when the loss is not finite -----------------------------------------------------------------------------------


def spoil(monkeypatch, trainer: Trainer, steps: range) -> None:
    """Let the loss be NaN in the given steps."""
    objective = trainer.objective

    def spoiled(*args):
        terms = objective(*args)
        return terms | {"loss": terms["loss"] * math.nan} if trainer.step in steps else terms

    spoiled.shape = objective.shape
    monkeypatch.setattr(trainer, "objective", spoiled)


def test_a_step_that_is_not_finite_is_left_out(tmp_path, monkeypatch):
    trainer = make(tmp_path)
    spoil(monkeypatch, trainer, range(2, 3))
    before = None
    for batches in trainer._steps():
        before = {name: tensor.clone() for name, tensor in flat(trainer.state()).items() if torch.is_tensor(tensor)}
        trainer._optimize(batches)
        after = flat(trainer.state())
        assert all(torch.equal(tensor, after[name]) for name, tensor in before.items()) == (trainer.step == 3)
    assert trainer.step == 6 and trainer.bad_steps == 0
    assert all(tensor.isfinite().all() for tensor in trainer.model.state_dict().values())


def test_twenty_bad_steps_end_the_run_and_spoil_no_checkpoint(tmp_path, monkeypatch):
    trainer = make(tmp_path, "train.max_steps=100", "train.val_every_steps=5", "train.steps_per_epoch=1000")
    spoil(monkeypatch, trainer, range(6, 100))
    with pytest.raises(UserError, match=rf"not finite for {BAD_STEPS} steps in a row \(step 26\).*train\.lr"):
        trainer.run()
    for name in ("last.pt", "best.pt"):
        state = checkpoint.load_checkpoint(tmp_path / "ck" / name)
        tensors = [value for value in flat(state).values() if torch.is_tensor(value)]
        assert tensors and all(tensor.isfinite().all() for tensor in tensors)


# ---- validation ----------------------------------------------------------------------------------------------------


def test_best_is_replaced_by_better_only(tmp_path, monkeypatch):
    scores = iter([[1.0, 1.0], [3.0, 5.0, 4.0], [2.0], [math.nan], [4.5], [4.4]])
    monkeypatch.setattr(trainer_module, "score_clips", lambda *_: next(scores))
    steps = []

    def saved(path: Path, state: dict) -> None:
        if path.name == "best.pt":
            steps.append((state["step"], state["best_sdr"]))

    monkeypatch.setattr(trainer_module, "save_checkpoint", saved)
    run(tmp_path, "train.val_every_steps=1")
    assert steps == [(1, 1.0), (2, 4.0), (5, 4.5)]  # the median of the clips


def test_validation_is_the_sdr_of_the_averaged_network_s_separation(tmp_path, capsys):
    trainer = run(tmp_path, "train.lr=0.1", "train.max_steps=3")
    reported = float(re.findall(r"step 3: .* (-?\d+\.\d+) dB", capsys.readouterr().out)[0])
    config, rate = trainer.config, 8000

    def scores(separator: Separator) -> list[float]:
        values = []
        for track in (dev_tracks(config)[0], dev_tracks(config)[8]):  # of 16, two far apart
            vocals, rest = (track.read(side, 0.5, 1.0, rate).mean(0, keepdim=True) for side in track.stems)
            error = separator.separate(vocals + rest, rate)[0].numpy() - vocals.numpy()
            values.append(10 * np.log10(np.sum(vocals.numpy() ** 2.0) / np.sum(error**2.0)))
        return values

    assert reported == pytest.approx(
        np.median(scores(Separator.from_checkpoint(tmp_path / "ck/last.pt", "cpu"))), abs=0.006
    )
    assert abs(reported - np.median(scores(Separator(trainer.model, config)))) > 0.02, "the test cannot tell them apart"


def test_clips_without_vocals_are_left_out(tmp_path, undisturbed):
    config = undisturbed.config
    tracks = dev_tracks(config)[:3]
    tracks[0].read("vocals", 0, 1, 8000)
    tracks[0]._samples["vocals"][:] = 0
    assert len(dev_clips(tracks, load_config(None, ["train.val_batches=3"], config))) == 2
    for silent in ([], tracks[:1]):
        with pytest.raises(UserError, match=r"no dev track has .* vocals; see data\.dev_root"):
            dev_clips(silent, config)


# ---- learning ------------------------------------------------------------------------------------------------------


def test_it_learns_a_song(tmp_path):
    trainer = make(
        tmp_path, "data.synthetic_songs=1", "train.max_steps=80", "train.batch_size=4", "train.lr=0.005",
        "train.warmup_steps=5", "data.remix_probability=0", "data.silent_vocals=0", "model.base_channels=8",
    )  # fmt: skip
    losses = np.array([float(trainer._optimize(batches)["loss"]) for batches in trainer._steps()])
    assert losses[-20:].mean() < 0.7 * losses[:10].mean()


def test_other_dev_clips_forget_the_best_score_and_other_data_are_refused(tmp_path):
    """A score is only comparable under what decided it: else best.pt might never be replaced."""
    first = make(tmp_path)
    first.best_sdr = 5.0
    checkpoint.save_checkpoint(first.folder / "last.pt", first.state())
    assert make(tmp_path, resume="auto").best_sdr == 5.0
    assert make(tmp_path, "train.val_seconds=0.7", resume="auto").best_sdr == -math.inf
    with pytest.raises(UserError, match=r"data\.dataset synthetic, not stems"):
        make(tmp_path, "data.dataset=stems", resume="auto")


def test_songs_on_the_device_give_the_same_batches_and_going_on_is_exact(tmp_path, monkeypatch):
    whole = run(tmp_path / "whole", "data.cache=device")
    for (ours,), (theirs,) in zip(make(tmp_path, "data.cache=device")._steps(), make(tmp_path)._steps(), strict=True):
        for name, values in theirs.items():
            torch.testing.assert_close(ours[name], values, atol=2e-3, rtol=0)  # 16 bit on the way
    with monkeypatch.context() as patch:
        at_step(patch, 2, lambda: signal.raise_signal(signal.SIGINT))
        assert make(tmp_path / "parts", "data.cache=device").run() == 130
    assert_same_run(run(tmp_path / "parts", "data.cache=device", resume="auto"), whole)
