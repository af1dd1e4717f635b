"""Training: one step, the loop around it, and what ends it; and it learns."""

from __future__ import annotations

import csv
import math
import os
import re
import signal
import time
from itertools import islice
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from trainers import CPU, ROOT, assert_same_run, at_step, flat, make, run, start, tiny

import diffvocsep.training.run as run_module
import diffvocsep.training.trainer as trainer_module
from diffvocsep import checkpoint
from diffvocsep.config import load_config
from diffvocsep.separator import Separator
from diffvocsep.training.monitor import NoMonitor
from diffvocsep.training.nonfinite import BAD_STEPS
from diffvocsep.training.schedule import learning_rate
from diffvocsep.training.trainer import Trainer
from diffvocsep.training.validation import Validation
from diffvocsep.util.errors import UserError

# ---- a real process ------------------------------------------------------------------------------------------------


def test_train_py_trains_validates_logs_and_saves(tmp_path, undisturbed):
    process = start(tmp_path, "train.val_batches=1")  # one clip: a process draws its pictures, a second each
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    validated = re.findall(r"step (\d+): median SDR .* (-?\d+\.\d+) dB", out)
    assert [int(step) for step, _ in validated] == [2, 3, 4, 6]  # every 2 steps, every epoch of 3, and at the end
    assert {p.name for p in (tmp_path / "ck").iterdir()} - {".lock"} == {"last.pt", "best.pt"}
    last, best = (checkpoint.load_checkpoint(tmp_path / "ck" / name) for name in ("last.pt", "best.pt"))
    assert last["step"] == 6
    assert f"{best['best_sdr']:.2f}" == max((score for _, score in validated), key=float)

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
    assert f"stopped at step {step}; the same command goes on from" in out
    assert (out + err).count("stopping after this step") == 1 and "Traceback" not in err


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="POSIX signals")
@pytest.mark.slow
def test_ctrl_c_while_loaders_start_is_no_error(tmp_path):
    """Spawned ones, as on Windows and macOS, take seconds to start, and until they ignore Ctrl-C it ends them."""
    process = start(tmp_path, "data.workers=2", script=ROOT / "tests" / "killed.py", START_METHOD="spawn")
    main = psutil.Process(process.pid)
    while sum("spawn_main" in " ".join(child.as_dict(["cmdline"], [])["cmdline"]) for child in main.children()) < 2:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    time.sleep(0.5)  # now the main process waits for their first batch
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 130, err
    assert "stopped at step 0; the same command goes on from" in out
    assert checkpoint.load_checkpoint(tmp_path / "ck" / "last.pt")["step"] == 0


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
        terms = trainer.optimize(next(trainer.steps()))
        steps.append((terms, {name: p.grad for name, p in trainer.model.named_parameters()}))
    (whole, expected), (accumulated, got) = steps
    scalars = {"loss", "diffusion", "vocals", "gradient_norm"}
    assert whole.keys() == accumulated.keys() == scalars | {"per_item", "t"}
    assert torch.equal(whole["t"], accumulated["t"]) and torch.allclose(whole["per_item"], accumulated["per_item"])
    for name in scalars:
        assert float(accumulated[name]) == pytest.approx(float(whole[name]), rel=1e-5), name
    for name, gradient in expected.items():
        assert torch.allclose(got[name], gradient, rtol=1e-4, atol=1e-6 * float(whole["gradient_norm"])), name


def test_epsilon_from_pure_noise_is_refused_before_anything_is_trained(tmp_path):
    epsilon = "diffusion.prediction_type=epsilon"
    with pytest.raises(UserError, match="epsilon .*pure noise"):
        make(tmp_path, epsilon)
    assert not (tmp_path / "ck").exists()
    assert (
        run(tmp_path, epsilon, "diffusion.beta_schedule=linear", "diffusion.zero_terminal_snr=false").progress.step == 6
    )


# ---- one step ------------------------------------------------------------------------------------------------------


