"""Going on: whatever ends a run, and whenever, the same command goes on as if nothing had happened."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from trainers import CPU, ROOT, assert_same_run, assert_same_state, at_step, make, run, start, tiny

import diffvocsep.training.trainer as trainer_module
from diffvocsep import checkpoint
from diffvocsep.config import Config, save_config
from diffvocsep.training.run_folder import FolderLock
from diffvocsep.training.schedule import learning_rate
from diffvocsep.training.trainer import Trainer
from diffvocsep.util import cli
from diffvocsep.util.atomic import PART, remove_leftovers
from diffvocsep.util.errors import UserError


def last(folder: Path) -> dict:
    return checkpoint.load_checkpoint(folder / "ck" / "last.pt")


def curves(folder: Path) -> list[list[str]]:
    """history.csv without what depends on the machine."""
    (path,) = folder.glob("tb/*/history.csv")
    rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
    names = ["step", "loss", "gradient_norm", "learning_rate", "loss_pure_noise", "sdr_median", "sdr_best"]
    return [[row[name] for name in names] for row in rows]


def assert_one_curve(folder: Path, steps: list[int]) -> None:
    """All sessions of a run are one run in TensorBoard, every step once."""
    (events,) = (folder / "tb").iterdir()
    log = EventAccumulator(str(events)).Reload()
    assert [e.step for e in log.Scalars("train/loss")] == list(range(1, steps[-1] + 1))
    assert [e.step for e in log.Scalars("dev/sdr_median")] == steps


# ---- kill -9 -------------------------------------------------------------------------------------------------------


def killed_at_random(folder: Path, rng: np.random.Generator, validations: int, *arguments: str) -> None:
    """Start train.py and kill it up to half a second after so many validations; after none, in its first ten seconds:
    while it starts, goes on, trains or saves. A step takes half a second, so that steps are left to be killed on any
    machine."""
    process = start(folder, *arguments, script=ROOT / "tests" / "killed.py", SLOW_STEPS="0.5")
    seconds = rng.uniform(0, 0.5 if validations else 10)
    while validations:
        line = process.stdout.readline()
        assert line, process.communicate()
        validations -= line.startswith("step ")
    time.sleep(seconds)
    process.kill()
    _, error = process.communicate(timeout=600)
    assert process.returncode == -signal.SIGKILL, error


def finished(folder: Path, *arguments: str, **environment: str) -> str:
    """Start train.py and wait for its end."""
    process = start(folder, *arguments, script=ROOT / "tests" / "killed.py", **environment)
    out, error = process.communicate(timeout=1200)
    assert process.returncode == 0, error
    return out


def killed_in_a_checkpoint(folder: Path, *arguments: str) -> None:
    """Start train.py, which kills itself when half of its fourth checkpoint, that of step 3, is written."""
    process = start(folder, *arguments, script=ROOT / "tests" / "killed.py", KILL_IN_SAVE="4")
    _, error = process.communicate(timeout=600)
    assert process.returncode == -signal.SIGKILL, error
    (half,) = (folder / "ck").glob(f".*{PART}")
    assert last(folder)["step"] == 2 and half.stat().st_size > 10000


def assert_as_if_undisturbed(folder: Path, undisturbed: Trainer, out: str) -> None:
    """What has been killed and has gone on, and what it said when it did."""
    assert "resumed" in out and "changed" not in out
    assert_same_state(last(folder), undisturbed.state())
    assert_same_state(
        checkpoint.load_checkpoint(folder / "ck/best.pt"), checkpoint.load_checkpoint(undisturbed.folder / "best.pt")
    )
    assert curves(folder) == curves(undisturbed.folder.parent)
    assert_one_curve(folder, [2, 3, 4, 6])


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kill -9")
def test_killed_in_a_checkpoint_it_ends_as_if_undisturbed(tmp_path, undisturbed, capsys):
    killed_in_a_checkpoint(tmp_path)
    run(tmp_path, resume="auto")
    assert_as_if_undisturbed(tmp_path, undisturbed, capsys.readouterr().out)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kill -9")
@pytest.mark.parametrize("workers, method", [(0, "fork"), (2, "spawn")])
def test_killed_in_a_checkpoint_and_at_random_it_ends_as_if_undisturbed(tmp_path, undisturbed, workers, method):
    """The loaders are forked before the kills and, with two of them, spawned after: that changes nothing, either."""
    argument = f"data.workers={workers}"
    killed_in_a_checkpoint(tmp_path, argument)
    killed_at_random(tmp_path, np.random.default_rng(), 1, argument)
    assert_as_if_undisturbed(tmp_path, undisturbed, finished(tmp_path, argument, START_METHOD=method))


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kill -9")
@pytest.mark.parametrize("workers", [0, 2])
def test_ten_kills_change_nothing(tmp_path, workers):
    arguments = [f"data.workers={workers}", "train.max_steps=90"]
    (tmp_path / "undisturbed").mkdir()
    finished(tmp_path / "undisturbed", *arguments)
    (tmp_path / "killed").mkdir()
    rng, steps = np.random.default_rng(), []
    for _ in range(10):
        killed_at_random(tmp_path / "killed", rng, int(rng.integers(0, 3)), *arguments)
        saved = (tmp_path / "killed" / "ck" / "last.pt").exists()  # a kill may come before the first checkpoint
        steps.append(last(tmp_path / "killed")["step"] if saved else 0)
    assert steps == sorted(steps) and steps[-1] < 90, "there was nothing left to kill"
    finished(tmp_path / "killed", *arguments)
    assert_same_state(last(tmp_path / "killed"), last(tmp_path / "undisturbed"))
    assert curves(tmp_path / "killed") == curves(tmp_path / "undisturbed")


def test_what_a_killed_process_left_is_removed_when_it_is_old(tmp_path):
    for name in (f".1{PART}", f".22{PART}", "last.pt", "film.mp4.part"):  # the last one is not ours
        (tmp_path / name).touch()
    remove_leftovers(tmp_path)
    assert len(list(tmp_path.iterdir())) == 4, "another process may be writing it"
    for path in tmp_path.iterdir():
        os.utime(path, (time.time() - 100, time.time() - 100))
    remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"last.pt", "film.mp4.part"}
    remove_leftovers(tmp_path / "not there")


# ---- Ctrl-C and crashes --------------------------------------------------------------------------------------------


def test_a_run_that_ctrl_c_stopped_goes_on_as_if_nothing_had_happened(tmp_path, monkeypatch, undisturbed, capsys):
    with monkeypatch.context() as patch:
        at_step(patch, 2, lambda: signal.raise_signal(signal.SIGINT))
        assert make(tmp_path).run() == 130
    assert last(tmp_path)["step"] == 3
    output = capsys.readouterr().out
    assert "stopped at step 3; the same command, without --resume, goes on from" in output
    assert "step 2: median SDR" in output and "step 3: median SDR" not in output, "nothing is validated after Ctrl-C"
    assert_same_run(run(tmp_path, resume="auto"), undisturbed)
    assert "step 3: median SDR" in capsys.readouterr().out, "what was left out is made up for"
    assert_one_curve(tmp_path, [2, 3, 4, 6])
    assert curves(tmp_path) == curves(undisturbed.folder.parent)


@pytest.mark.slow
def test_going_on_with_own_guesses_and_twins_is_exact(tmp_path, monkeypatch):
    options = ["train.refine_share=0.5", "train.consistency_share=0.5", "data.silent_accompaniment=0.2",
               "diffusion.terminal_share=0", "train.max_steps=4"]  # fmt: skip
    whole = run(tmp_path / "whole", *options)
    with monkeypatch.context() as patch:
        at_step(patch, 1, lambda: signal.raise_signal(signal.SIGINT))
        assert make(tmp_path / "parts", *options).run() == 130
    assert_same_run(run(tmp_path / "parts", *options, resume="auto"), whole)


def test_ctrl_c_ends_a_validation_and_it_is_made_up_for(tmp_path, monkeypatch, undisturbed, capsys):
    sdr, calls = trainer_module.validate.__globals__["sdr"], []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 3:  # in the second validation, of two clips
            signal.raise_signal(signal.SIGINT)
        return sdr(*args)

    with monkeypatch.context() as patch:
        patch.setitem(trainer_module.validate.__globals__, "sdr", interrupted)
        assert make(tmp_path).run() == 130
    assert len(calls) == 3 and last(tmp_path)["step"] == 3 and last(tmp_path)["validated"] == 2
    assert_same_run(run(tmp_path, resume="auto"), undisturbed)


def test_a_validation_that_was_made_up_for_but_not_saved_is_seen_once(tmp_path, monkeypatch, undisturbed):
    """Ctrl-C at a step with a validation, then the power is cut when that has been made up for."""

    def power_cut(*_):
        raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        at_step(patch, 2, lambda: signal.raise_signal(signal.SIGINT))
        assert make(tmp_path).run() == 130
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "save", power_cut)
        with pytest.raises(RuntimeError, match="power cut"):
            make(tmp_path, resume="auto").run()
    assert [row[0] for row in curves(tmp_path)] == ["1", "2", "2", "3", "3"] and last(tmp_path)["validated"] == 2
    assert_same_run(run(tmp_path, resume="auto"), undisturbed)
    assert curves(tmp_path) == curves(undisturbed.folder.parent)
    assert_one_curve(tmp_path, [2, 3, 4, 6])


def test_ctrl_c_after_the_last_step_leaves_only_the_validation(tmp_path, monkeypatch, undisturbed):
    with monkeypatch.context() as patch:
        at_step(patch, 5, lambda: signal.raise_signal(signal.SIGINT))
        assert make(tmp_path).run() == 130
    assert last(tmp_path)["step"] == 6
    assert_same_run(run(tmp_path, resume="auto"), undisturbed)
    assert run(tmp_path, "train.max_steps=4", resume="auto").progress.step == 6


def test_a_run_that_crashed_goes_on_from_its_last_validation(tmp_path, monkeypatch, undisturbed):
    def crash():
        raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        at_step(patch, 5, crash)
        with pytest.raises(RuntimeError, match="power cut"):
            make(tmp_path).run()
    assert last(tmp_path)["step"] == 4
    resumed = run(tmp_path, resume=str(tmp_path / "ck" / "last.pt"))
    assert_same_run(resumed, undisturbed)
    assert_one_curve(tmp_path, [2, 3, 4, 6])


def test_last_is_saved_between_validations_when_it_is_old(tmp_path, monkeypatch, undisturbed):
    def crash():
        raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(trainer_module, "SAVE_SECONDS", 0.0)
        at_step(patch, 5, crash)
        with pytest.raises(RuntimeError, match="power cut"):
            make(tmp_path).run()
    assert last(tmp_path)["step"] == 5
    assert_same_run(run(tmp_path, resume="auto"), undisturbed)


def test_ctrl_c_twice_during_a_validation_loses_nothing(tmp_path, monkeypatch):
    def interrupt(*_):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(trainer_module, "validate", interrupt)
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path).run()
    assert last(tmp_path)["step"] == 2
    assert signal.getsignal(signal.SIGINT) is before


# ---- under another config ------------------------------------------------------------------------------------------


def test_resume_none_starts_anew_and_auto_says_when_nothing_is_left(tmp_path, capsys, undisturbed):
    run(tmp_path, "train.max_steps=2", "train.seed=5")
    again = make(tmp_path, "train.max_steps=2", "train.seed=5", resume="auto")
    assert again.run() == 0
    assert "has all its 2 steps; --resume none starts anew" in capsys.readouterr().out
    assert make(tmp_path).progress.step == 0
    assert_same_run(run(tmp_path), undisturbed)


def test_what_may_change_is_said_and_has_its_effect(tmp_path, capsys):
    run(tmp_path, "train.max_steps=2")
    capsys.readouterr()
    new = ["train.max_steps=3", "train.lr=0.5", "train.weight_decay=0.25"]
    resumed = run(tmp_path, *new, resume="auto")
    for group in resumed.optimizer.param_groups:
        assert group["lr"] == pytest.approx(0.5 * learning_rate(2, 2, 0.0)) and group["weight_decay"] == 0.25
    expected = "train.max_steps: 2 -> 3, train.lr: 0.002 -> 0.5, train.weight_decay: 0.01 -> 0.25"
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("changed since")]
    assert line.endswith(f"and accepted: {expected}")
    (path,) = tmp_path.glob("tb/*/run.json")
    starts = json.loads(path.read_text(encoding="utf-8"))
    assert [start["step"] for start in starts] == [0, 2]
    assert starts[0]["changes"] == [] and starts[1]["changes"] == expected.split(", ")


@pytest.mark.parametrize(("one", "other"), [("adamw", "muon"), pytest.param("muon", "adamw", marks=pytest.mark.slow)])
def test_another_optimizer_begins_anew_if_that_is_meant(tmp_path, capsys, one, other):
    before = run(tmp_path, "train.max_steps=2", f"train.optimizer={one}")
    capsys.readouterr()
    new, last = ["train.max_steps=3", f"train.optimizer={other}"], tmp_path / "ck" / "last.pt"
    with pytest.raises(UserError, match=rf"train\.optimizer {one}, .* train\.optimizer={one} train\.lr=0\.002 goes on"):
        make(tmp_path, *new, resume="auto")
    after = make(tmp_path, *new, resume=str(last))
    said = capsys.readouterr().out
    assert f"train.optimizer: {one} -> {other}" in said and "optimizer is another" in said
    assert after.progress.step == 2 and after.optimizer.state_dict()["state"] == {}
    for name, weight in before.model.state_dict().items():
        assert torch.equal(after.model.state_dict()[name], weight), name
    assert after.run() == 0


def test_a_checkpoint_of_the_time_before_muon_goes_on_with_adamw(tmp_path, capsys):
    before = run(tmp_path, "train.max_steps=2", "train.optimizer=adamw")
    path = tmp_path / "ck" / "last.pt"
    state = checkpoint.load_checkpoint(path)
    del state["config"]["train"]["optimizer"]
    torch.save(state, path)
    capsys.readouterr()
    after = make(tmp_path, "train.max_steps=2", "train.optimizer=adamw", resume="auto")
    assert "changed since" not in capsys.readouterr().out
    assert after.progress.step == 2
    assert_same_run(after, before)


def test_precision_may_change(tmp_path):
    run(tmp_path, "train.max_steps=2")
    resumed = run(tmp_path, "train.max_steps=3", "train.amp=fp16", resume="auto")
    assert resumed.state()["scaler"] and resumed.progress.step == 3


@pytest.mark.parametrize(
    "changed", ["model.base_channels=8", "audio.representation=magnitude", "diffusion.prediction_type=v"]
)
def test_another_architecture_or_representation_is_refused_in_one_sentence(undisturbed, capsys, changed):
    import train

    config, key = undisturbed.folder / "config.yaml", changed.split("=")[0]
    save_config(undisturbed.config, config)
    before = (undisturbed.folder / "last.pt").read_bytes()
    arguments = ["--config", str(config), "--device", "cpu", changed, "model.blocks=2", "train.lr=0.5"]
    with pytest.raises(SystemExit) as exit_:
        cli.main(lambda: train.run(arguments))
    output = capsys.readouterr()
    error = output.err.strip().splitlines()
    assert exit_.value.code == 2
    assert len(error) == 1 and error[0].startswith("error: ")
    assert f"{key} = " in error[0] and '"model.blocks=1"' in error[0] and "train.lr" not in error[0]
    assert "accepted: train.lr: 0.002 -> 0.5" in output.out
    assert (undisturbed.folder / "last.pt").read_bytes() == before


@pytest.mark.parametrize(
    "means_nothing",
    ["diffusion.beta_start=0.001", "audio.log1p_scale=3", "model.attention_heads=2", "diffusion.beta_end=0.03"],
)
def test_what_means_nothing_may_change_and_is_not_mentioned(tmp_path, undisturbed, capsys, means_nothing):
    checkpoint.save_checkpoint(tmp_path / "ck" / "last.pt", undisturbed.state())
    resumed = make(tmp_path, means_nothing, resume="auto")
    said = capsys.readouterr().out
    assert resumed.progress.step == 6 and resumed.progress.best_sdr == undisturbed.progress.best_sdr
    assert "log.tb_log_dir: " in said and means_nothing.split("=")[0] not in said
    if "beta" in means_nothing:
        before = {"beta_start": r"0\.0001", "beta_end": r"0\.02"}[key := means_nothing.split("=")[0].split(".")[1]]
        with pytest.raises(UserError, match=rf'"diffusion\.{key}={before}"'):  # it means something to one of the two
            make(tmp_path, means_nothing, "diffusion.beta_schedule=linear", resume="auto")


def test_only_the_run_s_own_last_checkpoint_goes_on_with_its_curves(tmp_path, undisturbed):
    """From any other checkpoint another run begins, which must not write over the curves of the first."""
    for name in ("ck/last.pt", "ck/best.pt", "elsewhere/last.pt"):
        checkpoint.save_checkpoint(tmp_path / name, undisturbed.state() | {"run_id": "the first"})
    goes_on = {"auto": True, "ck/last.pt": True, "ck/best.pt": False, "elsewhere/last.pt": False, "none": False}
    for resume, same in goes_on.items():
        path = str(tmp_path / resume) if resume.endswith(".pt") else resume
        assert (make(tmp_path, resume=path).progress.run_id == "the first") == same, resume


def test_a_released_file_gives_its_weights_to_a_new_run(tmp_path, undisturbed, capsys):
    released = tmp_path / "released.safetensors"
    checkpoint.release(undisturbed.state(), released)
    trained, shipped = undisturbed.config, checkpoint.load_weights(released)[1]
    assert shipped.log.checkpoint_dir == Config().log.checkpoint_dir != trained.log.checkpoint_dir, "a private path"
    assert (shipped.model, shipped.train) == (trained.model, trained.train)
    trainer = make(tmp_path, "train.lr=0.1", resume=str(released))
    assert (trainer.progress.step, trainer.progress.samples, trainer.optimizer.state_dict()["state"]) == (0, 0, {})
    for name, weight in undisturbed.ema.items():
        assert torch.equal(trainer.ema[name], weight) and torch.equal(trainer.model.state_dict()[name], weight)
    assert "so this is no exact resume" in capsys.readouterr().out
    trainer.save("last.pt")  # as every run does before its first step
    again = make(tmp_path, "train.lr=0.1", resume="auto")
    assert again.progress.step == 0 and all(
        torch.equal(again.ema[name], weight) for name, weight in undisturbed.ema.items()
    )
    with pytest.raises(UserError, match="model.base_channels = "):
        make(tmp_path, "model.base_channels=8", resume=str(released))


@pytest.mark.parametrize("resume", ["none", *(pytest.param(name, marks=pytest.mark.slow)
                                             for name in ("ck/best.pt", "released.safetensors"))])  # fmt: skip
def test_a_new_run_keeps_the_checkpoints_that_it_finds(tmp_path, undisturbed, resume, capsys):
    """Each of those before it, though their scores be higher, and whatever the new run begins with."""
    found, short = {}, ("train.max_steps=4", "train.val_every_steps=1")
    checkpoint.release(undisturbed.state(), tmp_path / "released.safetensors")
    for number, run_id in ((1, "first"), (2, "second"), (3, "second")):
        for name in ("last", "best"):
            path = tmp_path / "ck" / f"{name}.pt"
            state = undisturbed.state() | {"run_id": run_id, "step": number, "validated": number, "best_sdr": 99.0}
            checkpoint.save_checkpoint(path, state)
            found[f"{name}.{run_id}{'-2' if number == 3 else ''}.pt"] = path.read_bytes()
        trainer = make(tmp_path, *short, resume=resume if resume == "none" else str(tmp_path / resume))
        assert trainer.run() == 0 and trainer.progress.best_sdr < 99
        assert f"best.pt has held so far is kept as best.{run_id}" in capsys.readouterr().out
        assert {name: (tmp_path / "ck" / name).read_bytes() for name in found} == found
        for name in ("last.pt", "best.pt"):
            assert checkpoint.load_checkpoint(tmp_path / "ck" / name)["run_id"] == trainer.progress.run_id
    assert len(list((tmp_path / "ck").glob("*.pt"))) == len(found) + 2


def test_a_run_that_goes_on_keeps_its_best_checkpoint_where_it_is_unless_its_score_is_forgotten(tmp_path):
    run(tmp_path, "train.max_steps=2")
    best = tmp_path / "ck" / "best.pt"
    before = best.read_bytes()
    goes_on = make(tmp_path, "train.max_steps=3", "separation.batch_chunks=2", resume="auto")
    assert goes_on.progress.best_sdr > -math.inf, "how many chunks are computed at once is a matter of speed"
    goes_on.progress.best_sdr = 99.0  # so that it is not replaced
    assert goes_on.run() == 0 and best.read_bytes() == before and len(list(best.parent.glob("*.pt"))) == 2
    resumed = run(tmp_path, "train.max_steps=4", "train.val_seconds=0.7", resume="auto")
    assert (best.parent / f"best.{resumed.progress.run_id}.pt").read_bytes() == before
    assert checkpoint.load_checkpoint(best)["step"] == 4


def test_a_new_run_keeps_what_it_cannot_read(tmp_path):
    (tmp_path / "ck").mkdir()
    (tmp_path / "ck" / "best.pt").write_bytes(b"older")
    run(tmp_path, "train.max_steps=1", resume="auto")
    assert (tmp_path / "ck" / "best.old.pt").read_bytes() == b"older"


def test_released_weights_are_the_mean_of_several_checkpoints(tmp_path, undisturbed):
    for factor in (1, 3):
        state = undisturbed.state()
        state["ema"] = {name: factor * weight for name, weight in state["ema"].items()}
        checkpoint.save_checkpoint(tmp_path / f"{factor}.pt", state)
    paths = [str(tmp_path / name) for name in ("1.pt", "3.pt", "mean.safetensors")]
    assert checkpoint.run(paths) == 0
    weights, _ = checkpoint.load_weights(Path(paths[-1]))
    for name, weight in undisturbed.ema.items():
        torch.testing.assert_close(weights[name], 2 * weight)


def test_other_dev_clips_or_sampling_forget_the_best_score_and_other_data_are_refused(tmp_path, capsys):
    """A score is only comparable under what decided it: else best.pt might never be replaced."""
    first = make(tmp_path)
    first.progress.step, first.progress.best_sdr = 1, 5.0  # at step 0 nothing binds
    checkpoint.save_checkpoint(first.folder / "last.pt", first.state())
    assert make(tmp_path, "train.lr=0.1", resume="auto").progress.best_sdr == 5.0
    assert "forgotten" not in capsys.readouterr().out
    sampling = ("diffusion.ddim_steps=3", "diffusion.temperature=0.5")
    for changed in ("train.val_seconds=0.7", *sampling, "separation.subtract=mask"):
        assert make(tmp_path, changed, resume="auto").progress.best_sdr == -math.inf
        assert f"{changed.split('=')[0]} changed what is validated: the best SDR so far is" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"data\.dataset synthetic, not stems"):
        make(tmp_path, "data.dataset=stems", resume="auto")


def test_other_songs_under_the_same_name_forget_the_best_score(tmp_path, capsys):
    first = make(tmp_path)
    first.progress.step, first.progress.best_sdr = 1, 5.0
    assert len(first.progress.dev_songs) > 1
    last = first.folder / "last.pt"
    checkpoint.save_checkpoint(last, first.state())
    assert make(tmp_path, resume="auto").progress.best_sdr == 5.0
    assert "forgotten" not in capsys.readouterr().out
    checkpoint.save_checkpoint(last, first.state() | {"dev_songs": first.progress.dev_songs[1:]})
    other = make(tmp_path, resume="auto")
    assert other.progress.best_sdr == -math.inf and other.progress.dev_songs == first.progress.dev_songs
    assert "the dev songs are others than before: the best SDR so far is forgotten" in capsys.readouterr().out
    older = first.state()
    del older["dev_songs"]
    checkpoint.save_checkpoint(last, older)
    assert make(tmp_path, resume="auto").progress.best_sdr == 5.0


def test_a_checkpoint_from_before_there_were_these_counters_goes_on(tmp_path, capsys):
    run(tmp_path, "train.max_steps=3")
    state = last(tmp_path)
    del state["validated"], state["skipped"]
    torch.save(state, tmp_path / "ck" / "last.pt")
    resumed = make(tmp_path, resume="auto")
    assert (resumed.progress.step, resumed.progress.validated, resumed.progress.skipped) == (3, 3, 0)
    assert "older version, which did not count skipped steps" in capsys.readouterr().out


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
    assert re.search(r"damaged|no checkpoint|not a checkpoint", str(error.value))
    assert "--model_path" not in str(error.value), "train.py has none"
    assert damage not in ("foreign", "older") or "train.py --resume none" in str(error.value)


def test_a_checkpoint_with_a_setting_that_is_gone_is_named(tmp_path, undisturbed):
    path, state = tmp_path / "older.pt", undisturbed.state()
    state["config"]["data"]["mono"] = True
    checkpoint.save_checkpoint(path, state)
    checkpoint.release(state, tmp_path / "older.safetensors")
    for old in (path, tmp_path / "older.safetensors"):
        with pytest.raises(UserError, match=r"the config in '.*older\..*': unknown key data\.mono"):
            make(tmp_path, resume=str(old))
        with pytest.raises(UserError, match=r"the config in '.*older\..*': unknown key data\.mono"):
            checkpoint.load_model(old)


@pytest.mark.skipif(os.name == "nt", reason="names are text there")
def test_a_command_line_that_is_no_text_is_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["train.py", "--config", "c\udcff.yaml"])
    trainer = run(tmp_path, "train.max_steps=1")
    assert r"c\xff.yaml" in json.loads((trainer.curves / "run.json").read_text(encoding="utf-8"))[0]["command"]


def test_two_trainings_do_not_share_a_folder(tmp_path, capsys):
    """The second one would overwrite what the first writes."""
    config = tiny(tmp_path)
    first, second = Trainer(config, CPU), Trainer(config, CPU)
    optimize, said = first.optimize, []

    def beside(batches: list) -> dict:
        if not said:
            with pytest.raises(UserError, match="another training writes into") as error:
                second.run()
            said.append(str(error.value))
        return optimize(batches)

    first.optimize = beside
    assert first.run() == 0 and said
    assert Trainer(config, CPU).run() == 0  # the folder is free again


@pytest.mark.skipif(os.name == "nt", reason="Windows deletes no file that is open")
def test_a_folder_that_was_deleted_is_locked_again(tmp_path):
    """With the next checkpoint, which makes it anew."""
    config = tiny(tmp_path)
    first, second = Trainer(config, CPU), Trainer(config, CPU)
    save, said = first.save, []

    def saved(name: str) -> None:
        if not said and first.progress.step:
            shutil.rmtree(tmp_path / "ck")
            save(name)
            with pytest.raises(UserError, match="another training writes into") as error:
                second.run()
            said.append(str(error.value))
        save(name)

    first.save = saved
    assert first.run() == 0 and said


@pytest.mark.skipif(os.name == "nt", reason="Windows deletes no file that is open")
def test_a_training_whose_deleted_folder_another_has_taken_writes_no_more(tmp_path):
    config = tiny(tmp_path)
    first = Trainer(config, CPU)
    save = first.save

    def saved(name: str) -> None:
        if not first.progress.step:
            return save(name)
        shutil.rmtree(tmp_path / "ck")
        with FolderLock(tmp_path / "ck"):
            save(name)

    first.save = saved
    with pytest.raises(UserError, match="another training writes into"):
        first.run()
    assert not list((tmp_path / "ck").glob("*.pt"))