def test_the_average_forgets_slowly_and_the_sooner_the_newer_it_is(tmp_path):
    trainer = make(tmp_path, "train.ema_decay=0.3")
    average = {name: tensor.double().numpy() for name, tensor in trainer.ema.items()}
    for n, batches in zip(range(1, 6), trainer.steps(), strict=False):
        trainer.optimize(batches)
        decay = min(0.3, (1 + n) / (10 + n))  # 0.18, 0.25, then 0.3
        for name, tensor in trainer.model.state_dict().items():
            average[name] = decay * average[name] + (1 - decay) * tensor.double().numpy()
            assert np.allclose(trainer.ema[name].numpy(), average[name], rtol=1e-5, atol=1e-7), name
    assert not torch.equal(trainer.ema["stem.weight"], trainer.model.stem.weight)


def test_the_learning_rate_rises_linearly_then_falls_along_half_a_cosine(tmp_path):
    rates = [learning_rate(step, 20, (step - 20) / 80) for step in range(100)]
    assert rates[:20] == pytest.approx(np.arange(1, 21) / 20)
    assert rates[20:] == pytest.approx((1 + np.cos(np.pi * np.arange(80) / 80)) / 2)
    assert learning_rate(0, 0, 0.0) == 1.0 and max(learning_rate(s, 50, 0.0) for s in range(5)) == 0.1

    trainer = make(tmp_path, "train.lr=0.01")
    for step, batches in enumerate(trainer.steps()):
        trainer.optimize(batches)
        expected = 0.01 * learning_rate(step, 2, (step - 2) / 4)
        assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(expected)


def test_the_learning_rate_of_a_run_shorter_than_its_warm_up_falls_too(tmp_path):
    trainer, rates = make(tmp_path, "train.lr=0.01", "train.warmup_steps=50", "train.max_steps=6"), []
    for batches in trainer.steps():
        trainer.optimize(batches)
        rates.append(trainer.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.01 * learning_rate(step, 3, (step - 3) / 3) for step in range(6)])
    assert trainer.schedule.fraction_done(trainer.progress) == 1


def test_gradients_are_clipped_to_a_norm_and_reported_as_they_were(tmp_path):
    norms = {}
    for clip in ("0", "0.001"):
        trainer = make(tmp_path, f"train.grad_clip={clip}")
        reported = float(trainer.optimize(next(trainer.steps()))["gradient_norm"])
        squares = [p.grad.double().square().sum() for p in trainer.model.parameters()]
        norms[clip] = reported, math.sqrt(sum(squares))
    assert norms["0"][0] == pytest.approx(norms["0"][1], rel=1e-5)
    assert norms["0.001"][0] == pytest.approx(norms["0"][0], rel=1e-5)
    assert norms["0.001"][1] == pytest.approx(0.001, rel=1e-3)


def test_a_step_moves_no_tables_or_windows(tmp_path, monkeypatch):
    """A copy from the computer's memory to a GPU waits for all that was asked of it: once, not at every step."""
    trainer = make(tmp_path, "diffusion.prediction_type=v")
    stream, moved = trainer.steps(), []
    first, second = next(stream), next(stream)
    original = torch.Tensor.to

    def to(self: torch.Tensor, *args, **options) -> torch.Tensor:
        moved.append(self.shape)
        return original(self, *args, **options)

    for batches in (first, second):
        moved.clear()
        with monkeypatch.context() as patch:
            patch.setattr(torch.Tensor, "to", to)
            trainer._gradients(batches)
        tables = [shape for shape in moved if len(shape) == 1]  # `(T,)` of the schedule, `(n_fft,)` of the windows
        assert bool(tables) == (batches is first), "the test cannot see them" if batches is first else tables


@pytest.mark.slow
def test_the_compiled_network_is_one_graph_and_trains_alike(tmp_path, monkeypatch):
    """Traced by torch.compile, forward and backward, but left to torch's own kernels: those take minutes to build."""
    plain, compile_ = make(tmp_path), torch.compile
    monkeypatch.setattr(torch, "compile", lambda model: compile_(model, backend="aot_eager", fullgraph=True))
    compiled = make(tmp_path, "train.compile=true")
    for _, one, other in zip(range(2), plain.steps(), compiled.steps(), strict=False):
        terms = compiled.optimize(other)
        for name, value in plain.optimize(one).items():
            torch.testing.assert_close(terms[name], value, rtol=1e-4, atol=1e-5)


# ---- when the loss is not finite -----------------------------------------------------------------------------------


def spoil(monkeypatch, trainer: Trainer, steps: range, item: int | None = None) -> None:
    """Let the loss be NaN in the given steps, or that of one item only; then the gradient is NaN, too."""
    objective = trainer.objective

    def spoiled(*args):
        terms = objective(*args)
        if trainer.progress.step not in steps:
            return terms
        per_item = terms["per_item"].clone()
        per_item[slice(None) if item is None else item] = math.nan
        return terms | {"loss": terms["loss"] * math.nan, "per_item": per_item}

    spoiled.shape = objective.shape
    monkeypatch.setattr(trainer, "objective", spoiled)


def tensors_of(state: dict) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in flat(state).items() if torch.is_tensor(tensor)}


def test_a_step_that_is_not_finite_is_left_out_and_counted(tmp_path, monkeypatch):
    trainer = make(tmp_path)
    spoil(monkeypatch, trainer, range(2, 3))
    for batches in trainer.steps():
        before = tensors_of(trainer.state())
        trainer.optimize(batches)
        after = flat(trainer.state())
        assert all(torch.equal(tensor, after[name]) for name, tensor in before.items()) == (trainer.progress.step == 3)
    assert (trainer.progress.step, trainer.non_finite.in_a_row, trainer.progress.skipped) == (6, 0, 1)
    assert trainer.state()["skipped"] == 1
    assert all(tensor.isfinite().all() for tensor in trainer.model.state_dict().values())


@pytest.mark.parametrize("amp", ["none", pytest.param("fp16", marks=pytest.mark.slow)])
def test_a_gradient_that_is_not_finite_is_left_out_though_the_loss_is(tmp_path, monkeypatch, amp):
    trainer = make(tmp_path, f"train.amp={amp}")
    stream = trainer.steps()
    trainer.optimize(next(stream))
    before, scale = tensors_of(trainer.state()), trainer.scaler.get_scale()
    weight = trainer.model.stem.weight
    hook = weight.register_hook(lambda gradient: gradient * math.inf)
    terms = trainer.optimize(next(stream))
    hook.remove()
    assert terms["loss"].isfinite() and not terms["gradient_norm"].isfinite()
    assert all(torch.equal(tensor, flat(trainer.state())[name]) for name, tensor in before.items())
    assert trainer.progress.skipped == 1 and (amp == "none" or trainer.scaler.get_scale() < scale)
    trainer.optimize(next(stream))
    assert not torch.equal(weight, before["/model/stem.weight"])


def test_the_songs_of_a_bad_step_are_named(tmp_path, monkeypatch, capsys):
    """Those of the item whose loss is not finite; where only the gradient is not, all of the step."""
    trainer = make(tmp_path, "data.synthetic_songs=9", "train.batch_size=4")
    expected = [trainer.segments.songs(index)[:2] for index in range(8)]
    spoil(monkeypatch, trainer, range(0, 1), item=2)
    stream = trainer.steps()
    trainer.optimize(next(stream))
    singer, band = expected[2]
    pair = f"'{singer.name}'" + (f" over '{band.name}'" if band is not singer else "")
    assert f"step 1 was skipped: loss or gradient not finite with the songs {pair}\n" in capsys.readouterr().out
    next(iter(trainer.model.parameters())).register_hook(lambda gradient: gradient * math.nan)
    trainer.optimize(next(stream))
    line = capsys.readouterr().out
    assert line.startswith("step 2 was skipped") and all(f"'{singer.name}'" in line for singer, _ in expected[4:8])


def test_the_songs_named_are_those_that_are_heard(tmp_path):
    """Silence one song: the segments made of it fall silent, and no others."""
    segments = make(tmp_path, "data.synthetic_songs=4").segments
    segments.tracks[1].read("vocals", 0, 1, 8000)
    for samples in segments.tracks[1]._samples.values():
        samples[:] = 0
    heard = [segments[index] for index in range(24)]
    for index, item in enumerate(heard):
        singer, band, *_ = segments.songs(index)
        if segments.tracks[1] is singer:
            assert not item["vocals"].any()
        assert item["accompaniment"].any() == (band is not segments.tracks[1])
    assert {segments.songs(index)[0] is segments.songs(index)[1] for index in range(24)} == {True, False}


@pytest.mark.parametrize("call", ["gather", "barrier"])
def test_a_lost_process_is_named_in_a_bad_step_and_at_the_end_too(tmp_path, monkeypatch, call):
    trainer, calls = make(tmp_path, "train.max_steps=2"), []
    monkeypatch.setattr(trainer, "_validate", lambda monitor: None)  # it is the end's wait that is looked at
    monkeypatch.setattr(trainer.backend, "is_process_lost", lambda error: "closed by peer" in str(error))
    spoil(monkeypatch, trainer, range(1, 2))

    def gone(values: torch.Tensor | None = None) -> torch.Tensor:
        calls.append(call)
        at_the_end = call == "barrier" and len(calls) == 2  # the first wait is for the lock of the folder
        if at_the_end or len(calls) == 5:  # `per_item` and `t` of two steps, then the songs of the bad one
            raise RuntimeError("connection closed by peer")
        return values

    monkeypatch.setattr(trainer.backend, call, gone)
    with pytest.raises(ConnectionError, match="another process of this run was lost after step 2 .connection closed"):
        trainer.run()
    assert len(calls) == (2 if call == "barrier" else 5)
    assert checkpoint.load_checkpoint(tmp_path / "ck" / "last.pt")["step"] == 2


@pytest.mark.slow
def test_twenty_bad_steps_end_the_run_and_spoil_no_checkpoint(tmp_path, monkeypatch):
    trainer = make(tmp_path, "train.max_steps=100", "train.val_every_steps=5", "train.steps_per_epoch=1000")
    spoil(monkeypatch, trainer, range(6, 100))
    message = rf"not finite for {BAD_STEPS} steps in a row \(steps 7 to 26, the last with the songs 'song .*train\.lr"
    with pytest.raises(UserError, match=message) as error:
        trainer.run()
    assert "\n" not in str(error.value)
    for name in ("last.pt", "best.pt"):
        state = checkpoint.load_checkpoint(tmp_path / "ck" / name)
        tensors = [value for value in flat(state).values() if torch.is_tensor(value)]
        assert tensors and all(tensor.isfinite().all() for tensor in tensors)


@pytest.mark.parametrize("part", ["model", "ema"])
def test_weights_that_are_not_finite_never_replace_a_checkpoint(tmp_path, part):
    trainer = run(tmp_path, "train.max_steps=2")
    before = {path.name: path.read_bytes() for path in trainer.folder.iterdir()}
    next(iter(trainer.state()[part].values())).view(-1)[0] = math.nan
    for name in before:
        with pytest.raises(
            UserError, match=rf"weights are not finite at step 2, so .*{name} was left as it was.*train\.lr"
        ):
            trainer.save(name)
    assert {path.name: path.read_bytes() for path in trainer.folder.iterdir()} == before


@pytest.mark.parametrize("weight", [math.nan, 1e5])
def test_weights_that_are_not_finite_in_half_precision_never_replace_released_ones(tmp_path, weight):
    """Float16 ends at 65504."""
    trainer = make(tmp_path, "log.release_minutes=1")
    trainer.release("last")
    released = trainer.folder / "last.safetensors"
    before = released.read_bytes()
    trainer.ema["stem.weight"].view(-1)[0] = weight
    with pytest.raises(UserError, match=r"not all finite in float16, so '.*last\.safetensors' was left as it was"):
        trainer.release("last")
    assert released.read_bytes() == before
    if math.isfinite(weight):
        checkpoint.release(trainer.state(), released)
        assert checkpoint.load_weights(released)[0]["stem.weight"].max() == weight


def test_a_checkpoint_is_saved_before_its_weights_are_released(tmp_path, monkeypatch):
    written = []
    for method in ("save", "release"):
        monkeypatch.setattr(Trainer, method, lambda self, name: written.append(name))
    trainer = make(tmp_path, "train.max_steps=2", "log.release_minutes=100")
    assert trainer.run() == 0
    assert written == ["last.pt", "best.pt", "last.pt", "best", "last"]
    at_step(monkeypatch, 0, lambda: signal.raise_signal(signal.SIGINT))
    written.clear()
    assert make(tmp_path, "log.release_minutes=100").run() == 130
    assert written == ["last.pt", "last.pt", "last"]


# ---- learning ------------------------------------------------------------------------------------------------------


def test_it_learns_a_song(tmp_path):
    trainer = make(
        tmp_path, "data.synthetic_songs=1", "train.max_steps=80", "train.batch_size=4", "train.lr=0.005",
        "train.warmup_steps=5", "data.remix_probability=0", "data.silent_vocals=0", "model.base_channels=8",
    )  # fmt: skip
    losses = np.array([float(trainer.optimize(batches)["loss"]) for batches in trainer.steps()])
    assert losses[-20:].mean() < 0.7 * losses[:10].mean()


def test_the_log1p_preset_trains_and_separates(tmp_path):
    own = [f"log.checkpoint_dir='{(tmp_path / 'ck').as_posix()}'", "train.max_steps=3"]
    config = load_config(ROOT / "configs" / "log1p.yaml", own, base=tiny(tmp_path))
    trainer = Trainer(config, CPU, "none")
    before = tensors_of({"model": trainer.model.state_dict()})
    assert trainer.run() == 0 and math.isfinite(trainer.progress.best_sdr)
    assert all(
        not torch.equal(tensor, before[f"/model/{name}"]) for name, tensor in trainer.ema.items() if "head" in name
    )
    separator = Separator.from_checkpoint(tmp_path / "ck" / "best.pt", "cpu")
    assert (separator.config.audio.representation, separator.config.separation.subtract) == ("magnitude", "normalized")
    mixture = sum(trainer.clips[0])
    vocals, _ = separator.separate(mixture, 8000)
    assert vocals.isfinite().all() and 0 < vocals.square().mean() < mixture.square().mean()


@pytest.mark.slow
def test_the_log1p_preset_learns_to_refine(tmp_path):
    own = [f"log.checkpoint_dir='{(tmp_path / 'ck').as_posix()}'", "train.max_steps=6", "train.refine_share=1"]
    config = load_config(ROOT / "configs" / "log1p.yaml", [*own, "diffusion.terminal_share=0"], base=tiny(tmp_path))
    trainer = Trainer(config, CPU, "none")
    assert trainer.run() == 0 and trainer.ema["guess"].any()  # what tells a guess from the truth has been learnt
    separator, mixture = Separator.from_checkpoint(tmp_path / "ck" / "best.pt", "cpu"), sum(trainer.clips[0])
    refined = {steps: separator.separate(mixture, 8000, steps=steps)[0] for steps in (1, 4)}
    with torch.no_grad():
        separator.model.guess.zero_()
    untold = {steps: separator.separate(mixture, 8000, steps=steps)[0] for steps in (1, 4)}
    assert refined[4].isfinite().all() and not torch.equal(refined[1], refined[4])
    assert torch.equal(refined[1], untold[1]) and not torch.equal(refined[4], untold[4])


REFINE = ("train.parts=refine", "model.refine_rank=2", "train.refine_share=1")


def test_what_refines_guesses_is_trained_without_touching_one_step(tmp_path, capsys):
    """Bit for bit, from a checkpoint, where weights and their average differ, to the released file."""
    folder, first = (tmp_path / "ck").as_posix(), tmp_path / "first.safetensors"
    one_step = Trainer(
        tiny(tmp_path, "model.refine_rank=2", f"log.checkpoint_dir='{tmp_path.as_posix()}'"), CPU, "none"
    )
    assert one_step.run() == 0
    checkpoint.release(checkpoint.load_checkpoint(tmp_path / "last.pt"), first, torch.float16)
    end = f"train.max_steps={one_step.progress.step + 4}"
    more = (*REFINE, "diffusion.terminal_share=0", "diffusion.ddim_steps=2", end)
    config = tiny(tmp_path, *more, f"log.checkpoint_dir='{folder}'")
    trainer = Trainer(config, CPU, str(tmp_path / "last.pt"))
    assert "the optimizer trains other weights" in capsys.readouterr().out and trainer.run() == 0
    refining = tmp_path / "refining.safetensors"
    checkpoint.release(checkpoint.load_checkpoint(tmp_path / "ck" / "last.pt"), refining, torch.float16)
    mixture = sum(trainer.clips[0])
    before, after = (Separator.from_checkpoint(path, "cpu") for path in (first, refining))
    for name, weight in after.model.state_dict().items():
        assert torch.equal(weight, before.model.state_dict()[name]) == ("refine_" not in name), name
    for steps, same in ((1, True), (2, False)):
        was, now = (one.separate(mixture, 8000, steps=steps)[0] for one in (before, after))
        assert torch.equal(was, now) == same


@pytest.mark.parametrize("sampling", ["diffusion.ddim_steps=1", "diffusion.sampler=ddpm", "diffusion.eta=0.5"])
def test_refinement_is_not_trained_where_validation_would_see_none_of_it(tmp_path, sampling):
    with pytest.raises(UserError, match=r"validation has none: set diffusion\.ddim_steps=2, and"):
        Trainer(tiny(tmp_path, *REFINE, "diffusion.ddim_steps=4", sampling), CPU, "none")


def test_a_network_without_weights_that_refine_is_named(tmp_path):
    import benchmarks.diffusers_unet  # noqa: F401  registers itself

    other = ("model.network=diffusers_unet", "model.base_channels=8")
    with pytest.raises(UserError, match="the network diffusers_unet has no weights for guesses alone; use train.parts"):
        Trainer(tiny(tmp_path, *REFINE, "diffusion.ddim_steps=2", *other), CPU, "none")


def test_a_network_that_could_not_be_resumed_is_refused_before_anything_is_trained(tmp_path, monkeypatch):
    """The integer that counts the batches of a BatchNorm cannot be averaged, either."""
    for refused, name in ((torch.nn.BatchNorm2d(1), "num_batches_tracked"), (None, "again.weight")):
        network = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1))
        network.add_module("again", refused or network[0])
        monkeypatch.setattr(run_module, "make_network", lambda config, network=network: network)
        with pytest.raises(UserError, match=f"the network unet keeps .*{name}.*persistent=False") as error:
            make(tmp_path)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "ck").exists()


@pytest.mark.slow
def test_songs_on_the_device_give_the_same_batches_and_going_on_is_exact(tmp_path, monkeypatch):
    whole = run(tmp_path / "whole", "data.cache=device")
    streams = (islice(make(tmp_path, f"data.cache={kind}").steps(), 6) for kind in ("device", "memory"))
    for (ours,), (theirs,) in zip(*streams, strict=True):
        assert ours.keys() == theirs.keys()
        for name in theirs.keys() - {"noise"}:  # which is drawn on the device, too
            torch.testing.assert_close(ours[name], theirs[name], atol=2e-3, rtol=0)  # 16 bit on the way
    with monkeypatch.context() as patch:
        at_step(patch, 2, lambda: signal.raise_signal(signal.SIGINT))
        assert make(tmp_path / "parts", "data.cache=device").run() == 130
    assert_same_run(run(tmp_path / "parts", "data.cache=device", resume="auto"), whole)


# ---- by the clock --------------------------------------------------------------------------------------------------


def test_the_clock_ends_a_run_and_the_learning_rate_falls_along_it(tmp_path, clock, capsys):
    trainer, rates = make(tmp_path, "train.max_minutes=0.7", "train.warmup_steps=0", "train.lr=0.01"), []
    optimize = trainer.optimize
    trainer.optimize = lambda batches: (optimize(batches), rates.append(trainer.optimizer.param_groups[0]["lr"]))[0]
    assert trainer.run() == 0
    assert (trainer.progress.step, trainer.progress.validated, trainer.progress.seconds) == (5, 5, 50.0)
    assert rates == pytest.approx([0.01 * (0.5 + 0.5 * math.cos(math.pi * s / 42)) for s in (0, 10, 20, 30, 40)])
    shown = capsys.readouterr()
    assert "0.7 minutes" in shown.out and "step 5: median SDR" in shown.out
    assert "best weights are in" in shown.out and "--model_path" in shown.out
    assert re.search(r"Epochs: 2epoch", shown.err), "the last, partial epoch is over, too"


@pytest.mark.slow
def test_a_run_by_the_clock_goes_on_by_the_seconds_that_it_saved(tmp_path, clock):
    whole = run(tmp_path / "whole", "train.max_minutes=0.7")
    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, 2, lambda: signal.raise_signal(signal.SIGINT))
        assert make(tmp_path / "parts", "train.max_minutes=0.7").run() == 130
    assert checkpoint.load_checkpoint(tmp_path / "parts" / "ck" / "last.pt")["seconds"] == 30.0
    assert_same_run(run(tmp_path / "parts", "train.max_minutes=0.7", resume="auto"), whole)


@pytest.fixture
def slow_validation(clock, monkeypatch) -> None:
    """Every validation takes 90 s."""

    def validate(*_) -> Validation:
        clock(90)
        return Validation([1.0], [1.0])

    monkeypatch.setattr(trainer_module, "validate", validate)


EACH_MINUTE = ["train.val_minutes=1", "train.val_every_steps=1000", "train.steps_per_epoch=1000"]


def validated_steps(folder: Path) -> list[int]:
    (path,) = folder.glob("tb/*/history.csv")
    return [int(row["step"]) for row in csv.DictReader(path.open(encoding="utf-8")) if row["sdr_median"]]


@pytest.mark.slow
def test_the_minutes_between_validations_are_without_their_own(tmp_path, slow_validation, monkeypatch):
    """Nor does one that is caught up on at the start bring the next one nearer."""
    settings = [*EACH_MINUTE, "train.max_steps=14"]
    with monkeypatch.context() as patch:
        at_step(patch, 5, lambda: signal.raise_signal(signal.SIGINT))
        assert make(tmp_path, *settings).run() == 130
    progress = run(tmp_path, *settings, resume="auto").progress
    assert validated_steps(tmp_path) == [6, 12, 14]
    assert (progress.seconds, progress.validated_seconds) == (14 * 10 + 3 * 90, progress.seconds)


@pytest.mark.slow
def test_a_run_that_the_clock_ends_in_a_validation_is_complete(tmp_path, slow_validation, capsys):
    settings = [*EACH_MINUTE, "train.max_minutes=2", "log.every_steps=4"]
    assert run(tmp_path, *settings).progress.step == 6
    (path,) = tmp_path.glob("tb/*/history.csv")
    losses = [row["step"] for row in csv.DictReader(path.open(encoding="utf-8")) if row["loss"]]
    assert losses == ["4", "6"] and validated_steps(tmp_path) == [6]
    assert re.search(r"Epochs: 1epoch", capsys.readouterr().err)
    assert make(tmp_path, *settings, resume="auto").run() == 0
    assert "has all its 6 steps" in capsys.readouterr().out


def test_all_processes_count_the_time_of_a_validation_by_the_mean_of_their_clocks(tmp_path, clock, monkeypatch):
    trainer, told = make(tmp_path, *EACH_MINUTE), []
    trainer.backend.rank = 1  # it only waits
    monkeypatch.setattr(trainer.backend, "barrier", lambda: clock(80))
    monkeypatch.setattr(trainer.backend, "mean", lambda own: told.append(own.tolist()) or own + 5 * (own > 0))
    trainer.last_time, trainer.progress.step, trainer.progress.seconds = 0.0, 3, 60.0
    assert trainer.validation_due
    trainer._validate(NoMonitor())
    progress = trainer.progress
    assert told == [[0.0], [80.0]], "of the own wishes to stop, and of the own clock"
    assert (progress.seconds, progress.validated_seconds, progress.validated) == (145, 145, 3)
    assert not trainer.validation_due and not trainer.stopping
